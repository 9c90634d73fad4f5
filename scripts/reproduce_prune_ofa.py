"""One sparse model, many tasks: dense, pruned on the task alone, sparse, sparse int8.

    python scripts/reproduce_prune_ofa.py --sparse_model runs/sparse --data_dir DIR [--tasks sst2 mrpc rte qnli squad] [--seeds 1 2 3]
    ... --teachers runs/teachers   (folders by task name; a task without one is fine-tuned by the run itself)
    ... --equal_total_steps        (pruning on a task alone gets its share of the steps of sparse pre-training, too)
    ... --direct_tasks sst2 rte    (pruning on a task alone, which takes longest, for these only)
    ... --configs scripts/prune_ofa   (settings of each task's run, <task>.yaml)

Every run is `adasearch compress prune-ofa TASK` in a folder of its own: a second call trains nothing that is finished, times
it anew, goes on with what was killed, and ends where a run was made with other settings. Arguments after -- go to every run,
as `-- --lock.epochs 3`. Writes results/runs/prune_ofa.json. What sparse
pre-training took is read from its run's folder, to be set against as many pre-trainings as there are tasks, and against
pruning on each task alone. Expected at 85%: 2 points lost at most on the mean, 0.5 more by int8, less lost than by pruning on
each task. Fine-tuning MiniLM on SST-2 took 7 minutes an epoch on one thread; three stages of several epochs and seeds add up.
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
from pathlib import Path
from statistics import mean
from typing import Any

from adasearch.cli import explained
from adasearch.errors import ConfigError
from adasearch.files import read_json, write_json
from adasearch.measure import hardware
from adasearch.prune_ofa_source import pretraining_run, pretraining_stages
from adasearch.run_files import commit, script_command

ROOT = Path(__file__).resolve().parent.parent
TASKS = ("sst2", "mrpc", "rte", "qnli", "squad")
KINDS = {"teacher": "dense", "dense": "dense_finetuned", "student": "sparse_int8"}  # kind in a report -> in the results, where they differ
FOLDERS = {"student": "sparse_int8"}  # kind in a report -> of its models' folders, where they differ
FIELDS = ("score_mean", "score_sd", "scores", "encoder_sparsity", "size_ratios", "sparse_bytes", "size_bytes", "agreement",
          "params", "runtime", "precision", "threads", "batch_size", "seq_len", "latency_ms_p50", "timings", "runtimes")  # fmt: skip


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sparse_model", required=True, type=Path, help="folder of the sparse pre-training's run, or of its model")
    parser.add_argument("--data_dir")
    parser.add_argument("--tasks", nargs="+", default=list(TASKS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--teachers", help="folder that holds a dense model for each task, by its name")
    parser.add_argument("--configs", type=Path, help="folder of <task>.yaml with settings of `adasearch compress prune-ofa`")
    parser.add_argument("--output_dir", default=str(ROOT / "runs" / "prune-ofa"))
    parser.add_argument("--results", default=str(ROOT / "results" / "runs" / "prune_ofa.json"))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--equal_total_steps", type=int, nargs="?", const=len(TASKS), metavar="TASKS",
                        help="add the steps of sparse pre-training, shared out over so many tasks, to the baseline's; five, which one sparse"
                             " model serves, where no number is given, whatever --tasks names")  # fmt: skip
    parser.add_argument("--direct_tasks", nargs="*", help="tasks on which pruning on the task alone is trained too; all when absent")
    parser.add_argument("--list", action="store_true", help="print the commands and stop")
    parser.add_argument("rest", nargs="*", help="after --: for every run")
    return parser.parse_args()


def command(args: argparse.Namespace, task: str) -> list[str]:
    """The command of one task's run."""
    teacher = Path(args.teachers) / task if args.teachers else None
    settings = args.configs / f"{task}.yaml" if args.configs else None
    if settings and not settings.is_file():
        raise ConfigError(f"configs: {settings} is no file; choices: a folder with <task>.yaml for each of --tasks")
    is_direct = args.direct_tasks is None or task in args.direct_tasks
    spent = steps_before(pretraining_stages(args.sparse_model)) if args.equal_total_steps and is_direct else 0
    flags = {
        "config": settings,
        "sparse_model": args.sparse_model,
        "data_dir": args.data_dir,
        "seeds": f"[{','.join(map(str, args.seeds))}]",
        "direct": str(is_direct).lower(),
        "direct_more_steps": spent // args.equal_total_steps if spent else None,
        "threads": args.threads,
        "output_dir": Path(args.output_dir) / task,
        "teacher": teacher if teacher and (teacher / "config.json").exists() else None,
    }
    given = [f"--{key}={value}" for key, value in flags.items() if value is not None]
    return [sys.executable, "-m", "adasearch", "compress", "prune-ofa", task, *given, *args.rest]


def steps_before(stages: dict[str, Any]) -> int | None:
    """All steps that the sparse model took, its teacher's preparation included; None where a part is not known."""
    steps = [stage["steps"] for stage in stages.values()]
    return None if None in steps else sum(steps)


def collect(reports: dict[str, dict[str, Any]], args: argparse.Namespace) -> dict[str, Any]:
    """results/runs/prune_ofa.json: a row a task and system, the means over the tasks, the time that one sparse model saves."""
    rows = [
        {
            "task": task, "kind": KINDS.get(system["kind"], system["kind"]), "metric": report["metric"],
            **{key: system[key] for key in FIELDS}, "train_seconds": train_seconds(Path(args.output_dir) / task, system["kind"], report["seeds"]),
        }
        for task, report in reports.items() for system in report["systems"] if system["score_mean"] is not None
    ]  # fmt: skip
    of_kind = {kind: [row for row in rows if row["kind"] == kind] for kind in dict.fromkeys(row["kind"] for row in rows)}
    # of kinds that every task has: a mean over other tasks cannot be set beside
    means = {kind: mean(row["score_mean"] for row in found) for kind, found in of_kind.items() if len(found) == len(reports)}
    lost = {kind: 100 * (means["dense"] - value) for kind, value in means.items() if kind != "dense"}
    return {
        "command": script_command(), "commit": commit(),
        "what": "one sparse model fine-tuned under lock on every task, against magnitude pruning on each task alone",
        "sparse_model_command": pretraining_run(args.sparse_model).get("command"),
        "seeds": args.seeds, "equal_total_steps": args.equal_total_steps,
        "rows": rows, "means": means, "points_lost": lost,
        "time": time_of(rows, pretraining_stages(args.sparse_model), len(reports)), "hardware": hardware(),
    }  # fmt: skip


def train_seconds(run: Path, kind: str, seeds: list[int]) -> float | None:
    """What training one model took, the mean of the seeds of which it is known: not of one that was killed and went on.

    ``kind`` as a report has it. None of the dense model that teaches, which was given. Of what is made with one seed only, the run's
    own, it is that one's.
    """
    paths = {path.parent.name.rpartition("-")[2]: path for path in (run / "models").glob(f"{FOLDERS.get(kind, kind)}-*/facts.json")}
    facts = [read_json(paths[seed]) for seed in map(str, seeds) if seed in paths] or [read_json(path) for path in paths.values()]
    known = [fact["train_seconds"] for fact in facts if "train_seconds" in fact]
    return mean(known) if known else None


def time_of(rows: list[dict[str, Any]], stages: dict[str, Any], tasks: int) -> dict[str, Any]:
    """Seconds of training, the mean seed's, over all tasks: with one sparse model, with one for each task, and without any.

    None where a part is not known, of one task at least.
    """

    def of_kind(kind: str) -> float | None:
        known = [row["train_seconds"] for row in rows if row["kind"] == kind]
        return None if len(known) != tasks or None in known else sum(known)

    parts = [stages.get(name, {}).get("seconds") for name in ("teacher", "sparse")]
    once = None if None in parts else sum(parts)
    fine, direct = of_kind("sparse"), of_kind("direct")
    known = once is not None and fine is not None
    return {
        "tasks": tasks, "sparse_pretraining_s": once, "lock_s": fine, "lock_and_int8_s": of_kind("sparse_int8"), "direct_s": direct,
        "one_sparse_model_s": once + fine if known else None, "one_for_each_task_s": tasks * once + fine if known else None,
        "saved_s": (tasks - 1) * once if known else None, "saved_share": (tasks - 1) * once / (tasks * once + fine) if known else None,
        "one_sparse_model_over_direct": (once + fine) / direct if known and direct else None,
    }  # fmt: skip


def main() -> None:
    """Run every task and write the results."""
    args = arguments()
    stages = pretraining_stages(args.sparse_model)
    if args.equal_total_steps and "sparse" not in stages:
        raise ConfigError(f"equal_total_steps: {args.sparse_model}: its run.json, which says how many steps it took, is not there")
    if args.equal_total_steps and steps_before(stages) is None:
        raise ConfigError(
            f"equal_total_steps: {args.sparse_model}: how many steps it took is not known, as a run that it went on from is not found;"
            " choices: put that run back where it was, or leave equal_total_steps out"
        )
    if args.list:
        for task in args.tasks:
            print(shlex.join(command(args, task)[1:]))
        return
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    reports = {}
    for task in args.tasks:
        # always, so that the results are of these arguments: the command alone knows whether a finished run was made with them
        if code := subprocess.run(command(args, task), env={**os.environ, "OMP_WAIT_POLICY": "PASSIVE", "PYTHONPATH": path}).returncode:
            raise SystemExit(code)
        reports[task] = read_json(Path(args.output_dir) / task / "report.json")
    found = collect(reports, args)
    write_json(Path(args.results), found)
    for kind, value in found["means"].items():
        print(f"{kind:<12} {100 * value:6.2f}")
    print({name: value if value is None or name == "tasks" else round(value, 3) for name, value in found["time"].items()})


if __name__ == "__main__":
    sys.exit(explained(main))
