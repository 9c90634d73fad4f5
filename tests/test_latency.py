"""Laws of the latency table: predictions are sums of parts, expectations the weighted mean over members, refusals name their cure."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from every_member import members
from tiny import make_certain, random_supernet, tiny_architecture, tiny_space

from adasearch.architecture import Architecture, Space
from adasearch.errors import ConfigError
from adasearch.gates import SubsetGate, gates_of
from adasearch.latency import Deployment, LatencyModel, LatencyTable, interpolation, knots_for, length_histogram
from adasearch.shrink import fastest_member, random_architecture, random_architecture_like

HERE = Deployment("a processor", "onnxruntime", "1.0", threads=1, batch_size=1)


def table_of(space: Space, lengths: tuple[int, ...] = (8, 16, 64), seed: int = 0) -> LatencyTable:
    """A table of random times for a space."""
    generator = np.random.default_rng(seed)

    def times() -> dict[int, list[float]]:
        return {width: generator.uniform(0.1, 1, len(lengths)).tolist() for width in space.widths}

    names = [name for name in space.operations if name not in space.never_derived]
    shape = (space.name, space.macro, space.nodes, space.edges_per_node)
    return LatencyTable(HERE, *shape, lengths, times(), times(), {name: times() for name in names})


def test_a_prediction_is_the_sum_of_its_parts() -> None:
    architecture = tiny_architecture(width=8, cells=2)  # conv3, self_attention, max_pool3, gated_conv3 in each
    model = table_of(tiny_space()).at({16: 1.0})
    once = sum(model.operation_ms[name][8] for name in ("conv3", "self_attention", "max_pool3", "gated_conv3"))
    assert model.predict(architecture) == pytest.approx(model.frame_ms[8] + 2 * (model.cell_ms[8] + once))
    assert model.frame_ms[8] == pytest.approx(table_of(tiny_space()).frame_ms[8][1])  # a length of the table is read as it is
    assert model.predict(replace(architecture, cells=())) == model.frame_ms[8]


def test_between_lengths_times_run_along_lines_and_a_distribution_is_a_mean() -> None:
    """Reference: numpy's interpolation within, the line through two points outside."""
    knots, times = (8, 16, 64), np.array([1.0, 3.0, 7.0])
    for length in (8, 9, 15, 16, 40, 64):
        assert np.dot(interpolation(knots, {length: 1.0}), times) == pytest.approx(np.interp(length, knots, times))
    assert np.dot(interpolation(knots, {4: 1.0}), times) == pytest.approx(0.0) and sum(interpolation(knots, {4: 1.0})) == 1
    lengths = {8: 0.5, 12: 0.25, 64: 0.25}
    assert np.dot(interpolation(knots, lengths), times) == pytest.approx(0.5 * 1 + 0.25 * 2 + 0.25 * 7)
    table = table_of(tiny_space())
    member = random_architecture(tiny_space(), np.random.default_rng(0))
    mean = sum(share * table.predict(member, length) for length, share in lengths.items())
    assert table.predict(member, lengths) == pytest.approx(mean)


def test_no_part_takes_less_than_nothing() -> None:
    steep = replace(table_of(tiny_space(), (8, 16)), cell_ms={width: [0.1, 1.0] for width in (8, 12)})
    assert steep.at({2: 1.0}).cell_ms == {8: 0.0, 12: 0.0}


def test_histogram_and_knots_cover_the_texts() -> None:
    lengths = length_histogram([5, 5, 9, 33])
    assert lengths == {5: 0.5, 9: 0.25, 33: 0.25}
    assert knots_for(lengths) == (4, 8, 16, 32, 33) and knots_for({20: 1.0}) == (20,)
    for alike in ({10: 0.02, 128: 0.98}, {127: 0.03, 128: 0.97}, {20: 0.04, 64: 0.96}, {3: 0.5, 4: 0.5}):  # nearly all cut at one length
        assert len(knots_for(alike)) > 1 and table_of(tiny_space(), knots_for(alike)).at(alike).predict(tiny_architecture()) > 0
    rare = length_histogram([3] + [20] * 99 + [64])
    assert knots_for(rare) == (16, 32, 64)  # one very short text in a hundred is extrapolated to


@pytest.mark.parametrize("sample_edges", [True, False], ids=["drawn_edges", "all_edges"])
@pytest.mark.parametrize("share_cells", [True, False], ids=["shared", "unshared"])
def test_expected_latency_is_the_mean_over_all_derived_members(share_cells: bool, sample_edges: bool) -> None:
    space = tiny_space(
        operations=("conv3", "skip", "none"), never_derived=("none",), nodes=1, edges_per_node=1, cells=(1, 2),
        share_cells=share_cells, sample_edges=sample_edges,
    )  # fmt: skip
    supernet = random_supernet(space)
    model = table_of(space).at({16: 1.0})
    free = replace(model, operation_ms={**model.operation_ms, "none": dict.fromkeys(space.widths, 0.0)})
    depths, widths = supernet.depth_gate.logits.softmax(-1)[0].tolist(), supernet.width_gate.logits.softmax(-1)[0].tolist()
    cells = [members(gates, is_derived=True) for gates in supernet.cell_gates]
    mean, total = 0.0, 0.0
    for (depth, p_depth), (width, p_width) in itertools.product(zip((1, 2), depths), zip(space.widths, widths)):
        stacks = [[cell] * depth for cell in cells[0]] if share_cells else itertools.product(*cells[:depth])
        for stack in stacks:
            p = p_depth * p_width * (stack[0][0] if share_cells else float(np.prod([p_cell for p_cell, _ in stack])))
            member = Architecture(space.name, space.digest, tuple(cell for _, cell in stack), width, space.macro)
            mean, total = mean + p * free.predict(member), total + p
    assert total == pytest.approx(1, abs=1e-5)
    assert supernet.expected_latency(model).item() == pytest.approx(mean, rel=1e-5)


@pytest.mark.parametrize("depth", [1, 3])
def test_certain_gates_take_what_is_predicted(depth: int) -> None:
    supernet = random_supernet(tiny_space(edges_per_node=1))
    make_certain(supernet, depth, 12)
    model = table_of(supernet.space).at({30: 1.0})
    assert supernet.expected_latency(model).item() == pytest.approx(model.predict(supernet.decide()), rel=1e-6)


def test_latency_teaches_every_gate() -> None:
    supernet = random_supernet(tiny_space())
    supernet.expected_latency(table_of(supernet.space).at({16: 1.0})).backward()
    for gate in gates_of(supernet):
        if not isinstance(gate, SubsetGate) or gate.size < len(gate.logits):
            assert gate.logits.grad is not None and gate.logits.grad.abs().max() > 0, gate.axis
    # the slower of two widths, all else equal, loses probability under gradient descent
    model = LatencyModel({8: 1.0, 12: 2.0}, {8: 0.0, 12: 0.0}, {name: {8: 0.0, 12: 0.0} for name in supernet.space.operations})
    supernet.width_gate.logits.grad = None
    supernet.expected_latency(model).backward()
    assert supernet.width_gate.logits.grad[0, 1] > 0 > supernet.width_gate.logits.grad[0, 0]


@pytest.mark.parametrize("learned_per_node", [0, 1, 2])
def test_the_fastest_member_is_the_least_of_all(learned_per_node: int) -> None:
    """Against many random members of a space so small that the fastest is among them."""
    space = tiny_space(operations=("conv3", "sep_conv3", "skip"), cells=(1, 2), learned_per_node=learned_per_node)
    model = table_of(space, seed=learned_per_node).at({16: 1.0})
    model.operation_ms["skip"].update({8: 0.02, 12: 0.01})  # it learns nothing: it cannot be everywhere
    found = [model.predict(random_architecture(space, np.random.default_rng(seed))) for seed in range(400)]
    fastest = fastest_member(space, model)
    assert model.predict(fastest) == pytest.approx(min(found))
    assert Architecture.from_dict(fastest.to_dict()) == fastest and fastest.space_digest == space.digest


def test_where_nothing_learns_there_is_a_fastest_member_too() -> None:
    space = tiny_space(operations=("skip", "max_pool3"), cells=(1, 2))
    model = table_of(space).at({16: 1.0})
    found = [model.predict(random_architecture(space, np.random.default_rng(seed))) for seed in range(400)]
    assert model.predict(fastest_member(space, model)) == pytest.approx(min(found))


def test_the_random_control_takes_as_long() -> None:
    space = tiny_space(nodes=3)
    model = table_of(space).at({16: 1.0})
    architecture = random_architecture(space, np.random.default_rng(5))
    control = random_architecture_like(architecture, space, 7.0, seed=1, latency=model)
    assert abs(model.predict(control) / model.predict(architecture) - 1) <= 0.05 and control.cells != architecture.cells


def test_a_table_reads_back_the_same(tmp_path: Path) -> None:
    table = table_of(tiny_space())
    (tmp_path / "t.json").write_text(json.dumps(table.to_dict()))
    assert LatencyTable.load(tmp_path / "t.json") == table


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"version": 7}, "no latency table of version 1 (found 7); rebuild it"),
        ({"deployment": {"cpu": "x"}}, "cannot be read (TypeError"),
        ({"extra": 1}, "cannot be read (TypeError"),
        ({"frame_ms": {"8": [1.0], "12": [1.0]}}, "width 8: [1.0] are no times at [8, 16, 64] word pieces"),
        ({"cell_ms": {"8": [1.0, -1.0, 2.0], "12": [1.0, 1.0, 1.0]}}, "are no times"),
        ({"cell_ms": {"8": [1.0, float("nan"), 2.0], "12": [1.0, 1.0, 1.0]}}, "are no times"),
        ({"operation_ms": {"conv3": {"8": ["x", 1.0, 2.0]}}}, "cannot be read (ValueError"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_file_that_is_no_table_is_refused(change: dict[str, Any], says: str, tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    path.write_text(json.dumps({**table_of(tiny_space()).to_dict(), **change}))
    with pytest.raises(ConfigError) as error:
        LatencyTable.load(path)
    assert says in str(error.value) and str(path) in str(error.value)


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    (tmp_path / "t.json").write_text("{")
    for name in ("t.json", "absent.json"):
        with pytest.raises(ConfigError, match=rf"{name}: no latency table can be read .*bench --build_lut"):
            LatencyTable.load(tmp_path / name)
    (tmp_path / "t.json").write_text("[]")
    with pytest.raises(ConfigError, match="found 'list'"):
        LatencyTable.load(tmp_path / "t.json")


@pytest.mark.parametrize(
    ("key", "value"), [("cpu", "another"), ("runtime_version", "2.0"), ("threads", 4), ("batch_size", 8), ("runtime", "torch")]
)
def test_a_table_of_another_deployment_is_refused_with_its_cure(key: str, value: Any) -> None:
    table = table_of(tiny_space())
    table.check_deployment(HERE, "t.json")
    with pytest.raises(ConfigError) as error:
        table.check_deployment(replace(HERE, **{key: value}), "t.json")
    there = getattr(HERE, key)
    assert f"t.json: a latency table of another deployment ({key} {there!r} there, {value!r} here)" in str(error.value)
    assert "rebuild: adasearch bench --build_lut --space tiny --lengths 8 16 64" in str(error.value)
    if key in ("threads", "batch_size", "runtime"):
        assert f"--{key} {value}" in str(error.value)  # the cure is for this deployment, not for the table's


def test_a_table_serves_the_spaces_it_covers_and_no_others() -> None:
    space = tiny_space(pair_operations=("soft_alignment",))
    table = table_of(replace(space, operations=(*space.operations, "soft_alignment")))
    parts = tiny_space(widths=(8,), cells=(1, 9)), tiny_space(operations=("skip",))
    for fitting in (space, space.for_task(is_pair=True), *parts, tiny_space({"dropout": 0.3})):
        table.check_space(fitting, "t.json")
    for other, says in (
        (tiny_space(operations=("conv3", "conv7")), r"lacks \['conv7'\]"),
        (tiny_space(widths=(8, 16)), r"lacks \[16\]"),
        (tiny_space(nodes=3), "cells or a macro shape of another kind"),
        (tiny_space({"norm": "layer"}), "cells or a macro shape of another kind"),
    ):
        with pytest.raises(ConfigError, match=says):
            table.check_space(other, "t.json")


def test_what_was_not_measured_is_not_predicted() -> None:
    table = table_of(tiny_space())
    for lengths in (65, {8: 0.5, 100: 0.5}):
        with pytest.raises(ConfigError, match=r"measured at \[8, 16, 64\] word pieces, asked for .*rebuild"):
            table.predict(tiny_architecture(), lengths)
    with pytest.raises(ConfigError, match="asked for 8 to 8"):
        table_of(tiny_space(), (16,)).predict(tiny_architecture(), 8)
    with pytest.raises(ConfigError, match=r"width 16 was not measured; measured: \[8, 12\]"):
        table.predict(tiny_architecture(width=16), 8)
    with pytest.raises(ConfigError, match=r"\['max_pool3', 'self_attention'\] were not measured"):
        table_of(tiny_space(operations=("conv3", "gated_conv3"))).predict(tiny_architecture(), 8)


def test_expected_latency_moves_no_random_numbers() -> None:
    supernet = random_supernet(tiny_space())
    state = torch.get_rng_state()
    supernet.expected_latency(table_of(supernet.space).at({16: 1.0}))
    assert torch.equal(torch.get_rng_state(), state)
