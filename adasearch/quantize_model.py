"""Quantisers put into a Hugging Face GPT-2 or BART, found again, and taken out.

Quantised are the linear layers of the transformer layers (GPT-2's ``Conv1D`` too) and the token embedding. What is tied
to the embedding (GPT-2's head; BART's encoder and decoder tables and its head) shares its one weight and one
quantiser; where a BART is untied, each of its tables has its own. Positions, LayerNorms, biases and untied heads stay as they
are: the published sizes say so (specs d.6).
"""

from __future__ import annotations

import copy
import inspect
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.nn.utils import parametrize
from transformers import PreTrainedModel
from transformers.models.bart.modeling_bart import BartDecoderLayer, BartEncoderLayer
from transformers.models.gpt2.modeling_gpt2 import GPT2Block
from transformers.pytorch_utils import Conv1D

from adasearch.bit_widths import FULL, BitWidths
from adasearch.errors import ConfigError, ModelError
from adasearch.quantizers import WEIGHT_QUANTIZERS
from adasearch.rounding import ACTIVATION_RANGES, round_activations
from adasearch.weight_quantizer import WeightQuantizer

LAYERS = (GPT2Block, BartEncoderLayer, BartDecoderLayer)
LINEAR = (nn.Linear, Conv1D)
ORIGINAL = "parametrizations.weight.original"  # what torch calls a parametrised weight


@dataclass
class Quantized:
    """What is quantised in a model.

    ``quantizers`` by the names that the weights have in the unquantised ``state_dict``; ``tied`` says which other names
    are the same weight; ``inputs`` are the layers whose inputs are rounded, with their rounding.
    """

    quantizers: dict[str, WeightQuantizer] = field(default_factory=dict)
    tied: dict[str, str] = field(default_factory=dict)
    inputs: dict[str, RoundInputs] = field(default_factory=dict)

    @property
    def names(self) -> list[str]:
        """The quantised weights, each once."""
        return list(self.quantizers)

    def scales(self) -> list[nn.Parameter]:
        """Learned scales: they take an optimiser group of their own, without weight decay."""
        return [scale for quantizer in self.quantizers.values() for scale in quantizer.learned()]


@dataclass(frozen=True)
class RoundInputs:
    """Forward pre-hook that rounds a layer's input to ``bits``."""

    bits: int
    per: str

    def __call__(self, layer: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return round_activations(inputs[0], self.bits, self.per), *inputs[1:]


class TiedTo(nn.Module):
    """Parametrisation of a tied weight: whatever the other module's weight is, computed once for both.

    The module is held in a tuple, out of torch's sight: its parameters are its own.
    """

    def __init__(self, module: nn.Module):
        super().__init__()
        self.source = (module,)

    def forward(self, weight: Tensor) -> Tensor:
        """The quantised weight of the source; the argument is the same parameter as the source's."""
        return self.source[0].weight

    def right_inverse(self, value: Tensor) -> Tensor:
        """Assigning sets what both share."""
        return value


def quantized_cache() -> AbstractContextManager[None]:
    """While open, each weight is quantised once. Open it around one forward pass: an optimiser's step does not show."""
    return parametrize.cached()


def attach_quantizers(
    model: PreTrainedModel,
    bits: BitWidths | str,
    *,
    quantizer: str = "dynamic_scale",
    per: str = "tensor",
    embedding_per: str | None = None,
    activation_per: str = "token",
    **options: Any,
) -> Quantized:
    """Edit ``model`` in place: its weights act quantised, and so do the inputs of its linear layers.

    Args:
        bits: W-E-A, such as "2-2-8"; 32 leaves a part as it is.
        quantizer: a name in ``WEIGHT_QUANTIZERS``.
        per: one scale for each weight ("tensor") or for each of its rows ("row").
        embedding_per: the same for the token embedding; None: as ``per``.
        activation_per: range of the inputs, of each "token" or of the whole "tensor". The input of a head that is tied
            is rounded as well.
        options: settings of the quantiser. Means over magnitudes leave out the zeros of a mask unless ``skip_zeros`` says otherwise.

    Raises ConfigError where a name or setting is unknown, ModelError for other models than GPT-2 and BART, for weights
    that are not float32 and for a model that is quantised already. The model is left as it was.
    """
    bits = BitWidths.parse(bits) if isinstance(bits, str) else bits
    make = _quantizer_class(quantizer, options)
    if activation_per not in ACTIVATION_RANGES:
        raise ConfigError(f"activation_per {activation_per!r}; known: {', '.join(ACTIVATION_RANGES)}")
    found = find_quantized(model)
    if found.quantizers or found.inputs:
        raise ModelError(f"{type(model).__name__}: it is quantised already; bake it first")
    linear, tables = _linear_layers(model), _tied_modules(model)
    made = {}  # all of them before the first is put in, so that an error leaves no half of a model
    if bits.weights != FULL:
        for name, module in linear.items():
            row_dim = 1 if isinstance(module, Conv1D) else 0
            is_masked = parametrize.is_parametrized(module, "weight")
            made[name] = make(module.weight, bits.weights, per=per, row_dim=row_dim, **{"skip_zeros": is_masked, **options})
    if bits.embeddings != FULL:
        for name, module in (next(iter(tied.items())) for tied in tables):
            made[name] = make(module.weight, bits.embeddings, per=embedding_per or per, row_dim=0, **options)
    for name, weight_quantizer in made.items():
        parametrize_weight(model.get_submodule(name), [weight_quantizer])
    if bits.embeddings != FULL:
        for source, *others in (tied.values() for tied in tables):
            for module in others:
                parametrize_weight(module, [TiedTo(source)])
        _rename_ties(model, {f"{name}.weight": f"{name}.{ORIGINAL}" for tied in tables for name in tied})
    if bits.activations != FULL:
        heads = {name: module for tied in tables for name, module in tied.items() if isinstance(module, LINEAR)}
        for module in {**linear, **heads}.values():
            module.register_forward_pre_hook(RoundInputs(bits.activations, activation_per))
    return find_quantized(model)


def find_quantized(model: nn.Module) -> Quantized:
    """The quantisers of a model, of a copy of one too; empty where there are none."""
    found, names = Quantized(), {}
    for name, module in model.named_modules():
        if parametrize.is_parametrized(module, "weight"):
            last = module.parametrizations.weight[-1]
            if isinstance(last, WeightQuantizer):
                found.quantizers[f"{name}.weight"], names[id(module)] = last, f"{name}.weight"
            elif isinstance(last, TiedTo):
                found.tied[f"{name}.weight"] = names[id(last.source[0])]
        found.inputs |= {name: hook for hook in module._forward_pre_hooks.values() if isinstance(hook, RoundInputs)}
    return found


def quantized_integers(model: nn.Module) -> dict[str, tuple[Tensor, Tensor]]:
    """int8 integers and float32 scale of each quantised weight, by its name; the model stays as it is."""
    return {name: weight_integers(model.get_submodule(name.removesuffix(".weight"))) for name in find_quantized(model).names}


def bake(model: nn.Module) -> dict[str, tuple[Tensor, Tensor]]:
    """Take the quantisers out in place and leave their values in the plain weights; what ``quantized_integers`` says.

    All parametrisations of these weights are taken out, masks included, and the rounding of inputs too.
    """
    found = find_quantized(model)
    integers = quantized_integers(model)
    for name in [*found.names, *found.tied]:  # what is tied copies the baked weight: it comes last
        parametrize.remove_parametrizations(model.get_submodule(name.removesuffix(".weight")), "weight")
    for name in found.inputs:
        hooks = model.get_submodule(name)._forward_pre_hooks
        for key in [key for key, hook in hooks.items() if isinstance(hook, RoundInputs)]:
            del hooks[key]
    tied = {*found.tied.values(), *found.tied}
    _rename_ties(model, {name.removesuffix("weight") + ORIGINAL: name for name in tied})
    return integers


def parametrize_weight(module: nn.Module, parametrizations: list[nn.Module]) -> None:
    """Put parametrisations on ``module.weight`` such that copies of the module are whole."""
    for parametrization in parametrizations:
        parametrize.register_parametrization(module, "weight", parametrization, unsafe=True)  # unsafe: without trying it
    type(module).__deepcopy__ = _copy_parametrized  # torch makes this class for this one module


def _copy_parametrized(self: nn.Module, memo: dict[int, Any]) -> nn.Module:
    """A copy with a class of its own.

    torch's copy shares its class with the original, and with it the property that finds the weight: taking the
    parametrisation out of one breaks the other, and in the cache both have the same key.
    """
    replica = object.__new__(type(self).__bases__[0])
    memo[id(self)] = replica
    replica.__dict__ = copy.deepcopy(self.__dict__, memo)
    for name, parametrizations in replica._modules.pop("parametrizations").items():
        replica.register_parameter(name, parametrizations.original)
        for parametrization in parametrizations:
            parametrize.register_parametrization(replica, name, parametrization, unsafe=True)
    type(replica).__deepcopy__ = _copy_parametrized
    return replica


def weight_integers(module: nn.Module) -> tuple[Tensor, Tensor]:
    """int8 integers, shaped like the weight, and the float32 scale of one quantised layer or table."""
    *before, quantizer = module.parametrizations.weight
    weight = module.parametrizations.weight.original.detach()
    for parametrization in before:
        weight = parametrization(weight).detach()
    return quantizer.integers(weight)


def _quantizer_class(name: str, options: dict[str, Any]) -> type[WeightQuantizer]:
    """The class of that name, its settings checked."""
    if name not in WEIGHT_QUANTIZERS:
        raise ConfigError(f"quantizer {name!r}; known: {', '.join(WEIGHT_QUANTIZERS)}")
    make = WEIGHT_QUANTIZERS[name]
    parameters = {**inspect.signature(WeightQuantizer).parameters, **inspect.signature(make).parameters}
    known = {key for key, value in parameters.items() if value.kind is value.KEYWORD_ONLY} - {"per", "row_dim"}
    for option in options:
        if option not in known:
            raise ConfigError(f"quantizer {name}: unknown setting {option!r}; known: {', '.join(sorted(known))}")
    return make


def _linear_layers(model: PreTrainedModel) -> dict[str, nn.Module]:
    """The linear layers in the transformer layers, by name."""
    blocks = [(name, module) for name, module in model.named_modules() if isinstance(module, LAYERS)]
    if not blocks:
        raise ModelError(f"{type(model).__name__}: only models made of GPT-2's or BART's layers can be quantised")
    return {f"{block}.{name}": m for block, layer in blocks for name, m in layer.named_modules() if isinstance(m, LINEAR)}


def token_tables(model: PreTrainedModel) -> list[nn.Module]:
    """The modules that tokens are looked up in, in the model's order: of GPT-2 one, of BART its own, the encoder's, the decoder's."""
    tables = {id(part.get_input_embeddings()) for part in model.modules() if isinstance(part, PreTrainedModel)}
    return [module for module in model.modules() if id(module) in tables]


def _tied_modules(model: PreTrainedModel) -> list[dict[str, nn.Module]]:
    """Each token table's weight as all that share it, by name, in the model's order."""
    weights = {id(table.weight): table.weight for table in token_tables(model)}.values()
    return [{name: m for name, m in model.named_modules() if getattr(m, "weight", None) is weight} for weight in weights]


def _rename_ties(model: PreTrainedModel, names: dict[str, str]) -> None:
    """Tell transformers' ``tie_weights`` how the weights it ties are called now."""
    for prefix, module in model.named_modules():
        if not isinstance(module, PreTrainedModel):
            continue
        start = f"{prefix}." if prefix else ""
        own = {old.removeprefix(start): new.removeprefix(start) for old, new in names.items() if old.startswith(start)}
        for ties in ("_tied_weights_keys", "all_tied_weights_keys"):
            old = getattr(module, ties, None)
            if old:
                setattr(module, ties, {own.get(target, target): own.get(source, source) for target, source in old.items()})


