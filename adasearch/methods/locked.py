"""A sparse model on a task: fine-tuned with its pattern locked, or made sparse while it is fine-tuned.

The first is stage 3 of Prune Once for All (Zafrir et al. 2021; specs c.4, c.5), the second the baseline it is compared with:
gradual magnitude pruning on every task anew. Both learn from the task's dense model.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from adasearch.gradual_pruning import GradualPruning, Lock
from adasearch.methods.base import Group
from adasearch.sparsity_schedule import rewinding_factor
from adasearch.taught_method import Taught


class LockedFinetuning(Taught):
    """The zeros in the model's layers stay exactly where they are; it ends with plain weights that hold them.

    ``names`` are the layers locked; the linear ones of the transformer layers when None.
    """

    def __init__(self, *args: Any, names: Sequence[str] | None = None, **options: Any):
        super().__init__(*args, **options)
        self.lock = Lock(names)

    def attach(self, student: nn.Module) -> None:
        """Lock. Raises ``ModelError`` for a model without layers to lock."""
        self.lock.attach(student)

    def measures(self, student: nn.Module) -> dict[str, Any]:
        return self.lock.measures(student)

    def finish(self, student: nn.Module) -> None:
        self.lock.finish(student)


class GradualFinetuning(Taught):
    """A dense model loses weights by magnitude while it is fine-tuned.

    Args:
        pruning: schedule, pattern, scope.
        rewind: the learning rate waits for the pruning, as in sparse pre-training; else it falls linearly.
    """

    def __init__(self, *args: Any, pruning: GradualPruning, rewind: bool = True, **options: Any):
        super().__init__(*args, **options)
        self.pruning, self.rewind = pruning, rewind

    def attach(self, student: nn.Module) -> None:
        """Masks. Raises ``ModelError`` where the pattern does not fit the model."""
        self.pruning.attach(student)

    def groups(self, student: nn.Module) -> list[Group]:
        groups = super().groups(student)
        if self.rewind:
            steps, warmup = self.config.steps, round(self.config.warmup * self.config.steps)
            groups[0].schedule = lambda step: rewinding_factor(step, steps, warmup, self.pruning.schedule)
        return groups

    def begin_step(self, student: nn.Module, step: int, steps: int) -> None:
        self.pruning.begin_step(student, step)

    def measures(self, student: nn.Module) -> dict[str, Any]:
        return self.pruning.measures(student)

    def finish(self, student: nn.Module) -> None:
        self.pruning.finish(student)
