"""Runtimes: the programs that execute a saved classifier. All answer one call, so any system can be timed in any.

A runtime is one class and one registration, which says in what precisions it computes and what it needs here.
"""

from __future__ import annotations

from pathlib import Path

from adasearch.errors import ConfigError
from adasearch.graph_runtimes import ONNX_FILES, OnnxRuntime, OpenvinoRuntime, graph_file, load_onnxruntime
from adasearch.runtime_base import (
    RUNTIMES, Runtime, RuntimeKind, count_labels, load_classifier, read_vocab_size, register_runtime, require_runtime,
)  # fmt: skip
from adasearch.settings import is_installed
from adasearch.torch_runtimes import CompiledTorchRuntime, TorchRuntime

__all__ = [
    "ONNX_FILES", "RUNTIMES", "CompiledTorchRuntime", "OnnxRuntime", "OpenvinoRuntime", "Runtime", "RuntimeKind",
    "TorchRuntime", "available_runtimes", "choose_precision", "choose_runtime", "count_labels", "graph_file",
    "load_classifier", "load_onnxruntime", "load_runtime", "read_vocab_size", "register_runtime",
]  # fmt: skip


def available_runtimes() -> dict[str, tuple[str, ...]]:
    """The runtimes that can be used here, and the precisions each offers on this machine."""
    return {name: RUNTIMES[name].offers() for name in RUNTIMES if RUNTIMES[name].missing() is None}


def choose_runtime(name: str = "auto") -> str:
    """``auto`` is onnxruntime where it is installed, else torch. ``ConfigError`` for an unknown or missing one."""
    if name == "auto":
        return "onnxruntime" if is_installed("onnxruntime") else "torch"
    if name not in RUNTIMES:
        raise ConfigError(f"runtime: {name!r} is not known; choices: auto, {', '.join(sorted(RUNTIMES))}")
    require_runtime(name)
    return name


def choose_precision(runtime: str, precision: str) -> str:
    """``precision``, if the runtime computes in it here. Raises ``ConfigError`` naming those in which it does."""
    offered = RUNTIMES[runtime].offers()
    if precision not in offered:
        known = "offered by this machine to" if precision in RUNTIMES[runtime].precisions else "known to"
        raise ConfigError(f"precision: {precision!r} is not {known} runtime {runtime!r}; choices: {', '.join(offered)}")
    return precision


def load_runtime(name: str, model_dir: Path, threads: int = 1, precision: str = "fp32") -> Runtime:
    """The model of a folder in the named runtime (or ``auto``). Raises ``ConfigError`` or ``ModelError``."""
    if threads < 1:
        raise ConfigError(f"threads: {threads} is out of range; choices: 1 or more")
    name = choose_runtime(name)
    return RUNTIMES[name].load(Path(model_dir), threads, choose_precision(name, precision))
