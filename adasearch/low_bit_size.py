"""What a low-bit model takes: bytes by kind of tensor, as they are stored, scales and all that is not packed included.

Published ratios (QuantGPT: 14.4x for GPT-2, 13.4x for BART) leave out scales and file headers; ``nominal`` does so,
too, the other numbers do not. MiB are 2^20 bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn
from transformers import PreTrainedModel

from adasearch.errors import ModelError
from adasearch.low_bit import LowBitModel, low_bit_class, packed_weights
from adasearch.packed_modules import PackedEmbedding
from adasearch.quantize_model import token_tables

FP32_BYTES = 4
DTYPE_BITS = {"F64": 64, "F32": 32, "F16": 16, "BF16": 16, "I64": 64, "I32": 32, "I16": 16, "I8": 8, "U8": 8, "BOOL": 8}
Stored = Mapping[str, tuple[int, int]]  # tensor's name -> elements, bits of one


@dataclass(frozen=True)
class SizeRow:
    """The tensors of one kind and width. ``size_bytes`` is what they take, the ``scale_bytes`` among it included;
    ``fp32_bytes`` what their elements take unquantised."""

    kind: str
    bits: int
    tensors: int
    elements: int
    size_bytes: int
    scale_bytes: int
    fp32_bytes: int


def size_table(source: PreTrainedModel | Path | str) -> list[SizeRow]:
    """The rows of a low-bit model, or of a folder as it was written. Raises ``ModelError`` for anything else."""
    if isinstance(source, LowBitModel):
        tensors = source.state_dict(keep_vars=True)
        first = {id(t): name for name, t in reversed(tensors.items())}  # what is tied counts once, as in a file
        return _rows(source, {name: (t.numel(), t.element_size() * 8) for name, t in tensors.items() if first[id(t)] == name})
    if isinstance(source, nn.Module):
        raise ModelError(f"{type(source).__name__}: sizes are of low-bit models; pack_model makes one")
    folder = Path(source)
    stored = {}
    for file in weight_files(folder):
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118: not a dictionary
                part = tensors.get_slice(name)
                stored[name] = (torch.Size(part.get_shape()).numel(), DTYPE_BITS[part.get_dtype()])
    kind = low_bit_class(folder)
    with torch.device("meta"):
        return _rows(kind(kind.config_class.from_pretrained(folder)), stored)


def size_totals(rows: Iterable[SizeRow], file_bytes: int | None = None) -> dict[str, float]:
    """Sums of the rows, and ratios to fp32: of the bytes as stored, of the file where its size is given, and nominal."""
    rows = list(rows)
    fp32, stored = sum(row.fp32_bytes for row in rows), sum(row.size_bytes for row in rows)
    nominal = stored - sum(row.scale_bytes for row in rows)
    totals: dict[str, Any] = {
        "fp32_bytes": fp32, "stored_bytes": stored, "nominal_bytes": nominal,
        "ratio": fp32 / stored, "nominal_ratio": fp32 / nominal,
    }  # fmt: skip
    return totals if file_bytes is None else {**totals, "file_bytes": file_bytes, "file_ratio": fp32 / file_bytes}


def weight_files(folder: Path | str) -> list[Path]:
    """The folder's safetensors files. Raises ``ModelError`` where there is none."""
    files = sorted(Path(folder).glob("*.safetensors"))
    if not files:
        raise ModelError(f"{folder}: no safetensors file; choices: a folder that save_pretrained wrote")
    return files


def file_size(folder: Path | str) -> int:
    """Bytes of the folder's safetensors files, headers included."""
    return sum(file.stat().st_size for file in weight_files(folder))


def _rows(model: nn.Module, stored: Stored) -> list[SizeRow]:
    """Stored tensors summed by kind and width, the largest first."""
    found: dict[tuple[str, int], list[tuple[int, int, int, int]]] = {}
    packed = packed_weights(model)
    for name, weight in packed.items():
        layer = model.get_submodule(name.removesuffix(".weight"))
        kind = "token embedding" if isinstance(layer, PackedEmbedding) else "linear weights"
        size_bytes, scale_bytes = (elements * bits // 8 for elements, bits in (stored[f"{name}.packed"], stored[f"{name}.scale"]))
        found.setdefault((kind, weight.bits), []).append((1, weight.shape.numel(), size_bytes + scale_bytes, scale_bytes))
    for name, (elements, bits) in stored.items():
        if name.rpartition(".")[0] not in packed:
            found.setdefault((_kind(model, name), bits), []).append((1, elements, elements * bits // 8, 0))
    rows = []
    for (kind, bits), parts in found.items():
        tensors, elements, size_bytes, scale_bytes = map(sum, zip(*parts))
        rows.append(SizeRow(kind, bits, tensors, elements, size_bytes, scale_bytes, elements * FP32_BYTES))
    return sorted(rows, key=lambda row: -row.size_bytes)


def _kind(model: nn.Module, name: str) -> str:
    """What a tensor that is not packed is."""
    owner, _, last = name.rpartition(".")
    layer = model.get_submodule(owner)
    if isinstance(layer, nn.LayerNorm):
        return "layer norms"
    if isinstance(layer, nn.Embedding):
        return "token embedding" if any(layer is table for table in token_tables(model)) else "positions"
    if last == "final_logits_bias":
        return "final logits bias"
    return "biases" if last == "bias" else "linear weights"
