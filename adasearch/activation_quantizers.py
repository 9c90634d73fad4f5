"""Activations on 256 levels: asymmetric uint8 whose range is a moving average of what was seen.

Weights are symmetric and need no class of their own: any quantiser of ``quantizers`` at 8 bits is a parametrisation, and
``min_max`` with ``full_range`` is nearly the published one (-128..127, nothing clipped; there one scale a tensor, by the largest weight ever seen).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from adasearch.errors import ModelError
from adasearch.rounding import TINY, inside

LOW, HIGH = 0, 255  # uint8
MOMENTUM = 0.01  # what the newest batch weighs in a range, as in the published recipe's (torch's) observers


class RoundAffine(torch.autograd.Function):
    """(clip(round(x / s) + z, low, high) - z) s; the gradient passes where nothing was clipped (straight through).

    torch's own ``fake_quantize_per_tensor_affine`` says the same, seven times slower on a processor (29 against 4 ms for
    6.3M values), and multiplies by 1 / s where ONNX divides by s: on ties the two differ by a level.
    """

    @staticmethod
    def forward(ctx: Any, values: Tensor, scale: Tensor, zero_point: Tensor, low: int, high: int) -> Tensor:
        levels = (values.float() / scale).round_()
        least, most = low - int(zero_point), high - int(zero_point)
        ctx.save_for_backward(levels)
        ctx.bounds = least - 0.5, most + 0.5  # of levels before the clip, which are whole numbers
        return levels.clamp(least, most).mul_(scale).to(values.dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (levels,) = ctx.saved_tensors
        return inside(gradient.float(), levels, *ctx.bounds).to(gradient.dtype), None, None, None, None


class ActivationQuantizer(nn.Module):
    """Rounds a tensor of any shape to 256 even levels, of which one is exactly 0.

    While it trains it follows the least and the largest value of each batch (padding included) with a moving average; in
    eval mode the range rests. Range and count are buffers: a resumed training goes on with them.

    Args:
        momentum: weight of the newest batch in the range; the first batch is taken whole.

    ``is_rounding`` false lets values pass as they are while the range is learned (a delayed start); ``is_observing``
    false keeps the range. Both belong to the method that trains, which sets them from the step alone.
    """

    def __init__(self, momentum: float = MOMENTUM):
        super().__init__()
        self.momentum, self.is_rounding, self.is_observing = momentum, True, True
        self.register_buffer("low", torch.zeros(()))
        self.register_buffer("high", torch.zeros(()))
        self.register_buffer("batches", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def observe(self, values: Tensor) -> None:
        """Move the range towards that of ``values``."""
        if not values.numel():  # a layer that got nothing says nothing
            return
        low, high = values.detach().float().aminmax()
        rate = torch.where(self.batches == 0, 1.0, self.momentum)
        self.low.add_(rate * (low - self.low))
        self.high.add_(rate * (high - self.high))
        self.batches.add_(1)

    def grid(self) -> tuple[Tensor, Tensor]:
        """Scale (float32) and zero point (int64, 0 to 255), both (). Raises ``ModelError`` where nothing was seen yet."""
        if not self.batches:
            raise ModelError("activation quantiser: it has seen no batch, so it knows no range; train or calibrate first")
        low, high = self.low.clamp_max(0), self.high.clamp_min(0)  # 0 is a level: padding and pruned values stay 0
        scale = ((high - low) / (HIGH - LOW)).clamp_min(TINY)
        return scale, (LOW - low / scale).round_().clamp_(LOW, HIGH).to(torch.int64)

    def forward(self, values: Tensor) -> Tensor:
        """The rounded values, shape and type unchanged."""
        if self.training and self.is_observing:
            self.observe(values)
        if not self.is_rounding:
            return values
        return RoundAffine.apply(values, *self.grid(), LOW, HIGH)

    def extra_repr(self) -> str:
        """Shown by ``print(model)``."""
        return f"uint8, range {float(self.low):.3g} to {float(self.high):.3g}, momentum={self.momentum}"
