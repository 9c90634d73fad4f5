"""AdaBERT students beside CoFi models: score against latency, all of them timed in one process.

    python scripts/compare_methods.py --tasks sst2 mrpc [--adabert runs] [--cofi runs/cofi] [--seq_len 128] [--repeats 30]

A task's runs are folders of its name: of `adasearch run` under --adabert, of `adasearch compress cofi` under --cofi. Every seed's
model of every searched student, random member and CoFi target is exported and timed in turns, each in the fastest of --runtimes
at fp32, one text a call, one thread. Equal latency: to every CoFi model the best searched student that takes no longer. Scores are
the runs' own, on the same held-out examples (refused where they are others), in the share of that run's dense model too, for the two
may have had different ones.
Writes results/runs/<name>.json and results/figures/<name>. Minutes.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

import adasearch
from adasearch.bench import bench_folders
from adasearch.canvas import LINE_COLOURS, dress_axes, save_figure
from adasearch.cli import explained
from adasearch.cofi_config import target_name
from adasearch.config import BenchConfig
from adasearch.console import make_progress, quiet_third_parties
from adasearch.errors import ConfigError
from adasearch.files import read_json, write_json
from adasearch.measure import hardware
from adasearch.run_files import commit, script_command
from adasearch.verdict import quotient

COMPARED = {"student": "AdaBERT", "random_architecture": "random cell"}  # of a search's run, its rows that are shown


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", default=["sst2", "mrpc", "rte", "qnli"])
    parser.add_argument("--adabert", type=Path, default=Path("runs"))
    parser.add_argument("--cofi", type=Path, default=Path("runs/cofi"))
    parser.add_argument("--runtimes", nargs="+", default=["onnxruntime", "openvino"])
    parser.add_argument("--seq_len", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--name", default="methods", help="of the results' files, where other tasks' stand already")
    parser.add_argument("--results_dir", type=Path, default=Path("results"))
    return parser.parse_args()


def check_same_examples(runs: Sequence[Path]) -> None:
    """Runs of a task were scored on the same examples. Raises ``ConfigError``; one of a version that noted no data goes on."""
    noted = {run: read_json(run / "run.json").get("data") for run in runs if (run / "run.json").exists()}
    scored = {run: data.get("test") or data.get("validation") for run, data in noted.items() if data}
    for run, other in zip(scored, list(scored)[1:]):
        if scored[run] != scored[other]:
            counts = " and ".join(f"{scored[one]['examples'] if scored[one] else 'none'}" for one in (run, other))
            raise ConfigError(
                f"--tasks: {run} and {other} were scored on other examples ({counts}), so that their scores do not compare; choices: runs on the"
                " same data, or --tasks without this one"
            )


def systems_of(run: Path, method: str) -> list[dict[str, Any]]:
    """The models of a finished run that are compared: name, folders by seed, scores, and the dense model's score."""
    if not (run / "report.json").exists():
        raise ConfigError(f"{run}: no finished run; choices: --tasks with those that have one, --adabert, --cofi")
    report = read_json(run / "report.json")
    dense = next(row for row in report["systems"] if row["kind"] == "teacher")
    targets = {folder.name.rsplit("-", 1)[0] for folder in (run / "models").glob("cofi-*")}  # cofi-<kind>-<target>
    pruned = {target_name(kind, float(target)): f"cofi-{kind}-{target}" for _, kind, target in (key.split("-", 2) for key in targets)}
    keys = pruned if method == "cofi" else {row["name"]: row["kind"] for row in report["systems"] if row["kind"] in COMPARED}
    found = []
    for row in report["systems"]:
        if row["name"] not in keys:
            continue
        folders = [run / "models" / f"{keys[row['name']]}-{seed}" for seed in report["seeds"]]
        found.append({
            "task": report["task"], "metric": report["metric"], "method": method, "folders": folders,
            "name": row["name"] if method == "cofi" else COMPARED[row["kind"]],
            "scores": row["scores"], "score_mean": row["score_mean"], "score_to_dense": quotient(row["score_mean"], dense["score_mean"]),
            "params": row["params"], "macs": row["macs"],
        })  # fmt: skip
    return found


def time_all(systems: list[dict[str, Any]], args: argparse.Namespace) -> None:
    """Put ``latency_ms``, the mean over the seeds, and the runtime it was best in, into every system."""
    folders = [folder for system in systems for folder in system["folders"]]
    config = BenchConfig(
        runtimes=args.runtimes, precisions=["fp32"], reference=False, threads=1, batch_sizes=[1], seq_lengths=[args.seq_len],
        repeats=args.repeats, stream_texts=0, cold_starts=1,
    )  # fmt: skip
    with make_progress(quiet=True) as progress:
        rows = bench_folders(folders, config, progress)
    for system in systems:
        by_runtime = {
            runtime: mean(row["latency_ms_p50"] for row in rows if row["runtime"] == runtime and row["name"] in map(str, system["folders"]))
            for runtime in args.runtimes
        }
        system["runtime"] = min(by_runtime, key=by_runtime.__getitem__)
        system.update(latency_ms=by_runtime[system["runtime"]], latency_by_runtime=by_runtime)


def equal_latency(systems: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """To every CoFi model the best searched student of its task that is as fast; None where there is none."""
    pairs = []
    for pruned in (one for one in systems if one["method"] == "cofi"):
        students = [one for one in systems if one["name"] == "AdaBERT" and one["task"] == pruned["task"] and one["latency_ms"] <= pruned["latency_ms"]]
        best = max(students, key=lambda one: one["score_mean"], default=None)
        pairs.append({
            "task": pruned["task"], "cofi": pruned["name"], "latency_ms": pruned["latency_ms"], "score": pruned["score_mean"],
            "adabert_latency_ms": best and best["latency_ms"], "adabert_score": best and best["score_mean"],
        })  # fmt: skip
    return pairs


def picture(systems: list[dict[str, Any]]) -> Figure:
    """A panel for each task: score against latency, a dot a seed, CoFi's targets joined."""
    tasks = list(dict.fromkeys(system["task"] for system in systems))
    figure = Figure(figsize=(0.5 + 3.6 * len(tasks), 3.6), facecolor="white", layout="constrained")
    styles = {"cofi": ("CoFi", LINE_COLOURS[0], "o-"), "AdaBERT": ("AdaBERT", LINE_COLOURS[4], "D"), "random cell": ("random cell", LINE_COLOURS[6], "s")}
    for ax, task in zip(figure.subplots(1, len(tasks), squeeze=False)[0], tasks):
        for key, (label, colour, mark) in styles.items():
            own = sorted((s for s in systems if s["task"] == task and key in (s["method"], s["name"])), key=lambda s: s["latency_ms"])
            ax.plot([s["latency_ms"] for s in own], [100 * s["score_mean"] for s in own], mark, color=colour, markersize=6, label=label)
            for system in own:
                ax.plot([system["latency_ms"]] * len(system["scores"]), [100 * score for score in system["scores"]], ".", color=colour, alpha=0.4)
                if key == "cofi":
                    ax.annotate(system["name"].removeprefix("CoFi "), (system["latency_ms"], 100 * system["score_mean"]), (4, -11), textcoords="offset points", size=8)
        ax.set_xscale("log")
        ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.xaxis.set_major_formatter("{x:g}")
        ax.xaxis.set_minor_formatter(NullFormatter())
        dress_axes(ax, task, 10, 8)
        ax.set_xlabel("ms a text, one thread", size=8.5)
        ax.set_ylabel(next(s["metric"] for s in systems if s["task"] == task), size=8.5)
    figure.axes[0].legend(frameon=False, fontsize=8)
    return figure


def main() -> None:
    """Read the runs, time, write."""
    args = arguments()
    quiet_third_parties()
    adasearch.register_student()
    bases = {"adabert": args.adabert, "cofi": args.cofi}
    for task in args.tasks:
        check_same_examples([base / task for base in bases.values()])
    systems = [system for task in args.tasks for method, base in bases.items() for system in systems_of(base / task, method)]
    time_all(systems, args)
    pairs = equal_latency(systems)
    write_json(args.results_dir / "runs" / f"{args.name}.json", {
        "command": script_command(), "commit": commit(),
        "what": f"AdaBERT students and CoFi models, each in its fastest runtime at fp32, 1 x {args.seq_len} word pieces",
        "threads": 1, "seq_len": args.seq_len, "equal_latency": pairs,
        "systems_timed": [{**system, "folders": list(map(str, system["folders"]))} for system in systems], "hardware": hardware(),
    })  # fmt: skip
    save_figure(picture(systems), args.results_dir / "figures" / args.name)
    for pair in pairs:
        student = f"AdaBERT {100 * pair['adabert_score']:.1f} at {pair['adabert_latency_ms']:.2f} ms" if pair["adabert_score"] is not None else "no student as fast"
        print(f"{pair['task']}  {pair['cofi']}: {100 * pair['score']:.1f} at {pair['latency_ms']:.2f} ms; {student}")


if __name__ == "__main__":
    sys.exit(explained(main))
