"""What a layer must know of the batch besides its input, and the normalisations that heed it: no padding, no dropped channel.

Dimensions: B batch, D width, L tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adasearch.architecture import Macro


@dataclass(frozen=True)
class Context:
    """What an operation must know of the batch."""

    mask_B1L: Tensor  # 1 on real tokens, 0 on padding; float
    second_BL: Tensor  # True on the second text of a pair
    keep_D: Tensor | None = None  # channels alive under a width gate; None = all

    @cached_property
    def alive(self) -> Tensor:
        """1 where a token is real and its channel kept: (B, 1, L) or (B, D, L)."""
        return self.mask_B1L if self.keep_D is None else self.mask_B1L * self.keep_D[:, None]

    def clean(self, x_BDL: Tensor) -> Tensor:
        """Zero on padding and on dropped channels."""
        return x_BDL * self.alive


class MaskedBatchNorm(nn.BatchNorm1d):
    """Batch normalisation over real tokens only: padding must not move the statistics. In eval it is BatchNorm1d."""

    @staticmethod
    def total(sums: Tensor) -> Tensor:
        """A sum over the whole batch; training on several processes sets another, which sums over them."""
        return sums

    def forward(self, x_BDL: Tensor, context: Context) -> Tensor:
        if not self.training:
            return super().forward(x_BDL)
        count = self.total(context.mask_B1L.sum())
        mean_D = self.total((x_BDL * context.mask_B1L).sum((0, 2))) / count
        centred_BDL = x_BDL - mean_D[:, None]
        variance_D = self.total((centred_BDL.square() * context.mask_B1L).sum((0, 2))) / count
        with torch.no_grad():
            self.num_batches_tracked += 1
            rate = self.momentum if self.momentum is not None else 1.0 / float(self.num_batches_tracked)
            self.running_mean.lerp_(mean_D.detach().to(self.running_mean.dtype), rate)
            unbiased = variance_D.detach() * count / (count - 1).clamp_min(1)
            self.running_var.lerp_(unbiased.to(self.running_var.dtype), rate)
        scale_D = (variance_D + self.eps).rsqrt()
        if self.affine:
            return centred_BDL * (scale_D * self.weight)[:, None] + self.bias[:, None]
        return centred_BDL * scale_D[:, None]


class ChannelLayerNorm(nn.Module):
    """Layer normalisation over the (kept) channels of each token of (B, D, L)."""

    def __init__(self, width: int, affine: bool = True, eps: float = 1e-5):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width)) if affine else None
        self.bias = nn.Parameter(torch.zeros(width)) if affine else None

    def forward(self, x_BDL: Tensor, context: Context) -> Tensor:
        if context.keep_D is None:
            return F.layer_norm(x_BDL.mT, x_BDL.shape[1:2], self.weight, self.bias, self.eps).mT
        keep_D1 = context.keep_D[:, None]
        count = keep_D1.sum()
        # dropped channels count for nothing here, and are zeroed by whoever normalises (``Context.clean``): done twice, a gate's slope
        # would be that of its square, 0 where it is closed
        centred_BDL = x_BDL - (x_BDL * keep_D1).sum(1, keepdim=True) / count
        normed_BDL = centred_BDL * ((centred_BDL.square() * keep_D1).sum(1, keepdim=True) / count + self.eps).rsqrt()
        return normed_BDL if self.weight is None else normed_BDL * self.weight[:, None] + self.bias[:, None]


def make_norm(width: int, macro: Macro) -> nn.Module:
    """The space's normalisation; called with (x_BDL, context)."""
    if macro.norm == "layer":
        return ChannelLayerNorm(width, macro.norm_affine)
    return MaskedBatchNorm(width, affine=macro.norm_affine)
