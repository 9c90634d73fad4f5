"""Laws of the quantisers: values on the grid, errors of half a step, gradients by their formulas.

References: autograd of the plain forward, sums written out, brute force over scales, cases worked by hand.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from adasearch.bit_widths import BitWidths
from adasearch.errors import ConfigError, ModelError
from adasearch.quantizers import WEIGHT_QUANTIZERS
from adasearch.rounding import round_activations
from adasearch.weight_quantizer import WeightQuantizer

CASES = [(name, bits) for name in WEIGHT_QUANTIZERS for bits in WEIGHT_QUANTIZERS[name].BITS]
LEARNED = {"dynamic_scale": "gamma", "pact": "clip", "lsq": "step"}
PER = [("tensor", 0), ("row", 0), ("row", 1)]
every_quantizer = pytest.mark.parametrize(("name", "bits"), CASES)
every_row = pytest.mark.parametrize(("per", "row_dim"), PER)


def a_weight(rows: int = 6, columns: int = 40) -> Tensor:
    """Weights with heavy tails, rows of different sizes."""
    return torch.randn(rows, columns) ** 3 * torch.linspace(0.02, 0.1, rows)[:, None]


def make(name: str, weight: Tensor, bits: int, per: str = "tensor", row_dim: int = 0, **options: Any) -> WeightQuantizer:
    return WEIGHT_QUANTIZERS[name](weight, bits, per=per, row_dim=row_dim, **options)


@every_row
@every_quantizer
def test_integers_times_scale_is_the_weight(name: str, bits: int, per: str, row_dim: int) -> None:
    weight = a_weight()
    quantizer = make(name, weight, bits, per, row_dim)
    integers, scale = quantizer.integers(weight)
    assert integers.dtype == torch.int8 and scale.dtype == torch.float32 and integers.shape == weight.shape
    assert list(scale.shape) == ([] if per == "tensor" else [6, 1] if row_dim == 0 else [1, 40]) and (scale > 0).all()
    assert torch.equal(integers * scale, quantizer(weight))  # every bit
    assert torch.equal(quantizer(weight), quantizer.eval()(weight))
    lowest = -1 if name == "bwn" else -(2 ** (bits - 1)) + (name != "lsq")
    assert integers.min() >= lowest and integers.max() <= max(1, 2 ** (bits - 1) - 1)
    assert len(integers.unique()) > 1


@every_row
@every_quantizer
def test_errors_are_at_most_half_a_step_inside_the_range(name: str, bits: int, per: str, row_dim: int) -> None:
    if name in ("twn", "bwn"):
        return  # their thresholds are not half-way; their formulas are checked below
    weight = a_weight()
    quantizer = make(name, weight, bits, per, row_dim)
    integers, scale = quantizer.integers(weight)
    is_inside = (weight >= scale * quantizer.low) & (weight <= scale * quantizer.high)
    error = (weight - quantizer(weight)).abs()
    assert (error <= scale / 2 * (1 + 1e-5)).where(is_inside, True).all() and is_inside.any()
    clipped = torch.where(weight > 0, scale * quantizer.high, scale * quantizer.low)
    assert torch.equal(quantizer(weight).where(~is_inside, 0), clipped.where(~is_inside, 0))


@every_quantizer
def test_rows_are_quantised_on_their_own(name: str, bits: int) -> None:
    weight = a_weight()
    whole = make(name, weight, bits, "row", 0)
    rows = [make(name, row[None], bits)(row[None]) for row in weight]
    assert torch.allclose(whole(weight), torch.cat(rows), rtol=1e-5)
    columns = make(name, weight.T.contiguous(), bits, "row", 1)(weight.T).T
    assert torch.allclose(columns, whole(weight), rtol=1e-5)  # sums in another order


@every_row
@every_quantizer
def test_nothing_is_nan(name: str, bits: int, per: str, row_dim: int) -> None:
    weight = a_weight()
    weight[2] = 0  # a padding row, a column of zeros
    weight[:, 3] = 0
    for start in (weight, torch.zeros_like(weight)):
        quantizer = make(name, start, bits, per, row_dim)
        for value in (start, weight, torch.zeros_like(weight), weight * 1e6):
            value = value.clone().requires_grad_()
            quantizer(value).square().sum().backward()
            assert value.grad.isfinite().all() and quantizer(value).isfinite().all()
            assert all(scale.grad.isfinite().all() for scale in quantizer.parameters())
        if name != "bwn":
            assert (quantizer(weight) == 0).where(weight == 0, True).all()  # zeros stay zeros
    for learned in quantizer.parameters():
        learned.data.fill_(-0.3)  # a step too far
        assert torch.equal(quantizer(weight), make_with(quantizer, 0.3, weight))


def make_with(quantizer: WeightQuantizer, value: float, weight: Tensor) -> Tensor:
    for learned in quantizer.parameters():
        learned.data.fill_(value)
    return quantizer(weight)


def plain_dynamic_scale(weight: Tensor, gamma: Tensor, bits: int, dims: tuple[int, ...], detach_mean: bool) -> Tensor:
    """The paper's forward, written for autograd: u = clip(w, -a, a) / a, a round(k u) / k."""
    mean = weight.abs().mean(dims, keepdim=True)
    alpha = gamma * (mean.detach() if detach_mean else mean)
    k = 2 ** (bits - 1) - 1
    u = torch.minimum(torch.maximum(weight, -alpha), alpha) / alpha * k
    return alpha * (u + (u.round() - u).detach()) / k


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("name", LEARNED)
def test_the_range_is_full_or_even_as_asked(name: str, bits: int) -> None:
    weight, slope = a_weight(), torch.randn(6, 40)
    for is_full in (False, True):
        quantizer = make(name, weight, bits, full_range=is_full)
        high, low = 2 ** (bits - 1) - 1, -(2 ** (bits - 1)) + (not is_full)
        learned = getattr(quantizer, LEARNED[name])
        least = torch.minimum(weight.max(), -weight.min())
        learned.data *= least / 4 / high / quantizer.scale(weight).detach()  # so that weights are beyond both ends
        integers, scale = quantizer.integers(weight)
        assert (integers.min(), integers.max()) == (low, high) and torch.equal(integers * scale, quantizer(weight))
        (quantizer(weight) * slope).sum().backward()
        ratio = weight / scale
        inside = (ratio > low) & (ratio < high)
        change = torch.where(inside, (ratio.round() - ratio) * (name != "pact"), ratio.clamp(low, high).round())
        chain = float(scale / learned.detach()) / (math.sqrt(weight.numel() * high) if name == "lsq" else 1)
        assert learned.grad.item() == pytest.approx(float((change * slope).sum()) * chain, rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("detach_mean", [False, True])
@pytest.mark.parametrize("bits", [2, 4, 8])
@every_row
def test_dynamic_scale_learns_as_autograd_of_its_forward(per: str, row_dim: int, bits: int, detach_mean: bool) -> None:
    weight, slope = a_weight().requires_grad_(), torch.randn(6, 40)
    quantizer = make("dynamic_scale", weight, bits, per, row_dim, gamma_init=1.3, detach_mean=detach_mean)
    (quantizer(weight) * slope).sum().backward()
    reference = weight.detach().clone().requires_grad_()
    gamma = quantizer.gamma.detach().clone().requires_grad_()
    dims = (0, 1) if per == "tensor" else (1 - row_dim,)
    value = plain_dynamic_scale(reference, gamma, bits, dims, detach_mean)
    (value * slope).sum().backward()
    assert torch.allclose(value, quantizer(weight), rtol=1e-5, atol=1e-7)
    assert torch.allclose(weight.grad, reference.grad, atol=1e-5)
    assert torch.allclose(quantizer.gamma.grad, gamma.grad, rtol=1e-4, atol=1e-5)
    assert (weight.grad == 0).any() == detach_mean  # outside the range only the mean tells a weight anything


def test_dynamic_scale_learns_by_the_closed_formula() -> None:
    weight, slope = a_weight(), torch.randn(6, 40)
    quantizer = make("dynamic_scale", weight, 2, gamma_init=1.3)
    (quantizer(weight) * slope).sum().backward()
    mean = weight.abs().mean().item()
    alpha = 1.3 * mean
    total = 0.0
    for w, g in zip(weight.flatten().tolist(), slope.flatten().tolist()):
        if abs(w) < alpha:
            total += g * (round(w / alpha) - w / alpha)  # k = 1
        else:
            total += g if w > 0 else -g
    assert quantizer.gamma.grad.item() == pytest.approx(mean * total, rel=1e-4)
    assert quantizer.scale(weight).item() == pytest.approx(alpha, rel=1e-6)


def test_learned_gradients_of_cases_worked_by_hand() -> None:
    """2 bits, step 1. 0.4 -> 0, 0.8 -> 1, -1.3 -> -1, 2.5 -> 1, -2.6 -> -2 (lsq) or -1."""
    weight = torch.tensor([[0.4, 0.8, -1.3, 2.5, -2.6]], requires_grad=True)
    slope = torch.tensor([[1.0, 10.0, 100.0, 1000.0, 10000.0]])

    lsq = make("lsq", weight, 2, step_init=1)
    assert lsq(weight).tolist() == [[0, 1, -1, 1, -2]]
    (lsq(weight) * slope).sum().backward()
    assert weight.grad.tolist() == [[1, 10, 100, 0, 0]]
    gradient = -0.4 + 10 * 0.2 + 100 * 0.3 + 1000 * 1 - 10000 * 2
    assert lsq.step.grad.item() == pytest.approx(gradient / math.sqrt(5 * 1), rel=1e-5)

    weight.grad = None
    pact = make("pact", weight, 2, clip_init=1)
    assert pact(weight).tolist() == [[0, 1, -1, 1, -1]]
    (pact(weight) * slope).sum().backward()
    assert weight.grad.tolist() == [[1, 10, 0, 0, 0]]
    assert pact.clip.grad.item() == -100 + 1000 - 10000


def test_lsq_starts_and_learns_as_published() -> None:
    weight = a_weight().requires_grad_()
    for bits, high in ((2, 1), (4, 7), (8, 127)):
        quantizer = make("lsq", weight, bits, "row", 0)
        assert torch.allclose(quantizer.step.flatten(), 2 * weight.abs().mean(1) / math.sqrt(high))
        quantizer(weight).sum().backward()
        ratio = weight.detach() / quantizer.step
        inside = (ratio > -high - 1) & (ratio < high)
        terms = torch.where(inside, ratio.round() - ratio, ratio.round().clamp(-high - 1, high))
        assert torch.allclose(quantizer.step.grad, terms.sum(1, keepdim=True) / math.sqrt(40 * high), atol=1e-4)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_min_max_reaches_its_largest_weight(bits: int) -> None:
    weight = a_weight().requires_grad_()
    quantizer = make("min_max", weight, bits)
    integers, scale = quantizer.integers(weight)
    assert integers.abs().max() == 2 ** (bits - 1) - 1
    assert (integers * scale).abs().max() == pytest.approx(weight.abs().max().item(), rel=1e-6)


@pytest.mark.parametrize("name", ["min_max", "twn", "bwn", "laq"])
def test_computed_scales_pass_the_whole_gradient(name: str) -> None:
    weight, slope = a_weight().requires_grad_(), torch.randn(6, 40)
    quantizer = make(name, weight, 1 if name == "bwn" else 2)
    (quantizer(weight) * slope).sum().backward()
    assert torch.equal(weight.grad, slope) and not quantizer.learned()


def test_ternary_and_binary_of_cases_worked_by_hand() -> None:
    weight = torch.tensor([[0.1, -0.6, 0.9, -2.4]])  # mean magnitude 1, threshold 0.7
    integers, scale = make("twn", weight, 2).integers(weight)
    assert integers.tolist() == [[0, 0, 1, -1]] and scale.item() == pytest.approx(1.65)
    integers, scale = make("bwn", weight, 1).integers(weight)
    assert integers.tolist() == [[1, -1, 1, -1]] and scale.item() == pytest.approx(1.0)


def test_loss_aware_minimises_the_weighted_error() -> None:
    weight = a_weight(3, 50).requires_grad_()
    quantizer = make("laq", weight, 2, alternations=20)
    gradient = torch.rand(3, 50) ** 4
    moment = torch.zeros(3, 50)
    for _ in range(3):
        (quantizer(weight) * gradient).sum().backward()
        moment = 0.999 * moment + 0.001 * gradient**2
    assert torch.allclose(quantizer.second_moment, moment)
    curvature = moment.sqrt()

    def error(scale: Tensor) -> float:
        value = (weight.detach() / scale).round().clamp(-1, 1) * scale
        return (curvature * (value - weight.detach()) ** 2).sum().item()

    integers, scale = quantizer.integers(weight)
    nearby = [error(scale * factor) for factor in torch.linspace(0.9, 1.1, 41)]
    assert error(scale) <= min(nearby) * (1 + 1e-5)  # a minimum; alternation finds a local one
    assert error(scale) < error(make("laq", weight, 2).scale(weight))  # which knows no curvature yet
    best = (curvature * integers * weight).sum() / (curvature * integers.square()).sum()
    assert scale.item() == pytest.approx(best.item(), rel=1e-4)

    quantizer.eval()
    before = quantizer.second_moment.clone()
    quantizer(weight).sum().backward()
    assert torch.equal(quantizer.second_moment, before)  # it watches training only


@pytest.mark.parametrize("bits", [2, 4, 8])
@every_row
def test_mse_start_is_as_good_as_any_scale(per: str, row_dim: int, bits: int) -> None:
    weight = a_weight(4, 600) if row_dim == 0 else a_weight(600, 4)  # with few weights a row the error is a lottery
    quantizer = make("dynamic_scale", weight, bits, per, row_dim)
    errors = (weight - quantizer(weight)).square().mean(quantizer.dims).detach()
    k, largest = quantizer.high, weight.abs().amax(quantizer.dims, keepdim=True)
    tried = []
    for clip in torch.linspace(0.01, 1.05, 400):
        scale = largest * clip / k
        tried.append((((weight / scale).round().clamp(-k, k) * scale) - weight).square().mean(quantizer.dims))
    assert (errors <= torch.stack(tried).amin(0) * 1.05).all()


@every_quantizer
def test_a_mask_does_not_shrink_the_scale(name: str, bits: int) -> None:
    if name not in ("dynamic_scale", "twn", "bwn"):
        return  # their scales are no means
    weight, mask = a_weight(8, 200), torch.rand(8, 200) < 0.1
    options = {"gamma_init": 1.0} if name == "dynamic_scale" else {}
    kept = make(name, weight[mask][None], bits, **options)
    aware = make(name, weight, bits, skip_zeros=True, **options)
    assert torch.allclose(aware.scale(weight * mask), kept.scale(weight[mask][None]), rtol=1e-5)
    if name == "dynamic_scale":
        masked = (weight * mask).requires_grad_()
        aware.scale(masked).backward()
        expected = (weight.sign() * mask) / mask.sum() / aware.high
        assert torch.allclose(masked.grad, expected)


@every_quantizer
def test_training_resumes_with_the_same_quantizer(name: str, bits: int) -> None:
    weight = a_weight().requires_grad_()
    saved, fresh = make(name, weight, bits), make(name, a_weight(), bits)
    (saved(weight) * torch.randn(6, 40)).sum().backward()
    for learned in saved.parameters():
        learned.data.mul_(1.37)
    fresh.load_state_dict(saved.state_dict())
    assert torch.equal(saved(weight), fresh(weight)) and saved.describe() == fresh.describe()
    assert {type(value) for value in saved.describe().values()} <= {str, int, dict}
    assert set(saved.describe()) == {"quantizer", "bits", "per"} | ({LEARNED[name]} if name in LEARNED else set())


@pytest.mark.parametrize(
    ("name", "bits", "options", "says"),
    [
        ("twn", 4, {}, "twn: 4 bits; known: 2"),
        ("dynamic_scale", 1, {}, "1 bits; known: 2, 4, 8"),
        ("lsq", 3, {}, "3 bits"),
        ("pact", 2, {"per": "column"}, "per 'column'; known: tensor, row"),
        ("dynamic_scale", 2, {"gamma_init": "best"}, "gamma_init 'best'; expected a positive number, or mse"),
        ("dynamic_scale", 2, {"gamma_init": 0}, "expected a positive number"),
        ("pact", 2, {"clip_init": -1.0}, "or max, mse"),
        ("lsq", 2, {"step_init": "max"}, "or mean, mse"),
    ],
)
def test_wrong_settings_are_named(name: str, bits: int, options: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        make(name, a_weight(), bits, **options)


def test_half_precision_weights_are_refused() -> None:
    with pytest.raises(ModelError, match="float16"):
        make("min_max", a_weight().half(), 2)


def test_starts_are_taken_as_given() -> None:
    weight = a_weight()
    assert make("dynamic_scale", weight, 2, gamma_init=0.7).gamma.item() == pytest.approx(0.7)
    assert torch.equal(make("pact", weight, 2, clip_init="max").clip.detach(), weight.abs().max())
    assert torch.allclose(make("pact", weight, 4).clip, make("dynamic_scale", weight, 4).gamma * weight.abs().mean())
    assert make("lsq", weight, 4, step_init=0.03).scale(weight).item() == pytest.approx(0.03)


def test_bit_widths_are_read_and_told() -> None:
    bits = BitWidths.parse("2-4-8")
    assert (bits.weights, bits.embeddings, bits.activations) == (2, 4, 8) and str(bits) == "2-4-8"
    assert BitWidths.parse(str(bits)) == bits == BitWidths(2, 4, 8)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("2-2", "expected weights-embeddings-activations"),
        ("a-2-8", "expected"),
        ("", "expected"),
        ("3-2-8", "weights of 3 bits"),
        ("2-16-8", "embeddings of 16 bits; known: 1, 2, 4, 8, 32"),
        ("2-2-2", "activations of 2 bits; known: 4, 8, 32"),
    ],
)
def test_wrong_bits_are_named(text: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        BitWidths.parse(text)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("per", ["token", "tensor"])
def test_activations_are_on_even_levels_of_their_range(per: str, bits: int) -> None:
    values = (torch.randn(3, 5, 40) * torch.tensor([0.1, 1.0, 30.0])[:, None, None]).requires_grad_()
    rounded = round_activations(values, bits, per)
    low, high = (values.amin(-1, True), values.amax(-1, True)) if per == "token" else (values.min(), values.max())
    step = (high - low) / (2**bits - 1)
    levels = (rounded - low) / step
    assert ((levels - levels.round()).abs() < 1e-3).all() and levels.max().round() == 2**bits - 1
    assert ((rounded - values).abs() <= step / 2 * 1.001).all()
    slope = torch.randn_like(values)
    (rounded * slope).sum().backward()
    assert torch.equal(values.grad, slope)
    assert torch.equal(round_activations(torch.full((2, 4), 3.0), bits, per), torch.full((2, 4), 3.0))
    if per == "token":  # no token knows another
        assert torch.equal(round_activations(values[1:2, 2:3], bits), rounded[1:2, 2:3])


def test_activations_keep_their_type() -> None:
    values = torch.randn(4, 300).bfloat16()
    rounded = round_activations(values, 8)
    assert rounded.dtype == torch.bfloat16 and torch.equal(rounded, round_activations(values.float(), 8).bfloat16())
