"""QuantGPT against min-max, PACT and LSQ at equal steps: bits x quantisers x seeds, and what each of its parts gives.

    python scripts/reproduce_quantgpt_wikitext2.py --model runs/language/gpt2 --data_dir DIR [--steps 600] [--workers 2]
    python scripts/reproduce_quantgpt_wikitext2.py --task seq2seq --model runs/language/bart --train_file A --validation_file B --test_file C

Every run is `adasearch compress quantgpt` with other settings, one thread a worker, in a folder of its own: a second call
skips what is finished, ends where that has other settings, and goes on with what was killed. With --tune each quantiser's
learning rates are first chosen on the validation split, at 2-2-8 and with one seed; the test split is scored once a run and
chooses nothing. Writes results/runs/quantgpt_<task>.json and a picture beside it. Expected: ours best of all at 2-2-8, 8-8-8 within 1% of full precision.
"""

from __future__ import annotations

import argparse
import itertools
import os
import shlex
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator
from transformers import AutoTokenizer

from adasearch.arguments import parse_settings
from adasearch.canvas import INK, LINE_COLOURS, save_figure
from adasearch.cli import explained
from adasearch.errors import TrainingError
from adasearch.files import read_json, write_json
from adasearch.low_bit import load_low_bit
from adasearch.measure import hardware
from adasearch.quantgpt_config import QuantGptConfig
from adasearch.quantgpt_plots import similarity_figure
from adasearch.quantgpt_run import FREE, load_language_model
from adasearch.run_files import check_begun, commit, script_command

ROOT = Path(__file__).resolve().parent.parent
BITS = ("8-8-8", "4-4-8", "2-2-8")
OURS = "dynamic_scale"
SYSTEMS: dict[str, dict[str, Any]] = {  # name -> settings; a baseline learns its teacher's predictions, as ours does
    "QuantGPT": {"quantizer": OURS, "full_range": False},  # as the one re-implementation reads the paper: -1, 0, 1 at 2 bits
    "min-max": {"quantizer": "min_max", "lambda_contrastive": 0.0},
    "PACT": {"quantizer": "pact", "lambda_contrastive": 0.0},
    "LSQ": {"quantizer": "lsq", "lambda_contrastive": 0.0},
}
ABLATIONS: dict[str, dict[str, Any]] = {  # at the fewest bits only; the first three of the paper's, the rest are readings of it
    "without contrastive": {"lambda_contrastive": 0.0},
    "min-max scaling": {"quantizer": "min_max"},
    "PACT scaling": {"quantizer": "pact"},
    "LSQ scaling": {"quantizer": "lsq"},
    "gold tokens only": {"distill": False, "lambda_contrastive": 0.0},
    "negatives: student": {"negatives": "student"},
    "negatives: vocabulary": {"negatives": "vocabulary"},
    "bank: token": {"bank": "token"},
    "bank: none": {"bank": "none"},
    "gamma starts at 1": {"scale_init": "1.0"},
    "mean detached": {"detach_mean": True},
    "one scale a row": {"per": "row"},
    "four levels at 2 bits": {"full_range": True},  # the package's default
    "four levels, without contrastive": {"full_range": True, "lambda_contrastive": 0.0},
    "LSQ with three levels": {**SYSTEMS["LSQ"], "full_range": False},
}
RATES = ((1e-3, 1e-3), (2e-3, 1e-3), (1e-3, 1e-4))  # of weights and scales, tried with --tune
TEXT = "The city was founded in the early years of the century , and its first bridge was built by a small company in 1904 ."
PASSED = ("model", "data_dir", "train_file", "validation_file", "test_file", "block_length", "stride", "batch_size", "source_length", "target_length")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=("wikitext2", "seq2seq"), default="wikitext2")
    parser.add_argument("--output_dir", help="runs/quantgpt/<task> when absent")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--bits", nargs="+", default=list(BITS))
    parser.add_argument("--baseline_bits", nargs="+", help="of the baselines; as --bits when absent")
    parser.add_argument("--learning_rate", type=float, default=1e-3)
    parser.add_argument("--scale_learning_rate", type=float, default=1e-3)
    parser.add_argument("--tune", action="store_true")
    parser.add_argument("--tune_steps", type=int, help="as --steps when absent")
    parser.add_argument("--ablations", nargs="*", default=list(ABLATIONS), choices=list(ABLATIONS))
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--text", default=TEXT, help="whose tokens are compared in a picture")
    parser.add_argument("--results_dir", default=str(ROOT / "results"))
    parser.add_argument("--list", action="store_true", help="print the runs and stop")
    for name in PASSED:
        parser.add_argument(f"--{name}", required=name == "model")
    return parser.parse_args()


class Matrix:
    """The runs, each a folder named after what differs in it."""

    def __init__(self, args: argparse.Namespace):
        self.args = args
        self.folder = Path(args.output_dir or ROOT / "runs" / "quantgpt" / args.task)
        self.rates = {name: (args.learning_rate, args.scale_learning_rate) for name in SYSTEMS}

    def command(self, folder: Path, settings: dict[str, Any]) -> list[str]:
        """``adasearch compress quantgpt`` for one run."""
        return [sys.executable, "-m", "adasearch", "compress", "quantgpt", *self.flags(folder, settings), "--quiet"]

    def config(self, folder: Path, settings: dict[str, Any]) -> QuantGptConfig:
        """What that command makes of its flags."""
        return parse_settings(QuantGptConfig, self.flags(folder, settings), prog="adasearch compress quantgpt", about="QuantGPT")[0]

    def flags(self, folder: Path, settings: dict[str, Any]) -> list[str]:
        """One run's settings as they are typed."""
        passed = {name: getattr(self.args, name) for name in PASSED if getattr(self.args, name)}
        common = {"task": self.args.task, "steps": self.args.steps, "threads": 1, "cpu": True, "checkpoint_seconds": 300, "evaluations": 1, "figures": False}
        merged = {**common, **passed, "cache_dir": self.folder / "cache", "output_dir": folder, **settings}
        return [f"--{key}={str(value).lower() if isinstance(value, bool) else value}" for key, value in merged.items()]

    def folder_of(self, group: str, name: str, bits: str, seed: int) -> Path:
        return self.folder / group / f"{name.replace(' ', '_').replace(':', '')}-{bits}-{seed}"

    def settings(self, system: str, settings: dict[str, Any], bits: str, seed: int) -> dict[str, Any]:
        rate, scale_rate = self.rates[system]
        return {"bits": bits, "seed": seed, "learning_rate": rate, "scale_learning_rate": scale_rate, **settings}

    def plan(self) -> list[tuple[str, str, str, int, Path, dict[str, Any]]]:
        """(group, name, bits, seed, folder, settings) of every run, the fewest bits first."""
        runs = []
        quantizers = {settings["quantizer"]: name for name, settings in SYSTEMS.items()}
        for bits, (name, settings), seed in itertools.product(reversed(self.args.bits), SYSTEMS.items(), self.args.seeds):
            if settings["quantizer"] == OURS or bits in (self.args.baseline_bits or self.args.bits):
                runs.append(("systems", name, bits, seed, settings, name))
        for name, seed in itertools.product(self.args.ablations, self.args.seeds):
            changes = {**SYSTEMS["QuantGPT"], **ABLATIONS[name]}
            runs.append(("ablations", name, self.args.bits[-1], seed, changes, quantizers[changes["quantizer"]]))
        return [
            (group, name, bits, seed, self.folder_of(group, name, bits, seed), self.settings(rated_as, settings, bits, seed))
            for group, name, bits, seed, settings, rated_as in runs
        ]

    def run(self, jobs: list[tuple[Path, dict[str, Any]]]) -> None:
        """All jobs that are not done, ``workers`` at a time. The first alone: it fills the cache that all share.

        Raises ``ConfigError`` before any where a folder holds a run with other settings: it would be told as one of these.
        """
        for folder, settings in jobs:
            check_begun(folder, self.config(folder, settings), FREE)
        missing = [job for job in jobs if not (job[0] / "report.json").exists()]
        print(f"{len(jobs)} runs, {len(missing)} to do", flush=True)
        if missing and not (self.folder / "cache").exists():
            self._one(missing.pop(0))
        with ThreadPoolExecutor(self.args.workers) as pool:
            list(pool.map(self._one, missing))

    def _one(self, job: tuple[Path, dict[str, Any]]) -> None:
        folder, settings = job
        folder.mkdir(parents=True, exist_ok=True)
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        with open(folder / "run.log", "a", encoding="utf-8") as log:
            code = subprocess.run(self.command(folder, settings), stdout=log, stderr=log, env=environment).returncode
        if code:
            last = (folder / "run.log").read_text(encoding="utf-8").strip().splitlines()[-1:]
            raise TrainingError(f"{folder}: exit code {code}: {' '.join(last)}")
        report = read_json(folder / "report.json")
        print(f"{folder.name}: {report['metric']} {report['score_quantized']:.3f}", flush=True)

    def tune(self) -> dict[str, Any]:
        """The best learning rates of each quantiser by the validation split; sets ``rates``."""
        steps, bits, seed = self.args.tune_steps or self.args.steps, self.args.bits[-1], self.args.seeds[0]
        tried: dict[str, dict[tuple[float, float], Path]] = {}
        jobs = []
        for name, settings in SYSTEMS.items():
            rates = RATES if name != "min-max" else RATES[:2]  # it learns no scales
            for rate, scale_rate in rates:
                folder = self.folder / "tune" / f"{name}-{rate:g}-{scale_rate:g}"
                tried.setdefault(name, {})[rate, scale_rate] = folder
                jobs.append((folder, {**settings, "bits": bits, "seed": seed, "steps": steps, "learning_rate": rate,
                                      "scale_learning_rate": scale_rate, "figures": False}))  # fmt: skip
        self.run(jobs)
        found = {}
        for name, folders in tried.items():
            perplexities = {pair: read_json(folder / "report.json")["validation_quantized"]["perplexity"] for pair, folder in folders.items()}
            self.rates[name] = min(perplexities, key=perplexities.get)
            found[name] = [
                {"learning_rate": rate, "scale_learning_rate": scale_rate, "validation_perplexity": value, "is_chosen": (rate, scale_rate) == self.rates[name]}
                for (rate, scale_rate), value in perplexities.items()
            ]
        return {"bits": bits, "seed": seed, "steps": steps, "by": "perplexity on the validation split", "tried": found}


def summary(values: list[float]) -> dict[str, Any]:
    """Mean, standard deviation (n - 1; None for one seed), the values."""
    return {"mean": float(np.mean(values)), "sd": float(np.std(values, ddof=1)) if len(values) > 1 else None, "seeds_n": len(values), "values": values}


def collect(matrix: Matrix, tuned: dict[str, Any] | None) -> dict[str, Any]:
    """results/runs/quantgpt_<task>.json."""
    rows: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for group, name, bits, _, folder, _ in matrix.plan():
        rows.setdefault((group, name, bits), []).append(read_json(folder / "report.json"))
    first = next(iter(rows.values()))[0]
    full, better = first["score_full_precision"], max if first["higher_is_better"] else min
    table = []
    for (group, name, bits), reports in rows.items():
        score = summary([report["score_quantized"] for report in reports])
        known = [report["train_seconds"] for report in reports if report["train_seconds"]]
        table.append({
            "group": group, "name": name, "bits": bits, first["metric"]: score, "to_full_precision": score["mean"] / full,
            "scores": {key: summary([r["scores_quantized"][key] for r in reports]) for key in reports[0]["scores_quantized"] if key not in ("tokens", "texts")},
            "size_mib": reports[0]["size_mib_quantized"], "size_ratio": reports[0]["size_ratio"],
            "train_seconds_mean": float(np.mean(known)) if known else None,
            "has_bank": reports[0].get("has_bank"),  # a bank by position rests where no token is seen twice
            "settings": {key: reports[0]["config"][key] for key in ("quantizer", "per", "distill", "lambda_contrastive", "negatives", "bank", "learning_rate", "scale_learning_rate", "steps", "batch_size", "dropout")},
        })  # fmt: skip
    at_fewest = {row["name"]: row[first["metric"]]["mean"] for row in table if row["group"] == "systems" and row["bits"] == matrix.args.bits[-1]}
    return {
        "command": script_command(), "commit": commit(),
        "what": "QuantGPT and other quantisers at equal steps; baselines learn the teacher's predictions too, without the contrastive term",
        "task": matrix.args.task, "split": first["split"], "metric": first["metric"], "higher_is_better": first["higher_is_better"],
        "full_precision": first["scores_full_precision"], "size_mib_full_precision": first["size_mib_full_precision"],
        "steps": matrix.args.steps, "seeds": matrix.args.seeds, "threads": 1,
        "tuned": tuned or f"nothing: learning rates {matrix.args.learning_rate:g} (weights) and {matrix.args.scale_learning_rate:g} (scales) for all",
        "rows": table, "best_at_fewest_bits": better(at_fewest, key=at_fewest.get),
        "ratios": {f"{row['name']} {row['bits']} to full precision": row["to_full_precision"] for row in table if row["group"] == "systems"},
        "hardware": hardware(),
    }  # fmt: skip


def scores_figure(found: dict[str, Any]) -> Figure:
    """Scores by bits and system beside the ablations, with a mark for every seed and a line at full precision."""
    metric, full = found["metric"], found["full_precision"][found["metric"]]
    groups = {group: [row for row in found["rows"] if row["group"] == group] for group in ("systems", "ablations")}
    count = max(len(groups["ablations"]) + 1, 6)
    figure = Figure(figsize=(12, 1.4 + 0.32 * count), facecolor="white", layout="constrained")
    figure.suptitle(f"{found['task']}, {found['split']} split: {metric} at {found['steps']:,} steps", size=12, weight="bold", color=INK, x=0.012, ha="left")
    left, right = figure.subplots(1, 2)
    bits = list(dict.fromkeys(row["bits"] for row in groups["systems"]))[::-1]
    names = list(dict.fromkeys(row["name"] for row in groups["systems"]))
    for number, name in enumerate(names):
        rows = {row["bits"]: row[metric] for row in groups["systems"] if row["name"] == name}
        places = [bits.index(key) + 0.13 * (number - (len(names) - 1) / 2) for key in rows]
        colour = LINE_COLOURS[number * 2 % len(LINE_COLOURS)]
        left.errorbar(places, [r["mean"] for r in rows.values()], [r["sd"] or 0 for r in rows.values()], fmt="o", color=colour, capsize=3, label=name, markersize=6)
        for place, row in zip(places, rows.values()):
            left.plot([place + 0.05] * len(row["values"]), row["values"], ".", color=colour, alpha=0.45, markersize=4)
    left.set_xticks(range(len(bits)), bits)
    left.set_xlim(-0.5, len(bits) - 0.5)
    left.set_ylabel(metric + (" (higher is better)" if found["higher_is_better"] else " (lower is better)"), size=9)
    left.legend(fontsize=8, frameon=False)
    shown = [row for row in groups["systems"] if row["name"] == "QuantGPT" and row["bits"] == bits[-1]] + groups["ablations"]
    for place, row in enumerate(reversed(shown)):
        score = row[metric]
        right.errorbar(score["mean"], place, xerr=score["sd"] or 0, fmt="o", color=LINE_COLOURS[0] if row["group"] == "systems" else INK, capsize=3, markersize=6)
    right.set_yticks(range(len(shown)), [row["name"] for row in reversed(shown)], size=8.5)
    right.set_title(f"QuantGPT at {bits[-1]}, one thing changed", size=9.5, weight="bold", loc="left", color=INK)
    right.set_xlabel(metric, size=9)
    left.axhline(full, color=INK, linestyle="--", linewidth=1)
    left.annotate("full precision", (0.01, full), xycoords=("axes fraction", "data"), size=8, ha="left", va="bottom" if found["higher_is_better"] else "top")
    if not found["higher_is_better"]:  # one failing quantiser would press all others onto the line
        left.set_yscale("log")
        left.set_ylim(bottom=0.9 * full)
        left.yaxis.set_major_locator(LogLocator(subs=(1, 1.2, 1.5, 2, 3, 5)))
        left.yaxis.set_major_formatter("{x:g}")
        left.yaxis.set_minor_locator(NullLocator())
    for ax in (left, right):
        ax.spines[["top", "right"]].set_visible(False)
        ax.tick_params(labelsize=8.5, colors=INK)
        ax.grid(True, color="#E4E4E4", linewidth=0.8)
        ax.set_axisbelow(True)
    return figure


def similarity(matrix: Matrix) -> Figure:
    """How alike tokens are to the full-precision model, to a baseline and to ours, at the fewest bits and with the first seed."""
    args, models = matrix.args, {"full precision": load_language_model(matrix.args.model)}
    for name in ("min-max", "QuantGPT"):
        folder = matrix.folder_of("systems", name, args.bits[-1], args.seeds[0])
        models[f"{name} {args.bits[-1]}"] = load_low_bit(folder / "model", memory="float")
    return similarity_figure(models, AutoTokenizer.from_pretrained(args.model), args.text)


def main() -> None:
    """Tune where asked to, run what is missing, write results."""
    args = arguments()
    matrix = Matrix(args)
    if args.list:
        for *_, folder, settings in matrix.plan():
            print(shlex.join(matrix.command(folder, settings)[1:]))
        return
    tuned = matrix.tune() if args.tune else None
    matrix.run([(folder, settings) for *_, folder, settings in matrix.plan()])
    found = collect(matrix, tuned)
    write_json(Path(args.results_dir) / "runs" / f"quantgpt_{args.task}.json", found)
    save_figure(scores_figure(found), Path(args.results_dir) / "figures" / f"quantgpt_{args.task}")
    save_figure(similarity(matrix), Path(args.results_dir) / "figures" / f"quantgpt_{args.task}_similarity")
    for row in found["rows"]:
        score = row[found["metric"]]
        print(f"{row['bits']}  {row['name']:<24} {score['mean']:8.3f} ± {score['sd'] or 0:.3f}   {row['size_ratio']:.2f}x")


if __name__ == "__main__":
    sys.exit(explained(main))
