"""Laws of the diagnosis: measures against hand-worked cases and other libraries, and the whole thing in miniature."""

from __future__ import annotations

import dataclasses
import itertools
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from tiny import tiny_architecture, tiny_space
from tiny_task import SPACE, tiny_run

from adasearch import diagnosis_run
from adasearch.architecture import Architecture, Edge
from adasearch.config import RetrainConfig, SearchConfig
from adasearch.diagnosis import (
    against_controls, agreement, chance_agreement, conv3_stack_like, discretisation_gap, last_entropy, loss_shares, rank_correlation,
)  # fmt: skip
from adasearch.diagnosis_run import Diagnosis, DiagnosisConfig, diagnose
from adasearch.errors import ConfigError, ModelError
from adasearch.latency import LatencyModel
from adasearch.member_cost import architecture_cost
from adasearch.progress import Progress
from adasearch.run_files import only_one
from adasearch.search_plots import controls_figure, ranking_figure, retrained_front_figure
from adasearch.settings import part_of
from adasearch.shrink import random_architecture
from adasearch.strategies import STRATEGIES


def cell(*nodes: list[tuple[int, str]]) -> tuple[tuple[Edge, ...], ...]:
    return tuple(tuple(Edge(*edge) for edge in node) for node in nodes)


def test_agreement_counts_equal_edges_and_operations() -> None:
    one = cell([(0, "a"), (1, "b")], [(1, "a"), (2, "c")])
    two = cell([(0, "a"), (1, "c")], [(0, "a"), (2, "c")])
    assert agreement([[one], [two]]) == pytest.approx({"edges": 3 / 4, "operations": 2 / 3, "both": 2 / 4})
    assert agreement([[one], [one]]) == {"edges": 1, "operations": 1, "both": 1} and agreement([[one]]) is None
    apart = agreement([[cell([(0, "a")])], [cell([(1, "a")])]])
    assert apart == {"edges": 0, "operations": None, "both": 0}
    three = agreement([[one], [two], [one]])
    assert three["both"] == pytest.approx((0.5 + 1 + 0.5) / 3)
    assert agreement([[one, one], [one, two]])["both"] == pytest.approx(3 / 4), "cells that choose for themselves"
    assert agreement([[one, two], [one]])["both"] == 1, "those that both have"


def test_the_chance_level_is_that_of_independent_draws() -> None:
    space = tiny_space(operations=("conv3", "max_pool3", "skip"), nodes=2)
    found = chance_agreement(space)
    # node 0 keeps both of its edges; node 1 two of three: it shares both with chance 1/3, else one
    assert found["edges"] == pytest.approx((1 + (2 / 3 * 1 / 2 + 1 / 3)) / 2, abs=0.02)
    assert found["operations"] == pytest.approx(1 / 3, abs=0.03) and found["both"] == pytest.approx(found["edges"] / 3, abs=0.03)


def test_rank_correlations_are_scipys_with_an_interval_around() -> None:
    generator = np.random.default_rng(0)
    before = generator.normal(size=24).round(1)
    after = before + generator.normal(size=24)
    found = rank_correlation(before, after)
    for name, reference in (("spearman", stats.spearmanr(before, after)), ("kendall", stats.kendalltau(before, after))):
        assert found[name]["value"] == pytest.approx(reference.statistic)
        assert -1 <= found[name]["low"] < found[name]["value"] < found[name]["high"] <= 1
    assert found["members"] == 24 and found == rank_correlation(before, after)
    exact = rank_correlation([1, 2, 3, 4], [10, 20, 30, 40])
    assert exact["spearman"] == {"value": pytest.approx(1), "low": pytest.approx(1), "high": pytest.approx(1)}
    assert rank_correlation([1, 1, 1], [1, 2, 3])["spearman"] == {"value": None, "low": None, "high": None}
    with pytest.raises(ConfigError, match="2 and 2 scores"):
        rank_correlation([1, 2], [1, 2])


def test_the_interval_covers_the_truth_about_as_often_as_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("adasearch.diagnosis.RESAMPLES", 200)
    generator, hits = np.random.default_rng(1), 0
    truth = 6 / np.pi * np.arcsin(0.7 / 2)  # Spearman's rho of a bivariate normal with correlation 0.7
    for seed in range(30):
        x = generator.normal(size=40)
        found = rank_correlation(x, 0.7 * x + (1 - 0.49) ** 0.5 * generator.normal(size=40), seed)["spearman"]
        hits += found["low"] <= truth <= found["high"]
    assert hits >= 24


def test_gap_shares_and_entropy() -> None:
    gap = discretisation_gap(0.9, 0.7, 0.85)
    assert gap["lost_by_discretising"] == pytest.approx(0.2) and gap["gained_by_retraining"] == pytest.approx(0.15)
    records = [{"terms": {"ce": 9.0}}] * 8 + [{"terms": {"ce": 1.0, "efficiency": -3.0}, "entropy": {"operations": 0.9}}] * 2
    assert loss_shares(records) == {"ce": 0.25, "efficiency": 0.75}
    assert last_entropy(records) == {"operations": 0.9} and last_entropy([]) == {}


def test_controls_are_compared_as_by_hand() -> None:
    searched, chance = [0.9, 0.92], [0.8, 0.82, 0.84]
    found = against_controls({"searched": searched, "random": chance, "conv3_stack": [0.7], "bag_of_embeddings": []})
    assert found["random"]["searched_ahead"] == pytest.approx(0.09) and found["random"]["ahead_in_sds"] == pytest.approx(0.09 / 0.02)
    assert found["random"]["p_value"] == pytest.approx(stats.ttest_ind(searched, chance, equal_var=False).pvalue)
    assert found["conv3_stack"]["sd"] is None and found["conv3_stack"]["p_value"] is None and "bag_of_embeddings" not in found
    assert "searched_ahead" not in found["searched"]
    assert against_controls({"searched": [0.5, 0.5], "random": [0.5, 0.5]})["random"]["p_value"] is None


def test_the_conv3_stack_is_the_nearest_there_is() -> None:
    space = tiny_space(nodes=3)
    architecture = tiny_architecture(width=12)

    def price(member: Architecture) -> float:
        return float(architecture_cost(member, 6.0).macs)

    stack = conv3_stack_like(architecture, space, price, [4, 8, 12])
    assert set(stack.operations) == {"conv3"}
    assert [[edge.source for edge in node] for node in stack.cells[0]] == [[0, 1], [1, 2], [2, 3]]
    prices = {
        (depth, width): price(dataclasses.replace(stack, cells=stack.cells[:1] * depth, width=width))
        for depth, width in itertools.product((1, 2, 3), (4, 8, 12))
    }
    best = min(prices, key=lambda shape: abs(prices[shape] - price(architecture)))
    assert (stack.depth, stack.width) == best


def test_a_conv3_that_is_never_derived_is_in_no_latency_table() -> None:
    space = tiny_space(operations=("conv3", "skip"), never_derived=("conv3",))
    architecture = random_architecture(space, np.random.default_rng(0))
    at = dict.fromkeys(space.widths, 1.0)
    trainer = SimpleNamespace(train=lambda kind, stack, seed: SimpleNamespace(scores=stack))
    diagnosis = SimpleNamespace(
        space=space, latency=lambda _: LatencyModel(at, at, {"skip": at}), score=lambda scores: scores,
        macs=lambda member: float(architecture_cost(member, 6.0).macs),
    )  # fmt: skip
    stack = Diagnosis.conv3_stack(diagnosis, SimpleNamespace(architecture=architecture, trainer=trainer, seed=1))
    assert set(stack.operations) == {"conv3"} and (stack.depth, stack.width) == (1, 8)  # skips multiply nothing: the least there is


def request(folder: Path, **changes: Any) -> DiagnosisConfig:
    """A diagnosis of seconds."""
    base = tiny_run(folder, search=SearchConfig(steps=4, batch_size=16, candidates=4), retrain=RetrainConfig(steps=3, batch_size=16), evaluate=0)
    return part_of(DiagnosisConfig, base, **{"search_seeds": [1, 2], "members": 4, "random_cells": 2, **changes})


def test_a_killed_diagnosis_goes_on_and_finds_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Stop(Exception):
        pass

    def stop(*_: Any, **__: Any) -> None:
        raise Stop

    with monkeypatch.context() as patch, pytest.raises(Stop):
        patch.setattr(diagnosis_run, "member_loss", stop)
        diagnose(request(tmp_path))
    folder = tmp_path / "run" / "diagnosis" / "gumbel"
    trained = {path: path.stat().st_mtime_ns for path in folder.rglob("scores.json")}
    assert len(trained) == 2 * 3 + 1
    found = diagnose(request(tmp_path))
    assert all(path.stat().st_mtime_ns == before for path, before in trained.items()), "what was trained is not trained again"
    assert len(list(folder.rglob("scores.json"))) == 2 * 3 + 4
    assert found == json.loads((folder / "diagnosis.json").read_text()) and {"seed-1", "seed-2"} < {path.name for path in folder.iterdir()}
    assert [len(found["controls"][name]["scores"]) for name in ("searched", "random", "conv3_stack", "bag_of_embeddings")] == [2, 4, 2, 2]
    members = found["ranking"]["members"]
    assert found["controls"]["random"]["scores"] == [member["retrained_score"] for member in members]
    assert len({json.dumps(member["architecture"]) for member in members}) == 4
    for member in members:
        (of_member,) = (path for path in (folder / "seed-1" / "models").glob("member-*") if architecture_of(path) == member["architecture"])
        assert json.loads((of_member / "scores.json").read_text())["accuracy"] == member["retrained_score"]
        assert json.loads((of_member / "training.json").read_text())["held_out_loss"] == member["retrained_loss"] > 0
        assert 0 <= member["supernet_score"] <= 1 and member["supernet_loss"] > 0
    by_loss = stats.spearmanr(*([member[f"{when}_loss"] for member in members] for when in ("supernet", "retrained")))
    assert found["ranking"]["by_loss"]["spearman"]["value"] == pytest.approx(by_loss.statistic)
    assert all((folder / f"{name}.{kind}").stat().st_size > 1_000 for name in ("ranking", "controls") for kind in ("svg", "png"))
    assert {seed["seed"] for seed in found["seeds"]} == {1, 2} and all(0 <= seed["gap"]["supernet_path"] <= 1 for seed in found["seeds"])

    more = diagnose(request(tmp_path, members=5, equal_cost=False, random_cells=1))
    assert len(more["controls"]["random"]["scores"]) == 1 and len(more["ranking"]["members"]) == 5
    assert all(path.stat().st_mtime_ns == before for path, before in trained.items())
    with pytest.raises(ConfigError, match="other settings .search.steps was 4, is 5"):
        diagnose(request(tmp_path, search=SearchConfig(steps=5, batch_size=16, candidates=4)))


def architecture_of(model: Path) -> dict[str, Any]:
    return json.loads((model / "config.json").read_text())["architecture"]


def test_a_strategys_diagnosis_has_a_folder_of_its_own_and_shares_what_was_prepared(tmp_path: Path) -> None:
    """``one_shot`` beside the default: a search of its own, its front's points trained."""
    first = Diagnosis(request(tmp_path), Progress())
    first.search(1)
    prepared = {path: path.stat().st_mtime_ns for path in (tmp_path / "run" / "cache").rglob("*") if path.is_file()}
    settings = SearchConfig(steps=4, batch_size=16, strategy="one_shot", population=6, generations=2)
    found = diagnose(request(tmp_path, search=settings, search_seeds=[1], members=3, front=4))
    folder = tmp_path / "run" / "diagnosis" / "one_shot" / "seed-1"
    front = json.loads((folder / "search" / "front.json").read_text())["front"]
    points = found["front"]["members"]
    assert [point["macs"] for point in points] == sorted(point["macs"] for point in points) and 1 < len(points) <= 4
    assert points[0]["architecture"] == front[0]["architecture"] and points[-1]["architecture"] == front[-1]["architecture"]
    assert all(path.stat().st_mtime_ns == before for path, before in prepared.items())


def test_a_diagnosis_is_of_one_process_and_of_what_its_settings_named_when_it_began(tmp_path: Path) -> None:
    config = request(tmp_path)
    diagnosis = Diagnosis(config, Progress())
    for folder in (diagnosis.folder, diagnosis.run_folder):  # the run's own, where teacher and cache are made
        with only_one(folder), pytest.raises(ConfigError, match="another process is at work"):
            diagnosis.run()
    assert not (diagnosis.folder / "run.json").exists()
    diagnosis.search(1)
    assert set(json.loads((diagnosis.folder / "run.json").read_text())["inputs"]) == {"teacher", "space"}
    Path(config.space).write_text(SPACE.replace("nodes: 2", "nodes: 3"), encoding="utf-8")
    with pytest.raises(ConfigError, match="begun with another content of space"):
        Diagnosis(config, Progress())


def test_a_model_of_another_architecture_is_not_taken_for_the_one_asked_for(tmp_path: Path) -> None:
    this = (diagnosis := Diagnosis(request(tmp_path), Progress())).search(1)
    members = diagnosis.drawn_members(this)
    this.trainer.train("member", members[0], 1)
    with pytest.raises(ModelError, match="holds another architecture"):
        this.trainer.train("member", members[1], 1)


@pytest.mark.parametrize("strategy", [name for name in STRATEGIES if not name.startswith("nni.")])
def test_every_strategys_path_is_scored(tmp_path: Path, strategy: str) -> None:
    kind = STRATEGIES[strategy]
    chooses = {"population": 4, "generations": 1} if strategy == "one_shot" else {"candidates": 2}
    settings = SearchConfig(steps=4, batch_size=16, strategy=strategy, mode=kind.published_mode or "joint", **chooses)
    diagnosis = Diagnosis(request(tmp_path, search=settings), Progress())
    assert 0 <= diagnosis.path_score(diagnosis.search(1)) <= 1


def test_every_batch_has_a_draw_of_its_own_where_draws_took_turns(tmp_path: Path) -> None:
    settings = SearchConfig(steps=4, batch_size=16, strategy="random", mode="bilevel", candidates=2, fair_sampling=True)
    diagnosis = Diagnosis(request(tmp_path, search=settings), Progress())
    this = diagnosis.search(1)
    method = diagnosis.method(this)
    this.supernet.train()
    torch.manual_seed(0)
    assert len({method.draw(this.supernet).depth for _ in range(12)}) > 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"search_seeds": [1, 1]}, r"search_seeds: \[1, 1\]"), ({"search_seeds": []}, "search_seeds"), ({"members": 2}, "members: 2"),
        ({"random_cells": -1}, "random_cells: -1"), ({"front": 4}, "front: search.strategy 'gumbel' finds none; choices: 0, or one_shot"),
        ({"search": SearchConfig(strategy="luck")}, "search.strategy: 'luck'"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_first(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Diagnosis(request(tmp_path, **changes), Progress())
    assert not (tmp_path / "run").exists()


def test_figures_show_what_was_found() -> None:
    members = [{"supernet_score": 0.5 + i / 50, "retrained_score": 0.6 + i / 60, "macs": 1e6 * (i + 1)} for i in range(5)]
    figure = ranking_figure(members, rank_correlation([1, 2, 3, 4, 5], [1, 2, 3, 5, 4]), "accuracy")
    shown = figure.axes[0].collections[0].get_offsets()
    np.testing.assert_allclose(shown, [[100 * m["supernet_score"], 100 * m["retrained_score"]] for m in members])
    assert "Spearman none" in ranking_figure(members, rank_correlation([1, 1, 1], [1, 2, 3]), "accuracy").axes[0].get_title(loc="left")
    bars = controls_figure({"searched": [0.8, 0.9], "random": [0.7], "conv3_stack": []}, "accuracy").axes[0].patches
    assert [bar.get_height() for bar in bars] == pytest.approx([85, 70])
    low, _ = controls_figure({"searched": [0.1], "random": [-0.2, 0.05]}, "Matthews correlation").axes[0].get_ylim()
    assert low < -20, "a correlation below 0 is seen"
    front = retrained_front_figure([*reversed(members)], rank_correlation([1, 2, 3, 4, 5], [1, 2, 3, 5, 4]), "accuracy").axes[0]
    retrained, before = (line.get_xydata() for line in front.get_lines()[:2])
    np.testing.assert_allclose(retrained, [[m["macs"], 100 * m["retrained_score"]] for m in members])
    np.testing.assert_allclose(before, [[m["macs"], 100 * m["supernet_score"]] for m in members])
    timed = retrained_front_figure([{**m, "latency_ms": 1 / m["macs"]} for m in members], rank_correlation([1, 2, 3], [1, 2, 3]), "accuracy")
    assert timed.axes[0].get_xlabel() == "predicted milliseconds a call"
