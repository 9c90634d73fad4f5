"""A sweep of four runs, of which one worker is killed while it trains: does it end complete, and what does it cost?

    python scripts/benchmark_sweep.py [--engine ray] [--data_dir DIR --task sst2 | --train_file a.csv --validation_file b.csv]
    # the demo task by default; --steps 60: about 15 minutes on two cores

The run that was hit is done again in another folder, in one local process and undisturbed: that says what its weights
should be. Expected: four runs done, one lost once, its weights equal to the last bit. Writes results/runs/sweep_<engine>.json.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from safetensors.torch import load_file

import adasearch
from adasearch.config import RetrainConfig, SearchConfig, TransferConfig
from adasearch.console import LogProgress
from adasearch.files import read_json, write_json
from adasearch.measure import hardware
from adasearch.run_files import commit, script_command
from adasearch.sweep import sweep
from adasearch.sweep_config import SweepConfig, plan

POLL_SECONDS = 0.005


def sweep_config(arguments: argparse.Namespace, folder: Path, **changes: Any) -> SweepConfig:
    """Two budgets x two seeds, short stages, a checkpoint at every step, the table without extras."""
    config = SweepConfig(
        task=arguments.task, data_dir=arguments.data_dir, train_file=arguments.train_file, validation_file=arguments.validation_file,
        teacher=arguments.teacher, space=arguments.space, demo_assets=arguments.demo_assets, output_dir=str(folder),
        threads=1, address=arguments.address, max_seq_length=arguments.max_seq_length,
        max_steps=arguments.steps, controls=[], checkpoint_seconds=0.0, cpu=True, transfer=TransferConfig(size=2_000),
        search=SearchConfig(batch_size=32), retrain=RetrainConfig(batch_size=32), mixed_precision="no", formats=["md", "csv"],
        **{"beta": [2.0, 8.0], "seeds": [1, 2], "workers": arguments.workers, "engine": arguments.engine, **changes},
    )  # fmt: skip
    config.bench.reference, config.bench.cold_starts, config.bench.repeats, config.bench.runtime = False, 0, 5, "torch"
    return config


def kill_one(folder: Path, name: str, killed: list[float]) -> None:
    """Kill the worker of a run as soon as it has saved a checkpoint of its student."""
    checkpoint = folder / "runs" / name / "work" / f"student-{name.rpartition('seed')[2]}" / "checkpoint.pt"
    while not killed:
        if checkpoint.exists():
            os.kill(read_json(folder / "logs" / f"{name}.worker.json")["pid"], signal.SIGKILL)
            killed.append(time.monotonic())
        time.sleep(POLL_SECONDS)


def timed(config: SweepConfig) -> tuple[float, dict[str, Any]]:
    """Seconds of the sweep, and what it wrote of its runs."""
    start = time.monotonic()
    with LogProgress() as progress:
        swept = sweep(config, progress)
    assert not swept.failed, swept.failed
    return time.monotonic() - start, read_json(swept.folder / "sweep.json")["runs"]


def are_equal(a: Path, b: Path) -> bool:
    """Whether two students have the same weights, bit by bit."""
    one, other = load_file(a / "student" / "model.safetensors"), load_file(b / "student" / "model.safetensors")
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def measure(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """The disturbed sweep, then one of its runs undisturbed."""
    disturbed, calm = folder / "disturbed", folder / "calm"
    config = sweep_config(arguments, disturbed)
    names = [run.name for run in plan(config)]
    killed: list[float] = []
    threading.Thread(target=kill_one, args=(disturbed, names[1], killed), daemon=True).start()
    seconds, records = timed(config)
    assert killed, "nothing was killed: more --steps"
    timed(sweep_config(arguments, calm, beta=[2.0], seeds=[2], workers=1, engine="local"))
    return {
        "command": script_command(), "commit": commit(),
        "what": "a sweep of four runs with one worker killed while it trains",
        "engine": arguments.engine, "workers": arguments.workers, "killed": names[1],
        "status": {name: records[name]["status"] for name in names},
        "lost": {name: records[name]["lost"] for name in names},
        "weights_equal_undisturbed": are_equal(disturbed / "runs" / names[1], calm / "runs" / names[1]),
        "seconds": seconds, "task": arguments.task, "steps": arguments.steps, "hardware": hardware(),
    }  # fmt: skip


def main() -> None:
    """Measure, print, and write results/runs/sweep_<engine>.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", default="local", choices=["local", "ray"])
    parser.add_argument("--address", default="local", help="of the Ray cluster")
    parser.add_argument("--task", default="demo")
    for name in ("data_dir", "train_file", "validation_file", "demo_assets"):
        parser.add_argument(f"--{name}")
    parser.add_argument("--teacher", default="demo")
    parser.add_argument("--space", default="adasearch")
    parser.add_argument("--max_seq_length", type=int, default=128)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--folder", help="where the two sweeps lie; a temporary one when absent")
    arguments = parser.parse_args()
    adasearch.register_student()
    with tempfile.TemporaryDirectory() as scratch:
        found = measure(arguments, Path(arguments.folder or scratch))
    target = Path(__file__).resolve().parent.parent / "results" / "runs" / f"sweep_{arguments.engine}.json"
    write_json(target, found)
    print(json.dumps({key: found[key] for key in ("status", "lost", "weights_equal_undisturbed", "seconds")}, indent=2))


if __name__ == "__main__":
    main()
