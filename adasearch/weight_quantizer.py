"""What a weight quantiser is: a parametrisation (``torch.nn.utils.parametrize``) that rounds to integers times a scale.

``forward(weight)`` is what the layer computes with while it trains, ``integers(weight)`` the same as plain data, with
``integers * scale == forward(weight)`` in every bit, but for the sign of zeros.

Dimensions: R rows (output units of a layer, tokens of an embedding), D features. A scale is () or, per row, (R, 1) or
(1, R), as it broadcasts along the weight.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from adasearch.errors import ConfigError, ModelError
from adasearch.rounding import TINY, MeanMagnitude, StraightThrough, round_to_levels

MSE_CANDIDATES = 32  # clips tried for the least squared error: 15% apart where the largest weight is 100 mean ones
MSE_SAMPLE = 2**20
MSE_ROUNDS = 4  # then this often the best scale for the levels, the best levels for the scale


class WeightQuantizer(nn.Module):
    """Base of all quantisers: levels -k..k with k = 2^(bits - 1) - 1, and 0 among them, so that zeros stay zeros.

    Args:
        weight: what is to be quantised, float32; initial scales are taken from it.
        per: one scale for the "tensor", or one for each "row".
        row_dim: the dimension rows lie on: 0 in ``nn.Linear`` and ``nn.Embedding``, 1 in the transformers' ``Conv1D``.
        skip_zeros: mean magnitudes leave out exact zeros, as a mask makes them (else pruning shrinks the scale).
        full_range: one level more below, -k - 1, which the bits have room for: at 2 bits -2..1 instead of -1..1. None: the
            quantiser's own, ``IS_FULL``.

    Raises ConfigError where bits or ``per`` are none of the choices, ModelError where the weight is not float32.
    """

    name: ClassVar[str]
    BITS: ClassVar[tuple[int, ...]] = (2, 4, 8)
    IS_FULL: ClassVar[bool] = False
    HAS_FIXED_LEVELS: ClassVar[bool] = False

    def __init__(
        self, weight: Tensor, bits: int, *, per: str = "tensor", row_dim: int = 0, skip_zeros: bool = False,
        full_range: bool | None = None,
    ):  # fmt: skip
        super().__init__()
        if full_range is not None and self.HAS_FIXED_LEVELS:
            raise ConfigError(f"quantiser {self.name}: full_range {full_range}: its levels are fixed; choices: none given")
        if bits not in self.BITS:
            raise ConfigError(f"quantiser {self.name}: {bits} bits; known: {', '.join(map(str, self.BITS))}")
        if per not in ("tensor", "row"):
            raise ConfigError(f"quantiser {self.name}: per {per!r}; known: tensor, row")
        if weight.dtype != torch.float32:
            raise ModelError(f"quantiser {self.name}: a weight of {weight.dtype}; scales need float32, call model.float() first")
        self.bits, self.per, self.row_dim, self.skip_zeros = bits, per, row_dim, skip_zeros
        self.high = 2 ** (bits - 1) - 1
        self.low = -self.high - int(self.IS_FULL if full_range is None else full_range)
        rows = range(weight.ndim) if per == "tensor" else (d for d in range(weight.ndim) if d != row_dim)
        self.dims = tuple(rows)  # those one scale spans
        self.count = weight.numel() if per == "tensor" else weight.numel() // weight.shape[row_dim]

    def scale(self, weight: Tensor) -> Tensor:
        """What one level is worth, at least TINY, differentiable where it is learned."""
        raise NotImplementedError

    def levels(self, weight: Tensor, scale: Tensor) -> Tensor:
        """The integers, as floats."""
        return round_to_levels(weight, scale, self.low, self.high)

    def forward(self, weight: Tensor) -> Tensor:
        """Integers times scale; the gradient goes through as if nothing had been rounded."""
        with torch.no_grad():
            scale = self.scale(weight)
            value = self.levels(weight, scale).mul_(scale)
        return StraightThrough.apply(weight, value)

    def right_inverse(self, value: Tensor) -> Tensor:
        """Assigning to the layer's weight sets what is quantised."""
        return value

    @torch.no_grad()
    def integers(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """What is packed: int8 integers shaped like the weight, and their float32 scale."""
        scale = self.scale(weight)
        return self.levels(weight, scale).to(torch.int8), scale.clone()

    def learned(self) -> list[nn.Parameter]:
        """Scales that are trained."""
        return list(self.parameters())

    @torch.no_grad()
    def describe(self) -> dict[str, Any]:
        """Plain data: quantiser, bits, mean, least and largest of each learned scale."""
        ranges = {name: _summary(value) for name, value in self.named_parameters()}
        return {"quantizer": self.name, "bits": self.bits, "per": self.per, **ranges}

    def over(self, weight: Tensor, how: str) -> Tensor:
        """Mean or largest of a tensor of the weight's shape, shaped like a scale."""
        keep = self.per == "row"
        return getattr(weight, how)(self.dims, keepdim=keep)

    def mean_magnitude(self, weight: Tensor) -> Tensor:
        """mean |w|, differentiable."""
        count = self.over((weight != 0).float(), "sum").clamp_min(1) if self.skip_zeros else self.count
        return MeanMagnitude.apply(weight, count, self.dims, self.per == "row")

    @torch.no_grad()
    def mse_scale(self, weight: Tensor) -> Tensor:
        """The scale of least squared rounding error: the best of a grid of clips, then alternating minimisation.

        One scale for many weights is found on evenly spread slices of them, about ``MSE_SAMPLE`` weights.
        """
        if self.per == "tensor":
            weight = weight[:: max(1, weight.numel() // MSE_SAMPLE)]
        mean, largest = self.over(weight.abs(), "mean").clamp_min(TINY), self.over(weight.abs(), "amax").clamp_min(TINY)
        best, least = largest / self.high, torch.full_like(largest, torch.inf)
        for share in torch.linspace(0, 1, MSE_CANDIDATES).tolist():
            scale = (mean * (largest / mean) ** share / self.high).clamp_min(TINY)
            error = self.over((self.levels(weight, scale).mul_(scale) - weight).square_(), "mean")
            best, least = torch.where(error < least, scale, best), torch.minimum(error, least)
        for _ in range(MSE_ROUNDS):
            best = self.fitted_scale(weight, best, None)
        return best

    def fitted_scale(self, weight: Tensor, scale: Tensor, importance: Tensor | None) -> Tensor:
        """The scale of least squared error, weighted by ``importance``, for the levels that ``scale`` gives."""
        levels = self.levels(weight, scale)
        above, below = levels * weight, levels.square_()
        if importance is not None:
            above, below = above.mul_(importance), below.mul_(importance)
        above, below = self.over(above, "sum"), self.over(below, "sum")
        return torch.where(below > 0, above / below.clamp_min(TINY), scale).clamp_min(TINY)


def _summary(value: Tensor) -> dict[str, float]:
    return {"mean": value.mean().item(), "least": value.min().item(), "largest": value.max().item()}


def positive(scale: Tensor) -> Tensor:
    """A learned scale as it is used: never 0, never negative; a step across 0 comes back on the other side."""
    return scale.abs().clamp_min(TINY)


def positive_number(quantizer: str, setting: str, value: float | str, choices: Sequence[str]) -> float:
    """A start given as a positive number. Raises ConfigError."""
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise ConfigError(f"quantiser {quantizer}: {setting} {value!r}; expected a positive number, or {', '.join(choices)}")
    return number
