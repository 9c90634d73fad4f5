"""One sparse model, many tasks: dense, pruned on the task alone, sparse, sparse int8, at equal steps on each task.

    python scripts/reproduce_prune_ofa.py --sparse_model runs/sparse/sparse --data_dir DIR [--tasks sst2 mrpc rte qnli] [--seeds 1 2 3]
    ... --teachers runs/teachers   (folders by task name; a task without one is fine-tuned by the run itself)

Every run is `adasearch compress prune-ofa TASK` in a folder of its own: a second call skips what is finished and goes on with
what was killed. Arguments after -- go to every run, as `-- --lock.epochs 3`. Writes results/runs/prune_ofa.json. The seconds of
sparse pre-training, read from the sparse model's run.json beside it, are set against those of pruning on each task anew.
Expected at 85%: 2 points lost at most on the mean, 0.5 more by int8, less lost than by pruning on each task.
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

from adasearch.files import read_json, write_json
from adasearch.honest import commit
from adasearch.measure import hardware

ROOT = Path(__file__).resolve().parent.parent
TASKS = ("sst2", "mrpc", "rte", "qnli", "squad")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sparse_model", required=True)
    parser.add_argument("--data_dir")
    parser.add_argument("--tasks", nargs="+", default=list(TASKS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--teachers", help="folder that holds a dense model for each task, by its name")
    parser.add_argument("--output_dir", default=str(ROOT / "runs" / "prune-ofa"))
    parser.add_argument("--results", default=str(ROOT / "results" / "runs" / "prune_ofa.json"))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--list", action="store_true", help="print the commands and stop")
    parser.add_argument("rest", nargs="*", help="after --: for every run")
    return parser.parse_args()


def command(args: argparse.Namespace, task: str) -> list[str]:
    """The command of one task's run."""
    teacher = Path(args.teachers) / task if args.teachers else None
    flags = {
        "sparse_model": args.sparse_model, "data_dir": args.data_dir, "seeds": f"[{','.join(map(str, args.seeds))}]", "direct": "true",
        "threads": args.threads, "output_dir": Path(args.output_dir) / task,
        "teacher": teacher if teacher and (teacher / "config.json").exists() else None,
    }  # fmt: skip
    given = [f"--{key}={value}" for key, value in flags.items() if value is not None]
    return [sys.executable, "-m", "adasearch", "compress", "prune-ofa", task, *given, *args.rest]


def pretraining_seconds(sparse_model: Path) -> float | None:
    """What making the sparse model took, where its folder still says so."""
    for path in (sparse_model / "run.json", sparse_model.parent / "run.json"):
        if path.is_file():
            known = [facts.get("seconds") for facts in read_json(path).get("stages", {}).values()]
            return sum(seconds for seconds in known if seconds) or None
    return None


def collect(reports: dict[str, dict[str, Any]], args: argparse.Namespace) -> dict[str, Any]:
    """results/runs/prune_ofa.json: a row a task and system, the means over the tasks, the time that one sparse model saves."""
    rows = [
        {
            "task": task, "kind": row["kind"], "metric": report["metric"], "score_mean": row["score_mean"], "score_sd": row["score_sd"],
            "scores": [scores[report["metric"]] for scores in row["scores"]], "sparsity": row.get("sparsity"),
            "size_ratios": row.get("size", {}).get("ratios"), "file_bytes": row.get("size", {}).get("file_bytes"),
            "agreement": row.get("agreement"), "train_seconds": row.get("train_seconds"),
        }
        for task, report in reports.items() for row in report["rows"]
    ]  # fmt: skip
    kinds = dict.fromkeys(row["kind"] for row in rows)
    means = {kind: mean(row["score_mean"] for row in rows if row["kind"] == kind) for kind in kinds}
    seconds = {kind: sum(mean(row["train_seconds"]) for row in rows if row["kind"] == kind and row["train_seconds"]) for kind in kinds}
    return {
        "command": shlex.join(["python", f"scripts/{Path(sys.argv[0]).name}", *sys.argv[1:]]), "commit": commit(),
        "what": "one sparse model fine-tuned under lock on every task, against magnitude pruning on each task alone, at equal steps a task",
        "seeds": args.seeds, "rows": rows, "means": means,
        "points_lost": {kind: 100 * (means["dense"] - value) for kind, value in means.items() if kind != "dense"},
        "seconds": {"sparse_pretraining": pretraining_seconds(Path(args.sparse_model)), **seconds},
        "timings": {task: report["timings"] for task, report in reports.items()}, "hardware": hardware(),
    }  # fmt: skip


def main() -> None:
    """Run what is missing, task by task, and write the results."""
    args = arguments()
    if args.list:
        for task in args.tasks:
            print(shlex.join(command(args, task)[1:]))
        return
    reports = {}
    for task in args.tasks:
        path = Path(args.output_dir) / task / "report.json"
        if not path.exists():
            environment = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE", "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))}
            if code := subprocess.run(command(args, task), env=environment).returncode:
                raise SystemExit(code)
        reports[task] = read_json(path)
    found = collect(reports, args)
    write_json(Path(args.results), found)
    for kind, value in found["means"].items():
        print(f"{kind:<12} {100 * value:6.2f}")


if __name__ == "__main__":
    main()
