"""How fast graphs are in every runtime that reads them, beside the one that a run's table is timed in.

The protocol is the bench's (docs/benchmarking.md): one process, all systems in turns. OpenVINO takes int8 graphs with zeros
a second time, with its option for sparse weights, which stores and unpacks int8 weights of enough zeros in compressed form.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from adasearch.bench_config import BenchConfig
from adasearch.errors import ModelError
from adasearch.graph_runtimes import OpenvinoRuntime
from adasearch.measure import GRAPH_RUNTIMES, set_threads, time_systems
from adasearch.progress import Progress
from adasearch.runtimes import Runtime, available_runtimes, choose_runtime

SPARSE_OPTION = "CPU_SPARSE_WEIGHTS_DECOMPRESSION_RATE"
SPARSE_RATE = 0.5  # the least share of zeros in a layer at which OpenVINO is to compress it
SPARSE_WEIGHTS = "sparse weights"  # what this option is called in a row


@dataclass(frozen=True)
class Graph:
    """An ONNX file, the precision it computes in, and whether its weights have zeros worth a runtime's attention."""

    path: Path
    precision: str
    has_zeros: bool = False


def time_elsewhere(
    graphs: Mapping[str, Graph], vocab_size: int, bench: BenchConfig, lengths: list[int], progress: Progress
) -> dict[str, list[dict[str, Any]]]:
    """By graph a row a runtime and shape, ``bench.runtime`` left out: ``option`` and the fields of ``Timing``.

    A graph that a runtime refuses has one row there, with its ``error`` and no times; one that is no file has none.
    """
    set_threads(bench.threads)
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in graphs}
    loaded: dict[str, tuple[str, str, Runtime]] = {}
    for name, graph in graphs.items():
        for runtime, option, settings in _ways(graph, choose_runtime(bench.runtime)):
            try:
                ready = GRAPH_RUNTIMES[runtime](graph.path, bench.threads, graph.precision, vocab_size, **settings)
                loaded[f"{name} | {runtime} | {option}"] = (name, option, ready)
            except ModelError as error:
                rows[name].append({"runtime": runtime, "option": option, "precision": graph.precision, "error": str(error)})
    if not loaded:
        return rows
    shapes = [(batch, length) for length in lengths for batch in bench.batch_sizes]
    timings = time_systems(
        {key: ready for key, (_, _, ready) in loaded.items()}, shapes, repeats=bench.repeats, warmup=bench.warmup, threads=bench.threads,
        progress=progress,
    )  # fmt: skip
    for key, (name, option, _) in loaded.items():
        rows[name] += [{"option": option, **asdict(timing)} for timing in timings[key]]
    return rows


def _ways(graph: Graph, known: str) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Runtime, what the option is called, and its settings, for all that can read the graph here but ``known``."""
    if not graph.path.is_file():
        return
    here = available_runtimes()
    for runtime in GRAPH_RUNTIMES:
        if runtime in here and runtime != known:
            yield runtime, "", {}
    if OpenvinoRuntime.name in here and graph.has_zeros and graph.precision == "int8":  # it knows int8 alone
        yield OpenvinoRuntime.name, SPARSE_WEIGHTS, {"settings": {SPARSE_OPTION: SPARSE_RATE}}
