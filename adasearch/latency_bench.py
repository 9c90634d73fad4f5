"""Measuring the latency table of a space.

Whole networks are exported and timed, never isolated kernels. For each width: a network without cells, one of every
operation alone, one with fewer edges, and random ones; the parts' times are the non-negative least squares fit of
relative errors over all of them, in which the random ones count most. How far off the fit is is told by
random networks left out of it, one at a time.

Protocol: ``measure.time_systems``, all networks of a width in turns; a network's time is the least of ``BLOCKS``
medians, each of ``REPEATS`` calls, so that what else the machine did for a while is left out. With one thread the clock
is the process's processor time: equal to wall time on a calm machine, and blind to other programs' turns.
"""

from __future__ import annotations

import dataclasses
import gc
import importlib.metadata
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.optimize import nnls
from transformers import PreTrainedModel

from adasearch.architecture import Architecture, Edge, Space
from adasearch.errors import ConfigError
from adasearch.export import export_onnx
from adasearch.files import fingerprint, read_json, write_json
from adasearch.latency import Deployment, LatencyTable, Lengths, derivable, interpolation, knots_for
from adasearch.measure import hardware, time_systems
from adasearch.progress import Progress
from adasearch.runtimes import ONNX_FILES, Runtime, TorchRuntime, choose_runtime, load_runtime
from adasearch.shrink import build_student, random_architecture
from adasearch.student import AdasearchConfig

RUNTIMES = ("onnxruntime", "openvino", "torch")  # torch_compile would take minutes a network to get ready
VOCABULARY = 8_192  # rows of the timed networks' word tables: more than a core's cache holds, as any real one
RANDOM_NETWORKS = 14  # of a width
MEMBERS = 6  # of these are drawn as random members of the space are: what runs well together occurs together there
# Of a network that is not random (one operation alone, no cells) beside a random one's 1. Alone, an operation is quicker
# than among others, whose weights and activations share its caches: counted fully, such networks make others look 5 to 10%
# quicker than they are (24 random networks of each width in three runtimes; 0.3 halved the median error, 0.1 was no better).
OUTSIDER_WEIGHT = 0.3
BLOCKS, REPEATS, WARMUP = 5, 9, 3
PACKAGES = {"onnxruntime": "onnxruntime", "openvino": "openvino"}
DESIGN = 3  # to be raised when the networks or the protocol change: what was measured otherwise is not kept


def deployment_here(runtime: str = "auto", threads: int = 1, batch_size: int = 1) -> Deployment:
    """What a table measured now would be keyed by. Raises ``ConfigError`` for a runtime without tables or not installed."""
    name = choose_runtime(runtime)
    if name not in RUNTIMES:
        raise ConfigError(f"runtime: {name!r} has no latency tables; choices: {', '.join(RUNTIMES)}")
    version = torch.__version__ if name == "torch" else importlib.metadata.version(PACKAGES[name])
    return Deployment(hardware()["cpu"], name, version, threads, batch_size)


def build_table(
    space: Space, lengths: Sequence[int], *, output: Path, deployment: Deployment, progress: Progress | None = None
) -> LatencyTable:
    """Measure a space's table and write it to ``output``; a width that was measured before (a kill) is kept.

    The single networks' times lie beside it in ``<output>.measured.json``. Raises ``ConfigError`` for lengths that are
    no lengths, before anything is measured.
    """
    progress = progress or Progress()
    knots = tuple(sorted(set(lengths)))
    if not knots or knots[0] < 1:
        raise ConfigError(f"lengths: {list(lengths)} must be one or more numbers of word pieces, each 1 or more")
    output = Path(output)
    beside = output.with_suffix(".measured.json")
    key = fingerprint(dataclasses.asdict(deployment), dataclasses.asdict(space), knots, DESIGN)
    measured: list[dict[str, Any]] = []
    if beside.exists() and read_json(beside).get("key") == key:
        measured = read_json(beside)["networks"]
        progress.message(f"{beside}: {len(measured)} networks measured before are kept; delete it to measure them again")
    for width in space.widths:
        if any(network["width"] == width for network in measured):
            continue
        designed = design(space, width)
        times = time_architectures(designed, knots, deployment, progress, f"latency of width {width}")
        measured += [
            {"width": width, "cells": member.to_dict()["cells"], "is_random": index >= len(designed) - RANDOM_NETWORKS, "ms": ms}
            for index, (member, ms) in enumerate(zip(designed, times))
        ]
        write_json(beside, {"key": key, "lengths": knots, "networks": measured})
    table = fit_table(space, knots, deployment, measured)
    write_json(output, table.to_dict())
    return table


def design(space: Space, width: int) -> list[Architecture]:
    """The networks to time at a width; the last ``RANDOM_NETWORKS`` are random. The same at every call.

    Networks of one operation have one cell: they cost little to export, and six edges are enough to see a slope.
    """
    generator = np.random.default_rng((width, len(space.operations)))
    names, depth = derivable(space), space.cells[1]

    def cell(choices: Sequence[str], kept: int) -> tuple[tuple[Edge, ...], ...]:
        nodes = []
        for node in range(space.nodes):
            sources = np.sort(generator.choice(node + 2, min(kept, node + 2), replace=False))
            nodes.append(tuple(Edge(int(source), str(generator.choice(choices))) for source in sources))
        return tuple(nodes)

    def network(cells: Sequence[Any]) -> Architecture:
        return Architecture(space.name, space.digest, tuple(cells), width, space.macro)

    alone = [network([cell([name], space.edges_per_node)]) for name in names]
    fewer = [network([cell(names, space.edges_per_node - 1)] * depth)] if space.edges_per_node > 1 else []
    # cells that differ: more to learn from each export
    mixed = [network([cell(names, space.edges_per_node) for _ in range(1 + turn % depth)]) for turn in range(RANDOM_NETWORKS - MEMBERS)]
    members = [random_architecture(dataclasses.replace(space, widths=(width,)), generator) for _ in range(MEMBERS)]
    return [network([]), *alone, *fewer, *mixed, *members]


def time_architectures(
    architectures: Sequence[Architecture], lengths: Sequence[int], deployment: Deployment, progress: Progress, title: str
) -> list[list[float]]:
    """Milliseconds of one call of networks of random weights, for each at each length; they are timed in turns."""
    # a table of positions as long as the longest text, or the graph's free length would end before it
    config = AdasearchConfig(vocab_size=VOCABULARY, max_position_embeddings=max(*lengths, 512), num_labels=2)
    return time_models([partial(build_student, architecture, config) for architecture in architectures], lengths, deployment, progress, title)


def time_models(
    makers: Sequence[Callable[[], PreTrainedModel]], lengths: Sequence[int], deployment: Deployment, progress: Progress, title: str
) -> list[list[float]]:
    """Milliseconds of one call of models, for each at each length; they are made and exported one after the other, timed in turns."""
    progress.stage(f"{title}: export", len(makers))
    ready = {}
    with tempfile.TemporaryDirectory(prefix="adasearch-latency-") as scratch, torch.random.fork_rng(devices=[]):
        for index, make in enumerate(makers):
            ready[str(index)] = runtime_of(make().eval(), deployment, Path(scratch) / str(index))
            gc.collect()  # what is exported may be large, and refers to itself
            progress.step(index + 1)
        return list(time_runtimes(ready, lengths, deployment, progress, title).values())


def runtime_of(model: PreTrainedModel, deployment: Deployment, folder: Path) -> Runtime:
    """The model in the deployment's runtime; ``folder`` is filled with what the runtime reads."""
    if deployment.runtime == "torch":
        return TorchRuntime(model, deployment.threads)
    (folder / "onnx").mkdir(parents=True)
    model.config.save_pretrained(folder)
    export_onnx(model, folder / "onnx" / ONNX_FILES["fp32"])
    return load_runtime(deployment.runtime, folder, deployment.threads)


def time_runtimes(
    systems: Mapping[str, Runtime], lengths: Sequence[int], deployment: Deployment, progress: Progress, title: str = "latency"
) -> dict[str, list[float]]:
    """Milliseconds of one call of each system at each length, by the protocol above."""
    clock = time.process_time if deployment.threads == 1 else time.perf_counter
    found: dict[str, list[float]] = {name: [] for name in systems}
    threads = torch.get_num_threads()
    progress.stage(title, len(lengths) * BLOCKS)
    gc.freeze()  # each block begins with a collection, which would look at every object of torch's again
    try:
        for done, length in enumerate(lengths):
            blocks = []
            for block in range(BLOCKS):
                shape = [(deployment.batch_size, length)]
                timed = time_systems(systems, shape, repeats=REPEATS, warmup=WARMUP, threads=deployment.threads, clock=clock)
                blocks.append({name: timings[0].latency_ms_p50 for name, timings in timed.items()})
                progress.step(done * BLOCKS + block + 1)
            for name in systems:
                found[name].append(min(block[name] for block in blocks))
    finally:
        gc.unfreeze()
        torch.set_num_threads(threads)  # the torch runtime sets them for the whole process, where training may go on
    return found


def fit_table(space: Space, lengths: Sequence[int], deployment: Deployment, measured: Sequence[dict[str, Any]]) -> LatencyTable:
    """The parts' times from networks' times, each width and length by itself."""
    names, widths = derivable(space), list(space.widths)
    parts, errors = {}, []
    for width in widths:
        networks = [network for network in measured if network["width"] == width]
        counts = np.array([_counts(network["cells"], names) for network in networks])
        ms = np.array([network["ms"] for network in networks])
        is_random = np.array([network["is_random"] for network in networks])
        parts[width], found = fit_parts(counts, ms, np.flatnonzero(is_random), np.where(is_random, 1.0, OUTSIDER_WEIGHT))
        errors += found
    frame, cell, *operations = ({width: parts[width][row].tolist() for width in widths} for row in range(2 + len(names)))
    return LatencyTable(
        deployment, space.name, space.macro, space.nodes, space.edges_per_node, tuple(lengths), frame, cell,
        dict(zip(names, operations)), fit_facts(len(measured), errors),
    )  # fmt: skip


def _counts(cells: Sequence[Any], names: Sequence[str]) -> list[float]:
    """How often each part occurs in a network: the frame once, its cells, its operations."""
    edges = [name for cell in cells for node in cell for _, name in node]
    return [1.0, float(len(cells)), *(float(edges.count(name)) for name in names)]


def fit_parts(counts: np.ndarray, ms: np.ndarray, left_out: Sequence[int], weights: np.ndarray | None = None) -> tuple[np.ndarray, list[float]]:
    """Times of the parts (parts, lengths) from networks' ``counts`` (networks, parts) and ``ms`` (networks, lengths).

    Beside them the relative errors of the predictions of ``left_out``, each by a fit without it, at every length.
    """
    weights, errors = np.ones(len(ms)) if weights is None else weights, []
    for one in left_out:
        rest = np.arange(len(ms)) != one
        predicted = np.array([counts[one] @ _solve(counts[rest], column[rest], weights[rest]) for column in ms.T])
        errors += np.abs(predicted / ms[one] - 1).tolist()
    return np.stack([_solve(counts, column, weights) for column in ms.T], axis=1), errors


def fit_facts(networks: int, errors: Sequence[float]) -> dict[str, Any]:
    """What a table says of its fit."""
    median, p90 = float(np.median(errors)), float(np.quantile(errors, 0.9))
    return {"networks": networks, "left_out": len(errors), "median_error": median, "p90_error": p90}


def _solve(counts: np.ndarray, ms: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Times of the parts, none below 0, with the least sum of squares of the networks' weighted relative errors."""
    scale = np.abs(counts).max(0)  # an encoder's neurons count in thousands
    scale[scale == 0] = 1.0
    times, _ = nnls(counts / scale * (weights / ms)[:, None], weights, maxiter=10_000)
    return times / scale


def measure_architecture(table: LatencyTable, architecture: Architecture, lengths: Lengths, progress: Progress | None = None) -> float:
    """Milliseconds of a real network of that shape, random weights, as the table's were measured; mean over ``lengths``."""
    knots = knots_for(lengths)
    (ms,) = time_architectures([architecture], knots, table.deployment, progress or Progress(), "measure the derived member")
    return float(np.dot(interpolation(knots, lengths), ms))


def format_table(table: LatencyTable) -> str:
    """The table as text: a line for each part and width, milliseconds at each length, and how good the fit is."""
    parts = {"(frame)": table.frame_ms, "(a cell)": table.cell_ms, **table.operation_ms}
    longest = max(map(len, parts))
    lines = [f"{'ms a call':<{longest}}  width  " + "  ".join(f"{f'L={length}':>8}" for length in table.lengths)]
    for name, times in parts.items():
        lines += [f"{name:<{longest}}  {width:>5}  " + "  ".join(f"{ms:>8.4f}" for ms in row) for width, row in times.items()]
    fit = table.fit
    return "\n".join(
        [
            *lines,
            f"{table.deployment.describe()}, {table.deployment.cpu}",
            f"{fit['networks']} networks; error where left out of the fit: median {fit['median_error']:.1%}, 90% below {fit['p90_error']:.1%}",
        ]
    )
