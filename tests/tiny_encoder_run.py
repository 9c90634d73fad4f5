"""A run that makes a transformer smaller, in miniature."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tiny_questions import find_questions, save_reader
from tiny_task import shared_settings
from transformers import BertForQuestionAnswering

from adasearch.config import FinetuneConfig
from adasearch.earlybert_config import EarlyBertConfig, TicketConfig, TrainConfig
from adasearch.question_config import QuestionConfig


def tiny_settings(folder: Path, **changes: Any) -> dict[str, Any]:
    """Settings that every method's run shares; the files are made in ``folder``."""
    tuning = FinetuneConfig(epochs=4, learning_rate=5e-3, batch_size=16, warmup=0.1)
    return {**shared_settings(folder), "model": str(folder / "encoder"), "finetune": tuning, **changes}


def tiny_earlybert(folder: Path, **changes: Any) -> EarlyBertConfig:
    """EarlyBERT on a two-layer BERT of random weights, with a search of at most an epoch of seven steps."""
    settings = {
        "ticket": TicketConfig(learning_rate=1e-3, batch_size=16, head_ratio=0.5, check_every=1, threshold=1.0, window=3),
        "train": TrainConfig(epochs=4, learning_rate=5e-3, batch_size=16, warmup=0.1),
    }
    return EarlyBertConfig(**tiny_settings(folder, **{**settings, **changes}))


def question_settings(folder: Path) -> dict[str, Any]:
    """What such a run's settings are for question answering: forty questions, and a reader without a head to cut down."""
    for name, count in (("questions", 40), ("validation", 8)):
        found = find_questions(count, seed=count)
        columns = zip(found.ids, found.texts, found.contexts, found.answers, found.starts)
        rows = [
            {"id": key, "question": text, "context": context, "answers": {"text": list(answers), "answer_start": [start]}}
            for key, text, context, answers, start in columns
        ]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    BertForQuestionAnswering.from_pretrained(save_reader(folder / "base")).bert.save_pretrained(folder / "base")
    return {
        "problem_type": "question_answering", "train_file": str(folder / "questions.jsonl"),
        "validation_file": str(folder / "validation.jsonl"), "model": str(folder / "base"),
        "max_seq_length": EarlyBertConfig.max_seq_length,  # of other tasks: questions have lengths of their own
        "question": QuestionConfig(max_seq_length=32, doc_stride=8, max_question_length=10, glance=5),
    }  # fmt: skip
