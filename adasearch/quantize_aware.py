"""int8 while training: quantisers put into a classifier's linear layers and convolutions, found again, taken out.

Each layer's weight gets a weight quantiser as its last parametrisation (after a mask: what is pruned stays exactly 0),
its input an ``ActivationQuantizer``, and so its output where it is handed to an int8 operation. As published (Zafrir et al.
2021, on Q8BERT, 2019), outputs stay as they are where sums are added to a residual, in the values of attention and in the
task's head. Any model of ``nn.Linear`` will do: BERT, DistilBERT, RoBERTa, our encoder; a searched student's
``nn.Conv1d`` as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.nn.utils import parametrize
from transformers import PreTrainedModel

from adasearch.activation_quantizers import MOMENTUM, ActivationQuantizer
from adasearch.errors import ConfigError, ModelError
from adasearch.quantize_model import parametrize_weight
from adasearch.quantizers import WEIGHT_QUANTIZERS
from adasearch.weight_quantizer import WeightQuantizer

LAYERS = (nn.Linear, nn.Conv1d)
HEADS = ("classifier", "qa_outputs", "out_proj", "score")  # the task's own layer, by the last part of its name
# what is added to a residual, and attention's values, in the words of BERT, DistilBERT and our encoder
EXACT_OUTPUTS = ("output.dense", "attention.output", "ffn.output", "out_lin", "lin2", "value", "v_lin")
OUTPUTS = ("published", "all", "none")
INPUT, OUTPUT = "input_quantizer", "output_quantizer"  # the submodules of a layer that hold them
MARK = "adasearch_int8"  # in the config of what was baked


@dataclass
class Int8Layers:
    """What is quantised in a model: weight quantisers by the names of their layers, input and output quantisers likewise."""

    weights: dict[str, WeightQuantizer] = field(default_factory=dict)
    inputs: dict[str, ActivationQuantizer] = field(default_factory=dict)
    outputs: dict[str, ActivationQuantizer] = field(default_factory=dict)

    @property
    def activations(self) -> list[ActivationQuantizer]:
        """Those of inputs and outputs."""
        return [*self.inputs.values(), *self.outputs.values()]

    def learned(self) -> list[nn.Parameter]:
        """Scales that are trained: they take no weight decay."""
        return [scale for quantizer in self.weights.values() for scale in quantizer.learned()]


def attach_int8(
    model: PreTrainedModel, *, quantizer: str = "min_max", per: str = "tensor", outputs: str = "published", exclude: Sequence[str] = (),
    embeddings: bool = False, momentum: float = MOMENTUM,
) -> Int8Layers:  # fmt: skip
    """Edit ``model`` in place: its layers compute with int8 weights and uint8 inputs, simulated in float32.

    Args:
        quantizer: of the weights, a name in ``WEIGHT_QUANTIZERS`` that knows 8 bits. Scales that are means leave out what a
            mask has set to 0.
        per: one scale a "tensor" (as published) or a "row" (one for each output unit).
        outputs: whose outputs are rounded: "published" (see above; of a convolution always, since int8 convolutions hand on
            int8), "all" or "none".
        exclude: layers left as they are: parts of names, such as "classifier" or "layer.0.".
        embeddings: the word table too, to int8 with a scale for each row. A layer that shares a table's weight, as a masked language
            model's decoder, stays as it is: one weight cannot lie on two grids.
        momentum: of the activations' ranges.

    Raises ``ConfigError`` for an unknown setting, or an exclusion that no layer's name holds, ``ModelError`` for a model that
    is quantised already, or whose word table is to be int8 and is a layer's weight as well. The model is left as it was.
    """
    _check(quantizer, per, outputs)
    refuse_quantised(model)
    layers = {name: module for name, module in model.named_modules() if isinstance(module, LAYERS)}
    tables = [module.weight for module in model.modules() if isinstance(module, nn.Embedding)]
    tied = [name for name, module in layers.items() if any(module.weight is table for table in tables)]
    if tied and embeddings:
        raise ModelError(f"{type(model).__name__}: embeddings: the word table is {tied[0]}'s weight as well; choices: embeddings false")
    layers = {name: module for name, module in layers.items() if name not in tied}
    for part in exclude:
        if not any(part in name for name in layers):
            raise ConfigError(f"exclude: no layer's name holds {part!r}; layers are such as {', '.join(list(layers)[:3])}")
    chosen = {name: layer for name, layer in layers.items() if not any(part in name for part in exclude)}
    if not chosen:
        raise ModelError(f"{type(model).__name__}: no linear layer or convolution is left to quantise")
    make, options = WEIGHT_QUANTIZERS[quantizer], {} if WEIGHT_QUANTIZERS[quantizer].HAS_FIXED_LEVELS else {"full_range": True}
    made = {name: make(layer.weight.detach(), 8, per=per, row_dim=0, skip_zeros=True, **options) for name, layer in chosen.items()}
    table = _word_table(model) if embeddings else None
    if table is not None:  # as wide a range as weights', but -127..127: a graph's int8 table is symmetric
        made[table] = WEIGHT_QUANTIZERS["min_max"](model.get_submodule(table).weight.detach(), 8, per="row", row_dim=0)
    for name, weight_quantizer in made.items():
        parametrize_weight(model.get_submodule(name), [weight_quantizer])
    for name, layer in chosen.items():
        layer.add_module(INPUT, ActivationQuantizer(momentum).to(layer.weight.device).train(model.training))
        layer.register_forward_pre_hook(_round_input)
        if rounds_output(name, layer, outputs):
            layer.add_module(OUTPUT, ActivationQuantizer(momentum).to(layer.weight.device).train(model.training))
            layer.register_forward_hook(_round_output)
    return find_int8(model)


def rounds_output(name: str, layer: nn.Module, outputs: str = "published") -> bool:
    """Whether a layer's output is rounded."""
    if outputs != "published":
        return outputs == "all"
    if is_head(name):
        return False
    return isinstance(layer, nn.Conv1d) or not any(f".{name}".endswith(f".{part}") for part in EXACT_OUTPUTS)


def is_head(name: str) -> bool:
    """Whether a layer is the task's own, by its name."""
    return name.rpartition(".")[2] in HEADS


def stacked_layers(model: PreTrainedModel) -> list[str]:
    """Names of the layers in the stacks of a model's body (BERT's layers, a student's cells): what is pruned, and counted.

    Poolers, read-outs and heads stand outside of them.
    """
    body = model.base_model
    stacks = [module for module in body.modules() if isinstance(module, nn.ModuleList)]
    inside = {id(module) for stack in stacks for module in stack.modules()}
    return [name for name, module in model.named_modules() if id(module) in inside and isinstance(module, LAYERS) and not is_head(name)]


def find_int8(model: nn.Module) -> Int8Layers:
    """The quantisers of a model, of a copy of one too; empty where there are none."""
    found = Int8Layers()
    for name, module in model.named_modules():
        if isinstance(module, (*LAYERS, nn.Embedding)) and parametrize.is_parametrized(module, "weight"):
            last = module.parametrizations.weight[-1]
            if isinstance(last, WeightQuantizer):
                found.weights[name] = last
        for kind, quantizers in ((INPUT, found.inputs), (OUTPUT, found.outputs)):
            quantizer = getattr(module, "_modules", {}).get(kind)
            if isinstance(quantizer, ActivationQuantizer):
                quantizers[name] = quantizer
    return found


def refuse_quantised(model: PreTrainedModel) -> None:
    """Raise ``ModelError`` where a model has been quantised: its weights lie on a grid, and a second one would not be this."""
    chains = [module.parametrizations.weight for module in model.modules() if parametrize.is_parametrized(module, "weight")]
    is_quantised = any(isinstance(part, WeightQuantizer) for chain in chains for part in chain)
    if is_quantised or getattr(model.config, MARK, None):
        raise ModelError(
            f"{type(model).__name__}: it is quantised already; quantising comes last, once: mask first, then quantise."
            " choices: the model from before its quantisation"
        )


def bake_int8(model: PreTrainedModel, facts: dict[str, Any] | None = None) -> Int8Layers:
    """Take everything out in place: weights keep their rounded values, masks are gone, activations pass as they are.

    The config is marked with ``facts``, so that the model is not quantised a second time. Returns what was there.
    """
    found = find_int8(model)
    for module in model.modules():  # a layer that int8 leaves out may have a mask
        if parametrize.is_parametrized(module, "weight"):
            parametrize.remove_parametrizations(module, "weight")
    for name in {**found.inputs, **found.outputs}:
        layer = model.get_submodule(name)
        for hooks, ours in ((layer._forward_pre_hooks, _round_input), (layer._forward_hooks, _round_output)):
            for key in [key for key, hook in hooks.items() if hook is ours]:
                del hooks[key]
        for kind in (INPUT, OUTPUT):
            layer._modules.pop(kind, None)
    setattr(model.config, MARK, facts or {"bits": 8})
    return found


def _round_input(layer: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Forward pre-hook. It holds no layer of its own, so that copies of a model have copies of their quantisers."""
    return (layer._modules[INPUT](inputs[0]), *inputs[1:])


def _round_output(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    """Forward hook."""
    return layer._modules[OUTPUT](output)


def _word_table(model: PreTrainedModel) -> str:
    table = model.get_input_embeddings()
    return next(name for name, module in model.named_modules() if module is table)


def _check(quantizer: str, per: str, outputs: str) -> None:
    """Raise ``ConfigError`` for what is none of the choices."""
    known = [name for name in WEIGHT_QUANTIZERS if 8 in WEIGHT_QUANTIZERS[name].BITS]
    for what, value, choices in (("quantizer", quantizer, known), ("per", per, ("tensor", "row")), ("outputs", outputs, OUTPUTS)):
        if value not in choices:
            raise ConfigError(f"{what}: {value!r}; choices: {', '.join(choices)}")
