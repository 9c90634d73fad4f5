"""A WordPiece tokenizer with pieces of every kind, special ones in the middle of the ids, and random texts for it."""

from __future__ import annotations

import random
import string
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
CHARACTERS = (*string.ascii_lowercase, ".", "!", "é")
WHOLE = ("film", "films", "play", "playing", "un", "good", "the", "was", "act", "actor", "bad", "better", "best", "plot")
INNER = ("##ing", "##ed", "##er", "##play", "##able", "##or", "##ly", "##s", "##t")
PIECES = ("[unused0]", *WHOLE, "[PAD]", *CHARACTERS, "[UNK]", "[CLS]", "[SEP]", "[MASK]", *INNER,
          *("##" + c for c in CHARACTERS if "##" + c not in INNER))  # fmt: skip
WORDS = ("film", "films", "filmed", "play", "player", "played", "playing", "unplayable", "good", "the", "was", "actor",
         "actors", "acting", "badly", "better", "best", "plots", "zebra", "café", ".", "!")  # fmt: skip


def oracle(pieces: Sequence[str]) -> Tokenizer:
    """A WordPiece with these pieces made from nothing, lower case as BERT's."""
    ids = {piece: index for index, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.WordPiece(ids, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(strip_accents=False)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", ids["[CLS]"]), ("[SEP]", ids["[SEP]"])],
    )  # fmt: skip
    tokenizer.add_special_tokens([name for name in SPECIAL if name in ids])
    return tokenizer


def wrapped(pieces: Sequence[str], **settings: Any) -> PreTrainedTokenizerFast:
    """The oracle as transformers has it."""
    names = {f"{name.strip('[]').lower()}_token": name for name in SPECIAL if name in pieces}
    return PreTrainedTokenizerFast(tokenizer_object=oracle(pieces), **names, **settings)


def tokenizer_of(kind: str = "fast") -> PreTrainedTokenizerBase:
    """``PIECES`` as transformers has them: "fast" around the oracle, "bert" by BERT's own class."""
    if kind == "bert":
        return BertTokenizer(vocab={piece: i for i, piece in enumerate(PIECES)}, strip_accents=False, model_max_length=512)
    return wrapped(PIECES, model_max_length=512)


def random_text(rng: random.Random, words: int = 6) -> str:
    """Words of the vocabulary, words it must split, and now and then one that it does not know."""
    made = []
    for _ in range(words):
        kind = rng.random()
        if kind < 0.6:
            made.append(rng.choice(WORDS))
        elif kind < 0.9:
            made.append("".join(rng.choices(string.ascii_lowercase, k=rng.randint(1, 6))))
        else:
            made.append(rng.choice(("Ω", "filmΩ", "日本", "naïve", "x" * 120, "PLAYED", "un-play")))
    return " ".join(made)


def save_words(folder: Path, kind: str = "fast") -> Path:
    """The tokenizer's files."""
    tokenizer_of(kind).save_pretrained(folder)
    return folder
