"""Search spaces from YAML files: the packaged ones by name, anyone's by path."""

from __future__ import annotations

import dataclasses
import difflib
import math
from pathlib import Path
from typing import Any

import yaml

from adasearch.architecture import Macro, Space
from adasearch.errors import ConfigError
from adasearch.inherit_layers import check_macro, inherited_operations
from adasearch.member_cost import learned_operations
from adasearch.operations import OPERATIONS
from adasearch.settings import check_choice

MOST_ORDERS = 5_000  # of drawing a node's edges, over which their expectation is summed
MACRO_CHOICES = {
    "inputs": ("joint", "two"),
    "norm": ("batch", "layer"),
    "cell_output": ("attentive", "sum", "mean"),
    "pooling": ("mean", "max", "attention"),
}


def packaged_spaces() -> dict[str, Path]:
    """Name -> file of every space that comes with the package."""
    here = Path(__file__).parent  # a wheel carries the folder inside the package, a checkout beside it
    folder = next(place for place in (here / "search_spaces", here.parent / "search_spaces") if place.is_dir())
    return {file.stem: file for file in sorted(folder.glob("*.yaml"))}


def load_space(name_or_path: str) -> Space:
    """Read a space. Raises ``ConfigError`` naming file, key, value and choices."""
    packaged = packaged_spaces()
    path = Path(name_or_path)
    if name_or_path in packaged:
        file = packaged[name_or_path]
    elif path.suffix in (".yaml", ".yml") and path.is_file():
        file = path
    else:
        raise ConfigError(f"space: {name_or_path!r} is neither a packaged space nor a YAML file; choices: {', '.join(sorted(packaged))}")
    try:
        data = yaml.safe_load(file.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ConfigError(f"{name_or_path}: not valid YAML ({' '.join(str(error).split())})") from error
    if not isinstance(data, dict):
        raise ConfigError(f"{name_or_path}: a mapping of settings is expected, found {type(data).__name__}")
    return space_from_dict(data, where=str(name_or_path))


def space_from_dict(data: dict[str, Any], where: str) -> Space:
    """A checked Space from plain data; ``where`` begins every error."""
    _check_keys(data, Space, where)
    data = {key: value for key, value in data.items() if value is not None}  # a key with nothing behind it is at its default
    _check_types(data, where)
    macro_data = data.get("macro") or {}
    _check_keys(macro_data, Macro, f"{where}: macro")
    _check_macro(macro_data, where)
    for key, choices in MACRO_CHOICES.items():
        if key in macro_data:
            check_choice(f"{where}: macro.{key}", macro_data[key], choices)
    for key in ("operations", "pair_operations", "never_derived"):
        for index, name in enumerate(data.get(key) or []):
            if not isinstance(name, str) or name not in OPERATIONS:
                near = difflib.get_close_matches(str(name), list(OPERATIONS), n=1)
                hint = f" (did you mean {near[0]!r}?)" if near else ""
                raise ConfigError(f"{where}: {key}[{index}]: unknown operation {name!r}{hint}; known: {', '.join(sorted(OPERATIONS))}")
    lists = {key: tuple(data[key]) for key in ("operations", "pair_operations", "never_derived", "widths", "cells") if key in data}
    space = Space(**{**data, **lists, "macro": Macro(**macro_data)})
    _check_space(space, where)
    return space


def _check_keys(data: dict[str, Any], cls: type, where: str) -> None:
    fields = {field.name for field in dataclasses.fields(cls)}
    for key in data:
        if key not in fields:
            raise ConfigError(f"{where}: unknown key {key!r}; known: {', '.join(sorted(fields))}")


def _check_types(data: dict[str, Any], where: str) -> None:
    for key in ("name", "operations"):
        if data.get(key) is None:
            raise ConfigError(f"{where}: {key} is missing; every space needs a name and operations")
    for key, kind in (
        ("name", str), ("operations", list), ("pair_operations", list), ("never_derived", list), ("widths", list), ("cells", list),
        ("nodes", int), ("edges_per_node", int), ("learned_per_node", int), ("sample_edges", bool), ("share_cells", bool), ("macro", dict),
    ):  # fmt: skip
        wrong_number = kind is int and isinstance(data.get(key), bool)
        if data.get(key) is not None and (wrong_number or not isinstance(data[key], kind)):
            raise ConfigError(f"{where}: {key}: {data[key]!r} is a {type(data[key]).__name__}; a {kind.__name__} is expected")
    for key in ("widths", "cells"):
        for index, size in enumerate(data.get(key) or []):
            if type(size) is not int:
                raise ConfigError(f"{where}: {key}[{index}]: {size!r} is no whole number")


def _check_macro(data: dict[str, Any], where: str) -> None:
    kinds: dict[str, tuple[type, ...]] = {"dropout": (int, float), "attention_head_size": (int,), "embedding_size": (int, type(None))}
    kinds |= dict.fromkeys(("teacher_size", "teacher_heads", "teacher_neurons"), (int, type(None)))
    kinds |= dict.fromkeys(("position_embeddings", "zero_cls", "norm_affine"), (bool,))
    for key, kind in kinds.items():
        is_wrong_bool = bool not in kind and isinstance(data.get(key), bool)
        if key in data and (is_wrong_bool or not isinstance(data[key], kind)):
            names = " or ".join("null" if one is type(None) else one.__name__ for one in kind)
            raise ConfigError(f"{where}: macro.{key}: {data[key]!r} is a {type(data[key]).__name__}; {names} is expected")


def _check_space(space: Space, where: str) -> None:
    if len(set(space.operations)) != len(space.operations):
        raise ConfigError(f"{where}: operations: {list(space.operations)} names one twice")
    left = set(space.operations) - set(space.never_derived)
    if not left - {"none"}:
        raise ConfigError(f"{where}: operations: none is left once never_derived {list(space.never_derived)} are taken out")
    twice = set(space.operations) & set(space.pair_operations)
    if twice:
        raise ConfigError(f"{where}: pair_operations: {sorted(twice)} are among operations already")
    if space.macro.inputs == "two" and space.pair_operations:
        raise ConfigError(
            f"{where}: pair_operations: {list(space.pair_operations)} find no other text where each input node has one of its own (macro.inputs"
            " two); choices: macro.inputs joint, or no pair_operations"
        )
    if inherited_operations(space):
        check_macro(space.macro, space.widths, where)
    if space.learned_per_node and not left & learned_operations(space):
        raise ConfigError(f"{where}: learned_per_node: {space.learned_per_node}, but none of {sorted(left)} has weights to learn")
    if len(space.cells) != 2 or not 1 <= space.cells[0] <= space.cells[1]:
        raise ConfigError(f"{where}: cells: {list(space.cells)} must be [smallest, largest] with 1 <= smallest <= largest")
    if space.nodes < 1 or space.edges_per_node < 1:
        raise ConfigError(f"{where}: nodes {space.nodes} and edges_per_node {space.edges_per_node} must be at least 1")
    if space.edges_per_node <= space.nodes and math.perm(space.nodes + 1, space.edges_per_node) > MOST_ORDERS:
        raise ConfigError(
            f"{where}: nodes {space.nodes} and edges_per_node {space.edges_per_node}: the last node can draw its edges in"
            f" {math.perm(space.nodes + 1, space.edges_per_node):,} orders; choices: fewer nodes or edges, at most {MOST_ORDERS:,} orders"
        )
    if not 0 <= space.learned_per_node <= space.edges_per_node:
        raise ConfigError(f"{where}: learned_per_node: {space.learned_per_node} is out of range; choices: 0 to {space.edges_per_node}")
    head = space.macro.attention_head_size
    if not space.widths or len(set(space.widths)) != len(space.widths):
        raise ConfigError(f"{where}: widths: {list(space.widths)} must name one or more different widths")
    if head < 1:
        raise ConfigError(f"{where}: macro.attention_head_size: {head} is out of range; choices: 1 or more")
    for width in space.widths:
        if width < 8 or width % min(head, max(space.widths)):
            raise ConfigError(f"{where}: widths: {width} must be at least 8 and a multiple of macro.attention_head_size {head}")
    if space.macro.embedding_size is not None and space.macro.embedding_size < 1:
        raise ConfigError(f"{where}: macro.embedding_size: {space.macro.embedding_size} is out of range; choices: null, 1 or more")
    if not 0 <= space.macro.dropout < 1:
        raise ConfigError(f"{where}: macro.dropout: {space.macro.dropout} is out of range; choices: 0 to below 1")
