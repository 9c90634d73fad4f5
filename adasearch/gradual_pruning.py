"""Two ways to handle masks while a model trains: dropping weights little by little, and locking the pattern that there is.

Both are plain helpers that a training method calls from its hooks of the same names.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from adasearch.sparse_model import attach_masks, bake_masks, broken_zeros, find_masks, lock_pattern, mean_sparsity, pattern_of, prune_to
from adasearch.sparse_pattern import Pattern
from adasearch.sparsity_schedule import SparsitySchedule


class GradualPruning:
    """Gradual magnitude pruning: masks are chosen anew by magnitude whenever the schedule says (specs c.2).

    Args:
        schedule: sparsity by step.
        pattern: what may be zero together.
        scope: "layer" or "global".
        holds_zeros: those that the model begins with stay, from the first step on, whatever the masks are. Where a layer or a group
            has more of them than goes there, more is zero than the schedule says.

    Raises ``ConfigError`` when the pattern cannot hold so many zeros.
    """

    def __init__(self, schedule: SparsitySchedule, pattern: Pattern, scope: str, *, holds_zeros: bool = False):
        pattern.check(schedule.final)
        self.schedule, self.pattern, self.scope, self.holds_zeros = schedule, pattern, scope, holds_zeros

    def attach(self, model: nn.Module) -> None:
        """Masks that drop nothing yet but zeros that are held, unless there are masks. Raises ``ModelError`` as ``attach_masks``."""
        if find_masks(model):
            return
        for name, mask in attach_masks(model, self.pattern).items():
            if self.holds_zeros:
                mask.hold_zeros(model.get_submodule(name).weight)

    def begin_step(self, model: nn.Module, step: int) -> None:
        """Choose the masks of this step."""
        if self.schedule.is_update(step):
            prune_to(model, self.schedule.sparsity(step), self.scope)

    def measures(self, model: nn.Module) -> dict[str, float]:
        """For the history."""
        return {"sparsity": mean_sparsity(model)}

    def finish(self, model: nn.Module) -> None:
        """Exact zeros in plain weights."""
        bake_masks(model)


class Lock:
    """The zeros a model begins with, kept exactly: what optimisers, momentum and weight decay do to them never shows.

    ``names`` are the layers; ``sparse_model.encoder_linears`` when None.
    """

    def __init__(self, names: Sequence[str] | None = None) -> None:
        self.names, self.pattern = names, dict[str, Tensor]()

    def attach(self, model: nn.Module) -> None:
        """Lock the pattern as it is. Raises ``ModelError`` as ``lock_pattern``."""
        masks = lock_pattern(model, self.names)
        self.pattern = {name: kept.cpu() for name, kept in pattern_of(model, list(masks)).items()}

    def measures(self, model: nn.Module) -> dict[str, float]:
        """For the history."""
        return {"sparsity": mean_sparsity(model, list(self.pattern))}

    def finish(self, model: nn.Module) -> None:
        """Check that the pattern survived, then leave exact zeros in plain weights."""
        lost = broken_zeros(model, {name: kept.to(model.get_submodule(name).weight.device) for name, kept in self.pattern.items()})
        assert not lost, f"the pattern is broken in {lost}"
        bake_masks(model)
