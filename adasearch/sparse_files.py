"""A sparse model as a folder of few bytes: the values that are not 0, in int8 or float32, and where they stand.

    save_sparse(model, folder)                        # of a model with masks, int8 quantisers or just zeros
    model = SparseModel.from_pretrained(folder)       # computes the same in every bit

The folder holds ``config.json`` and ``sparse.safetensors`` (not ``model.safetensors``: who does not know the format finds no
weights, instead of some). Weights of layers, and an int8 word table, are stored as ``sparse_storage`` says; what is neither
quantised nor a layer's weight (normalisation, biases, tables in float32) is stored as it is.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.utils import parametrize
from transformers import AutoConfig, PreTrainedModel

from adasearch.errors import ModelError, one_line
from adasearch.int8_modules import GRIDS, int8_layers, int8_twin, swap_layers
from adasearch.quantize_aware import LAYERS, find_int8, stacked_layers
from adasearch.sparse_storage import Stored, check_storage, decode, encode

FILE = "sparse.safetensors"
HEADER = "adasearch.sparse"  # in the file's metadata: the rest of what is needed to read it
VERSION = 1
AUTO_CLASSES = {
    "ForSequenceClassification": "AutoModelForSequenceClassification", "ForQuestionAnswering": "AutoModelForQuestionAnswering",
    "ForMaskedLM": "AutoModelForMaskedLM",
}  # fmt: skip


class SparseModel:
    """Loads what ``save_sparse`` wrote, whichever model it is."""

    @staticmethod
    def from_pretrained(folder: Path | str) -> PreTrainedModel:
        """The model, in eval mode: an int8 twin (``int8_modules``), or a plain model where the file holds no integers.

        Raises ``ModelError`` where the folder holds no such file, or one that does not fit its config.
        """
        folder = Path(folder)
        header, tensors = read_sparse(folder)
        try:
            config = AutoConfig.from_pretrained(folder, local_files_only=True)
            model = getattr(transformers, header["auto_class"]).from_config(config, dtype=torch.float32)  # whatever it was made of
        except (OSError, ValueError, KeyError, AttributeError) as error:
            raise ModelError(f"{folder}: no model can be made of its config ({one_line(error, 300)})") from error
        state = {name: tensor for name, tensor in tensors.items() if ":" not in name}
        for name, facts in header["tensors"].items():
            stored = Stored(**{**facts, "shape": tuple(facts["shape"])})
            state[name] = decode(stored, {part: tensors[f"{name}:{part}"] for part in parts_of(name, tensors)})
        state |= {name: state[source] for name, source in header.get("tied", {}).items()}  # an older version wrote them all
        shapes = {name: (tuple(shape), grids) for name, (shape, grids) in header["layers"].items()}
        swap_layers(model, shapes)
        try:
            model.load_state_dict(state)
        except RuntimeError as error:
            raise ModelError(f"{folder}: its weights are not those of its config ({one_line(error, 300)})") from error
        return model.eval()


def save_sparse(model: PreTrainedModel, folder: Path | str, *, format: str = "smallest", compression: str = "none") -> Path:
    """Write a model's folder; returns it. The model stays as it is.

    ``format`` (bitmap, index, delta, dense or smallest) is that of layers' weights; one that would take more than ``dense`` is
    stored so. ``compression`` (none, zstd, zlib, lzma) is of those weights and of an int8 word table.

    Raises ``ConfigError`` for an unknown choice, ``ModelError`` for a model of another kind or with ranges not learned.
    """
    check_storage(format, compression)
    folder = Path(folder)
    plain = int8_twin(model) if find_int8(model).weights else _without_masks(model)
    layers = int8_layers(plain)
    weights = {f"{name}.integers" for name in layers} | {f"{name}.weight" for name, m in plain.named_modules() if isinstance(m, LAYERS)}
    header: dict[str, Any] = {
        "version": VERSION, "auto_class": _auto_class(plain), "tensors": {}, "tied": {}, "stacked": stacked_layers(model),
        "layers": {
            name: [list(layer.scale.shape), [kind for kind in GRIDS if layer._modules[kind] is not None]] for name, layer in layers.items()
        },
    }  # fmt: skip
    tensors: dict[str, Tensor] = {}
    first: dict[int, str] = {}
    for name, tensor in plain.state_dict(keep_vars=True).items():
        if (source := first.setdefault(id(tensor), name)) != name:  # the word table as a head's decoder: one tensor, stored once
            header["tied"][name] = source
            continue
        if name not in weights:
            tensors[name] = tensor.detach().cpu().contiguous().clone()  # what shares memory would be refused
            continue
        stored, parts = encode(tensor, format, compression)
        as_is = encode(tensor, "dense", compression)
        if sum(map(len, as_is[1].values())) < sum(map(len, parts.values())):
            stored, parts = as_is
        header["tensors"][name] = asdict(stored)
        tensors |= {f"{name}:{part}": data for part, data in parts.items()}
    folder.mkdir(parents=True, exist_ok=True)
    plain.config.dtype = torch.float32  # a model that was loaded in halves and widened still has "half" there
    plain.config.save_pretrained(folder)
    save_file(tensors, folder / FILE, metadata={HEADER: json.dumps(header)})
    return folder


def read_sparse(folder: Path | str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Header and tensors of a folder's file, as written. Raises ``ModelError``."""
    path = Path(folder) / FILE
    try:
        with safe_open(path, framework="pt") as file:
            header = read_header(path, file.metadata())
            return header, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118: not a dictionary
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{path}: cannot be read ({error}); choices: a folder that save_sparse wrote") from error


def read_header(path: Path, metadata: Mapping[str, str] | None) -> dict[str, Any]:
    """What the file says of its tensors. Raises ``ModelError`` where it is another's, or of another version."""
    try:
        header = json.loads((metadata or {})[HEADER])
    except (KeyError, ValueError) as error:
        raise ModelError(f"{path}: it is no sparse model's file (no {HEADER!r} in it); choices: what save_sparse wrote") from error
    if header.get("version") != VERSION:
        raise ModelError(f"{path}: its version is {header.get('version')}; known: {VERSION}")
    return header


def parts_of(name: str, tensors: Mapping[str, Any]) -> list[str]:
    """The parts of a stored tensor among the names of a file."""
    return [key.removeprefix(f"{name}:") for key in tensors if key.startswith(f"{name}:")]


def _without_masks(model: PreTrainedModel) -> PreTrainedModel:
    """A copy whose parametrised weights are plain, in eval mode."""
    plain = copy.deepcopy(model).eval()
    for module in list(plain.modules()):
        if parametrize.is_parametrized(module):
            for name in list(module.parametrizations):
                parametrize.remove_parametrizations(module, name)
    return plain


def _auto_class(model: nn.Module) -> str:
    name = next((auto for suffix, auto in AUTO_CLASSES.items() if type(model).__name__.endswith(suffix)), None)
    if name is None:
        raise ModelError(f"{type(model).__name__}: no sparse files for its kind; choices: {', '.join(AUTO_CLASSES)}")
    return name
