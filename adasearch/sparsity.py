"""Zeros in weights: which go, and a parametrisation (``torch.nn.utils.parametrize``) that holds them at zero.

While a network is pruned its dense weights stay under the mask: what was dropped has gradient 0, and returns when others
have fallen below it (Zhu & Gupta 2017; specs c.2). A locked mask never changes again.

Dimensions: O outputs of a layer, I inputs, M members of an N:M group, K elements of a kind.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from adasearch.errors import ConfigError, ModelError
from adasearch.sparse_pattern import SCOPES, Pattern

ROUNDING = 1e-6  # 0.29 x 100 is 28.999... in floats, and means 29


def dropped_count(ratio: float, count: int) -> int:
    """How many of ``count`` elements go: the least number that is the ratio or more of them.

    Published code drops the whole part of ratio x count, one element less as a rule, and so falls short of the sparsity
    asked for (90% and int8 would be 39.999x).
    """
    return min(count, math.ceil(ratio * count - ROUNDING))


def select(scores: Mapping[str, Tensor], ratio: float, scope: str = "layer") -> dict[str, Tensor]:
    """Which elements stay, bool tensors shaped as their scores: the least scores go, ``dropped_count`` of them exactly.

    Args:
        ratio: share that goes, 0 to 1.
        scope: "layer": this share of every tensor; "global": of all together, each where it may.

    Of equal scores at the threshold the first in the order of names and elements go. Infinite scores go last.
    Raises ``ConfigError`` for an unknown scope or a ratio out of range.
    """
    if scope not in SCOPES:
        raise ConfigError(f"scope: {scope!r} is not known; choices: {', '.join(SCOPES)}")
    if not 0 <= ratio <= 1:
        raise ConfigError(f"ratio: {ratio!r} is out of range; choices: 0 to 1")
    if scope == "layer" or not scores:
        return {name: _kept(score.flatten(), ratio).view_as(score) for name, score in scores.items()}
    kept_K = _kept(torch.cat([score.flatten() for score in scores.values()]), ratio)
    parts = kept_K.split([score.numel() for score in scores.values()])
    return {name: part.view_as(score) for (name, score), part in zip(scores.items(), parts)}


def _kept(scores_K: Tensor, ratio: float) -> Tensor:
    count = dropped_count(ratio, len(scores_K))
    if count == 0:
        return torch.ones_like(scores_K, dtype=torch.bool)
    threshold = scores_K.kthvalue(count).values
    kept_K = scores_K > threshold
    ties = (scores_K == threshold).nonzero().flatten()
    dropped = len(scores_K) - int(kept_K.sum()) - len(ties)  # those below the threshold
    kept_K[ties[count - dropped :]] = True
    return kept_K


def pattern_scores(magnitudes: Tensor, pattern: Pattern, input_dim: int = -1) -> Tensor:
    """What ``select`` ranks: a score for each element, or for each block, of a weight's magnitudes.

    Blocks are scored by their mean. With N:M only the M - N least of each group may ever go: the others' scores are
    infinite. So any sparsity up to the pattern's leads to it, and at the full one exactly N of every M stay.
    Raises ``ModelError`` where a dimension is not a multiple of the pattern's. See ``pattern_mask`` for the way back.
    """
    matrix_OI = _matrix(magnitudes, input_dim)
    if pattern.group:
        groups_KM = _groups(matrix_OI, pattern)
        order_KM = groups_KM.argsort(dim=-1, stable=True)
        scores_KM = groups_KM.scatter(-1, order_KM[..., pattern.group - pattern.kept :], math.inf)
        return scores_KM.view_as(matrix_OI)
    if (pattern.rows, pattern.columns) == (1, 1):
        return matrix_OI
    outputs, inputs = matrix_OI.shape
    _check_divides(_places_first(magnitudes, input_dim).shape[-2], inputs, pattern.rows, pattern.columns, pattern)
    return matrix_OI.reshape(outputs // pattern.rows, pattern.rows, inputs // pattern.columns, pattern.columns).mean((1, 3))


def pattern_mask(kept: Tensor, weight: Tensor, pattern: Pattern, input_dim: int = -1) -> Tensor:
    """What stays of a weight, bool and shaped like it, from what stays of its scores."""
    if not pattern.group and (pattern.rows, pattern.columns) != (1, 1):
        kept = kept.repeat_interleave(pattern.rows, 0).repeat_interleave(pattern.columns, 1)
    kept = kept.view(_places_first(weight, input_dim).shape)
    return (kept.movedim(-2, 0) if kept.ndim > 2 else kept).movedim(-1, input_dim).contiguous()


def _places_first(weight: Tensor, input_dim: int) -> Tensor:
    """(..., O, I): a convolution's places in its kernel first, so that a block is of neighbouring outputs at one place."""
    last = weight.movedim(input_dim, -1)
    return last.movedim(0, -2) if last.ndim > 2 else last


def _matrix(weight: Tensor, input_dim: int) -> Tensor:
    """(O, I): the inputs last, all other dimensions one."""
    return _places_first(weight, input_dim).reshape(-1, weight.shape[input_dim])


def _groups(matrix_OI: Tensor, pattern: Pattern) -> Tensor:
    _check_divides(*matrix_OI.shape, 1, pattern.group, pattern)
    return matrix_OI.reshape(-1, pattern.group)


def _check_divides(outputs: int, inputs: int, rows: int, columns: int, pattern: Pattern) -> None:
    if outputs % rows or inputs % columns:
        raise ModelError(
            f"pattern {pattern}: a weight of {outputs} outputs by {inputs} inputs; outputs must be a multiple of {rows},"
            f" inputs of {columns}; choices: unstructured, or a pattern that divides them"
        )


class WeightMask(nn.Module):
    """Parametrisation of a weight: exactly 0 where the mask is, itself elsewhere. It comes before any quantiser.

    Args:
        weight: what is masked; nothing is dropped at first.
        input_dim: the dimension of a layer's inputs: -1 in ``nn.Linear``, 0 in the transformers' ``Conv1D``, 1 in ``nn.Conv1d``.

    The gradient of what is dropped is 0. The mask is a buffer, so that a training resumes with it; what ``hold_zeros`` was told is
    none: it is told again.
    """

    def __init__(self, weight: Tensor, pattern: Pattern = Pattern(), input_dim: int = -1):
        super().__init__()
        self.pattern, self.input_dim, self.is_locked = pattern, input_dim, False
        self.mask: Tensor
        self.register_buffer("mask", torch.ones_like(weight, dtype=torch.bool))
        self.may_stay: Tensor | None
        self.register_buffer("may_stay", None, persistent=False)
        self.scores(weight.detach())  # a pattern that does not divide the weight shows before the training

    def forward(self, weight: Tensor) -> Tensor:
        """The weight with its zeros, shaped as it was."""
        return weight.where(self.mask, 0.0)  # not a product: that leaves negative zeros, and NaN of what overflowed

    def right_inverse(self, value: Tensor) -> Tensor:
        """Assigning to the layer's weight sets what is masked."""
        return value

    @torch.no_grad()
    def scores(self, weight: Tensor) -> Tensor:
        """The dense weight's magnitudes as ``select`` takes them; of zeros that are held 0, so that they go first."""
        magnitudes = weight.abs() if self.may_stay is None else weight.abs().where(self.may_stay, 0.0)
        return pattern_scores(magnitudes, self.pattern, self.input_dim)

    @torch.no_grad()
    def keep(self, kept: Tensor) -> None:
        """Set the mask from what stays of the scores; zeros that are held stay zero beside. Raises ``ModelError`` when it is locked."""
        if self.is_locked:
            raise ModelError("the pattern is locked: it was chosen once and must survive; choices: bake it, then prune again")
        self.mask.copy_(pattern_mask(kept, self.mask, self.pattern, self.input_dim))
        if self.may_stay is not None:
            self.mask &= self.may_stay

    @torch.no_grad()
    def hold_zeros(self, weight: Tensor) -> None:
        """Mask a weight's zeros, and leave them masked whatever is chosen later: the mask only grows from there."""
        self.may_stay = weight != 0
        self.mask &= self.may_stay

    @torch.no_grad()
    def lock(self, weight: Tensor | None = None) -> None:
        """Freeze the pattern: as it is, or that of a weight's zeros."""
        if weight is not None:
            self.mask.copy_(weight != 0)
        self.is_locked = True

    @property
    def sparsity(self) -> float:
        """Share of zeros."""
        return 1 - float(self.mask.sum()) / self.mask.numel()
