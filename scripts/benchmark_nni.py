"""What a search step costs against NNI's GumbelDARTS on the same space, batch and steps: seconds and peak memory.

    pip install 'adasearch[nni]'
    python scripts/benchmark_nni.py [--space adasearch] [--batch 128] [--length 32] [--steps 20]     # about ten minutes, one thread

Three searches in three processes, whose steps are taken in turns: ours in the bilevel mode that NNI has, ours in its default
(joint), and NNI's. All have the same supernet, texts, loss and optimisers, are past their warm-up, and their architecture
stays where it is. The first steps are not counted. Memory is each process' peak, and that beyond what it had before the
first step. Expected: NNI's step takes at least 3 times ours, ours at most half its memory. Written to results/runs/nni.json.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import torch
from accelerate import Accelerator
from benchmark_search import student_config, texts

from adasearch.cli import explained
from adasearch.cold import peak_rss_bytes
from adasearch.files import write_json
from adasearch.fit_config import DistillConfig
from adasearch.measure import hardware
from adasearch.progress import Progress
from adasearch.run_files import commit, script_command
from adasearch.search_config import SearchConfig
from adasearch.space import load_space
from adasearch.strategies import find_strategy
from adasearch.supernet import Supernet

SYSTEMS = {
    "gumbel_bilevel": {"strategy": "gumbel", "mode": "bilevel"},
    "gumbel_joint": {"strategy": "gumbel", "mode": "joint"},
    "nni_gumbel_darts": {"strategy": "nni.gumbel_darts", "mode": "bilevel"},
}
FIRST = 3  # steps that are not counted
MOST_STEPS = 100  # so that every step is told of


class Turns(Progress):
    """Waits for its turn before every step and says how long it took."""

    def __init__(self, out: Any):
        self.out = out

    def stage(self, title: str, total: int | None = None, done: int = 0) -> None:
        """All is ready for the first step."""
        self.say({"before_bytes": peak_rss_bytes()})

    def step(self, done: int, **metrics: float | int | str) -> None:
        """A step is done."""
        self.say({"seconds": time.perf_counter() - self.start})

    def say(self, what: dict[str, Any]) -> None:
        """Tell, and wait for the next turn."""
        print(json.dumps(what), file=self.out, flush=True)
        sys.stdin.readline()
        self.start = time.perf_counter()


def work(arguments: argparse.Namespace) -> None:
    """One system, step by step."""
    out, sys.stdout = sys.stdout, sys.stderr
    space = load_space(arguments.space).for_task(is_pair=False)
    examples = texts(arguments.batch, arguments.length)
    changes = {"steps": arguments.steps, "batch_size": arguments.batch, "arch_warmup": 0.0, "arch_learning_rate": 0.0}
    config = SearchConfig(**changes, **SYSTEMS[arguments.system])
    torch.manual_seed(0)
    supernet = Supernet(space, student_config())
    method = find_strategy(config)(config, DistillConfig(), "single_label", 2, float(arguments.length))
    with tempfile.TemporaryDirectory() as folder:
        method.train(
            supernet, {"train": examples, "valid": examples}, seed=1, folder=Path(folder), accelerator=Accelerator(cpu=True),
            progress=Turns(out), checkpoint_seconds=1e9,
        )  # fmt: skip
    print(json.dumps({"peak_rss_bytes": peak_rss_bytes()}), file=out, flush=True)


class Worker:
    """A system's process."""

    def __init__(self, name: str, arguments: argparse.Namespace):
        command = [sys.executable, __file__, "--system", name]
        command += [f"--{key}={getattr(arguments, key)}" for key in ("space", "batch", "length", "steps")]
        self.name, self.process = name, subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.before_bytes: int = self.hear()["before_bytes"]  # it is ready

    def hear(self) -> dict[str, Any]:
        """What it says next. Raises ``RuntimeError`` where it has ended."""
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.name}: its process ended with code {self.process.wait()}; what it said stands above")
        return json.loads(line)

    def go(self) -> dict[str, Any]:
        """Its turn: one step."""
        print(file=self.process.stdin, flush=True)
        return self.hear()


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """All systems in turns."""
    workers = []
    try:
        for name in SYSTEMS:  # one after the other: getting ready is no part of it
            workers.append(Worker(name, arguments))
        seconds: dict[str, list[float]] = {name: [] for name in SYSTEMS}
        for step in range(arguments.steps):
            for worker in workers if step % 2 else workers[::-1]:
                seconds[worker.name].append(worker.go()["seconds"])
        peaks = {worker.name: worker.go()["peak_rss_bytes"] for worker in workers}
    finally:
        for worker in workers:
            worker.process.kill()
            worker.process.wait()
    counted = {name: np.array(values[FIRST:]) for name, values in seconds.items()}
    above = {worker.name: peaks[worker.name] - worker.before_bytes for worker in workers}
    theirs, ratios = "nni_gumbel_darts", {}
    for name in (name for name in SYSTEMS if name != theirs):
        ratios[f"nni_time_to_{name}"] = float(counted[theirs].mean() / counted[name].mean())
        ratios[f"nni_median_time_to_{name}"] = float(np.median(counted[theirs]) / np.median(counted[name]))
        ratios[f"{name}_memory_to_nni"] = peaks[name] / peaks[theirs]
        ratios[f"{name}_memory_above_start_to_nni"] = above[name] / above[theirs]
    return {
        "command": script_command(), "commit": commit(),
        "what": "one search step, ours against NNI's GumbelDARTS, in turns", "nni": version("nni"),
        "pytorch_lightning": version("pytorch-lightning"), "space": arguments.space, "batch_size": arguments.batch,
        "seq_len": arguments.length, "steps": arguments.steps, "steps_counted": arguments.steps - FIRST, "threads": 1,
        "step_seconds_mean": {name: float(values.mean()) for name, values in counted.items()},
        "step_seconds_median": {name: float(np.median(values)) for name, values in counted.items()},
        "step_seconds_sd": {name: float(values.std(ddof=1)) for name, values in counted.items()},
        "peak_rss_bytes": peaks, "peak_rss_above_start_bytes": above,
        "ratios": ratios, "hardware": hardware(),
    }  # fmt: skip


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--space", default="adasearch")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--length", type=int, default=32)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--output", default=str(Path(__file__).resolve().parent.parent / "results" / "runs" / "nni.json"))
    parser.add_argument("--system", choices=list(SYSTEMS), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if not FIRST + 1 < arguments.steps <= MOST_STEPS:
        parser.error(f"--steps: {arguments.steps} is out of range; choices: {FIRST + 2} to {MOST_STEPS}")
    torch.set_num_threads(1)
    if arguments.system:
        work(arguments)
        return
    find_strategy(SearchConfig(**SYSTEMS["nni_gumbel_darts"]))  # says what is missing before anything is measured
    found = measure(arguments)
    write_json(Path(arguments.output), found)
    print(json.dumps({key: found[key] for key in ("step_seconds_mean", "peak_rss_bytes", "ratios")}, indent=2))


if __name__ == "__main__":
    sys.exit(explained(main))
