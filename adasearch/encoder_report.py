"""The report of a compressed transformer: every model scored on the same examples and timed in one process, in turns."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from transformers import PreTrainedModel

from adasearch.accelerator import keeping_threads
from adasearch.card import model_card
from adasearch.deploy import Deployment, load_deployment, save_deployment
from adasearch.encoder_layers import EncoderPreTrainedModel
from adasearch.encoder_problem import EncoderProblem
from adasearch.encoder_training import Compressed, is_part, is_uncut
from adasearch.evidence import kept_logits
from adasearch.export import export_student
from adasearch.files import read_json, write_json, write_text
from adasearch.graph_bench import Graph, time_elsewhere
from adasearch.graph_runtimes import ONNX_FILES
from adasearch.honest import calibrate_student, deployments_of, evidence_fields, majority_of
from adasearch.honest_rows import Row, bench_lengths, mean_if_known, measure_rows, model_row
from adasearch.inspect_run import inspect
from adasearch.measure import GRAPH_RUNTIMES, count_macs, count_params, hardware, set_threads, size_bytes
from adasearch.quantize_aware import stacked_layers
from adasearch.references import make_reference, reference_label
from adasearch.report import Report, System
from adasearch.report_files import write_html, write_report
from adasearch.runtimes import choose_runtime, load_runtime
from adasearch.sparse_model import sparsity_of
from adasearch.sparsity_plots import write_zeros
from adasearch.streams import tokenizer_rates
from adasearch.structure_plots import structure_of, write_structures
from adasearch.teacher import Teacher
from adasearch.tokens import Examples
from adasearch.verdict import compute_ratios

if TYPE_CHECKING:
    from adasearch.encoder_run import EncoderRun

DENSE_NAME = "dense, fine-tuned"
AS_FLOAT = "timed in float32"  # a model with an int8 graph in a runtime that reads none


@keeping_threads()
def report_encoders(run: EncoderRun, problem: EncoderProblem, trained: Sequence[Compressed]) -> Path:
    """Time everything; write structure.json, zeros.json, report.json, .md and .html, figures/ and the model card.

    Returns the path of report.html.
    """
    rows: dict[str, list[Compressed]] = {}
    for item in trained:
        rows.setdefault(item.recipe.key, []).append(item)
    main, first = trained[0], {key: problem.load(items[0].folder) for key, items in rows.items()}
    student = partial(_kept_logits, run, problem, main)
    if problem.is_asked:  # no one label to be right or wrong about
        evidence, dense_scores = {"majority": {}}, _dense_answers(problem)
    else:
        logits = {"student": student(problem.held_out, "held_out"), "teacher": _dense_logits(run, problem)}
        dense_scores = problem.scores_of(logits["teacher"], problem.held_out)
        calibration = calibrate_student(run, problem, student)
        evidence = {"majority": majority_of(problem), **evidence_fields(run, problem, logits, calibration)}
    scores = {"teacher": [dense_scores], **{key: [item.scores for item in items] for key, items in rows.items()}}
    systems = _systems(run, problem, rows, first, scores)
    _write_structures(run, problem, rows, first)
    _deploy(run, problem, main, next(system for system in systems if system.kind == "student"))
    began = read_json(run.folder / "run.json")
    report = Report(
        task=problem.task.name, metric=problem.task.metric, metrics=list(problem.task.metrics),
        seeds=run.seeds, hardware=hardware(), systems=systems, search={}, ratios=compute_ratios(systems),
        command=began["command"], commit=began["commit"], notes=[*problem.notes, *run.about.notes(trained)],
        price_per_hour=run.config.bench.price_per_hour,
        deployments=deployments_of(run.folder / "student"), method=_method(run, problem, trained),
        max_steps=run.config.max_steps, held_out=problem.task.scored, has_gold=problem.task.has_gold,
        **evidence,
    )  # fmt: skip
    write_text(run.folder / "student" / "README.md", model_card(report, problem.task.name))
    write_report(run.folder, report)
    inspect(run.folder, None)
    return write_html(run.folder, report)


def _kept_logits(run: EncoderRun, problem: EncoderProblem, main: Compressed, examples: Examples, split: str) -> np.ndarray:
    """The student's logits (N, C) of one split, computed once."""
    model = cache(lambda: Teacher(main.recipe.form.answering(problem, main.folder).to(run.accelerator.device), problem.tokenizer))
    return kept_logits(run, lambda ids, mask: (model().logits(ids, mask),), examples, f"{main.folder.name}-{split}", main.folder)


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
    run: EncoderRun, problem: EncoderProblem, rows: dict[str, list[Compressed]], first: dict[str, PreTrainedModel],
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
    graphs = {"teacher": Graph(graph, "fp32")}
    for key, items in rows.items():
        made[key], graphs[key] = _row(run, problem, items, first[key], length)
        run.progress.step(len(made))
    student = next(iter(rows.values()))[0].recipe.form
    if choose_runtime(bench.runtime) in GRAPH_RUNTIMES and not (run.folder / "student" / "onnx" / ONNX_FILES[student.precision]).is_file():
        export_student(run.folder / "student")
    for name in references:
        graph = problem.cache / ("reference" if name == "bert_base" else name) / "model.onnx"
        made[name] = model_row(run, reference_label(name), "reference", make_reference(name), graph, None, length)
        run.progress.step(len(made))
    reading: dict[str, float] = {}
    if bench.stream_texts and not problem.is_asked:  # a question's windows are cut another way
        reading = tokenizer_rates(dict.fromkeys(made, problem.tokenizer), problem.task.held_out, problem.longest, texts=bench.stream_texts)
    systems = measure_rows(run, problem.held_out, lengths, made, scores, problem.task.metric, reading)
    if not run.about.every_runtime:
        return systems
    elsewhere = time_elsewhere(graphs, dense.config.vocab_size, bench, lengths, run.progress)
    return [dataclasses.replace(system, runtimes=elsewhere.get(key, [])) for key, system in zip(made, systems, strict=True)]


def _row(
    run: EncoderRun, problem: EncoderProblem, items: Sequence[Compressed], model: PreTrainedModel, length: int
) -> tuple[Row, Graph]:
    """One recipe's row, of the graph in the form's precision where the runtime reads one, and that graph.

    The first seed's model is what is timed. Where every seed was cut to a shape of its own, a note says so, and size and cost are
    means over the seeds, as the scores are.
    """
    folder, recipe = items[0].folder, items[0].recipe
    graphs = {precision: folder / "onnx" / name for precision, name in ONNX_FILES.items()}
    own = recipe.form.precision if graphs[recipe.form.precision].is_file() else "fp32"
    timed = own if choose_runtime(run.config.bench.runtime) in GRAPH_RUNTIMES else "fp32"
    note = AS_FLOAT if timed != recipe.form.precision else ""
    row = model_row(run, recipe.name, recipe.kind, model, graphs[timed], folder, length, note, timed)
    facts = [item.facts for item in items]
    row.facts |= {"encoder_sparsity": recipe.form.sparsity(problem, model), **recipe.form.columns(facts)}
    for name in ("train_seconds", "train_cpu_seconds"):
        row.facts[name] = mean_if_known([fact.get(name) for fact in facts])
    models = [model, *(problem.load(item.folder) for item in items[1:])]
    if any(_shape(one) != _shape(model) for one in models[1:]):
        shape_note = f"timed: seed {items[0].seed}'s model; shapes differ by seed"
        row.facts |= {**_mean_costs(models, row.facts["size_bytes"], length), "note": "; ".join(filter(None, (note, shape_note)))}
        row.facts["encoder_sparsity"] = float(np.mean([recipe.form.sparsity(problem, one) for one in models]))
    return row, Graph(graphs[own], own, has_zeros=recipe.form.is_sparse)


def _shape(model: PreTrainedModel) -> tuple[Any, ...]:
    """What is left of an encoder; of a model of another class nothing that differs."""
    return tuple(getattr(model.config, name, None) for name in ("hidden_size", "heads", "neurons"))


def _mean_costs(models: Sequence[PreTrainedModel], size: int, length: int) -> dict[str, int]:
    """Means over the seeds' models. Only the first is exported, to ``size`` bytes: the others have four a parameter more or less."""
    params, embedding = zip(*(count_params(model) for model in models))
    mean_params = round(np.mean(params))
    return {
        "params": mean_params, "params_embedding": round(np.mean(embedding)), "size_bytes": size + 4 * (mean_params - params[0]),
        "macs": round(np.mean([count_macs(model, length) for model in models])),
    }  # fmt: skip


def _write_structures(
    run: EncoderRun, problem: EncoderProblem, rows: dict[str, list[Compressed]], first: dict[str, PreTrainedModel]
) -> None:
    """What is left in every trained model that was cut, each seed's where there are several; of sparse ones the zeros in their layers."""
    structures, zeros = [], {}
    for key, items in rows.items():
        form = items[0].recipe.form
        if form.is_sparse:
            zeros[items[0].recipe.name] = sparsity_of(first[key], stacked_layers(first[key]))
        for item in items:
            model = first[key] if item is items[0] else problem.load(item.folder)
            if isinstance(model, EncoderPreTrainedModel) and is_part(problem, model) and not is_uncut(problem, model):
                name = item.recipe.name if len(items) == 1 else f"{item.recipe.name}, seed {item.seed}"
                share = form.sparsity(problem, model)
                structures.append(structure_of(name, item.recipe.kind, model.config, problem.whole_config, share))
    if structures:
        write_structures(run.folder, structures)
    if zeros:
        write_zeros(run.folder, zeros)


def _deploy(run: EncoderRun, problem: EncoderProblem, main: Compressed, student: System) -> None:
    """Tell those that serve ``student/`` to take its graph, where that is not the one they would take by themselves.

    So it is whatever the table is timed in; in torch the graph is timed elsewhere. What `adasearch quantize` has chosen stays. Scores
    are of the validation examples, as those that it notes.
    """
    folder, precision, metric = run.folder / "student", main.recipe.form.precision, problem.task.metric
    chosen = load_deployment(folder)
    timed = [dataclasses.asdict(student), *(row for row in student.runtimes if "error" not in row)]
    times = next((row for row in timed if row["precision"] == precision), None)
    if precision == "fp32" or times is None or (chosen is not None and chosen.tried):
        return
    runtime = load_runtime(times["runtime"], folder, times["threads"], precision)
    score = problem.scores_of(problem.graph_logits(runtime, problem.validation), problem.validation)[metric]
    score_fp32 = problem.scores(problem.load(folder).to(run.accelerator.device), problem.validation)[metric]
    deployment = Deployment(
        **{name: times[name] for name in ("runtime", "precision", "threads", "batch_size", "seq_len", "latency_ms_p50", "texts_per_s")},
        size_bytes=size_bytes(folder, times["runtime"], folder / "onnx" / ONNX_FILES[precision]), metric=metric,
        score=score, score_fp32=score_fp32, max_drop=None, hardware=hardware(),
    )  # fmt: skip
    save_deployment(deployment, folder)


def _method(run: EncoderRun, problem: EncoderProblem, trained: Sequence[Compressed]) -> dict[str, Any]:
    """What the report says of the method."""
    about, tag = run.about, "question-answering" if problem.is_asked else "text-classification"
    return {
        "name": about.name, "paper": about.paper, "summary": about.summary, "facts": about.facts(trained), "pipeline_tag": tag,
        "tags": list(about.tags), "files": about.files,
    }  # fmt: skip
