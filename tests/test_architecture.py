"""Laws of the plain data: JSON there and back changes nothing, any change shows in the digest, misfits are named."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import tiny_architecture, tiny_space, without

from adasearch.architecture import ARCHITECTURE_VERSION, Architecture, Edge, Macro, Space
from adasearch.errors import ConfigError
from adasearch.shrink import random_architecture


def other(value: Any) -> Any:
    """A value of the same kind that is not this one."""
    if isinstance(value, tuple):
        return (*value, value[-1]) if value else ("skip",)
    if isinstance(value, bool):
        return not value
    return f"{value}x" if isinstance(value, str) else (value or 0) + 1


@pytest.mark.parametrize("seed", range(5))
def test_json_there_and_back_is_the_identity(seed: int, tmp_path: Path) -> None:
    space = tiny_space({"inputs": "two", "embedding_size": 5}, share_cells=False, nodes=3)
    architecture = random_architecture(space, np.random.default_rng(seed), seed)
    file = tmp_path / "architecture.json"
    file.write_text(json.dumps(architecture.to_dict()), encoding="utf-8")
    loaded = Architecture.load(file)
    assert loaded == architecture and hash(loaded) == hash(architecture)
    assert (loaded.space, loaded.space_digest, loaded.seed) == ("tiny", space.digest, seed)


def test_what_the_json_looks_like() -> None:
    architecture = tiny_architecture(cells=1)
    data = architecture.to_dict()
    assert data["cells"] == [[[[0, "conv3"], [1, "self_attention"]], [[1, "max_pool3"], [2, "gated_conv3"]]]]
    assert data["version"] == ARCHITECTURE_VERSION and data["macro"]["norm"] == "batch" and data["width"] == 8
    assert architecture.depth == 1 and tiny_architecture(cells=3).depth == 3
    assert architecture.operations == ["conv3", "self_attention", "max_pool3", "gated_conv3"]
    defaults = Architecture.from_dict(without(architecture, seed=..., version=...))
    assert defaults == architecture


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"cells": ...}, ["missing keys ['cells']", "known:", "space_digest"]),
        ({"width": ..., "macro": ...}, ["missing keys ['macro', 'width']"]),
        ({"genotype": 1}, ["unknown keys ['genotype']", "known:", "cells"]),
        ({"version": 99}, ["version 99", f"known: {ARCHITECTURE_VERSION}"]),
        ({"cells": [[[[0]]]]}, ["cells or macro"]),
        ({"cells": [[[["first", "conv3"]]]]}, ["cells or macro", "'first'"]),
        ({"cells": 3}, ["cells or macro"]),
        ({"macro": {"colour": "red"}}, ["cells or macro", "colour"]),
        ({"cells": [[[[2, "conv3"]]]]}, ["cells[0][0]", "source 2", "choices: 0..1"]),
        ({"cells": [[[[0, "conv3"]], [[-1, "conv3"]]]]}, ["cells[0][1]", "source -1", "choices: 0..2"]),
    ],
)
def test_what_does_not_fit_is_named(changes: dict[str, Any], words: list[str], tmp_path: Path) -> None:
    data = without(tiny_architecture(), **changes)
    file = tmp_path / "architecture.json"
    file.write_text(json.dumps(data), encoding="utf-8")
    for read, where in (
        (lambda: Architecture.load(file), str(file)),
        (lambda: Architecture.from_dict(data, where="here"), "here"),
    ):
        with pytest.raises(ConfigError) as error:
            read()
        assert str(error.value).startswith(f"{where}: ") and "\n" not in str(error.value)
        for word in words:
            assert word in str(error.value)


@pytest.mark.parametrize("kind", ["absent", "folder", "not_json"])
def test_a_file_that_cannot_be_read_is_named(kind: str, tmp_path: Path) -> None:
    file = tmp_path / "architecture.json"
    if kind == "folder":
        file.mkdir()
    elif kind == "not_json":
        file.write_text('{"space": ', encoding="utf-8")
    with pytest.raises(ConfigError, match="no architecture can be read") as error:
        Architecture.load(file)
    assert str(error.value).startswith(f"{file}: ")


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(Space) if field.name != "macro"])
def test_the_digest_tells_spaces_apart(name: str) -> None:
    space = tiny_space()
    changed = dataclasses.replace(space, **{name: other(getattr(space, name))})
    assert changed.digest != space.digest == tiny_space().digest and len(space.digest) == 16


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(Macro)])
def test_the_digest_tells_macros_apart(name: str) -> None:
    space = tiny_space()
    changed = tiny_space({name: other(getattr(space.macro, name))})
    assert changed.digest != space.digest


def test_pair_operations_join_the_candidates_of_pair_tasks_only() -> None:
    space = tiny_space(operations=("conv3",), pair_operations=("soft_alignment",))
    pair, single = space.for_task(is_pair=True), space.for_task(is_pair=False)
    assert pair.operations == ("conv3", "soft_alignment") and single.operations == ("conv3",)
    assert pair.pair_operations == single.pair_operations == () and len({space.digest, pair.digest, single.digest}) == 3
    assert pair.for_task(is_pair=True) == pair


def test_decisions_cannot_be_changed_by_accident() -> None:
    for thing, name in (
        (Edge(0, "skip"), "source"),
        (tiny_architecture(), "width"),
        (tiny_space(), "nodes"),
        (Macro(), "norm"),
    ):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(thing, name, 1)
