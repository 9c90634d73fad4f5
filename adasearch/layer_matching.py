"""Layerwise distillation with dynamic matching: which student layer learns from which teacher layer is asked at every step.

CoFi (Xia et al. 2022), section 3.2: a pruned student has no layers that correspond to the teacher's by their number, so
each chosen teacher layer teaches the student layer that is nearest to it already.

Dimensions: B batch, L tokens, D hidden of the student, E hidden of the teacher, N student layers, T chosen teacher layers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from adasearch.registry import Registry

Match = list[int | None]  # for each chosen teacher layer the student layer that it teaches; None: no one
MATCHINGS: Registry[Callable[[Tensor, Sequence[bool]], Match]] = Registry("layer matching")


@MATCHINGS.register("paper")
def match_alive(distances_TN: Tensor, alive_N: Sequence[bool]) -> Match:
    """The nearest layer that is alive; several teachers may choose the same. The paper's rule."""
    dead_N = ~torch.tensor(alive_N, device=distances_TN.device)
    return [None] * len(distances_TN) if bool(dead_N.all()) else distances_TN.masked_fill(dead_N, torch.inf).argmin(1).tolist()


@MATCHINGS.register("any")
def match_any(distances_TN: Tensor, alive_N: Sequence[bool]) -> Match:
    """The nearest layer, dead or alive (a dead one hands on what is below it). Version 3 of the published code."""
    return distances_TN.argmin(1).tolist()


@MATCHINGS.register("ordered")
def match_ordered(distances_TN: Tensor, alive_N: Sequence[bool]) -> Match:
    """From the top down, the nearest layer that is alive and below the one chosen before; None where none is left.

    What version 4 of the published code means to do (its test of life looks at the wrong gates, and it may choose a
    layer that is not there).
    """
    matched: Match = []
    below = distances_TN.shape[1]
    for distances_N in distances_TN.flip(0).tolist():
        allowed = [layer for layer in range(below) if alive_N[layer]]
        matched.append(min(allowed, key=distances_N.__getitem__) if allowed else None)
        below = matched[-1] if allowed else 0
    return matched[::-1]


def spread(count: int, layers: int) -> list[int]:
    """``count`` of ``layers`` layers, evenly spaced, the last among them: of 12 four are 2, 5, 8 and 11, as in CoFi."""
    return [(index + 1) * layers // count - 1 for index in range(count)]


class LayerDistillation(nn.Module):
    """Mean squared error between the chosen teacher layers and W times the student layers matched to them.

    W is one linear map for all layers, with a bias, and starts as the identity (cut to shape where the widths differ).

    Args:
        width: D.
        teacher_width: E.
        layers: N.
        teacher_depth: layers of the teacher.
        teacher_layers: the chosen ones, counted from 0, ascending.
        matching: paper, any, ordered, or fixed: the student layer at the same height, whatever is left of it.
    """

    def __init__(
        self, width: int, teacher_width: int, layers: int, teacher_depth: int, teacher_layers: Sequence[int], matching: str = "paper"
    ):
        super().__init__()
        self.teacher_layers, self.matching = list(teacher_layers), matching
        self.fixed: Match = [max(0, (layer + 1) * layers // teacher_depth - 1) for layer in teacher_layers]
        self.projection = nn.Linear(width, teacher_width)
        nn.init.eye_(self.projection.weight)
        nn.init.zeros_(self.projection.bias)

    def forward(
        self, student: Sequence[Tensor], teacher: Sequence[Tensor], mask_BL: Tensor, alive_N: Sequence[bool]
    ) -> tuple[Tensor, Match]:
        """The sum over the chosen teacher layers of their errors, a scalar, and who taught whom.

        Args:
            student: what each of the N layers hands on, (B, L, D); a dead layer hands on what it got.
            teacher: the same of every teacher layer, (B, L, E), without gradient.
            mask_BL: 0 where there is padding, which teaches nothing.
            alive_N: which student layers are more than a way through.
        """
        own_N = [self.projection(states) for states in student]
        targets_T = [teacher[layer] for layer in self.teacher_layers]
        if self.matching == "fixed":
            match = self.fixed
        else:
            with torch.no_grad():
                rows = [torch.stack([masked_mse(own, target, mask_BL) for own in own_N]) for target in targets_T]
                match = MATCHINGS[self.matching](torch.stack(rows), alive_N)
        errors = [masked_mse(own_N[layer], target, mask_BL) for layer, target in zip(match, targets_T) if layer is not None]
        return torch.stack(errors).sum() if errors else own_N[0].new_zeros(()), match

    @torch.no_grad()
    def narrowed(self, kept: Sequence[int]) -> LayerDistillation:
        """The same for a student that was cut to the hidden dimensions ``kept``: W without the columns of the others.

        A gate's value is folded into what makes the hidden states, so that these are as they were and W needs no factor.
        """
        narrow = LayerDistillation(len(kept), self.projection.out_features, 1, 1, [], self.matching)
        narrow.teacher_layers, narrow.fixed = self.teacher_layers, self.fixed
        narrow.projection.weight.copy_(self.projection.weight[:, list(kept)])
        narrow.projection.bias.copy_(self.projection.bias)
        return narrow


def masked_mse(own_BLE: Tensor, target_BLE: Tensor, mask_BL: Tensor) -> Tensor:
    """Mean squared error over the dimensions of all tokens that are no padding, a scalar."""
    weights_BL1 = mask_BL[..., None].float()  # float32: under mixed precision the states are not, and their differences are small
    return ((own_BLE.float() - target_BLE.float()).square() * weights_BL1).sum() / (weights_BL1.sum() * own_BLE.shape[-1])
