"""The text of a sparse pre-training: all its corpora as packed blocks, and the blocks it is scored on."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from adasearch.corpora import CORPORA, TEXT_SUFFIX, Corpus, find_corpus
from adasearch.errors import ConfigError, DataError
from adasearch.masked_language import MaskedBlocks, join_blocks, masked_blocks, stream_identity, streamed_blocks, text_stream
from adasearch.progress import Progress
from adasearch.sparse_pretraining_config import SparsePretrainingConfig
from adasearch.tokens import TokenStore

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LEAST_BLOCKS = 4  # fewer cannot be split into what is learned and what is scored


def load_blocks(
    config: SparsePretrainingConfig, tokenizer: PreTrainedTokenizerBase, *, cache: Path, progress: Progress
) -> tuple[MaskedBlocks, MaskedBlocks]:
    """Blocks for training, and at most ``config.validation_blocks`` to be scored on.

    The latter are spread evenly over the corpora's validation splits; where there is none, the last blocks of the training
    text are kept out of it. Raises ``ConfigError`` and ``DataError`` as the sources do, before the first is tokenised but for a
    stream, and ``DataError`` when the text is too short.
    """
    found = [_corpora(config, index) for index in range(len(config.corpora))]
    if config.train_file:
        files = {"train": config.train_file, "validation": config.validation_file}
        found.append(find_corpus("file", files=files, text_column=config.text_column))
    parts: dict[str, list[MaskedBlocks]] = {"train": [], "validation": []}
    for corpora in found:
        for split, blocks in parts.items():
            if split in corpora:
                name = f"masked-{split}"
                blocks.append(masked_blocks(corpora[split], tokenizer, config.block_length, cache=cache, name=name, progress=progress))
    if config.stream:
        column = None if config.stream.lower().endswith(TEXT_SUFFIX) else config.text_column  # lines have no other than "text"
        texts = text_stream(config.stream, column or "text")
        parts["train"].append(
            streamed_blocks(
                texts, tokenizer, config.block_length, most_tokens=config.stream_tokens, identity=stream_identity(config.stream, column),
                cache=cache, name="masked-stream", progress=progress,
            )  # fmt: skip
        )
    train = join_blocks(parts["train"], cache if config.stream else None)  # a stream need not fit into memory
    if parts["validation"]:
        validation = join_blocks(parts["validation"])
        count = min(len(validation), config.validation_blocks)
        return train, validation.select(np.linspace(0, len(validation) - 1, count).round().astype(int))
    if len(train) < LEAST_BLOCKS:
        raise DataError(f"the training text makes {len(train)} blocks of {config.block_length} tokens; expected: {LEAST_BLOCKS} or more")
    count = min(config.validation_blocks, len(train) // 2)
    cut = len(train) - count
    return _part(train, 0, cut), _part(train, cut, len(train))


def _corpora(config: SparsePretrainingConfig, index: int) -> dict[str, Corpus]:
    """The splits of one corpus, by name. A preset has a column of its own; one of others is for what stands beside it."""
    name = config.corpora[index]
    try:
        return find_corpus(name, data_dir=config.data_dir, text_column=None if name in CORPORA else config.text_column)
    except ConfigError as error:  # it speaks of a task, as it is called there
        raise ConfigError(f"corpora[{index}]: {str(error).removeprefix('task: ')}") from error


def _part(blocks: MaskedBlocks, start: int, stop: int) -> MaskedBlocks:
    """Blocks after each other, without reading what is mapped from disk."""
    offsets = blocks.tokens.offsets
    tokens = TokenStore(blocks.tokens.ids[offsets[start] : offsets[stop]], offsets[start : stop + 1] - offsets[start])
    return dataclasses.replace(blocks, tokens=tokens)
