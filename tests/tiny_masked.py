"""Tiny masked language models built from a config, and random blocks for them."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from tiny_words import PIECES, random_text, save_words
from transformers import BertConfig, BertForMaskedLM, PreTrainedModel

from adasearch.masked_language import MaskedBlocks, Masking, Wrap
from adasearch.tokens import TokenStore

Model = TypeVar("Model", bound=PreTrainedModel)
VOCABULARY = 40
PAD, CLS, SEP, MASK = 0, 2, 3, 4


def tiny_bert(kind: type[Model], seed: int = 0, **settings: Any) -> Model:
    """Two layers of width 16 with dropout, so that random numbers matter."""
    torch.manual_seed(seed)
    sizes = {"vocab_size": VOCABULARY, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    return kind(BertConfig(**{**sizes, "max_position_embeddings": 16, "initializer_range": 0.2, **settings}))


def tiny_blocks(count: int = 12, length: int = 8) -> MaskedBlocks:
    """Blocks of one length but for the last, between two special tokens."""
    offsets = np.append(np.arange(0, count * length, length), count * length - length // 2)
    ids = np.random.default_rng(0).integers(5, VOCABULARY, offsets[-1]).astype(np.int32)
    return MaskedBlocks(TokenStore(ids, offsets), Wrap((CLS,), (SEP,)), PAD)


def tiny_masking(share: float = 0.3, seed: int = 7) -> Masking:
    """For ``VOCABULARY``."""
    return Masking(MASK, VOCABULARY, (PAD, CLS, SEP, MASK), share, seed)


def save_masked(folder: Path, kind: type[PreTrainedModel] = BertForMaskedLM, **settings: Any) -> Path:
    """A model and the word-piece tokenizer, as transformers writes them."""
    tiny_bert(kind, vocab_size=len(PIECES), **settings).save_pretrained(folder)
    save_words(folder)
    return folder


def save_lines(path: Path, lines: int, seed: int = 0) -> str:
    """A file of random sentences."""
    rng = random.Random(seed)
    path.write_text("\n".join(random_text(rng) for _ in range(lines)), encoding="utf-8")
    return str(path)
