"""The honest table of a run: every system scored on the same examples and timed in one process, one runtime, in turns."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from adasearch.accelerator import keeping_threads
from adasearch.architecture import Architecture
from adasearch.baselines import TfidfBaseline, tfidf_baseline
from adasearch.calibration import Calibration, calibrate, may_calibrate
from adasearch.card import model_card
from adasearch.deploy import load_deployment
from adasearch.errors import DataError
from adasearch.evidence import cascade, confusion, disagreements, kept_logits
from adasearch.files import read_json, write_text
from adasearch.histories import read_history
from adasearch.honest_rows import timed_systems
from adasearch.inspect_run import inspect
from adasearch.latency_target import compare_run
from adasearch.measure import hardware
from adasearch.metrics import is_skewed, majority_baseline, score
from adasearch.outputs import Forward
from adasearch.prepare import Problem
from adasearch.report import Report
from adasearch.report_files import write_html, write_report
from adasearch.runtimes import load_classifier
from adasearch.search_method import STRATEGIES
from adasearch.systems import Trained
from adasearch.tokens import Examples
from adasearch.verdict import compute_ratios

if TYPE_CHECKING:
    from adasearch.encoder_problem import EncoderProblem
    from adasearch.encoder_run import EncoderRun
    from adasearch.pipeline import Run

Scorer = Callable[[Examples, str], np.ndarray]  # (examples, name of the split) -> logits (N, C)


@keeping_threads()
def measure_and_report(run: Run, problem: Problem, architecture: Architecture, trained: list[Trained]) -> Path:
    """Score what is not scored yet, time everything, write report.json, .md and .html, figures/ and the model card.

    Returns the path of report.html.
    """
    scores = {kind: [t.scores for t in trained if t.kind == kind] for kind in dict.fromkeys(t.kind for t in trained)}
    tfidf = _tfidf(run, problem)
    first = {t.kind: t for t in reversed(trained)}
    student = partial(_student_logits, run, first["student"], _forward(run, first["student"]))
    logits = {"student": student(problem.held_out, "held_out"), **_teacher_logits(run, problem)}
    if "teacher" in logits:
        scores["teacher"] = [score(problem.task.metrics, logits["teacher"], problem.task.held_out.labels)]
    if tfidf is not None:
        held_out = problem.task.held_out
        scores["tfidf"] = [score(problem.task.metrics, tfidf.scores(held_out.texts, held_out.pairs), held_out.labels)]
    systems = timed_systems(run, problem, first, tfidf, scores)
    calibration = calibrate_student(run, problem, student)
    began = read_json(run.folder / "run.json")
    report = Report(
        task=problem.task.name,
        metric=problem.task.metric,
        metrics=list(problem.task.metrics),
        majority=majority_of(problem),
        seeds=run.seeds,
        hardware=hardware(),
        systems=systems,
        search=_search_facts(run, architecture),
        ratios=compute_ratios(systems),
        command=began["command"],
        commit=began.get("commit"),  # a run of an earlier version did not note it
        notes=problem.notes,
        max_steps=run.config.max_steps,
        held_out=problem.task.scored,
        has_gold=problem.task.has_gold,
        price_per_hour=run.config.bench.price_per_hour,
        deployments=deployments_of(run.folder / "student"),
        latency=compare_run(run.config.search, problem.labelled, run.folder, run.progress) or {},
        **evidence_fields(run, problem, logits, calibration),
    )
    card = model_card(report, problem.task.name)
    write_text(run.folder / "student" / "README.md", card)
    write_report(run.folder, report)
    inspect(run.folder, None)
    return write_html(run.folder, report)


def _teacher_logits(run: Run, problem: Problem) -> dict[str, np.ndarray]:
    """Logits (N, C) of the held-out examples under "teacher", where there is one."""
    teacher = problem.teacher
    if teacher is None:
        return {}
    forward: Forward = lambda ids, mask: (teacher.logits(ids, mask),)  # noqa: E731
    return {"teacher": kept_logits(run, forward, problem.teacher_held_out, "teacher-held_out", run.folder / "teacher")}


def _forward(run: Run, trained: Trained) -> Forward:
    """The trained model as a function, loaded once and only when something is left to compute."""
    model = cache(lambda: load_classifier(trained.folder).to(run.accelerator.device))
    return lambda ids, mask: (model()(ids, mask).logits,)


def _student_logits(run: Run, student: Trained, forward: Forward, examples: Examples, split: str) -> np.ndarray:
    """Logits (N, C) of one split, computed once."""
    return kept_logits(run, forward, examples, f"{student.folder.name}-{split}", student.folder)


def calibrate_student(run: Run | EncoderRun, problem: Problem | EncoderProblem, student: Scorer) -> Calibration | None:
    """The temperature that makes the student's probabilities honest, left in its folder, where the task has any."""
    labels = problem.validation.labels
    if not may_calibrate(labels):
        return None
    calibration = calibrate(student(problem.validation, "validation"), labels, "validation")
    calibration.save(run.folder / "student")
    return calibration


def evidence_fields(
    run: Run | EncoderRun, problem: Problem | EncoderProblem, logits: dict[str, np.ndarray], calibration: Calibration | None
) -> dict[str, Any]:
    """Confusion, disagreements and cascade as fields of the report, as far as the task and a teacher allow."""
    task = problem.task
    if task.problem_type != "single_label":
        return {}
    labels_N = task.held_out.labels
    found: dict[str, Any] = {"confusion": confusion(logits, labels_N, task.label_names)}
    if "teacher" not in logits:
        return found
    both = logits["student"], logits["teacher"]
    found["disagreements"] = disagreements(*both, task.held_out, task.label_names, run.config.report_examples)
    found["cascade"] = {**cascade(*both, labels_N, task.metric, calibration), "is_held_out": task.test is None}
    return found


def _tfidf(run: Run, problem: Problem) -> TfidfBaseline | None:
    """The plain baseline, where it was asked for; texts that it finds nothing in are a note, not the end of a run that is trained."""
    if "tfidf" not in run.config.controls:
        return None
    run.progress.stage("fit TF-IDF")
    train, task = problem.task.train, problem.task
    try:
        return tfidf_baseline(
            train.texts, train.labels, pairs=train.pairs, problem_type=task.problem_type, num_labels=task.num_labels, seed=run.config.seed
        )
    except DataError as error:
        problem.notes.append(f"{error}; this report is without that baseline")
        return None


def majority_of(problem: Problem | EncoderProblem) -> dict[str, float]:
    """The constant answer's metrics, and whether one class is much more frequent than the others."""
    task = problem.task
    found = majority_baseline(task.train.labels, task.held_out.labels, task.metrics)
    is_unequal = task.problem_type == "single_label" and is_skewed(task.held_out.labels)
    return {**found, "is_skewed": is_unequal}


def deployments_of(student: Path) -> dict[str, Any]:
    """The choice of runtime and precision that `adasearch quantize` has saved, if it has."""
    found = load_deployment(student)
    return {} if found is None else dataclasses.asdict(found)


def _search_facts(run: Run, architecture: Architecture) -> dict[str, Any]:
    """Time, memory, final entropy and operations of the search, where there was one."""
    facts = run.facts("search")
    history_path = run.folder / "search" / "history.jsonl"
    facts = {key: value for key, value in facts.items() if key != "done"}
    names = architecture.operations
    facts["operations"] = {name: names.count(name) for name in sorted(set(names))}
    facts["collapse_share"] = run.config.search.collapse_share
    facts |= {"depth": architecture.depth, "width": architecture.width, "space": architecture.space}
    if history_path.exists():
        last = read_history(history_path)[-1]
        facts["steps"] = last["step"]
        if last["phase"] == "search" and STRATEGIES[run.config.search.strategy].learns_architecture:  # else gates are open by design
            facts["entropy"] = last["entropy"]
    if (path := run.folder / "search" / "play_off.json").exists():
        facts["finalists"] = len(read_json(path))
    return facts
