"""The whole sentence: task + teacher + space + budget -> searched, trained, exported, timed student.

Every stage leaves its result in the run's folder and is skipped when that is there, so the same command goes on after
a kill. What crosses from search to training is the Architecture, plain data (and, on request, inherited weights).
"""

from __future__ import annotations

import shlex
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from accelerate import Accelerator

from adasearch.architecture import Architecture, Space
from adasearch.bundle import modelling_modules, modelling_source
from adasearch.cold import peak_rss_bytes
from adasearch.config import RunConfig, to_dict, validate
from adasearch.distributed import main_first, open_group
from adasearch.errors import ConfigError
from adasearch.files import read_json, write_folder, write_json, write_text
from adasearch.honest import commit, measure_and_report
from adasearch.operations import OPERATIONS
from adasearch.prepare import Problem, make_accelerator, prepare
from adasearch.progress import Progress
from adasearch.questions import refuse_questions
from adasearch.space import load_space
from adasearch.starts import check_starts
from adasearch.strategies import find_strategy
from adasearch.student import AdasearchConfig
from adasearch.supernet import Supernet
from adasearch.systems import Trained, Trainer, run_search
from adasearch.tasks import Task, load_task
from adasearch.trackers import check_trackers, start_trackers, stop_trackers

# settings that may differ when a run goes on: they change what is shown, added or timed, not what was learned
FREE = ("quiet", "bench", "controls", "seeds", "checkpoint_seconds", "threads", "cpu", "output_dir", "evaluate", "data_dir", "demo_assets", "report_examples", "report_to")


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
        if not self.accelerator.is_main_process:
            return
        state = read_json(self.folder / "run.json")
        state["stages"].setdefault(stage, {"done": True, **facts})
        write_json(self.folder / "run.json", state)

    def facts(self, stage: str) -> dict[str, Any]:
        """What ``note`` wrote."""
        return read_json(self.folder / "run.json")["stages"].get(stage, {})


def run(config: RunConfig, progress: Progress | None = None) -> Path:
    """Do everything for one task and return the run's folder: student/, report.md, report.json, figures/.

    Raises ``ConfigError`` or ``DataError`` before any training when the request or the data are wrong.
    """
    this, problem, architecture, systems = _train(config, progress)
    if this.accelerator.is_main_process:
        measure_and_report(this, problem, architecture, systems)
        this.note("report")
    this.accelerator.wait_for_everyone()
    return this.folder


def train(config: RunConfig, progress: Progress | None = None) -> Path:
    """All of ``run`` but the measurement, which ``run`` then does alone: training may share the machine, timing may not."""
    return _train(config, progress)[0].folder


def prepare_only(config: RunConfig, progress: Progress | None = None) -> Path:
    """Only what comes before the search: ``teacher/`` and ``cache/`` of the run's folder, which is returned."""
    this = _open(config, progress or Progress())
    prepare(this.config, this.task, this.folder, this.accelerator, this.progress)
    this.note("prepare")
    return this.folder


def check(config: RunConfig, cache: Path | None = None) -> tuple[Task, Space]:
    """Raise what is wrong with the request or the data, as far as it can be known before any work; what was read for it.

    ``cache`` keeps the demo's download; the run's own when absent.
    """
    whole_space = check_settings(config)
    check_trackers(config)
    task = load_task(config, seed=config.seed_of_data, cache=cache or run_folder(config) / "cache")
    space = whole_space.for_task(is_pair=task.is_pair)
    _check_saving(space)
    check_starts(config, whole_space, space, cache or run_folder(config) / "cache")
    return task, space


def check_settings(config: RunConfig) -> Space:
    """The part of ``check`` that reads no data; the space."""
    refuse_questions(config, "the search")
    validate(config)
    find_strategy(config.search)
    folder = run_folder(config)
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"output_dir: {folder} is a file; a folder is expected")
    space = load_space(config.space)
    _check_reopening(config, folder)
    if config.architecture:
        _check_operations(Architecture.load(Path(config.architecture)), config.architecture)
    return space


def _train(config: RunConfig, progress: Progress | None) -> tuple[Run, Problem, Architecture, list[Trained]]:
    """Prepare, search, train student and controls, hand the student over."""
    this = _open(config, progress or Progress())
    problem = prepare(this.config, this.task, this.folder, this.accelerator, this.progress)
    supernet, architecture = _search(this, problem)
    trainer = Trainer(this.config, problem, this.space, supernet, this.folder, this.accelerator, this.progress)
    systems = [
        trainer.train(kind, architecture, seed)
        for kind in ("student", *(kind for kind in this.config.controls if kind != "tfidf"))
        for seed in this.seeds
    ]
    _hand_over(this, systems[0])
    this.note("train")
    stop_trackers(this.accelerator)
    return this, problem, architecture, systems


def search(config: RunConfig, progress: Progress | None = None) -> Path:
    """Only the search; returns the path of ``architecture.json``."""
    this = _open(config, progress or Progress())
    problem = prepare(this.config, this.task, this.folder, this.accelerator, this.progress)
    _search(this, problem)
    stop_trackers(this.accelerator)
    return this.folder / "search" / "architecture.json"


def retrain(config: RunConfig, progress: Progress | None = None) -> Path:
    """Train the student of ``config.architecture`` (or of the search in the run's folder); returns its folder."""
    this = _open(config, progress or Progress())
    if not config.architecture and not (this.folder / "search" / "architecture.json").exists():
        raise ConfigError(f"architecture: none given and {this.folder} holds no search; choices: --architecture FILE, or search first")
    problem = prepare(this.config, this.task, this.folder, this.accelerator, this.progress)
    supernet, architecture = _search(this, problem)
    trainer = Trainer(this.config, problem, this.space, supernet, this.folder, this.accelerator, this.progress)
    _hand_over(this, [trainer.train("student", architecture, seed) for seed in this.seeds][0])
    stop_trackers(this.accelerator)
    return this.folder / "student"


def run_folder(config: RunConfig) -> Path:
    """Where a run lies: ``output_dir``, else ``runs/<task>``."""
    return Path(config.output_dir or Path("runs") / config.task.replace("/", "--").replace(":", "-"))


def _open(config: RunConfig, progress: Progress) -> Run:
    """Check all that can be checked, then make or reopen the run's folder."""
    folder = run_folder(config)
    open_group(config.cpu)
    with main_first():
        task, space = check(config)
        for note in task.notes:
            progress.message(note)
    accelerator = make_accelerator(config)
    if accelerator.is_main_process and not (folder / "run.json").exists():
        write_text(folder / "config.yaml", yaml.safe_dump(to_dict(config), sort_keys=False))
        write_json(
            folder / "run.json",
            {"command": _command(), "commit": commit(), "config": to_dict(config), "precision": accelerator.mixed_precision, "stages": {}},
        )
    start_trackers(config, folder, accelerator)
    return Run(config, folder, task, space, progress, accelerator)


def _command() -> str:
    """What was typed, without where the program lies."""
    program = Path(sys.argv[0]).name
    return shlex.join(["adasearch" if program in ("adasearch", "__main__.py") else program, *sys.argv[1:]])


def _check_reopening(config: RunConfig, folder: Path) -> None:
    """A folder goes on with the settings it was begun with, or not at all."""
    if not (folder / "run.json").exists():
        return
    before, now = _completed(read_json(folder / "run.json")["config"], to_dict(RunConfig())), to_dict(config)
    changed = [key for key in now if key not in FREE and before[key] != now[key]]
    if changed:
        what = "; ".join(f"{key} was {before.get(key)!r}, is {now[key]!r}" for key in changed[:3])
        raise ConfigError(f"output_dir: {folder} holds a run with other settings ({what}); choices: another --output_dir, or delete it")


def _completed(settings: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """Settings of an older version: what it did not know yet is at its default."""
    return {
        key: _completed(settings.get(key) or {}, value) if isinstance(value, dict) else settings.get(key, value)
        for key, value in defaults.items()
    }


def _check_operations(architecture: Architecture, where: str) -> None:
    for name in architecture.operations:
        if name not in OPERATIONS:
            raise ConfigError(f"{where}: unknown operation {name!r}; known: {', '.join(sorted(OPERATIONS))}")


def _check_saving(space: Space) -> None:
    """Whether a student of this space can travel as one file is known only from all its operations: ask now."""
    modelling_source(modelling_modules(Supernet(space, AdasearchConfig(vocab_size=8, embedding_rank=8, sep_token_id=2))))


def _search(this: Run, problem: Problem) -> tuple[Supernet | None, Architecture]:
    """The architecture: given, or searched."""
    if this.config.architecture:
        architecture = Architecture.load(Path(this.config.architecture))
        if this.accelerator.is_main_process:
            write_json(this.folder / "search" / "architecture.json", architecture.to_dict())
        return None, architecture
    start = time.monotonic()
    supernet, architecture = run_search(
        this.config, problem, this.space, this.folder / "search", this.accelerator, this.progress
    )
    this.note("search", seconds=time.monotonic() - start, peak_rss_bytes=peak_rss_bytes())
    return supernet, architecture


def _hand_over(this: Run, student: Trained) -> None:
    """The student of the first seed becomes ``student/``: picked by its number, not by its score."""
    target = this.folder / "student"
    if this.accelerator.is_main_process and not (target / "config.json").exists():
        write_folder(target, lambda partial: shutil.copytree(student.folder, partial, dirs_exist_ok=True))
