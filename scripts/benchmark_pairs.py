"""What an operation between two texts is worth by itself: one fixed cell with it and without it, at equal cost.

    python scripts/benchmark_pairs.py mrpc --data_dir DATA [--teacher FOLDER] [--steps 600] [--unlabeled_size 20000] [--seeds 1 2 3]
    python scripts/benchmark_pairs.py rte --run runs/rte    # with the settings of a finished run, on what it prepared

Nothing is searched. Every system is one cell of three nodes with two edges each, trained alike (same teacher, texts, steps,
seeds). "two_inputs" is AdaBERT's way with pairs, "joint" the same convolutions on one sequence; in the others every
node's second edge is the operation. Each system's width is the multiple of 8 whose MACs at the task's mean length are nearest to
those of ``soft_alignment`` at ``--width``; ``cost_ratio`` says how near. Each training leaves its score, so a killed
benchmark goes on where it was. Writes results/runs/pairs_<task>.json. Time on 2 cores: 600 steps of 64 MRPC pairs take a minute
or two a system and seed, so half an hour in all.
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

from ablate_transfer import link_preparation, run_config

from adasearch.accelerator import make_accelerator
from adasearch.architecture import Architecture, Edge, Macro, Space
from adasearch.cli import explained
from adasearch.config import FinetuneConfig, RetrainConfig, RunConfig, TransferConfig
from adasearch.console import make_progress
from adasearch.errors import ConfigError
from adasearch.files import read_json, write_json
from adasearch.measure import hardware
from adasearch.member_cost import architecture_cost
from adasearch.pipeline import check
from adasearch.prepare import Problem, prepare
from adasearch.run_files import commit, script_command
from adasearch.space import load_space
from adasearch.systems import Trainer

OPERATIONS = ("soft_alignment", "cross_attention", "pair_compare", "max_matching")
REFERENCE = "soft_alignment"
WIDTHS = range(32, 385, 8)


def systems(macro: Macro, wanted: list[str]) -> dict[str, tuple[str, Macro]]:
    """Name -> the operation of every node's second edge, and the macro shape."""
    plain = {"two_inputs": ("conv3", dataclasses.replace(macro, inputs="two")), "joint": ("conv3", macro)}
    return plain | {name: (name, macro) for name in wanted}


def member(space: Space, operation: str, macro: Macro, width: int) -> Architecture:
    """The fixed cell with ``operation`` on every node's second edge."""
    nodes = tuple((Edge(0, first), Edge(1, operation)) for first in ("conv3", "sep_conv3", "conv3"))
    return Architecture(space.name, space.digest, (nodes,), width, macro)


def at_cost(space: Space, operation: str, macro: Macro, target: float, problem: Problem) -> tuple[Architecture, float]:
    """The member whose MACs are nearest to ``target``, and its share of them."""
    found = {width: member(space, operation, macro, width) for width in WIDTHS}
    macs = {width: float(architecture_cost(one, problem.length, problem.student_config).macs) for width, one in found.items()}
    width = min(macs, key=lambda key: abs(macs[key] - target))
    return found[width], macs[width] / target


def main() -> None:
    """Prepare, train what is missing, write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, help="folder of a finished run of the task: its teacher, texts and training, instead of those named here")
    parser.add_argument("task", help="mrpc, rte, qnli, qqp, mnli, snli or another task of pairs")
    parser.add_argument("--data_dir")
    parser.add_argument("--teacher", default="demo")
    parser.add_argument("--output_dir", help="runs/pairs-<task> when absent; it must have been made with the same settings")
    parser.add_argument("--operations", nargs="+", default=list(OPERATIONS))
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--transfer", type=int, default=0, help="texts made from the training pairs")
    parser.add_argument("--unlabeled_size", type=int, default=0, help="of the task's texts without labels, which the teacher labels")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--result", help="results/runs/pairs_<task>.json when absent")
    arguments = parser.parse_args()
    folder = Path(arguments.output_dir or Path("runs") / f"pairs-{arguments.task}")
    config = RunConfig(
        task=arguments.task, data_dir=arguments.data_dir, teacher=arguments.teacher, output_dir=str(folder),
        threads=arguments.threads, cpu=True,
        finetune=FinetuneConfig(), transfer=TransferConfig(size=arguments.transfer, unlabeled_size=arguments.unlabeled_size),
        retrain=RetrainConfig(steps=arguments.steps, batch_size=arguments.batch_size),
    )  # fmt: skip
    free = ("seeds", "operations", "threads", "result", "data_dir")
    if arguments.run is not None:
        link_preparation(arguments.run, folder)
        own = run_config(arguments.run)
        config = dataclasses.replace(own, output_dir=str(folder), threads=arguments.threads, data_dir=arguments.data_dir or own.data_dir, warm_start=None)
        if config.task != arguments.task:
            raise ConfigError(f"run: {arguments.run} is of task {config.task}; choices: a run of {arguments.task}")
        arguments.run, arguments.teacher = arguments.run.name, config.teacher
        arguments.steps, arguments.batch_size = config.retrain.steps, config.retrain.batch_size
        arguments.transfer, arguments.unlabeled_size = config.transfer.size, config.transfer.unlabeled_size
    settings = {key: value for key, value in vars(arguments).items() if key not in free}
    held = folder / "benchmark.json"
    if held.exists() and read_json(held) != settings:
        raise ConfigError(f"output_dir: {folder} was begun with other settings ({read_json(held)}); choices: another --output_dir")
    with make_progress(False) as progress:
        task, _ = check(config)
        if not task.is_pair:
            raise ConfigError(f"task: {arguments.task} is no task of pairs; choices: mrpc, rte, qnli, qqp, mnli, snli, or one of your own with a column of second texts")
        write_json(held, settings)
        accelerator = make_accelerator(config)
        problem = prepare(config, task, folder, accelerator, progress)
        space = load_space("adasearch").for_task(is_pair=True)
        reference = member(space, REFERENCE, space.macro, arguments.width)
        target = float(architecture_cost(reference, problem.length, problem.student_config).macs)
        rows: list[dict[str, Any]] = []
        for name, (operation, macro) in systems(space.macro, arguments.operations).items():
            architecture, ratio = at_cost(space, operation, macro, target, problem)
            trainer = Trainer(config, problem, space, None, folder, accelerator, progress)
            scores = [trainer.train(name, architecture, seed).scores[task.metric] for seed in arguments.seeds]
            rows.append({
                "system": name, "width": architecture.width, "macs": target * ratio, "cost_ratio": ratio, "scores": scores,
                "mean": statistics.fmean(scores),
            })  # fmt: skip
    for base in ("two_inputs", "joint"):
        compared = next(row["scores"] for row in rows if row["system"] == base)
        for row in rows:
            gains = [score - other for score, other in zip(row["scores"], compared)]
            row[f"gain_over_{base}"] = {"mean": statistics.fmean(gains), "sd": statistics.stdev(gains) if len(gains) > 1 else None}
    found = {
        "what": "one fixed cell with and without an operation between the two texts, at equal MACs and equal training",
        "command": script_command(),
        "commit": commit(), "task": arguments.task, "metric": task.metric, "seeds": arguments.seeds, "settings": settings,
        "held_out": len(task.held_out), "cells": rows, "hardware": hardware(),
    }  # fmt: skip
    root = Path(__file__).resolve().parent.parent
    write_json(Path(arguments.result or root / "results" / "runs" / f"pairs_{arguments.task}.json"), found)
    print(json.dumps(rows, indent=2))


if __name__ == "__main__":
    sys.exit(explained(main))
