"""The honest table of a run: every system scored on the same examples and timed in one process, one runtime, in turns."""

from __future__ import annotations

import dataclasses
import json
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from adasearch.architecture import Architecture
from adasearch.baselines import TfidfBaseline, tfidf_baseline
from adasearch.card import model_card
from adasearch.export import export_student
from adasearch.files import read_json, write_json, write_text
from adasearch.inspect_run import inspect
from adasearch.markdown import write_report
from adasearch.measure import (
    Timing,
    bert_base_shape,
    count_macs,
    count_params,
    hardware,
    ready_runtime,
    set_threads,
    size_bytes,
    time_systems,
)
from adasearch.metrics import is_skewed, majority_baseline, score
from adasearch.outputs import outputs_of
from adasearch.prepare import Problem
from adasearch.report import Report, System
from adasearch.runtimes import choose_runtime, load_classifier
from adasearch.systems import Trained
from adasearch.verdict import compute_ratios

if TYPE_CHECKING:
    from adasearch.pipeline import Run

NAMES = {
    "teacher": "teacher",
    "student": "student (searched)",
    "student_no_kd": "student, no teacher",
    "random_architecture": "random architecture",
    "bag_of_embeddings": "bag of embeddings",
    "tfidf": "TF-IDF + logistic regression",
    "reference": "BERT-base shape (random weights, time only)",
}


def measure_and_report(run: Run, problem: Problem, architecture: Architecture, trained: list[Trained]) -> Path:
    """Score what is not scored yet, time everything, write report.json, report.md, figures/ and the model card."""
    scores = {kind: [t.scores for t in trained if t.kind == kind] for kind in dict.fromkeys(t.kind for t in trained)}
    tfidf = _tfidf(run, problem)
    if problem.teacher is not None:
        scores["teacher"] = [_teacher_scores(run, problem)]
    if tfidf is not None:
        held_out = problem.task.held_out
        scores["tfidf"] = [score(problem.task.metrics, tfidf.scores(held_out.texts, held_out.pairs), held_out.labels)]
    first = {t.kind: t for t in reversed(trained)}
    systems = _measure(run, problem, first, tfidf, scores)
    began = read_json(run.folder / "run.json")
    report = Report(
        task=problem.task.name,
        metric=problem.task.metric,
        metrics=list(problem.task.metrics),
        majority=_majority(problem),
        seeds=run.seeds,
        hardware=hardware(),
        systems=systems,
        search=_search_facts(run, architecture),
        ratios=compute_ratios(systems),
        command=began["command"],
        commit=began["commit"],
        notes=problem.notes,
    )
    card = model_card(report, problem.task.name)
    write_text(run.folder / "student" / "README.md", card)
    path = write_report(run.folder, report)
    inspect(run.folder, None)
    return path


def _teacher_scores(run: Run, problem: Problem) -> dict[str, float]:
    path = run.folder / "cache" / "teacher_scores.json"
    if not path.exists():
        run.progress.stage("score the teacher")
        teacher = problem.teacher
        (logits,) = outputs_of(lambda ids, mask: (teacher.logits(ids, mask),), problem.held_out, run.accelerator)
        write_json(path, score(problem.task.metrics, logits, problem.held_out.labels))
    return read_json(path)


def _tfidf(run: Run, problem: Problem) -> TfidfBaseline | None:
    if "tfidf" not in run.config.controls:
        return None
    run.progress.stage("fit TF-IDF")
    train, task = problem.task.train, problem.task
    return tfidf_baseline(
        train.texts, train.labels, pairs=train.pairs, problem_type=task.problem_type, num_labels=task.num_labels, seed=run.config.seed
    )


def _majority(problem: Problem) -> dict[str, float]:
    task = problem.task
    found = majority_baseline(task.train.labels, task.held_out.labels, task.metrics)
    is_unequal = task.problem_type == "single_label" and is_skewed(task.held_out.labels)
    return {**found, "is_skewed": is_unequal}


def _measure(
    run: Run,
    problem: Problem,
    first: dict[str, Trained],
    tfidf: TfidfBaseline | None,
    scores: dict[str, list[dict[str, float]]],
) -> list[System]:
    """One row a system: the first seed's model stands for the shape that is timed."""
    bench = run.config.bench
    runtime = choose_runtime(bench.runtime)
    set_threads(bench.threads)
    lengths = list(dict.fromkeys(min(length, run.config.max_seq_length) for length in bench.seq_lengths))
    shapes = [(batch, length) for length in lengths for batch in bench.batch_sizes]
    rows: dict[str, dict[str, Any]] = {}
    ready: dict[str, Any] = {}
    run.progress.stage("export", len(first) + 2)
    # the teacher's and the reference's graphs are made for the clock only and stay in the cache
    for kind, folder in (("teacher", run.folder / "teacher"), *((kind, t.folder) for kind, t in first.items()), ("reference", None)):
        if (kind == "teacher" and problem.teacher is None) or (kind == "reference" and not bench.reference):
            continue
        if kind == "teacher":
            model = problem.teacher.model.cpu()
        else:
            model = bert_base_shape() if folder is None else load_classifier(folder)
        graph = (run.folder / "cache" / kind if kind in ("teacher", "reference") else folder / "onnx") / "model.onnx"
        ready[kind] = ready_runtime(model, runtime, bench.threads, graph)
        params, embedding = count_params(model)
        on_disk = size_bytes(folder, runtime, graph) if folder is not None and folder.exists() else 4 * params
        rows[kind] = {
            "params": params,
            "params_embedding": embedding,
            "macs": count_macs(model, lengths[0]),
            "size_bytes": on_disk,
            "note": "" if folder is None or kind == "teacher" else f"{first[kind].architecture.depth} cells",
        }
        run.progress.step(len(ready))
    if "student" in first and runtime == "onnxruntime":
        export_student(run.folder / "student")
    if tfidf is not None:
        ready["tfidf"] = tfidf.factory(problem.task.held_out.texts, problem.task.held_out.pairs)
        rows["tfidf"] = {"params": tfidf.params, "params_embedding": None, "macs": None, "size_bytes": tfidf.size_bytes, "note": ""}
    timings = time_systems(
        ready, shapes, repeats=bench.repeats, warmup=bench.warmup, threads=bench.threads, progress=run.progress
    )
    order = [kind for kind in NAMES if kind in rows]
    return [_system(kind, rows[kind], timings[kind], scores.get(kind, []), problem.task.metric) for kind in order]


def _system(kind: str, row: dict[str, Any], timings: list[Timing], scores: list[dict[str, float]], metric: str) -> System:
    spread = {
        name: {"mean": float(np.mean([s[name] for s in scores])), "sd": _sd([s[name] for s in scores])}
        for name in (scores[0] if scores else {})
    }
    main = timings[0]
    return System(
        name=NAMES[kind],
        kind=kind,
        score_mean=spread[metric]["mean"] if scores else None,
        score_sd=spread[metric]["sd"] if scores else None,
        scores=[s[metric] for s in scores],
        metrics=spread,
        runtime=main.runtime,
        precision=main.precision,
        threads=main.threads,
        batch_size=main.batch_size,
        seq_len=main.seq_len,
        latency_ms_p50=main.latency_ms_p50,
        latency_ms_p90=main.latency_ms_p90,
        texts_per_s=main.texts_per_s,
        timings=[dataclasses.asdict(timing) for timing in timings],
        **row,
    )


def _sd(values: list[float]) -> float | None:
    """Sample standard deviation; None of a single value."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else None


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
        lines = history_path.read_text(encoding="utf-8").splitlines()
        last = json.loads(lines[-1])
        facts |= {"steps": last["step"], "entropy": last["entropy"]}
    return facts


def commit() -> str | None:
    """Commit of the checkout the package runs from; None where it is no checkout."""
    here = Path(__file__).resolve().parent
    try:
        found = subprocess.run(["git", "-C", str(here), "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return found.stdout.strip()
