"""Strategies of search by what their cells are worth: a row a strategy, from the finished runs of a sweep over them.

    python scripts/compare_strategies.py SWEEP_FOLDER [--name strategies_mrpc]      # seconds; nothing is trained here

The folder is what `adasearch sweep --strategies gumbel gdas ... --seeds 1 2 3 --output_dir SWEEP_FOLDER` leaves. All its runs have one
task, teacher and budget; each has a search of its own, and its student is trained as all others. Beside the score stand
what the search took (time, memory of its process) and which share of the cells' edges compares the two texts of a pair.
Writes results/runs/<name>.json. Expected: on MRPC no difference beyond chance, `random` (the best of as many random members) included.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import yaml

from adasearch.cli import explained
from adasearch.errors import ConfigError
from adasearch.files import read_json, write_json
from adasearch.run_files import script_command
from adasearch.space import load_space

MEANS = ("comparing_share", "search_seconds", "search_peak_rss_bytes", "train_seconds", "macs")  # of a strategy's seeds


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sweep", type=Path, help="folder of a finished sweep over strategies")
    parser.add_argument("--name", help="of the result; default: strategies_<task>")
    parser.add_argument("--results_dir", type=Path, default=Path("results"))
    return parser.parse_args()


def run_of(folder: Path) -> dict[str, Any]:
    """A finished run: what sets it apart, what its search took, what its cell is and what its student scores."""
    report, settings = read_json(folder / "report.json"), yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    student = next(system for system in report["systems"] if system["kind"] == "student")
    search, between_texts = report["search"], load_space(settings["space"]).pair_operations
    edges = search["operations"].values()
    return {
        "task": report["task"], "metric": report["metric"], "strategy": settings["search"]["strategy"], "mode": settings["search"]["mode"],
        "seed": report["seeds"][0], "score": student["score_mean"], "depth": search["depth"], "width": search["width"],
        "operations": search["operations"], "comparing_share": sum(search["operations"].get(name, 0) for name in between_texts) / sum(edges),
        "entropy": search.get("entropy"), "search_seconds": search.get("seconds"), "search_peak_rss_bytes": search.get("peak_rss_bytes"),
        "train_seconds": student["train_seconds"], "macs": student["macs"], "latency_ms_p50": student["latency_ms_p50"],
    }  # fmt: skip


def row_of(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """A strategy over its seeds. What a search took is known only of those that were not interrupted."""
    scores = [run["score"] for run in runs]
    known = {key: [run[key] for run in runs if run[key] is not None] for key in MEANS}
    means = {key: fmean(values) if values else None for key, values in known.items()}
    return {
        "strategy": runs[0]["strategy"], "mode": runs[0]["mode"], "score_mean": fmean(scores),
        "score_sd": stdev(scores) if len(scores) > 1 else None, **means, "seeds": runs,
    }  # fmt: skip


def main() -> None:
    """Read the runs, write the rows."""
    args = arguments()
    if not (args.sweep / "sweep.json").exists():
        raise ConfigError(f"{args.sweep}: no sweep.json; choices: the --output_dir of `adasearch sweep --strategies ...`")
    sweep = read_json(args.sweep / "sweep.json")
    states = {name: state for name, state in sweep["runs"].items() if not state.get("is_preparation")}
    if open_ones := [name for name, state in states.items() if state["status"] != "done"]:
        raise ConfigError(f"{args.sweep}: not finished: {', '.join(open_ones)}; choices: the sweep's own command goes on with it")
    runs = [run_of(args.sweep / "runs" / name) for name in states]
    for key in ("task", "metric"):
        if len(found := dict.fromkeys(run[key] for run in runs)) > 1:
            raise ConfigError(f"{args.sweep}: runs of more than one {key} ({', '.join(found)}) make no one table; choices: a sweep of one")
    rows = [row_of([run for run in runs if run["strategy"] == strategy]) for strategy in dict.fromkeys(run["strategy"] for run in runs)]
    first = runs[0]
    write_json(args.results_dir / "runs" / f"{args.name or 'strategies_' + first['task']}.json", {
        "command": sweep["command"], "then": script_command(), "commit": sweep["commit"], "what": f"strategies of search on {first['task']}: a search and"
        " a student for each seed, on the same prepared texts, under one budget", "metric": first["metric"], "strategies": rows,
        "hardware": read_json(args.sweep / "runs" / next(iter(states)) / "report.json")["hardware"],
    })  # fmt: skip
    for row in rows:
        print(f"{row['strategy']:<14}{100 * row['score_mean']:.1f} ± {100 * (row['score_sd'] or 0):.1f}   search {row['search_seconds'] or float('nan'):.0f} s")


if __name__ == "__main__":
    sys.exit(explained(main))
