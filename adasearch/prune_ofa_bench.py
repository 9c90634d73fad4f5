"""How fast the models of Prune Once for All are: dense, sparse, int8, sparse int8, in every runtime that reads a graph.

The protocol is the bench's (docs/benchmarking.md): one process, all systems in turns. OpenVINO is timed a second time with
its option for sparse weights, which stores and unpacks int8 weights of enough zeros in compressed form.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from adasearch.config import BenchConfig
from adasearch.errors import ModelError
from adasearch.graph_runtimes import ONNX_FILES, OnnxRuntime, OpenvinoRuntime
from adasearch.measure import set_threads, time_systems
from adasearch.progress import Progress
from adasearch.runtimes import Runtime, is_installed

SPARSE_OPTION = "CPU_SPARSE_WEIGHTS_DECOMPRESSION_RATE"
SPARSE_RATE = 0.5  # the least share of zeros in a layer at which OpenVINO is to compress it
Graphs = Mapping[str, tuple[Path, str]]  # name of a system -> its graph and precision


def time_graphs(graphs: Graphs, vocab_size: int, bench: BenchConfig, lengths: list[int], progress: Progress) -> list[dict[str, Any]]:
    """A row a system, runtime and shape: ``name``, ``option`` and the fields of ``Timing``. Empty where no such runtime is installed.

    A graph that a runtime refuses has a row with its ``error`` and no times.
    """
    set_threads(bench.threads)
    ways: list[tuple[str, type[Runtime], dict[str, Any]]] = []
    if is_installed("onnxruntime"):
        ways.append(("", OnnxRuntime, {}))
    if is_installed("openvino"):
        ways += [("", OpenvinoRuntime, {}), ("sparse weights", OpenvinoRuntime, {"settings": {SPARSE_OPTION: SPARSE_RATE}})]
    systems: dict[tuple[str, str, str], Runtime] = {}
    rows: list[dict[str, Any]] = []
    for name, (path, precision) in graphs.items():
        for option, kind, extra in ways:
            if option and (precision != "int8" or not name.startswith("sparse")):  # it knows int8 alone, and zeros
                continue
            try:
                systems[name, kind.name, option] = kind(path, bench.threads, precision, vocab_size, **extra)
            except ModelError as error:
                rows.append({"name": name, "runtime": kind.name, "option": option, "precision": precision, "error": str(error)})
    shapes = [(batch, length) for length in lengths for batch in bench.batch_sizes]
    keys = {" | ".join(key): key for key in systems}
    timings = time_systems(
        {text: systems[key] for text, key in keys.items()}, shapes, repeats=bench.repeats, warmup=bench.warmup, threads=bench.threads,
        progress=progress,
    )  # fmt: skip
    for text, (name, _, option) in keys.items():
        rows += [{"name": name, "option": option, **asdict(timing)} for timing in timings[text]]
    return rows


def graph_of(folder: Path, precision: str) -> tuple[Path, str]:
    """The graph of a model's folder."""
    return folder / "onnx" / ONNX_FILES[precision], precision
