"""What methods share that train a task model on its dense teacher: the loss. Prune Once for All, stages 3 and 4 (specs c.4)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from adasearch.fit_config import FitConfig
from adasearch.methods.base import Batch, Method
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
        """``ce`` and ``kd``, each times its weight; what weighs nothing is left out."""
        return teaching_terms(
            predictions(self.forward_model(student, batch)), batch, self.problem_type,
            task_weight=self.task_weight, kd_weight=self.kd_weight, temperature=self.temperature,
        )  # fmt: skip
