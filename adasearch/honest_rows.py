"""The rows of the honest table: what each system costs, all of them timed in turns in one process and one runtime."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from adasearch.baselines import TfidfBaseline
from adasearch.bench_config import BenchConfig
from adasearch.cold import ColdStart, Deployed, cold_fields, cold_starts
from adasearch.export import export_student
from adasearch.files import read_json
from adasearch.measure import (
    GRAPH_RUNTIMES,
    Factory,
    Timing,
    count_macs,
    count_params,
    ready_runtime,
    set_threads,
    size_bytes,
    time_systems,
)
from adasearch.prepare import Problem
from adasearch.references import make_reference, reference_label
from adasearch.report import System
from adasearch.runtimes import Runtime, choose_runtime, load_classifier
from adasearch.streams import StreamTiming, time_streams, tokenizer_rates
from adasearch.systems import Trained
from adasearch.tokens import Examples

if TYPE_CHECKING:
    from adasearch.encoder_run import EncoderRun
    from adasearch.pipeline import Run

NAMES = {
    "teacher": "teacher",
    "student": "student (searched)",
    "student_no_kd": "student, no teacher",
    "random_architecture": "random architecture",
    "bag_of_embeddings": "bag of embeddings",
    "tfidf": "TF-IDF + logistic regression",
}
TIMED_FIELDS = ("runtime", "precision", "threads", "batch_size", "seq_len", "latency_ms_p50", "latency_ms_p90", "texts_per_s")


@dataclass
class Row:
    """A system on its way into the table: what is called, what is known before it is timed, what a process would load."""

    name: str
    kind: str
    call: Runtime | Factory | None
    facts: dict[str, Any] = field(default_factory=dict)
    deployed: Deployed | None = None
    lengths: np.ndarray | None = None


def timed_systems(
    run: Run, problem: Problem, first: Mapping[str, Trained], tfidf: TfidfBaseline | None, scores: Mapping[str, list[dict[str, float]]]
) -> list[System]:
    """One row a system, in the order of the table: the first seed's model stands for the shape that is timed.

    ``scores`` are the metrics of every seed by kind. Shapes longer than the task's texts may be are cut to that.
    """
    set_threads(run.config.bench.threads)
    lengths = bench_lengths(run.config.bench, run.config.max_seq_length)
    rows = _rows(run, problem, first, tfidf, lengths[0])
    own = {name: scores.get(row.kind, []) for name, row in rows.items()}
    return measure_rows(run, problem.held_out, lengths, rows, own, problem.task.metric, _reading(run, problem, rows))


def _reading(run: Run, problem: Problem, rows: Mapping[str, Row]) -> dict[str, float]:
    """Texts a second of the rows' tokenizers; of those that read raw texts none."""
    teacher = problem.tokenizer if problem.teacher is None else problem.teacher.tokenizer
    own = {name: teacher if row.kind in ("teacher", "reference") else problem.tokenizer for name, row in rows.items() if isinstance(row.call, Runtime)}
    count = run.config.bench.stream_texts
    return tokenizer_rates(own, problem.task.held_out, run.config.max_seq_length, texts=count) if count else {}


def bench_lengths(bench: BenchConfig, longest: int) -> list[int]:
    """Lengths timed, in word pieces: those of the settings, cut to the ``longest`` that a text of the task may have."""
    return list(dict.fromkeys(min(length, longest) for length in bench.seq_lengths))


def measure_rows(
    run: Run | EncoderRun, held_out: Examples, lengths: Sequence[int], rows: dict[str, Row],
    scores: Mapping[str, list[dict[str, float]]], metric: str, reading: Mapping[str, float],
) -> list[System]:
    """Time what the rows hold at those lengths, in turns.

    ``scores`` are the metrics of every seed by the rows' keys, ``metric`` the one that counts, ``reading`` texts a second of the
    rows' tokenizers, where they are known.
    """
    bench = run.config.bench
    shapes = [(batch, length) for length in lengths for batch in bench.batch_sizes]
    calls = {name: row.call for name, row in rows.items()}
    timings = time_systems(calls, shapes, repeats=bench.repeats, warmup=bench.warmup, threads=bench.threads, progress=run.progress)
    streams: dict[str, list[StreamTiming]] = {}
    if bench.stream_texts:
        own = held_out.tokens.lengths
        theirs = {name: row.lengths for name, row in rows.items() if row.lengths is not None}
        streams = time_streams(
            calls, own, bench.batch_sizes, texts=bench.stream_texts, threads=bench.threads, progress=run.progress, own=theirs
        )
    starts: dict[str, ColdStart | None] = {}
    if bench.cold_starts:
        calls.clear()  # a cold start is not measured beside many loaded models
        for row in rows.values():
            row.call = None
        deployed = {name: row.deployed for name, row in rows.items() if row.deployed is not None}
        first_shapes = [(batch, lengths[0]) for batch in sorted(bench.batch_sizes)]
        starts = cold_starts(deployed, first_shapes, starts=bench.cold_starts, progress=run.progress)
    return [
        _system(row, timings[name], streams.get(name, []), reading.get(name), starts.get(name), scores.get(name, []), metric)
        for name, row in rows.items()
    ]


def model_row(
    run: Run | EncoderRun, name: str, kind: str, model: Any, graph: Path, folder: Path | None, length: int, note: str = "",
    precision: str = "fp32",
) -> Row:  # fmt: skip
    """A model ready in the bench's runtime, exported to ``graph`` first where that reads one, with parameters, MACs at
    ``length`` and what ``folder`` takes on disk (without one: 4 bytes a parameter). ``precision`` is that of the ``graph``."""
    bench, runtime = run.config.bench, choose_runtime(run.config.bench.runtime)
    ready = ready_runtime(model, runtime, bench.threads, graph, precision=precision)
    params, embedding = count_params(model)
    on_disk = size_bytes(folder, runtime, graph) if folder is not None and folder.exists() else 4 * params
    facts = {
        "params": params, "params_embedding": embedding, "macs": count_macs(model, length), "size_bytes": on_disk, "note": note,
    }  # fmt: skip
    deployed = None
    if folder is not None and folder.exists():
        deployed = Deployed(folder, runtime, ready.precision, bench.threads, ready.vocab_size, graph if graph.is_file() else None)
    return Row(name, kind, ready, facts, deployed)


def _rows(
    run: Run, problem: Problem, first: Mapping[str, Trained], tfidf: TfidfBaseline | None, length: int
) -> dict[str, Row]:
    """Every system loaded in the runtime, exported first where that reads a graph."""
    bench, runtime = run.config.bench, choose_runtime(run.config.bench.runtime)
    references = bench.references if bench.reference else []
    run.progress.stage("export", len(first) + 1 + len(references))
    rows: dict[str, Row] = {}

    def add(key: str, name: str, kind: str, model: Any, graph: Path, folder: Path | None, note: str = "") -> None:
        rows[key] = model_row(run, name, kind, model, graph, folder, length, note)
        run.progress.step(len(rows))

    # the teacher's and the references' graphs are made for the clock only and stay in the cache
    if problem.teacher is not None:
        graph = run.folder / "cache" / "teacher" / "model.onnx"
        add("teacher", NAMES["teacher"], "teacher", problem.teacher.model.cpu(), graph, run.folder / "teacher")
    for kind in [kind for kind in NAMES if kind in first]:
        folder = first[kind].folder
        depth = first[kind].architecture.depth
        note = f"{depth} cell{'s' * (depth != 1)}"
        name = "student, no soft labels" if kind == "student_no_kd" and problem.teacher is None else NAMES[kind]
        add(kind, name, kind, load_classifier(folder), folder / "onnx" / "model.onnx", folder, note)
        rows[kind].facts |= training_times([folder.with_name(f"{kind}-{seed}") for seed in run.seeds])
    target = run.config.search
    needed = {runtime} | ({choose_runtime(target.latency_runtime)} if target.latency_target_ms is not None else set())
    if "student" in first and needed & set(GRAPH_RUNTIMES):
        export_student(run.folder / "student")
    if tfidf is not None:
        facts = {"params": tfidf.params, "size_bytes": tfidf.size_bytes}
        factory = tfidf.factory(problem.task.held_out.texts, problem.task.held_out.pairs)
        rows["tfidf"] = Row(NAMES["tfidf"], "tfidf", factory, facts)
    for name in references:
        graph = run.folder / "cache" / ("reference" if name == "bert_base" else name) / "model.onnx"
        add(name, reference_label(name), "reference", make_reference(name), graph, None)
    for row in rows.values():
        if row.kind in ("teacher", "reference"):
            row.lengths = problem.teacher_held_out.tokens.lengths
    return rows


def training_times(folders: Sequence[Path]) -> dict[str, float | None]:
    """``train_seconds`` and ``train_cpu_seconds``: the means of what the models' ``training.json`` say; None where one does not know."""
    known = [read_json(path) if (path := folder / "training.json").is_file() else {} for folder in folders]
    return {f"train_{name}": mean_if_known([took.get(name) for took in known]) for name in ("seconds", "cpu_seconds")}


def mean_if_known(values: Sequence[float | None]) -> float | None:
    """Their mean; None where one is missing or there are none."""
    return float(np.mean(values)) if values and None not in values else None


def _system(
    row: Row, timings: list[Timing], streams: list[StreamTiming], reading: float | None, start: ColdStart | None,
    scores: list[dict[str, float]], metric: str,
) -> System:  # fmt: skip
    spread = {
        name: {"mean": float(np.mean([s[name] for s in scores])), "sd": _sd([s[name] for s in scores])}
        for name in (scores[0] if scores else {})
    }
    return System(
        name=row.name,
        kind=row.kind,
        score_mean=spread[metric]["mean"] if scores else None,
        score_sd=spread[metric]["sd"] if scores else None,
        scores=[s[metric] for s in scores],
        metrics=spread,
        timings=[dataclasses.asdict(timing) for timing in timings],
        streams=[dataclasses.asdict(stream) for stream in streams],
        task_texts_per_s=max((stream.texts_per_s for stream in streams), default=None),
        tokenizer_texts_per_s=reading,
        **cold_fields(start),
        **{name: getattr(timings[0], name) for name in TIMED_FIELDS},
        **row.facts,
    )


def _sd(values: list[float]) -> float | None:
    """Sample standard deviation; None of a single value."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else None
