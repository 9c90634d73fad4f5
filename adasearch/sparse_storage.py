"""Tensors that are mostly 0 as few bytes: which elements are not 0, and their values.

Four formats, each the same numbers read back (a -0.0 comes back as 0.0):

- ``bitmap``: a bit an element, in the tensor's order, the first in a byte's lowest bit; then the values that are not 0.
- ``index``: for each row (first dimension) how many there are, and 16 bits of each one's place in its row.
- ``delta``: 8 bits an element that is not 0: how many zeros lie before it; 255 stands for 255 zeros and "read on".
- ``dense``: the elements as they are.

At a density d and v bits a value an element takes 1 + d v, d (16 + v), about d (8 + v), v bits. int8 at 10%: 17.8, 13.3, 20
times less than float32. Every part may be compressed: ``zstd`` (needs the package zstandard), ``zlib`` and ``lzma`` (Python's own).
"""

from __future__ import annotations

import lzma
import math
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from adasearch.errors import ConfigError, ModelError
from adasearch.settings import is_installed

FORMATS = ("bitmap", "index", "delta", "dense")
COMPRESSIONS = ("none", "zstd", "zlib", "lzma")
DTYPES = {"int8": torch.int8, "float32": torch.float32}
READ_ON = 255
WIDEST_ROW = 2**16 - 1  # columns and counts are 16 bits
ZSTD_LEVEL = 19  # files are written once


@dataclass(frozen=True)
class Stored:
    """How one tensor was written: what is needed beside the bytes to read it back."""

    format: str
    compression: str
    dtype: str
    shape: tuple[int, ...]
    nonzeros: int

    @property
    def elements(self) -> int:
        """Of the whole tensor."""
        return math.prod(self.shape)


def check_storage(format: str, compression: str) -> None:
    """Raises ``ConfigError`` for an unknown format or compression, or one whose package is not installed."""
    for what, value, choices in (("format", format, (*FORMATS, "smallest")), ("compression", compression, COMPRESSIONS)):
        if value not in choices:
            raise ConfigError(f"{what}: {value!r}; choices: {', '.join(choices)}")
    if compression == "zstd" and not is_installed("zstandard"):
        raise ConfigError("compression: 'zstd' needs zstandard: pip install 'adasearch[compression]'; choices: zlib, lzma, none")


def encode(tensor: Tensor, format: str = "bitmap", compression: str = "none") -> tuple[Stored, dict[str, Tensor]]:
    """A tensor, int8 or float32, as parts of uint8 by name. ``smallest`` tries all formats.

    Raises ``ConfigError`` as ``check_storage``, ``ModelError`` for other types and, with ``index``, rows too long for 16 bits.
    """
    check_storage(format, compression)
    name = str(tensor.dtype).removeprefix("torch.")
    if name not in DTYPES:
        raise ModelError(f"a tensor of {name} cannot be stored; choices: {', '.join(DTYPES)}")
    if format == "smallest":
        fitting = [f for f in FORMATS if f != "index" or _row_length(tensor.shape) <= WIDEST_ROW]
        found = [encode(tensor, one, compression) for one in fitting]
        return min(found, key=lambda pair: sum(part.numel() for part in pair[1].values()))
    array = tensor.detach().cpu().contiguous().numpy()
    parts = _ENCODERS[format](array)
    stored = Stored(format, compression, name, tuple(tensor.shape), int(np.count_nonzero(array)))
    return stored, {key: _to_bytes(part, compression) for key, part in parts.items()}


def decode(stored: Stored, parts: Mapping[str, Tensor]) -> Tensor:
    """The tensor that was encoded. Raises ``ModelError`` where the parts are not those of such a tensor."""
    check_storage(stored.format, stored.compression)
    try:
        raw = {key: _from_bytes(part, stored.compression) for key, part in parts.items()}
        flat = _DECODERS[stored.format](raw, stored)
        return torch.from_numpy(flat.reshape(stored.shape))
    except (KeyError, ValueError, IndexError, zlib.error, lzma.LZMAError) as error:
        raise ModelError(f"a stored tensor of {stored.shape} cannot be read back ({error}); the file is not whole") from error


def stored_bytes(parts: Mapping[str, Tensor]) -> int:
    """What the parts take."""
    return sum(part.numel() for part in parts.values())


def _row_length(shape: torch.Size | tuple[int, ...]) -> int:
    return math.prod(shape[1:])


def _to_bitmap(array: np.ndarray) -> dict[str, np.ndarray]:
    flat = array.reshape(-1)
    return {"bitmap": np.packbits(flat != 0, bitorder="little"), "values": flat[flat != 0]}


def _from_bitmap(raw: Mapping[str, bytes], stored: Stored) -> np.ndarray:
    bits = np.unpackbits(np.frombuffer(raw["bitmap"], np.uint8), count=stored.elements, bitorder="little").astype(bool)
    return _filled(stored, bits, raw)


def _to_index(array: np.ndarray) -> dict[str, np.ndarray]:
    if _row_length(array.shape) > WIDEST_ROW:
        raise ModelError(f"rows of {_row_length(array.shape)} elements are too long for format 'index'; choices: bitmap, delta, dense")
    rows = array.reshape(len(array) if array.ndim else 1, _row_length(array.shape))
    row, column = np.nonzero(rows)
    counts = np.bincount(row, minlength=len(rows))
    return {"counts": counts.astype("<u2"), "columns": column.astype("<u2"), "values": rows[row, column]}


def _from_index(raw: Mapping[str, bytes], stored: Stored) -> np.ndarray:
    counts, columns = (np.frombuffer(raw[key], "<u2").astype(np.int64) for key in ("counts", "columns"))
    if len(columns) and columns.max() >= _row_length(stored.shape):
        raise ValueError(f"a column {columns.max()} where rows have {_row_length(stored.shape)}")
    places = np.repeat(np.arange(len(counts)), counts) * _row_length(stored.shape) + columns
    return _filled(stored, places, raw)


def _to_delta(array: np.ndarray) -> dict[str, np.ndarray]:
    flat = array.reshape(-1)
    places = np.flatnonzero(flat)
    gaps = np.diff(places, prepend=-1) - 1
    written = np.full(len(gaps) + int((gaps // READ_ON).sum()), READ_ON, np.uint8)
    written[np.cumsum(gaps // READ_ON + 1) - 1] = gaps % READ_ON
    return {"gaps": written, "values": flat[places]}


def _from_delta(raw: Mapping[str, bytes], stored: Stored) -> np.ndarray:
    gaps = np.frombuffer(raw["gaps"], np.uint8)
    places = np.cumsum(gaps, dtype=np.int64)[gaps != READ_ON]
    return _filled(stored, places + np.arange(len(places)), raw)


def _to_dense(array: np.ndarray) -> dict[str, np.ndarray]:
    return {"values": array.reshape(-1)}


def _from_dense(raw: Mapping[str, bytes], stored: Stored) -> np.ndarray:
    flat = np.frombuffer(raw["values"], np.dtype(stored.dtype).newbyteorder("<"))
    if len(flat) != stored.elements:
        raise ValueError(f"{len(flat)} values for {stored.elements} elements")
    return flat.astype(stored.dtype) + np.zeros((), stored.dtype)  # a copy that may be written to, -0.0 made 0.0


def _filled(stored: Stored, places: np.ndarray, raw: Mapping[str, bytes]) -> np.ndarray:
    values = np.frombuffer(raw["values"], np.dtype(stored.dtype).newbyteorder("<"))
    expected = int(places.sum()) if places.dtype == bool else len(places)
    if not len(values) == expected == stored.nonzeros:
        raise ValueError(f"{len(values)} values and {expected} places for {stored.nonzeros} elements that are not 0")
    flat = np.zeros(stored.elements, stored.dtype)
    flat[places] = values
    return flat


_ENCODERS: dict[str, Callable[[np.ndarray], dict[str, np.ndarray]]] = {
    "bitmap": _to_bitmap, "index": _to_index, "delta": _to_delta, "dense": _to_dense,
}  # fmt: skip
_DECODERS: dict[str, Callable[[Mapping[str, bytes], Stored], np.ndarray]] = {
    "bitmap": _from_bitmap, "index": _from_index, "delta": _from_delta, "dense": _from_dense,
}  # fmt: skip


def _to_bytes(array: np.ndarray, compression: str) -> Tensor:
    data = array.astype(array.dtype.newbyteorder("<")).tobytes()
    if compression == "zstd":
        import zstandard

        data = zstandard.ZstdCompressor(level=ZSTD_LEVEL).compress(data)
    elif compression == "zlib":
        data = zlib.compress(data, 9)
    elif compression == "lzma":
        data = lzma.compress(data, lzma.FORMAT_XZ)
    return torch.from_numpy(np.frombuffer(bytearray(data), np.uint8))


def _from_bytes(part: Tensor, compression: str) -> bytes:
    data = part.numpy().tobytes()
    if compression == "zstd":
        import zstandard

        try:
            return zstandard.ZstdDecompressor().decompress(data)
        except zstandard.ZstdError as error:
            raise ValueError(str(error)) from error
    if compression == "zlib":
        return zlib.decompress(data)
    return lzma.decompress(data) if compression == "lzma" else data
