"""Texts for a masked language model: packed blocks with the tokenizer's special tokens around, and tokens hidden to be guessed.

Devlin et al. 2019, section 3.1 (task 1); the segment pairs and the next-sentence task of that section are left out, as RoBERTa
did. What is hidden depends on (seed, step, number of the block) alone, so a resumed training hides the same, in however many
processes it runs.

Dimensions: N blocks, T tokens of all of them, B batch, L tokens of the longest in a batch, special ones included, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor

from adasearch.corpora import TEXT_SUFFIX, Corpus
from adasearch.errors import ConfigError, DataError, ModelError, one_line
from adasearch.files import fingerprint, write_array, write_json
from adasearch.language import tokenize_blocks
from adasearch.language_objectives import UNSCORED
from adasearch.progress import Progress
from adasearch.tables import SUFFIXES, check_file, no_column
from adasearch.texts import CHUNK_TEXTS, tokenizer_rules
from adasearch.tokens import TokenStore

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MASKED, RANDOM = 0.8, 0.1  # of the hidden tokens: shown as [MASK], shown as any token; the others as they are. Devlin et al. 2019
KINDS = {".txt": "text", ".csv": "csv", ".tsv": "csv", ".jsonl": "json", ".parquet": "parquet"}  # suffix -> builder of ``datasets``


@dataclass(frozen=True)
class Wrap:
    """The special tokens that a tokenizer puts before and after a text."""

    before: tuple[int, ...]
    after: tuple[int, ...]

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> Wrap:
        """Read off an encoded text. Raises ``ModelError`` for a tokenizer without a fast version."""
        tokenizer_rules(tokenizer)
        encoded = tokenizer("a", return_special_tokens_mask=True)
        ids, special = encoded["input_ids"], encoded["special_tokens_mask"]
        first = special.index(0) if 0 in special else len(special)
        last = len(special) - special[::-1].index(0) if 0 in special else first
        return cls(tuple(ids[:first]), tuple(ids[last:]))

    @property
    def size(self) -> int:
        """Special tokens a block."""
        return len(self.before) + len(self.after)


@dataclass(frozen=True)
class MaskedBlocks:
    """A stream of tokens cut into blocks (``tokens``, without special tokens), which a batch shows between special tokens."""

    tokens: TokenStore
    wrap: Wrap
    pad_token_id: int

    def __len__(self) -> int:
        return len(self.tokens)

    def collate(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """``input_ids``, ``attention_mask`` (B, L) int64, ``index`` (B,): the numbers of the blocks. Nothing is hidden yet."""
        rows = [np.concatenate([self.wrap.before, self.tokens[i], self.wrap.after]).astype(np.int64) for i in indices]
        length = max(map(len, rows))
        ids_BL = np.full((len(rows), length), self.pad_token_id, np.int64)
        mask_BL = np.zeros((len(rows), length), np.int64)
        for row, ids in enumerate(rows):
            ids_BL[row, : len(ids)], mask_BL[row, : len(ids)] = ids, 1
        index_B = torch.from_numpy(np.asarray(indices, np.int64))
        return {"input_ids": torch.from_numpy(ids_BL), "attention_mask": torch.from_numpy(mask_BL), "index": index_B}

    def in_order(self, batch_size: int) -> Iterator[tuple[np.ndarray, dict[str, Tensor]]]:
        """Every block once as (indices, batch), in their order."""
        for start in range(0, len(self), batch_size):
            indices = np.arange(start, min(start + batch_size, len(self)))
            yield indices, self.collate(indices)

    def select(self, indices: np.ndarray) -> MaskedBlocks:
        """The named blocks, in that order."""
        return MaskedBlocks(self.tokens.select(indices), self.wrap, self.pad_token_id)


@dataclass(frozen=True)
class Masking:
    """Which tokens are hidden, and how.

    Args:
        mask_token_id: what hidden tokens mostly look like.
        vocabulary: V; some look like any of its tokens.
        special: ids that are never hidden.
        share: of the other tokens that are.
        seed: of the choice.
    """

    mask_token_id: int
    vocabulary: int
    special: tuple[int, ...]
    share: float = 0.15
    seed: int = 42

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase, share: float, seed: int) -> Masking:
        """For a tokenizer. Raises ``ModelError`` when it has no mask token."""
        if tokenizer.mask_token_id is None:
            raise ModelError(f"tokenizer {tokenizer.name_or_path!r} has no mask token; expected: that of a masked language model")
        return cls(tokenizer.mask_token_id, len(tokenizer), tuple(sorted(tokenizer.all_special_ids)), share, seed)

    def __call__(self, batch: Mapping[str, Tensor], step: int, drawn_share: float = 0.0) -> dict[str, Tensor]:
        """The batch with hidden tokens in ``input_ids`` and ``labels`` (B, L): their ids, ``UNSCORED`` at all others.

        A block with no hidden token by chance gets one. ``drawn_BL`` is a random share of all tokens that are no padding, for
        whoever needs a sample of them; every token when ``drawn_share`` is 1.
        """
        ids_BL = batch["input_ids"].cpu().numpy()
        is_text_BL = (batch["attention_mask"].cpu().numpy() != 0) & ~np.isin(ids_BL, self.special)
        shown_BL, labels_BL, draws_BL = ids_BL.copy(), np.full_like(ids_BL, UNSCORED), np.empty(ids_BL.shape)
        for row, index in enumerate(batch["index"].tolist()):
            generator = np.random.default_rng((self.seed, step, index))
            places = np.flatnonzero(is_text_BL[row])  # the numbers drawn depend on the block, not on its batch's padding
            chances, kinds = generator.random((2, len(places)))
            others = generator.integers(0, self.vocabulary, len(places))
            is_hidden = chances < self.share
            if len(places) and not is_hidden.any():
                is_hidden[chances.argmin()] = True
            hidden, kinds, others = places[is_hidden], kinds[is_hidden], others[is_hidden]
            labels_BL[row, hidden] = ids_BL[row, hidden]
            looks = np.where(kinds < MASKED, self.mask_token_id, np.where(kinds < MASKED + RANDOM, others, ids_BL[row, hidden]))
            shown_BL[row, hidden] = looks
            draws_BL[row] = generator.random(ids_BL.shape[1])
        device = batch["input_ids"].device
        is_drawn_BL = torch.from_numpy(draws_BL < drawn_share).to(device) & (batch["attention_mask"] != 0)
        shown, labels = (torch.from_numpy(array).to(device) for array in (shown_BL, labels_BL))
        return {**batch, "input_ids": shown, "labels": labels, "drawn_BL": is_drawn_BL}


def masked_blocks(
    corpus: Corpus, tokenizer: PreTrainedTokenizerBase, block_length: int, *, cache: Path, name: str, progress: Progress | None = None
) -> MaskedBlocks:
    """A corpus packed into blocks of ``block_length`` tokens, special ones included, mapped from ``cache``.

    Texts follow each other without padding; between two stands the tokenizer's separator, but not between the lines of one
    text. Done once. Raises ``ConfigError`` for a block without room and ``ModelError`` as ``Wrap.of``.
    """
    wrap = _checked_wrap(tokenizer, block_length)
    room = block_length - wrap.size
    blocks = tokenize_blocks(corpus, tokenizer, room, cache=cache, name=name, progress=progress, separator=tokenizer.sep_token_id)
    return MaskedBlocks(blocks.tokens, wrap, blocks.pad_token_id)


def streamed_blocks(
    texts: Iterable[str], tokenizer: PreTrainedTokenizerBase, block_length: int, *,
    most_tokens: int, identity: Any, cache: Path, name: str, progress: Progress | None = None,
) -> MaskedBlocks:  # fmt: skip
    """The same for texts that come one after the other and need not fit into memory, until there are ``most_tokens``.

    ``identity`` says what the texts are (JSON-like): the files in ``cache`` are named by it, since the texts are not read to
    find out. Raises ``DataError`` when there is no text.
    """
    wrap, progress = _checked_wrap(tokenizer, block_length), progress or Progress()
    room = block_length - wrap.size
    between = [] if tokenizer.sep_token_id is None else [tokenizer.sep_token_id]
    name = f"{name}-{fingerprint(identity, tokenizer_rules(tokenizer), between, room, most_tokens)}"
    if (store := TokenStore.load(cache, name)) is None:
        cache.mkdir(parents=True, exist_ok=True)
        with FileLock(cache / f".{name}.lock"):  # of two runs that share the cache one reads the stream, the other waits
            if (store := TokenStore.load(cache, name)) is None:
                _write_stream(texts, tokenizer, room, between, most_tokens, identity, cache, name, progress)
                store = TokenStore.load(cache, name)
    return MaskedBlocks(store, wrap, tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0)


def _write_stream(
    texts: Iterable[str], tokenizer: PreTrainedTokenizerBase, room: int, between: list[int], most_tokens: int, identity: Any,
    cache: Path, name: str, progress: Progress,
) -> None:  # fmt: skip
    """The token store of a stream, written as it is read."""
    progress.stage("tokenize the stream", total=most_tokens)
    partial, count = cache / f".{name}.partial", 0
    try:
        with open(partial, "wb") as file:
            for chunk in _chunks(texts):
                encoded = tokenizer(chunk, padding=False, add_special_tokens=False, return_attention_mask=False, verbose=False)
                ids = np.asarray([token for ids in encoded["input_ids"] for token in (*ids, *between)], np.int32)[: most_tokens - count]
                ids.tofile(file)
                count += len(ids)
                progress.step(count)
                if count >= most_tokens:
                    break
        if count <= len(between):
            raise DataError(f"{name}: the stream holds no text")
        offsets = np.append(np.arange(0, count, room), count)
        write_json(cache / f"{name}.json", {"tokens": count, "texts": identity})
        stream_T = np.memmap(partial, np.int32, "r", shape=(count,))
        write_array(cache / f"{name}.ids.npy", stream_T)
        write_array(cache / f"{name}.offsets.npy", offsets)  # last: its presence says that all is there
        del stream_T
    finally:
        partial.unlink(missing_ok=True)


def text_stream(source: str, column: str = "text", split: str = "train") -> Iterator[str]:
    """Texts of a file (a line of txt is a text) or of a hub data set ``owner/name[:configuration]``, one at a time.

    Nothing of a hub data set is kept on disk. Raises ``ConfigError`` when a file is not there, ``DataError`` when the source
    cannot be read or has no such column.
    """
    import datasets  # a second to import

    if _is_file(source):
        suffix = check_file(Path(source), "stream", (TEXT_SUFFIX, *SUFFIXES))
        options: dict[str, Any] = {"data_files": str(source), "split": "train", **({"delimiter": "\t"} if suffix == ".tsv" else {})}
        name, configuration = KINDS[suffix], None
    else:
        name, _, configuration = source.partition(":")
        options = {"split": split}
    try:
        for row in datasets.load_dataset(name, configuration or None, streaming=True, **options):
            if column not in row:
                raise DataError(f"stream: {source}: {no_column(column, row)}")
            if isinstance(row[column], str) and row[column].strip():
                yield row[column]
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise DataError(f"stream: {source!r} cannot be read ({one_line(error, 300)}); choices: a file, or a hub that can be reached") from error


def stream_identity(source: str, column: str | None) -> list[Any]:
    """What tells the texts of a stream from others without reading them, JSON-like: of a file its size and time of change, too.

    Raises ``ConfigError`` when a file is not there.
    """
    if not _is_file(source):
        return [source, column]
    check_file(Path(source), "stream", (TEXT_SUFFIX, *SUFFIXES))
    path = Path(source).resolve()
    return [str(path), path.stat().st_size, path.stat().st_mtime_ns, column]


def _is_file(source: str) -> bool:
    """Whether a stream is a file; else it is the hub's."""
    return Path(source).suffix.lower() in KINDS


def join_blocks(parts: Sequence[MaskedBlocks], cache: Path | None = None) -> MaskedBlocks:
    """Blocks of several corpora in one: in memory, or mapped from ``cache``, where they take their room once more. A single one stays as it is."""
    if len(parts) == 1:
        return parts[0]
    stores = [part.tokens for part in parts]
    tokens = TokenStore.concatenate(stores) if cache is None else TokenStore.join(stores, cache)
    return MaskedBlocks(tokens, parts[0].wrap, parts[0].pad_token_id)


def _chunks(texts: Iterable[str]) -> Iterator[list[str]]:
    chunk: list[str] = []
    for text in texts:
        chunk.append(text)
        if len(chunk) == CHUNK_TEXTS:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def _checked_wrap(tokenizer: PreTrainedTokenizerBase, block_length: int) -> Wrap:
    wrap = Wrap.of(tokenizer)
    if block_length < wrap.size + 2:
        least = wrap.size + 2
        raise ConfigError(f"block_length: {block_length} is too short; expected: {least} or more tokens, {wrap.size} of them special")
    return wrap
