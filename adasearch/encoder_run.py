"""A transformer made smaller on a task, whatever the method: from a request to models, table, report and figures.

    task + dense model -> recipes x seeds -> models/<key>-<seed> -> student/ -> export, measure, report

The method is a list of recipes. Every stage leaves its result in the run's folder and is skipped when that is there, so
the same command goes on after a kill.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from accelerate import Accelerator

from adasearch.accelerator import make_accelerator
from adasearch.encoder_config import EncoderRunConfig
from adasearch.encoder_problem import EncoderProblem, load_problem, train_dense
from adasearch.encoder_report import report_encoders
from adasearch.encoder_training import Compressed, Recipe, train_recipe
from adasearch.progress import Progress
from adasearch.run_files import (
    ALWAYS_FREE, Inputs, begin_run, begun_precision, check_begun, check_first, check_same, hand_over, model_path_of, note_settings,
    note_stage, only_one, path_of, refuse_processes, refuse_run,
)  # fmt: skip
from adasearch.settings import to_dict
from adasearch.task_config import folder_name
from adasearch.tasks import Task, load_task
from adasearch.trackers import check_trackers, start_trackers, stop_trackers

# settings that may differ when a run goes on: they change what is shown, added or timed, not what was learned
FREE = (*ALWAYS_FREE, "bench", "seeds", "evaluate", "report_examples", "report_to")


def no_facts(trained: Sequence[Compressed]) -> dict[str, str]:
    """Of a method that has nothing to add."""
    return {}


def no_notes(trained: Sequence[Compressed]) -> list[str]:
    """Of a method whose models are always what was asked for."""
    return []


@dataclass(frozen=True)
class About:
    """What is said of a method: its name, the word that its runs' folders begin with, its paper, one or two sentences;
    what ``facts`` makes of the trained models, values as text by what they say; ``tags`` of the model card, and ``files``,
    Markdown on what lies in ``student/`` beside the usual. ``every_runtime``: its graphs are timed in all runtimes that read
    one, not in the bench's alone. ``notes`` are the report's sentences on models that are not what was asked for."""

    name: str
    slug: str
    paper: str
    summary: str
    facts: Callable[[Sequence[Compressed]], dict[str, str]] = no_facts
    tags: tuple[str, ...] = ("structured-pruning",)
    files: str = ""
    every_runtime: bool = False
    notes: Callable[[Sequence[Compressed]], list[str]] = no_notes


@dataclass
class EncoderRun:
    """A run's folder and its parts."""

    config: EncoderRunConfig
    about: About
    folder: Path
    task: Task
    accelerator: Accelerator
    progress: Progress

    @property
    def seeds(self) -> list[int]:
        """The seeds of every model."""
        return self.config.all_seeds


def run_encoders(
    config: EncoderRunConfig, recipes: Sequence[Recipe], about: About, progress: Progress | None = None, free: Sequence[str] = ()
) -> Path:
    """Train every recipe with every seed and report; returns the run's folder: student/, models/, report.md, figures/.

    The first recipe, of kind "student", becomes ``student/`` with its first seed: picked by its number, not by its score.
    ``free`` are settings of the method that may differ when a run goes on. Raises ``ConfigError`` or ``DataError`` before
    any training when the request or the data are wrong.
    """
    run, problem = begin_encoders(config, about, progress, free)
    return run_recipes(run, problem, recipes)


def run_recipes(run: EncoderRun, problem: EncoderProblem, recipes: Sequence[Recipe]) -> Path:
    """The same where all is checked: settings are noted from here on, and the dense model is trained where it is missing."""
    with only_one(run.folder):
        try:
            return _run_recipes(run, problem, recipes)
        finally:
            stop_trackers(run.accelerator)


def _run_recipes(run: EncoderRun, problem: EncoderProblem, recipes: Sequence[Recipe]) -> Path:
    assert recipes[0].kind == "student" and len({recipe.key for recipe in recipes}) == len(recipes), "recipes"
    first = f"{recipes[0].key}-{(recipes[0].seeds or run.seeds)[0]}"
    check_first(run.folder, first)
    _note_settings(run)
    train_dense(run.config, problem)
    note_stage(run.folder, "prepare")
    trained = [train_recipe(recipe, problem, run.config, seed) for recipe in recipes for seed in recipe.seeds or run.seeds]
    hand_over(trained[0].folder, run.folder / "student")
    note_stage(run.folder, "student", model=first)
    note_stage(run.folder, "train")
    stop_trackers(run.accelerator)
    report_encoders(run, problem, trained)
    note_settings(run.folder, to_dict(run.config))
    note_stage(run.folder, "report")
    return run.folder


def open_encoders(
    config: EncoderRunConfig, about: About, progress: Progress | None = None, free: Sequence[str] = (),
    with_teacher: bool = True,
) -> tuple[EncoderRun, EncoderProblem]:  # fmt: skip
    """``begin_encoders`` with the dense model ready (``with_teacher``). Trackers run from here on: ``stop_trackers`` ends them."""
    run, problem = begin_encoders(config, about, progress, free, with_teacher)
    _note_settings(run)
    if with_teacher:
        train_dense(config, problem)
    return run, problem


def _note_settings(run: EncoderRun) -> None:
    """From here on the folder is that of a run with these settings."""
    begin_run(run.folder, to_dict(run.config), run.accelerator.mixed_precision, data=run.task.data, inputs=inputs_of(run.config))
    start_trackers(run.config, run.config.task, run.folder, run.accelerator)


def begin_encoders(
    config: EncoderRunConfig, about: About, progress: Progress | None = None, free: Sequence[str] = (),
    with_teacher: bool = True,
) -> tuple[EncoderRun, EncoderProblem]:  # fmt: skip
    """Check all that can be checked, load data and models.

    Nothing is trained, the dense model included, and no settings are noted: a method says first what is wrong with the models it
    was given, and what is mended may go on in the same folder.
    """
    progress = progress or Progress()
    refuse_processes(about.slug)
    config.check()
    check_trackers(config)
    folder = run_folder(config, about.slug)
    for name, path in (("model", config.model), ("teacher", config.teacher)):
        refuse_run(name, path or "")
    check_begun(folder, config, (*FREE, *free))
    task = load_task(config, seed=config.seed, cache=folder / "cache")
    check_same(folder / "run.json", task.data, inputs_of(config))
    for note in task.notes:
        progress.message(note)
    accelerator = make_accelerator(config, begun_precision(folder))
    problem = load_problem(config, task, folder, accelerator, progress, with_teacher)
    return EncoderRun(config, about, folder, task, accelerator, progress), problem


def inputs_of(config: EncoderRunConfig) -> Inputs:
    """What a run is made of beside its data."""
    paths = {name: path_of(getattr(config, name)) for name in ("model", "teacher")}
    return {**paths, "sparse_model": model_path_of(getattr(config, "sparse_model", None))}


def run_folder(config: EncoderRunConfig, slug: str) -> Path:
    """Where a run lies: ``output_dir``, else ``runs/<method>-<task>``."""
    return Path(config.output_dir or Path("runs") / f"{slug}-{folder_name(config.task)}")
