"""Small integers packed into bytes: the one place that knows the layout.

Layout: the tensor is read in its own (row-major) order. Each element takes ``bits`` bits, in two's complement, and
the first of a byte's elements lies in its lowest bits (little-endian). Of 2-bit elements a, b, c, d the byte is
``a | b << 2 | c << 4 | d << 6``, each taken modulo 4. One bit alone is a sign: 0 stands for 1, 1 for -1. The last byte
is filled with zeros; nothing else is padded, so a tensor of n elements takes ``ceil(n * bits / 8)`` bytes. Ternary
weights take 2 bits, as published (QuantGPT's 32.9 MiB for GPT-2); log2(3) = 1.58 would be possible, but no byte would
hold whole elements of its own.

Unpacking looks bytes up in a table of 256 rows, one per byte value. Measured on one thread for 2.4M elements of 2 bits:
0.25 ms against 0.87 ms for shifts and masks; 0.37 ms straight to scaled float32, against 0.51 ms by way of int8.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from adasearch.errors import ConfigError, ModelError

WIDTHS = (1, 2, 4, 8)  # a byte holds whole elements of these
_WIDE = {1: torch.int64, 2: torch.int32, 4: torch.int16}  # one number of this type holds the int8 elements of a byte


def packed_size(elements: int, bits: int) -> int:
    """Bytes that so many elements take. Raises ``ConfigError`` for a width that is not packed."""
    _check(bits)
    return math.ceil(elements * bits / 8)


def pack(integers: Tensor, bits: int) -> Tensor:
    """Pack int8 values of any shape into flat uint8.

    Raises ``ConfigError`` for an unknown width, ``ModelError`` for values outside [-2^(bits-1), 2^(bits-1) - 1]; of one
    bit, for others than -1 and 1.
    """
    _check(bits)
    if integers.dtype != torch.int8:
        raise ModelError(f"integers to be packed are {integers.dtype}; choices: torch.int8")
    flat = integers.reshape(-1)
    low, high = (-1, 1) if bits == 1 else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    if len(flat) and not (low <= flat.min() and flat.max() <= high):
        raise ModelError(f"integers {flat.min()} to {flat.max()} do not fit into {bits} bits; choices: {low} to {high}")
    if bits == 1:
        if (flat == 0).any():
            raise ModelError("integers 0 do not fit into 1 bit; choices: -1, 1")
        flat = (flat < 0).to(torch.int8)
    if bits == 8:
        return flat.view(torch.uint8).clone()
    per_byte = 8 // bits
    fields = torch.nn.functional.pad(flat, (0, -len(flat) % per_byte)).view(torch.uint8).view(-1, per_byte) & (2**bits - 1)
    packed = fields[:, 0].clone()
    for place in range(1, per_byte):
        packed |= fields[:, place] << (place * bits)
    return packed


def unpack(packed: Tensor, bits: int, shape: Sequence[int]) -> Tensor:
    """The int8 tensor of ``shape`` that was packed. Raises ``ModelError`` where the number of bytes is another's."""
    _check_size(packed, bits, shape)
    if bits == 8:
        return packed.view(torch.int8).view(*shape).clone()
    wide = _levels(bits, packed.device).view(_WIDE[bits]).flatten()
    return wide.index_select(0, packed.int()).view(torch.int8)[: math.prod(shape)].view(*shape)


def unpack_rows(packed: Tensor, bits: int, shape: Sequence[int], rows: Tensor) -> Tensor:
    """Some rows of an int8 matrix (R, D): ``unpack(...)[rows]``, (*rows, D), without unpacking the others."""
    _check_size(packed, bits, shape)
    width = shape[1]
    if width * bits % 8 == 0:  # rows begin with a byte
        return unpack(packed.view(shape[0], width * bits // 8)[rows].flatten(), bits, (*rows.shape, width))
    places = rows[..., None] * width + torch.arange(width, device=rows.device)  # of the elements in the whole
    return _levels(bits, packed.device)[packed[places * bits // 8].int(), places % (8 // bits)]


def unpack_scaled(packed: Tensor, bits: int, shape: Sequence[int], scale: Tensor) -> Tensor:
    """``unpack(...) * scale`` in float32, bit for bit, without the integers in between where one scale serves all.

    ``scale`` is float32 and broadcasts to ``shape``: (), or one number a row or column.
    """
    _check_size(packed, bits, shape)
    if scale.numel() > 1 or bits in (1, 8):  # 8 floats are wider than any number type; 8 bits need no table
        integers = packed.view(torch.int8).view(*shape) if bits == 8 else unpack(packed, bits, shape)
        return integers.float().mul_(scale)
    products = _levels(bits, packed.device).float() * scale  # 256 rows: the same products as of all the weights
    wide = products.view(torch.complex128 if bits == 2 else torch.int64).flatten()  # only copied, never computed with
    return wide.index_select(0, packed.int()).view(torch.float32)[: math.prod(shape)].view(*shape)


@lru_cache(maxsize=16)
def _levels(bits: int, device: torch.device) -> Tensor:
    """The int8 elements of every byte value, (256, 8 / bits)."""
    if bits == 1:
        places = torch.arange(8, device="cpu")
        return (1 - 2 * (torch.arange(256, device="cpu")[:, None] >> places & 1)).to(device, torch.int8)
    values = torch.arange(256, dtype=torch.uint8, device="cpu").view(torch.int8)
    # shifted up until the field's sign is the byte's, then down: int8 keeps its sign
    fields = [(values << (8 - bits * (place + 1))) >> (8 - bits) for place in range(8 // bits)]
    return torch.stack(fields, dim=1).to(device)


def _check(bits: int) -> None:
    if bits not in WIDTHS:
        raise ConfigError(f"cannot pack {bits} bits; choices: {', '.join(map(str, WIDTHS))}")


def _check_size(packed: Tensor, bits: int, shape: Sequence[int]) -> None:
    expected = packed_size(math.prod(shape), bits)
    if packed.dtype != torch.uint8 or packed.numel() != expected:
        raise ModelError(
            f"packed weights: {packed.numel()} elements of {packed.dtype} cannot be {tuple(shape)} at {bits} bits; "
            f"expected {expected} of torch.uint8"
        )
