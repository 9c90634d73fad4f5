"""Language models on gold tokens: GPT-2's next token, a sequence-to-sequence model's target."""

from __future__ import annotations

from torch import Tensor, nn

from adasearch.fit_config import FitConfig
from adasearch.language import language_logits
from adasearch.language_objectives import UNSCORED, next_token_loss
from adasearch.methods.base import Batch, Method


class LanguageModel(Method):
    """Plain training of a Hugging Face causal or sequence-to-sequence model; the model's config says which it is."""

    def __init__(self, config: FitConfig):
        super().__init__(config, "language")

    def loss(self, student: nn.Module, batch: Batch) -> dict[str, Tensor]:
        logits_BLV = language_logits(student, batch)
        return {"ce": next_token_loss(logits_BLV, batch["labels"], is_shifted=student.config.is_encoder_decoder)}

    def weight(self, batch: Batch) -> float:
        """Gold tokens: the loss is a mean over them, not over texts."""
        return int((batch["labels"] != UNSCORED).sum())
