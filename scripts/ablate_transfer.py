"""What each lever gives on a finished run's architecture, in the shape of AdaBERT's tables (no KD ... all of it).

    python scripts/ablate_transfer.py runs/sst2 [--steps 1500] [--seeds 1 2 3] [--without_efficiency ARCHITECTURE.json]

Rows, each with all levers of those above it, equal steps, seeds and batch size:

    no_kd           gold labels alone
    final_kd        + the teacher's logits
    probes          + its probes
    augmentation    + texts made from the training texts
    unlabelled      + the user's texts without labels
    efficiency      the run's own architecture, where the rows above have one that was searched without a price on cost
    warm_start      + weights of --warm_start, a folder of `adasearch warm`, instead of fresh ones

The architecture without a price is searched here (beta 0, as many steps as the run's search) unless it is given. A row
whose texts the run does not have is left out and named. The run's teacher, tokens and the teacher's word on them are read
from its cache, where they still fit its settings; nothing in its folder changes: what is made lies in ``--output_dir``.
Every training leaves its score, so a killed ablation goes on where it was. Writes results/runs/ablation_<task>.json and
results/figures/ablation_<task>.png and .svg. Time: seeds x 7 trainings.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
from matplotlib.figure import Figure

from adasearch.accelerator import make_accelerator
from adasearch.architecture import Architecture
from adasearch.arguments import parse_settings
from adasearch.canvas import LINE_COLOURS, save_figure
from adasearch.cli import explained
from adasearch.config import DistillConfig, RunConfig
from adasearch.console import make_progress
from adasearch.errors import ConfigError
from adasearch.files import read_json, write_json
from adasearch.finished import FinishedRun
from adasearch.lesson import lesson_rows
from adasearch.measure import hardware
from adasearch.member_cost import architecture_cost
from adasearch.pipeline import check
from adasearch.prepare import Problem, prepare
from adasearch.run_files import commit, script_command
from adasearch.search_config import without_latency
from adasearch.systems import Trainer, run_search
from adasearch.tokens import Examples, TokenStore

ROWS = ("no_kd", "final_kd", "probes", "augmentation", "unlabelled", "efficiency", "warm_start")


def run_config(folder: Path) -> RunConfig:
    """The settings that the run was begun with."""
    arguments = ["--config", str(folder / "config.yaml")]
    settings, _ = parse_settings(RunConfig, arguments, prog="ablate_transfer.py", about="", positional="task")
    return settings


def link_preparation(run: Path, folder: Path) -> None:
    """The run's cache and teacher under the names that a run looks for, file by file: what is new stays out of the run."""
    (folder / "cache").mkdir(parents=True, exist_ok=True)
    found = [*(run / "cache").iterdir(), *([run / "teacher"] if (run / "teacher").is_dir() else [])]
    for path in found:
        target = folder / path.relative_to(run)
        if not target.exists():
            target.symlink_to(path.resolve())


def made_texts(problem: Problem, stores: list[TokenStore]) -> int:
    """How many of the texts without labels were made from training texts: the set that stands first among them."""
    lesson = problem.lesson.tokens
    extra = lesson.select(np.arange(len(lesson) - problem.made, len(lesson)))
    fits = (store for store in stores if len(store) <= len(extra))
    lengths = [len(store) for store in fits if np.array_equal(extra.ids[: len(store.ids)], store.ids)]
    return max(lengths, default=0)


def texts_of(problem: Problem, made: int, share: float) -> dict[str, Examples]:
    """The lesson of each row: the labelled texts, with those that were made, with all. ``made`` are the first after the labelled."""
    count, extra = len(problem.labelled), problem.made
    start = len(problem.lesson) - extra
    known = Examples.concatenate([problem.labelled, problem.lesson.select(np.arange(start, len(problem.lesson)))])

    def lesson(size: int) -> Examples:
        return known.select(lesson_rows(count, count + size, share))

    return {"labelled": problem.labelled, "augmentation": lesson(made), "unlabelled": lesson(extra)}


def figure_of(rows: list[dict[str, Any]], metric: str, teacher: float | None) -> Figure:
    """A bar a row with its spread over the seeds, and the teacher's line."""
    figure = Figure(figsize=(5.2, 2.8), layout="constrained")
    axes = figure.subplots()
    means = [100 * row["mean"] for row in rows]
    axes.bar(range(len(rows)), means, yerr=[100 * (row["spread"] or 0) for row in rows], color=LINE_COLOURS[0], capsize=3)
    if teacher is not None:
        axes.axhline(100 * teacher, color=LINE_COLOURS[3], label="teacher")
        axes.legend(frameon=False, fontsize=8)
    names = [("+ " if index else "") + row["row"].replace("_", " ") for index, row in enumerate(rows)]
    axes.set_xticks(range(len(rows)), names, rotation=20, fontsize=8)
    axes.set_ylabel(f"{metric}, held out (%)", fontsize=8)
    low = min([*means, 100 * (teacher or 1)])
    axes.set_ylim(max(0, low - 5), min(100, max([*means, 100 * (teacher or 0)]) + 3))
    return figure


def main() -> None:
    """Read the run, train what is missing, write the table and its picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a finished run")
    parser.add_argument("--output_dir", type=Path, help="runs/ablation-<run> when absent")
    parser.add_argument("--without_efficiency", type=Path, help="architecture.json of the upper rows; searched with beta 0 when absent")
    parser.add_argument("--warm_start", help="folder of `adasearch warm`, for the last row")
    parser.add_argument("--steps", type=int, help="of every training; the run's when absent")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=ROWS)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--data_dir", help="where the run's data lie now, if they were moved")
    parser.add_argument("--results", type=Path, default=Path(__file__).resolve().parent.parent / "results")
    arguments = parser.parse_args()
    finished = FinishedRun(arguments.run, read_json(arguments.run / "run.json")["config"])
    folder = arguments.output_dir or Path("runs") / f"ablation-{arguments.run.name}"
    link_preparation(arguments.run, folder)
    config = run_config(arguments.run)
    steps = arguments.steps or config.retrain.steps
    config = dataclasses.replace(
        config, output_dir=str(folder), threads=arguments.threads, warm_start=None, data_dir=arguments.data_dir or config.data_dir,
        retrain=dataclasses.replace(config.retrain, steps=steps),
        search=dataclasses.replace(
            without_latency(config.search), beta=0.0, efficiency="penalty", target_macs=None, target_params=None,
            finalists=1 if config.search.strategy == "one_shot" else config.search.finalists,  # which has them under a target alone
        ),
    )  # fmt: skip
    free_file = arguments.without_efficiency and str(arguments.without_efficiency)
    settings = {"run": arguments.run.name, "steps": steps, "without_efficiency": free_file}
    held = folder / "ablation.json"
    if held.exists() and read_json(held) != settings:
        raise ConfigError(f"output_dir: {folder} was begun with other settings ({read_json(held)}); choices: another --output_dir")
    own = Architecture.load(arguments.run / "search" / "architecture.json")
    with make_progress(False) as progress:
        task, space = check(config)
        write_json(held, settings)
        accelerator = make_accelerator(config)
        problem = prepare(config, task, folder, accelerator, progress)
        if arguments.without_efficiency:
            free = Architecture.load(arguments.without_efficiency)
        else:
            _, free = run_search(config, problem, space, folder / "search", accelerator, progress)
        made = made_texts(problem, finished.stores("transfer"))
        lessons = texts_of(problem, made, config.transfer.labelled_share)
        gold = dataclasses.replace(problem.labelled, teacher_logits=None, probe_logits=None)
        final = dataclasses.replace(config.distill, probe_weight=0.0)
        last = "unlabelled" if problem.made > made else "augmentation" if made else "labelled"
        plan: dict[str, tuple[Architecture, Examples, DistillConfig]] = {
            "no_kd": (free, gold, DistillConfig(gamma=0.0, probe_weight=0.0)),
            "final_kd": (free, lessons["labelled"], final),
            "probes": (free, lessons["labelled"], config.distill),
            "augmentation": (free, lessons["augmentation"], config.distill),
            "unlabelled": (free, lessons["unlabelled"], config.distill),
            "efficiency": (own, lessons[last], config.distill),
            "warm_start": (own, lessons[last], config.distill),
        }
        needs = {"augmentation": made, "unlabelled": problem.made - made, "warm_start": arguments.warm_start}
        left_out = [name for name, there in needs.items() if not there]
        rows: list[dict[str, Any]] = []
        for name in (name for name in arguments.rows if name not in left_out):
            architecture, lesson, distill = plan[name]
            part = dataclasses.replace(problem, lesson=lesson)
            settings_of_row = dataclasses.replace(config, distill=distill, warm_start=arguments.warm_start if name == "warm_start" else None)
            trainer = Trainer(settings_of_row, part, space, None, folder, accelerator, progress)
            scores = [trainer.train(name, architecture, seed).scores[task.metric] for seed in arguments.seeds]
            cost = architecture_cost(architecture, problem.length, problem.student_config)
            spread = statistics.stdev(scores) if len(scores) > 1 else None
            rows.append({
                "row": name, "texts": len(lesson), "params": float(cost.params), "macs": float(cost.macs), "scores": scores,
                "mean": statistics.fmean(scores), "spread": spread,
            })  # fmt: skip
    teacher = _teacher_score(arguments.run)
    found = {
        "what": "what each lever gives: every row has those above it, equal steps and seeds; the last is the run's own architecture",
        "command": script_command(),
        "commit": commit(), "task": task.name, "metric": task.metric, "seeds": arguments.seeds, **settings, "left_out": left_out,
        "teacher": teacher, "held_out": len(task.held_out), "rows": rows, "hardware": hardware(),
    }  # fmt: skip
    write_json(arguments.results / "runs" / f"ablation_{task.name}.json", found)
    (arguments.results / "figures").mkdir(parents=True, exist_ok=True)
    save_figure(figure_of(rows, task.metric, teacher), arguments.results / "figures" / f"ablation_{task.name}")
    print(json.dumps(rows, indent=2))


def _teacher_score(run: Path) -> float | None:
    """From the run's report, where it has one."""
    if not (run / "report.json").exists():
        return None
    systems = read_json(run / "report.json")["systems"]
    return next((statistics.fmean(system["scores"]) for system in systems if system["kind"] == "teacher" and system["scores"]), None)


if __name__ == "__main__":
    sys.exit(explained(main))
