"""Constraints on what a model keeps: the terms that enforce them, and targets that rise with the steps.

A constraint is a *gap*: how far a differentiable quantity is above its target, 0 when it is met. Its multipliers are
parameters that the optimiser maximises while everything else minimises (a group with ``maximize=True``): they grow as
long as the gap lasts.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

GAPS = ("signed", "absolute")


def penalty(gap: Tensor, linear: Tensor | float, quadratic: Tensor | float, *, is_one_sided: bool = False) -> Tensor:
    """linear x gap + quadratic x gap^2, a scalar. One-sided: a gap below 0 meets the constraint and is not squared."""
    return linear * gap + quadratic * (gap.relu() if is_one_sided else gap).square()


def ramp(target: float, step: float, steps: float, start: float = 0.0) -> float:
    """The target at ``step``: linear from ``start`` to ``target`` in ``steps`` steps, then ``target``. CoFi, section 3.1."""
    return target if step >= steps else start + (target - start) * step / steps


class Lagrangian(nn.Module):
    """lambda1 gap + lambda2 gap^2 for the constraint "gap is 0", with both multipliers learned. Wang et al. 2020; CoFi, section 3.1.

    Args:
        gap: "signed" lets a quantity move both ways, as the published code; "absolute" is
            lambda1 |gap| + lambda2 gap^2, with which lambda1 only grows.

    ``linear`` and ``quadratic``, scalars, start at 0 and belong into an optimiser group with ``maximize=True`` and no weight decay.
    With a signed gap lambda1 takes either sign (it falls while the gap is negative, so that minimising lambda1 x gap raises
    the gap); lambda2 never falls. lambda1 remembers gaps that are gone: what it alone holds to a target swings around it.
    lambda2's force ends with the gap.
    """

    def __init__(self, gap: str = "signed"):
        super().__init__()
        assert gap in GAPS, gap
        self.gap = gap
        self.linear = nn.Parameter(torch.zeros(()))
        self.quadratic = nn.Parameter(torch.zeros(()))

    def forward(self, gap: Tensor) -> Tensor:
        """The term of the loss, a scalar."""
        return penalty(gap.abs() if self.gap == "absolute" else gap, self.linear, self.quadratic)
