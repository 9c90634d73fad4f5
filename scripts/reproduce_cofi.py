"""CoFi: score against measured speed, for tasks x targets x seeds.

    python scripts/reproduce_cofi.py --tasks sst2 mrpc rte qnli [--data_dir DIR] [--model demo] [--teachers DIR] [--seeds 1 2 3]

A task is one run of `adasearch compress cofi` with all targets and seeds, in <work_dir>/<task>: a second call goes on with
what was killed and skips what is finished. --teachers DIR holds a fine-tuned model a task, DIR/<task>; without it one is
trained first. Further settings of `adasearch compress cofi` go into a YAML file, --config; what is typed overrides it. Where
neither says so: four sparsities, seeds 1 2 3, one thread. Writes results/runs/cofi_<task>.json and results/figures/cofi.

Expected of the paper (BERT-base, V100): 60% 2.1x, 95% 12.1x, SST-2 93.0 and 90.4 of 92.7-93.1, after 1 epoch of prefinetuning, 20 of pruning and 20 of fine-tuning.
With MiniLM on one core an epoch of SST-2 takes about 25 minutes while pruning: a target with the default budget three to four hours.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from matplotlib.figure import Figure

from adasearch.arguments import parse_settings
from adasearch.canvas import INK, LINE_COLOURS, dress_axes, save_figure
from adasearch.cli import explained
from adasearch.cofi_config import CofiConfig, target_name
from adasearch.cofi_run import compress_cofi, met_by_gates
from adasearch.console import make_progress, quiet_third_parties
from adasearch.files import read_json, write_json
from adasearch.run_files import script_command
from adasearch.verdict import quotient

TASKS = ("sst2", "mrpc", "rte", "qnli")
TARGETS, SEEDS, THREADS = [0.6, 0.8, 0.9, 0.95], [1, 2, 3], 1  # where neither flags nor --config name any
PANELS = 2  # a row of the figure
FIELDS = ("name", "kind", "score_mean", "score_sd", "scores", "encoder_sparsity", "params", "size_bytes", "macs", "runtime", "precision", "threads",
          "batch_size", "seq_len", "latency_ms_p50", "latency_ms_p90", "task_texts_per_s", "train_seconds", "train_cpu_seconds")  # fmt: skip


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", default=list(TASKS))
    parser.add_argument("--targets", type=float, nargs="+", help=f"sparsities; the first is the run's student/; {TARGETS} when absent")
    parser.add_argument("--seeds", type=int, nargs="+", help=f"{SEEDS} when absent")
    parser.add_argument("--model", help="the pre-trained checkpoint; demo when absent")
    parser.add_argument("--teachers", type=Path, help="folder with a fine-tuned model <task> for each task")
    parser.add_argument("--data_dir", help="folder with <task>/{train,validation}.parquet; the hub when absent")
    parser.add_argument("--config", help="YAML file with settings of `adasearch compress cofi`")
    parser.add_argument("--max_steps", type=int, help="caps every phase, for a quick look")
    parser.add_argument("--threads", type=int, help=f"of training; {THREADS} when absent")
    parser.add_argument("--name", default="cofi", help="what the results' files begin with: <name>_<task>.json")
    parser.add_argument("--work_dir", type=Path, default=Path("runs/cofi"))
    parser.add_argument("--results_dir", type=Path, default=Path("results"))
    return parser.parse_args()


def settings(args: argparse.Namespace, task: str) -> CofiConfig:
    """Those of one task's run: what was typed, else those of the YAML file, else the script's own."""
    flags = [task, *(["--config", args.config] if args.config else [])]
    given = {
        "model": args.model, "data_dir": args.data_dir, "max_steps": args.max_steps, "threads": args.threads,
        "output_dir": args.work_dir / task, "teacher": args.teachers / task if args.teachers else None,
    }  # fmt: skip
    flags += [part for name, value in given.items() if value is not None for part in (f"--{name}", str(value))]
    lists = {"target_sparsity": args.targets, "seeds": args.seeds}
    flags += [part for name, values in lists.items() if values is not None for part in (f"--{name}", *map(str, values))]
    config, _ = parse_settings(CofiConfig, flags, prog="adasearch compress cofi", about="CoFi", positional="task")
    if config.target_sparsity is None and config.target_latency_ms is None:
        config.target_sparsity = list(TARGETS)
    config.seeds = list(SEEDS) if config.seeds is None else config.seeds
    config.threads = THREADS if config.threads is None else config.threads
    return config


def collect(run_dir: Path) -> dict[str, Any]:
    """results/runs/<name>_<task>.json: the report's rows, each beside the dense model in the same runtime and shape.

    Rows of pruned models tell for each seed what its gates saved by themselves on average, and whether that met the target: where it did
    not, the rest was cut off after pruning.
    """
    report = read_json(run_dir / "report.json")
    dense = next(system for system in report["systems"] if system["kind"] == "teacher")
    facts = {folder.name: read_json(folder / "facts.json") for folder in sorted((run_dir / "models").glob("cofi-*"))}
    rows = []
    for system in report["systems"]:
        if system["kind"] in ("teacher", "student", "pruned"):
            row = {field: system[field] for field in FIELDS}
            rows.append({**row, "speed_to_dense": dense["latency_ms_p50"] / row["latency_ms_p50"], "score_to_dense": quotient(row["score_mean"], dense["score_mean"])})
        if system["kind"] in ("student", "pruned"):
            of_target = {name: one for name, one in facts.items() if _target(one) == system["name"]}
            own = [one for seed in report["seeds"] for name, one in of_target.items() if name.endswith(f"-{seed}")]
            rows[-1] |= {"gates_saved": [one["expected_saved"] for one in own], "met_by_gates": [met_by_gates(one) for one in own]}
    what = f"CoFi on {report['task']}: the dense model cut to several sizes"
    kept = {"what": what, "task": report["task"], "metric": report["metric"], "seeds": report["seeds"], "rows": rows, "models": facts}
    return {**kept, "command": script_command(), "commit": report["commit"], "hardware": report["hardware"]}


def _target(facts: dict[str, Any]) -> str:
    """The name of a model's target in the table."""
    return next(target_name(kind, target) for kind, target in facts["target"].items())


def speed_figure(found: list[dict[str, Any]]) -> Figure:
    """Score against measured speed, a panel for each task, with a mark for every seed and a line at the dense score."""
    columns, rows = min(PANELS, len(found)), math.ceil(len(found) / PANELS)
    figure = Figure(figsize=(0.5 + 3.6 * columns, 3.4 * rows), facecolor="white", layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for ax in panels[len(found) :]:
        ax.set_axis_off()
    for ax, task in zip(panels, found):
        dense, *pruned = sorted(task["rows"], key=lambda row: row["speed_to_dense"] if row["kind"] != "teacher" else 0)
        ax.axhline(100 * dense["score_mean"], color=INK, linestyle="--", linewidth=1)
        ax.plot([row["speed_to_dense"] for row in pruned], [100 * row["score_mean"] for row in pruned], "o-", color=LINE_COLOURS[0], markersize=6)
        for row in pruned:
            ax.plot([row["speed_to_dense"]] * len(row["scores"]), [100 * score for score in row["scores"]], ".", color=LINE_COLOURS[0], alpha=0.45)
            ax.annotate(f"{100 * row['encoder_sparsity']:.0f}%", (row["speed_to_dense"], 100 * row["score_mean"]), (0, 7), textcoords="offset points", size=8)
        dress_axes(ax, task["task"], 10, 8)
        ax.set_xlabel(f"times faster than dense ({dense['runtime']}, {dense['batch_size']} x {dense['seq_len']})", size=8.5)
        ax.set_ylabel(task["metric"], size=8.5)
    return figure


def main() -> None:
    """Run what is missing, write results."""
    args = arguments()
    quiet_third_parties()
    paths = {task: args.results_dir / "runs" / f"{args.name}_{task}.json" for task in dict.fromkeys((*TASKS, *args.tasks))}
    for task in args.tasks:
        with make_progress(quiet=True) as progress:
            found = collect(compress_cofi(settings(args, task), progress))
        write_json(paths[task], found)
        for row in found["rows"]:
            print(f"{task}  {row['name']:<20} {100 * row['score_mean']:6.2f}  {row['speed_to_dense']:5.2f}x  {100 * row['encoder_sparsity']:5.1f}% gone", flush=True)
    known = [read_json(path) for path in paths.values() if path.exists()]  # of earlier calls, too: tasks have settings of their own
    save_figure(speed_figure(known), args.results_dir / "figures" / args.name)


if __name__ == "__main__":
    sys.exit(explained(main))
