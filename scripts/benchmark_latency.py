"""How true the latency tables are: 20 random architectures predicted and measured, and targets that searches must meet.

    python scripts/benchmark_latency.py [--runtimes onnxruntime openvino torch] [--lengths 16 32 64 128]

Time: about six minutes a runtime that reads ONNX, two for torch, on a calm machine, one thread; the tables are kept in
``--folder`` and a second call goes on where a kill left off. Students have random weights: they serve for time. The
members are drawn uniformly from the space and none is among the networks that the table is fitted to. For the targets
a search of ``--steps`` steps on random texts holds to T (the median member's time) and to T / 2; the member it derives
is measured once more afterwards, by the same protocol. Expected: median error <= 10%, Spearman >= 0.95 for each
runtime, the derived members within 5% of their targets.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import torch
from accelerate import Accelerator
from scipy.stats import spearmanr

from adasearch.architecture import Architecture, Space
from adasearch.config import DistillConfig, SearchConfig
from adasearch.console import make_progress
from adasearch.derive import derive
from adasearch.files import write_json
from adasearch.fit import fit
from adasearch.latency import LatencyTable
from adasearch.latency_bench import build_table, deployment_here, measure_architecture, time_architectures
from adasearch.measure import hardware
from adasearch.methods.adabert import AdaBert
from adasearch.progress import Progress
from adasearch.run_files import commit, script_command
from adasearch.shrink import fastest_member, random_architecture
from adasearch.space import load_space
from adasearch.student import AdasearchConfig
from adasearch.supernet import Supernet
from adasearch.tokens import Examples, TokenStore

VOCABULARY = 8_192


def accuracy(table: LatencyTable, members: list[Architecture], progress: Progress) -> dict[str, Any]:
    """Errors and rank correlation of the predictions, for every length of the table and over all of them."""
    measured = np.array(time_architectures(members, table.lengths, table.deployment, progress, "random members"))
    predicted = np.array([[table.predict(member, length) for length in table.lengths] for member in members])
    errors = np.abs(predicted / measured - 1)

    def facts(columns: list[int]) -> dict[str, float]:
        rank = spearmanr(predicted[:, columns].mean(1), measured[:, columns].mean(1)).statistic
        chosen = errors[:, columns]
        return {"median_error": float(np.median(chosen)), "worst_error": float(chosen.max()), "spearman": float(rank)}

    return {
        **facts(list(range(len(table.lengths)))),  # spearman: of a call at a length drawn evenly, what a target is stated in
        "by_length": {str(length): facts([column]) for column, length in enumerate(table.lengths)},
        "predicted_ms": predicted.round(5).tolist(),
        "measured_ms": measured.round(5).tolist(),
    }


def texts(length: int, count: int = 1_024) -> Examples:
    """Random texts with random labels and teacher."""
    rng = np.random.default_rng(0)
    return Examples(
        TokenStore.from_lists(rng.integers(1_000, VOCABULARY, (count, length))),
        0,
        labels=rng.integers(0, 2, count),
        teacher_logits=rng.normal(size=(count, 2)).astype(np.float32),
        probe_logits=rng.normal(size=(count, 7, 2)).astype(np.float32),
    )


def meet(table: LatencyTable, space: Space, target_ms: float, length: int, steps: int, progress: Progress) -> dict[str, Any]:
    """A short search under a target, what it derives, and what that takes."""
    torch.manual_seed(0)
    lengths = {length: 1.0}
    config = SearchConfig(steps=steps, batch_size=32, latency_target_ms=target_ms, candidates=16)
    method = AdaBert(config, DistillConfig(), "single_label", 2, float(length), table.at(lengths))
    supernet = Supernet(space, AdasearchConfig(vocab_size=VOCABULARY, embedding_rank=64, num_labels=2))
    examples = texts(length)
    folder = Path(tempfile.mkdtemp())
    fit(
        supernet, method, {"train": examples}, config, seed=1, folder=folder, accelerator=Accelerator(cpu=True), progress=progress,
        title=f"search for {target_ms:.3g} ms",
    )  # fmt: skip
    supernet.trunk.embeddings.word.sparse = False
    expected = float(supernet.expected_latency(method.latency).detach())
    member = derive(supernet, method, examples, 1, progress, partial(measure_architecture, table, lengths=lengths, progress=progress)).architecture
    measured = measure_architecture(table, member, lengths, progress)
    return {
        "target_ms": target_ms, "expected_ms": expected, "predicted_ms": method.latency.predict(member), "measured_ms": measured,
        "measured_to_target": measured / target_ms, "architecture": member.to_dict()["cells"], "width": member.width,
    }  # fmt: skip


def main() -> None:
    """Measure, print, and write results/runs/latency.json."""
    results = Path(__file__).resolve().parent.parent / "results" / "runs"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--space", default="adasearch")
    parser.add_argument("--runtimes", nargs="+", default=["onnxruntime", "openvino", "torch"])
    parser.add_argument("--lengths", type=int, nargs="+", default=[16, 32, 64, 128])
    parser.add_argument("--length", type=int, default=64, help="length of the targets; one of --lengths")
    parser.add_argument("--members", type=int, default=20)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--folder", type=Path, default=Path("runs") / "latency", help="of the tables")
    parser.add_argument("--output", type=Path, default=results / "latency.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    space = load_space(arguments.space).for_task(is_pair=False)
    generator = np.random.default_rng(2_024)
    members = list(dict.fromkeys(random_architecture(space, generator) for _ in range(arguments.members)))
    found: dict[str, Any] = {}
    with make_progress(quiet=True) as progress:
        for runtime in arguments.runtimes:
            here = deployment_here(runtime)
            output = arguments.folder / f"{arguments.space.replace('/', '-')}-{runtime}.json"
            table = build_table(load_space(arguments.space), arguments.lengths, output=output, deployment=here, progress=progress)
            facts = accuracy(table, members, progress)
            column = table.lengths.index(arguments.length)
            model = table.at({arguments.length: 1.0})
            least = model.predict(fastest_member(space, model))
            target = max(float(np.median(np.array(facts["predicted_ms"])[:, column])), 2.5 * least)  # half of it is in reach
            targets = [meet(table, space, ms, arguments.length, arguments.steps, progress) for ms in (target, target / 2)]
            found[runtime] = {"deployment": dataclasses.asdict(here), "fit": table.fit, **facts, "targets": targets}
    write_json(
        arguments.output,
        {
            "command": script_command(),
            "commit": commit(),
            "what": "predicted against measured latency of random members, and searches under a latency target",
            "ratios": {
                f"{name}: {what}": value
                for name, facts in found.items()
                for what, value in (
                    ("median error of the prediction", facts["median_error"]),
                    ("Spearman", facts["spearman"]),
                    ("Spearman at one length, the least", min(at["spearman"] for at in facts["by_length"].values())),
                    *((f"measured to a target of {t['target_ms']:.2g} ms", t["measured_to_target"]) for t in facts["targets"]),
                )
            },
            "space": arguments.space, "members": len(members), "lengths": arguments.lengths, "runtimes": found, "hardware": hardware(),
        },
    )  # fmt: skip
    shown = ("median_error", "worst_error", "spearman")
    print(json.dumps({name: {key: facts[key] for key in shown} for name, facts in found.items()}, indent=2))
    for name, facts in found.items():
        for target in facts["targets"]:
            print(f"{name}: target {target['target_ms']:.3g} ms, measured {target['measured_ms']:.3g} ms ({target['measured_to_target']:.2f})")


if __name__ == "__main__":
    main()
