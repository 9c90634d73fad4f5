"""The report of a compressed transformer: every model scored on the same examples and timed in one process, in turns."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from adasearch.card import model_card
from adasearch.encoder import axes_of
from adasearch.encoder_layers import EncoderPreTrainedModel
from adasearch.encoder_problem import EncoderProblem
from adasearch.encoder_training import Compressed
from adasearch.evidence import kept_logits
from adasearch.export import export_student
from adasearch.files import read_json, write_json, write_text
from adasearch.honest import calibrate_student, deployments_of, evidence_fields, majority_of
from adasearch.honest_rows import Row, bench_lengths, measure_rows, model_row
from adasearch.inspect_run import inspect
from adasearch.measure import GRAPH_RUNTIMES, hardware, set_threads
from adasearch.metrics import score
from adasearch.references import make_reference, reference_label
from adasearch.report import Report, System
from adasearch.report_files import write_html, write_report
from adasearch.runtimes import choose_runtime
from adasearch.structure_plots import structure_of, write_structures
from adasearch.teacher import Teacher
from adasearch.tokens import Examples
from adasearch.verdict import compute_ratios

if TYPE_CHECKING:
    from adasearch.encoder_run import EncoderRun

DENSE_NAME = "dense, fine-tuned"


def report_encoders(run: EncoderRun, problem: EncoderProblem, trained: Sequence[Compressed]) -> Path:
    """Time everything; write structure.json, report.json, .md and .html, figures/ and the model card.

    Returns the path of report.html.
    """
    rows = {trained[0].recipe.key: [item for item in trained if item.recipe.key == trained[0].recipe.key]}
    for item in trained:
        rows.setdefault(item.recipe.key, [found for found in trained if found.recipe.key == item.recipe.key])
    first = {key: problem.load(items[0].folder).eval() for key, items in rows.items()}
    student = partial(_kept_logits, run, problem, first[trained[0].recipe.key], trained[0].folder)
    if problem.is_asked:  # no one label to be right or wrong about
        evidence, dense_scores = {"majority": {}}, _dense_answers(problem)
    else:
        logits = {"student": student(problem.held_out, "held_out"), "teacher": _dense_logits(run, problem)}
        dense_scores = score(problem.task.metrics, logits["teacher"], problem.task.held_out.labels)
        calibration = calibrate_student(run, problem, student)
        evidence = {"majority": majority_of(problem), **evidence_fields(run, problem, logits, calibration)}
    scores = {"teacher": [dense_scores], **{key: [item.scores for item in items] for key, items in rows.items()}}
    systems = _systems(run, problem, rows, first, scores)
    _write_structures(run, problem, rows, first)
    began = read_json(run.folder / "run.json")
    report = Report(
        task=problem.task.name, metric=problem.task.metric, metrics=list(problem.task.metrics),
        seeds=run.seeds, hardware=hardware(), systems=systems, search={}, ratios=compute_ratios(systems),
        command=began["command"], commit=began["commit"], notes=problem.notes, price_per_hour=run.config.bench.price_per_hour,
        deployments=deployments_of(run.folder / "student"), method=_method(run, problem, trained),
        **evidence,
    )  # fmt: skip
    write_text(run.folder / "student" / "README.md", model_card(report, problem.task.name))
    write_report(run.folder, report)
    inspect(run.folder, None)
    return write_html(run.folder, report)


def _kept_logits(
    run: EncoderRun, problem: EncoderProblem, model: EncoderPreTrainedModel, folder: Path, examples: Examples, split: str
) -> np.ndarray:
    """Logits (N, C) of one split, computed once."""
    forward = Teacher(model.to(run.accelerator.device), problem.tokenizer).logits
    found = kept_logits(run, lambda ids, mask: (forward(ids, mask),), examples, f"{folder.name}-{split}", folder)
    model.cpu()
    return found


def _dense_logits(run: EncoderRun, problem: EncoderProblem) -> np.ndarray:
    """Logits (N, C) of the held-out examples by the dense model."""
    forward = problem.teacher.logits
    return kept_logits(run, lambda ids, mask: (forward(ids, mask),), problem.held_out, "teacher-held_out", problem.teacher_folder)


def _dense_answers(problem: EncoderProblem) -> dict[str, float]:
    """The dense model's scores on the held-out questions, computed once in a run."""
    path = problem.cache / "scores-teacher.json"
    if not path.exists():
        write_json(path, problem.scores(problem.teacher.model.to(problem.accelerator.device), problem.held_out))
    return read_json(path)


def _systems(
    run: EncoderRun, problem: EncoderProblem, rows: dict[str, list[Compressed]], first: dict[str, EncoderPreTrainedModel],
    scores: dict[str, list[dict[str, float]]],
) -> list[System]:  # fmt: skip
    """The table: dense, what was trained here, references."""
    bench, lengths = run.config.bench, bench_lengths(run.config.bench, problem.longest)
    length = lengths[0]
    set_threads(bench.threads)
    references = bench.references if bench.reference else []
    run.progress.stage("export", len(rows) + 1 + len(references))
    # the teacher's and the references' graphs are made for the clock only and stay in the cache
    graph = problem.cache / "teacher" / "model.onnx"
    took = problem.teacher_training
    dense = problem.teacher.model.cpu()
    made: dict[str, Row] = {"teacher": model_row(run, DENSE_NAME, "teacher", dense, graph, problem.teacher_folder, length)}
    made["teacher"].facts |= {"encoder_sparsity": 0.0, "train_seconds": took.get("seconds"), "train_cpu_seconds": took.get("cpu_seconds")}
    for key, items in rows.items():
        folder, recipe = items[0].folder, items[0].recipe
        made[key] = model_row(run, recipe.name, recipe.kind, first[key], folder / "onnx" / "model.onnx", folder, length)
        made[key].facts["encoder_sparsity"] = sparsity_of(problem, first[key])
        for name in ("train_seconds", "train_cpu_seconds"):
            seconds = [item.facts.get(name) for item in items]
            made[key].facts[name] = None if None in seconds else float(np.mean(seconds))
        run.progress.step(len(made))
    if choose_runtime(bench.runtime) in GRAPH_RUNTIMES:
        export_student(run.folder / "student")
    for name in references:
        graph = problem.cache / ("reference" if name == "bert_base" else name) / "model.onnx"
        made[name] = model_row(run, reference_label(name), "reference", make_reference(name), graph, None, length)
        run.progress.step(len(made))
    return measure_rows(run, problem.held_out, lengths, made, scores, problem.task.metric)


def sparsity_of(problem: EncoderProblem, model: EncoderPreTrainedModel) -> float:
    """Share of the unpruned encoder's prunable parameters (weights and biases of its layers' linear maps) that is gone."""
    whole, left = (float(axes.expected_params(None, "prunable")) for axes in (problem.whole_axes, axes_of(model)))
    return 1 - left / whole


def _write_structures(
    run: EncoderRun, problem: EncoderProblem, rows: dict[str, list[Compressed]], first: dict[str, EncoderPreTrainedModel]
) -> None:
    """What is left in every trained model, each seed's where there are several."""
    found = []
    for key, items in rows.items():
        for item in items:
            model = first[key] if item is items[0] else problem.load(item.folder)
            name = item.recipe.name if len(items) == 1 else f"{item.recipe.name}, seed {item.seed}"
            found.append(structure_of(name, item.recipe.kind, model.config, problem.whole_config, sparsity_of(problem, model)))
    write_structures(run.folder, found)


def _method(run: EncoderRun, problem: EncoderProblem, trained: Sequence[Compressed]) -> dict[str, Any]:
    """What the report says of the method."""
    about, tag = run.about, "question-answering" if problem.is_asked else "text-classification"
    return {"name": about.name, "paper": about.paper, "summary": about.summary, "facts": about.facts(trained), "pipeline_tag": tag}
