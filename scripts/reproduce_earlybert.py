"""EarlyBERT against dense fine-tuning and a random ticket: score and total training time, all three side by side.

    python scripts/reproduce_earlybert.py --tasks sst2 qnli [--data_dir DIR] [--model demo] [--seeds 1 2 3] [--threads 2]

The three trainings of a seed share one process and take turns of --turn steps: a busy machine slows all of them alike. Time
is wall clock from the checkpoint on disk to the trained model, the search included, scoring and waiting left out; processor
time stands beside it. A seed that was killed begins anew, a finished one is kept; one that was timed with other --threads, on
another processor or in other turns is averaged with none. Writes results/runs/earlybert_<task>.json.
Settings of EarlyBERT are those of the paper's scripts but for --learning_rate and the like; whatever `adasearch compress
earlybert` knows may be given in a YAML file by --config, which what is typed overrides. Where neither says so: seeds 1 2 3,
one thread.

Expected of the paper (BERT-base): 35-45% less training time at a comparable score. With MiniLM on two cores an epoch of SST-2
takes about a quarter of an hour at batch 32, so three seeds of a task take about four hours. What a smaller network saves a
step depends on the precision: of MiniLM a third in fp32, less in bf16 on texts as short as these (--config, mixed_precision).
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import shutil
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # of heads that are new, as they must be

import numpy as np
import yaml

import adasearch
from adasearch.arguments import parse_settings
from adasearch.cli import explained
from adasearch.config import to_dict
from adasearch.console import make_progress, quiet_third_parties
from adasearch.earlybert_config import EarlyBertConfig
from adasearch.earlybert_run import ABOUT, earlybert_recipes
from adasearch.encoder_problem import EncoderProblem
from adasearch.encoder_run import open_encoders
from adasearch.encoder_training import Compressed, Recipe, dense_recipe, sparsity_of, train_recipe
from adasearch.errors import ConfigError
from adasearch.files import read_json, write_json
from adasearch.measure import hardware
from adasearch.progress import Progress
from adasearch.run_files import commit, differences, script_command
from adasearch.trackers import stop_trackers
from adasearch.turns import Tick, take_turns

NEVER = 1e9  # seconds between two checkpoints: a seed that was killed begins anew, so that they would only take time
SEEDS, THREADS = [1, 2, 3], 1  # where neither flags nor --config name any
ROOT = Path(__file__).resolve().parent.parent


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", default=["sst2", "qnli"])
    parser.add_argument("--model", help="the pre-trained checkpoint; demo when absent")
    parser.add_argument("--data_dir", help="folder with <task>/{train,validation}.parquet; the hub when absent")
    parser.add_argument("--config", help="YAML file with settings of `adasearch compress earlybert`")
    parser.add_argument("--seeds", type=int, nargs="+", help=f"{SEEDS} when absent")
    parser.add_argument("--learning_rate", type=float, help="of dense fine-tuning and search; the ticket trains at twice that")
    parser.add_argument("--max_steps", type=int, help="caps every stage, for a quick look")
    parser.add_argument("--turn", type=int, default=20, help="steps that one training takes before the next has its turn")
    parser.add_argument("--threads", type=int, help=f"of training; {THREADS} when absent")
    parser.add_argument("--work_dir", default=str(ROOT / "runs" / "earlybert"), help="folder of the trainings, one a task")
    parser.add_argument("--results_dir", default=str(ROOT / "results" / "runs"))
    return parser.parse_args()


def settings(args: argparse.Namespace, task: str) -> EarlyBertConfig:
    """The run's settings: the published ones, then the script's own, then the YAML file's, then what was typed."""
    flags = ["--config", args.config] if args.config else []
    config, _ = parse_settings(EarlyBertConfig, [task, *flags], prog="reproduce_earlybert", about="", positional="task")
    typed = {name: getattr(args, name) for name in ("model", "data_dir", "max_steps", "seeds", "threads")}
    typed = {name: value for name, value in typed.items() if value is not None}
    own = {name: value for name, value in (("seeds", SEEDS), ("threads", THREADS)) if getattr(config, name) is None}
    config = dataclasses.replace(
        config, **{**own, **typed}, output_dir=str(Path(args.work_dir) / task), cpu=True, evaluate=0, checkpoint_seconds=NEVER
    )
    if args.learning_rate is not None:
        config.finetune.learning_rate = config.ticket.learning_rate = args.learning_rate
        config.train.learning_rate = 2 * args.learning_rate
    return config


def run_task(args: argparse.Namespace, task: str, progress: Progress) -> Path:
    """All seeds of one task; returns the results' file."""
    config = settings(args, task)
    check_timed_alike(Path(config.output_dir) / "seeds", config.seeds, timing(config, args.turn))
    run, problem = open_encoders(config, ABOUT, progress, with_teacher=False)
    try:
        return _run_seeds(args, task, config, problem, progress)
    finally:
        stop_trackers(run.accelerator)


def _run_seeds(args: argparse.Namespace, task: str, config: EarlyBertConfig, problem: EncoderProblem, progress: Progress) -> Path:
    """Train the seeds that are missing; the results' file."""
    target, begun_with = Path(args.results_dir) / f"earlybert_{task}.json", commit()
    problem.progress = Progress()  # three trainings at once would write over each other
    recipes = [dense_recipe(config), *earlybert_recipes(config)]
    rows = []
    for seed in config.seeds:
        path = problem.folder / "seeds" / f"{seed}.json"
        if not path.exists():
            progress.message(f"{task}, seed {seed}: {', '.join(recipe.name for recipe in recipes)}, in turns of {args.turn} steps")
            write_json(path, run_seed(config, problem, recipes, seed, args.turn))
        rows += read_json(path)
        for row in rows[-len(recipes) :]:
            times = f"{row['train_seconds']:.0f} s, processor {row['train_cpu_seconds']:.0f} s"
            progress.message(f"  {row['system']}: {100 * row['scores'][problem.task.metric]:.2f}, {times}")
        result = {
            "what": f"EarlyBERT on {task} beside dense fine-tuning and a random ticket, in turns in one process", "command": script_command(),
            "task": task, "metric": problem.task.metric, "seeds": config.seeds, "turn_steps": args.turn,
            "summary": summary(rows, problem.task.metric), "rows": rows, "settings": to_dict(config),
            "commit": begun_with, "hardware": hardware(),
        }  # fmt: skip
        write_json(target, result)
    progress.message(yaml.safe_dump(read_json(target)["summary"], sort_keys=False))
    return target


def timing(config: EarlyBertConfig, turn: int) -> dict[str, Any]:
    """What seconds depend on beside the settings that a run's folder holds fast."""
    return {"threads": config.threads, "cpu": hardware()["cpu"], "turn_steps": turn}


def check_timed_alike(folder: Path, seeds: list[int], timed: dict[str, Any]) -> None:
    """Raise ``ConfigError`` where a finished seed was timed otherwise: a mean of both would be of neither. Older ones do not say."""
    for path in (folder / f"{seed}.json" for seed in seeds):
        before = read_json(path)[0].get("timed") if path.exists() else None
        if before is not None and (what := differences(before, timed)):
            raise ConfigError(
                f"{path}: it was timed otherwise ({what}), and means are of seeds that were timed alike; choices: the same again, another"
                " --work_dir, or delete it"
            )


def run_seed(config: EarlyBertConfig, problem: EncoderProblem, recipes: list[Recipe], seed: int, turn: int) -> list[dict[str, Any]]:
    """One training of each recipe, side by side, from the beginning: times of an interrupted one would mean nothing."""
    for recipe in recipes:
        for part in ("models", "work"):
            shutil.rmtree(problem.folder / part / f"{recipe.key}-{seed}", ignore_errors=True)

    def job(recipe: Recipe) -> Callable[[Tick], Compressed]:
        return partial(train_recipe, recipe, problem, config, seed)

    trained = take_turns({recipe.key: job(recipe) for recipe in recipes}, turn)
    return [
        {
            "system": item.recipe.name, "key": key, "seed": seed, "scores": item.scores, **item.facts,
            "encoder_sparsity": sparsity_of(problem, problem.load(item.folder)), "timed": timing(config, turn),
        }
        for key, item in trained.items()
    ]  # fmt: skip


def summary(rows: list[dict[str, Any]], metric: str) -> dict[str, Any]:
    """By system: mean and sd of the score, seconds, and the share of the dense model's time that is saved, seed by seed."""
    dense = {row["seed"]: row for row in rows if row["key"] == "dense"}
    found = {}
    for key in dict.fromkeys(row["key"] for row in rows):
        own = [row for row in rows if row["key"] == key]
        values = [row["scores"][metric] for row in own]
        times = ("train_seconds", "train_cpu_seconds")
        saved = {name: float(np.mean([1 - row[name] / dense[row["seed"]][name] for row in own])) for name in times}
        found[key] = {
            "score_mean": float(np.mean(values)), "score_sd": float(np.std(values, ddof=1)) if len(values) > 1 else None,
            "encoder_sparsity": float(np.mean([row["encoder_sparsity"] for row in own])),
            "train_seconds": float(np.mean([row["train_seconds"] for row in own])),
            "time_saved_share": saved["train_seconds"], "cpu_time_saved_share": saved["train_cpu_seconds"],
        }  # fmt: skip
    return found


def main() -> None:
    args = arguments()
    quiet_third_parties()
    adasearch.register_student()
    with make_progress(False) as progress:
        for task in args.tasks:
            run_task(args, task, progress)


if __name__ == "__main__":
    sys.exit(explained(main))
