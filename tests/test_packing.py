"""Packing loses nothing and lies in memory as it is said to; reference: Python's own integers, and bytes worked by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from adasearch.errors import ConfigError, ModelError
from adasearch.packing import WIDTHS, pack, packed_size, unpack, unpack_rows, unpack_scaled

VALUES = {1: [-1, 1], 2: range(-2, 2), 4: range(-8, 8), 8: range(-128, 128)}
SHAPES = [(0,), (1,), (3,), (4,), (9,), (5, 7), (8, 6), (2, 3, 5), (1_001,)]


def drawn(bits: int, *shape: int) -> Tensor:
    """Integers of a width, each value as likely."""
    values = torch.tensor(list(VALUES[bits]), dtype=torch.int8)
    return values[torch.randint(len(values), shape)]


def by_hand(byte: int, bits: int) -> list[int]:
    """The elements of a byte, by the text of the layout."""
    fields = [byte >> (bits * place) & (2**bits - 1) for place in range(8 // bits)]
    if bits == 1:
        return [-1 if field else 1 for field in fields]
    return [field - 2**bits if field >= 2 ** (bits - 1) else field for field in fields]


@pytest.mark.parametrize(
    ("bits", "integers", "packed"),
    [
        (1, [1, -1, -1, 1, 1, 1, 1, -1, -1], [0b10000110, 0b1]),
        (2, [1, -1, 0, -2, 1], [0b10_00_11_01, 0b01]),
        (4, [-8, 7, -1], [0x78, 0x0F]),
        (8, [-128, 127, -1], [0x80, 0x7F, 0xFF]),
    ],
)
def test_bytes_worked_by_hand(bits: int, integers: list[int], packed: list[int]) -> None:
    assert pack(torch.tensor(integers, dtype=torch.int8), bits).tolist() == packed


@pytest.mark.parametrize("bits", WIDTHS)
def test_every_byte_is_read_as_the_layout_says(bits: int) -> None:
    expected = [element for byte in range(256) for element in by_hand(byte, bits)]
    assert unpack(torch.arange(256).to(torch.uint8), bits, (len(expected),)).tolist() == expected


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("bits", WIDTHS)
def test_unpacking_returns_what_was_packed(bits: int, shape: tuple[int, ...]) -> None:
    integers = drawn(bits, *shape)
    packed = pack(integers, bits)
    assert packed.dtype == torch.uint8
    assert len(packed) == packed_size(integers.numel(), bits) == -(-integers.numel() * bits // 8)
    again = unpack(packed, bits, shape)
    assert again.dtype == torch.int8
    assert torch.equal(again, integers)


def test_packing_reads_in_order_not_in_memory() -> None:
    integers = drawn(2, 6, 5)
    assert torch.equal(unpack(pack(integers.T, 2), 2, (5, 6)), integers.T)


@pytest.mark.parametrize("scale_shape", [(), (7, 1), (1, 5)], ids=str)
@pytest.mark.parametrize("bits", WIDTHS)
def test_scaled_weights_are_the_products_bit_for_bit(bits: int, scale_shape: tuple[int, ...]) -> None:
    integers, scale = drawn(bits, 7, 5), torch.rand(scale_shape) / 30
    weights = unpack_scaled(pack(integers, bits), bits, (7, 5), scale)
    assert weights.dtype == torch.float32
    assert torch.equal(weights, integers.float() * scale)


@pytest.mark.parametrize("width", [3, 8])  # rows of 3 begin within a byte
@pytest.mark.parametrize("bits", WIDTHS)
def test_rows_are_those_of_the_whole(bits: int, width: int) -> None:
    integers, rows = drawn(bits, 11, width), torch.tensor([[10, 0], [3, 3]])
    assert torch.equal(unpack_rows(pack(integers, bits), bits, (11, width), rows), integers[rows])


@pytest.mark.parametrize(
    ("bits", "integers", "says"), [(2, [0, 2], "0 to 2 .* 2 bits; choices: -2 to 1"), (4, [-9], "-8 to 7"), (1, [1, 0], "-1, 1")]
)
def test_integers_that_do_not_fit_are_refused(bits: int, integers: list[int], says: str) -> None:
    with pytest.raises(ModelError, match=says):
        pack(torch.tensor(integers, dtype=torch.int8), bits)


def test_what_cannot_be_packed_is_refused() -> None:
    with pytest.raises(ConfigError, match="3 bits; choices: 1, 2, 4, 8"):
        pack(torch.zeros(3, dtype=torch.int8), 3)
    with pytest.raises(ModelError, match="float32; choices: torch.int8"):
        pack(torch.zeros(3), 2)
    with pytest.raises(ModelError, match=r"3 elements .* \(4, 4\) at 2 bits; expected 4"):
        unpack(torch.zeros(3, dtype=torch.uint8), 2, (4, 4))
