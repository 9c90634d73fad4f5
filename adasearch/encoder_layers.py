"""Our encoder as Hugging Face models: a sequence classifier and a reader that answers questions.

Both take ``gates``, and compute under them what ``shrink_encoder`` makes of them for good. This file travels with every
saved encoder as its remote code.

Dimensions: B batch, L tokens, D hidden, N layers, C labels.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import QuestionAnsweringModelOutput, SequenceClassifierOutput

from adasearch.encoder_parts import Encoder, EncoderConfig, EncoderLayer
from adasearch.gate_values import GateValues

__all__ = [
    "Encoder", "EncoderConfig", "EncoderForQuestionAnswering", "EncoderForSequenceClassification", "EncoderLayer",
    "EncoderPreTrainedModel",
]  # fmt: skip


class EncoderPreTrainedModel(PreTrainedModel):
    """Loading, saving and initialisation, which is transformers' own (``initializer_range``)."""

    config_class = EncoderConfig
    base_model_prefix = "encoder"
    main_input_name = "input_ids"
    _supports_sdpa = True

    def get_input_embeddings(self) -> nn.Embedding:
        """The word table."""
        return self.encoder.embeddings.word_embeddings

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        """Replace the word table."""
        self.encoder.embeddings.word_embeddings = value


class ClassificationHead(nn.Module):
    """The first token's state -> logits, as BERT, DistilBERT or RoBERTa do."""

    def __init__(self, config: EncoderConfig):
        super().__init__()
        self.kind = config.head_kind
        self.dense = nn.Linear(config.hidden_size, config.pooler_size)
        self.dropout = nn.Dropout(config.head_dropout)
        self.classifier = nn.Linear(config.pooler_size, config.num_labels)

    def forward(self, x_BLD: Tensor) -> Tensor:
        """(B, L, D) -> (B, C)."""
        first_BD = x_BLD[:, 0]
        dense = self.dense(self.dropout(first_BD) if self.kind == "roberta" else first_BD)
        return self.classifier(self.dropout(dense.relu() if self.kind == "distilbert" else dense.tanh()))


class EncoderForSequenceClassification(EncoderPreTrainedModel):
    """The encoder as a sequence classifier; regression is one label, several labels at once are a ``problem_type``."""

    def __init__(self, config: EncoderConfig):
        super().__init__(config)
        self.encoder = Encoder(config)
        self.head = ClassificationHead(config)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        labels: Tensor | None = None,
        gates: GateValues | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> SequenceClassifierOutput | tuple[Any, ...]:
        """Logits (B, C) and, given labels, their loss by ``config.problem_type`` (unset: by their number and type).

        ``hidden_states``, if asked for, are N + 1 states (B, L, D): [0] the embeddings', [i + 1] layer i's.
        """
        states = self.encoder(input_ids, attention_mask, token_type_ids, gates)
        logits = self.head(states[-1])
        loss = None if labels is None else self._loss(logits, labels)
        asked = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        output = SequenceClassifierOutput(loss=loss, logits=logits, hidden_states=tuple(states) if asked else None)
        return output.to_tuple() if return_dict is False else output

    def _loss(self, logits_BC: Tensor, labels: Tensor) -> Tensor:
        kind = self.config.problem_type
        if kind is None:
            is_class = not labels.is_floating_point()
            kind = "regression" if logits_BC.shape[1] == 1 else "single_label_classification" if is_class else ""
        if kind == "regression":
            return F.mse_loss(logits_BC.view(labels.shape), labels.to(logits_BC.dtype))
        if kind == "single_label_classification":
            return F.cross_entropy(logits_BC, labels)
        return F.binary_cross_entropy_with_logits(logits_BC, labels.to(logits_BC.dtype))


class EncoderForQuestionAnswering(EncoderPreTrainedModel):
    """The encoder with a start and an end logit for every token."""

    def __init__(self, config: EncoderConfig):
        super().__init__(config)
        self.encoder = Encoder(config)
        self.dropout = nn.Dropout(config.head_dropout)
        self.qa_outputs = nn.Linear(config.hidden_size, 2)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        start_positions: Tensor | None = None,
        end_positions: Tensor | None = None,
        gates: GateValues | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> QuestionAnsweringModelOutput | tuple[Any, ...]:
        """Start and end logits (B, L) and, given both positions (B,), the mean of their cross-entropies.

        Positions outside the text are left out of the loss, as Hugging Face's models do.
        """
        states = self.encoder(input_ids, attention_mask, token_type_ids, gates)
        start_BL, end_BL = self.qa_outputs(self.dropout(states[-1])).unbind(-1)
        loss = None
        if start_positions is not None and end_positions is not None:
            L = start_BL.shape[1]
            losses = [
                F.cross_entropy(logits_BL, positions.clamp(0, L), ignore_index=L)
                for logits_BL, positions in ((start_BL, start_positions), (end_BL, end_positions))
            ]
            loss = (losses[0] + losses[1]) / 2
        asked = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        output = QuestionAnsweringModelOutput(
            loss=loss, start_logits=start_BL, end_logits=end_BL, hidden_states=tuple(states) if asked else None
        )
        return output.to_tuple() if return_dict is False else output
