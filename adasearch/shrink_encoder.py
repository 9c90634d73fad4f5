"""An encoder under gates -> the physically smaller encoder that computes the same without any.

The law: ``shrink_encoder(model, z)(x) == model(x, gates=z)`` in eval mode to rounding, whatever the values. The folds are
exact (the released CoFi's are not: they leave LayerNorms' gains and the residual as they were): a hidden dimension's value
goes into the embedding tables' columns, every LayerNorm's gain and bias and the rows of both output layers; a sublayer's
into its output layer; heads' and neurons' into the output layers' columns. Nothing else is touched but cut.

Dimensions: D hidden, H heads, K head width, F neurons.
"""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
from torch import Tensor

from adasearch.encoder_layers import EncoderPreTrainedModel
from adasearch.encoder_parts import EncoderLayer
from adasearch.errors import ModelError
from adasearch.gate_values import GateValues, is_open

Model = TypeVar("Model", bound=EncoderPreTrainedModel)


@torch.no_grad()
def shrink_encoder(model: Model, values: GateValues) -> Model:
    """The smaller model, of the same class, in the same mode; ``model`` stays as it is.

    Whatever has a value of exactly 0 is cut away, every other value is folded into weights. Layers stay countable: one
    without any sublayer passes its input on. The classifier's dense layer keeps its rows, question answering its two.
    Raises ``ModelError`` when the sizes differ or no hidden dimension is left.
    """
    config = model.config
    values.check(config.heads, config.neurons, config.hidden_size)
    device = model.get_input_embeddings().weight.device
    z_D = torch.ones(config.hidden_size, device=device) if values.hidden_D is None else values.hidden_D.detach().to(device)
    kept_D = z_D.nonzero().flatten()
    if not len(kept_D):
        raise ModelError("gates: no hidden dimension is left; an encoder needs one")
    state: dict[str, Tensor] = {}
    heads, neurons = [], []
    for n, layer in enumerate(model.encoder.layers):
        gates = {name: None if gate is None else gate.detach().to(device) for name, gate in values.of_layer(n).items()}
        left_heads, left_neurons = _shrink_layer(f"encoder.layers.{n}.", layer, z_D, kept_D, state, **gates)
        heads.append(left_heads)
        neurons.append(left_neurons)
    for name, tensor in model.state_dict().items():
        if name.startswith("encoder.embeddings."):
            state[name] = (tensor * z_D)[..., kept_D]
        elif name in ("head.dense.weight", "qa_outputs.weight"):
            state[name] = tensor[:, kept_D]
        elif not name.startswith("encoder.layers."):
            state[name] = tensor.clone()
    smaller_config = copy.deepcopy(config)
    smaller_config.hidden_size, smaller_config.heads, smaller_config.neurons = len(kept_D), heads, neurons
    with torch.device("meta"):  # no memory and no random numbers for weights that are replaced at once
        smaller = type(model)(smaller_config)
    smaller.load_state_dict({name: tensor.contiguous() for name, tensor in state.items()}, assign=True)
    return smaller.train(model.training)


def _shrink_layer(
    prefix: str, layer: EncoderLayer, z_D: Tensor, kept_D: Tensor, state: dict[str, Tensor], mha: Tensor | None,
    heads: Tensor | None, ffn: Tensor | None, neurons: Tensor | None,
) -> tuple[int, int]:  # fmt: skip
    """Write what is left of a layer into ``state``; returns how many heads and neurons that are."""
    left = [0, 0]
    if layer.attention is not None and is_open(mha, heads):
        attention, K = layer.attention, layer.attention.head_size
        gate_H = torch.ones(attention.heads, device=z_D.device) if heads is None else heads
        kept_H = gate_H.nonzero().flatten()
        rows = (kept_H[:, None] * K + torch.arange(K, device=z_D.device)).flatten()
        for name in ("query", "key", "value"):
            linear = getattr(attention, name)
            state[f"{prefix}attention.{name}.weight"] = linear.weight[rows][:, kept_D]
            state[f"{prefix}attention.{name}.bias"] = linear.bias[rows]
        _put_output(f"{prefix}attention", attention.output, gate_H.repeat_interleave(K), rows, mha, z_D, kept_D, state)
        _put_norm(f"{prefix}attention_norm", layer.attention_norm, z_D, kept_D, state)
        left[0] = len(kept_H)
    if layer.ffn is not None and is_open(ffn, neurons):
        gate_F = torch.ones(layer.ffn.input.out_features, device=z_D.device) if neurons is None else neurons
        kept_F = gate_F.nonzero().flatten()
        state[f"{prefix}ffn.input.weight"] = layer.ffn.input.weight[kept_F][:, kept_D]
        state[f"{prefix}ffn.input.bias"] = layer.ffn.input.bias[kept_F]
        _put_output(f"{prefix}ffn", layer.ffn.output, gate_F, kept_F, ffn, z_D, kept_D, state)
        _put_norm(f"{prefix}ffn_norm", layer.ffn_norm, z_D, kept_D, state)
        left[1] = len(kept_F)
    return left[0], left[1]


def _put_output(
    name: str, output: torch.nn.Linear, gate_I: Tensor, kept_I: Tensor, own: Tensor | None, z_D: Tensor, kept_D: Tensor,
    state: dict[str, Tensor],
) -> None:  # fmt: skip
    """The output layer of a sublayer: columns times heads' or neurons' values, rows and bias times its own and hidden's."""
    rows_D = z_D if own is None else z_D * own
    state[f"{name}.output.weight"] = (output.weight * gate_I * rows_D[:, None])[kept_D][:, kept_I]
    state[f"{name}.output.bias"] = (output.bias * rows_D)[kept_D]


def _put_norm(name: str, norm: torch.nn.LayerNorm, z_D: Tensor, kept_D: Tensor, state: dict[str, Tensor]) -> None:
    state[f"{name}.weight"], state[f"{name}.bias"] = (norm.weight * z_D)[kept_D], (norm.bias * z_D)[kept_D]
