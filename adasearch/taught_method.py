"""What methods share that train a task model on its dense teacher: the loss. Prune Once for All, stages 3 and 4 (specs c.4)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from adasearch.fit_config import FitConfig
from adasearch.methods.base import Batch, Method
from adasearch.teaching import predictions, states_loss, teaching_terms

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
        layer_weight: of ``states_loss`` towards the layers of ``guide``, which the paper does not teach.
        guide: the dense model, with as many layers as the student, as wide; it is used as it is and is no part of a checkpoint.
    """

    schedule = "linear"

    def __init__(
        self, config: FitConfig, problem_type: str, forward: Forward, *, task_weight: float = 0.0, kd_weight: float = 1.0,
        temperature: float = 2.0, layer_weight: float = 0.0, guide: nn.Module | None = None,
    ):
        super().__init__(config, problem_type)
        assert guide is not None or not layer_weight, "layers are taught by a guide"
        self.layer_weight, self._guide = layer_weight, (guide,)  # in a tuple, out of sight of state_dict
        self.forward_model, self.task_weight, self.kd_weight, self.temperature = forward, task_weight, kd_weight, temperature

    def loss(self, student: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """``ce``, ``kd`` and ``layers``, each times its weight; what weighs nothing is left out."""
        states = {"output_hidden_states": True} if self.layer_weight else {}
        own = self.forward_model(student, batch, **states)
        terms = teaching_terms(
            predictions(own), batch, self.problem_type, task_weight=self.task_weight, kd_weight=self.kd_weight, temperature=self.temperature
        )
        if self.layer_weight:
            with torch.no_grad():
                target = self.forward_model(self._guide[0].to(batch["input_ids"].device), batch, **states)
            error = states_loss(own.hidden_states[1:], target.hidden_states[1:], batch["attention_mask"])
            terms["layers"] = self.layer_weight * error
        return terms
