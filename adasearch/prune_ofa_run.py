"""Prune Once for All on a task: a sparse model, fine-tuned under lock, trained on in int8, stored, exported, scored, timed.

    sparse model + task + dense teacher -> lock -> int8 -> sparse file, ONNX (QDQ) -> scores, sizes, speed, report

The order is fixed, since no other makes sense: a mask chosen after quantising would drop values that the scales were
learned for, and a quantised model has nothing left to learn its weights with. Every stage is kept; the same command goes on.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from adasearch.encoder_problem import EncoderProblem
from adasearch.encoder_run import About, EncoderRun, open_encoders
from adasearch.encoder_run import run_folder as folder_of
from adasearch.export import check_onnx, export_onnx
from adasearch.files import fingerprint, read_json, write_folder, write_json, write_text
from adasearch.graph_runtimes import ONNX_FILES
from adasearch.honest_rows import bench_lengths
from adasearch.measure import count_params, hardware
from adasearch.progress import Progress
from adasearch.prune_ofa_bench import graph_of, time_graphs
from adasearch.prune_ofa_report import model_card, report_text
from adasearch.prune_ofa_systems import Made, Workshop, check_source
from adasearch.prune_ofa_task_config import PruneOfaTaskConfig
from adasearch.run_files import note_stage
from adasearch.trackers import stop_trackers

ABOUT = About(
    "Prune Once for All", "prune-ofa", "[Zafrir et al. 2021](https://arxiv.org/abs/2111.05754)",
    "A language model that was pruned once is fine-tuned with its zeros locked, then trained on in int8.", lambda trained: {},
)  # fmt: skip
FREE = ("baselines", "direct", "export")  # they add rows and graphs
NAMES = {
    "dense": "dense (teacher)", "dense_int8": "dense int8, calibrated", "direct": "pruned on this task alone", "sparse": "sparse",
    "sparse_int8": "sparse int8",
}  # fmt: skip


def prune_once_for_all(config: PruneOfaTaskConfig, progress: Progress | None = None) -> dict[str, Any]:
    """Do all of it for one task; returns the report that ``report.json`` holds. ``student/`` is the first seed's sparse int8 model.

    Raises ``ConfigError``, ``DataError`` or ``ModelError`` before any training where request, data or models are wrong: a
    sparse model of another vocabulary, without zeros, or one that is quantised already.
    """
    run, problem = open_encoders(config, ABOUT, progress, FREE)
    check_source(config, problem)
    workshop = Workshop(config, problem, run.folder)
    workshop.check()
    made = [workshop.sparse(seed) for seed in run.seeds]
    made += [workshop.sparse_int8(seed) for seed in run.seeds]
    if config.direct:
        made += [workshop.direct(one.seed, round(one.facts["sparsity"], 3)) for one in made if one.kind == "sparse"]
    if config.baselines:
        made.append(workshop.dense_int8())
    _hand_over(run, next(one for one in made if one.kind == "sparse_int8"))
    note_stage(run.folder, "train")
    stop_trackers(run.accelerator)
    report = _report(run, problem, workshop, made)
    write_json(run.folder / "report.json", report)
    write_text(run.folder / "report.md", report_text(report))
    write_text(run.folder / "student" / "README.md", model_card(report))
    note_stage(run.folder, "report")
    return report


def run_folder(config: PruneOfaTaskConfig) -> Path:
    """Where a run lies."""
    return folder_of(config, ABOUT.slug)


def _hand_over(run: EncoderRun, main: Made) -> None:
    target = run.folder / "student"
    if not (target / "config.json").exists():
        write_folder(target, lambda partial: shutil.copytree(main.folder, partial, dirs_exist_ok=True))


def _report(run: EncoderRun, problem: EncoderProblem, workshop: Workshop, made: list[Made]) -> dict[str, Any]:
    """Scores of all seeds, sizes and speeds of the first one's files, as plain data."""
    kinds = {kind: [one for one in made if one.kind == kind] for kind in NAMES if any(one.kind == kind for one in made)}
    dense = _dense_scores(problem)
    params, table = count_params(problem.teacher.model)
    rows: list[dict[str, Any]] = [{
        "kind": "dense", "name": NAMES["dense"], "scores": [dense], **_spread([dense[problem.task.metric]]),
        "params": params, "params_table": table,
    }]  # fmt: skip
    for kind, ones in kinds.items():
        facts = [one.facts for one in ones]
        rows.append({
            "kind": kind, "name": NAMES[kind], "scores": [one.scores for one in ones], "seeds": [one.seed for one in ones],
            **_spread([one.scores[problem.task.metric] for one in ones]),
            "sparsity": facts[0].get("sparsity", 0.0), "size": facts[0]["size"],
            "agreement": [fact["agreement"] for fact in facts if "agreement" in fact],
            "train_seconds": [fact["train_seconds"] for fact in facts if "train_seconds" in fact],
        })  # fmt: skip
    began = read_json(run.folder / "run.json")
    return {
        "method": ABOUT.name, "task": problem.task.name, "metric": problem.task.metric, "seeds": run.seeds, "rows": rows,
        "timings": _timings(run, problem, kinds) if workshop.has_graphs else [], "notes": problem.notes, "hardware": hardware(),
        "command": began["command"], "commit": began["commit"], "config": began["config"],
    }  # fmt: skip


def _timings(run: EncoderRun, problem: EncoderProblem, kinds: dict[str, list[Made]]) -> list[dict[str, Any]]:
    """Dense fp32 beside the first seed's graphs."""
    graph = problem.cache / "teacher" / ONNX_FILES["fp32"]
    if not graph.is_file():
        model = problem.teacher.model.cpu()
        graph.parent.mkdir(parents=True, exist_ok=True)
        check_onnx(model, export_onnx(model, graph))
    graphs = {"dense fp32": (graph, "fp32")}
    own = (("dense_int8", "dense int8", "int8"), ("sparse", "sparse fp32", "fp32"), ("sparse_int8", "sparse int8", "int8"))
    for kind, name, precision in own:
        if kind in kinds:
            graphs[name] = graph_of(kinds[kind][0].folder, precision)
    bench = run.config.bench
    return time_graphs(graphs, problem.teacher.model.config.vocab_size, bench, bench_lengths(bench, problem.longest), run.progress)


def _dense_scores(problem: EncoderProblem) -> dict[str, float]:
    """The teacher's metrics on the held-out examples, computed once."""
    tokens = problem.held_out.tokens
    path = problem.cache / f"dense-scores-{fingerprint(tokens.ids, tokens.offsets)}.json"
    if not path.exists():
        write_json(path, problem.scores(problem.teacher.model, problem.held_out))
    return read_json(path)


def _spread(values: list[float]) -> dict[str, Any]:
    return {"score_mean": mean(values), "score_sd": stdev(values) if len(values) > 1 else None}
