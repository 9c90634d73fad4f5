"""Texts: a split of them with what is known of each, cut into sentences, and turned into word pieces once.

Dimensions: N examples, C labels.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from adasearch.errors import ConfigError, ModelError
from adasearch.files import fingerprint, read_json, write_json
from adasearch.progress import Progress
from adasearch.tokens import Examples, TokenStore

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CHUNK_TEXTS = 2_000
_ABBREVIATION = r"(?<!\b[A-Z]\.)(?<!\bMr\.)(?<!\bMs\.)(?<!\bDr\.)(?<!\bSt\.)(?<!\bvs\.)(?<!\bMrs\.)"
_SENTENCE_END = re.compile(rf"""(?<=[.!?]){_ABBREVIATION}\s+|(?<=[.!?]["')\]])\s+|\n+""")


@dataclass
class Split:
    """Texts (N) or pairs of texts, with what is known of them.

    ``labels``: single_label int64 (N,), -100 = unknown; regression float32 (N,), multi_label float32 (N, C) of 0 and 1,
    NaN = unknown. ``soft_labels``: float32 (N, C) probabilities.
    """

    texts: list[str]
    pairs: list[str] | None = None
    labels: np.ndarray | None = None
    soft_labels: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def gold(self) -> tuple[Any, ...]:
        """What is known of the texts, as ``fingerprint`` takes it."""
        return self.labels, self.soft_labels

    def select(self, indices: Sequence[int] | np.ndarray) -> Split:
        """The named examples, in that order."""
        rows = np.asarray(indices, dtype=np.int64)
        texts, pairs = (values and [values[row] for row in rows] for values in (self.texts, self.pairs))
        labels, soft = (array if array is None else array[rows] for array in (self.labels, self.soft_labels))
        return Split(texts, pairs, labels, soft)


def split_sentences(texts: Iterable[str], *, shortest: int = 3, longest: int = 60) -> list[str]:
    """Sentences of ``shortest`` to ``longest`` words, HTML line breaks taken for paragraph ends. Rules, no model.

    A text without any such (a query, a list, prose without marks) is kept whole.
    """
    sentences = []
    for text in texts:
        parts = [part.split() for part in _SENTENCE_END.split(re.sub(r"(<br\s*/?>\s*)+", "\n", text))]
        kept = [words for words in parts if shortest <= len(words) <= longest] or [text.split()]
        sentences += [" ".join(words) for words in kept if words]
    return sentences


def tokenizer_rules(tokenizer: PreTrainedTokenizerBase, *columns: Sequence[str] | None) -> dict[str, Any]:
    """All that decides about the tokens of a text, of those in ``columns``. Raises ``ModelError`` for a tokenizer without a fast version."""
    if not tokenizer.is_fast:
        raise ModelError(f"tokenizer {tokenizer.name_or_path!r} ({type(tokenizer).__name__}) has no fast version")
    rules = json.loads(tokenizer.backend_tokenizer.to_str())
    for key in ("truncation", "padding"):  # left over from the last call
        rules.pop(key, None)
    names = [re.escape(token["content"]) for token in rules["added_tokens"] if token["special"]]
    if tokenizer.split_special_tokens and names:
        special = re.compile("|".join(names), re.IGNORECASE)
        if any(special.search(text) for texts in columns for text in texts or ()):
            rules["split_special_tokens"] = True  # of other texts it changes nothing: what was kept of them still holds
    return rules


def served_pieces(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], pairs: Sequence[str] | None, limit: int
) -> tuple[list[Sequence[int]], np.ndarray]:
    """Word pieces of texts that are served, cut to ``limit``, and which texts were cut: (N,) bool.

    What calling the tokenizer does too, without the offsets and lists that nobody asks for: in 2/5 of the time. A fast tokenizer is
    left with that limit.
    """
    if not len(texts):
        return [], np.zeros(0, dtype=bool)
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:  # a tokenizer written in Python
        second = list(pairs) if pairs is not None else None
        ids = tokenizer(list(texts), second, truncation=True, max_length=limit)["input_ids"]
        return ids, np.array([len(row) >= limit for row in ids])  # it does not say; one that fits exactly is counted, too
    backend.no_padding()
    backend.no_truncation() if limit > 2**31 else backend.enable_truncation(limit, strategy="longest_first", direction=tokenizer.truncation_side)
    found = backend.encode_batch_fast(list(texts) if pairs is None else list(zip(texts, pairs)))
    return [encoding.ids for encoding in found], np.array([bool(encoding.overflowing) for encoding in found])


def tokenize(
    split: Split, tokenizer: PreTrainedTokenizerBase, max_length: int, *,
    cache: Path, name: str, progress: Progress | None = None,
) -> tuple[TokenStore, int]:
    """All texts as word pieces with special tokens, mapped from ``cache``, and how many were cut to ``max_length``.

    Pairs are cut longest text first. Done once: the files' name holds a fingerprint of texts, tokenizer and length.
    Raises ``ModelError`` for a tokenizer without a fast version, ``ConfigError`` when it cannot take ``max_length``.
    """
    rules = tokenizer_rules(tokenizer, split.texts, split.pairs)
    if max_length > tokenizer.model_max_length:
        most = f"tokenizer {tokenizer.name_or_path!r} takes up to {tokenizer.model_max_length}"
        raise ConfigError(f"max_seq_length: {max_length} is too long; {most}")
    name = f"{name}-{fingerprint(split.texts, split.pairs, rules, max_length)}"
    if (store := TokenStore.load(cache, name)) is not None:
        return store, read_json(cache / f"{name}.json")["cut"]
    cut = 0

    def sequences(report: Callable[..., None]) -> Iterable[list[int]]:
        nonlocal cut
        for start in range(0, len(split), CHUNK_TEXTS):
            chunk = slice(start, start + CHUNK_TEXTS)
            batch = tokenizer(
                split.texts[chunk], split.pairs and split.pairs[chunk], truncation="longest_first",
                max_length=max_length, padding=False, return_attention_mask=False, return_token_type_ids=False,
            )  # fmt: skip
            cut += sum(bool(encoding.overflowing) for encoding in batch.encodings)
            yield from batch["input_ids"]
            report(min(start + CHUNK_TEXTS, len(split)), cut=cut)

    progress = progress or Progress()
    progress.stage(f"tokenize {name.rsplit('-', 1)[0]}", total=len(split))
    store = TokenStore.from_lists(sequences(progress.step))
    write_json(cache / f"{name}.json", {"texts": len(store), "cut": cut, "max_length": max_length})
    store.save(cache, name)  # last: its presence says that all is there
    return TokenStore.load(cache, name), cut


def tokenize_splits(
    splits: Mapping[str, Split], tokenizer: PreTrainedTokenizerBase, max_length: int, *, cache: Path, notes: list[str], progress: Progress
) -> list[Examples]:
    """``tokenize`` for each split, with its labels; adds to ``notes`` how many texts were cut."""
    examples = []
    for name, split in splits.items():
        store, cut = tokenize(split, tokenizer, max_length, cache=cache, name=name, progress=progress)
        examples.append(Examples(store, tokenizer.pad_token_id, split.labels))
        if cut:
            notes.append(f"{name}: {cut} of {len(split)} texts are longer than max_seq_length {max_length} and were cut")
    return examples
