"""What a run reports to a tracker is its history, number by number; nothing is written elsewhere."""

from __future__ import annotations

import importlib.util
import json
import math
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from accelerate import Accelerator
from tiny_encoder_run import tiny_earlybert
from tiny_task import tiny_run

from adasearch import encoder_run, pipeline, trackers
from adasearch.config import RunConfig, SearchConfig, validate
from adasearch.earlybert_run import ABOUT, earlybert_recipes
from adasearch.encoder_problem import load_problem
from adasearch.encoder_run import EncoderRun, run_recipes
from adasearch.encoder_training import train_recipe
from adasearch.errors import ConfigError
from adasearch.pipeline import prepare_only, run, search, train
from adasearch.progress import Progress
from adasearch.settings import tracker_names
from adasearch.tasks import load_task
from adasearch.trackers import check_trackers
from adasearch.tracking import numbers

REQUIRED = pytest.mark.skipif(importlib.util.find_spec("tensorboard") is None, reason="needs the extra 'tracking'")


def test_numbers_are_named_by_their_path() -> None:
    record = {"step": 3, "terms": {"kd": 0.5}, "phase": "warmup", "is_warm": True, "deep": {"a": {"b": 1}}}
    assert dict(numbers(record)) == {"step": 3, "terms/kd": 0.5, "deep/a/b": 1}


@REQUIRED
def test_tensorboard_shows_the_history(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    config = tiny_run(tmp_path, report_to="tensorboard", search=SearchConfig(steps=6, batch_size=16, candidates=1))
    folder = search(config).parent
    (events,) = (tmp_path / "run" / "tracking").rglob("events.*")
    shown = EventAccumulator(str(events.parent)).Reload()
    history = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    for name in ("loss", "terms/kd", "temperature", "operations/conv3"):
        wanted = [(record["step"], dict(numbers(record))[name]) for record in history]
        found = [(event.step, event.value) for event in shown.Scalars(f"search/{name}")]
        assert [step for step, _ in found] == [step for step, _ in wanted]
        assert all(math.isclose(a, b, rel_tol=1e-6) for (_, a), (_, b) in zip(found, wanted)), "float32"
    assert {tag.partition("/")[0] for tag in shown.Tags()["scalars"]} == {"search", "teacher"}
    assert list(home.iterdir()) == []


def test_trackers_end_with_what_they_were_started_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever part of a run was asked for, and however it ends: a tracker may hold what it has not written yet."""
    calls: list[str] = []
    monkeypatch.setattr(pipeline, "check_trackers", lambda config: None)
    monkeypatch.setattr(pipeline, "start_trackers", lambda *_: calls.append("start"))
    monkeypatch.setattr(pipeline, "stop_trackers", lambda _: calls.append("stop"))
    prepare_only(tiny_run(tmp_path))
    assert calls == ["start", "stop"]

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline, "_search", stop)
    for part in (search, train, run):
        calls.clear()
        with pytest.raises(KeyboardInterrupt):
            part(tiny_run(tmp_path))
        assert calls == ["start", "stop"]


class Noting:
    """A tracker that keeps the names it is given, with the steps."""

    def __init__(self, name: str) -> None:
        self.name, self.seen = name, []

    def log(self, values: dict[str, float], step: int | None = None) -> None:
        self.seen += [(name, values.get(f"{name.rpartition('/')[0]}/step", step)) for name in values if name.endswith("/loss")]


def test_a_compressed_transformer_s_trackers_end_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    monkeypatch.setattr(encoder_run, "start_trackers", lambda *_: calls.append("start"))
    monkeypatch.setattr(encoder_run, "stop_trackers", lambda _: calls.append("stop"))
    config = tiny_earlybert(tmp_path, max_steps=2)
    accelerator = Accelerator(cpu=True)
    task = load_task(config)

    def train(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(encoder_run, "train_dense", train)
    with pytest.raises(KeyboardInterrupt):
        run_recipes(EncoderRun(config, ABOUT, tmp_path / "run", task, accelerator, Progress()), None, earlybert_recipes(config))
    assert calls == ["start", "stop"]


@pytest.mark.parametrize("tracker", ["tensorboard", "wandb"])
def test_every_recipe_seed_and_stage_has_curves_of_its_own(tmp_path: Path, tracker: str) -> None:
    config = tiny_earlybert(tmp_path, max_steps=2)
    accelerator, noting = Accelerator(cpu=True), Noting(tracker)
    problem = load_problem(config, load_task(config), tmp_path / "run", accelerator, Progress(), with_teacher=False)
    accelerator.trackers = [noting]
    try:
        for recipe in earlybert_recipes(config):
            for seed in (1, 2):
                train_recipe(recipe, problem, config, seed)
    finally:
        accelerator.trackers = []
    stages = {"earlybert": ("search", "train"), "random_ticket": ("train",)}
    curves = {f"{key}-{seed}/{stage}/loss" for key, names in stages.items() for seed in (1, 2) for stage in names}
    assert {name for name, _ in noting.seen} == curves and len(set(noting.seen)) == len(noting.seen), "no step twice in a curve"


def test_every_runs_tracker_writes_into_its_own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trials of a study share a process; what the user has set stays."""
    for variable in trackers.FOLDERS["wandb"]:
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(trackers, "_set", {})
    monkeypatch.setenv("WANDB_CACHE_DIR", "/users/own")
    accelerator = SimpleNamespace(trackers=[], is_main_process=True, project_configuration=SimpleNamespace(), init_trackers=lambda name: None)
    for name in ("first", "second"):
        trackers.start_trackers(RunConfig(report_to="wandb"), "sst2", tmp_path / name, accelerator)
        assert os.environ["WANDB_DIR"] == str(tmp_path / name / "tracking") and os.environ["WANDB_CACHE_DIR"] == "/users/own"
    for variable in trackers._set:
        monkeypatch.delenv(variable)


@pytest.mark.parametrize(
    ("report_to", "says"),
    [("mlflow", "'mlflow' is not known; choices: tensorboard, trackio, wandb"), (["none", "wandb"], "'none' is not known")],
)
def test_an_unknown_tracker_is_refused(report_to: str | list[str], says: str) -> None:
    with pytest.raises(ConfigError, match="report_to") as error:
        validate(RunConfig(report_to=report_to))
    assert says in str(error.value)


def test_reporting_to_none_is_no_tracker() -> None:
    assert tracker_names(RunConfig().report_to) == tracker_names(["none"]) == []
    assert tracker_names(["wandb", "tensorboard", "wandb"]) == ["wandb", "tensorboard"]


@pytest.mark.parametrize("name", [name for name in ("trackio", "wandb") if importlib.util.find_spec(name) is None])
def test_a_tracker_that_is_not_installed_is_named(name: str) -> None:
    with pytest.raises(ConfigError, match=f"report_to: '{name}' is not installed; pip install {name}"):
        check_trackers(RunConfig(report_to=name))
