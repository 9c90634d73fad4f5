"""The teacher's layers put into ``inherited`` operations: which heads and neurons are worth most, and their weights.

A head or neuron is worth what the teacher's loss would change, to first order, if it were taken away: the mean over
examples of |a . dL/da|, a being its output (Michel, Levy & Neubig 2019, section 4.1; for neurons, Molchanov et al. 2017).

Dimensions: B batch, L tokens, N layers, H heads, K head size, F neurons, M hidden size, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from adasearch.architecture import Macro, Space
from adasearch.encoder import FAMILIES
from adasearch.errors import ConfigError, ModelError
from adasearch.inherited import Inherited
from adasearch.objectives import task_loss
from adasearch.student import Trunk

PREFIX = "inherited_"
PARTS = {  # names in ``Inherited`` -> those in a layer of our encoder, from which ``encoder`` knows every family's
    "query": "attention.query", "key": "attention.key", "value": "attention.value", "output": "attention.output",
    "attention_norm": "attention_norm", "widen": "ffn.input", "narrow": "ffn.output", "output_norm": "ffn_norm",
}  # fmt: skip
Batch = Mapping[str, Tensor]
Logits = Callable[[Tensor, Tensor], Tensor]  # (input_ids, attention_mask) -> (B, C)


@dataclass(frozen=True)
class Importance:
    """How much each head and neuron of every layer is worth to the teacher; only the order within a layer matters."""

    heads_NH: Tensor
    neurons_NF: Tensor


def inherited_operations(space: Space) -> list[str]:
    """The candidates of a space that are layers of the teacher."""
    return [name for name in (*space.operations, *space.pair_operations) if name.startswith(PREFIX)]


def check_inherited(space: Space, config: PreTrainedConfig | None, where: str) -> None:
    """Raise ``ConfigError`` or ``ModelError`` unless a teacher of that configuration has the layers that the space wants.

    ``config`` is None where there is no teacher; ``where`` names it in errors.
    """
    wanted = inherited_operations(space)
    if not wanted:
        return
    if config is None:
        raise ConfigError(f"space: {space.name!r} has {wanted[0]!r}, which needs a teacher; choices: --teacher, another space")
    model_type = getattr(config, "model_type", None)
    if model_type not in FAMILIES:
        raise ModelError(f"{where}: the layers of a {model_type!r} model cannot be inherited; choices: {', '.join(FAMILIES)}")
    activation = getattr(config, "hidden_act", None) or getattr(config, "activation", None)
    if activation != "gelu":
        raise ModelError(f"{where}: its layers have the activation {activation!r}; inherited ones have 'gelu'")
    macro = space.macro
    neurons = getattr(config, "intermediate_size", None) or getattr(config, "hidden_dim", None)
    there = {"teacher_size": config.hidden_size, "teacher_heads": config.num_attention_heads, "teacher_neurons": neurons}
    for name, count in there.items():
        if getattr(macro, name) != count:
            raise ConfigError(f"space {space.name!r}: macro.{name}: {getattr(macro, name)!r}, but {where} has {count}; choices: {count}")
    if space.cells[1] > config.num_hidden_layers:
        raise ConfigError(
            f"space {space.name!r}: cells: up to {space.cells[1]}, but {where} has {config.num_hidden_layers} layers and cell k"
            f" inherits layer k; choices: up to {config.num_hidden_layers}"
        )


def layers_of(model: PreTrainedModel) -> list[dict[str, nn.Module]]:
    """The parts of every layer by the names that ``Inherited`` gives them. Raises ``ModelError`` for other models."""
    if model.config.model_type not in FAMILIES:
        raise ModelError(f"the layers of a {model.config.model_type!r} model cannot be inherited; choices: {', '.join(FAMILIES)}")
    _, place, names, _ = FAMILIES[model.config.model_type]
    return [{ours: layer.get_submodule(names[part]) for ours, part in PARTS.items()} for layer in model.base_model.get_submodule(place)]


def importance(model: PreTrainedModel, logits: Logits, batches: Iterator[Batch] | list[Batch], problem_type: str) -> Importance:
    """First-order worth of every head and neuron, on labelled batches (``input_ids``, ``attention_mask``, ``labels``).

    ``logits`` calls the model (segment ids included), which is left as it was. Its weights need no gradient: those of
    gates of value 1 are taken, one an example, head and neuron; each is the sum of a . dL/da over the example's tokens.
    """
    layers, heads = layers_of(model), model.config.num_attention_heads
    totals: list[list[Tensor]] = []
    was_training = model.training
    model.eval()
    for batch in batches:
        with _gated(layers, heads, len(batch["input_ids"])) as gates, torch.enable_grad():
            loss = task_loss(logits(batch["input_ids"], batch["attention_mask"]), batch["labels"], problem_type).sum()
            found = torch.autograd.grad(loss, gates)
        sums = [gradient.abs().sum(0)[0] for gradient in found]
        totals = [[sum_] for sum_ in sums] if not totals else [[old[0] + new] for old, new in zip(totals, sums)]
    model.train(was_training)
    summed = [total[0].cpu() for total in totals]
    return Importance(torch.stack(summed[::2]), torch.stack(summed[1::2]))


@contextmanager
def _gated(layers: list[dict[str, nn.Module]], heads: int, batch: int) -> Iterator[list[Tensor]]:
    """While open, every head and every neuron is multiplied by a gate of value 1, (B, 1, H) and (B, 1, F) in turn."""
    gates: list[Tensor] = []
    handles = []

    def gate_by(gate: Tensor, repeats: int) -> Callable[[nn.Module, tuple[Tensor, ...]], Any]:
        return lambda _, inputs: (inputs[0] * gate.repeat_interleave(repeats, -1),)

    for layer in layers:
        for name, count in (("output", heads), ("narrow", layer["narrow"].in_features)):
            weight = layer[name].weight
            gate = torch.ones(batch, 1, count, device=weight.device, requires_grad=True)
            gates.append(gate)
            handles.append(layer[name].register_forward_pre_hook(gate_by(gate, layer[name].in_features // count)))
    try:
        yield gates
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def inherit_layers(trunk: Trunk, model: PreTrainedModel, worth: Importance) -> int:
    """Edit in place: fill every inherited operation of the trunk's cells; returns how many there are.

    Cell k takes layer k, of it the heads and neurons that are worth most, in their old order. Projections start as the
    student's own view of the teacher's space, the embedding's projection and its transpose. Where the width is the
    teacher's the embeddings become the teacher's as well (see ``inherit_frame``), so a student of whole layers computes
    what the teacher does.
    """
    layers, head_size = layers_of(model), model.config.hidden_size // model.config.num_attention_heads
    count = 0
    for number, cell in enumerate(trunk.cells):
        for operation in (module for module in cell.modules() if isinstance(module, Inherited)):
            heads = worth.heads_NH[number].topk(operation.heads).indices.sort().values
            neurons = worth.neurons_NF[number].topk(operation.neurons).indices.sort().values
            _fill(operation, layers[number], heads, neurons, head_size)
            if operation.up is not None:
                seen_DM = trunk.embeddings.projection.weight[: operation.width]
                if seen_DM.shape == operation.down.weight.shape:
                    operation.down.weight.copy_(seen_DM)
                    operation.up.weight.copy_(seen_DM.mT)
            count += 1
    if count and trunk.macro.teacher_size == trunk.embeddings.norm.weight.shape[0]:
        inherit_frame(trunk, model)
    return count


def _fill(operation: Inherited, layer: Mapping[str, nn.Module], heads: Tensor, neurons: Tensor, head_size: int) -> None:
    channels = (heads[:, None] * head_size + torch.arange(head_size)).flatten()
    for name in ("query", "key", "value"):
        ours, theirs = getattr(operation, name), layer[name]
        ours.weight.copy_(theirs.weight.cpu()[channels])
        if ours.bias is not None:
            ours.bias.copy_(theirs.bias.cpu()[channels])
    operation.output.weight.copy_(layer["output"].weight.cpu()[:, channels])
    operation.widen.weight.copy_(layer["widen"].weight.cpu()[neurons])
    operation.widen.bias.copy_(layer["widen"].bias.cpu()[neurons])
    operation.narrow.weight.copy_(layer["narrow"].weight.cpu()[:, neurons])
    for name in ("output", "narrow"):
        getattr(operation, name).bias.copy_(layer[name].bias)
    for name in ("attention_norm", "output_norm"):
        getattr(operation, name).weight.copy_(layer[name].weight)
        getattr(operation, name).bias.copy_(layer[name].bias)


def inherit_frame(trunk: Trunk, model: PreTrainedModel) -> None:
    """Edit in place: embeddings that give what the teacher's give, for a trunk of its width.

    The projection becomes the identity (it loses as little as any other rotation), the first segment's vector goes into
    the positions, the normalisation is the teacher's. A pair's second segment has the first one's vector.
    """
    embeddings, theirs = trunk.embeddings, model.base_model.embeddings
    if embeddings.projection is not None:
        torch.nn.init.eye_(embeddings.projection.weight)
    kinds = getattr(theirs, "token_type_embeddings", None)
    if embeddings.position is not None and kinds is not None:
        embeddings.position.weight += kinds.weight[0].cpu()
    embeddings.norm.weight.copy_(theirs.LayerNorm.weight)
    embeddings.norm.bias.copy_(theirs.LayerNorm.bias)


def check_macro(macro: Macro, widths: tuple[int, ...], where: str) -> None:
    """Raise ``ConfigError`` when the teacher's sizes in a space cannot be; ``where`` begins the error."""
    size, heads = macro.teacher_size, macro.teacher_heads
    if size is None or heads is None or macro.teacher_neurons is None:
        raise ConfigError(f"{where}: inherited operations need macro.teacher_size, macro.teacher_heads and macro.teacher_neurons")
    if size % heads:
        raise ConfigError(f"{where}: macro.teacher_size: {size} is no multiple of macro.teacher_heads {heads}")
    if size in widths and len(widths) > 1:
        raise ConfigError(
            f"{where}: widths: {list(widths)} mix the teacher's {size} with others, where its layers need projections;"
            f" choices: [{size}] alone, or widths without it"
        )
