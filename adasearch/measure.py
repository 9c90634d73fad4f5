"""What a system costs: time, size, parameters, multiply-accumulates; and the machine it was measured on.

Protocol of the timings: one process, every system in turn (round-robin, the order rotated each round), so that whatever
else the machine does meets all of them alike; wall clock of one call from arrays to logits; Python's garbage collector
off. Set ``OMP_WAIT_POLICY=PASSIVE`` in the environment before Python starts: threads that spin while they wait have
been seen to take a hundred times longer when a core is busy elsewhere.
"""

from __future__ import annotations

import gc
import importlib.metadata
import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from adasearch.errors import ConfigError, ModelError
from adasearch.export import TOKENIZER_FILES, check_onnx, export_onnx
from adasearch.progress import Progress
from adasearch.runtimes import (
    ONNX_FILES, CompiledTorchRuntime, OnnxRuntime, OpenvinoRuntime, Runtime, TorchRuntime, choose_runtime,
)  # fmt: skip
from adasearch.settings import cores_here

Factory = Callable[[int, int], Callable[[], Any]]  # (batch size, length) -> the call to time
SECONDS_PER_SHAPE = 5.0  # a system whose ``repeats`` calls of one shape would take longer is called less often,
FEWEST_REPEATS = 5  # but not less than this
PRIME_BELOW_S = 0.05  # calls shorter than this are preceded by an untimed one: others' weights have filled the caches
RANDOM_SEED = 0
IN_MEMORY = {"torch": TorchRuntime, "torch_compile": CompiledTorchRuntime}
GRAPH_RUNTIMES = {"onnxruntime": OnnxRuntime, "openvino": OpenvinoRuntime}  # they read an ONNX file; the others read the folder's weights


@dataclass(frozen=True)
class Timing:
    """Latency of one system at one shape: median and 90th percentile of its calls, their spread (sd / mean), and
    texts a second, batch size / median. ``seq_len`` is in word pieces, 0 where a system reads raw texts."""

    batch_size: int
    seq_len: int
    threads: int
    runtime: str
    precision: str
    latency_ms_p50: float
    latency_ms_p90: float
    latency_cv: float
    texts_per_s: float
    repeats: int

    @classmethod
    def from_seconds(
        cls, seconds: Sequence[float], *, batch_size: int, seq_len: int, threads: int, runtime: str, precision: str
    ) -> Timing:
        """Summary of the wall-clock times of single calls."""
        p50, p90 = np.percentile(seconds, [50, 90])
        return cls(
            batch_size, seq_len, threads, runtime, precision, float(p50) * 1e3, float(p90) * 1e3,
            latency_cv=float(np.std(seconds) / np.mean(seconds)), texts_per_s=float(batch_size / p50),
            repeats=len(seconds),
        )  # fmt: skip


def set_threads(threads: int) -> None:
    """Torch's threads for this process; nothing else of it is changed. Raises ``ConfigError`` below 1."""
    if threads < 1:
        raise ConfigError(f"threads: {threads} is out of range; choices: 1 or more")
    torch.set_num_threads(threads)


def random_pieces(generator: np.random.Generator, vocab_size: int, shape: tuple[int, ...]) -> np.ndarray:
    """Random ids, int64, of pieces that texts have: below the first 1,000 vocabularies keep special and unused ones."""
    return generator.integers(min(1000, vocab_size // 2), vocab_size, shape, dtype=np.int64)


def random_call(runtime: Runtime, batch: int, length: int) -> Callable[[], np.ndarray]:
    """A call of the runtime on texts of exactly ``length`` random word pieces, without padding."""
    ids_BL = random_pieces(np.random.default_rng(RANDOM_SEED), runtime.vocab_size, (batch, length))
    mask_BL = np.ones_like(ids_BL)
    return lambda: runtime(ids_BL, mask_BL)


def time_systems(
    systems: Mapping[str, Runtime | Factory], shapes: Sequence[tuple[int, int]], *, repeats: int = 30, warmup: int = 5,
    threads: int = 1, progress: Progress | None = None, clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[Timing]]:  # fmt: skip
    """Time every system at every shape (batch size, length), interleaved; the timings come in the order of ``shapes``.

    A system is a runtime, fed with random ids, or a function (batch size, length) -> call, for what reads raw texts:
    its rows carry its function's attributes ``runtime`` and ``threads``, else "python" and the given ``threads``, and length 0.
    """
    progress = progress or Progress()
    results: dict[str, list[Timing]] = {name: [] for name in systems}
    progress.stage("measure latency", total=len(shapes) * repeats)
    with torch.inference_mode():
        for index, (batch, length) in enumerate(shapes):
            calls = {name: _call(system, batch, length) for name, system in systems.items()}
            tell = partial(_tell, progress, index * repeats)
            seconds = _interleave(calls, repeats, warmup, clock, tell)
            for name, system in systems.items():
                is_runtime = isinstance(system, Runtime)
                results[name].append(
                    Timing.from_seconds(
                        seconds[name],
                        batch_size=batch,
                        seq_len=length if is_runtime else 0,
                        threads=getattr(system, "threads", threads),
                        runtime=system.name if is_runtime else getattr(system, "runtime", "python"),
                        precision=system.precision if is_runtime else "fp64",
                    )  # fmt: skip
                )
    return results


def _tell(progress: Progress, before: int, done: int) -> None:
    progress.step(before + done)


def _call(system: Runtime | Factory, batch: int, length: int) -> Callable[[], Any]:
    return random_call(system, batch, length) if isinstance(system, Runtime) else system(batch, length)


def _interleave(
    calls: dict[str, Callable[[], Any]],
    repeats: int,
    warmup: int,
    clock: Callable[[], float],
    tell: Callable[[int], None],
) -> dict[str, list[float]]:
    """Seconds of each call of each system: warm-up, then rounds in which each system has its turn at most once."""

    def timed(call: Callable[[], Any]) -> float:
        start = clock()
        call()
        return clock() - start

    shares, is_short = {}, {}
    for name, call in calls.items():
        first = timed(call)
        if warmup and first > SECONDS_PER_SHAPE / 4:  # too long for more of them, or the call was compiled first
            first = timed(call)
        later = [timed(call) for _ in range(min(warmup, 1 + int(SECONDS_PER_SHAPE / 4 / max(first, 1e-9))) - 1)]
        estimate = float(np.median(later or [first]))
        affordable = max(int(SECONDS_PER_SHAPE / max(estimate, 1e-9)), FEWEST_REPEATS)
        shares[name], is_short[name] = min(repeats, affordable), estimate < PRIME_BELOW_S
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    names = list(calls)
    with collector_off():
        for turn in range(repeats):
            for name in names[turn % len(names) :] + names[: turn % len(names)]:
                if (turn + 1) * shares[name] // repeats > turn * shares[name] // repeats:  # its share, spread evenly
                    if is_short[name]:
                        calls[name]()
                    seconds[name].append(timed(calls[name]))
            tell(turn + 1)
    return seconds


@contextmanager
def collector_off() -> Iterator[None]:
    """Python's garbage collector runs once, then not before the end: a collection would fall into somebody's call."""
    was_enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def count_params(model: nn.Module) -> tuple[int, int]:
    """All parameters and those of embedding tables; a tensor used twice counts once."""
    tables = {id(m.weight): m.weight.numel() for m in model.modules() if isinstance(m, (nn.Embedding, nn.EmbeddingBag))}
    return sum(parameter.numel() for parameter in model.parameters()), sum(tables.values())


def count_macs(model: nn.Module, length: int) -> int:
    """Multiply-accumulates of one text of ``length`` word pieces, by running it under torch's FlopCounterMode.

    Counted: matrix products, convolutions, attention's two products. Not counted: look-ups, normalisation, activations,
    softmax, pooling. Half of the counter's operations, since it takes a multiply-accumulate for two.
    """
    input_ids = torch.full((1, length), model.config.vocab_size - 1)
    was_training = model.training
    model.eval()
    counter = FlopCounterMode(display=False)
    try:  # the fused attention kernels of the processor escape the counter; the plain one is matrix products
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
            model(input_ids=input_ids, attention_mask=torch.ones_like(input_ids))
    finally:
        model.train(was_training)
    return counter.get_total_flops() // 2


def size_bytes(path: Path, runtime: str = "torch", onnx_path: Path | None = None) -> int:
    """Bytes on disk of what that runtime needs deployed: weights, tokenizer, config; nothing twice.

    Of a model folder: for onnxruntime and openvino the graph (``onnx_path``, else the folder's own fp32 one) with weights that lie
    beside it, else the safetensors and the modelling file. Raises ``ModelError`` when there are no such weights.
    """
    path = Path(path)
    if path.is_file():
        return path.stat().st_size
    if runtime in GRAPH_RUNTIMES:
        graph = onnx_path or path / "onnx" / ONNX_FILES["fp32"]
        weights, others = [file for file in (graph, graph.with_name(f"{graph.name}.data")) if file.is_file()], []
    else:
        weights, others = list(path.glob("*.safetensors")), [*path.glob("*.safetensors.index.json"), *path.glob("*.py")]
    if not weights:
        raise ModelError(f"{path}: holds no weights for runtime {runtime!r}")
    tokenizer = TOKENIZER_FILES
    if (path / "tokenizer.json").is_file():  # it holds the vocabulary: the older files beside it say the same again
        tokenizer = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")
    files = [*weights, *others, *(path / name for name in ("config.json", *tokenizer) if (path / name).is_file())]
    return sum(file.stat().st_size for file in files)


def hardware() -> dict[str, Any]:
    """The machine and the versions that the numbers hang on; nothing that names the machine."""
    versions = {}
    for package in ("torch", "transformers", "onnxruntime", "openvino", "scikit-learn", "numpy"):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    return {
        "cpu": _cpu_model(), "cpu_capability": torch.backends.cpu.get_cpu_capability(), "cores": os.cpu_count(),
        "cores_usable": cores_here(), "torch_threads": torch.get_num_threads(), "memory_bytes": _memory_bytes(),
        "os": f"{platform.system()} {platform.release()}", "python": platform.python_version(), **versions,
        "torch": torch.__version__,  # with the build, which the package's own metadata may leave out
        "omp_wait_policy": os.environ.get("OMP_WAIT_POLICY"),
    }  # fmt: skip


def _cpu_model() -> str:
    path = Path("/proc/cpuinfo")  # Linux; elsewhere what Python knows
    names = (
        [line.partition(":")[2].strip() for line in path.read_text().splitlines() if line.startswith("model name")]
        if path.exists()
        else []
    )
    return names[0] if names else platform.processor() or platform.machine()


def _memory_bytes() -> int | None:
    if not hasattr(os, "sysconf") or "SC_PHYS_PAGES" not in os.sysconf_names:
        return None
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def ready_runtime(model: nn.Module, name: str, threads: int, onnx_path: Path, *, precision: str = "fp32") -> Runtime:
    """The model in the named runtime; for those that read a graph it is exported to ``onnx_path`` if not there yet."""
    name = choose_runtime(name)
    if name in IN_MEMORY:
        return IN_MEMORY[name](model, threads)
    if name not in GRAPH_RUNTIMES:
        choices = ", ".join((*IN_MEMORY, *GRAPH_RUNTIMES))
        raise ConfigError(f"runtime: {name!r} cannot be timed from a model in memory; choices: {choices}")
    if not onnx_path.is_file():
        check_onnx(model, export_onnx(model, onnx_path))
    return GRAPH_RUNTIMES[name](onnx_path, threads, precision, model.config.vocab_size)
