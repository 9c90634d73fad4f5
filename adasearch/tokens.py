"""Texts as numbers: tokenised once, kept flat in memory-mapped files, drawn in batches of similar length.

Dimensions: N examples, T tokens of all examples, B batch, L tokens of the longest text in a batch, C labels, P probes.
"""

from __future__ import annotations

import dataclasses
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from adasearch.files import fingerprint, write_array, write_atomically

ARRAYS = ("labels", "teacher_logits", "probe_logits", "teacher_states")  # what an example may have beside its text
BUCKET_BATCHES = 50  # so many batches are shuffled, then sorted by length, together: little padding, still random


@dataclass(frozen=True)
class TokenStore:
    """All texts' word pieces end to end: text n is ``ids[offsets[n]:offsets[n+1]]``, special tokens included."""

    ids: np.ndarray  # (T,) int32
    offsets: np.ndarray  # (N + 1,) int64

    @classmethod
    def from_lists(cls, sequences: Iterable[Sequence[int]]) -> TokenStore:
        """Pack a stream of id sequences."""
        # typed buffers that grow: 4 bytes a word piece and 8 a text, where a list of arrays takes 100 a text besides
        ids, ends = array("i"), array("q", [0])
        for sequence in sequences:
            ids.frombytes(np.ascontiguousarray(sequence, dtype=np.int32).tobytes())
            ends.append(len(ids))
        return cls(np.frombuffer(ids, np.int32) if ids else np.zeros(0, np.int32), np.frombuffer(ends, np.int64))

    @classmethod
    def concatenate(cls, stores: Sequence[TokenStore]) -> TokenStore:
        """One store holding the texts of all, in order."""
        return cls(np.concatenate([store.ids for store in stores]), cls._ends(stores))

    @classmethod
    def join(cls, stores: Sequence[TokenStore], folder: Path) -> TokenStore:
        """The same, mapped from ``folder``, where it is written once: the ids never stand in memory together."""
        name = f"joined-{fingerprint(*(array for store in stores for array in (store.ids, store.offsets)))}"

        def write(partial: Path) -> None:
            ids = np.lib.format.open_memmap(partial, "w+", np.int32, (sum(len(store.ids) for store in stores),))
            np.concatenate([store.ids for store in stores], out=ids)
            ids.flush()

        if (found := cls.load(folder, name)) is None:
            write_atomically(folder / f"{name}.ids.npy", write)
            write_array(folder / f"{name}.offsets.npy", cls._ends(stores))
            found = cls.load(folder, name)
        return found

    @staticmethod
    def _ends(stores: Sequence[TokenStore]) -> np.ndarray:
        """The offsets of all texts end to end."""
        starts = np.cumsum([0] + [len(store.ids) for store in stores])
        return np.concatenate([*(store.offsets[:-1] + start for store, start in zip(stores, starts)), starts[-1:]])

    def save(self, folder: Path, name: str) -> None:
        """Write ``<name>.ids.npy`` and ``<name>.offsets.npy`` (the offsets last: their presence says it is whole)."""
        write_array(folder / f"{name}.ids.npy", self.ids)
        write_array(folder / f"{name}.offsets.npy", self.offsets)

    @classmethod
    def load(cls, folder: Path, name: str) -> TokenStore | None:
        """Map a saved store back, or None when it is not there."""
        if not (folder / f"{name}.offsets.npy").exists():
            return None
        return cls(np.load(folder / f"{name}.ids.npy", mmap_mode="r"), np.load(folder / f"{name}.offsets.npy"))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> np.ndarray:
        return self.ids[self.offsets[index] : self.offsets[index + 1]]

    @property
    def lengths(self) -> np.ndarray:
        """Word pieces of each text, (N,)."""
        return np.diff(self.offsets)

    def longest_first(self, batch_size: int) -> Iterator[np.ndarray]:
        """Every text's index once, in batches, longest first."""
        order = np.argsort(-self.lengths, kind="stable")
        return (order[start : start + batch_size] for start in range(0, len(order), batch_size))

    def select(self, indices: np.ndarray) -> TokenStore:
        """The named texts, in that order."""
        indices = np.arange(len(self))[indices]
        lengths = self.offsets[indices + 1] - self.offsets[indices]
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        ids = np.empty(offsets[-1], np.int32)
        # runs of texts that follow one another are copied at once: most selections are a few of them
        cuts = np.flatnonzero(np.diff(indices) != 1) + 1
        for first, last in zip(np.r_[0, cuts], np.r_[cuts, len(indices)]):
            if first < last:
                ids[offsets[first] : offsets[last]] = self.ids[self.offsets[indices[first]] : self.offsets[indices[last - 1] + 1]]
        return TokenStore(ids, offsets)

    def pad(self, indices: Sequence[int], pad_token_id: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Ids and mask of a batch, both (B, L) int64, padded on the right to its longest text, 1 token at least."""
        lengths = self.offsets[np.asarray(indices) + 1] - self.offsets[np.asarray(indices)]
        ids_BL = np.full((len(indices), int(lengths.max(initial=1))), pad_token_id, dtype=np.int64)
        for row, index in enumerate(indices):
            ids_BL[row, : lengths[row]] = self[index]
        # a text without tokens is read as one of padding: who attends to nothing says anything
        mask_BL = np.arange(ids_BL.shape[1])[None, :] < np.maximum(lengths, 1)[:, None]
        return torch.from_numpy(ids_BL), torch.from_numpy(mask_BL.astype(np.int64))


@dataclass(frozen=True)
class Examples:
    """Tokenised texts with whatever is known of each: gold labels, the teacher's logits, its probes' logits."""

    tokens: TokenStore
    pad_token_id: int
    labels: np.ndarray | None = None  # (N,) int64, -100 = unknown; multi-label (N, C), regression (N,) float32, NaN = unknown
    teacher_logits: np.ndarray | None = None  # (N, C) float32
    probe_logits: np.ndarray | None = None  # (N, P, C) float32 or float16
    teacher_states: np.ndarray | None = None  # (N, P, D) float16: the teacher's pooled levels, for a student without a task

    def __len__(self) -> int:
        return len(self.tokens)

    def collate(self, indices: Sequence[int]) -> dict[str, torch.Tensor]:
        """A batch: ``input_ids``, ``attention_mask`` (B, L) and, where known, the arrays above under their names."""
        ids_BL, mask_BL = self.tokens.pad(indices, self.pad_token_id)
        batch = {"input_ids": ids_BL, "attention_mask": mask_BL}
        for name in ARRAYS:
            known = getattr(self, name)
            if known is not None:
                values = torch.from_numpy(np.ascontiguousarray(known[np.asarray(indices)]))
                batch[name] = values.float() if values.dtype == torch.float16 else values
        return batch

    def select(self, indices: np.ndarray) -> Examples:
        """The named examples, in that order."""
        arrays = {name: getattr(self, name) for name in ARRAYS}
        picked = {name: None if known is None else np.asarray(known)[indices] for name, known in arrays.items()}
        return dataclasses.replace(self, tokens=self.tokens.select(indices), **picked)

    @classmethod
    def concatenate(cls, parts: Sequence[Examples]) -> Examples:
        """All examples in one; the parts must know the same arrays."""
        arrays = {}
        for name in ARRAYS:
            values = [getattr(part, name) for part in parts]
            assert all(v is None for v in values) or all(v is not None for v in values), f"{name}: known in some parts only"
            arrays[name] = None if values[0] is None else np.concatenate(values)
        return cls(TokenStore.concatenate([part.tokens for part in parts]), parts[0].pad_token_id, **arrays)

    def in_order(self, batch_size: int) -> Iterator[tuple[np.ndarray, dict[str, torch.Tensor]]]:
        """Every example once, longest first (a batch that does not fit fails at once), as (indices, batch)."""
        return ((indices, self.collate(indices)) for indices in self.tokens.longest_first(batch_size))


class BatchSampler:
    """Which examples make batch number ``step``: a pure function of (seed, step), so a resumed run draws the same.

    Every epoch visits each example once (the last, short batch is left out unless it is the only one). Examples are
    shuffled, sorted by length within buckets of ``BUCKET_BATCHES`` batches, and the batches shuffled again.
    """

    def __init__(self, lengths: np.ndarray, batch_size: int, seed: int):
        self.lengths, self.batch_size, self.seed = lengths, min(batch_size, len(lengths)), seed
        self.batches_per_epoch = len(lengths) // self.batch_size
        self._epoch, self._batches = -1, []

    def __call__(self, step: int) -> np.ndarray:
        """Indices of the examples of batch ``step``, (B,)."""
        epoch, position = divmod(step, self.batches_per_epoch)
        if epoch != self._epoch:
            self._epoch, self._batches = epoch, self._plan(epoch)
        return self._batches[position]

    def _plan(self, epoch: int) -> list[np.ndarray]:
        generator = np.random.default_rng((self.seed, epoch))
        order = generator.permutation(len(self.lengths))[: self.batches_per_epoch * self.batch_size]
        bucket = BUCKET_BATCHES * self.batch_size
        order = np.concatenate(
            [part[np.argsort(self.lengths[part], kind="stable")] for part in np.split(order, range(bucket, len(order), bucket))]
        )
        batches = np.split(order, self.batches_per_epoch)
        return [batches[i] for i in generator.permutation(len(batches))]
