"""Sweeps: the runs that settings mean, workers that are killed, runs that fail, what is shared, what is done already."""

from __future__ import annotations

import csv
import dataclasses
import importlib
import json
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hearing import Heard
from safetensors.torch import load_file
from tiny_task import tiny_run, write_csv

from adasearch import latency_bench, latency_target, sweep_table
from adasearch.config import BenchConfig, RetrainConfig, RunConfig, SearchConfig, TransferConfig, to_dict
from adasearch.errors import ConfigError, DataError
from adasearch.files import read_json, write_json
from adasearch.operations import Operation
from adasearch.pipeline import run, search
from adasearch.run_files import note_stage
from adasearch.search_method import STRATEGIES
from adasearch.settings import part_of
from adasearch.speed_table import SpeedRow
from adasearch.sweep import Board, sweep
from adasearch.sweep_config import SweepConfig, SweepRun, check_sweep, override, plan, preparation_name
from adasearch.sweep_engines import LocalEngine
from adasearch.sweep_jobs import DEPENDS, Job, link_preparation, perform
from adasearch.sweep_table import variants
from adasearch.user_code import code_for_workers, import_once, import_user_code


def settings(folder: Path, **changes: Any) -> SweepConfig:
    """A sweep over the tiny task that takes seconds."""
    base = tiny_run(folder, controls=["student_no_kd"], checkpoint_seconds=0.0, transfer=dataclasses.replace(tiny_run(folder).transfer, size=20))
    return part_of(SweepConfig, base, **{"output_dir": str(folder / "sweep"), "workers": 1, "threads": 1, "formats": ["md", "csv"], **changes})


class KillsOnce(threading.Thread):
    """Kills a run's process as soon as it has saved a checkpoint of a stage."""

    def __init__(self, folder: Path, name: str, stage: str):
        super().__init__(daemon=True)
        self.checkpoint = folder / "sweep" / "runs" / name / stage / "checkpoint.pt"
        self.worker = folder / "sweep" / "logs" / f"{name}.worker.json"
        self.has_killed = False

    def run(self) -> None:
        deadline = time.monotonic() + 600  # a busy machine takes its time
        while not self.has_killed and time.monotonic() < deadline:
            if self.checkpoint.exists():
                os.kill(read_json(self.worker)["pid"], signal.SIGKILL)
                self.has_killed = True
            time.sleep(0.001)


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, Heard]:
    """Three runs: one is killed while it trains, one cannot meet its budget, one is as it should be."""
    folder = tmp_path_factory.mktemp("sweep")
    config = settings(
        folder, beta=[4.0], retrain=RetrainConfig(steps=60, batch_size=16),
        runs=[{"name": "hopeless", "search": {"efficiency": "constraint", "target_macs": 1.0}}], tasks=["tiny"], seeds=[1],
    )  # fmt: skip
    kills, listens = KillsOnce(folder, "tiny-encoder-beta4-seed1", "work/student-1"), Heard()
    kills.start()
    found = sweep(config, listens)
    assert kills.has_killed
    return folder, (config, found), listens


def test_a_killed_worker_s_run_ends_with_the_weights_of_an_undisturbed_one(swept: tuple, tmp_path: Path) -> None:
    folder, (config, found), listens = swept
    assert any("killed by signal 9; it is started again" in text for text in listens.warnings)
    record = read_json(found.folder / "sweep.json")["runs"]["tiny-encoder-beta4-seed1"]
    assert (record["status"], record["lost"], record["budget"]) == ("done", 1, "beta 4")
    base = dataclasses.replace(config.base, output_dir=str(tmp_path / "alone"), seed=1, checkpoint_seconds=60.0)
    alone = load_file(run(base) / "student" / "model.safetensors")
    disturbed = load_file(folder / "sweep" / "runs" / "tiny-encoder-beta4-seed1" / "student" / "model.safetensors")
    assert alone.keys() == disturbed.keys() and all(torch.equal(alone[name], disturbed[name]) for name in alone)


def test_a_run_that_fails_stops_no_other_and_is_named_with_its_error(swept: tuple) -> None:
    _, (_, found), listens = swept
    assert [*found.failed] == ["hopeless"] and "search.target_macs: 1 cannot be reached" in found.failed["hopeless"]
    assert listens.warnings[-1].startswith("hopeless failed: search.target_macs")
    assert "\n" not in found.failed["hopeless"]
    log = (found.folder / "logs" / "hopeless.log").read_text()
    assert "error: search.target_macs" in log


def test_teacher_and_cache_are_made_once_and_linked(swept: tuple) -> None:
    folder, _, _ = swept
    prepared = [*(folder / "sweep" / "prepared").iterdir()]
    assert len(prepared) == 1
    for name in ("tiny-encoder-beta4-seed1", "hopeless"):
        own = folder / "sweep" / "runs" / name
        assert (own / "teacher").is_symlink() and (own / "teacher").resolve() == (prepared[0] / "teacher").resolve()
        assert not os.readlink(own / "teacher").startswith("/"), "a sweep that is moved as a whole stays whole"
        labels = [*own.glob("cache/teacher-????????????????.npy")]
        assert labels and all(path.is_symlink() for path in labels)
        assert "fine-tune" not in (folder / "sweep" / "logs" / f"{name}.log").read_text()


def test_the_table_has_a_budget_and_every_system_once(swept: tuple) -> None:
    _, (_, found), _ = swept
    lines = (found.folder / "sweep_table.csv").read_text().splitlines()
    assert lines[0].startswith("task,teacher,budget,variant,system,seeds") and len(lines) == 1 + 3
    report = read_json(found.folder / "runs" / "tiny-encoder-beta4-seed1" / "report.json")
    by_system = {row["system"]: row for row in csv.DictReader(lines)}
    for system in report["systems"]:
        assert float(by_system[system["name"]]["score"]) == system["score_mean"], system["name"]
    assert "| beta 4 | - | student" in found.table.replace("\\", "") and (found.folder / "sweep_table.md").read_text() == found.table


def test_only_runs_that_differ_in_their_seeds_are_averaged(monkeypatch: pytest.MonkeyPatch) -> None:
    """Strategies and settings of one task and budget have rows of their own; the teacher's row is one."""
    runs = [
        {"name": f"{search}-{steps}-{seed}", "task": "sst2", "seed": seed, "search": {"strategy": search}, "retrain": {"steps": steps}}
        for search, steps in (("gumbel", 100), ("gumbel", 200), ("darts", 100)) for seed in (1, 2)
    ]  # fmt: skip
    planned = plan(SweepConfig(runs=[*runs, {"name": "alone", "task": "rte", "retrain": {"steps": 9}}]))
    assert variants(planned) == {
        **{run["name"]: f"search.strategy {run['search']['strategy']}, retrain.steps {run['retrain']['steps']}" for run in runs}, "alone": "",
    }  # fmt: skip
    shown = iter(range(100))

    def rows(report: Any, task: str) -> list[SpeedRow]:
        return [dataclasses.replace(student, score=next(shown) / 100), dataclasses.replace(teacher, score=0.9)]

    nothing = dict.fromkeys(field.name for field in dataclasses.fields(SpeedRow))
    student, teacher = (SpeedRow(**nothing | {"system": name, "metric": "accuracy"}) for name in ("student", "teacher"))
    systems = [SimpleNamespace(name=name, kind=name, macs=None, scores=[0.5]) for name in ("student", "teacher")]
    monkeypatch.setattr(sweep_table, "read_report", lambda folder: SimpleNamespace(systems=systems))
    monkeypatch.setattr(sweep_table, "measured_rows", rows)
    found = sweep_table.sweep_rows(planned)
    assert [(row.task, row.system, row.seeds, row.score) for row in found] == [
        ("sst2", "student", 2, pytest.approx(0.005)), ("sst2", "teacher", 1, 0.9), ("sst2", "student", 2, pytest.approx(0.025)),
        ("sst2", "student", 2, pytest.approx(0.045)), ("rte", "student", 1, pytest.approx(0.06)), ("rte", "teacher", 1, 0.9),
    ]  # fmt: skip


def test_runs_of_other_data_seeds_are_not_averaged() -> None:
    """Each has a teacher of its own."""
    runs = plan(SweepConfig(runs=[{"name": name, "task": "sst2", "data_seed": seed} for name, seed in (("a", 1), ("b", 2))]))
    assert variants(runs) == {"a": "data_seed 1", "b": "data_seed 2"} and len({run.prepared for run in runs}) == 2


def test_teachers_that_were_made_unlike_have_rows_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    runs = [{"name": f"{epochs}-{steps}", "task": "sst2", "finetune": {"epochs": epochs}, "retrain": {"steps": steps}} for epochs in (1, 2) for steps in (5, 6)]
    planned = plan(SweepConfig(runs=runs))
    nothing = dict.fromkeys(field.name for field in dataclasses.fields(SpeedRow))
    rows = [SpeedRow(**nothing | {"system": name, "metric": "accuracy", "score": 0.9}) for name in ("teacher", "reference")]
    systems = [SimpleNamespace(name=name, kind=name, macs=None, scores=[0.9]) for name in ("teacher", "reference")]
    monkeypatch.setattr(sweep_table, "read_report", lambda folder: SimpleNamespace(systems=systems))
    monkeypatch.setattr(sweep_table, "measured_rows", lambda report, task: rows)
    found = [(row.system, row.variant, row.seeds) for row in sweep_table.sweep_rows(planned)]
    assert found == [("teacher", "finetune.epochs 1", 1), ("reference", "", 1), ("teacher", "finetune.epochs 2", 1)]



def test_what_a_target_in_milliseconds_is_for_is_of_its_runs_alone(tmp_path: Path) -> None:
    """A run by weight or by MACs would be refused: it has no latency that 8 texts a call could be for."""
    config = settings(tmp_path, tasks=["tiny"], latency_target_ms=[1.0], beta=[4.0], target_macs=[3e6])
    config.search = dataclasses.replace(config.search, latency_batch_size=8)
    found = {run.config.search.latency_target_ms: run.config.search.latency_batch_size for run in plan(config)}
    assert found == {1.0: 8, None: 1}
    alone = settings(tmp_path, tasks=["tiny"], target_macs=[3e6])
    alone.search = dataclasses.replace(alone.search, latency_batch_size=8)
    assert [run.config.search.latency_batch_size for run in plan(alone)] == [8], "where no run has a target it is not passed over but refused"


def test_weights_of_a_cost_that_is_not_weighed_are_refused(tmp_path: Path) -> None:
    config = settings(tmp_path, tasks=["tiny"], beta=[1.0, 4.0])
    with pytest.raises(ConfigError, match="^beta: .*no effect with search.strategy 'one_shot'; choices: target_macs"):
        sweep(dataclasses.replace(config, search=dataclasses.replace(config.search, strategy="one_shot")))
    with pytest.raises(ConfigError, match="^beta: .*no effect with strategies 'one_shot'; choices: target_macs"):
        sweep(dataclasses.replace(config, strategies=["gumbel", "one_shot"]))


def test_every_run_is_checked_before_the_first_starts(tmp_path: Path) -> None:
    runs = [{"name": "fine"}, {"name": "cold", "warm_start": str(tmp_path / "nowhere")}]
    with pytest.raises(ConfigError, match="^cold: warm_start: .*nowhere"):
        sweep(settings(tmp_path, tasks=[], runs=[{**run, "task": "tiny"} for run in runs]))
    assert not (tmp_path / "sweep" / "runs").exists()


def test_the_same_sweep_again_does_only_what_failed(swept: tuple) -> None:
    folder, (config, _), _ = swept
    student = folder / "sweep" / "runs" / "tiny-encoder-beta4-seed1" / "student" / "model.safetensors"
    before, log = student.stat().st_mtime_ns, (folder / "sweep" / "logs" / "tiny-encoder-beta4-seed1.log").read_text()
    again = sweep(config)
    assert [*again.failed] == ["hopeless"] and student.stat().st_mtime_ns == before
    assert (folder / "sweep" / "logs" / "tiny-encoder-beta4-seed1.log").read_text() == log
    with pytest.raises(ConfigError, match="tiny-encoder-beta4-seed1: output_dir: .* holds a run with other settings"):
        sweep(dataclasses.replace(config, retrain=RetrainConfig(steps=61, batch_size=16)))


def test_the_same_sweep_with_other_controls_and_times_trains_and_measures_what_it_lacks(swept: tuple, tmp_path: Path) -> None:
    """As `adasearch run` does when a finished run is started again; going back to what was asked for first counts as well."""
    shutil.copytree(swept[0] / "sweep", tmp_path / "sweep", symlinks=True)
    first = dataclasses.replace(swept[1][0], output_dir=str(tmp_path / "sweep"), runs=[])
    more = dataclasses.replace(first, controls=["student_no_kd", "bag_of_embeddings"], bench=dataclasses.replace(first.bench, seq_lengths=[4]))
    own, log = tmp_path / "sweep" / "runs" / "tiny-encoder-beta4-seed1", tmp_path / "sweep" / "logs" / "tiny-encoder-beta4-seed1.log"
    kept = {path: path.stat().st_mtime_ns for path in own.rglob("model.safetensors")}
    assert len(kept) == 3  # of student/, and of the two that were trained
    for config, kinds, length in ((more, {"student_no_kd", "bag_of_embeddings"}, 4), (first, {"student_no_kd"}, 8)):
        assert not sweep(config).failed
        systems = {system["kind"]: system["seq_len"] for system in read_json(own / "report.json")["systems"]}
        assert systems == dict.fromkeys({"teacher", "student", *kinds}, length)
        said = log.read_text()
        assert not sweep(config).failed and log.read_text() == said, "nothing is left to do"
    assert all(path.stat().st_mtime_ns == before for path, before in kept.items())


@pytest.mark.parametrize(
    ("changes", "left"),
    [
        ({}, []), ({"threads": 3, "quiet": False}, []), ({"bench": BenchConfig(repeats=3)}, ["measure"]), ({"report_examples": 1}, ["measure"]),
        ({"controls": ["tfidf"]}, ["train", "measure"]), ({"seeds": [42, 43]}, ["train", "measure"]),
    ],
)  # fmt: skip
def test_a_job_is_done_with_the_settings_that_its_result_depends_on(changes: dict, left: list[str], tmp_path: Path) -> None:
    """Of a folder that only knows what it was begun with, and of one that has been measured with other settings since."""
    begun = RunConfig(output_dir=str(tmp_path))
    stages = {stage: {"done": True} for stage in ("prepare", "table", "train", "report")}
    changed = dataclasses.replace(begun, **changes)

    def job(kind: str, config: RunConfig) -> Job:
        return Job("x", kind, config, None, (), Path.cwd(), tmp_path / "x.log")

    write_json(tmp_path / "run.json", {"config": to_dict(begun), "stages": {}})
    assert not any(job(kind, begun).is_done for kind in DEPENDS)
    write_json(tmp_path / "run.json", {"config": to_dict(begun), "stages": stages})
    assert [kind for kind in DEPENDS if not job(kind, changed).is_done] == left
    job("measure", changed).begin()
    assert not job("measure", begun).is_done and not job("measure", changed).is_done, "it may have been killed after it wrote the report"
    job("measure", changed).end()
    assert all(job(kind, changed).is_done for kind in DEPENDS)
    assert [kind for kind in DEPENDS if not job(kind, begun).is_done] == left


def test_plan_is_the_product_and_names_every_run() -> None:
    config = SweepConfig(tasks=["sst2", "owner/rte"], teachers=["demo", "a/bert"], target_macs=[3e6], beta=[0.5], seeds=[1, 2])
    runs = plan(config)
    assert len(runs) == 2 * 2 * 2 * 2 and len({item.name for item in runs}) == 16
    first = next(item for item in runs if item.name == "rte-bert-macs3e6-seed2")
    assert (first.config.task, first.config.teacher, first.config.seed, first.config.data_seed) == ("owner/rte", "a/bert", 2, 42)
    assert first.config.search.efficiency == "constraint" and first.budget == "3e6 MACs"
    other = next(item for item in runs if item.name == "rte-bert-beta0.5-seed1")
    assert other.config.search == SearchConfig(beta=0.5) and other.budget == "beta 0.5"
    base = SearchConfig(efficiency="constraint", target_macs=1e6)
    (weighed,) = plan(SweepConfig(tasks=["rte"], teachers=["demo"], beta=[0.5], seeds=[1], search=base))
    assert not weighed.config.search.is_constrained and weighed.budget == "beta 0.5"
    assert first.prepared == other.prepared and len({item.prepared for item in runs}) == 4
    assert config.search == SearchConfig() and first.config.seeds is None


def test_strategies_multiply_the_runs_and_are_variants_of_the_table() -> None:
    runs = plan(SweepConfig(tasks=["rte"], target_macs=[3e6], beta=[0.5], strategies=["gumbel", "nni.tpe"], seeds=[1, 2]))
    assert len(runs) == 8 and len({run.prepared for run in runs}) == 1
    found = {run.name: run.config for run in runs}["rte-demo-macs3e6-nni.tpe-seed2"]
    assert (found.search.strategy, found.search.target_macs, found.seed) == ("nni.tpe", 3e6, 2)
    assert variants(runs)["rte-demo-beta0.5-gumbel-seed1"] == "search.strategy gumbel"


def test_runs_share_a_preparation_only_where_it_is_the_same() -> None:
    base = SweepConfig(tasks=["sst2"]).base
    name = preparation_name(base)
    for same in ({"seed": 9}, {"space": "adabert"}, {"threads": 3}, {"search": SearchConfig(beta=9.0)}, {"seeds": [3]}):
        assert preparation_name(dataclasses.replace(base, **same)) == name, same
    for other in ({"data_seed": 9}, {"max_seq_length": 64}, {"max_steps": 5}, {"transfer": dataclasses.replace(base.transfer, size=7)}):
        assert preparation_name(dataclasses.replace(base, **other)) != name, other


def test_explicit_runs_change_nested_settings() -> None:
    config = SweepConfig(runs=[{"name": "a", "task": "rte", "search.beta": 2}, {"task": "mrpc", "transfer": {"size": 0}}])
    a, b = plan(config)
    assert (a.name, a.config.task, a.config.search.beta) == ("a", "rte", 2) and (b.name, b.config.transfer.size) == ("mrpc-2", 0)


def test_explicit_runs_stand_beside_the_product_and_are_not_multiplied() -> None:
    config = SweepConfig(tasks=["sst2"], seeds=[1, 2], runs=[{"name": "a", "seed": 7}, {"name": "b"}])
    assert [(item.name, item.config.seed) for item in plan(config)] == [("sst2-demo-seed1", 1), ("sst2-demo-seed2", 2), ("a", 7), ("b", 42)]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"workers": 3, "threads": 2}, "3 workers of 2 threads are 6 on 4 cores; choices: a product of 4 or less"),
        ({"seeds": []}, "seeds: the list is empty"),
        ({"engine": "slurm"}, "engine: 'slurm' is not known; choices: local, ray"),
        ({"workers": 0, "retries": -1}, "retries: -1 is out of range"),
        ({"task": "sst2", "workers": 0}, "workers: 0 is out of range; choices: 1 to"),
        ({"task": "sst2", "threads": 0}, "threads: 0 is out of range; choices: 1 to"),
        ({"tasks": ["a", "b"], "train_file": "x.csv"}, "tasks: a b: train_file is one task's"),
    ],
)
def test_bad_settings_are_refused(changes: dict, says: str) -> None:
    with pytest.raises(ConfigError) as error:
        check_sweep(SweepConfig(**changes), cores=4)
    assert says in str(error.value)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"tasks": ["sst2"], "seeds": [1, 1]}, "two runs are named 'sst2-demo-seed1'"),
        ({"tasks": ["x/rte", "y/rte"]}, "two runs are named 'rte-demo-seed42'"),
        ({"runs": [{"name": "../x"}]}, "'../x' is no name of a folder"),
        ({"runs": [{"serch": 1}]}, "runs[0]: unknown setting 'serch'; choices: task,"),
        ({"runs": [{"search": {"bta": 1}}]}, "runs[0].search: unknown setting 'bta'"),
        ({"runs": [{"search": {"beta": "much"}}]}, "runs[0].search.beta: 'much' does not fit"),
        ({"runs": ["sst2"]}, "runs[0]: 'sst2' is no mapping"),
        ({"runs": [{"output_dir": "x", "threads": 2}]}, "runs[0]: output_dir, threads: the sweep's, for all its runs; choices: --output_dir of the sweep"),
        ({"runs": [{"name": "a"}], "task": "sst2", "seeds": [1, 2]}, "seeds: `runs` alone has no product for it; choices: --tasks for a product beside"),
        ({"runs": [{"name": "a"}], "teachers": ["a/b"], "beta": [1.0]}, "teachers, beta: `runs` alone has no product for them; choices: --tasks for"),
        ({"runs": [{"name": "a"}], "target_macs": [3e6]}, "or search.target_macs in each of `runs`"),
        ({"runs": [{"name": "a"}], "strategies": ["gdas"]}, "strategies: `runs` alone has no product for it; choices: --tasks for a product beside `runs`, or search.strategy in"),
        ({"tasks": ["sst2"], "architecture": "a.json", "strategies": ["gdas"]}, "strategies: nothing is searched with an --architecture"),
    ],
)
def test_bad_runs_are_refused(changes: dict, says: str) -> None:
    with pytest.raises(ConfigError) as error:
        plan(SweepConfig(**changes))
    assert says in str(error.value)


def test_workers_and_threads_share_the_cores() -> None:
    assert check_sweep(SweepConfig(task="sst2"), 8) == (8, 1)
    assert check_sweep(SweepConfig(task="sst2", workers=3), 8) == (3, 2)
    assert check_sweep(SweepConfig(task="sst2", threads=4), 8) == (2, 4)
    with pytest.raises(ConfigError, match="^tasks: none named; choices: --tasks sst2"):
        check_sweep(SweepConfig(), 8)
    assert check_sweep(SweepConfig(task="sst2", engine="ray", workers=50, threads=4), 8) == (50, 4)


@pytest.mark.parametrize("value, fits", [(True, False), (1, True), ("1", False), (None, False)])
def test_types_of_explicit_settings(value: Any, fits: bool) -> None:
    if fits:
        assert override(RunConfig(), {"seed": value}, "x").seed == value
        return
    with pytest.raises(ConfigError, match="x.seed"):
        override(RunConfig(), {"seed": value}, "x")


def test_an_unknown_task_among_several_is_refused_before_anything_starts(tmp_path: Path) -> None:
    good = {"name": "good", "train_file": write_csv(tmp_path / "a.csv", 40, 1)}
    config = settings(tmp_path, runs=[good, {"name": "bad", "train_file": str(tmp_path / "none.csv")}])
    with pytest.raises((ConfigError, DataError), match="none.csv"):
        sweep(config)
    assert not (tmp_path / "sweep" / "sweep.json").exists()


def test_a_second_sweep_stays_out_of_the_folder(tmp_path: Path) -> None:
    import fcntl

    config = settings(tmp_path)
    config.folder.mkdir()
    with open(config.folder / ".lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(ConfigError, match="another process is at work"):
            sweep(config)


class Here:
    """An engine in this process: jobs are done when somebody waits for them; it keeps who stood beside whom."""

    def __init__(self, threads: int):
        self.seen: list[list[str]] = []
        self.jobs: list[Job] = []

    def start(self, job: Job) -> int:
        self.jobs.append(job)
        return len(self.jobs) - 1

    def ended(self, handles: list[int]) -> list[tuple[int, Any]]:
        self.seen.append([self.jobs[handle].kind for handle in handles])
        return [(handles[0], perform(self.jobs[handles[0]]))]

    def stop(self, handles: list[int]) -> None:
        """Nothing runs."""

    def close(self) -> None:
        """Nothing is held."""


def test_a_latency_table_is_measured_once_and_before_any_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside trainings its times would be a tenth too long. Both runs read the same; a search that is done needs none."""
    for name in ("BLOCKS", "REPEATS", "WARMUP"):
        monkeypatch.setattr(latency_bench, name, 1)
    engines, measured = [], []
    monkeypatch.setattr("adasearch.sweep.LocalEngine", lambda threads: engines.append(Here(threads)) or engines[-1])
    monkeypatch.setattr("adasearch.sweep.cores_here", lambda: 2)
    monkeypatch.setattr("adasearch.sweep.write_sweep_table", lambda *_: ("", []))
    build = latency_target.build_table
    monkeypatch.setattr(latency_target, "build_table", lambda *args, **named: measured.append(named["output"]) or build(*args, **named))

    def train_only_the_search(config: RunConfig, progress: Any) -> None:
        search(config, progress)
        for stage in ("train", "report"):
            note_stage(Path(config.output_dir), stage)

    monkeypatch.setattr("adasearch.sweep_jobs.train", train_only_the_search)
    monkeypatch.setattr("adasearch.sweep_jobs.run", train_only_the_search)
    asked = SearchConfig(steps=2, batch_size=16, candidates=2, latency_lengths=[8], latency_runtime="torch")
    config = settings(tmp_path, tasks=["tiny"], latency_target_ms=[1e5, 1e6], workers=2, search=asked, controls=[], transfer=TransferConfig(size=0))
    assert sweep(config).failed == {}
    assert engines[0].seen == [["prepare"], ["table"], ["train", "train"], ["train"]]
    (table,) = (tmp_path / "sweep" / "tables").glob("*/search/latency.json")
    assert measured == [table]
    for planned in plan(config):
        own = Path(planned.config.output_dir) / "search" / "latency.json"
        assert own.is_symlink() and own.resolve() == table.resolve() and not os.readlink(own).startswith("/")
    records = read_json(tmp_path / "sweep" / "sweep.json")["runs"]
    assert [record["status"] for record in records.values() if record.get("is_table")] == ["done"]
    assert sweep(config).failed == {} and engines[1].seen == [] and measured == [table]
    more = dataclasses.replace(config, latency_target_ms=[1e6, 2e6], workers=1)
    assert sweep(more).failed == {} and engines[2].seen == [["measure"]] and measured == [table], "one more target reads what is there"


def test_links_leave_alone_what_a_run_has_and_writing_leaves_alone_what_is_shared(tmp_path: Path) -> None:
    from adasearch.files import write_text

    prepared, own = tmp_path / "prepared" / "p", tmp_path / "runs" / "r"
    for name in ("a.npy", "b.npy", ".c.partial"):
        write_text(prepared / "cache" / name, "shared")
    write_text(own / "cache" / "a.npy", "own")
    link_preparation(prepared, own)
    link_preparation(prepared, own)
    assert sorted(path.name for path in (own / "cache").iterdir()) == ["a.npy", "b.npy"]
    assert (own / "cache" / "a.npy").read_text() == "own" and (own / "cache" / "b.npy").read_text() == "shared"
    write_text(own / "cache" / "b.npy", "mine")
    assert (prepared / "cache" / "b.npy").read_text() == "shared"


def test_a_fault_of_our_own_is_a_line_and_a_traceback_in_the_log(tmp_path: Path) -> None:
    config = dataclasses.replace(tiny_run(tmp_path), transfer=None)
    found = perform(Job("x", "prepare", config, None, (), Path.cwd(), tmp_path / "x.log"))
    assert found.error.startswith("AttributeError") and "Traceback" in (tmp_path / "x.log").read_text()
    assert not found.is_lost


STRATEGY = """
import dataclasses

from adasearch.search_method import STRATEGIES, SearchMethod


@STRATEGIES.register("sweeps_deepest")
class Deepest(SearchMethod):
    def draw(self, student):
        draw = student.draw()
        return dataclasses.replace(draw, depth=len(student.depth_gate.choices) - 1, every_exit=False)
"""


@pytest.fixture
def strategy(tmp_path: Path) -> Iterator[Path]:
    """A user's file with a strategy, imported here as `--import` does."""
    path = tmp_path / "sweeps_strategy.py"
    path.write_text(STRATEGY, encoding="utf-8")
    import_user_code(str(path))
    yield path
    del sys.modules[path.stem], STRATEGIES._items["sweeps_deepest"]


def test_workers_import_what_was_imported_here_though_it_has_no_operation(strategy: Path, tmp_path: Path) -> None:
    config = settings(tmp_path, search=SearchConfig(strategy="sweeps_deepest", steps=2, batch_size=16), controls=[], transfer=TransferConfig(size=0))
    found = sweep(config)
    assert found.failed == {} and "tiny" in found.table


def test_a_worker_that_has_a_module_already_does_not_import_its_file_again(strategy: Path) -> None:
    """A script's workers import the script, and with it what the script imports; a module may be one of a package, too."""
    module = sys.modules[strategy.stem]
    import_once(str(strategy))
    sys.modules["a.package"] = sys.modules.pop(strategy.stem)
    try:
        import_once(str(strategy))
        assert strategy.stem not in sys.modules
    finally:
        sys.modules[strategy.stem] = sys.modules.pop("a.package")
    assert sys.modules[strategy.stem] is module


def test_workers_are_told_of_operations_by_file_and_of_those_in_a_package_by_name(strategy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "users_package"
    package.mkdir()
    (package / "__init__.py").touch()
    for place in (package, tmp_path):
        (place / "alone.py").write_text("from adasearch.operations import Operation\n\nclass Own(Operation):\n    pass\n", encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    names = ["alone", "users_package.alone", "users_package"]
    try:
        for name in names:
            importlib.import_module(name)
        told = code_for_workers(Operation)
        assert {str(strategy), str(tmp_path / "alone.py"), "users_package.alone"} <= {*told}
        assert not any("adasearch/" in name for name in told)
    finally:
        for name in names:
            sys.modules.pop(name, None)


def test_ray_must_be_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "ray" else found(name, *rest))
    with pytest.raises(ConfigError, match=r"pip install 'adasearch\[ray\]', or --engine local"):
        sweep(settings(tmp_path, engine="ray"))


def test_a_sweep_that_goes_on_keeps_what_was_spent_before(tmp_path: Path) -> None:
    config = settings(tmp_path, tasks=["tiny"], beta=[4.0])
    runs = plan(config)
    spent = {"status": "done", "attempts": 0, "lost": 1, "seconds": 12.5, "error": None}
    write_json(config.folder / "sweep.json", {"command": "", "commit": None, "runs": {runs[0].name: spent}})
    record = Board(config, runs, Heard()).records[runs[0].name]
    assert (record["status"], record["lost"], record["seconds"]) == ("waiting", 1, 12.5)


def test_sweep_json_is_what_a_script_can_read(swept: tuple) -> None:
    _, (_, found), _ = swept
    data = json.loads((found.folder / "sweep.json").read_text())
    assert {"command", "commit", "runs"} <= data.keys()
    assert {record["status"] for record in data["runs"].values()} == {"done", "failed"}
    assert sum(record.get("is_preparation", False) for record in data["runs"].values()) == 1
    assert isinstance(LocalEngine, type) and isinstance(SweepRun, type)
