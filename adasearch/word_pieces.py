"""Texts as word-piece ids: what a vocabulary says of its pieces, a sequence taken apart and put together again.

Dimensions: V vocabulary, L tokens.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from adasearch.errors import ConfigError

UNUSED = re.compile(r"[\[<](unused|reserved|extra)[-_ ]?\w*[\]>]|madeupword\d+")  # rows no training ever touched


def pieces_of(tokenizer: Any) -> list[str]:
    """The pieces of a Hugging Face tokenizer by id, added ones included; "" where no piece has that id."""
    vocabulary = tokenizer.get_vocab()
    names = [""] * (max(vocabulary.values()) + 1)
    for name, index in vocabulary.items():
        names[index] = name
    return names


@dataclass(frozen=True)
class Pieces:
    """What augmentation must know of a vocabulary."""

    is_frame_V: np.ndarray  # bool: stands around the segments ([CLS], [SEP], [PAD], begin and end of a sequence)
    is_frozen_V: np.ndarray  # bool: never replaced, never a replacement: every special piece and the unused ones
    is_inner_V: np.ndarray  # bool: joined to the piece before it (or behind it, where ``marks_ends``)
    marks_ends: bool = False  # the vocabulary marks where words end (``</w>``, ``@@``), not where they begin or go on
    mask_token_id: int | None = None
    pad_token_id: int = 0

    @classmethod
    def from_tokenizer(cls, tokenizer: Any) -> Pieces:
        """Read a Hugging Face tokenizer's vocabulary; how it marks words is what most of its pieces show.

        WordPiece marks continuations (``##ing``), byte-level BPE and SentencePiece beginnings (``Ġthe``, ``▁the``),
        older BPEs ends (``the</w>``) or non-ends (``th@@``). A vocabulary without any such mark has one piece a word.
        """
        names = pieces_of(tokenizer)
        rules: dict[str, tuple[Callable[[str], bool], bool]] = {  # mark -> (carries it, so it is inner or so it is not)
            "##": (lambda name: name.startswith("##"), True),
            "Ġ": (lambda name: name.startswith("Ġ"), False),
            "▁": (lambda name: name.startswith("▁"), False),
            "</w>": (lambda name: name.endswith("</w>"), False),
            "@@": (lambda name: name.endswith("@@"), True),
        }
        marked = {mark: np.array([has(name) for name in names]) for mark, (has, _) in rules.items()}
        mark = max(marked, key=lambda key: int(marked[key].sum()))
        inner_V = marked[mark] == rules[mark][1] if marked[mark].any() else np.zeros(len(names), bool)
        frozen_V = np.array([name == "" or UNUSED.fullmatch(name) is not None for name in names])
        frozen_V[list(tokenizer.all_special_ids)] = True
        frame_V = np.zeros(len(names), bool)
        for kind in ("cls", "sep", "pad", "bos", "eos"):  # not [UNK] and [MASK]: they stand inside
            if getattr(tokenizer, f"{kind}_token_id", None) is not None:
                frame_V[getattr(tokenizer, f"{kind}_token_id")] = True
        pad = tokenizer.pad_token_id
        return cls(
            frame_V, frozen_V | frame_V, inner_V & ~frozen_V, mark in ("</w>", "@@"),
            getattr(tokenizer, "mask_token_id", None), 0 if pad is None else pad,
        )  # fmt: skip

    def word_starts(self, segment: np.ndarray) -> np.ndarray:
        """Positions at which a word begins, (words,); 0 is always one of them, since a segment begins with a word."""
        joined = self.is_inner_V[segment[:-1] if self.marks_ends else segment[1:]]
        return np.concatenate([[0], np.flatnonzero(~joined) + 1]) if len(segment) else np.zeros(0, np.int64)


@dataclass(frozen=True)
class Text:
    """A sequence taken apart: ``frame[0] segments[0] frame[1] … segments[-1] frame[-1]``."""

    frame: list[np.ndarray]
    segments: list[np.ndarray]  # none of them empty

    def rebuild(self, segments: list[np.ndarray] | None = None) -> np.ndarray:
        """The sequence again, (L,) int32; with other ``segments`` in the same frame where they are given."""
        inside = self.segments if segments is None else segments
        parts = [part for pair in zip(self.frame, inside) for part in pair]
        return np.concatenate([*parts, self.frame[-1]]).astype(np.int32, copy=False)


def split_text(ids: np.ndarray, pieces: Pieces) -> Text:
    """Take ``[CLS] A [SEP]``, ``[CLS] A [SEP] B [SEP]``, ``<s> A </s></s> B </s>``… apart; ``rebuild`` undoes it."""
    is_frame = pieces.is_frame_V[ids]
    cuts = np.flatnonzero(is_frame[1:] != is_frame[:-1]) + 1
    runs = np.split(ids, cuts)
    if len(ids) and not is_frame[0]:
        runs.insert(0, ids[:0])
    if len(runs) % 2 == 0:  # ends with a segment, not with a frame
        runs.append(ids[:0])
    return Text(runs[::2], runs[1::2])


def shorten(ids: np.ndarray, pieces: Pieces, max_length: int) -> np.ndarray:
    """Cut pieces off the end of the longest segment until the sequence has at most ``max_length``, specials included.

    Raises ``ConfigError`` when the specials alone leave no room for one piece of each segment.
    """
    if len(ids) <= max_length:
        return ids
    text = split_text(ids, pieces)
    lengths = [len(segment) for segment in text.segments]
    room = max_length - (len(ids) - sum(lengths))
    if room < len(lengths):
        raise ConfigError(
            f"max_seq_length: {max_length} leaves no room between {len(ids) - sum(lengths)} special pieces; "
            f"choices: {len(ids) - sum(lengths) + len(lengths)} or more"
        )
    while sum(lengths) > room:
        lengths[int(np.argmax(lengths))] -= 1
    return text.rebuild([segment[:length] for segment, length in zip(text.segments, lengths)])
