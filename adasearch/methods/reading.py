"""Extractive question answering: a reader on gold spans, and on another reader's predictions."""

from __future__ import annotations

from torch import Tensor, nn

from adasearch.fit_config import FitConfig
from adasearch.methods.base import Batch, Method
from adasearch.questions import PROBLEM_TYPE
from adasearch.reader import SpanForward
from adasearch.span_objectives import span_kl_loss, span_loss


class FinetuneReader(Method):
    """A checkpoint on gold answers: linear warm-up and decay, as BERT's authors fine-tune.

    Where batches hold ``teacher_logits`` (B, 2, L), the loss is (1 - gamma) CE + gamma KL at ``temperature``.
    """

    schedule = "linear"

    def __init__(self, config: FitConfig, forward: SpanForward, *, gamma: float = 0.0, temperature: float = 1.0):
        super().__init__(config, PROBLEM_TYPE)
        self.forward_spans = forward  # ``Reader.spans``: segment ids included
        self.gamma, self.temperature = gamma, temperature

    def loss(self, student: nn.Module, batch: Batch) -> dict[str, Tensor]:
        mask_BL = batch["attention_mask"]
        logits_B2L = self.forward_spans(batch["input_ids"], mask_BL)
        gamma = self.gamma if "teacher_logits" in batch else 0.0
        terms = {"ce": (1 - gamma) * span_loss(logits_B2L, batch["labels"], mask_BL).mean()}
        if gamma:
            terms["kd"] = gamma * span_kl_loss(logits_B2L, batch["teacher_logits"], mask_BL, self.temperature).mean()
        return terms
