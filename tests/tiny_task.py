"""A whole problem in miniature: a two-layer BERT of random weights with a word tokenizer, files of labelled texts, a space."""

from __future__ import annotations

import csv
import random
from pathlib import Path
from typing import Any

import torch
from tiny_words import wrapped
from transformers import BertConfig, BertModel

from adasearch.config import BenchConfig, FinetuneConfig, RetrainConfig, RunConfig, SearchConfig, TransferConfig

GOOD, BAD = ("good", "great", "lovely", "fine"), ("bad", "awful", "dull", "poor")
FILLERS = ("the", "film", "plot", "was", "and", "cast", "very", "scene", "it", "music")
WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *GOOD, *BAD, *FILLERS)

SPACE = """
name: tiny
cells: [1, 2]
nodes: 2
sample_edges: true
widths: [8, 16]
operations: [conv3, sep_conv3, max_pool3, skip]
macro: {attention_head_size: 8, position_embeddings: false}
"""


def write_teacher(folder: Path) -> Path:
    """An encoder without a head, so that it has to be fine-tuned, and its tokenizer."""
    wrapped(WORDS, model_max_length=32).save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(WORDS), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=32,
    )  # fmt: skip
    BertModel(config).save_pretrained(folder)
    return folder


def rows(count: int, seed: int) -> list[dict[str, str]]:
    """Texts of which one word decides."""
    rng = random.Random(seed)
    made = []
    for index in range(count):
        words = rng.choices(FILLERS, k=rng.randint(3, 9))
        words.insert(rng.randrange(len(words)), rng.choice(GOOD if index % 2 else BAD))
        made.append({"text": " ".join(words), "label": "positive" if index % 2 else "negative"})
    return made


def write_csv(path: Path, count: int, seed: int) -> str:
    """``rows`` as a file; returns its name."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["text", "label"])
        writer.writeheader()
        writer.writerows(rows(count, seed))
    return str(path)


def shared_settings(folder: Path) -> dict[str, Any]:
    """What runs of every method have in common; the files are made, and ``folder / "encoder"``, which each names in its way."""
    if not (folder / "encoder").exists():
        write_teacher(folder / "encoder")
    return {
        "task": "tiny",
        "train_file": write_csv(folder / "train.csv", 120, 1),
        "validation_file": write_csv(folder / "validation.csv", 40, 2),
        "max_seq_length": 16,
        "output_dir": str(folder / "run"),
        "cpu": True,
        "threads": 1,
        "mixed_precision": "no",
        "evaluate": 1,
        "quiet": True,
        "bench": BenchConfig(
            runtime="torch", seq_lengths=[8], batch_sizes=[1], repeats=2, warmup=1, reference=False, cold_starts=0, stream_texts=4
        ),
    }


def tiny_run(folder: Path, **changes: Any) -> RunConfig:
    """A run that takes seconds: every stage, few steps. The files are made in ``folder``."""
    space = folder / "tiny.yaml"
    space.write_text(SPACE, encoding="utf-8")
    settings: dict[str, Any] = {
        "teacher": str(folder / "encoder"),
        "space": str(space),
        "finetune": FinetuneConfig(epochs=3, learning_rate=1e-3, batch_size=16),
        "search": SearchConfig(steps=12, batch_size=16),
        "transfer": TransferConfig(size=60),
        "retrain": RetrainConfig(steps=12, batch_size=16),
    }
    return RunConfig(**{**shared_settings(folder), **settings, **changes})
