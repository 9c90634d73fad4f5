"""A sparse model on a task: fine-tuned with its pattern locked, or made sparse while it is fine-tuned.

The first is stage 3 of Prune Once for All (Zafrir et al. 2021; specs c.4, c.5), the second the baseline it is compared with:
gradual magnitude pruning on every task anew. Both learn from the task's dense model.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from adasearch.config import FitConfig
from adasearch.gradual_pruning import GradualPruning, Lock
from adasearch.methods.base import Batch, Group, Method
from adasearch.sparsity_schedule import rewinding_factor
from adasearch.teaching import predictions, teaching_terms

Forward = Callable[..., Any]  # (model, batch) -> its Hugging Face output, segment ids included


class Taught(Method):
    """A task model on its teacher's logits (``teacher_logits`` in the batch) and gold labels. The published weights are 1 and 0.

    Args:
        config: steps, batch size, rates.
        problem_type: single_label, multi_label, regression or question_answering.
        forward: how a batch is fed to the model.
        task_weight: of the loss against gold labels.
        kd_weight: of T^2 KL towards the teacher.
        temperature: T.
    """

    schedule = "linear"

    def __init__(
        self, config: FitConfig, problem_type: str, forward: Forward, *, task_weight: float = 0.0, kd_weight: float = 1.0,
        temperature: float = 2.0,
    ):
        super().__init__(config, problem_type)
        self.forward_model, self.task_weight, self.kd_weight, self.temperature = forward, task_weight, kd_weight, temperature

    def loss(self, student: nn.Module, batch: Batch) -> dict[str, Tensor]:
        return teaching_terms(
            predictions(self.forward_model(student, batch)), batch, self.problem_type,
            task_weight=self.task_weight, kd_weight=self.kd_weight, temperature=self.temperature,
        )  # fmt: skip


class LockedFinetuning(Taught):
    """The zeros in the model's layers stay exactly where they are; it ends with plain weights that hold them."""

    def __init__(self, *args: Any, **options: Any):
        super().__init__(*args, **options)
        self.lock = Lock()

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
