"""Question answering for transformers that are made smaller on it: ``EncoderProblem`` with windows, spans and answers.

Dimensions: W windows, T tokens of all windows, B batch, L tokens.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.modeling_outputs import ModelOutput

from adasearch.answers import best_answers, score_answers
from adasearch.encoder import from_hugging_face
from adasearch.encoder_layers import EncoderForQuestionAnswering
from adasearch.encoder_problem import Batch, EncoderProblem
from adasearch.files import fingerprint
from adasearch.question_answering import QuestionExamples
from adasearch.question_config import ATTRIBUTE, QuestionConfig
from adasearch.reader import Reader, cached_spans, load_reader, spans_of
from adasearch.runtimes import Runtime
from adasearch.span_objectives import span_loss


@dataclass
class QuestionProblem(EncoderProblem):
    """A task of questions. Its splits are ``QuestionExamples``, one example a window, and logits are a token's, (T, 2).

    ``validation`` is a part of the validation questions, enough for a glance; ``held_out`` is whole. ``windows`` says how
    contexts were cut and answers are picked. Every model has them in its config, which goes wherever the model goes: who serves it
    asks as it was asked here.
    """

    windows: QuestionConfig

    def __post_init__(self) -> None:
        self._told(self.teacher.model)

    def pretrained(self, seed: int) -> EncoderForQuestionAnswering:
        """The pre-trained encoder with a fresh head, drawn by ``seed``."""
        torch.manual_seed(seed)
        return self._told(from_hugging_face(load_reader(self.checkpoint, is_finetuned=False).model))

    def dense(self) -> EncoderForQuestionAnswering:
        """A copy of the dense fine-tuned model as our encoder. Raises ``ModelError`` when it is of another kind."""
        return self._told(super().dense())

    def load(self, folder: Path) -> PreTrainedModel:
        """A model that was saved in ``folder``, in float32 and eval mode."""
        return self._told(super().load(folder))

    def _told(self, model: PreTrainedModel) -> PreTrainedModel:
        setattr(model.config, ATTRIBUTE, self.windows.saved())
        return model

    def loss(self, output: ModelOutput, batch: Batch) -> Tensor:
        """Mean of start's and end's cross-entropy over the batch, scalar."""
        logits_B2L = torch.stack([output.start_logits, output.end_logits], 1)
        return span_loss(logits_B2L, batch["labels"], batch["attention_mask"]).mean()

    def logits(self, model: PreTrainedModel, examples: QuestionExamples, is_mixed: bool = False) -> np.ndarray:
        """Start and end logits (T, 2) of all windows' tokens."""
        return self.outputs(Reader(model.eval(), self.tokenizer).spans, examples, is_mixed)

    def graph_forward(self, runtime: Runtime) -> Callable[[Tensor, Tensor], Tensor]:
        """A runtime, whose spans are (B, L, 2), as a function of ids and mask (B, L) to (B, 2, L)."""
        forward = super().graph_forward(runtime)
        return lambda ids_BL, mask_BL: forward(ids_BL, mask_BL).mT

    def outputs(
        self, forward: Callable[[Tensor, Tensor], Tensor], examples: QuestionExamples, is_mixed: bool = False
    ) -> np.ndarray:
        """Spans (T, 2) of all windows' tokens, of which ``forward`` gives (B, 2, L)."""
        return spans_of(forward, examples, self.accelerator, is_mixed=is_mixed)

    def agreement(self, first: np.ndarray, second: np.ndarray, examples: QuestionExamples) -> float:
        """Share of the questions to which two readers' logits (T, 2) give the same answer."""
        answers = (best_answers(logits_T2, examples, self.windows) for logits_T2 in (first, second))
        return float(np.mean([one.text == other.text for one, other in zip(*answers)]))

    def scores_of(self, logits: np.ndarray, examples: QuestionExamples) -> dict[str, float]:
        """F1 and exact match as fractions."""
        return score_answers(logits, examples, self.windows)

    def teacher_logits(self) -> np.ndarray:
        """The teacher's logits (T, 2) of the training windows, computed once and mapped from files."""
        tokens = self.train.tokens
        name = f"teacher-{fingerprint(tokens.ids, tokens.offsets)}"
        forward = Reader(self.teacher.model, self.tokenizer).spans
        title = f"teacher reads {len(tokens):,} windows"
        return cached_spans(forward, self.train, self.cache, name, self.accelerator, self.progress, title)

    def taught(self) -> QuestionExamples:
        """The training windows with the teacher's logits."""
        return dataclasses.replace(self.train, teacher_logits_T2=self.teacher_logits())
