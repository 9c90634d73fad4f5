"""Extractive question answering: a reader on gold spans."""

from __future__ import annotations

from torch import Tensor, nn

from adasearch.fit_config import FitConfig
from adasearch.methods.base import Batch, Method
from adasearch.reader import SpanForward
from adasearch.span_objectives import span_loss
from adasearch.task_config import QUESTION_ANSWERING


class FinetuneReader(Method):
    """A checkpoint on gold answers: linear warm-up and decay, as BERT's authors fine-tune."""

    schedule = "linear"

    def __init__(self, config: FitConfig, forward: SpanForward):
        super().__init__(config, QUESTION_ANSWERING)
        self.forward_spans = forward  # ``Reader.spans``: segment ids included

    def loss(self, student: nn.Module, batch: Batch) -> dict[str, Tensor]:
        mask_BL = batch["attention_mask"]
        logits_B2L = self.forward_spans(batch["input_ids"], mask_BL)
        return {"ce": span_loss(logits_B2L, batch["labels"], mask_BL).mean()}
