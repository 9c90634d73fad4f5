"""What sparse files take, said in four ways, each measured from the files as they were written.

- ``nominal``: the weights of the encoder's linear layers, only the bits of the values that are kept. Published ratios are this one: at 90%
  and int8 it is 1 / 0.1 x 32 / 8 = 40.
- ``with_index``: the same weights with what says where they stand and their scales.
- ``without_tables``: the whole file but the embedding tables: head, normalisation, biases, ranges and the file's header too.
- ``whole``: the whole file.

All are bytes in float32, dense, over bytes here; None where a model has no such bytes, as one without stacked layers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from adasearch.errors import ModelError
from adasearch.sparse_files import FILE, read_header

FP32_BYTES = 4
DTYPE_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}


@dataclass(frozen=True)
class SparseSize:
    """Bytes of a folder's file, and of the same tensors dense in float32. ``linear`` are the weights of the layers in the
    encoder's stacks (not pooler and head); ``table`` the embeddings."""

    linear_elements: int
    linear_nonzeros: int
    linear_value_bytes: int
    linear_bytes: int
    table_elements: int
    table_bytes: int
    elements: int
    file_bytes: int
    formats: dict[str, int]

    @property
    def sparsity(self) -> float:
        """Share of the linear weights that are 0; 0 where there are none."""
        return 1 - self.linear_nonzeros / self.linear_elements if self.linear_elements else 0.0

    @property
    def nominal(self) -> float | None:
        """See above."""
        return _ratio(self.linear_elements, self.linear_value_bytes)

    @property
    def with_index(self) -> float | None:
        """See above."""
        return _ratio(self.linear_elements, self.linear_bytes)

    @property
    def without_tables(self) -> float:
        """See above."""
        return FP32_BYTES * (self.elements - self.table_elements) / (self.file_bytes - self.table_bytes)

    @property
    def whole(self) -> float:
        """See above."""
        return FP32_BYTES * self.elements / self.file_bytes

    def to_dict(self) -> dict[str, Any]:
        """Plain data, ratios included."""
        ratios = {name: getattr(self, name) for name in ("nominal", "with_index", "without_tables", "whole")}
        return {**asdict(self), "sparsity": self.sparsity, "ratios": ratios}


def sparse_size(folder: Path | str) -> SparseSize:
    """What the file of a folder takes. Raises ``ModelError`` where there is none."""
    path = Path(folder) / FILE
    try:
        with safe_open(path, framework="pt") as file:
            header, sizes, counts = read_header(path, file.metadata()), {}, {}
            for name in file.keys():  # noqa: SIM118: not a dictionary
                part = file.get_slice(name)
                counts[name] = math.prod(part.get_shape())
                sizes[name] = counts[name] * DTYPE_BYTES[part.get_dtype()]
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{path}: cannot be read ({error}); choices: a folder that save_sparse wrote") from error
    return _sum(header, sizes, counts, path.stat().st_size)


def _sum(header: Mapping[str, Any], sizes: Mapping[str, int], counts: Mapping[str, int], file_bytes: int) -> SparseSize:
    total = dict.fromkeys(("linear_elements", "linear_nonzeros", "linear_value_bytes", "linear_bytes", "table_elements", "table_bytes"), 0)
    elements, formats = 0, {}
    written = dict(sizes)
    for name, stored in header["tensors"].items():
        layer, count = name.rpartition(".")[0], math.prod(stored["shape"])
        taken = sum(written.pop(key) for key in list(written) if key.startswith(f"{name}:"))
        taken += written.pop(f"{layer}.scale", 0)
        elements += count
        formats[stored["format"]] = formats.get(stored["format"], 0) + 1
        if _is_table(layer):
            total["table_elements"] += count
            total["table_bytes"] += taken
        elif layer in header["stacked"]:
            total["linear_elements"] += count
            total["linear_nonzeros"] += stored["nonzeros"]
            total["linear_value_bytes"] += stored["nonzeros"] * (1 if stored["dtype"] == "int8" else FP32_BYTES)
            total["linear_bytes"] += taken
    for name, taken in written.items():
        owner = name.rpartition(".")[0]
        if owner.endswith("_quantizer"):  # a grid of activations: nothing in float32 stands for it
            continue
        elements += counts[name]
        if _is_table(owner):
            total["table_elements"] += counts[name]
            total["table_bytes"] += taken
    return SparseSize(**total, elements=elements, file_bytes=file_bytes, formats=formats)


def _ratio(elements: int, taken: int) -> float | None:
    return FP32_BYTES * elements / taken if taken else None


def _is_table(layer: str) -> bool:
    """Whether a module is an embedding table, by the last part of its name in the models known here."""
    parts = layer.split(".")
    return parts[-1].endswith("_embeddings") or (len(parts) > 1 and parts[-2] == "embeddings" and parts[-1] in ("word", "position"))
