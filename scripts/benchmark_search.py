"""What a search step costs: against a fixed network of the same depth, and with ten candidates against three.

    python scripts/benchmark_search.py [--batch 128] [--length 32] [--steps 60]     # about five minutes, one thread
    python scripts/benchmark_search.py --strategies all --steps 10                  # a step of each strategy; half an hour, the mixtures most of it

Times are taken in one process, the systems in turns, all with the same random numbers in the same turn (so the same
depth); memory is the peak of a process of its own. The fixed networks are random members at the space's largest depth
and width. Operations differ in cost, so three candidates are measured as ten different triples in which every
operation of the ten stands three times: on the mean only their number differs. The gates are held still for the same
reason. Expected: step ratio <= 1.5, ten against three <= 1.1 in time and memory.

With --strategies (names, or all) each strategy of search is timed instead, in its published mode, past its warm-up (darts
about twelve times gumbel, darts_second two and a half times darts, gdas, proxyless and one_shot about as gumbel); written
to search_strategies.json.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import torch
from accelerate import Accelerator

from adasearch.architecture import Space
from adasearch.cold import peak_rss_bytes
from adasearch.config import DistillConfig, RetrainConfig, SearchConfig
from adasearch.files import write_json
from adasearch.fit import Training
from adasearch.measure import hardware
from adasearch.methods.adabert import AdaBert
from adasearch.methods.distill import Distill
from adasearch.progress import Progress
from adasearch.run_files import commit, script_command
from adasearch.shrink import build_student, random_architecture
from adasearch.search_method import STRATEGIES, SearchMethod
from adasearch.space import load_space
from adasearch.strategies import find_strategy
from adasearch.student import AdasearchConfig
from adasearch.supernet import Supernet
from adasearch.tokens import Examples, TokenStore

VOCABULARY, RANK = 30_522, 384


def texts(batch: int, length: int) -> Examples:
    """Eight batches of random texts with random labels and teacher."""
    rng = np.random.default_rng(0)
    count = 8 * batch
    return Examples(
        TokenStore.from_lists(rng.integers(1_000, VOCABULARY, (count, length))),
        0,
        labels=rng.integers(0, 2, count),
        teacher_logits=rng.normal(size=(count, 2)).astype(np.float32),
        probe_logits=rng.normal(size=(count, 7, 2)).astype(np.float32),
    )


def student_config() -> AdasearchConfig:
    """MiniLM's vocabulary and table."""
    return AdasearchConfig(vocab_size=VOCABULARY, embedding_rank=RANK, num_labels=2)


def training(model: torch.nn.Module, method: SearchMethod | Distill, examples: Examples) -> Training:
    """Ready to step, nothing saved."""
    folder = Path(tempfile.mkdtemp())
    return Training(model, method, {"train": examples, "valid": examples}, method.config, 1, folder, Accelerator(cpu=True), Progress(), 1e9, False)


def triples(space: Space) -> list[Space]:
    """As many spaces of three candidates as there are candidates; each stands in three of them."""
    names, count = space.operations, len(space.operations)
    return [
        dataclasses.replace(space, operations=tuple(names[(i + skip) % count] for skip in (0, 3, 6)), learned_per_node=0)
        for i in range(count)
    ]


def search_training(space: Space, examples: Examples, batch: int, steps: int) -> Training:
    """A search past its warm-up: every part of its step is at work."""
    torch.manual_seed(0)
    config = SearchConfig(steps=10 * steps, batch_size=batch, arch_warmup=0.0, arch_learning_rate=0.0)
    method = AdaBert(config, DistillConfig(), "single_label", 2, float(examples.tokens.lengths.mean()))
    return training(Supernet(space, student_config()), method, examples)


def strategy_training(space: Space, examples: Examples, batch: int, steps: int, name: str) -> Training:
    """The same of a strategy by name, in its published mode; its gates learn, but stay where they are."""
    torch.manual_seed(0)
    mode = STRATEGIES[name].published_mode or STRATEGIES[name].modes[0]
    still = {"arch_warmup": 0.0, "arch_learning_rate": 0.0} if STRATEGIES[name].learns_architecture else {}
    config = SearchConfig(steps=10 * steps, batch_size=batch, strategy=name, mode=mode, **still)
    method = find_strategy(config)(config, DistillConfig(), "single_label", 2, float(examples.tokens.lengths.mean()))
    return training(Supernet(space, student_config()), method, examples)


def measure_strategies(arguments: argparse.Namespace, names: list[str]) -> dict:
    """Seconds of a step of each strategy, in turns, and its peak memory in a process of its own."""
    space = load_space(arguments.space).for_task(is_pair=False)
    examples = texts(arguments.batch, arguments.length)
    runs = {name: strategy_training(space, examples, arguments.batch, arguments.steps, name) for name in names}
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(-1, arguments.steps):
        for name, run in runs.items():
            run.step = abs(turn)
            took = step(run)
            if turn >= 0:
                seconds[name].append(took)
    command = [sys.executable, __file__, *(f"--{k}={getattr(arguments, k)}" for k in ("space", "batch", "length", "steps"))]
    memory = {
        name: json.loads(subprocess.run([*command, "--memory", f"strategy:{name}"], capture_output=True, text=True, check=True).stdout)
        for name in names
    }
    means = {name: float(np.mean(values)) for name, values in seconds.items()}
    first = names[0]
    return {
        "command": script_command(), "commit": commit(),
        "what": "one step of each strategy of search, in its published mode", "space": arguments.space, "candidates": len(space.operations),
        "batch_size": arguments.batch, "seq_len": arguments.length, "steps": arguments.steps, "threads": 1,
        "modes": {name: run.method.config.mode for name, run in runs.items()}, "step_seconds_mean": means,
        "step_seconds_median": {name: float(np.median(values)) for name, values in seconds.items()}, "peak_rss_bytes": memory,
        "ratios": {name: {f"time_to_{first}": means[name] / means[first], f"memory_to_{first}": memory[name] / memory[first]} for name in names},
        "hardware": hardware(),
    }  # fmt: skip


def fixed_training(space: Space, examples: Examples, batch: int, seed: int) -> Training:
    """A random member at the largest depth and width."""
    largest = dataclasses.replace(space, cells=(space.cells[1],) * 2, widths=(max(space.widths),))
    member = random_architecture(largest, np.random.default_rng(seed))
    config = RetrainConfig(steps=1_000, batch_size=batch)
    method = Distill(config, DistillConfig(), "single_label", 2, member.width, member.depth)
    return training(build_student(member, student_config()), method, examples)


def step(run: Training) -> float:
    """Seconds of one step; equal turns draw equal depths."""
    torch.manual_seed(run.step)
    start = time.perf_counter()
    run.train_step()
    run.step += 1
    return time.perf_counter() - start


def measure(arguments: argparse.Namespace) -> dict:
    """Interleaved times, then each memory in a process of its own."""
    space = load_space(arguments.space).for_task(is_pair=False)
    examples = texts(arguments.batch, arguments.length)
    ten = search_training(space, examples, arguments.batch, arguments.steps)
    three = [search_training(triple, examples, arguments.batch, arguments.steps) for triple in triples(space)]
    fixed = [fixed_training(space, examples, arguments.batch, seed) for seed in range(5)]
    seconds: dict[str, list[float]] = {"ten": [], "three": [], "fixed": []}
    for turn in range(-len(three), arguments.steps):  # below 0 each has its first, slow step
        for name, run in (("ten", ten), ("three", three[turn % len(three)]), ("fixed", fixed[turn % len(fixed)])):
            run.step = abs(turn)
            took = step(run)
            if turn >= 0:
                seconds[name].append(took)
    command = [sys.executable, __file__, *(f"--{k}={getattr(arguments, k)}" for k in ("space", "batch", "length", "steps"))]
    memory = {
        name: json.loads(subprocess.run([*command, "--memory", name], capture_output=True, text=True, check=True).stdout)
        for name in ("ten", "0", "4", "7", "fixed")
    }
    memory["three"] = sum(memory.pop(name) for name in ("0", "4", "7")) / 3  # three of the triples
    means = {name: float(np.mean(values)) for name, values in seconds.items()}
    return {
        "command": script_command(),
        "commit": commit(),
        "what": "search step against fixed network, ten candidates against three",
        "space": arguments.space, "candidates": len(space.operations), "batch_size": arguments.batch, "seq_len": arguments.length,
        "steps": arguments.steps, "threads": 1,
        "step_seconds_mean": means,
        "step_seconds_median": {name: float(np.median(values)) for name, values in seconds.items()},
        "peak_rss_bytes": memory,
        "ratios": {
            "search_step_to_fixed_step": means["ten"] / means["fixed"],
            "ten_to_three_time": means["ten"] / means["three"],
            "ten_to_three_peak_memory": memory["ten"] / memory["three"],
        },
        "hardware": hardware(),
    }  # fmt: skip


def peak_of(arguments: argparse.Namespace) -> int:
    """Peak memory of this process after the steps."""
    space = load_space(arguments.space).for_task(is_pair=False)
    examples = texts(arguments.batch, arguments.length)
    if arguments.memory.startswith("strategy:"):
        run = strategy_training(space, examples, arguments.batch, arguments.steps, arguments.memory.partition(":")[2])
    elif arguments.memory == "fixed":
        run = fixed_training(space, examples, arguments.batch, 0)
    else:
        chosen = space if arguments.memory == "ten" else triples(space)[int(arguments.memory)]
        run = search_training(chosen, examples, arguments.batch, arguments.steps)
    for _ in range(arguments.steps):
        step(run)
    return peak_rss_bytes()


def main() -> None:
    """Measure, print, and write results/runs/search_cost.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--space", default="adasearch")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--length", type=int, default=32)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--strategies", nargs="+", help="time these strategies instead; all: every one there is")
    parser.add_argument("--memory", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.memory:
        print(peak_of(arguments))
        return
    results = Path(__file__).resolve().parent.parent / "results" / "runs"
    if arguments.strategies:
        ours = [name for name in STRATEGIES if STRATEGIES[name].train is SearchMethod.train]  # the others bring a loop of their own
        names = ours if arguments.strategies == ["all"] else arguments.strategies
        found = measure_strategies(arguments, names)
        write_json(results / "search_strategies.json", found)
    else:
        found = measure(arguments)
        write_json(results / "search_cost.json", found)
    print(json.dumps(found["ratios"], indent=2))


if __name__ == "__main__":
    main()
