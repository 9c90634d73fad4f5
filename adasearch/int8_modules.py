"""Layers that hold int8 integers, and the twin of a quantised model made of them: what is stored, loaded and exported.

The layers compute with ``integers * scale`` in the same calls as the layers they stand for, so the twin's outputs are those
of the quantised model in eval mode, bit for bit. Int8 kernels are a runtime's (ONNX); here nothing is faster.

Dimensions: O outputs, I inputs, K kernel, V vocabulary, D features.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from adasearch.activation_quantizers import HIGH, LOW, ActivationQuantizer, RoundAffine
from adasearch.errors import ModelError
from adasearch.quantize_aware import INPUT, OUTPUT, bake_int8, find_int8
from adasearch.quantize_model import weight_integers

GRIDS = (INPUT, OUTPUT)


class Grid(nn.Module):
    """Rounding of activations to fixed uint8 levels."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.ones(()))
        self.register_buffer("zero_point", torch.zeros((), dtype=torch.uint8))

    @classmethod
    def of(cls, quantizer: ActivationQuantizer) -> Grid:
        """The levels a quantiser has learned. Raises ``ModelError`` where it has seen nothing."""
        grid = cls()
        scale, zero_point = quantizer.grid()
        grid.scale, grid.zero_point = scale.clone(), zero_point.to(torch.uint8)
        return grid

    def forward(self, values: Tensor) -> Tensor:
        """The rounded values."""
        return RoundAffine.apply(values, self.scale, self.zero_point, LOW, HIGH)


class Int8Layer(nn.Module):
    """What all of them have: integers, shaped like the weight; a scale, () or one a row; bias; grids of input and output."""

    def __init__(self, shape: Sequence[int], scale_shape: Sequence[int], bias: nn.Parameter | None, grids: Iterable[str] = ()):
        super().__init__()
        self.register_buffer("integers", torch.zeros(tuple(shape), dtype=torch.int8))
        self.register_buffer("scale", torch.ones(tuple(scale_shape)))
        self.register_parameter("bias", bias)
        for name in GRIDS:
            self.add_module(name, Grid() if name in grids else None)

    @property
    def weight(self) -> Tensor:
        """The weights, float32, made anew at every call: only the integers are kept."""
        return self.integers.float().mul_(self.scale)

    def _rounded(self, kind: str, values: Tensor) -> Tensor:
        grid = self._modules[kind]
        return values if grid is None else grid(values)


class Int8Linear(Int8Layer):
    """``nn.Linear``: integers (O, I)."""

    def __init__(self, layer: nn.Linear, scale_shape: Sequence[int], grids: Iterable[str] = ()):
        super().__init__((layer.out_features, layer.in_features), scale_shape, layer.bias, grids)
        self.in_features, self.out_features = layer.in_features, layer.out_features

    def forward(self, inputs: Tensor) -> Tensor:
        """inputs @ weight.T + bias."""
        return self._rounded(OUTPUT, F.linear(self._rounded(INPUT, inputs), self.weight, self.bias))


class Int8Conv1d(Int8Layer):
    """``nn.Conv1d``: integers (O, I / groups, K)."""

    def __init__(self, layer: nn.Conv1d, scale_shape: Sequence[int], grids: Iterable[str] = ()):
        shape = (layer.out_channels, layer.in_channels // layer.groups, *layer.kernel_size)
        super().__init__(shape, scale_shape, layer.bias, grids)
        if layer.padding_mode != "zeros":
            raise ModelError(f"Conv1d: padding_mode {layer.padding_mode!r} has no int8 layer; choices: zeros")
        self.stride, self.padding, self.dilation, self.groups = layer.stride, layer.padding, layer.dilation, layer.groups
        self.kernel_size = layer.kernel_size

    def forward(self, inputs: Tensor) -> Tensor:
        """The convolution over the last dimension, with its bias."""
        inputs = self._rounded(INPUT, inputs)
        return self._rounded(OUTPUT, F.conv1d(inputs, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups))


class Int8Embedding(Int8Layer):
    """``nn.Embedding``: integers (V, D), scale (V, 1). Rows are scaled after they were looked up."""

    def __init__(self, layer: nn.Embedding, scale_shape: Sequence[int], grids: Iterable[str] = ()):
        super().__init__((layer.num_embeddings, layer.embedding_dim), scale_shape, None)
        self.num_embeddings, self.embedding_dim, self.padding_idx = layer.num_embeddings, layer.embedding_dim, layer.padding_idx

    def forward(self, input_ids: Tensor) -> Tensor:
        """The tokens' rows."""
        return self.integers[input_ids].float() * self.scale[input_ids]


KINDS = {nn.Linear: Int8Linear, nn.Conv1d: Int8Conv1d, nn.Embedding: Int8Embedding}


def int8_twin(model: PreTrainedModel) -> PreTrainedModel:
    """A copy of a model with int8 quantisers in which integers take the place of weights and quantisers.

    In eval mode; the model stays as it is. Raises ``ModelError`` where nothing is quantised or no range was learned.
    """
    found = find_int8(model)
    if not found.weights:
        raise ModelError(f"{type(model).__name__}: it has no int8 quantisers; attach_int8 puts them in")
    twin = copy.deepcopy(model).eval()
    grids = {kind: {name: Grid.of(q) for name, q in part.items()} for kind, part in ((INPUT, found.inputs), (OUTPUT, found.outputs))}
    weights = {name: weight_integers(model.get_submodule(name)) for name in found.weights}
    bake_int8(twin)
    shapes = {name: (tuple(scale.shape), [kind for kind in GRIDS if name in grids[kind]]) for name, (_, scale) in weights.items()}
    swap_layers(twin, shapes)
    for name, (integers, scale) in weights.items():
        layer = twin.get_submodule(name)
        layer.integers, layer.scale = integers, scale.float()
        for kind in shapes[name][1]:
            layer._modules[kind] = grids[kind][name]
    return twin


def swap_layers(model: PreTrainedModel, shapes: Mapping[str, tuple[Sequence[int], Sequence[str]]]) -> None:
    """Edit in place: the named layers become int8 ones, without data. ``shapes``: of a layer's scale, and which grids it has."""
    for name, (scale_shape, grids) in shapes.items():
        try:
            layer = model.get_submodule(name)
        except AttributeError as error:
            raise ModelError(f"{type(model).__name__}: there is no layer {name}, so no int8 one can take its place") from error
        kind = next((ours for theirs, ours in KINDS.items() if isinstance(layer, theirs)), None)
        if kind is None:
            raise ModelError(f"{name} is a {type(layer).__name__}; int8 layers stand for: Linear, Conv1d, Embedding")
        model.set_submodule(name, kind(layer, scale_shape, grids).train(layer.training))


def int8_layers(model: nn.Module) -> dict[str, Int8Layer]:
    """The int8 layers of a twin, by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, Int8Layer)}
