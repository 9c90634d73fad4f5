"""One trial of a study: a run on the study's shared preparation, scored on validation examples, stopped when hopeless.

The examples that a run is scored on at its end are not looked at: where a task's validation examples are its held-out
ones, a part of the training examples takes their place for the study.
"""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import yaml
from accelerate import Accelerator
from filelock import FileLock
from optuna.trial import FrozenTrial, Trial, TrialState

from adasearch.accelerator import make_accelerator
from adasearch.architecture import Architecture, Space
from adasearch.config import RunConfig
from adasearch.errors import AdasearchError
from adasearch.files import fingerprint, read_json, write_json, write_text
from adasearch.latency_bench import deployment_here, runtime_of, time_runtimes
from adasearch.latency_target import open_table, table_path, target_lengths
from adasearch.member_cost import architecture_cost
from adasearch.metrics import METRICS
from adasearch.pipeline import inputs_of
from adasearch.prepare import Problem, prepare
from adasearch.progress import Progress
from adasearch.run_files import check_same, noted_inputs
from adasearch.shrink import build_student
from adasearch.starts import teacher_worth
from adasearch.supernet import Supernet
from adasearch.systems import Trainer, run_search
from adasearch.tasks import Task, hold_out
from adasearch.trackers import start_trackers, stop_trackers
from adasearch.tune_check import check_data, check_request, may_inherit, widest_space
from adasearch.tune_config import LIMITS, TuneConfig
from adasearch.tune_space import StudySpace, run_data, space_data

PRECISION = "precision.json"  # what the study computes in
PREPARING = "preparation.lock"  # held while the preparation is made; the first file of a study
KEPT = ("history.json", "scores.json")  # of a trained student's folder


class Pruned(Exception):
    """A trial that is not worth going on with; the text says why."""


@dataclasses.dataclass
class Study:
    """What all trials share: settings, task, parameters and, made once, the preparation in ``preparation/``."""

    config: TuneConfig
    task: Task
    space: StudySpace
    progress: Progress
    accelerator: Accelerator
    _problem: tuple[str, Problem] | None = None

    @property
    def preparation(self) -> Path:
        """Teacher and cache of all trials."""
        return self.config.folder / "preparation"

    @property
    def inherits(self) -> bool:
        """Whether trials take layers of the teacher."""
        return self.config.teacher != "none" and may_inherit(self.space)

    @property
    def inputs(self) -> dict[str, str]:
        """What the study is made of beside its data, as digests."""
        return noted_inputs(inputs_of(self.space.base, self.space.space))

    @property
    def sign(self) -> float:
        """1 where a higher score is better, else -1."""
        return 1.0 if METRICS[self.task.metric].higher_is_better else -1.0

    def problem(self, config: RunConfig) -> Problem:
        """The task as a trial learns it. Trials differ in it only by transfer set and vocabulary; one process makes them at a time."""
        key = fingerprint(dataclasses.asdict(config.transfer), dataclasses.asdict(config.vocabulary))
        if self._problem is None or self._problem[0] != key:
            with FileLock(self.config.folder / PREPARING):
                problem = prepare(config, self.task, self.preparation, self.accelerator, self.progress)
                if self.inherits:
                    teacher_worth(problem, self.preparation / "cache", self.progress)
            # it has said all it has to say, unless its layers are wanted
            self._problem = key, problem if self.inherits else dataclasses.replace(problem, teacher=None)
        return self._problem[1]


def open_study(config: TuneConfig, progress: Progress) -> Study:
    """Check all that can be checked, load the task, and make or read back what all trials share."""
    space = check_request(config)
    threads = config.threads or (1 if config.workers > 1 else None)
    space = dataclasses.replace(space, base=dataclasses.replace(space.base, threads=threads))
    config.folder.mkdir(parents=True, exist_ok=True)
    with FileLock(config.folder / PREPARING):
        task = tuning_task(check_data(config, space), config.seed_of_data)
        check_same(config.folder / "study.json", task.data, inputs_of(space.base, space.space))
        accelerator = _accelerator(config.folder / PRECISION, space.base)
    study = Study(config, task, space, progress, accelerator)
    problem = study.problem(space.base)
    return dataclasses.replace(study, space=_with_table(study, problem))


def _accelerator(path: Path, base: RunConfig) -> Accelerator:
    """Of the precision that the study was begun with, measured once for all its workers and for a later start."""
    begun = read_json(path)["precision"] if path.exists() else None
    accelerator = make_accelerator(base, begun)
    if begun is None:
        write_json(path, {"precision": accelerator.mixed_precision})
    return accelerator


def tuning_task(task: Task, seed: int) -> Task:
    """The task without the examples of its final score. Where these are the validation examples, a tenth of the training
    examples is held out to tune on."""
    if task.test is not None:
        return dataclasses.replace(task, test=None)
    train, validation = hold_out(task.train, seed)
    note = f"tuned on {len(validation)} training examples: the task's validation examples are those of the final score"
    return dataclasses.replace(task, train=train, validation=validation, notes=[*task.notes, note])


def _with_table(study: Study, problem: Problem) -> StudySpace:
    """The parameters, with the latency table that all searches with a latency target read; measured once."""
    space = study.space
    tried = next((p for p in space.parameters if p.name == "search.latency_target_ms"), None)
    target = max(filter(None, tried.probes()), default=None) if tried else space.base.search.latency_target_ms
    if target is None or space.base.search.latency_table or space.base.architecture:
        return space
    widest = widest_space(space, is_pair=study.task.is_pair)
    settings, folder = dataclasses.replace(space.base.search, latency_target_ms=target), study.preparation / "search"
    lengths = target_lengths(settings, problem.labelled)
    with FileLock(study.config.folder / PREPARING):
        if settings.latency_lengths is None and not table_path(settings, folder).exists():
            # another vocabulary, and the run on all training texts that follows, may have longer texts than these
            lengths = {study.config.max_seq_length: 0.0, **lengths}
        open_table(settings, widest, lengths, folder, study.progress)
    settings = dataclasses.replace(space.base.search, latency_table=str(folder / "latency.json"))
    return dataclasses.replace(space, base=dataclasses.replace(space.base, search=settings))


def run_trial(study: Study, optuna_study: optuna.Study, trial: Trial) -> list[float]:
    """Search, train and measure with the trial's values; the objectives. Raises ``Pruned``."""
    started = time.monotonic()
    try:
        values = study.space.suggest(trial)
        this = TrialRun(study, optuna_study, trial, values)
        return this.run()
    except AdasearchError as error:
        if isinstance(error.__cause__, OSError):  # the disk is full: no fault of the trial's
            raise
        raise Pruned(f"{type(error).__name__}: {' '.join(str(error).split())}") from error
    finally:
        trial.set_user_attr("seconds", time.monotonic() - started)


class TrialRun:
    """A trial at work: its run, its folder, what is known of it so far (also written into the trial)."""

    def __init__(self, study: Study, optuna_study: optuna.Study, trial: Trial, values: dict[str, Any]):
        self.study, self.optuna_study, self.trial = study, optuna_study, trial
        self.tune = study.config
        self.folder = self.tune.folder / "trials" / f"{trial.number:04d}"
        shutil.rmtree(self.folder, ignore_errors=True)
        config, space = study.space.run_of(values), study.space.space_of(values)
        self.space: Space = space.for_task(is_pair=study.task.is_pair)
        self.config = dataclasses.replace(config, output_dir=str(self.folder), evaluate=self.tune.evaluations, controls=[])
        if space != study.space.space:
            write_text(self.folder / "space.yaml", yaml.safe_dump(space_data(space), sort_keys=False))
            self.config = dataclasses.replace(self.config, space=str(self.folder / "space.yaml"))
        self.curve: list[float] = []
        self.costs: dict[str, float] = {}
        write_text(self.folder / "config.yaml", yaml.safe_dump(run_data(self.config), sort_keys=False))

    def run(self) -> list[float]:
        """All stages; the objectives."""
        try:
            start_trackers(self.config, self.config.task, self.folder, self.study.accelerator)
            problem = self.study.problem(self.config)
            if self.study.inherits:  # a search looks for the worth of the teacher's heads in the cache beside it
                (self.folder / "cache").symlink_to((self.study.preparation / "cache").resolve(), target_is_directory=True)
            supernet, architecture = self._search(problem)
            self._weigh(problem, architecture)
            scores = self._train(problem, supernet, architecture)
        finally:
            stop_trackers(self.study.accelerator)
            self._tidy()
        score = float(np.mean(scores))
        if not np.isfinite(score):  # of a metric of the user's; Optuna would refuse it, and leave the trial running
            raise Pruned(f"its score is {score}")
        for name, value in (("score", score), ("scores", scores)):
            self.trial.set_user_attr(name, value)
        return [{"score": score, **self.costs}[name] for name in self.tune.objectives]

    def _search(self, problem: Problem) -> tuple[Supernet | None, Architecture]:
        if self.config.architecture:
            return None, Architecture.load(Path(self.config.architecture))
        return run_search(self.config, problem, self.space, self.folder / "search", self.study.accelerator, self.study.progress)

    def _weigh(self, problem: Problem, architecture: Architecture) -> None:
        """Costs of the shape, before it is trained. Raises ``Pruned`` above a limit."""
        write_json(self.folder / "architecture.json", architecture.to_dict())
        self.trial.set_user_attr("shape", f"{architecture.depth} x {architecture.width}")
        cost = architecture_cost(architecture, problem.length, problem.student_config)
        self._note(macs=float(cost.macs), params=float(cost.params))
        if self.tune.needs_latency:
            self._note(latency_ms=self._latency(problem, architecture))

    def _note(self, **costs: float) -> None:
        """Costs that are known now; the trial keeps them whatever becomes of it. Raises ``Pruned`` above a limit."""
        self.costs |= costs
        for name, value in costs.items():
            self.trial.set_user_attr(name, value)
        for name, setting in LIMITS.items():
            limit = getattr(self.tune, setting)
            if limit is not None and self.costs.get(name, 0.0) > limit:
                raise Pruned(f"{name} {self.costs[name]:.4g} is above {setting} {limit:.4g}; its student was not trained")

    def _latency(self, problem: Problem, architecture: Architecture) -> float:
        """Milliseconds of one call of the exported student, by the protocol of the latency tables.

        Its weights are not trained yet; the graph, and with it the time, is that of the trained one. A shape is measured
        once a study and machine, one at a time.
        """
        bench = self.config.bench
        where = deployment_here(bench.runtime, bench.threads, bench.batch_sizes[0])
        length = min(bench.seq_lengths[0], self.config.max_seq_length)
        shape = dataclasses.replace(architecture, seed=0, space="", space_digest="").to_dict()
        key = fingerprint(shape, problem.student_config.to_dict(), dataclasses.asdict(where), length)
        with FileLock(self.tune.folder / "timing.lock"), tempfile.TemporaryDirectory(prefix="adasearch-tune-") as scratch:
            known = self.tune.folder / "latencies" / f"{key}.json"
            if not known.exists():
                model = build_student(architecture, problem.student_config)
                model.fold_embeddings()
                runtime = runtime_of(model.eval(), where, Path(scratch) / "student")
                times = time_runtimes({"student": runtime}, [length], where, self.study.progress, "measure the student")
                write_json(known, {"latency_ms": times["student"][0], "length": length, **dataclasses.asdict(where)})
            return read_json(known)["latency_ms"]

    def _train(self, problem: Problem, supernet: Supernet | None, architecture: Architecture) -> list[float]:
        """The student of every seed; their validation scores."""
        metric, study = self.study.task.metric, self.study
        trainer = Trainer(
            self.config, problem, self.space, supernet, self.folder, study.accelerator, study.progress,
            on_scores=lambda _, seed, scores: self._hear(scores[metric]) if seed == self.tune.trial_seeds[0] else None,
        )  # fmt: skip
        trained = [trainer.train("student", architecture, seed) for seed in self.tune.trial_seeds]
        return [one.scores[metric] for one in trained]

    def _hear(self, score: float) -> None:
        """An evaluation while the first seed trains. Raises ``Pruned`` where others were better at this point."""
        self.curve.append(score)
        self.trial.set_user_attr("curve", self.curve)
        step = len(self.curve)
        if self.tune.has_one_objective:
            self.trial.report(score, step)
        if step >= self.tune.evaluations:
            return  # trained to the end: it may as well be counted
        if self.tune.has_one_objective and self.trial.should_prune():
            raise Pruned(f"validation score {score:.4f} at evaluation {step} of {self.tune.evaluations}: the {self.tune.pruner} pruner stopped it")
        is_asked = self.tune.pruner in ("auto", "dominated") and not self.tune.has_one_objective
        if is_asked and step > self.tune.prune_warmup * self.tune.evaluations:
            done = self.optuna_study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
            better = dominator(done, self.costs_asked, step, score, self.study.sign, self.tune.prune_margin)
            if better is not None:
                raise Pruned(f"validation score {score:.4f} at evaluation {step}: trial {better.number} had {better.user_attrs['curve'][step - 1]:.4f} at no more cost")

    @property
    def costs_asked(self) -> dict[str, float]:
        """Those costs that are objectives."""
        return {name: self.costs[name] for name in self.tune.objectives if name != "score"}

    def _tidy(self) -> None:
        """Leave what is small: settings, architecture, histories, scores."""
        for path in (self.folder / "search" / "supernet.pt", *self.folder.rglob("checkpoint.pt")):
            path.unlink(missing_ok=True)
        (self.folder / "cache").unlink(missing_ok=True)
        if self.tune.keep_models:
            return
        for model in (self.folder / "models").glob("*"):
            for path in model.iterdir():
                if path.name not in KEPT:
                    shutil.rmtree(path) if path.is_dir() else path.unlink()


def dominator(
    done: Sequence[FrozenTrial], costs: dict[str, float], step: int, score: float, sign: float, margin: float
) -> FrozenTrial | None:
    """A finished trial that costs no more in anything and was better by ``margin`` at the same evaluation, if there is one."""
    for other in done:
        curve = other.user_attrs.get("curve", [])
        is_as_cheap = all(other.user_attrs[name] <= cost for name, cost in costs.items())
        if len(curve) >= step and is_as_cheap and sign * (curve[step - 1] - score) >= margin:
            return other
    return None
