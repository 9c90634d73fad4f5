"""Questions on random contexts, a tokenizer and a tiny reader for them."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import torch
from tiny_words import PIECES, random_text, tokenizer_of
from transformers import BertConfig, BertForQuestionAnswering, PreTrainedTokenizerBase

from adasearch.questions import Questions


def random_questions(count: int, seed: int = 0, words: tuple[int, int] = (1, 40)) -> Questions:
    """Contexts of words known, split and unknown; each answer is one to three of the context's words."""
    rng = random.Random(seed)
    texts, contexts, answers, starts = [], [], [], []
    for _ in range(count):
        context = random_text(rng, rng.randint(*words))
        if rng.random() < 0.3:
            context = context.replace(" ", "   ", 1)  # repeated blanks shift characters, not pieces
        spans = _words(context)
        first = rng.randrange(len(spans))
        last = min(len(spans) - 1, first + rng.randrange(3))
        start, end = spans[first][0], spans[last][1]
        texts.append(random_text(rng, rng.randint(1, 5)))
        contexts.append(context)
        answers.append((context[start:end],))
        starts.append(start)
    return Questions(texts, contexts, answers=answers, starts=starts, ids=[f"q{n}" for n in range(count)])


def _words(context: str) -> list[tuple[int, int]]:
    spans, place = [], 0
    for word in context.split():
        begin = context.index(word, place)
        spans.append((begin, begin + len(word)))
        place = begin + len(word)
    return spans


def find_questions(count: int, seed: int = 0) -> Questions:
    """Questions that a tiny reader learns in seconds: the answer is always "actor"."""
    rng = random.Random(seed)
    contexts = []
    for _ in range(count):
        words = [rng.choice(("film", "good", "the", "was", "plot", "bad")) for _ in range(rng.randint(3, 9))]
        words.insert(rng.randint(0, len(words)), "actor")
        contexts.append(" ".join(words))
    return Questions(
        ["the film"] * count, contexts, answers=[("actor",)] * count, starts=[context.index("actor") for context in contexts],
        ids=[str(n) for n in range(count)],
    )  # fmt: skip


def tiny_reader(seed: int = 0, **settings: Any) -> BertForQuestionAnswering:
    """Two layers of width 16 with dropout, so that random numbers matter."""
    torch.manual_seed(seed)
    sizes = {
        "vocab_size": len(PIECES), "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32,
        "max_position_embeddings": 64, "pad_token_id": PIECES.index("[PAD]"), "sep_token_id": PIECES.index("[SEP]"),
    }  # fmt: skip
    return BertForQuestionAnswering(BertConfig(**{**sizes, **settings}))


def save_reader(folder: Path, **settings: Any) -> Path:
    """A reader whose weights are large enough to be sure of something, and its tokenizer."""
    tiny_reader(**{"initializer_range": 0.3, **settings}).eval().save_pretrained(folder)
    tokenizer_with_limit(64).save_pretrained(folder)
    return folder


def tokenizer_with_limit(limit: int = 512) -> PreTrainedTokenizerBase:
    """``tiny_words``' tokenizer for a model of so many positions."""
    tokenizer = tokenizer_of()
    tokenizer.model_max_length = limit
    return tokenizer
