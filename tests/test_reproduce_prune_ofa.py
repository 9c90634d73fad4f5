"""The script that runs one sparse model on many tasks: what its results are allowed to say. No run is made here."""

from __future__ import annotations

import dataclasses
import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from reports import make_report, system

from adasearch.errors import ConfigError
from adasearch.files import read_json, write_json
from adasearch.prune_ofa_source import pretraining_stages


@pytest.fixture
def script() -> ModuleType:
    path = Path(__file__).parents[1] / "scripts" / "reproduce_prune_ofa.py"
    spec = importlib.util.spec_from_file_location("reproduce_prune_ofa", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write_finished(folder: Path) -> list[str]:
    """A sparse model and the finished run of a task; the script's arguments."""
    stages = {"teacher": {"steps": 20, "seconds": 2.0}, "sparse": {"steps": 100, "seconds": 8.0}}
    write_json(folder / "sparse" / "run.json", {"command": "made so", "stages": stages, "config": {}})
    run = folder / "runs" / "sst2"
    systems = [
        system("teacher", (0.9,), 100, 4.0), system("student", (0.86, 0.88), 100, 2.0), system("sparse", (0.88, 0.88), 100, 2.0),
        system("dense", (0.92, 0.94), 100, 4.0),
    ]  # fmt: skip
    write_json(run / "report.json", dataclasses.asdict(make_report(*systems, seeds=[1, 2])))
    for seed in (1, 2):
        for name, seconds in (("sparse", 3.0), ("sparse_int8", 5.0), ("dense", 7.0)):
            write_json(run / "models" / f"{name}-{seed}" / "facts.json", {"train_seconds": seconds + seed})
    flags = {"sparse_model": folder / "sparse", "output_dir": folder / "runs", "results": folder / "results.json", "tasks": "sst2"}
    return ["script.py", *(part for name, value in flags.items() for part in (f"--{name}", str(value))), "--seeds", "1", "2"]


def test_every_run_is_called_so_that_results_never_tell_of_settings_that_it_refuses(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    typed, called = write_finished(tmp_path), []

    def run(command: list[str], **options: object) -> SimpleNamespace:
        called.append(command)
        return SimpleNamespace(returncode=2)  # as the command ends where its folder holds a run with other settings

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(sys, "argv", [*typed, "--equal_total_steps", "4"])
    with pytest.raises(SystemExit) as ended:
        script.main()
    assert ended.value.code == 2 and not (tmp_path / "results.json").exists()
    assert len(called) == 1 and "--direct_more_steps=30" in called[0] and "--direct=true" in called[0]
    monkeypatch.setattr(sys, "argv", [*typed, "--equal_total_steps", "4", "--direct_tasks", "mrpc"])
    with pytest.raises(SystemExit):
        script.main()
    assert "--direct=false" in called[1] and not any("direct_more_steps" in part for part in called[1])


def test_the_dense_model_that_teaches_and_the_one_fine_tuned_alike_are_two(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(sys, "argv", write_finished(tmp_path))
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: SimpleNamespace(returncode=0, stdout="abc"))
    script.main()
    found = read_json(tmp_path / "results.json")
    assert found["means"] == pytest.approx({"dense": 0.9, "sparse_int8": 0.87, "sparse": 0.88, "dense_finetuned": 0.93})
    assert found["points_lost"] == pytest.approx({"sparse_int8": 3.0, "sparse": 2.0, "dense_finetuned": -3.0})
    seconds = {row["kind"]: row["train_seconds"] for row in found["rows"]}
    assert seconds == {"dense": None, "sparse_int8": 6.5, "sparse": 4.5, "dense_finetuned": 8.5}
    assert found["time"]["lock_s"] == 4.5 and found["time"]["lock_and_int8_s"] == 6.5 and found["time"]["sparse_pretraining_s"] == 10.0


def test_times_are_of_the_seeds_that_are_scored(script: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A folder may hold models of an earlier call's seeds; what is only calibrated has the run's own seed."""
    monkeypatch.setattr(sys, "argv", write_finished(tmp_path))
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: SimpleNamespace(returncode=0, stdout="abc"))
    models = tmp_path / "runs" / "sst2" / "models"
    for name, seconds in (("sparse-3", 1_000.0), ("sparse-12", 1_000.0), ("dense_int8-42", 0.5)):
        write_json(models / name / "facts.json", {"train_seconds": seconds})
    script.main()
    seconds = {row["kind"]: row["train_seconds"] for row in read_json(tmp_path / "results.json")["rows"]}
    assert seconds["sparse"] == 4.5 and script.train_seconds(models.parent, "dense_int8", [1, 2]) == 0.5


def test_a_mean_is_of_all_tasks_or_of_none(script: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A system that one task has and another lacks has no mean to be set beside the others', and no time."""
    typed = write_finished(tmp_path)
    first = read_json(tmp_path / "runs" / "sst2" / "report.json")
    rte = {**first, "systems": [{**row, "score_mean": row["score_mean"] - 0.2} for row in first["systems"] if row["kind"] != "dense"]}
    write_json(tmp_path / "runs" / "rte" / "report.json", rte)
    for name in ("sparse", "sparse_int8"):
        write_json(tmp_path / "runs" / "rte" / "models" / f"{name}-1" / "facts.json", {"train_seconds": 2.0})
    monkeypatch.setattr(sys, "argv", [*typed, "--tasks", "sst2", "rte"])
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: SimpleNamespace(returncode=0, stdout="abc"))
    script.main()
    found = read_json(tmp_path / "results.json")
    assert found["means"] == pytest.approx({"dense": 0.8, "sparse_int8": 0.77, "sparse": 0.78})
    assert found["time"]["lock_s"] == 6.5 and found["time"]["direct_s"] is None and found["time"]["saved_s"] == 10.0


def test_steps_of_earlier_runs_are_found_from_where_the_run_was_begun_or_asked_for(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    typed = write_finished(tmp_path)
    run = read_json(tmp_path / "sparse" / "run.json")
    for name in ("start", "teacher"):
        write_json(tmp_path / "begun" / name / "run.json", {**run, "config": {}})
    config = {"start": "start", "teacher": "teacher"}
    write_json(tmp_path / "sparse" / "run.json", {**run, "config": config, "directory": str(tmp_path / "begun")})
    monkeypatch.chdir(tmp_path)
    found = pretraining_stages(tmp_path / "sparse")
    assert {name: facts["steps"] for name, facts in found.items()} == {"teacher": 40, "sparse": 200}
    (tmp_path / "begun").rename(tmp_path / "moved")
    monkeypatch.chdir(tmp_path / "moved")
    assert pretraining_stages(tmp_path / "sparse") == found, "runs that were moved are looked for from here"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [*typed, "--configs", "nowhere", "--list"])
    with pytest.raises(ConfigError, match=r"configs: nowhere/.*\.yaml is no file; choices: "):
        script.main()
    monkeypatch.setattr(sys, "argv", [*typed, "--equal_total_steps", "4", "--list"])
    with pytest.raises(ConfigError, match="equal_total_steps: .*sparse: how many steps it took is not known, .*; choices: "):
        script.main()
