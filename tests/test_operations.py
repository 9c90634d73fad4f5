"""Laws of every registered operation, and of each family against a naive loop.

Dimensions: B batch, D width, L tokens, T real tokens of a batch, H heads, K head size.
"""

from __future__ import annotations

import re

import pytest
import torch
import torch.nn.functional as F
from tiny import HEAD_SIZE, WIDTHS, context_of, randomise, tiny_macro
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from adasearch.cost import FixedAxis
from adasearch.masked_norm import ChannelLayerNorm, Context, MaskedBatchNorm
from adasearch.operations import OPERATIONS, WIDTH, Operation, register_operation

D = 8
LENGTHS, SECONDS = [9, 5, 2, 1], [4, 2, 1, 0]  # pairs, and a single text of a single token
EVERY = pytest.mark.parametrize("name", list(OPERATIONS))
NORMS = pytest.mark.parametrize("norm", ["batch", "layer"])
TRAINING = pytest.mark.parametrize("is_training", [False, True], ids=["eval", "train"])
CLOSE = {"atol": 1e-5, "rtol": 1e-5}  # float32: sums of tens of terms of size 1, in another order


def build(name: str, norm: str = "batch", width: int = D, is_training: bool = False) -> Operation:
    operation = OPERATIONS[name](width, tiny_macro(norm=norm)).train(is_training)
    randomise(operation)
    return operation


def text(context: Context, width: int = D) -> Tensor:
    """Random states, zero on padding and dropped channels."""
    batch, _, length = context.mask_B1L.shape
    return context.clean(torch.randn(batch, width, length))


def gathered(x_BDL: Tensor, context: Context) -> Tensor:
    """The real tokens only, (T, D)."""
    return x_BDL.mT[context.mask_B1L[:, 0].bool()]


@EVERY
@NORMS
@TRAINING
def test_padding_changes_nothing(name: str, norm: str, is_training: bool) -> None:
    operation = build(name, norm, is_training=is_training)
    tight, loose = context_of(LENGTHS, SECONDS), context_of(LENGTHS, SECONDS, padding=6)
    x_BDL = text(tight)
    y_BDL, padded_BDL = operation(x_BDL, tight), operation(F.pad(x_BDL, (0, 6)), loose)
    assert y_BDL.shape == x_BDL.shape and padded_BDL.shape == (*x_BDL.shape[:2], x_BDL.shape[2] + 6)
    assert torch.allclose(gathered(y_BDL, tight), gathered(padded_BDL, loose), **CLOSE)
    if not is_training:  # nor do the other texts of the batch
        for b, length in enumerate(LENGTHS):
            alone = operation(x_BDL[b : b + 1, :, :length], context_of([length], [SECONDS[b]]))
            assert torch.allclose(alone[0], y_BDL[b, :, :length], **CLOSE)


@EVERY
@NORMS
def test_one_token_texts_are_finite(name: str, norm: str) -> None:
    for lengths, padding in (([1], 0), ([1, 1, 1], 0), ([1], 4)):
        for is_training in (True, False):
            operation, context = build(name, norm, is_training=is_training), context_of(lengths, padding=padding)
            y_BDL = operation(text(context).requires_grad_(), context)
            y_BDL.sum().backward() if y_BDL.requires_grad else None
            assert y_BDL.isfinite().all()
            assert all(p.grad is None or p.grad.isfinite().all() for p in operation.parameters())


@EVERY
@NORMS
def test_cost_is_the_true_count(name: str, norm: str) -> None:
    operation = build(name, norm)
    tensors = dict([*operation.named_parameters(), *operation.named_buffers()])
    assert set(operation.axes()) == set(tensors)
    for key, axes in operation.axes().items():
        assert tuple(D if axis == WIDTH else axis for axis in axes) == tensors[key].shape
    for length in (1, 5, 12):
        context = context_of([length], [length // 2])
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
            operation(text(context), context)
        cost = operation.cost({WIDTH: FixedAxis(D)}, length)
        assert cost.params == sum(p.numel() for p in operation.parameters())
        assert cost.macs == counter.get_total_flops() / 2


@EVERY
@NORMS
def test_every_parameter_learns(name: str, norm: str) -> None:
    operation, context = build(name, norm, is_training=True), context_of(LENGTHS, SECONDS)
    x_BDL = text(context).requires_grad_()
    y_BDL = context.clean(operation(x_BDL, context))
    if name == "none":
        assert not y_BDL.any()
        return
    (y_BDL * torch.randn_like(y_BDL)).sum().backward()
    assert x_BDL.grad.abs().max() > 0
    for key, parameter in operation.named_parameters():
        assert parameter.grad.abs().max() > 0, key


@EVERY
@NORMS
@TRAINING
def test_a_gated_width_is_a_narrower_operation(name: str, norm: str, is_training: bool) -> None:
    narrow, wide = WIDTHS
    keep_D = (torch.arange(wide) < narrow).float()
    gated, small = build(name, norm, wide, is_training), build(name, norm, narrow, is_training)
    small.load_state_dict(
        {key: gated.state_dict()[key][tuple(map(slice, tensor.shape))] for key, tensor in small.state_dict().items()}
    )
    context, kept = context_of(LENGTHS, SECONDS), context_of(LENGTHS, SECONDS, keep_D)
    x_BDL = text(kept, wide)
    expected_BDL = context.clean(small(x_BDL[:, :narrow], context))
    y_BDL = kept.clean(gated(x_BDL, kept))
    assert torch.allclose(y_BDL[:, :narrow], expected_BDL, **CLOSE) and not y_BDL[:, narrow:].any()
    for key, buffer in small.named_buffers():  # running statistics
        assert torch.allclose(gated.get_buffer(key)[: len(buffer)] if buffer.ndim else buffer, buffer, **CLOSE)


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("momentum", [0.1, None])
def test_masked_batch_norm_is_batch_norm_of_the_real_tokens(affine: bool, momentum: float | None) -> None:
    ours, torchs = (
        MaskedBatchNorm(D, affine=affine, momentum=momentum),
        nn.BatchNorm1d(D, affine=affine, momentum=momentum),
    )
    if affine:
        randomise(ours)
    torchs.load_state_dict(ours.state_dict())
    for _ in range(3):
        context = context_of(LENGTHS, padding=3)
        x_BDL = 2 * torch.randn(len(LENGTHS), D, 12) + 1  # not zero on padding: it must not matter
        assert torch.allclose(gathered(ours(x_BDL, context), context), torchs(gathered(x_BDL, context)), **CLOSE)
    for key, tensor in torchs.state_dict().items():
        assert torch.allclose(ours.state_dict()[key], tensor, **CLOSE), key
    assert torch.allclose(ours.eval()(x_BDL, context), torchs.eval()(x_BDL), **CLOSE)
    full = context_of([12, 12])
    assert torch.allclose(ours.train()(x_BDL[:2], full), torchs.train()(x_BDL[:2]), **CLOSE)


@pytest.mark.parametrize("affine", [True, False])
def test_layer_norm_sees_only_kept_channels(affine: bool) -> None:
    norm, context = ChannelLayerNorm(12, affine), context_of(LENGTHS)
    randomise(norm)
    x_BDL, keep_D = torch.randn(len(LENGTHS), 12, 9), (torch.arange(12) < 8).float()
    gain, bias = (norm.weight, norm.bias) if affine else (None, None)
    assert torch.allclose(norm(x_BDL, context).mT, F.layer_norm(x_BDL.mT, (12,), gain, bias), **CLOSE)
    slices = (gain[:8], bias[:8]) if affine else (None, None)
    kept_BDL = norm(x_BDL, Context(context.mask_B1L, context.second_BL, keep_D))[:, :8]
    assert torch.allclose(kept_BDL.mT, F.layer_norm(x_BDL[:, :8].mT, (8,), *slices), **CLOSE)


def test_a_width_gate_is_applied_once_where_layer_norm_stands_before_it() -> None:
    """A channel that is half kept gives half of what it would give, and a closed gate's slope says what opening it would give."""
    norm, context = ChannelLayerNorm(12), context_of(LENGTHS)
    x_BDL = torch.randn(len(LENGTHS), 12, 9)
    keep_D = (torch.arange(12) < 8).float().requires_grad_()

    def cleaned(values_D: Tensor) -> Tensor:
        gated = Context(context.mask_B1L, context.second_BL, values_D)
        return gated.clean(norm(x_BDL, gated))

    half_D = torch.full((12,), 0.5)
    assert torch.allclose(cleaned(half_D), 0.5 * context.clean(norm(x_BDL, context)), **CLOSE)
    weights_BDL = torch.randn_like(x_BDL)
    (slope_D,) = torch.autograd.grad((cleaned(keep_D) * weights_BDL).sum(), keep_D)
    step = 1e-3
    for channel in (2, 10):
        moved_D = torch.eye(12)[channel] * step
        higher, lower = ((cleaned(keep_D + sign * moved_D) * weights_BDL).sum() for sign in (1, -1))
        assert float(slope_D[channel]) == pytest.approx(float((higher - lower).detach() / (2 * step)), rel=0.02, abs=0.02)


def naive_convolution(x_DL: Tensor, kernel_DDK: Tensor, dilation: int) -> Tensor:
    """Sum over the taps of a centred kernel, zero beyond the ends; (D, D, K) full or (D, 1, K) one filter a channel."""
    y_DL, taps = torch.zeros_like(x_DL), kernel_DDK.shape[-1]
    for t in range(x_DL.shape[1]):
        for k in range(taps):
            s = t + (k - taps // 2) * dilation
            if 0 <= s < x_DL.shape[1]:
                tap = kernel_DDK[..., k]
                y_DL[:, t] += tap[:, 0] * x_DL[:, s] if tap.shape[1] == 1 else tap @ x_DL[:, s]
    return y_DL


@pytest.mark.parametrize(
    "name", [f"{kind}conv{k}" for kind in ("", "dilated_", "sep_", "dilated_sep_", "gated_") for k in (3, 5, 7)]
)
@torch.no_grad()
def test_convolutions_are_naive_loops(name: str) -> None:
    operation, context = build(name), context_of([11])
    x_DL, dilation, taps = text(context)[0], 2 if "dilated" in name else 1, int(re.findall(r"\d", name)[0])
    if "gated" in name:
        gate_DL = naive_convolution(x_DL, operation.gate.weight, 1) + operation.gate.bias[:, None]
        y_DL = naive_convolution(x_DL, operation.value.weight, 1) / (1 + (-gate_DL).exp())
        assert operation.gate.weight.shape[-1] == taps
    elif "sep" in name:
        assert operation.depthwise.weight.shape == (D, 1, taps)
        y_DL = operation.pointwise.weight[:, :, 0] @ naive_convolution(
            x_DL.clamp_min(0), operation.depthwise.weight, dilation
        )
    else:
        assert operation.convolution.weight.shape == (D, D, taps)
        y_DL = naive_convolution(x_DL.clamp_min(0), operation.convolution.weight, dilation)
    assert torch.allclose(operation(x_DL[None], context), operation.norm(y_DL[None], context), **CLOSE)


@pytest.mark.parametrize("name", [f"{kind}_pool{k}" for kind in ("max", "avg") for k in (3, 5, 7)])
@torch.no_grad()
def test_pools_see_real_tokens_only(name: str) -> None:
    operation, context, half = build(name), context_of(LENGTHS, padding=2), int(name[-1]) // 2
    x_BDL = text(context) - 3 * context.mask_B1L  # mostly negative: a zero of the padding would be the largest
    y_BDL = torch.zeros_like(x_BDL)
    for b, length in enumerate(LENGTHS):
        for t in range(length):
            window_DW = x_BDL[b, :, max(0, t - half) : min(length, t + half + 1)]
            y_BDL[b, :, t] = window_DW.amax(1) if name.startswith("max") else window_DW.mean(1)
    normed_BDL = operation.norm(y_BDL, context)
    assert torch.allclose(gathered(operation(x_BDL, context), context), gathered(normed_BDL, context), **CLOSE)


@torch.no_grad()
def naive_attention(operation: Operation, x_DL: Tensor, visible_LL: Tensor) -> Tensor:
    """Softmax attention, one head and one token at a time, before the output mix; zero where nothing is visible."""
    q_DL, k_DL, v_DL = (getattr(operation, layer)(x_DL[None])[0] for layer in ("query", "key", "value"))
    y_DL = torch.zeros_like(x_DL)
    for start in range(0, len(x_DL), HEAD_SIZE):
        head = slice(start, start + HEAD_SIZE)
        for t in range(x_DL.shape[1]):
            seen = visible_LL[t].nonzero().flatten()
            scores = (k_DL[head, seen].T @ q_DL[head, t]) / HEAD_SIZE**0.5
            weights = scores.exp() / scores.exp().sum()
            y_DL[head, t] = v_DL[head, seen] @ weights
    return y_DL


@torch.no_grad()
def test_self_attention_is_a_softmax_per_head() -> None:
    operation, context = build("self_attention"), context_of(LENGTHS, SECONDS)
    x_BDL = text(context)
    y_BDL = operation(x_BDL, context)
    for b, length in enumerate(LENGTHS):
        mixed = naive_attention(operation, x_BDL[b, :, :length], torch.ones(length, length, dtype=torch.bool))
        reference = operation.norm(operation.output(mixed[None]), context_of([length]))
        assert torch.allclose(y_BDL[b, :, :length], reference[0], **CLOSE)


@torch.no_grad()
def test_soft_alignment_compares_with_what_the_other_text_offers() -> None:
    operation, context = build("soft_alignment"), context_of(LENGTHS, SECONDS)
    x_BDL = text(context)
    y_BDL = operation(x_BDL, context)
    for b, (length, second) in enumerate(zip(LENGTHS, SECONDS)):
        is_second = torch.arange(length) >= length - second
        x_DL = x_BDL[b, :, :length]
        aligned_DL = torch.zeros_like(x_DL)
        for t in range(length):  # ESIM, eq. 11-13, token by token
            others = [u for u in range(length) if is_second[u] != is_second[t]]
            if others:
                shares = torch.stack([operation.sharpness * (x_DL[:, t] @ x_DL[:, u]) for u in others]).softmax(0)
                aligned_DL[:, t] = sum(share * x_DL[:, u] for share, u in zip(shares, others))
        w = [layer.weight[:, :, 0] for layer in (operation.output, operation.product, operation.difference)]
        compared_DL = (torch.cat(w, 1) @ torch.cat([aligned_DL, x_DL * aligned_DL, x_DL - aligned_DL])).clamp_min(0)
        assert torch.allclose(y_BDL[b, :, :length], operation.norm(compared_DL[None], context_of([length]))[0], **CLOSE)


@torch.no_grad()
def test_before_anything_is_learned_equal_words_align() -> None:
    operation, context = build("soft_alignment"), context_of([8], [4])
    words_DL = torch.nn.functional.layer_norm(torch.randn(4, 128), (128,)).mT
    x_BDL = torch.cat([words_DL, words_DL[:, torch.tensor([2, 0, 3, 1])]], 1)[None]
    assert torch.allclose(operation.align(x_BDL, context), x_BDL, atol=1e-2)


def influences(operation: Operation, x_BDL: Tensor, context: Context) -> Tensor:
    """Which tokens each token's output depends on, by autograd: (L, L) bool, [from, to]."""
    x_BDL = x_BDL.clone().requires_grad_()
    y_BDL = operation(x_BDL, context)
    columns = []
    for t in range(x_BDL.shape[-1]):
        (slope_BDL,) = torch.autograd.grad((y_BDL[0, :, t] * torch.randn(D)).sum(), x_BDL, retain_graph=True)
        columns.append(slope_BDL[0].abs().sum(0) > 0)
    return torch.stack(columns, 1)


@NORMS
def test_alignment_looks_at_itself_and_the_other_text_only(norm: str) -> None:
    context = context_of([7], [3], padding=2)
    x_BDL, second = text(context), torch.arange(7) >= 4
    expected_LL = torch.eye(7, dtype=torch.bool) | (second[None, :] != second[:, None])
    assert torch.equal(influences(build("soft_alignment", norm), x_BDL, context)[:7, :7], expected_LL)
    assert influences(build("self_attention", norm), x_BDL, context)[:7, :7].all()
    single = context_of([7], padding=2)
    assert torch.equal(influences(build("soft_alignment", norm), x_BDL, single)[:7, :7], torch.eye(7, dtype=torch.bool))
    for name in ("soft_alignment", "self_attention"):  # nobody looks at padding
        assert not influences(build(name, norm), x_BDL, context)[7:, :7].any()


def test_skip_and_none_are_what_they_say() -> None:
    context = context_of(LENGTHS)
    x_BDL = text(context)
    assert torch.equal(OPERATIONS["skip"](D, tiny_macro())(x_BDL, context), x_BDL)
    assert torch.equal(OPERATIONS["none"](D, tiny_macro())(x_BDL, context), torch.zeros_like(x_BDL))


def test_an_operation_of_ones_own_needs_axes_of_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(OPERATIONS, "_items", dict(OPERATIONS._items))  # forgotten again after the test

    @register_operation("times", factor=3)
    class Times(Operation):
        """A bottleneck of ``factor`` channels."""

        def __init__(self, width: int, macro: object, *, factor: int):
            super().__init__(width, macro)
            self.down, self.up = nn.Conv1d(width, factor, 1), nn.Conv1d(factor, width, 1)

        def forward(self, x_BDL: Tensor, context: Context) -> Tensor:
            return self.up(self.down(x_BDL))

    operation = OPERATIONS["times"](D, tiny_macro())
    assert operation.axes()["down.weight"] == (3, WIDTH, 1) and operation.axes()["up.bias"] == (WIDTH,)
    assert operation.cost({WIDTH: FixedAxis(D)}, 5).macs == 5 * 2 * 3 * D
