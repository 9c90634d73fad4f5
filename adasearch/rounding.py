"""Rounding that learns: values are rounded forward, gradients pass backward by a rule of their own.

Two straight-through estimators. ``RoundToScale`` clips to the range: weights outside it get no gradient, and the scale
learns from the rounding error of those inside and the sign of those outside. ``StraightThrough`` hands the gradient on
as it is, for scales that are computed instead of learned. ``round_activations`` is min-max rounding of whatever comes.

Dimensions: L tokens, D features. A scale is (), or broadcasts along the weight.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

TINY = torch.finfo(torch.float32).tiny  # the least scale: 0 / 0 is NaN, 0 / TINY is 0
ACTIVATION_RANGES = ("token", "tensor")


class RoundToScale(torch.autograd.Function):
    """clip(round(w / s), low, high) s, with gradients for w and s.

    With g the gradient of the result and n its integers: dL/dw = g inside the range, 0 outside;
    dL/ds = sum of g (n - w/s) inside and of g n outside (LSQ, Esser et al. 2020, eq. 3; with s = gamma mean|w| / k it is
    QuantGPT's). One-sided, what is inside the range counts nothing (PACT, Choi et al. 2018, eq. 3).
    """

    @staticmethod
    def forward(ctx: Any, weight: Tensor, scale: Tensor, low: int, high: int, is_two_sided: bool) -> Tensor:
        ctx.save_for_backward(weight, scale)
        ctx.low, ctx.high, ctx.is_two_sided = low, high, is_two_sided
        return round_to_levels(weight, scale, low, high).mul_(scale)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        weight, scale = ctx.saved_tensors
        ratio, low, high = weight / scale, ctx.low, ctx.high
        weight_gradient = inside(gradient, ratio, low, high)
        if not ctx.needs_input_grad[1]:
            return weight_gradient, None, None, None, None
        left = inside(ratio, ratio, low, high)  # n - w/s inside, n outside; one-sided 0 inside, n outside
        if not ctx.is_two_sided:
            left = left.round_()
        change = ratio.round_().clamp_(low, high).sub_(left)
        return weight_gradient, change.mul_(gradient).sum_to_size(scale.shape), None, None, None


def inside(values: Tensor, ratio: Tensor, low: int, high: int) -> Tensor:
    """``values`` where low < ratio < high, else 0. The fused kernel is ten times faster on CPUs than a boolean mask."""
    return torch.ops.aten.hardtanh_backward(values, ratio, low, high)


class StraightThrough(torch.autograd.Function):
    """The second argument, with the gradient of the first. Bengio et al. 2013."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, value: Tensor) -> Tensor:
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


class MeanMagnitude(torch.autograd.Function):
    """sum |w| / count over ``dims``, () or broadcasting along w, with fewer tensors of w's size than by torch's autograd.

    ``vector_norm`` needs fewer still, but adds in float32 one by one: 38 million weights lose 11% of their sum.
    """

    @staticmethod
    def forward(ctx: Any, weight: Tensor, count: Tensor | int, dims: tuple[int, ...], keep: bool) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.count = count
        return weight.abs().sum(dims, keepdim=keep).div_(count)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (weight,) = ctx.saved_tensors
        return weight.sgn().mul_(gradient / ctx.count), None, None, None


class ScaleGradient(torch.autograd.Function):
    """The tensor as it is, its gradient times a number."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient * ctx.factor, None


def round_to_levels(weight: Tensor, scale: Tensor, low: int, high: int) -> Tensor:
    """The nearest multiple of the scale in [low, high], as floats; ties go to the even one."""
    return (weight / scale).round_().clamp_(low, high)


class RoundToRange(torch.autograd.Function):
    """Values rounded to 2^bits levels between the least and the largest; the gradient goes through as it is."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, bits: int, per: str) -> Tensor:
        exact = values.float()  # bf16 has no more digits than the levels
        low, high = exact.aminmax(dim=-1, keepdim=True) if per == "token" else exact.aminmax()
        step = ((high - low) / (2**bits - 1)).clamp_min(TINY)
        return ((exact - low).div_(step).round_().mul_(step).add_(low)).to(values.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return gradient, None, None


def round_activations(values: Tensor, bits: int, per: str = "token") -> Tensor:
    """Activations (..., L, D) on 2^bits even levels between their least and largest, the error at most half a step.

    The range is that of each "token", or of the whole "tensor" (batch, padding and later tokens included), as in
    TernaryBERT. Per token a causal model stays causal, and generates the same with and without its cache of keys.
    """
    return RoundToRange.apply(values, bits, per)
