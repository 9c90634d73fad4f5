"""A question-answering model's folder at work: questions and contexts in, answers out. What ``predict`` uses for such a folder.

Dimensions: N questions, T tokens of all windows, B batch, L tokens of the longest window in a batch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from transformers import AutoConfig, AutoTokenizer

import adasearch
from adasearch.answers import Answer, best_answers
from adasearch.classifier import open_runtime, shortest
from adasearch.errors import ConfigError, ModelError, loading
from adasearch.model_inputs import positions_of, segment_ids
from adasearch.progress import Progress
from adasearch.question_answering import QUESTION, QuestionExamples, cut_windows
from adasearch.question_config import ATTRIBUTE, QuestionConfig
from adasearch.questions import COLUMNS, Questions
from adasearch.runtime_base import answers_questions

SCHEMA = (("prediction", pa.string()), ("probability", pa.float32()), ("answer_start", pa.int64()), ("answer_end", pa.int64()))


@dataclass(frozen=True)
class SpanAnswers:
    """Answers to N questions; ``cut`` questions were longer than the model reads (contexts never are: they have windows)."""

    answers: list[Answer]
    cut: int
    is_escalated_N: None = None  # a cascade has labels

    def rows(self) -> list[dict[str, Any]]:
        """A row an answer, by the names of ``SCHEMA``; characters of the context, -1 for a question without an answer."""
        probabilities = shortest(np.array([answer.probability for answer in self.answers]))
        places = [(answer.start, answer.end) if answer.text else (-1, -1) for answer in self.answers]
        return [
            {"prediction": answer.text, "probability": probability, "answer_start": start, "answer_end": end}
            for answer, probability, (start, end) in zip(self.answers, probabilities, places)
        ]


class QuestionAnswerer:
    """Questions in, answers out; what ``classifier.TextClassifier`` is for labels.

    Attributes: ``runtime`` what computes the logits; ``windows`` how contexts are cut and answers picked: as the model was scored
    where its config says so, else as published; ``limit`` pieces read of a question.
    """

    labels: Sequence[str] = ()

    def __init__(
        self, model_dir: Path, *, runtime: str = "auto", precision: str | None = None, threads: int | None = None,
        batch_size: int = 32, progress: Progress | None = None,
    ):  # fmt: skip
        """Load what is needed. Raises ``ConfigError`` for a wrong setting, ``ModelError`` for a folder that is damaged."""
        self.batch_size = batch_size
        self.runtime = open_runtime(model_dir, runtime, precision, threads, progress)
        with loading(f"{model_dir}: no tokenizer can be loaded", most=None):
            self.tokenizer = AutoTokenizer.from_pretrained(model_dir, local_files_only=True)
        if not self.tokenizer.is_fast:
            raise ModelError(f"{model_dir}: its tokenizer has no fast version, which alone knows the characters of a word piece")
        config = AutoConfig.from_pretrained(model_dir, local_files_only=True)
        limits = (self.tokenizer.model_max_length, positions_of(config))
        try:
            usual = QuestionConfig.load_saved(saved) if (saved := getattr(config, ATTRIBUTE, None)) else QuestionConfig()
        except ConfigError as error:
            raise ModelError(f"{model_dir}: config.json: {error}") from error
        self.windows = windows_within(min(limit for limit in limits if limit), usual)
        self.limit = self.windows.max_question_length

    def answer(self, questions: Sequence[str], contexts: Sequence[str], tell: Callable[[int], None] | None = None) -> SpanAnswers:
        """The likeliest answer to each question in its context, in their order."""
        examples = cut_windows(Questions(list(questions), list(contexts)), self.tokenizer, self.windows)
        logits_T2 = self._logits(examples, tell)
        return SpanAnswers(best_answers(logits_T2, examples, self.windows), examples.cut_questions)

    def _logits(self, examples: QuestionExamples, tell: Callable[[int], None] | None) -> np.ndarray:
        """(T, 2). ``tell`` hears of whole questions, so of as many as there are windows at most."""
        offsets = examples.tokens.offsets
        logits_T2 = np.empty((int(offsets[-1]), 2), np.float32)
        left = np.bincount(examples.windows_W5[:, QUESTION], minlength=len(examples.questions))
        for indices, batch in examples.in_order(self.batch_size):
            types_BL = segment_ids(batch["input_ids"], self.tokenizer, is_pair=True)
            logits_BL2 = self.runtime(batch["input_ids"].numpy(), batch["attention_mask"].numpy(), types_BL.numpy())
            for row, index in enumerate(indices):
                logits_T2[offsets[index] : offsets[index + 1]] = logits_BL2[row, : offsets[index + 1] - offsets[index]]
            np.subtract.at(left, examples.windows_W5[indices, QUESTION], 1)
            if tell is not None:
                tell(int((left == 0).sum()))
        return logits_T2


def windows_within(limit: int, usual: QuestionConfig) -> QuestionConfig:
    """The usual settings; for a model that reads fewer tokens, question and overlap get their share of what it does."""
    if limit >= usual.max_seq_length:
        return usual
    share = limit / usual.max_seq_length
    sizes = {name: max(1, int(getattr(usual, name) * share)) for name in ("doc_stride", "max_question_length")}
    return dataclasses.replace(usual, max_seq_length=limit, **sizes)


def is_reader(model_dir: Path) -> bool:
    """Whether a folder holds a question-answering model; no, where its config cannot be read: whoever loads it says why."""
    adasearch.register_student()
    try:
        return answers_questions(AutoConfig.from_pretrained(model_dir, local_files_only=True))
    except (OSError, ValueError, KeyError):
        return False


def question_columns(text_column: str, text_pair_column: str | None) -> tuple[str, str]:
    """Columns of questions and contexts: SQuAD's, unless others were named."""
    return COLUMNS["text_column"] if text_column == "text" else text_column, text_pair_column or COLUMNS["text_pair_column"]
