"""The latency table measured: known times are found again, a kill loses one width at most, predictions are held to account."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hearing import Heard, KillAt, Killed
from tiny import tiny_architecture, tiny_config, tiny_macro, tiny_space
from tiny_fit import examples
from tiny_task import tiny_run

from adasearch import cli
from adasearch.architecture import Architecture, Edge, Space
from adasearch.config import SearchConfig
from adasearch.errors import ConfigError, ModelError
from adasearch.export import export_student, save_student
from adasearch.latency import LatencyTable
from adasearch.latency_bench import (
    RANDOM_NETWORKS,
    build_table,
    deployment_here,
    design,
    fit_table,
    format_table,
    measure_architecture,
)
from adasearch.latency_target import check_targets, compare_prediction, compare_run, known_latency, miss, open_table, target_lengths
from adasearch.pipeline import check, search
from adasearch.progress import Progress
from adasearch.shrink import build_student, random_architecture
from adasearch.space import load_space

SMALL = tiny_space(operations=("conv3", "skip"), nodes=1, cells=(1, 1))


def networks(space: Space, ms_of: Any) -> list[dict[str, Any]]:
    """The designed networks of a space with times made up by ``ms_of(network)``."""
    return [
        {"width": width, "cells": member.to_dict()["cells"], "is_random": i >= len(design(space, width)) - RANDOM_NETWORKS, "ms": ms_of(member)}
        for width in space.widths
        for i, member in enumerate(design(space, width))
    ]


@pytest.mark.parametrize("name", ["adasearch", "adabert"])
def test_known_times_are_found_again(name: str) -> None:
    """The design tells every part from every other: from sums of made-up parts the fit finds each of them."""
    space = load_space(name)
    names = [n for n in (*space.operations, *space.pair_operations) if n not in space.never_derived]
    generator = np.random.default_rng(0)
    truth = {width: generator.uniform(0.1, 1.0, (2 + len(names), 2)) for width in space.widths}

    def ms_of(member: Architecture) -> list[float]:
        counts = np.array([1, member.depth, *(member.operations.count(n) for n in names)])
        return (counts @ truth[member.width]).tolist()

    table = fit_table(space, (16, 64), deployment_here("torch"), networks(space, ms_of))
    for width, parts in truth.items():
        found = [table.frame_ms[width], table.cell_ms[width], *(table.operation_ms[n][width] for n in names)]
        assert np.allclose(found, parts, rtol=1e-6)
    assert table.fit["median_error"] < 1e-6 and table.fit["networks"] == len(space.widths) * len(design(space, space.widths[0]))
    member = random_architecture(space, np.random.default_rng(1))
    assert table.predict(member, 64) == pytest.approx(ms_of(member)[1])


def test_what_the_sum_misses_shows_in_the_error_of_what_was_left_out() -> None:
    def ms_of(member: Architecture) -> list[float]:
        return [1.0 + member.depth + (10.0 if len(set(member.operations)) > 1 else 0.0) * np.random.rand()]

    measured = networks(tiny_space(), ms_of)
    table = fit_table(tiny_space(), (16,), deployment_here("torch"), measured)
    members = [member for width in (8, 12) for member in design(tiny_space(), width)]
    within = [table.predict(member, 16) / network["ms"][0] - 1 for member, network in zip(members, measured) if network["is_random"]]
    assert table.fit["median_error"] > np.median(np.abs(within)) + 1e-3 and table.fit["left_out"] == 2 * RANDOM_NETWORKS
    assert all(ms >= 0 for times in table.operation_ms.values() for row in times.values() for ms in row)
    text = format_table(table)
    assert "self_attention" in text and f"median {table.fit['median_error']:.1%}" in text and "L=16" in text


def test_every_operation_stands_in_the_design_and_the_design_is_the_same_each_time() -> None:
    space = tiny_space(pair_operations=("soft_alignment",), never_derived=("skip",))
    designed = design(space, 8)
    assert designed == design(space, 8) and designed[0].cells == ()
    alone = [set(member.operations) for member in designed if len(set(member.operations)) == 1]
    for name in (*space.operations, "soft_alignment"):
        assert ({name} in alone) == (name != "skip")
    for member in designed:
        assert Architecture.from_dict(member.to_dict()) == member and "skip" not in member.operations


def test_a_killed_measurement_goes_on_with_the_width_it_lacks(tmp_path: Path) -> None:
    here, output = deployment_here("torch"), tmp_path / "t.json"
    with pytest.raises(Killed):
        build_table(SMALL, [4], output=output, deployment=here, progress=KillAt(0, "latency of width 12"))
    assert not output.exists()
    before = json.loads((tmp_path / "t.measured.json").read_text())["networks"]
    heard = Heard()
    threads = torch.get_num_threads()
    table = build_table(SMALL, [4], output=output, deployment=here, progress=heard)
    assert heard.titles == ["latency of width 12: export", "latency of width 12"] and torch.get_num_threads() == threads
    after = json.loads((tmp_path / "t.measured.json").read_text())["networks"]
    assert after[: len(before)] == before and {network["width"] for network in after} == {8, 12}
    assert LatencyTable.load(output) == table and table.predict(design(SMALL, 8)[-1], 4) > table.frame_ms[8][0] > 0
    heard = Heard()
    assert build_table(SMALL, [4], output=output, deployment=here, progress=heard) == table and not heard.titles
    with pytest.raises(Killed):  # other lengths: nothing of that is kept
        build_table(SMALL, [5], output=output, deployment=here, progress=KillAt(0, "latency of width 8"))


def test_a_real_network_is_measured_in_the_tables_runtime() -> None:
    """In onnxruntime, without position embeddings to end the lengths: 15 million multiply-accumulates against none."""
    table = fit_table(tiny_space(), (32,), deployment_here("onnxruntime"), networks(tiny_space(), lambda member: [1.0]))
    nothing, much = (
        Architecture("tiny", "0" * 16, (((Edge(0, name),),),), 256, tiny_macro(position_embeddings=False)) for name in ("skip", "conv7")
    )
    heard = Heard()
    assert 0 < measure_architecture(table, nothing, {32: 1.0}, heard) < measure_architecture(table, much, {32: 1.0})
    assert heard.titles == ["measure the derived member: export", "measure the derived member"]


def student_folder(folder: Path) -> tuple[Path, Architecture]:
    """A saved student of random weights."""
    architecture = tiny_architecture()
    student = build_student(architecture, tiny_config(architecture))
    student.fold_embeddings()
    return save_student(student, None, folder), architecture


@pytest.mark.parametrize("runtime", ["torch", "onnxruntime"])
def test_a_prediction_is_held_against_the_real_model(tmp_path: Path, runtime: str) -> None:
    folder, architecture = student_folder(tmp_path / "student")
    if runtime == "onnxruntime":
        export_student(folder)
    flat = networks(tiny_space(), lambda member: [1.0 + 9.0 * member.depth] * 2)
    table = fit_table(tiny_space(), (4, 16), deployment_here(runtime), flat)
    told = Heard()
    facts = compare_prediction(table, folder, {8: 0.5, 10: 0.5}, told)
    assert facts["predicted_ms"] == pytest.approx(19.0, rel=1e-6) == pytest.approx(table.predict(architecture, 6))
    assert 0 < facts["measured_ms"] and facts["error"] == pytest.approx(19 / facts["measured_ms"] - 1)
    assert (facts["runtime"], facts["threads"], facts["batch_size"]) == (runtime, 1, 1)
    assert facts["lengths"] == {"shortest": 8, "mean": 9.0, "longest": 10} and json.dumps(facts)
    assert facts["is_miss"] and told.warnings == [facts["warning"]]
    assert f"latency: predicted {facts['predicted_ms']:.3g} ms, measured" in facts["warning"] and "more than 15%" in facts["warning"]
    wrong = replace(table, deployment=replace(table.deployment, cpu="another"))
    with pytest.raises(ConfigError, match="of another deployment .cpu 'another' there"):
        compare_prediction(wrong, folder, 6)
    with pytest.raises(ModelError, match="holds no student of ours"):
        compare_prediction(table, tmp_path, 6)


def test_a_run_says_whether_its_target_was_met(tmp_path: Path) -> None:
    folder, _ = student_folder(tmp_path / "student")
    table = fit_table(tiny_space(), (8,), deployment_here("torch"), networks(tiny_space(), lambda member: [1e3]))
    path = tmp_path / "t.json"
    path.write_text(json.dumps(table.to_dict()))
    told = Heard()
    settings = SearchConfig(latency_target_ms=1e-5, latency_table=str(path), latency_lengths=[8], latency_runtime="torch")
    facts = compare_run(settings, None, tmp_path, told)
    assert facts["target_ms"] == 1e-5 and facts["is_miss"] and len(told.warnings) == 2
    assert "its target is 1e-05 ms; latency: predicted 1e+03 ms" in facts["warning"]
    facts = compare_run(replace(settings, latency_target_ms=1e6), None, tmp_path, Progress())
    assert "its target" not in facts["warning"]
    path.write_text(json.dumps(replace(table, deployment=replace(table.deployment, cpu="another")).to_dict()))
    assert compare_run(settings, None, tmp_path, told) is None and "is not compared" in told.warnings[-1]


@pytest.mark.parametrize(("predicted", "is_miss"), [(8.6, False), (11.4, False), (8.4, True), (11.6, True)])
def test_more_than_15_percent_is_a_miss(predicted: float, is_miss: bool) -> None:
    table = fit_table(tiny_space(), (8,), deployment_here("torch"), networks(tiny_space(), lambda member: [1.0]))
    said = miss(table, predicted, 10.0)
    assert (said is not None) == is_miss and (said is None or f"{predicted / 10 - 1:+.0%} off" in said)


def test_what_cannot_be_measured_is_refused_first(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="runtime: 'torch_compile' has no latency tables; choices: onnxruntime, openvino, torch"):
        deployment_here("torch_compile")
    for lengths in ([], [0, 4]):
        with pytest.raises(ConfigError, match="must be one or more numbers of word pieces"):
            build_table(SMALL, lengths, output=tmp_path / "t.json", deployment=deployment_here("torch"))
    assert not list(tmp_path.iterdir())


def test_targets_out_of_reach_name_the_fastest_member() -> None:
    table = fit_table(tiny_space(), (8,), deployment_here("torch"), networks(tiny_space(), lambda m: [m.width / 8 + m.depth]))
    model, config = table.at({8: 1.0}), tiny_config()
    check_targets(SearchConfig(latency_target_ms=2.01), tiny_space(), 8.0, config, model)
    with pytest.raises(ConfigError) as error:
        check_targets(SearchConfig(latency_target_ms=1.9), tiny_space(), 8.0, config, model)
    assert "search.latency_target_ms: 1.9 ms cannot be reached in space 'tiny'; its fastest member takes 2 ms" in str(error.value)
    assert "1 cell(s) of width 8" in str(error.value)
    with pytest.raises(ConfigError, match="search.target_params: 300 cannot be reached"):  # the word table alone has 240
        check_targets(SearchConfig(efficiency="constraint", target_params=300), tiny_space(), 8.0, config, None)


def test_a_search_meets_its_target_and_the_run_remembers_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """End to end in torch: no table at first; it is measured, the search holds to it, another deployment is refused."""
    config = tiny_run(tmp_path)
    config.search = replace(
        config.search, latency_target_ms=50.0, latency_runtime="torch", latency_lengths=[8], candidates=4, derive="argmax"
    )
    unreachable = replace(config, output_dir=str(tmp_path / "other"), search=replace(config.search, latency_target_ms=1e-4))
    found = search(config)
    table = LatencyTable.load(found.parent / "latency.json")
    member = Architecture.load(found)
    assert table.lengths == (8,) and table.predict(member, 8) <= 50.0
    history = [json.loads(line) for line in (found.parent / "history.jsonl").read_text().splitlines()]
    assert history[-1]["latency_ms"] > 0
    # the same table, by name, for another run: read, not measured; and what does not fit is refused before it searches
    named = replace(config.search, latency_table=str(found.parent / "latency.json"))
    unreachable.search = replace(unreachable.search, latency_table=named.latency_table)
    with pytest.raises(ConfigError, match="search.latency_target_ms: 0.0001 ms cannot be reached in space 'tiny'"):
        search(unreachable)
    assert not (tmp_path / "other" / "search" / "history.jsonl").exists()
    space = load_space(config.space)
    without = replace(named, latency_target_ms=None)  # no target, but a price for controls
    assert open_table(without, space, {8: 1.0}, tmp_path, Progress()) == table
    assert known_latency(without, examples(), tmp_path).predict(member) == pytest.approx(table.predict(member, 8))
    unnamed = replace(without, latency_table=None)
    assert open_table(unnamed, space, {8: 1.0}, tmp_path, Progress()) is None and known_latency(unnamed, examples(), tmp_path) is None
    check_targets(without, space, 8.0, tiny_config(), table.at({8: 1.0}))
    with pytest.raises(ConfigError, match="of another deployment .threads 1 there, 2 here"):
        open_table(replace(named, latency_threads=2), space, {8: 1.0}, tmp_path, Progress())
    with pytest.raises(ConfigError, match=r"asked for 9 to 9"):
        open_table(named, space, {9: 1.0}, tmp_path, Progress())
    assert compare_run(replace(named, latency_target_ms=None), None, found.parent.parent, Progress()) is None
    # an architecture of another space whose price the random controls would ask for when the student has trained
    (tmp_path / "given.json").write_text(json.dumps(replace(member, width=24).to_dict()))
    given = replace(config, architecture=str(tmp_path / "given.json"), output_dir=str(tmp_path / "given"), search=without)
    with pytest.raises(ConfigError, match="latency table: width 24 was not measured; measured: "):
        check(replace(given, controls=["random_architecture"]))
    check(replace(given, controls=[]))


def test_lengths_are_the_settings_or_the_tasks() -> None:
    labelled = examples(40)
    assert target_lengths(SearchConfig(latency_lengths=[4, 8]), labelled) == {4: 0.5, 8: 0.5}
    found = target_lengths(SearchConfig(), labelled)
    assert sum(found.values()) == pytest.approx(1) and set(found) == set(labelled.tokens.lengths.tolist())


def test_the_command_line_builds_a_table_and_knows_the_short_flags(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    space = tmp_path / "small.yaml"
    space.write_text("name: small\ncells: [1, 1]\nnodes: 1\nwidths: [8]\noperations: [conv3, skip]\nmacro: {attention_head_size: 8}\n")
    arguments = ["bench", "--build_lut", "--space", str(space), "--lengths", "4", "--runtime", "torch", "--quiet"]
    assert cli.main([*arguments, "--output", str(tmp_path / "t.json")]) == 0
    assert "conv3" in capsys.readouterr().out and LatencyTable.load(tmp_path / "t.json").space == "small"
    for extra, says in (
        (["--threads", "0"], "threads: 0 on "),
        (["--batch_size", "0"], "batch_size: 0 is out of range"),
        (["--runtime", "torch_compile"], "has no latency tables"),
        (["--lengths", "0"], "lengths: [0] must be"),
    ):
        assert cli.main([*arguments, *extra]) == 2 and says in capsys.readouterr().err
    assert cli.main(["bench", "folder", "--build_lut"]) == 2 and "takes no models" in capsys.readouterr().err
    config, _ = cli.parse("run", ["--latency_target_ms", "2", "--threads", "1", "--batch_size", "3", "--lengths", "16", "32"])
    assert (config.search.latency_target_ms, config.search.latency_batch_size, config.search.latency_lengths) == (2.0, 3, [16, 32])
    assert config.search.is_constrained and config.threads == 1
