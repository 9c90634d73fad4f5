"""Masks put into the linear layers of any model, chosen by magnitude, locked, counted, and taken out.

Which layers: those stacked in the model's transformer layers (``encoder_linears``), or any that are named. Embeddings, what
is tied to them, and the heads of a task stay dense, as published (specs c.2); BERT's pooler too, which the published code prunes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from adasearch.errors import ModelError
from adasearch.quantize_model import parametrize_weight
from adasearch.sparse_pattern import Pattern
from adasearch.sparsity import WeightMask, pattern_scores, select

LINEAR = (nn.Linear, Conv1D)


def encoder_linears(model: nn.Module) -> dict[str, nn.Module]:
    """The linear layers in the stacks (``nn.ModuleList``) of a model's body, by name: BERT's, DistilBERT's, GPT-2's ...

    The pooler and the heads of a task stand outside of the stacks. Raises ``ModelError`` where there is none.
    """
    body = model.base_model if isinstance(model, PreTrainedModel) else model
    stacks = [module for module in body.modules() if isinstance(module, nn.ModuleList)]
    stacked = {id(module) for stack in stacks for module in stack.modules()}
    tied = _tied(model)
    found = {
        name: module
        for name, module in model.named_modules()
        if id(module) in stacked and isinstance(module, LINEAR) and id(_dense(module)) not in tied
    }
    if not found:
        raise ModelError(f"{type(model).__name__}: it has no stack of layers with linear layers in them; choices: name the layers")
    return found


def attach_masks(model: nn.Module, pattern: Pattern | str = "unstructured", names: Sequence[str] | None = None) -> dict[str, WeightMask]:
    """Edit ``model`` in place: its weights pass through masks that drop nothing yet; the masks by their layers' names.

    Args:
        pattern: what may be zero together.
        names: of layers with a ``weight``; ``encoder_linears`` when None.

    Raises ``ConfigError`` for an unknown pattern and ``ModelError`` where it does not divide a weight, where a name is not
    a layer's, or where a weight is masked or quantised already (mask first, then quantise). The model is left as it was.
    """
    pattern = Pattern.parse(pattern) if isinstance(pattern, str) else pattern
    layers = _layers(model, names)
    for name, module in layers.items():
        if parametrize.is_parametrized(module, "weight"):
            kinds = ", ".join(type(part).__name__ for part in module.parametrizations.weight)
            raise ModelError(f"{name}: its weight has {kinds} already; choices: bake it first. Masks come before quantisers")
    masks = {}
    for name, module in layers.items():
        try:
            masks[name] = WeightMask(module.weight, pattern, _input_dim(module))
        except ModelError as error:
            raise ModelError(f"{name}: {error}") from error
    for name, module in layers.items():
        parametrize_weight(module, [masks[name]])
    return masks


def find_masks(model: nn.Module) -> dict[str, WeightMask]:
    """The masks of a model, of a copy of one too, by their layers' names; empty where there are none."""
    modules = {name: module for name, module in model.named_modules() if parametrize.is_parametrized(module, "weight")}
    return {
        name: part for name, module in modules.items() for part in module.parametrizations.weight if isinstance(part, WeightMask)
    }


@torch.no_grad()
def prune_to(model: nn.Module, sparsity: float, scope: str = "layer") -> None:
    """Choose all masks anew by the magnitudes of the dense weights under them: what had been dropped may return, unless it is held.

    Args:
        sparsity: share of zeros, exact to one element (with blocks: to one block) of a layer, or of all for scope "global".

    Raises ``ConfigError`` for an unknown scope or more zeros than the pattern has, ``ModelError`` when there are no masks or
    they are locked.
    """
    masks = find_masks(model)
    if not masks:
        raise ModelError(f"{type(model).__name__}: it has no masks; attach them first")
    for mask in masks.values():
        mask.pattern.check(sparsity)
    scores = {name: mask.scores(_dense(model.get_submodule(name))) for name, mask in masks.items()}
    for name, kept in select(scores, sparsity, scope).items():
        masks[name].keep(kept)


@torch.no_grad()
def prune_once(
    model: nn.Module, sparsity: float, pattern: Pattern | str = "unstructured", scope: str = "layer", names: Sequence[str] | None = None
) -> None:
    """Magnitude pruning in one shot: exact zeros in the plain weights, no mask left. Errors as ``attach_masks``, ``prune_to``."""
    attach_masks(model, pattern, names)
    prune_to(model, sparsity, scope)
    bake_masks(model)


def lock_pattern(model: nn.Module, names: Sequence[str] | None = None) -> dict[str, WeightMask]:
    """Freeze the zeros that the weights have: masks that there are are locked, layers without one get that of their zeros.

    Args:
        names: layers that get one; ``encoder_linears`` when None.

    Raises ``ModelError`` where such a weight is quantised already without a mask under it.
    """
    masks = find_masks(model)
    for mask in masks.values():
        mask.lock()
    bare = [name for name in (encoder_linears(model) if names is None else names) if name not in masks]
    if bare:
        for name, mask in attach_masks(model, names=bare).items():
            mask.lock(_dense(model.get_submodule(name)))
            masks[name] = mask
    return masks


def pattern_of(model: nn.Module, names: Sequence[str] | None = None) -> dict[str, Tensor]:
    """Where the weights that a model computes with are not zero, bool, by layer: what a lock must keep."""
    return {name: module.weight.detach() != 0 for name, module in _layers(model, names).items()}


def broken_zeros(model: nn.Module, pattern: Mapping[str, Tensor]) -> dict[str, int]:
    """How many zeros of ``pattern`` are none any more, by layer; empty when it survived."""
    found = {name: int((model.get_submodule(name).weight.detach() != 0).logical_and(~kept).sum()) for name, kept in pattern.items()}
    return {name: count for name, count in found.items() if count}


def sparsity_of(model: nn.Module, names: Sequence[str] | None = None) -> dict[str, float]:
    """Share of exact zeros in the weights that a model computes with, by layer; of ``encoder_linears`` when None."""
    return {name: float((module.weight.detach() == 0).sum()) / module.weight.numel() for name, module in _layers(model, names).items()}


def mean_sparsity(model: nn.Module, names: Sequence[str] | None = None) -> float:
    """Share of zeros in all these weights together."""
    layers = _layers(model, names)
    sizes = {name: _dense(module).numel() for name, module in layers.items()}
    return sum(share * sizes[name] for name, share in sparsity_of(model, list(layers)).items()) / sum(sizes.values())


def bake_masks(model: nn.Module) -> None:
    """Take the masks out in place and leave exact zeros in the plain weights. Raises ``ModelError`` under a quantiser."""
    masks = find_masks(model)
    for name in masks:
        if len(model.get_submodule(name).parametrizations.weight) > 1:
            raise ModelError(f"{name}: its masked weight is quantised; bake the quantisers, which takes the mask out with them")
    for name in masks:
        parametrize.remove_parametrizations(model.get_submodule(name), "weight")


def has_split_blocks(model: nn.Module, pattern: Pattern) -> bool:
    """Whether some of ``encoder_linears`` have blocks of the pattern that are zero in part. Raises ``ModelError`` as ``attach_masks``."""
    if pattern.group or (pattern.rows, pattern.columns) == (1, 1):
        return False
    kept = (pattern_scores((layer.weight != 0).float(), pattern, _input_dim(layer)) for layer in encoder_linears(model).values())
    return any(bool(((share > 0) & (share < 1)).any()) for share in kept)


def _layers(model: nn.Module, names: Sequence[str] | None) -> dict[str, nn.Module]:
    if names is None:
        return encoder_linears(model)
    known = dict(model.named_modules())
    for name in names:
        if not isinstance(getattr(known.get(name), "weight", None), Tensor):
            layers = [layer for layer, module in known.items() if isinstance(module, LINEAR)]
            raise ModelError(f"{name!r} is no layer with a weight in {type(model).__name__}; layers are such as {', '.join(layers[:3])}")
    return {name: known[name] for name in names}


def _dense(module: nn.Module) -> Tensor:
    """The parameter behind a layer's weight."""
    return module.parametrizations.weight.original if parametrize.is_parametrized(module, "weight") else module.weight


def _input_dim(module: nn.Module) -> int:
    if isinstance(module, Conv1D):
        return 0
    return 1 if module.weight.ndim > 1 else -1  # (outputs, inputs, ...), of convolutions too


def _tied(model: nn.Module) -> set[int]:
    """Embeddings' parameters, which a layer may share."""
    tables = (module for module in model.modules() if isinstance(module, nn.Embedding))
    return {id(_dense(table)) for table in tables}
