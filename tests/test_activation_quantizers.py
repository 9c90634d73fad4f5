"""Laws of the activations' quantiser: torch's own fake quantisation and autograd of the plain formula are the references."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from adasearch.activation_quantizers import ActivationQuantizer, RoundAffine
from adasearch.errors import ModelError
from adasearch.quantizers import WEIGHT_QUANTIZERS

GRIDS = [(0.02, 128), (0.1, 0), (0.05, 255), (0.03, 7)]


def values_of(shape: tuple[int, ...] = (40, 50), scale: float = 3.0) -> Tensor:
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(1))


def away_from_ties(values: Tensor, scale: float) -> Tensor:
    """Without values near the middle of two levels, where dividing by the scale and multiplying by its inverse may differ."""
    ratio = values / scale
    return torch.where((ratio - ratio.floor() - 0.5).abs() < 1e-3, values + 0.1 * scale, values)


@pytest.mark.parametrize(("scale", "zero_point"), GRIDS)
def test_values_and_gradients_are_those_of_torch(scale: float, zero_point: int) -> None:
    s, z = torch.tensor(scale), torch.tensor(zero_point)
    x = away_from_ties(values_of(), scale).requires_grad_()
    y = x.detach().clone().requires_grad_()
    weights = values_of()
    ours = RoundAffine.apply(x, s, z, 0, 255)
    theirs = torch.fake_quantize_per_tensor_affine(y, s, z.int(), 0, 255)
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)  # n * s against (n - z) * s: one rounding
    (ours * weights).sum().backward()
    (theirs * weights).sum().backward()
    assert torch.equal(x.grad, y.grad)


@pytest.mark.parametrize(("scale", "zero_point"), GRIDS)
def test_the_gradient_is_that_of_the_plain_formula(scale: float, zero_point: int) -> None:
    """clip(x / s, -z, 255 - z) s by autograd, with rounding as a constant shift: the definition of straight-through."""
    x = away_from_ties(values_of(), scale).requires_grad_()
    y = x.detach().clone().requires_grad_()
    shift = (y / scale).round().detach() - (y / scale).detach()
    plain = ((y / scale + shift).clamp(-zero_point - 0.25, 255 - zero_point + 0.25) * scale).sum()
    RoundAffine.apply(x, torch.tensor(scale), torch.tensor(zero_point), 0, 255).sum().backward()
    plain.backward()
    assert torch.equal(x.grad, y.grad)


def test_errors_are_at_most_half_a_step_and_zero_is_a_level() -> None:
    quantizer = ActivationQuantizer()
    x = values_of() + 1.3
    x[0] = 0.0
    rounded = quantizer(x)
    scale, zero_point = quantizer.grid()
    levels = rounded / scale + zero_point
    assert (levels - levels.round()).abs().max() < 1e-3 and -0.5 < levels.min() and levels.max() < 255.5
    # the zero point is rounded, which may shift the ends of the range by half a step and clip them
    assert (rounded - x).abs().max() <= scale * 1.01
    inside = (rounded > rounded.min()) & (rounded < rounded.max())
    assert (rounded - x).abs()[inside].max() <= 0.5001 * scale
    assert (rounded[0] == 0).all()


@pytest.mark.parametrize("shift", [5.0, -5.0])
def test_a_range_on_one_side_still_holds_zero(shift: float) -> None:
    quantizer = ActivationQuantizer()
    x = values_of(scale=0.5) + shift
    rounded = quantizer(x)
    assert (rounded - x).abs().max() < 2 * quantizer.grid()[0]
    assert quantizer.eval()(torch.zeros(3)).tolist() == [0, 0, 0]


def test_ranges_follow_batches_by_a_moving_average() -> None:
    quantizer = ActivationQuantizer(momentum=0.25)
    low, high = None, None
    for step in range(5):
        x = values_of((3, 4), scale=step + 1.0)
        quantizer(x)
        least, most = float(x.min()), float(x.max())
        low, high = (least, most) if low is None else (low + 0.25 * (least - low), high + 0.25 * (most - high))
    assert float(quantizer.low) == pytest.approx(low) and float(quantizer.high) == pytest.approx(high)
    assert int(quantizer.batches) == 5


def test_ranges_rest_in_eval_mode_and_when_told_to() -> None:
    quantizer = ActivationQuantizer()
    quantizer(values_of())
    before = {name: value.clone() for name, value in quantizer.state_dict().items()}
    quantizer.eval()(100 * values_of())
    quantizer.train().is_observing = False
    quantizer(100 * values_of())
    assert all(torch.equal(value, before[name]) for name, value in quantizer.state_dict().items())


def test_a_delayed_quantiser_learns_its_range_and_rounds_nothing() -> None:
    quantizer = ActivationQuantizer()
    quantizer.is_rounding = False
    x = values_of()
    assert quantizer(x) is x
    quantizer.is_rounding = True
    assert int(quantizer.batches) == 1 and not torch.equal(quantizer.eval()(x), x)


def test_a_range_survives_state_dict() -> None:
    first, second = ActivationQuantizer(), ActivationQuantizer()
    first(values_of())
    second.load_state_dict(first.state_dict())
    x = values_of((7, 7))
    assert torch.equal(first(x), second(x)) and torch.equal(first.low, second.low)


def test_rounding_before_any_batch_is_refused() -> None:
    with pytest.raises(ModelError, match="no batch"):
        ActivationQuantizer().eval()(values_of())


@pytest.mark.parametrize("per", ["tensor", "row"])
def test_weights_are_symmetric_with_all_of_int8_and_keep_their_zeros(per: str) -> None:
    weight = values_of((6, 30))
    weight[weight.abs() < 2] = 0.0
    quantizer = WEIGHT_QUANTIZERS["min_max"](weight, 8, per=per, full_range=True)
    integers, scale = quantizer.integers(weight)
    assert (quantizer.low, quantizer.high) == (-128, 127)
    assert (integers[weight == 0] == 0).all()
    assert scale.shape == (() if per == "tensor" else (6, 1))
    assert (integers * scale - weight).abs().max() <= 0.5001 * scale.max()
