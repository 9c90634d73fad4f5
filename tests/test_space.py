"""The packaged spaces are what they cite; a wrong one is refused in one line naming file, key, value and choices."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny import tiny_config

from adasearch.architecture import Macro, Space
from adasearch.errors import ConfigError
from adasearch.operations import OPERATIONS
from adasearch.space import load_space, packaged_spaces, space_from_dict
from adasearch.supernet import Supernet

GOOD: dict[str, Any] = {"name": "mine", "operations": ["conv3", "skip"], "widths": [32, 64], "cells": [1, 2]}


@pytest.mark.parametrize("name", sorted(packaged_spaces()))
@pytest.mark.parametrize("is_pair", [False, True])
def test_every_packaged_space_is_a_network(name: str, is_pair: bool) -> None:
    space = load_space(name).for_task(is_pair=is_pair)
    assert space.name == name and space == load_space(str(packaged_spaces()[name])).for_task(is_pair=is_pair)
    supernet = Supernet(space, tiny_config())
    assert supernet.decide().space_digest == space.digest
    assert 0 < supernet.expected_cost(32).macs < supernet.full_cost(32).macs


def test_adabert_is_the_papers_space() -> None:
    """Chen et al. 2020, sections 3.1 and 4.1, and the authors' code."""
    space = load_space("adabert")
    convolutions = {f"{kind}conv{kernel}" for kind in ("", "dilated_") for kernel in (3, 5, 7)}
    assert (
        set(space.operations) == convolutions | {"max_pool3", "avg_pool3", "skip", "none"}
        and len(space.operations) == 10
    )
    assert space.cells == (1, 8) and space.nodes == 3 and space.edges_per_node == 2 and space.widths == (128,)
    assert space.share_cells and not space.sample_edges and not space.pair_operations
    assert space.macro.inputs == "two" and space.macro.zero_cls and space.macro.position_embeddings
    assert space.macro.norm == "batch" and not space.macro.norm_affine
    assert space.macro.cell_output == "attentive" and space.macro.pooling == "mean"
    gates = Supernet(space, tiny_config()).cell_gates
    assert len(gates) == 1 and gates[0].operations.logits.shape == (
        9,
        10,
    )  # nine edges, ten candidates, one choice for all cells


def test_a_file_of_ones_own(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(
        yaml.safe_dump({**GOOD, "pair_operations": ["soft_alignment"], "macro": {"norm": "layer"}}), encoding="utf-8"
    )
    space = load_space(str(file))
    assert space == Space(
        "mine",
        ("conv3", "skip"),
        widths=(32, 64),
        cells=(1, 2),
        pair_operations=("soft_alignment",),
        macro=Macro(norm="layer"),
    )
    assert space.for_task(is_pair=False).operations == ("conv3", "skip")
    assert space.for_task(is_pair=True).operations == ("conv3", "skip", "soft_alignment")


def test_a_default_may_be_written_out_or_left_empty() -> None:
    plain = space_from_dict({"name": "x", "operations": ["conv3", "skip"]}, "x.yaml")
    for written in ({"never_derived": [], "pair_operations": []}, {"never_derived": None, "pair_operations": None, "widths": None, "macro": None}):
        found = space_from_dict({"name": "x", "operations": ["conv3", "skip"], **written}, "x.yaml")
        assert found == plain and hash(found) == hash(plain)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"operations": ["conv3", "conv9"]}, ["operations[1]", "'conv9'", "did you mean 'conv", "known:", *OPERATIONS]),
        ({"operations": ["conv3", 7]}, ["operations[1]", "7", "known:"]),
        ({"pair_operations": ["soft_aligment"]}, ["pair_operations[0]", "did you mean 'soft_alignment'"]),
        ({"never_derived": ["nothing"]}, ["never_derived[0]", "'nothing'", "known:"]),
        ({"operations": ["conv3", "conv3"]}, ["operations", "twice"]),
        ({"never_derived": ["conv3", "skip"]}, ["operations", "never_derived", "'skip'"]),
        ({"operations": []}, ["operations"]),
        ({"operations": "conv3"}, ["operations", "'conv3'", "list"]),
        ({"cells": 4}, ["cells", "4", "list"]),
        ({"cells": [1, 2.5]}, ["cells", "2.5"]),
        ({"widths": 128}, ["widths", "128", "list"]),
        ({"nodes": "three"}, ["nodes", "'three'"]),
        ({"share_cells": "no"}, ["share_cells", "'no'"]),
        ({"macro": ["inputs"]}, ["macro", "['inputs']"]),
        ({"cell": [1, 2]}, ["unknown key 'cell'", "known:", "cells", "operations"]),
        ({"macro": {"normalization": "batch"}}, ["macro", "unknown key 'normalization'", "known:", "norm"]),
        ({"macro": {"inputs": "three"}}, ["macro.inputs", "'three'", "choices: joint, two"]),
        ({"macro": {"norm": "group"}}, ["macro.norm", "'group'", "choices: batch, layer"]),
        ({"macro": {"cell_output": "max"}}, ["macro.cell_output", "'max'", "choices: attentive, sum, mean"]),
        ({"macro": {"pooling": None}}, ["macro.pooling", "None", "choices: mean, max, attention"]),
        ({"macro": {"inputs": "two"}, "pair_operations": ["soft_alignment"]}, ["pair_operations", "soft_alignment", "macro.inputs joint"]),
        ({"macro": {"dropout": 1.0}}, ["macro.dropout", "1.0", "choices: 0 to below 1"]),
        ({"macro": {"dropout": -0.1}}, ["macro.dropout", "-0.1"]),
        ({"cells": [3, 2]}, ["cells", "[3, 2]", "smallest <= largest"]),
        ({"cells": [0, 2]}, ["cells", "[0, 2]", "1 <= smallest"]),
        ({"cells": [4]}, ["cells", "[4]", "[smallest, largest]"]),
        ({"nodes": 0}, ["nodes 0", "at least 1"]),
        ({"edges_per_node": 0}, ["edges_per_node 0", "at least 1"]),
        ({"learned_per_node": 3}, ["learned_per_node: 3", "choices: 0 to 2"]),
        ({"learned_per_node": -1}, ["learned_per_node: -1"]),
        ({"widths": [64, 4]}, ["widths", "4", "at least 8"]),
        ({"widths": [64, 80]}, ["widths", "80", "multiple of macro.attention_head_size 32"]),
    ],
)
def test_a_wrong_space_is_refused_in_one_line(changes: dict[str, Any], words: list[str], tmp_path: Path) -> None:
    file = tmp_path / "wrong.yaml"
    file.write_text(yaml.safe_dump({**GOOD, **changes}), encoding="utf-8")
    with pytest.raises(ConfigError) as error:
        load_space(str(file))
    message = str(error.value)
    assert message.startswith(f"{file}: ") and "\n" not in message
    for word in words:
        assert word in message


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("- conv3\n- skip\n", "found list"),
        ("", "found NoneType"),
        ("a: [1\nb: 2", "not valid YAML"),
        ("a: b: c", "line 1"),
    ],
)
def test_a_file_that_is_no_mapping_is_refused(text: str, word: str, tmp_path: Path) -> None:
    file = tmp_path / "wrong.yaml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as error:
        load_space(str(file))
    assert word in str(error.value) and str(error.value).startswith(str(file)) and "\n" not in str(error.value)


@pytest.mark.parametrize("kind", ["absent", "folder", "other_suffix"])
def test_what_is_no_space_names_the_packaged_ones(kind: str, tmp_path: Path) -> None:
    place = tmp_path / {"absent": "no.yaml", "folder": "folder.yaml", "other_suffix": "space.json"}[kind]
    if kind == "folder":
        place.mkdir()
    elif kind == "other_suffix":
        place.write_text("{}", encoding="utf-8")
    for name in (str(place), "adabrt"):
        with pytest.raises(
            ConfigError, match="neither a packaged space nor a YAML file; choices: adabert, adasearch"
        ) as error:
            load_space(name)
        assert name in str(error.value)


def test_checks_do_not_change_what_they_check() -> None:
    data = {**GOOD, "macro": {"norm": "layer"}}
    before = yaml.safe_dump(data)
    space_from_dict(data, "here")
    assert yaml.safe_dump(data) == before
