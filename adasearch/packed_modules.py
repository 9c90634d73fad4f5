"""Layers whose weights stay packed integers, and are unpacked when they are used.

A ``PackedWeight`` is a module named as the weight it stands for: ``h.0.attn.c_attn.weight`` becomes
``h.0.attn.c_attn.weight.packed`` and ``....weight.scale``. The layers compute with ``integers * scale`` in the same
calls as torch's and transformers' own layers, so that outputs equal those of the fake-quantised model in every bit.

Dimensions: V vocabulary, D features.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adasearch.errors import ConfigError
from adasearch.packing import packed_size, unpack, unpack_rows, unpack_scaled

MEMORY = ("packed", "int8", "float")
BLOCK_ELEMENTS = 2**22  # weights unpacked at a time, 16 MiB of float32: all of a layer, a part of a vocabulary's head
ROWS_ALIGN = 8  # so many rows fill whole bytes, whatever the width


def check_memory(memory: str) -> None:
    """Raises ``ConfigError`` for what is none of ``MEMORY``."""
    if memory not in MEMORY:
        raise ConfigError(f"memory {memory!r}; choices: {', '.join(MEMORY)}")


class PackedWeight(nn.Module):
    """A matrix of ``bits``-bit integers in bytes, and the scale that makes weights of them.

    ``memory`` says what is kept: "packed" unpacks at every use, "int8" keeps the integers once used, "float" the
    weights, which is as fast and as large as a plain layer.
    """

    def __init__(self, shape: Sequence[int], bits: int, scale_shape: Sequence[int] = ()):
        super().__init__()
        self.shape, self.bits, self.memory = torch.Size(shape), bits, "packed"
        self.register_buffer("packed", torch.zeros(packed_size(self.shape.numel(), bits), dtype=torch.uint8))
        self.register_buffer("scale", torch.ones(tuple(scale_shape)))
        self._kept: Tensor | None = None

    def keep(self, memory: str) -> None:
        """Choose what is kept, and drop what was. Raises ``ConfigError``."""
        check_memory(memory)
        self.memory, self._kept = memory, None

    def _apply(self, *args: Any, **kwargs: Any) -> PackedWeight:
        """Another device or type: what was kept is of the old."""
        self._kept = None
        return super()._apply(*args, **kwargs)

    def dequantize(self) -> Tensor:
        """The weights, ``integers * scale``, in the scale's type."""
        if self.memory == "float":
            if self._kept is None:
                with torch.inference_mode(False):  # kept for callers outside of it, too, who may need gradients
                    self._kept = self._unpack(0, self.shape[0])
            return self._kept
        return self._unpack(0, self.shape[0])

    def blocks(self) -> Iterator[tuple[slice, Tensor]]:
        """The weights in blocks of rows, one at a time: large tables never lie unpacked in memory as a whole."""
        rows = max(BLOCK_ELEMENTS // self.shape[1] // ROWS_ALIGN, 1) * ROWS_ALIGN
        if self.memory == "float" or rows >= self.shape[0]:
            yield slice(None), self.dequantize()
            return
        for start in range(0, self.shape[0], rows):
            stop = min(start + rows, self.shape[0])
            yield slice(start, stop), self._unpack(start, stop)

    def rows(self, ids: Tensor) -> Tensor:
        """The weights of some rows, (*ids, D)."""
        if self.memory == "float":
            return F.embedding(ids, self.dequantize())
        integers = self._integers()[ids] if self.memory == "int8" else unpack_rows(self.packed, self.bits, self.shape, ids)
        scale = self.scale[ids] if self._is_scale_per_row() else self.scale
        return integers.float().mul_(scale.float()).to(self.scale.dtype)

    def _unpack(self, start: int, stop: int) -> Tensor:
        """The weights of rows ``start`` to ``stop``; where these are not all, they begin with a byte."""
        scale = (self.scale[start:stop] if self._is_scale_per_row() else self.scale).float()
        if self.memory == "int8":
            weights = self._integers()[start:stop].float().mul_(scale)
        else:
            width = self.shape[1]
            first = start * width * self.bits // 8
            packed = self.packed[first : first + packed_size((stop - start) * width, self.bits)]
            weights = unpack_scaled(packed, self.bits, (stop - start, width), scale)
        return weights.to(self.scale.dtype)

    def _integers(self) -> Tensor:
        if self._kept is None:
            self._kept = unpack(self.packed, self.bits, self.shape)
        return self._kept

    def _is_scale_per_row(self) -> bool:
        return self.scale.ndim > 0 and self.scale.shape[0] > 1

    def extra_repr(self) -> str:
        """Shown by ``print(model)``."""
        return f"{tuple(self.shape)}, bits={self.bits}, scales={self.scale.numel()}"


class PackedLayer(nn.Module):
    """A layer with a packed weight, of its own or, where ``is_shared``, another layer's.

    A shared weight stays out of torch's sight: it is saved, moved and counted where it belongs.
    """

    def __init__(self, weight: PackedWeight, is_shared: bool = False):
        super().__init__()
        if is_shared:
            self.__dict__["weight"] = weight
        else:
            self.weight = weight


class PackedLinear(PackedLayer):
    """``nn.Linear``: weight (out, in)."""

    def __init__(self, weight: PackedWeight, bias: nn.Parameter | None = None, is_shared: bool = False):
        super().__init__(weight, is_shared)
        self.out_features, self.in_features = weight.shape
        self.register_parameter("bias", bias)

    def forward(self, inputs: Tensor) -> Tensor:
        """inputs @ weight.T + bias, block by block of outputs."""
        outputs = None
        for rows, weight in self.weight.blocks():
            bias = None if self.bias is None else self.bias[rows]
            part = F.linear(inputs, weight, bias)
            if rows == slice(None):
                return part
            if outputs is None:
                outputs = part.new_empty(*inputs.shape[:-1], self.out_features)
            outputs[..., rows] = part
        return outputs


class PackedConv1D(PackedLayer):
    """transformers' ``Conv1D``, GPT-2's linear layer: weight (in, out)."""

    def __init__(self, weight: PackedWeight, bias: nn.Parameter):
        super().__init__(weight)
        self.nx, self.nf = weight.shape
        self.register_parameter("bias", bias)

    def forward(self, inputs: Tensor) -> Tensor:
        """inputs @ weight + bias."""
        flat = torch.addmm(self.bias, inputs.view(-1, self.nx), self.weight.dequantize())
        return flat.view(*inputs.shape[:-1], self.nf)


class PackedEmbedding(PackedLayer):
    """``nn.Embedding``, times ``embed_scale`` where the model has one (BART): weight (V, D)."""

    def __init__(
        self, weight: PackedWeight, padding_idx: int | None = None, embed_scale: float | None = None, is_shared: bool = False
    ):
        super().__init__(weight, is_shared)
        self.num_embeddings, self.embedding_dim = weight.shape
        self.padding_idx, self.embed_scale = padding_idx, embed_scale

    def forward(self, input_ids: Tensor) -> Tensor:
        """The tokens' rows."""
        rows = self.weight.rows(input_ids)
        return rows if self.embed_scale is None else rows * self.embed_scale
