"""Language-modelling data: texts as blocks of tokens, pairs of texts as sources and targets, batches a model can be called with.

Dimensions: N blocks or pairs, T tokens of all of them, B batch, L tokens of the longest in a batch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from adasearch.errors import ConfigError, ModelError
from adasearch.files import fingerprint, read_json, write_json
from adasearch.language_objectives import UNSCORED, shift_right
from adasearch.progress import Progress
from adasearch.texts import CHUNK_TEXTS, tokenizer_rules
from adasearch.tokens import TokenStore

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from adasearch.corpora import Corpus, Pairs


@dataclass(frozen=True)
class TokenBlocks:
    """One stream of tokens cut into blocks of equal length (the last may be shorter), for a causal model."""

    tokens: TokenStore
    pad_token_id: int
    words: int  # of the texts, separated by blanks: what a perplexity per word divides by

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def stream_T(self) -> np.ndarray:
        """All ids in their order, (T,) int32."""
        return self.tokens.ids

    def collate(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """``input_ids``, ``attention_mask``, ``labels`` (B, L): the ids themselves, unscored at padding; ``index`` (B,)."""
        ids_BL, mask_BL = self.tokens.pad(indices, self.pad_token_id)
        labels_BL = ids_BL.masked_fill(mask_BL == 0, UNSCORED)
        return {"input_ids": ids_BL, "attention_mask": mask_BL, "labels": labels_BL, "index": _numbers(indices)}

    def in_order(self, batch_size: int) -> Iterator[tuple[np.ndarray, dict[str, Tensor]]]:
        """Every block once as (indices, batch), longest first."""
        return ((indices, self.collate(indices)) for indices in self.tokens.longest_first(batch_size))

    def select(self, indices: np.ndarray) -> TokenBlocks:
        """The named blocks, in that order; ``words`` is their share of the words by tokens, rounded."""
        tokens = self.tokens.select(indices)
        return TokenBlocks(tokens, self.pad_token_id, round(self.words * len(tokens.ids) / max(1, len(self.tokens.ids))))


@dataclass(frozen=True)
class Seq2SeqPairs:
    """Sources and targets as tokens, special tokens included, and the targets' texts to compare with.

    ``target_words``: of what is left of each target where they are cut to a length; empty: not known.
    """

    tokens: TokenStore  # sources
    targets: TokenStore
    references: tuple[str, ...]
    pad_token_id: int
    target_words: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.tokens)

    def collate(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """``input_ids``, ``attention_mask`` (B, L) of the sources, ``labels`` (B, L') of the targets; ``index`` (B,)."""
        ids_BL, mask_BL = self.tokens.pad(indices, self.pad_token_id)
        targets_BL, targets_mask_BL = self.targets.pad(indices, self.pad_token_id)
        labels_BL = targets_BL.masked_fill(targets_mask_BL == 0, UNSCORED)
        return {"input_ids": ids_BL, "attention_mask": mask_BL, "labels": labels_BL, "index": _numbers(indices)}

    def in_order(self, batch_size: int) -> Iterator[tuple[np.ndarray, dict[str, Tensor]]]:
        """Every pair once as (indices, batch), longest source first."""
        return ((indices, self.collate(indices)) for indices in self.tokens.longest_first(batch_size))

    def select(self, indices: np.ndarray) -> Seq2SeqPairs:
        """The named pairs, in that order."""
        references, words = (tuple(found[index] for index in indices if found) for found in (self.references, self.target_words))
        return Seq2SeqPairs(self.tokens.select(indices), self.targets.select(indices), references, self.pad_token_id, words)


def language_logits(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """The model's logits for a batch, (B, L, V) of the blocks or (B, L', V) of the targets."""
    return language_outputs(model, batch).logits


def language_outputs(model: nn.Module, batch: dict[str, Tensor], **options: Any) -> Any:
    """What a Hugging Face causal or sequence-to-sequence model makes of a batch; ``options`` go to its ``forward``."""
    inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"], "use_cache": False}
    config = model.config
    if config.is_encoder_decoder:
        inputs["decoder_input_ids"] = shift_right(batch["labels"], config.decoder_start_token_id, config.pad_token_id)
    return model(**inputs, **options)


def tokenize_blocks(
    corpus: Corpus, tokenizer: PreTrainedTokenizerBase, block_length: int, *,
    cache: Path, name: str, progress: Progress | None = None, separator: int | None = None,
) -> TokenBlocks:
    """The corpus as one stream of tokens in blocks of ``block_length``, mapped from ``cache``.

    Every text is tokenised by itself, without special tokens. Between texts stands ``separator``, else the tokenizer's
    end-of-text token where it has one, but for a corpus whose rows are one text. Done once: the files' name holds a fingerprint of texts,
    tokenizer and length. Raises ``ModelError`` for a tokenizer without a fast version, ``ConfigError`` for a block
    length below 2 (its first token is given, not predicted).
    """
    if block_length < 2:
        raise ConfigError(f"block_length: {block_length} is too short; expected: 2 or more tokens")
    between = tokenizer.eos_token_id if separator is None else separator
    end = [] if corpus.is_joined or between is None else [between]
    name = f"{name}-{fingerprint(corpus.texts, tokenizer_rules(tokenizer), end, block_length)}"
    pad = _pad_token_id(tokenizer)
    if (store := TokenStore.load(cache, name)) is None:
        chunks: list[np.ndarray] = []
        for encoded in _encode(corpus.texts, tokenizer, f"tokenize {corpus.name}", progress, add_special_tokens=False):
            chunks.append(np.asarray([token for ids in encoded["input_ids"] for token in (*ids, *end)], dtype=np.int32))
        stream_T = np.concatenate(chunks)
        offsets = np.append(np.arange(0, len(stream_T), block_length), len(stream_T))
        write_json(cache / f"{name}.json", {"words": sum(len(text.split()) for text in corpus.texts), "texts": len(corpus.texts)})
        TokenStore(stream_T, offsets).save(cache, name)  # last: its presence says that all is there
        store = TokenStore.load(cache, name)
    return TokenBlocks(store, pad, read_json(cache / f"{name}.json")["words"])


def tokenize_pairs(
    pairs: Pairs, tokenizer: PreTrainedTokenizerBase, source_length: int, target_length: int, *,
    cache: Path, name: str, progress: Progress | None = None,
) -> tuple[Seq2SeqPairs, int]:
    """Sources and targets as tokens with special tokens, mapped from ``cache``, and how many texts were cut.

    Done once, as ``tokenize_blocks``. Raises ``ModelError`` for a tokenizer without a fast version or without a padding
    token, ``ConfigError`` for a length below 2.
    """
    stores, cut = [], 0
    if tokenizer.pad_token_id is None:
        raise ModelError(f"tokenizer {tokenizer.name_or_path!r} has no padding token; batches of pairs need one")
    sides = (("source", pairs.sources, source_length), ("target", pairs.targets, target_length))
    for side, texts, length in sides:
        if length < 2:
            raise ConfigError(f"{side}_length: {length} is too short; expected: 2 or more tokens")
    for side, texts, length in sides:
        file = f"{name}-{side}-{fingerprint(texts, tokenizer_rules(tokenizer), length)}"
        if (store := TokenStore.load(cache, file)) is None:
            chunks, count, words = [], 0, []
            for encoded in _encode(texts, tokenizer, f"tokenize {side}s", progress, truncation=True, max_length=length):
                count += sum(bool(encoding.overflowing) for encoding in encoded.encodings)
                for encoding, text in zip(encoded.encodings, texts[len(words) :]):
                    words.append(len(text[: max(end for _, end in encoding.offsets)].split()))
                chunks.append(TokenStore.from_lists(encoded["input_ids"]))
            write_json(cache / f"{file}.json", {"texts": len(texts), "cut": count, "words": words})
            TokenStore.concatenate(chunks).save(cache, file)
            store = TokenStore.load(cache, file)
        stores.append(store)
        about = read_json(cache / f"{file}.json")
        cut += about["cut"]
    words = about.get("words", ())  # of the targets, which come last; an older version's file has none
    return Seq2SeqPairs(*stores, tuple(pairs.targets), tokenizer.pad_token_id, tuple(words)), cut


def _encode(
    texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, title: str, progress: Progress | None, **options: Any
) -> Iterable[Any]:
    """The tokenizer's encodings, a chunk of texts at a time."""
    progress = progress or Progress()
    progress.stage(title, total=len(texts))
    for start in range(0, len(texts), CHUNK_TEXTS):
        yield tokenizer(list(texts[start : start + CHUNK_TEXTS]), padding=False, return_attention_mask=False, verbose=False, **options)
        progress.step(min(start + CHUNK_TEXTS, len(texts)))


def _pad_token_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The padding token, else end-of-text (GPT-2 has no other), else 0: padding is masked and unscored in any case."""
    return next((token for token in (tokenizer.pad_token_id, tokenizer.eos_token_id) if token is not None), 0)


def _numbers(indices: Sequence[int]) -> Tensor:
    """Numbers of examples as int64, (B,)."""
    return torch.as_tensor(np.asarray(indices, dtype=np.int64))
