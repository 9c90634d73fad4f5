"""An encoder on gold labels, dense or pruned: linear decay, as BERT's authors fine-tune."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from adasearch.fit_config import FitConfig
from adasearch.methods.base import Batch, Method

Forward = Callable[..., Any]  # (model, batch, **inputs of the model) -> its output
Loss = Callable[[Any, Batch], Tensor]  # (output, batch) -> scalar


class FinetuneEncoder(Method):
    """All weights on the task's own loss, whatever kind of task it is."""

    schedule = "linear"

    def __init__(self, config: FitConfig, forward: Forward, loss: Loss):
        super().__init__(config, "")  # the kind of task is the loss's affair
        self.forward_model, self.task_loss = forward, loss

    def loss(self, student: nn.Module, batch: Batch) -> dict[str, Tensor]:
        return {"ce": self.task_loss(self.forward_model(student, batch), batch)}
