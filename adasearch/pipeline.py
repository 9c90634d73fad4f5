"""The whole sentence: task + teacher + space + budget -> searched, trained, exported, timed student.

Every stage leaves its result in the run's folder and is skipped when that is there, so the same command goes on after
a kill. What crosses from search to training is the Architecture, plain data (and, on request, inherited weights).
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator

from adasearch.accelerator import make_accelerator
from adasearch.architecture import Architecture, Space
from adasearch.bundle import modelling_modules, modelling_source
from adasearch.cold import peak_rss_bytes
from adasearch.config import RunConfig, validate
from adasearch.distributed import main_first, open_group
from adasearch.errors import ConfigError
from adasearch.files import write_json
from adasearch.honest import measure_and_report
from adasearch.latency_target import check_table, check_targets, open_table, table_path, target_lengths
from adasearch.operations import OPERATIONS
from adasearch.prepare import Problem, Start, prepare, student_config
from adasearch.progress import Progress
from adasearch.questions import refuse_questions
from adasearch.run_files import (
    ALWAYS_FREE, Inputs, begin_run, begun_precision, check_first, check_folder, check_reopening, check_same, hand_over, note_settings,
    note_stage, only_one, path_of, refuse_run, stage_facts,
)  # fmt: skip
from adasearch.search_config import SearchConfig
from adasearch.settings import to_dict
from adasearch.shrink import random_architecture
from adasearch.space import load_space
from adasearch.starts import check_starts
from adasearch.strategies import find_strategy
from adasearch.student import AdasearchConfig
from adasearch.supernet import Supernet
from adasearch.systems import Trained, Trainer, run_search
from adasearch.task_config import folder_name
from adasearch.tasks import Task, load_task
from adasearch.teacher import tables_of
from adasearch.trackers import check_trackers, start_trackers, stop_trackers
from adasearch.transfer import shares

# settings that may differ when a run goes on: they change what is shown, added or timed, not what was learned
FREE = (*ALWAYS_FREE, "bench", "controls", "seeds", "evaluate", "report_examples", "report_to")


@dataclass
class Run:
    """A run's folder and its parts, as far as they are made."""

    config: RunConfig
    folder: Path
    task: Task
    space: Space
    progress: Progress
    accelerator: Accelerator

    @property
    def seeds(self) -> list[int]:
        """The seeds of student and controls."""
        return self.config.seeds or [self.config.seed]

    def note(self, stage: str, **facts: Any) -> None:
        """Write into run.json that a stage is done, and what it took."""
        if self.accelerator.is_main_process:
            note_stage(self.folder, stage, **facts)

    def facts(self, stage: str) -> dict[str, Any]:
        """What ``note`` wrote."""
        return stage_facts(self.folder, stage)


def run(config: RunConfig, progress: Progress | None = None) -> Path:
    """Do everything for one task and return the run's folder: student/, report.md, report.json, figures/.

    Raises ``ConfigError`` or ``DataError`` before any training when the request or the data are wrong.
    """
    with _prepared(config, progress) as (this, problem):
        architecture, systems = _train(this, problem)
        if this.accelerator.is_main_process:
            measure_and_report(this, problem, architecture, systems)
            note_settings(this.folder, to_dict(this.config))
            this.note("report")
        this.accelerator.wait_for_everyone()
    return this.folder


def train(config: RunConfig, progress: Progress | None = None) -> Path:
    """All of ``run`` but the measurement, which ``run`` then does alone: training may share the machine, timing may not."""
    with _prepared(config, progress) as (this, problem):
        _train(this, problem)
    return this.folder


def prepare_only(config: RunConfig, progress: Progress | None = None) -> Path:
    """Only what comes before the search: ``teacher/`` and ``cache/`` of the run's folder, which is returned."""
    with _prepared(config, progress) as (this, _):
        this.note("prepare")
    return this.folder


def time_only(config: RunConfig, progress: Progress | None = None) -> Path:
    """Only the latency table of a search, in ``search/`` of the run's folder; returns its path."""
    with _prepared(config, progress) as (this, problem):
        open_table(config.search, this.space, target_lengths(config.search, problem.labelled), this.folder / "search", this.progress)
        this.note("table")
    return table_path(config.search, this.folder / "search")


def check(config: RunConfig, cache: Path | None = None) -> tuple[Task, Space]:
    """Raise what is wrong with the request or the data, as far as it can be known before any work; what was read for it.

    ``cache`` keeps the demo's download; the run's own when absent.
    """
    whole_space = check_settings(config)
    check_trackers(config)
    task = load_task(config, seed=config.seed_of_data, cache=cache or run_folder(config) / "cache")
    space = whole_space.for_task(is_pair=task.is_pair)
    check_same(run_folder(config) / "run.json", task.data, inputs_of(config, space))
    check_saving(space)
    check_starts(config, whole_space, space, cache or run_folder(config) / "cache")
    if "random_architecture" in config.controls:
        _check_random_control(config, space)
    if config.search.latency_table or not config.architecture:
        # with an architecture random controls are drawn by a named table, at the price that it gives to the architecture
        is_priced = config.architecture and "random_architecture" in config.controls
        check_table(config.search, space, Architecture.load(Path(config.architecture)) if is_priced else None)
    if config.transfer.size and config.teacher != "none":
        shares(config.transfer)
    return task, space


def inputs_of(config: RunConfig, space: Space) -> Inputs:
    """What a run is made of beside its data."""
    paths = {name: path_of(getattr(config, name)) for name in ("teacher", "architecture", "warm_start")}
    if config.teacher == "none":  # else no tokenizer but the teacher's is read
        paths["tokenizer"] = path_of(config.tokenizer)
    return {**paths, "transfer.masked_lm_model": path_of(config.transfer.masked_lm_model), "space": space.digest}


def check_settings(config: RunConfig) -> Space:
    """The part of ``check`` that reads no data; the space."""
    refuse_questions(config, "the search")
    validate(config)
    refuse_run("teacher", config.teacher)
    find_strategy(config.search)
    _check_idle(config)
    space = load_space(config.space)
    check_reopening(run_folder(config), to_dict(config), to_dict(RunConfig()), FREE)
    check_first(run_folder(config), f"student-{(config.seeds or [config.seed])[0]}")
    if config.architecture:
        _check_operations(Architecture.load(Path(config.architecture)), config.architecture)
    return space


def _check_idle(config: RunConfig) -> None:
    """Raise ``ConfigError`` for what ``--batch_size`` and ``--lengths`` set where no latency is asked for: a training has others."""
    search, usual = config.search, SearchConfig()
    if search.latency_target_ms is not None or search.latency_table is not None:
        return
    for name, others in (("latency_batch_size", "retrain.batch_size, search.batch_size"), ("latency_lengths", "max_seq_length, bench.seq_lengths")):
        if getattr(search, name) != getattr(usual, name):
            raise ConfigError(f"search.{name}: {getattr(search, name)} is of a latency, and no target or table is given; choices: --latency_target_ms, or {others}")


def _train(this: Run, problem: Problem) -> tuple[Architecture, list[Trained]]:
    """Search, train student and controls, hand the student over."""
    supernet, architecture = _search(this, problem)
    trainer = Trainer(this.config, problem, this.space, supernet, this.folder, this.accelerator, this.progress)
    systems = [
        trainer.train(kind, architecture, seed)
        for kind in ("student", *(kind for kind in this.config.controls if kind != "tfidf"))
        for seed in this.seeds
    ]
    _hand_over(this, systems[0])
    this.note("train")
    stop_trackers(this.accelerator)  # what is timed next is timed without them
    return architecture, systems


def search(config: RunConfig, progress: Progress | None = None) -> Path:
    """Only the search; returns the path of ``architecture.json``."""
    with _prepared(config, progress) as (this, problem):
        _search(this, problem)
    return this.folder / "search" / "architecture.json"


def retrain(config: RunConfig, progress: Progress | None = None) -> Path:
    """Train the student of ``config.architecture`` (or of the search in the run's folder); returns its folder."""
    if not config.architecture and not (run_folder(config) / "search" / "architecture.json").exists():
        raise ConfigError(f"architecture: none given and {run_folder(config)} holds no search; choices: --architecture FILE, or search first")
    with _prepared(config, progress) as (this, problem):
        supernet, architecture = _search(this, problem)
        trainer = Trainer(this.config, problem, this.space, supernet, this.folder, this.accelerator, this.progress)
        _hand_over(this, [trainer.train("student", architecture, seed) for seed in this.seeds][0])
    return this.folder / "student"


def run_folder(config: RunConfig) -> Path:
    """Where a run lies: ``output_dir``, else ``runs/<task>``."""
    return Path(config.output_dir or Path("runs") / folder_name(config.task))


@contextmanager
def _prepared(config: RunConfig, progress: Progress | None) -> Iterator[tuple[Run, Problem]]:
    """A run with all that comes before the search. Its folder is its own while the block lasts, and its trackers end with it."""
    with only_one(run_folder(config)):
        this = _open(config, progress or Progress())
        try:
            yield this, _prepare(this)
        finally:
            stop_trackers(this.accelerator)


def _open(config: RunConfig, progress: Progress) -> Run:
    """Check all that can be checked without the teacher."""
    folder = run_folder(config)
    check_folder(folder, "run.json", "diagnosis")
    open_group(config.cpu)
    with main_first():
        task, space = check(config)
        for note in task.notes:
            progress.message(note)
    return Run(config, folder, task, space, progress, make_accelerator(config, begun_precision(folder)))


def _prepare(this: Run) -> Problem:
    """All that comes before the search. What is refused notes no settings: the request, once mended, goes on in the same folder."""

    def begin(start: Start) -> None:
        _check_costs(this, start)
        if this.accelerator.is_main_process:
            begin_run(
                this.folder, to_dict(this.config), this.accelerator.mixed_precision,
                data=this.task.data, inputs=inputs_of(this.config, this.space),
            )  # fmt: skip
        start_trackers(this.config, this.config.task, this.folder, this.accelerator)

    return prepare(this.config, this.task, this.folder, this.accelerator, this.progress, begin)


def _check_costs(this: Run, start: Start) -> None:
    """A search's targets before the teacher learns, where its vocabulary is the student's; of another one the size is known only later.

    A target in milliseconds is asked only of a table that is named. Raises ``ConfigError``.
    """
    config, search = this.config, this.config.search
    if config.architecture or config.vocabulary.kind != "teacher" or (this.folder / "search" / "architecture.json").exists():
        return
    lengths = target_lengths(search, start.labelled)
    table = open_table(search, this.space, lengths, this.folder / "search", this.progress) if search.latency_table else None
    word, _ = tables_of(start.teacher.model)
    student = student_config(this.task, start.tokenizer, config, word)
    check_targets(search, this.space, float(start.labelled.tokens.lengths.mean()), student, table and table.at(lengths))


def _check_operations(architecture: Architecture, where: str) -> None:
    for name in architecture.operations:
        if name not in OPERATIONS:
            raise ConfigError(f"{where}: unknown operation {name!r}; known: {', '.join(sorted(OPERATIONS))}")


def _check_random_control(config: RunConfig, space: Space) -> None:
    """Raise ``ConfigError`` where the space has a single member: there is no other to draw for the control."""
    generator = np.random.default_rng(0)
    if not config.architecture and len({random_architecture(space, generator) for _ in range(64)}) == 1:
        others = ", ".join(name for name in config.controls if name != "random_architecture")
        raise ConfigError(f"space: {config.space!r} has a single member, so that random_architecture would be it; choices: --controls '[{others}]'")


def check_saving(space: Space) -> None:
    """Whether a student of this space can travel as one file is known only from all its operations: ask now."""
    modelling_source(modelling_modules(Supernet(space, AdasearchConfig(vocab_size=8, embedding_rank=8, sep_token_id=2))))


def _search(this: Run, problem: Problem) -> tuple[Supernet | None, Architecture]:
    """The architecture: given, or searched."""
    if this.config.architecture:
        architecture = Architecture.load(Path(this.config.architecture))
        if architecture.space_digest != this.space.digest and "random_architecture" in this.config.controls:
            note = f"architecture: of space {architecture.space!r}; random_architecture is drawn from --space {this.config.space}, which is another"
            problem.notes.append(note)
            this.progress.warning(note)
        if this.accelerator.is_main_process:
            write_json(this.folder / "search" / "architecture.json", architecture.to_dict())
        return None, architecture
    folder = this.folder / "search"
    is_whole = not any((folder / name).exists() for name in ("history.jsonl", "checkpoint.pt", "architecture.json"))
    start = time.monotonic()
    supernet, architecture = run_search(this.config, problem, this.space, folder, this.accelerator, this.progress)
    took = {"seconds": time.monotonic() - start, "peak_rss_bytes": peak_rss_bytes()} if is_whole else {}  # of a resumed one only the end is known
    this.note("search", **took)
    return supernet, architecture


def _hand_over(this: Run, student: Trained) -> None:
    """The student of the first seed becomes ``student/``: picked by its number, not by its score."""
    if this.accelerator.is_main_process:
        hand_over(student.folder, this.folder / "student")
    this.note("student", model=student.folder.name)
