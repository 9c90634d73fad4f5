"""Laws of studies: what is tried is what was asked for, nothing held out is seen, killed workers lose a trial at most."""

from __future__ import annotations

import csv
import dataclasses
import json
import multiprocessing
import os
import signal
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import optuna
import pytest
import torch
import yaml
from accelerate.state import AcceleratorState
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState, create_trial
from safetensors.torch import load_file
from tiny import tiny_space
from tiny_task import rows, tiny_run, write_csv, write_teacher

from adasearch.arguments import parse_settings
from adasearch import latency_bench, latency_target, tune_study, tune_trial
from adasearch.config import BenchConfig, DistillConfig, RetrainConfig, RunConfig, SearchConfig, validate
from adasearch.errors import ConfigError, TrainingError
from adasearch.files import read_json, write_json
from adasearch.latency import LatencyTable
from adasearch.progress import Progress
from adasearch.search_method import STRATEGIES
from adasearch.settings import part_of
from adasearch.space import load_space
from adasearch.tasks import Task, load_task
from adasearch.texts import Split
from adasearch.tokens import Examples, TokenStore
from adasearch.tune_check import check_request, widest_space
from adasearch.tune_study import tune
from adasearch.tune_config import TuneConfig, check_study
from adasearch.tune_plots import front_figure, importances
from adasearch.tune_report import best_trials
from adasearch.tune_space import default_space, read_space
from adasearch.tune_storage import GRACE_SECONDS, Worker, counted, create_study, is_lost, load_study, next_trial, open_storage, release_lost
from adasearch.tune_trial import Pruned, TrialRun, dominator, open_study, tuning_task
from adasearch.user_code import import_user_code

TRIED = {"search.beta": {"low": 0.5, "high": 16.0, "log": True}, "distill": {"gamma": [0.5, 0.8]}, "space.widths": [[8, 16], [8]]}


def study_config(folder: Path, **changes: Any) -> TuneConfig:
    """A study of tiny runs without exports: its costs are MACs."""
    search = SearchConfig(steps=4, batch_size=16, candidates=2)
    run = tiny_run(folder, search=search, bench=BenchConfig(runtime="torch"), output_dir=str(folder / "study"))
    return part_of(TuneConfig, run, **{"tune": TRIED, "n_trials": 3, "objectives": ["score", "macs"], "evaluations": 3, **changes})


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> TuneConfig:
    """The settings of a study whose trials are done; none was stopped while it trained."""
    config = study_config(tmp_path_factory.mktemp("tune"), pruner="none")
    tune(config)
    return config


def trials_of(config: TuneConfig) -> list[optuna.trial.FrozenTrial]:
    """By plain optuna, as anybody would read the journal."""
    storage = JournalStorage(JournalFileBackend(str(config.folder / "journal.log")))
    return optuna.load_study(study_name=config.name, storage=storage).trials


# --- what is tried ---


@pytest.mark.parametrize(
    ("tried", "says"),
    [
        ({"search.bta": [1.0]}, "unknown setting (did you mean 'search.beta'"),
        ({"srch.beta": [1.0]}, "choices: distill.*, retrain.*, search.*, space.*"),
        ({"teacher": ["a"]}, "is the same for all trials"),
        ({"finetune.epochs": [1.0]}, "is the same for all trials"),
        ({"search.beta": {"low": 3, "high": 1}}, "low 3 is above high 1"),
        ({"search.beta": {"low": 0, "high": 1, "log": True}}, "low 0 has no logarithm"),
        ({"search.beta": {"low": 1, "high": 2, "log": True, "step": 1}}, "log and step do not go together"),
        ({"search.beta": {"low": 1}}, "has no high"),
        ({"search.beta": {"low": 1, "high": 2, "step": 0}}, "step: 0 is out of range"),
        ({"search.steps": {"low": 500, "high": 3000, "step": 1000}}, "steps of 1000 from low 500 do not meet high 3000; choices: high 2500 or 3500, another step"),
        ({"search.beta": {"low": 1, "high": 3, "step": 5}}, "steps of 5 from low 1 do not meet high 3; choices: high 1 or 6"),
        ({"search.beta": {"low": 1, "high": float("inf")}}, "inf is no number"),
        ({"search.beta": {"low": 1, "high": 2, "logs": True}}, "unknown key 'logs'"),
        ({"search.beta": {"low": "1e-3", "high": 2}}, "'1e-3' is no number (YAML"),
        ({"search.steps": {"low": 1.5, "high": 2}}, "1.5 is no whole number"),
        ({"search.beta": 3}, "3 is neither a range nor a list"),
        ({"search.beta": []}, "neither a range nor a list"),
        ({"search.beta": [1, 1.0]}, "names a value twice"),
        ({"search.beta": ["low"]}, "'low' does not fit; expected float"),
        ({"distill.loss": {"low": 0, "high": 1}}, "this setting is no number"),
        ({"distill.loss": ["kl", "cosine"]}, "'cosine' is not known; choices: kl, mse"),
        ({"distill.gamma": {"low": 0.5, "high": 1.5}}, "tune.distill.gamma: distill.gamma: 1.5 is out of range"),
        ({"retrain.inherit": [1]}, "1 does not fit; expected true or false"),
        ({"space.widths": [8, 9]}, "widths: 9 must be at least 8 and a multiple"),
        ({"space.widths": {"low": 8, "high": 24, "step": 4}}, "widths: 12 must be at least 8 and a multiple"),
        ({"space.operations": [["conv3"], ["conv4"]]}, "unknown operation 'conv4'"),
    ],
)
def test_what_cannot_be_tried_is_named(tmp_path: Path, tried: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError) as error:
        read_space(study_config(tmp_path, tune=tried))
    assert says in str(error.value) and str(error.value).startswith("tune.")


def test_a_trial_gets_the_values_it_was_given_and_nothing_else_changes(tmp_path: Path) -> None:
    config = study_config(tmp_path, tune={**TRIED, "search.target_macs": [2e4], "retrain.inherit": [True, False], "space.cells": [1]})
    space = read_space(config)
    labels = {"search.beta": 2.5, "distill.gamma": 0.5, "space.widths": "[8]", "search.target_macs": 2e4, "retrain.inherit": False, "space.cells": 1}
    values = space.values_of(labels)
    run, shape = space.run_of(values), space.space_of(values)
    assert (run.search.beta, run.distill.gamma, run.retrain.inherit, run.search.target_macs) == (2.5, 0.5, False, 2e4)
    assert (shape.widths, shape.cells) == ((8,), (1, 1)) and shape.operations == space.space.operations
    assert run.search.efficiency == "constraint", "a target of MACs means nothing else"
    same = dataclasses.replace(
        run, distill=config.distill, retrain=config.retrain, search=dataclasses.replace(run.search, beta=4.0, target_macs=None, efficiency="penalty")
    )
    assert same == config.base()


def test_the_first_trial_is_the_run_as_it_was_given(tmp_path: Path) -> None:
    space = read_space(study_config(tmp_path))
    assert space.first() == {"search.beta": 4.0, "distill.gamma": 0.8, "space.widths": "[8, 16]"}
    run = space.run_of(space.values_of(space.first()))
    assert run == space.base and space.space_of(space.values_of(space.first())) == space.space


def test_the_first_trial_knows_what_is_absent_and_sizes_as_single_numbers(tmp_path: Path) -> None:
    config = study_config(tmp_path, tune={"search.target_macs": [None, 3e6], "space.widths": [8, [8, 16]], "space.cells": [1, 2]})
    first = read_space(config).first()
    assert first["search.target_macs"] is None and first["space.widths"] == "[8, 16]"
    single = dataclasses.replace(read_space(config), space=dataclasses.replace(read_space(config).space, cells=(2, 2), widths=(8,)))
    assert (single.first()["space.cells"], single.first()["space.widths"]) == (2, 8)


def test_every_default_lies_among_what_is_tried_by_default(tmp_path: Path) -> None:
    space = read_space(study_config(tmp_path, tune={}))
    names = {parameter.name for parameter in space.parameters}
    assert set(space.first()) == names >= {"search.beta", "distill.gamma", "distill.temperature", "space.widths", "space.cells"}
    constrained = SearchConfig(efficiency="constraint", target_macs=1e6)
    assert "search.beta" not in {p.name for p in read_space(study_config(tmp_path, tune={}, search=constrained)).parameters}


def test_flags_and_files_say_what_is_tried(tmp_path: Path) -> None:
    file = tmp_path / "base.yaml"
    file.write_text(yaml.safe_dump({"task": "sst2", "tune": {"search.beta": {"low": 1, "high": 2}, "distill": {"gamma": [0.1]}}}), encoding="utf-8")
    flags = ["--config", str(file), "--tune.search.beta", "1", "4", "--tune.retrain.steps={low: 10, high: 20}"]
    config, _ = parse_settings(TuneConfig, flags, prog="adasearch tune", about="", positional="task")
    asked = {parameter.name: parameter.distribution for parameter in read_space(config).parameters}
    assert asked["search.beta"].choices == (1.0, 4.0) and asked["distill.gamma"].choices == (0.1,)
    assert (asked["retrain.steps"].low, asked["retrain.steps"].high) == (10, 20)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"n_trials": 0}, "n_trials: 0 is out of range"),
        ({"workers": 0}, "workers: 0 is out of range"),
        ({"workers": 4_000}, "this machine lends"),
        ({"objectives": ["score", "speed"]}, "objectives[1]: 'speed' is not known"),
        ({"objectives": ["macs"]}, "without score"),
        ({"objectives": ["score", "score"]}, "is there already"),
        ({"objectives": ["score"], "pruner": "dominated"}, "needs a cost among the objectives"),
        ({"pruner": "median"}, "needs a single objective"),
        ({"sampler": "grid"}, "choices: tpe, nsgaii, random"),
        ({"latency_limit_ms": 0.0}, "latency_limit_ms: 0.0 is out of range"),
        ({"storage": "mongodb://x"}, "unknown kind 'mongodb'"),
        ({"storage": "nothing"}, "is no URL"),
    ],
)
def test_a_wrong_study_is_refused_before_any_work(tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    config = study_config(tmp_path, **changes)
    with pytest.raises(ConfigError) as error:
        check_study(config)
        open_storage(config)
    assert says in str(error.value)
    assert not config.folder.exists()


def test_a_warm_start_leaves_the_space_as_it_is(tmp_path: Path) -> None:
    config = study_config(tmp_path, tune={}, warm_start=str(tmp_path / "warm"))
    names = {parameter.name for parameter in read_space(config).parameters}
    assert "search.beta" in names and not any(name.startswith("space.") for name in names)
    for tried in ({"space.widths": [[8]]}, {"space.macro.dropout": {"low": 0.0, "high": 0.3}}):
        with pytest.raises(ConfigError, match=r"tune.space.*warm_start .*warm is of one space.*choices: no tune.space"):
            read_space(dataclasses.replace(config, tune=tried))


LAYERS = """
name: layers
cells: [1, 2]
nodes: 1
edges_per_node: 1
sample_edges: true
share_cells: false
widths: [16]
operations: [inherited_50, inherited_100]
macro: {cell_output: sum, attention_head_size: 8, teacher_size: 16, teacher_heads: 2, teacher_neurons: 32}
"""


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"search.strategy": "nonsense"}, "search.strategy: 'nonsense' is not known; choices: .*gdas"),
        ({"task": "squad", "train_file": None, "validation_file": None}, "task: 'squad' is extractive question answering"),
        ({"warm_start": "/does/not/exist", "tune": {"search.beta": [4.0]}}, "warm_start: /does/not/exist holds no warm supernet"),
        ({"space": "inherited", "tune": {"search.beta": [4.0]}}, "macro.teacher_size: 384, but teacher .* has 16; choices: 16"),
        ({"tune": {"search.strategy": ["gumbel", "nonsense"]}}, "tune.search.strategy: search.strategy: 'nonsense' is not known; choices: "),
        ({"tune": {"search.strategy": ["gumbel", "darts_second"]}}, "tune.search.strategy: search.mode: 'joint' does not work with .*'darts_second'"),
        ({"space": LAYERS, "tune": {"space.cells": [[1, 2], [1, 3]]}}, "tune.space.cells: .*cells: up to 3, but teacher .* has 2 layers"),
        ({"search.latency_target_ms": 1.0, "tune": {"space.nodes": [1, 2]}}, "tune.space.nodes: 1 needs a latency table of its own"),
        ({"tune": {"search.latency_target_ms": [1.0], "space.edges_per_node": [1, 2]}}, "tune.space.edges_per_node: 1 needs a latency table"),
        ({"search.latency_target_ms": 1.0, "tune": {"space.macro.norm": ["layer"]}}, "'layer' needs a latency table .*choices: space.widths"),
    ],
)
def test_what_no_trial_could_do_is_refused_before_any_work(tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    search = {name.removeprefix("search."): value for name, value in changes.items() if name.startswith("search.")}
    config = study_config(tmp_path, **{name: value for name, value in changes.items() if name != "space" and "." not in name})
    config.search = dataclasses.replace(config.search, **search)
    if (space := changes.get("space")) == LAYERS:
        (tmp_path / "tiny.yaml").write_text(LAYERS, encoding="utf-8")
    elif space is not None:
        config.space = space
    with pytest.raises(ConfigError, match=says):
        tune(config)
    assert not (config.folder / "preparation").exists() and not (config.folder / "study.json").exists()


def test_a_strategy_may_have_the_mode_of_another_setting(tmp_path: Path) -> None:
    tried = {"search.strategy": ["gumbel", "darts_second"], "search.mode": ["joint", "bilevel"]}
    assert len(check_request(study_config(tmp_path, tune=tried)).parameters) == 2, "darts_second has trials in bilevel mode"


def test_what_a_latency_is_for_may_be_set_where_targets_are_tried(tmp_path: Path) -> None:
    asked = {"latency_batch_size": 8, "latency_lengths": [8, 16]}
    config = study_config(tmp_path, tune={"search.latency_target_ms": [1.0, 2.0]})
    config.search = dataclasses.replace(config.search, **asked)
    assert {name: getattr(check_request(config).base.search, name) for name in asked} == asked
    config.tune = {"search.arch_warmup": [0.1, 0.2]}
    with pytest.raises(ConfigError, match="search.latency_batch_size: 8 is of a latency"):
        check_request(config)


def test_a_password_does_not_leave_the_process(tmp_path: Path) -> None:
    config = study_config(tmp_path, storage="postgresql://me:secret@127.0.0.1:1/none?connect_timeout=1")
    with pytest.raises(ConfigError, match="storage: postgresql") as error:
        open_storage(config)
    assert "secret" not in str(error.value) and "***" in str(error.value)


# --- what is seen ---


@pytest.mark.parametrize("has_test", [True, False])
def test_no_example_of_the_final_score_is_in_the_study(has_test: bool) -> None:
    def split(count: int, seed: int) -> Split:
        made = rows(count, seed)
        return Split([f"{seed} {index} {row['text']}" for index, row in enumerate(made)], labels=np.arange(count) % 2)

    task = Task("x", "single_label", ("a", "b"), ("accuracy",), split(100, 1), split(30, 2), split(20, 3) if has_test else None)
    tuned = tuning_task(task, seed=5)
    seen = {*tuned.train.texts, *tuned.validation.texts, *tuned.held_out.texts}
    assert not seen & set(task.held_out.texts)
    assert not set(tuned.train.texts) & set(tuned.validation.texts)
    known = {*task.train.texts, *task.validation.texts} if has_test else set(task.train.texts)
    assert seen == known and tuned.held_out is tuned.validation
    assert tuning_task(task, seed=5).validation.texts == tuned.validation.texts, "the same for every worker"


# --- a whole study ---


def test_a_study_leaves_what_was_promised(finished: TuneConfig) -> None:
    folder, trials = finished.folder, trials_of(finished)
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * 3
    for name in ("config.yaml", "study.json", "journal.log", "trials.csv", "tune.md", "figures/pareto.svg", "figures/pareto.png"):
        assert (folder / name).is_file(), name
    table = list(csv.DictReader((folder / "trials.csv").open()))
    assert [float(line["score"]) for line in table] == [trial.values[0] for trial in trials]
    assert [line["state"] for line in table] == ["complete"] * 3
    for trial in trials:
        here = folder / "trials" / f"{trial.number:04d}"
        architecture = json.loads((here / "architecture.json").read_text())
        assert trial.user_attrs["shape"] == f"{len(architecture['cells'])} x {architecture['width']}"
        assert not list(here.rglob("*.pt")) and not list(here.rglob("*.safetensors")), "trials stay small"
        (scores,) = here.glob("models/*/scores.json")
        assert trial.values[0] == json.loads(scores.read_text())["accuracy"] == trial.user_attrs["curve"][-1]
        assert trial.values[0] * 12 == pytest.approx(round(trial.values[0] * 12)), "a share of the 12 examples held out to tune on"
    assert trials[0].params == {"search.beta": 4.0, "distill.gamma": 0.8, "space.widths": "[8, 16]"}


def test_the_preparation_is_made_once(finished: TuneConfig) -> None:
    cache = finished.folder / "preparation" / "cache"
    assert len(list(cache.glob("teacher-*.npy"))) == len(list(cache.glob("transfer-*.ids.npy"))) == 1
    assert not list((finished.folder / "trials").glob("*/cache")) and not list((finished.folder / "trials").glob("*/teacher"))


def test_the_best_are_runs_that_can_be_run(finished: TuneConfig) -> None:
    trials = {trial.number: trial for trial in trials_of(finished)}
    files = sorted((finished.folder / "front").glob("[0-9][0-9][0-9][0-9].yaml"))
    assert files
    for file in files:
        run, _ = parse_settings(RunConfig, ["--config", str(file)], prog="adasearch run", about="", positional="task")
        validate(run)
        params = trials[int(file.stem)].params
        assert (run.search.beta, run.distill.gamma) == (params["search.beta"], params["distill.gamma"])
        assert load_task(run).held_out.texts == [row["text"] for row in rows(40, 2)], "scored on what the study never saw"
        assert (run.controls, run.evaluate) == (finished.controls, finished.evaluate)
        assert str(file) in (finished.folder / "tune.md").read_text()


def test_the_same_command_goes_on_to_as_many_trials_as_asked_for(finished: TuneConfig) -> None:
    before = trials_of(finished)
    assert tune(finished) == finished.folder and len(trials_of(finished)) == 3, "all are there: nothing is done"
    tune(dataclasses.replace(finished, n_trials=4))
    after = trials_of(finished)
    assert [t.params for t in after[:3]] == [t.params for t in before] and len(after) == 4
    found = load_study(finished)
    weights = importances(found, finished)
    assert all(sum(shares.values()) == pytest.approx(1) for shares in weights.values())
    done = [trial for trial in after if trial.state == TrialState.COMPLETE]
    figure = front_figure(after, best_trials(found), "macs", "accuracy")
    dots = np.concatenate([np.asarray(points.get_offsets()) for points in figure.axes[0].collections])
    assert sorted(map(tuple, dots.tolist())) == sorted((trial.values[1], 100 * trial.values[0]) for trial in done)


def test_another_study_is_not_mixed_with_this_one(finished: TuneConfig, tmp_path: Path) -> None:
    other = dataclasses.replace(finished, distill=dataclasses.replace(finished.distill, temperature=3.0))
    with pytest.raises(ConfigError, match="output_dir: .* holds a study with other settings .distill.temperature was"):
        tune(other)
    storage = JournalStorage(JournalFileBackend(str(finished.folder / "journal.log")))
    moved = dataclasses.replace(other, output_dir=str(tmp_path / "study"))
    (tmp_path / "study").mkdir()
    with pytest.raises(ConfigError, match="study_name: 'study' in the storage holds a study with other settings"):
        create_study(moved, storage, "accuracy", {})


def test_a_limit_stops_trials_before_their_students_are_trained(tmp_path: Path) -> None:
    config = study_config(tmp_path, macs_limit=1.0, n_trials=1)
    with pytest.raises(TrainingError, match="no trial came to its end"):
        tune(config)
    (trial,) = trials_of(config)
    assert trial.state == TrialState.PRUNED and "above macs_limit 1" in trial.user_attrs["reason"]
    assert trial.user_attrs["macs"] > 1 and not (config.folder / "trials" / "0000" / "models").exists()
    assert "above macs_limit" in (config.folder / "tune.md").read_text()


def test_a_study_that_was_stopped_while_it_prepared_takes_no_other_teacher_and_no_other_data(tmp_path: Path) -> None:
    config = study_config(tmp_path)
    open_study(config, Progress())  # the teacher has learned and spoken, no trial has begun
    assert not (config.folder / "study.json").exists()
    write_teacher(tmp_path / "other")
    with pytest.raises(ConfigError, match="the word of another teacher .teacher was "):
        tune(dataclasses.replace(config, teacher=str(tmp_path / "other")))
    write_csv(Path(config.train_file), 90, seed=7)
    with pytest.raises(ConfigError, match="the data have changed since"):
        tune(config)


def test_trials_begin_with_the_layers_of_the_teacher(tmp_path: Path) -> None:
    """As the run of that space does (test_inherited); their worth is computed once."""
    still = {"steps": 4, "batch_size": 16, "inherited_rate": 1e-9}  # weights as good as held still
    config = study_config(
        tmp_path, n_trials=2, keep_models=True, search=SearchConfig(**still, candidates=2), retrain=RetrainConfig(**still, inherit=False),
        tune={"distill.gamma": [0.5, 0.8], "retrain.inherit": [True, False]}, objectives=["score"], pruner="none",
    )  # fmt: skip
    Path(config.space).write_text(LAYERS, encoding="utf-8")
    tune(config)
    teacher = load_file(config.folder / "preparation" / "teacher" / "model.safetensors")
    theirs = teacher["bert.encoder.layer.0.intermediate.dense.weight"]
    for trial in trials_of(config):
        (student,) = (config.folder / "trials" / f"{trial.number:04d}" / "models").glob("*/model.safetensors")
        rows_of = [tensor for name, tensor in load_file(student).items() if ".cells.0." in name and name.endswith("widen.weight")]
        assert rows_of and all((row - theirs).abs().amax(1).min() < 1e-5 for row in torch.cat(rows_of)), trial.params
    assert len(list(config.folder.rglob("worth-*.pt"))) == 1 == len(list((config.folder / "preparation" / "cache").glob("worth-*.pt")))
    assert not list((config.folder / "trials").glob("*/cache"))


def test_all_trials_with_a_latency_target_read_one_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A range of widths with one in between, dropout, operations of their own: none is stopped for want of a measurement."""
    for name in ("BLOCKS", "REPEATS", "WARMUP"):
        monkeypatch.setattr(latency_bench, name, 1)
    search = SearchConfig(steps=4, batch_size=16, candidates=2, latency_target_ms=1e6, latency_lengths=[8], latency_runtime="torch")
    tried = {
        "space.widths": {"low": 8, "high": 24, "step": 8}, "space.macro.dropout": {"low": 0.0, "high": 0.3},
        "space.operations": [["conv3", "skip"], ["sep_conv3"]], "space.cells": [1, 2],
    }  # fmt: skip
    config = study_config(tmp_path, search=search, tune=tried, n_trials=3, sampler="random", pruner="none")
    tune(config)
    assert [(trial.state, trial.user_attrs.get("reason")) for trial in trials_of(config)] == [(TrialState.COMPLETE, None)] * 3
    table = LatencyTable.load(config.folder / "preparation" / "search" / "latency.json")
    assert set(table.frame_ms) == {8, 16, 24} and set(table.operation_ms) == {"conv3", "skip", "sep_conv3"}
    search = dataclasses.replace(search, latency_table=str(tmp_path / "t.json"))
    named = dataclasses.replace(config, output_dir=str(tmp_path / "named"), search=search)
    (tmp_path / "t.json").write_text(json.dumps({**table.to_dict(), "nodes": 5}), encoding="utf-8")
    with pytest.raises(ConfigError, match="t.json: the latency table of space 'tiny' has cells .* of another kind; rebuild"):
        tune(named)
    assert not (tmp_path / "named" / "preparation" / "teacher").exists()


def test_the_table_of_a_study_serves_texts_that_are_longer_than_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of the run that follows, of which it holds some out, and of trials with another vocabulary."""
    search = SearchConfig(latency_target_ms=1.0, latency_runtime="torch")
    config = study_config(tmp_path, search=search, tune={"distill.gamma": [0.5, 0.8]}, max_seq_length=64)
    labelled = Examples(TokenStore.from_lists([[2, 5, 3]] * 3 + [[2, 5, 6, 7, 3]] * 3), 0)
    study = SimpleNamespace(
        config=config, space=read_space(config), task=SimpleNamespace(is_pair=False), preparation=tmp_path / "preparation", progress=Progress()
    )
    config.folder.mkdir()
    asked: list[tuple[int, ...]] = []
    monkeypatch.setattr(latency_target, "build_table", lambda space, knots, **_: asked.append(knots))
    given = tune_trial._with_table(study, SimpleNamespace(labelled=labelled))
    assert asked == [(4, 8, 16, 32, 64)] and given.base.search.latency_table == str(tmp_path / "preparation" / "search" / "latency.json")


def test_the_example_of_the_documentation_works_with_a_latency_target(tmp_path: Path) -> None:
    page = (Path(__file__).parents[1] / "docs" / "how-to-tune.md").read_text(encoding="utf-8")
    (tmp_path / "study.yaml").write_text(page.partition("```yaml\n")[2].partition("```")[0], encoding="utf-8")
    flags = ["--config", str(tmp_path / "study.yaml"), "--latency_target_ms", "0.5", "--output_dir", str(tmp_path / "study")]
    config, _ = parse_settings(TuneConfig, flags, prog="adasearch tune", about="", positional="task")
    assert config.search.latency_target_ms == 0.5
    widest, given = widest_space(check_request(config), is_pair=False), load_space("adasearch")
    assert (widest.widths, widest.cells, widest.operations) == ((96, 128, 160), given.cells, given.operations)


# --- stopping ---


def finished_trial(number: int, curve: list[float], macs: float) -> optuna.trial.FrozenTrial:
    trial = create_trial(values=[curve[-1], macs], user_attrs={"curve": curve, "macs": macs})
    trial.number = number
    return trial


@pytest.mark.parametrize(
    ("score", "macs", "step", "stops"),
    [
        (0.60, 100.0, 2, True),  # trial 0 had 0.70 there at the same cost
        (0.69, 100.0, 2, False),  # within the margin
        (0.60, 99.0, 2, False),  # cheaper than all
        (0.60, 500.0, 2, True),
        (0.60, 100.0, 1, False),  # trial 0 was at 0.55 then
        (0.60, 100.0, 4, False),  # no trial has come so far
    ],
)
def test_a_trial_is_dominated_at_equal_steps_and_no_more_cost(score: float, macs: float, step: int, stops: bool) -> None:
    done = [finished_trial(0, [0.55, 0.70, 0.90], 100.0)]
    assert (dominator(done, {"macs": macs}, step, score, 1.0, 0.02) is not None) == stops
    errors = [finished_trial(0, [0.45, 0.30, 0.10], 100.0)]
    assert (dominator(errors, {"macs": macs}, step, 1 - score, -1.0, 0.02) is not None) == stops, "where less is better"


@pytest.mark.parametrize("objectives", [["score", "macs"], ["score"]])
def test_a_hopeless_trial_is_stopped_while_it_trains(finished: TuneConfig, tmp_path: Path, objectives: list[str]) -> None:
    config = dataclasses.replace(finished, output_dir=str(tmp_path / "study"), objectives=objectives, pruner="auto", prune_warmup=0.0, evaluations=4)
    (tmp_path / "study").mkdir()
    (tmp_path / "study" / "preparation").symlink_to(finished.folder / "preparation")
    study, storage = open_study(config, Progress()), open_storage(config)
    create_study(config, storage, "accuracy", {})
    found = load_study(config)

    def begin() -> TrialRun:
        trial = found.ask()
        this = TrialRun(study, found, trial, study.space.suggest(trial))
        this._note(macs=100.0, params=1.0)
        return this

    for _ in range(5):  # as many as the median pruner wants to see
        good = begin()
        for score in (0.8, 0.85, 0.9, 0.9):
            good._hear(score)
        found.tell(good.trial, [0.9, 100.0][: len(objectives)])
    fine, bad = begin(), begin()
    for score in (0.81, 0.86, 0.92, 0.92):
        fine._hear(score)
    with pytest.raises(Pruned, match="validation score 0.5000 at evaluation"):
        for score in (0.5, 0.5):
            bad._hear(score)
    found.tell(bad.trial, state=TrialState.PRUNED)
    assert {"macs": 100.0, "params": 1.0}.items() <= found.trials[-1].user_attrs.items(), "what it costs is known, though not what it is worth"


# --- workers ---


STRATEGY = """
from adasearch.search_method import STRATEGIES, SearchMethod

@STRATEGIES.register("of_a_user")
class OfAUser(SearchMethod):
    pass
"""


def test_workers_import_what_the_user_has_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    (tmp_path / "strategy_of_a_user.py").write_text(STRATEGY, encoding="utf-8")
    import_user_code(str(tmp_path / "strategy_of_a_user.py"))
    try:
        config = study_config(tmp_path, workers=2, n_trials=2, tune={"distill.gamma": [0.5, 0.8]}, pruner="none")
        config.search = dataclasses.replace(config.search, strategy="of_a_user")
        tune(config)
        assert [trial.state for trial in trials_of(config)] == [TrialState.COMPLETE] * 2
        del sys.modules["strategy_of_a_user"], STRATEGIES._items["of_a_user"]
        (tmp_path / "strategy_of_a_user.py").write_text(f"{STRATEGY}    arch_betas = (0.9, 0.999)\n", encoding="utf-8")
        import_user_code(str(tmp_path / "strategy_of_a_user.py"))
        with pytest.raises(ConfigError, match="study: begun with another content of --import strategy_of_a_user, and what was learned"):
            tune(dataclasses.replace(config, n_trials=3))
    finally:
        del sys.modules["strategy_of_a_user"], STRATEGIES._items["of_a_user"]


@pytest.fixture
def queue(tmp_path: Path) -> tuple[TuneConfig, optuna.Study]:
    """An empty study of nothing but its storage."""
    config = study_config(tmp_path, n_trials=3, retries=1)
    create_study(config, open_storage(config), "accuracy", {})
    return config, load_study(config)


@pytest.mark.parametrize("sampler", ["tpe", "random", "nsgaii"])
def test_no_two_trials_are_drawn_alike_and_a_study_goes_on_as_it_would_have(sampler: str, tmp_path: Path) -> None:
    def drawn(folder: str, workers: int) -> list[float]:
        """Six trials, drawn in turns by workers who opened the study together, as on machines of their own."""
        config = dataclasses.replace(study_config(tmp_path), output_dir=str(tmp_path / folder), sampler=sampler)
        create_study(config, open_storage(config), "accuracy", {})
        studies = [load_study(config) for _ in range(workers)]
        values = []
        for turn in range(6):
            trial = studies[turn % workers].ask()
            values.append(trial.suggest_float("search.beta", 0, 1))
            studies[turn % workers].tell(trial, [0.5, 1.0])
        return values

    alone, together = drawn("one", 1), drawn("three", 3)
    assert len(set(alone)) == 6 and together == alone


def test_there_are_as_many_trials_as_asked_for(queue: tuple[TuneConfig, optuna.Study]) -> None:
    config, found = queue
    running = [next_trial(found, config.n_trials) for _ in range(5)]
    assert [trial is not None for trial in running] == [True, True, True, False, False], "those at work count"
    found.tell(running[0], [0.5, 1.0])
    assert next_trial(found, config.n_trials) is None and next_trial(found, 4) is not None


def test_a_study_that_was_moved_goes_on_under_its_name(queue: tuple[TuneConfig, optuna.Study], tmp_path: Path) -> None:
    config, found = queue
    found.tell(next_trial(found, 3), [0.5, 1.0])
    moved = dataclasses.replace(config, output_dir=str(config.folder.rename(tmp_path / "moved")))
    with pytest.raises(ConfigError, match="holds the study 'study', not 'moved'; choices: --study_name study"):
        create_study(moved, open_storage(moved), "accuracy", {})
    named = dataclasses.replace(moved, study_name="study")
    assert len(create_study(named, open_storage(named), "accuracy", {}).trials) == 1


def test_a_score_that_is_no_number_stops_its_trial(tmp_path: Path) -> None:
    """As a metric of the user's may give it: Optuna takes none."""
    study = SimpleNamespace(accelerator=SimpleNamespace(trackers=[]), inherits=False, problem=lambda config: None)
    trial = SimpleNamespace(
        config=study_config(tmp_path).base(), folder=tmp_path, study=study, costs={}, _search=lambda problem: (None, None),
        _weigh=lambda *_: None, _train=lambda *_: [0.5, float("nan")], _tidy=lambda: None,
    )  # fmt: skip
    with pytest.raises(Pruned, match="its score is nan"):
        TrialRun.run(trial)


def test_a_trial_is_lost_when_its_worker_is_gone(queue: tuple[TuneConfig, optuna.Study]) -> None:
    config, found = queue
    storage = open_storage(config)
    with Worker(config.folder) as worker:
        trial = next_trial(found, 3)
        with worker.beating(trial):
            trial.suggest_float("search.beta", 1, 2)
            frozen = found.trials[0]
            assert not is_lost(frozen, config.folder) and release_lost(found, storage, config) == []
            assert "heartbeat" in frozen.user_attrs
    elsewhere = config.folder / "elsewhere"  # no lock is to be seen: the heart tells
    assert not is_lost(frozen, elsewhere, now=frozen.user_attrs["heartbeat"] + GRACE_SECONDS - 1)
    assert is_lost(frozen, elsewhere, now=frozen.user_attrs["heartbeat"] + GRACE_SECONDS + 1)


def test_a_trial_is_lost_as_soon_as_its_worker_was_interrupted(queue: tuple[TuneConfig, optuna.Study]) -> None:
    """By Ctrl-C: the same command, given again, does not wait for a heart that has just beaten."""
    config, found = queue
    with pytest.raises(KeyboardInterrupt), Worker(config.folder) as worker, worker.beating(next_trial(found, 3)):
        raise KeyboardInterrupt
    assert release_lost(found, open_storage(config), config) == [0]
    assert not list((config.folder / "workers").iterdir())


def test_a_study_of_a_version_with_fewer_settings_goes_on(queue: tuple[TuneConfig, optuna.Study]) -> None:
    config, found = queue
    path = config.folder / "study.json"
    old = read_json(path)
    del old["search"]["finalists"]
    write_json(path, old)
    create_study(config, open_storage(config), "accuracy", {})
    write_json(path, {**old, "retrain": {**old["retrain"], "steps": 9_999}})
    with pytest.raises(ConfigError, match="other settings .retrain.steps was 9999"):
        create_study(config, open_storage(config), "accuracy", {})


def test_interruptions_use_up_no_tries(queue: tuple[TuneConfig, optuna.Study]) -> None:
    config, found = queue
    for _ in range(config.retries + 2):
        with pytest.raises(KeyboardInterrupt), Worker(config.folder) as worker:
            trial = next_trial(found, 3)
            with worker.beating(trial):
                trial.suggest_float("search.beta", 1, 2)
                trial.set_user_attr("is_interrupted", True)  # as ``work`` says it
                raise KeyboardInterrupt
        assert release_lost(found, open_storage(config), config) == [trial.number]
        assert found.trials[trial.number].user_attrs["reason"] == "interrupted"
    assert found.trials[-1].state == TrialState.WAITING and found.trials[-1].user_attrs["tries"] == 0


def hang(config: TuneConfig, at_work: Any) -> None:
    """A worker that never comes to the end of its trial."""
    found = load_study(config)
    with Worker(config.folder) as worker:
        trial = next_trial(found, config.n_trials)
        with worker.beating(trial):
            trial.suggest_float("search.beta", 1, 2)
            at_work.set()
            time.sleep(600)


def test_a_killed_worker_loses_its_trial_and_nothing_else(queue: tuple[TuneConfig, optuna.Study]) -> None:
    config, found = queue
    storage = open_storage(config)
    done = next_trial(found, 3)
    found.tell(done, [0.5, 1.0])
    for attempt in (1, 2):  # retries = 1: the second loss is final
        context = multiprocessing.get_context("fork")  # nothing to import again
        at_work = context.Event()
        process = context.Process(target=hang, args=(config, at_work))
        process.start()
        assert at_work.wait(60)
        assert release_lost(found, storage, config) == [], "it lives"
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        assert release_lost(found, storage, config) == [attempt] and release_lost(found, storage, config) == []
        states = [trial.state for trial in found.trials]
        assert states == [TrialState.COMPLETE, TrialState.FAIL, TrialState.WAITING if attempt == 1 else TrialState.FAIL]
    first, second = found.trials[1:]
    assert first.params == second.params and second.user_attrs["retry_of"] == 1
    assert [trial.number for trial in counted(found.trials)] == [0, 2], "the first loss was made good, the second counts"


def test_a_trial_that_is_lost_before_it_drew_its_values_keeps_them(queue: tuple[TuneConfig, optuna.Study], monkeypatch: pytest.MonkeyPatch) -> None:
    config, found = queue
    found.enqueue_trial({"search.beta": 1.25}, user_attrs={"is_first": True})
    lost = next_trial(found, 3)
    monkeypatch.setattr("adasearch.tune_storage.is_lost", lambda trial, folder: trial.number == lost.number)
    assert release_lost(found, open_storage(config), config) == [lost.number]
    again = next_trial(found, 3)
    assert again.suggest_float("search.beta", 1, 2) == 1.25 and again.user_attrs["is_first"]


def test_nsgaii_has_generations_within_a_study_of_the_usual_size(tmp_path: Path) -> None:
    config = study_config(tmp_path, sampler="nsgaii", n_trials=TuneConfig.n_trials)
    create_study(config, open_storage(config), "accuracy", {})
    found = load_study(config)
    for _ in range(config.n_trials):
        trial = found.ask()
        found.tell(trial, [trial.suggest_float("search.beta", 0, 1), trial.suggest_float("search.learning_rate", 0, 1)])
    generations = [value for trial in found.trials for key, value in trial.system_attrs.items() if key.endswith("generation")]
    assert max(generations) == 3


def test_a_study_computes_in_the_precision_it_began_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = RunConfig(task="demo", mixed_precision="auto", cpu=True, threads=1)
    found, held = [], dict(AcceleratorState._shared_state)
    for gain in (9.0, 0.1, 9.0):  # as an idle machine and a busy one measure it
        monkeypatch.setattr("adasearch.accelerator._bf16_gain", lambda gain=gain: gain)
        found.append(tune_trial._accelerator(tmp_path / "precision.json", base).mixed_precision)
    AcceleratorState._reset_state()
    AcceleratorState._shared_state.update(held)  # what other tests of this process compute in
    assert found == ["bf16"] * 3


def test_a_worker_that_was_given_up_on_does_not_spoil_the_study(queue: tuple[TuneConfig, optuna.Study]) -> None:
    config, found = queue
    with Worker(config.folder) as worker:
        trial = next_trial(found, 3)
        with worker.beating(trial):
            found.tell(trial.number, state=TrialState.FAIL)
            time.sleep(0.05)
        with pytest.raises((optuna.exceptions.UpdateFinishedTrialError, ValueError)):
            found.tell(trial, [0.5, 1.0])


def test_a_worker_whose_trial_was_given_up_on_takes_the_next(queue: tuple[TuneConfig, optuna.Study], monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that slept for three minutes: whatever it notes of its trial is refused, not only the result."""
    config, found = queue
    run: list[int] = []

    def trial_of(study: Any, optuna_study: optuna.Study, trial: optuna.Trial) -> list[float]:
        run.append(trial.number)
        if len(run) == 1:
            found.tell(trial.number, state=TrialState.FAIL)  # by another machine
        trial.set_user_attr("seconds", 1.0)
        return [0.5, 1.0]

    monkeypatch.setattr(tune_study, "run_trial", trial_of)
    heard, progress = [], Progress()
    progress.warning = heard.append
    tune_study.work(SimpleNamespace(config=config), progress=progress)
    assert len(run) == config.n_trials and [trial.state for trial in found.trials[1:]] == [TrialState.COMPLETE] * (config.n_trials - 1)
    assert heard == [f"trial {run[0]}: another worker took it over; its result is not used"]


@pytest.mark.parametrize(
    ("changes", "absent"),
    [({"distill": DistillConfig(loss="mse")}, "distill.temperature"), ({"search": SearchConfig(strategy="one_shot")}, "search.beta"), ({}, None)],
)
def test_what_has_no_effect_is_not_tried(tmp_path: Path, changes: dict[str, Any], absent: str | None) -> None:
    asked = default_space(study_config(tmp_path, **changes), tiny_space())
    assert {"distill.temperature", "search.beta"} - set(asked) == ({absent} if absent else set())
