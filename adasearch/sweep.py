"""``adasearch sweep``: many runs, each in its own folder, sharing teachers, started again when their process is lost.

    <sweep>/prepared/<task>-<teacher>-<fingerprint>/   teacher and cache, made once before the runs that need them
    <sweep>/tables/<name>/search/latency.json          of searches with a latency target, measured before any training
    <sweep>/runs/<name>/                               a run like any other; teacher, cache and latency table are links
    <sweep>/logs/<name>.log                            what its process said
    <sweep>/sweep.json, sweep_table.*                  how far everything is; the one table

Trainings share the machine. Measurements do not: latency tables come before the first training, all else when all trainings are
done, one at a time.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adasearch.errors import ConfigError
from adasearch.files import fingerprint, read_json, write_json
from adasearch.operations import Operation
from adasearch.pipeline import check, check_settings
from adasearch.progress import Progress
from adasearch.run_files import check_folder, check_same, commit, only_one, path_of, refuse_processes, typed_command
from adasearch.settings import check_choice, check_idle, cores_here
from adasearch.strategies import find_strategy
from adasearch.sweep_config import SweepConfig, SweepRun, check_sweep, plan, preparation, table_run
from adasearch.sweep_engines import Engine, LocalEngine, RayEngine, check_ray
from adasearch.sweep_jobs import Job
from adasearch.sweep_table import write_sweep_table
from adasearch.table_files import FORMATS
from adasearch.user_code import code_for_workers


@dataclass(frozen=True)
class Swept:
    """A sweep's folder, its table as Markdown, and the error of every run that failed, by name."""

    folder: Path
    table: str
    failed: dict[str, str]


def sweep(config: SweepConfig, progress: Progress | None = None) -> Swept:
    """Do all runs, those that are finished excepted, and write the table of them.

    Raises ``ConfigError`` or ``DataError`` before anything starts. What goes wrong later is in ``Swept.failed``.
    """
    refuse_processes("sweep")
    progress = progress or Progress()
    workers, threads = check_sweep(config, cores_here())
    for index, name in enumerate(config.formats):
        check_choice(f"formats[{index}]", name, FORMATS)
    for name in config.strategies or [config.search.strategy]:
        if not find_strategy(dataclasses.replace(config.search, strategy=name)).weighs_cost:
            where = f"with {'strategies' if config.strategies else 'search.strategy'} {name!r}"
            check_idle("beta", config.beta, [], where, "target_macs, target_params or latency_target_ms, or another strategy")
    if config.engine == "ray":
        check_ray()
    runs = [dataclasses.replace(run, config=dataclasses.replace(run.config, threads=threads)) for run in plan(config)]
    check_folder(config.folder, "sweep.json", "prepared")  # what is prepared is begun before anything is noted
    _check_runs(config, runs, progress)
    with only_one(config.folder):
        board = Board(config, runs, progress)
        engine: Engine = LocalEngine(threads) if config.engine == "local" else RayEngine(config.address, threads, workers)
        try:
            width = workers if config.engine == "local" else len(runs)
            if tables := _tables(config, runs):
                board.perform(engine, _preparations(config, runs), width)
                board.perform(engine, tables, 1)
            if width > 1:
                board.perform(engine, [*_preparations(config, runs), *_jobs(config, runs, "train", tables)], width)
            board.perform(engine, [*_preparations(config, runs), *_jobs(config, runs, "measure", tables)], 1)
        finally:
            engine.close()
        finished = [run for run in runs if board.records[run.name]["status"] == "done"]
        table, _ = write_sweep_table(finished, config.folder, config.formats)
        failed = {run.name: board.records[run.name]["error"] for run in runs if run not in finished}
    for name, error in failed.items():
        progress.warning(f"{name} failed: {error}")
    return Swept(config.folder, table, failed)


def _check_runs(config: SweepConfig, runs: Sequence[SweepRun], progress: Progress) -> None:
    """Everything that can be known of any run before the first starts; data are read once for all runs of which the same is asked."""
    progress.stage("check", len(runs))
    seen: set[str] = set()
    for done, run in enumerate(runs):
        try:
            check_settings(run.config)
            shared = preparation(run.config, config.folder)
            check_settings(shared)
            if (what := _asked_of(run)) not in seen:
                task, _ = check(run.config, cache=Path(shared.output_dir) / "cache")
                check_same(Path(shared.output_dir) / "run.json", task.data, {"teacher": path_of(shared.teacher)})
        except ConfigError as error:
            raise ConfigError(f"{run.name}: {error}") from error
        seen.add(what)
        progress.step(done + 1)


def _asked_of(run: SweepRun) -> str:
    """Equal for runs whose data, space, starts, trackers and latency table ``check`` would ask for alike: budgets and seeds say nothing of them."""
    config, search = run.config, run.config.search
    table = [search.latency_table, search.latency_target_ms is None, search.latency_runtime, search.latency_threads, search.latency_batch_size]
    return fingerprint(run.prepared, [config.space, config.architecture, config.warm_start, config.report_to, config.controls], table)


def _preparations(config: SweepConfig, runs: Sequence[SweepRun]) -> list[Job]:
    """One for each teacher and task."""
    shared = {run.prepared: preparation(run.config, config.folder) for run in runs}
    return [_job(config, name, "prepare", settings, None) for name, settings in shared.items()]


def _tables(config: SweepConfig, runs: Sequence[SweepRun]) -> list[Job]:
    """One for each latency table that searches read and none has yet; on a cluster each machine measures its own."""
    if config.engine == "ray" and config.address != "local":
        return []
    needed = {found.output_dir: (found, run) for run in runs if (found := table_run(run.config, config.folder)) is not None}
    return [_job(config, Path(name).name, "table", found, config.folder / "prepared" / run.prepared) for name, (found, run) in needed.items()]


def _jobs(config: SweepConfig, runs: Sequence[SweepRun], kind: str, tables: Sequence[Job]) -> list[Job]:
    folders, jobs = {job.folder for job in tables}, []
    for run in runs:
        found = table_run(run.config, config.folder)
        table = None if found is None or Path(found.output_dir) not in folders else Path(found.output_dir)
        jobs.append(_job(config, run.name, kind, run.config, config.folder / "prepared" / run.prepared, table))
    return jobs


def _job(config: SweepConfig, name: str, kind: str, settings: Any, needs: Path | None, table: Path | None = None) -> Job:
    return Job(name, kind, settings, needs, code_for_workers(Operation), Path.cwd(), config.folder / "logs" / f"{name}.log", table)


class Board:
    """How far every run is, kept in sweep.json; starts jobs, and starts them again when they are lost."""

    def __init__(self, config: SweepConfig, runs: Sequence[SweepRun], progress: Progress):
        self.config, self.progress = config, progress
        empty = {"status": "waiting", "attempts": 0, "lost": 0, "seconds": 0.0, "error": None}
        self.records: dict[str, dict[str, Any]] = {job.name: {"is_preparation": True, **empty} for job in _preparations(config, runs)}
        self.records |= {job.name: {"is_table": True, **empty} for job in _tables(config, runs)}
        for run in runs:
            facts = {"task": run.config.task, "teacher": run.config.teacher, "budget": run.budget, "seed": run.config.seed}
            self.records[run.name] = {**facts, "prepared": run.prepared, "folder": run.config.output_dir, **empty}
        path = config.folder / "sweep.json"
        spent = read_json(path)["runs"] if path.exists() else {}  # by earlier calls, which this one goes on from
        for name, record in self.records.items():
            record |= {key: value for key, value in spent.get(name, {}).items() if key in ("lost", "seconds")}

    def perform(self, engine: Engine, jobs: Sequence[Job], width: int) -> None:
        """Do the jobs, at most ``width`` at a time, each after what it needs; what has failed is not tried again."""
        waiting = [job for job in jobs if self.records[job.name]["status"] != "failed" and not self._was_done(job)]
        running: dict[Any, tuple[Job, float]] = {}
        total = len(waiting)
        self.progress.stage("sweep" if width > 1 else "sweep, one at a time", total)
        try:
            while waiting or running:
                waiting = [job for job in waiting if not self._is_lost_cause(job)]
                for job in [job for job in waiting if self._is_ready(job)][: width - len(running)]:
                    waiting.remove(job)
                    running[engine.start(job)] = job, time.monotonic()
                    self._note(job, "running", attempts=self.records[job.name]["attempts"] + 1)
                for handle, outcome in engine.ended([*running]) if running else []:
                    job, began = running.pop(handle)
                    seconds = self.records[job.name]["seconds"] + time.monotonic() - began
                    if outcome.is_lost and self.records[job.name]["attempts"] <= self.config.retries:
                        self.progress.warning(f"{job.kind} {job.name}: {outcome.error}; it is started again")
                        waiting.insert(0, job)
                        self._note(job, "waiting", seconds=seconds, lost=self.records[job.name]["lost"] + 1)
                    elif outcome.error is not None:
                        self.progress.warning(f"{job.kind} {job.name}: {outcome.error}")
                        self._note(job, "failed", seconds=seconds, error=outcome.error)
                    else:
                        self._end(job, seconds)
                    self.progress.step(total - len(waiting) - len(running), running=len(running), last=job.name)
        except BaseException:
            engine.stop([*running])
            raise

    def _was_done(self, job: Job) -> bool:
        if job.is_done:
            self._end(job, self.records[job.name]["seconds"])
        return job.is_done

    def _is_ready(self, job: Job) -> bool:
        return all(self.records[name]["status"] == "done" for name in job.needed)

    def _is_lost_cause(self, job: Job) -> bool:
        """Whether what it needs has failed; it has then failed too."""
        failed = [name for name in job.needed if self.records[name]["status"] == "failed"]
        if failed:
            what = "latency table" if "is_table" in self.records[failed[0]] else "preparation"
            self._note(job, "failed", error=f"its {what} failed: {self.records[failed[0]]['error']}")
        return bool(failed)

    def _end(self, job: Job, seconds: float) -> None:
        """A trained run is not done: it has to be measured, and its attempts at that are counted anew."""
        self._note(job, *(("trained",) if job.kind == "train" else ("done",)), seconds=seconds, attempts=0)

    def _note(self, job: Job, status: str, **facts: Any) -> None:
        self.records[job.name] |= {"status": status, **facts}
        write_json(self.config.folder / "sweep.json", {"command": typed_command(), "commit": commit(), "runs": self.records})
