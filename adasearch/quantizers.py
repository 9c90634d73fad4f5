"""The quantisers: QuantGPT's dynamic scaling and the baselines it is compared with, by name.

Learned scales (dynamic_scale, pact, lsq) clip the gradient of the weights to the range; computed ones (min_max, twn,
bwn, laq) pass it all. The levels are -k..k, k = 2^(bits - 1) - 1, but for lsq (one more below, which ``full_range`` gives
the others or takes from it) and bwn (-1 and 1).
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from adasearch.registry import Registry
from adasearch.rounding import TINY, RoundToScale, ScaleGradient, StraightThrough
from adasearch.weight_quantizer import WeightQuantizer, positive, positive_number

TERNARY_THRESHOLD = 0.7  # of the mean magnitude, Li et al. 2016, eq. 6
ADAM_EPSILON = 1e-8

WEIGHT_QUANTIZERS: Registry[type[WeightQuantizer]] = Registry("weight quantiser")


@WEIGHT_QUANTIZERS.register("dynamic_scale")
class DynamicScale(WeightQuantizer):
    """QuantGPT's module-wise dynamic scaling: clip at alpha = gamma mean|w|, with gamma learned (specs d.2).

    The clip follows the weights while gamma learns from those inside and outside it (Tao et al. 2022).

    Args:
        gamma_init: where gamma starts: a number, or "mse" for the clip of least squared error. Gaussian weights take
            1.5, 3.1, 4.9 at 2, 4, 8 bits, Laplacian ones 2.0, 4.8, 9.8. Started at 1 (the paper's value, as far as
            known) 23 to 26% of the Gaussian weights' energy is lost whatever the bits; at "mse" 19%, 1.3%, 0.009%.
        detach_mean: no gradient flows to the weights through the mean. The paper's choice is unknown; its
            re-implementation in TSLD leaves it attached, as here.
    """

    name = "dynamic_scale"

    def __init__(
        self, weight: Tensor, bits: int, *, gamma_init: float | str = "mse", detach_mean: bool = False, **settings: Any
    ):
        super().__init__(weight, bits, **settings)
        self.detach_mean = detach_mean
        mean = self.mean_magnitude(weight.detach())
        if gamma_init == "mse":
            gamma = torch.where(mean > 0, self.mse_scale(weight.detach()) * self.high / mean.clamp_min(TINY), 1.0)
        else:
            gamma = torch.full_like(mean, positive_number(self.name, "gamma_init", gamma_init, ("mse",)))
        self.gamma = nn.Parameter(gamma)

    def scale(self, weight: Tensor) -> Tensor:
        """gamma mean|w| / k."""
        mean = self.mean_magnitude(weight.detach() if self.detach_mean else weight)
        return (self.gamma.abs() * mean / self.high).clamp_min(TINY)

    def forward(self, weight: Tensor) -> Tensor:
        """Clipped at alpha and rounded; gamma learns from both sides of the clip."""
        return RoundToScale.apply(weight, self.scale(weight), self.low, self.high, True)


@WEIGHT_QUANTIZERS.register("min_max")
class MinMax(WeightQuantizer):
    """The largest magnitude is the largest level: nothing is clipped, nothing learned."""

    name = "min_max"

    def scale(self, weight: Tensor) -> Tensor:
        """max|w| / k."""
        return (self.over(weight.abs(), "amax") / self.high).clamp_min(TINY)


@WEIGHT_QUANTIZERS.register("pact")
class Pact(WeightQuantizer):
    """A learned clip alpha whose gradient comes from the weights outside it alone. Choi et al. 2018, eq. 3.

    Args:
        clip_init: where alpha starts: a number, "max" for max|w| (nothing is outside at first), or "mse".
    """

    name = "pact"

    def __init__(self, weight: Tensor, bits: int, *, clip_init: float | str = "mse", **settings: Any):
        super().__init__(weight, bits, **settings)
        largest = self.over(weight.detach().abs(), "amax")
        if clip_init == "mse":
            clip = self.mse_scale(weight.detach()) * self.high
        elif clip_init == "max":
            clip = largest
        else:
            clip = torch.full_like(largest, positive_number(self.name, "clip_init", clip_init, ("max", "mse")))
        self.clip = nn.Parameter(clip)

    def scale(self, weight: Tensor) -> Tensor:
        """alpha / k."""
        return positive(self.clip / self.high)

    def forward(self, weight: Tensor) -> Tensor:
        """Clipped at alpha and rounded."""
        return RoundToScale.apply(weight, self.scale(weight), self.low, self.high, False)


@WEIGHT_QUANTIZERS.register("lsq")
class LearnedStep(WeightQuantizer):
    """A learned step between levels -2^(bits - 1) and k. Esser et al. 2020.

    Args:
        step_init: where the step starts: a number, "mean" for the paper's 2 mean|w| / sqrt(k), or "mse".
    """

    name = "lsq"
    IS_FULL = True

    def __init__(self, weight: Tensor, bits: int, *, step_init: float | str = "mean", **settings: Any):
        super().__init__(weight, bits, **settings)
        step = 2 * self.mean_magnitude(weight.detach()) / math.sqrt(self.high)  # section 2.1
        if step_init == "mse":
            step = self.mse_scale(weight.detach())
        elif step_init != "mean":
            step = torch.full_like(step, positive_number(self.name, "step_init", step_init, ("mean", "mse")))
        self.step = nn.Parameter(step)
        self.gradient_scale = 1 / math.sqrt(self.count * self.high)  # section 2.2: steps move about as fast as weights

    def scale(self, weight: Tensor) -> Tensor:
        """The step."""
        return ScaleGradient.apply(positive(self.step), self.gradient_scale)

    def forward(self, weight: Tensor) -> Tensor:
        """Rounded to the nearest level."""
        return RoundToScale.apply(weight, self.scale(weight), self.low, self.high, True)


@WEIGHT_QUANTIZERS.register("twn")
class Ternary(WeightQuantizer):
    """-s, 0 or s: zero below 0.7 mean|w|, s the mean magnitude of the others. Li et al. 2016, eq. 5 and 6."""

    name = "twn"
    BITS = (2,)
    HAS_FIXED_LEVELS = True

    def levels(self, weight: Tensor, scale: Tensor) -> Tensor:
        """The sign, or 0 where the weight is small."""
        return weight.sign().mul_(weight.abs() > TERNARY_THRESHOLD * self.mean_magnitude(weight))

    def scale(self, weight: Tensor) -> Tensor:
        """Mean magnitude of what is not 0."""
        is_kept = weight.abs() > TERNARY_THRESHOLD * self.mean_magnitude(weight)
        kept, count = self.over(weight.abs() * is_kept, "sum"), self.over(is_kept.float(), "sum")
        return (kept / count.clamp_min(1)).clamp_min(TINY)


@WEIGHT_QUANTIZERS.register("bwn")
class Binary(WeightQuantizer):
    """-s or s, s the mean magnitude. Rastegari et al. 2016, section 3.1. There is no 0: not for pruned weights."""

    name = "bwn"
    BITS = (1,)
    HAS_FIXED_LEVELS = True

    def levels(self, weight: Tensor, scale: Tensor) -> Tensor:
        """The sign; that of 0 is 1."""
        return (weight >= 0).to(weight.dtype).mul_(2).sub_(1)

    def scale(self, weight: Tensor) -> Tensor:
        """Mean magnitude."""
        return self.mean_magnitude(weight).clamp_min(TINY)


@WEIGHT_QUANTIZERS.register("laq")
class LossAware(WeightQuantizer):
    """Levels and scale of least squared error weighted by the loss's curvature. Hou & Kwok 2018, section 3.

    The curvature is estimated as there by the root of Adam's second moment of the gradient, kept in a buffer that
    backward passes update: one a step where the weight is quantised once a step (``quantized_cache``). Minimisation
    alternates between levels and scale and goes on from the scale of the step before. Before the first gradient all
    weights count the same.
    """

    name = "laq"

    def __init__(self, weight: Tensor, bits: int, *, alternations: int = 1, decay: float = 0.999, **settings: Any):
        super().__init__(weight, bits, **settings)
        self.alternations, self.decay = alternations, decay
        self.register_buffer("second_moment", torch.zeros_like(weight.detach()))
        self.register_buffer("start", self.mse_scale(weight.detach()))

    @torch.no_grad()
    def scale(self, weight: Tensor) -> Tensor:
        """sum(c w n) / sum(c n^2) for the levels n of the scale before; c the curvature."""
        curvature, scale = self.second_moment.sqrt().add_(ADAM_EPSILON), self.start
        for _ in range(self.alternations):
            scale = self.fitted_scale(weight, scale, curvature)
        return scale

    def forward(self, weight: Tensor) -> Tensor:
        """Integers times scale; the gradient passes, and is remembered."""
        scale = self.scale(weight)
        value = StraightThrough.apply(weight, self.levels(weight.detach(), scale).mul_(scale))
        if self.training and value.requires_grad:
            value.register_hook(partial(self._remember, scale))
        return value

    @torch.no_grad()
    def _remember(self, scale: Tensor, gradient: Tensor) -> None:
        if not gradient.isfinite().all():  # a step that a loss scale overflowed is not made, and must not be remembered for good
            return
        self.second_moment.mul_(self.decay).addcmul_(gradient, gradient, value=1 - self.decay)
        self.start.copy_(scale)
