"""The settings of extractive question answering: how a long context is cut into windows and an answer picked from them."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from adasearch.errors import ConfigError
from adasearch.settings import check_range, to_dict

ATTRIBUTE = "question"  # of a saved reader's config: how it was asked when it was scored


@dataclass
class QuestionConfig:
    """Windows over a context, and the answers taken from them. The defaults are those of BERT's own script for SQuAD.

    Args:
        max_seq_length: word pieces of a window at most, question and special tokens included.
        doc_stride: pieces of the context that two windows after each other share, as Hugging Face's scripts count it
            (BERT's own counts the pieces between two beginnings).
        max_question_length: longer questions are cut to so many pieces.
        n_best: so many likeliest starts and so many likeliest ends of a window are paired.
        max_answer_length: pieces of an answer at most.
        glance: so many validation questions, evenly spread, are scored while a model trains; all are in the end.
    """

    max_seq_length: int = 384
    doc_stride: int = 128
    max_question_length: int = 64
    n_best: int = 20
    max_answer_length: int = 30
    glance: int = 1_000


    def saved(self) -> dict[str, Any]:
        """What whoever serves a reader needs to ask as was asked when it was scored; ``load_saved`` reads it."""
        return {name: value for name, value in to_dict(self).items() if name != "glance"}

    @classmethod
    def load_saved(cls, saved: Any) -> QuestionConfig:
        """Settings that an older version did not know are at their defaults. Raises ``ConfigError`` for what ``saved`` did not make."""
        names = [field.name for field in dataclasses.fields(cls) if field.name != "glance"]
        if not isinstance(saved, dict) or not set(saved) <= set(names) or not all(type(value) is int for value in saved.values()):
            raise ConfigError(f"{ATTRIBUTE}: {saved!r} are no settings of windows; choices: whole numbers for {', '.join(names)}")
        check_questions(config := cls(**saved), f"{ATTRIBUTE}.")
        return config


def check_questions(config: QuestionConfig, where: str = "") -> None:
    """Check what can be wrong without a tokenizer; raises ``ConfigError``. ``where`` stands before the settings' names."""
    for name, low, high in (
        ("max_seq_length", 8, 1 << 20), ("doc_stride", 0, config.max_seq_length - 1), ("max_question_length", 1, 1 << 20),
        ("n_best", 1, 1 << 20), ("max_answer_length", 1, 1 << 20), ("glance", 1, 1 << 30),
    ):  # fmt: skip
        check_range(f"{where}{name}", getattr(config, name), low, high)
