"""GPT-2 and BART with packed low-bit weights: Hugging Face models that save, load and generate as others do.

``pack_model`` makes one of a model with quantisers. Its config carries what its layers are (``low_bit``, plain data),
its one safetensors file the integers and scales. ``import adasearch`` registers both kinds with transformers' Auto
classes. Their model types are their own: where adasearch is not installed, loading fails instead of leaving out the
weights it does not know.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import BartConfig, BartForConditionalGeneration, GPT2Config, GPT2LMHeadModel, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from adasearch.errors import ModelError
from adasearch.packed_modules import PackedConv1D, PackedEmbedding, PackedLayer, PackedLinear, PackedWeight, check_memory
from adasearch.packing import pack
from adasearch.quantize_model import RoundInputs, find_quantized, quantized_integers

PROBLEMS = {"missing_keys": "missing", "unexpected_keys": "unknown", "mismatched_keys": "of another shape"}


class LowBitGPT2Config(GPT2Config):
    """GPT-2's configuration and ``low_bit``, see ``describe_low_bit``."""

    model_type = "adasearch_low_bit_gpt2"
    low_bit: dict[str, Any] | None = None


class LowBitBartConfig(BartConfig):
    """BART's configuration and ``low_bit``, see ``describe_low_bit``."""

    model_type = "adasearch_low_bit_bart"
    low_bit: dict[str, Any] | None = None


class LowBitModel:
    """What the low-bit models add to transformers' own; it comes first among their bases."""

    def __init__(self, config: Any):
        if not config.low_bit:
            raise ModelError(f"{type(self).__name__}: its config has no low_bit; low-bit models are made by pack_model")
        super().__init__(config)
        _swap_layers(self, config.low_bit)
        self.memory = "packed"

    def initialize_weights(self, *args: Any, **kwargs: Any) -> None:
        """Nothing is drawn at random: every weight comes from a model or a file (``from_pretrained`` sees to it)."""

    @classmethod
    def from_pretrained(cls, *args: Any, memory: str = "packed", output_loading_info: bool = False, **kwargs: Any) -> Any:
        """As transformers' own. ``memory`` is as ``keep_in_memory``'s. Raises ``ModelError`` where weights do not fit, ``ConfigError``."""
        check_memory(memory)
        model, loaded = super().from_pretrained(*args, output_loading_info=True, **kwargs)
        for problem, says in PROBLEMS.items():
            if loaded[problem]:
                names = sorted(str(name) for name in loaded[problem])
                raise ModelError(f"{args[0]}: {len(names)} weights are {says}, such as {names[0]}; its config says otherwise")
        model.keep_in_memory(memory)
        return (model, loaded) if output_loading_info else model

    def save_pretrained(self, folder: Any, *args: Any, rest_dtype: torch.dtype | None = None, **kwargs: Any) -> None:
        """As transformers' own. ``rest_dtype``, such as float16, stores what is neither packed nor a scale in that type;
        loading returns it to the model's. None: as it is."""
        if rest_dtype is not None:
            scales = {f"{name}.scale" for name in packed_weights(self)}
            kwargs["state_dict"] = {
                name: tensor.to(rest_dtype) if tensor.is_floating_point() and name not in scales else tensor
                for name, tensor in self.state_dict().items()
            }
        super().save_pretrained(folder, *args, **kwargs)

    def keep_in_memory(self, memory: str) -> None:
        """What is kept of the weights: "packed" is smallest, "float" fastest, "int8" between. Raises ``ConfigError``."""
        check_memory(memory)
        for weight in packed_weights(self).values():
            weight.keep(memory)
        self.memory = memory


class LowBitForCausalLM(LowBitModel, GPT2LMHeadModel):
    """GPT-2 with packed weights."""

    config_class = LowBitGPT2Config


class LowBitForSeq2SeqLM(LowBitModel, BartForConditionalGeneration):
    """BART with packed weights."""

    config_class = LowBitBartConfig


KINDS: dict[type[PreTrainedModel], type[LowBitModel]] = {
    GPT2LMHeadModel: LowBitForCausalLM, BartForConditionalGeneration: LowBitForSeq2SeqLM,
}  # fmt: skip


def pack_model(model: PreTrainedModel) -> LowBitForCausalLM | LowBitForSeq2SeqLM:
    """The low-bit model of a model with quantisers (``attach_quantizers``), which stays as it is.

    Weights that are not quantised are copied as they are. Raises ``ModelError`` for other models than GPT-2's and
    BART's for generation, for one without quantisers and for one with other parametrisations left.
    """
    packed = low_bit_shell(model)
    packed.load_state_dict(_packed_state(model, list(packed.state_dict())), assign=True)
    packed.tie_weights()  # a table that is not quantised may be tied
    packed.generation_config = copy.deepcopy(model.generation_config)
    return packed.eval()


def low_bit_shell(model: PreTrainedModel) -> LowBitForCausalLM | LowBitForSeq2SeqLM:
    """``pack_model`` without the data: every tensor is on torch's meta device. Sizes need no more. Same errors."""
    kind = KINDS.get(type(model))
    if kind is None:
        known = ", ".join(base.__name__ for base in KINDS)
        raise ModelError(f"{type(model).__name__}: no low-bit model of this class; choices: {known}")
    config = kind.config_class.from_dict(
        {key: value for key, value in model.config.to_dict().items() if key not in ("model_type", "architectures")}
    )
    config.low_bit = describe_low_bit(model)
    config._attn_implementation = model.config._attn_implementation
    with torch.device("meta"):  # no memory for weights that are replaced at once
        return kind(config)


def low_bit_class(folder: Path | str) -> type[LowBitForCausalLM] | type[LowBitForSeq2SeqLM]:
    """The class of the low-bit model in a folder. Raises ``ModelError`` where there is none."""
    known = {kind.config_class.model_type: kind for kind in KINDS.values()}
    try:
        model_type = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8")).get("model_type")
    except OSError as error:
        raise ModelError(f"{folder}: no model there (config.json: {error.strerror or error})") from error
    if model_type not in known:
        raise ModelError(f"{folder}: its model_type is {model_type!r}; low-bit models are: {', '.join(known)}")
    return known[model_type]


def load_low_bit(folder: Path | str, memory: str = "packed") -> LowBitForCausalLM | LowBitForSeq2SeqLM:
    """The low-bit model in a folder, whichever kind it is. Raises ``ModelError``, and ``ConfigError`` for ``memory``."""
    return low_bit_class(folder).from_pretrained(folder, memory=memory)


def describe_low_bit(model: PreTrainedModel) -> dict[str, Any]:
    """What a low-bit model's layers are, as plain data, of a model with quantisers.

    ``weights``: bits, quantiser and scale's shape by the names of the packed weights; ``tied``: which other names are
    one of these; ``inputs``: bits and range of the layers' inputs that are rounded. Raises ``ModelError``.
    """
    found = find_quantized(model)
    if not found.quantizers:
        raise ModelError(f"{type(model).__name__}: it has no quantised weights to pack; attach quantisers first")
    weights = {}
    for name, quantizer in found.quantizers.items():
        shape = list(model.get_submodule(name.removesuffix(".weight")).parametrizations.weight.original.shape)
        scale = [] if quantizer.per == "tensor" else [n if dim == quantizer.row_dim else 1 for dim, n in enumerate(shape)]
        weights[name] = {"bits": quantizer.bits, "quantizer": quantizer.name, "scale": scale}
    inputs = {name: {"bits": hook.bits, "per": hook.per} for name, hook in found.inputs.items()}
    return {"weights": weights, "tied": dict(found.tied), "inputs": inputs}


def packed_weights(model: nn.Module) -> dict[str, PackedWeight]:
    """The packed weights by name, each once."""
    return {name: module for name, module in model.named_modules() if isinstance(module, PackedWeight)}


def _packed_state(model: PreTrainedModel, names: list[str]) -> dict[str, Tensor]:
    """The ``state_dict`` of the low-bit model, whose ``names`` are given."""
    state = {}
    quantizers = find_quantized(model).quantizers
    for name, (integers, scale) in quantized_integers(model).items():
        state[f"{name}.packed"], state[f"{name}.scale"] = pack(integers, quantizers[name].bits), scale
    plain = model.state_dict()
    for name in names:
        if name in state:
            continue
        if name not in plain:
            raise ModelError(f"{type(model).__name__}: {name} is parametrised but not quantised; take that out first")
        state[name] = plain[name].detach().clone()
    return state


def _swap_layers(model: PreTrainedModel, low_bit: dict[str, Any]) -> None:
    """Edit ``model`` in place: the layers that ``low_bit`` names become packed ones."""
    for name, facts in low_bit["weights"].items():
        layer = _layer(model, name)
        weight = PackedWeight(layer.weight.shape, facts["bits"], facts["scale"])
        model.set_submodule(name.removesuffix(".weight"), _packed_layer(layer, weight, is_shared=False))
    for name, source in low_bit["tied"].items():
        layer = _packed_layer(_layer(model, name), _layer(model, source).weight, is_shared=True)
        model.set_submodule(name.removesuffix(".weight"), layer)
    for name, facts in low_bit["inputs"].items():
        _layer(model, name).register_forward_pre_hook(RoundInputs(facts["bits"], facts["per"]))
    _forget_ties(model, {*low_bit["tied"]})


def _layer(model: nn.Module, name: str) -> nn.Module:
    """The layer of that name, or that of a weight's. Raises ``ModelError``."""
    try:
        return model.get_submodule(name.removesuffix(".weight"))
    except AttributeError as error:
        raise ModelError(f"{type(model).__name__}: low_bit names {name}, which this model has not") from error


def _packed_layer(layer: nn.Module, weight: PackedWeight, is_shared: bool) -> PackedLayer:
    """The packed layer that does what a plain one does, with its bias."""
    if isinstance(layer, Conv1D):
        return PackedConv1D(weight, layer.bias)
    if isinstance(layer, nn.Linear):
        return PackedLinear(weight, layer.bias, is_shared)
    return PackedEmbedding(weight, layer.padding_idx, getattr(layer, "embed_scale", None), is_shared)


def _forget_ties(model: PreTrainedModel, tied: set[str]) -> None:
    """Tell transformers that these weights are no longer its to tie: the layers share them already."""
    for prefix, module in model.named_modules():
        if not isinstance(module, PreTrainedModel):
            continue
        start = f"{prefix}." if prefix else ""
        for attribute in ("_tied_weights_keys", "all_tied_weights_keys"):
            ties = getattr(module, attribute, None) or {}
            setattr(module, attribute, {key: value for key, value in ties.items() if f"{start}{key}" not in tied})
