"""Cold starts: what a fresh process needs until a model has answered for the first time, and the most memory it held.

A process that has timed other models knows nothing of this, so every start has a process of its own. It imports the
runtime's own library and nothing else: onnxruntime and OpenVINO need neither torch nor transformers to serve a graph.
This file is therefore both ends, the one that starts processes and, run as a script, the process itself; at the top
it imports the standard library only. Files were written or read just before: they come from the system's page cache.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from adasearch.progress import Progress

TIMEOUT_S = 300.0  # torch.compile may take minutes; a start that takes longer is given up, and said to be
Call = Callable[[Any, Any], Any]  # ids and mask, (B, L) int64, -> logits
LOWEST_PIECE = 1000  # below it vocabularies keep special and unused pieces; as in measure.random_pieces; this file runs alone, in a fresh process
CHILD = "import runpy, sys; runpy.run_path(sys.argv[1], run_name='__main__')"  # leaves sys.path as it is


@dataclass(frozen=True)
class Deployed:
    """What a process is to load: a model folder in a runtime, at a precision, on so many threads.

    ``graph`` is the ONNX file where the runtime reads one; absent, the folder is loaded by ``load_runtime``.
    """

    model_dir: Path
    runtime: str
    precision: str
    threads: int
    vocab_size: int
    graph: Path | None = None


@dataclass(frozen=True)
class ColdStart:
    """Medians over fresh processes. ``import_s``: the runtime's library; ``load_s``: from files to a model that can be
    called; ``first_inference_ms``: its first call, at the first shape. ``import_rss_bytes`` is the most memory held
    when the library was imported, ``peak_rss_bytes`` when every shape had been called once."""

    import_s: float
    load_s: float
    first_inference_ms: float
    import_rss_bytes: int
    peak_rss_bytes: int
    starts: int


def cold_starts(
    systems: Mapping[str, Deployed], shapes: Sequence[tuple[int, int]], *, starts: int = 3,
    progress: Progress | None = None, timeout_s: float = TIMEOUT_S,
) -> dict[str, ColdStart | None]:  # fmt: skip
    """Start every system ``starts`` times, one process after the other, in turns; shapes are (batch size, length).

    A system whose process fails or takes longer than ``timeout_s`` is None, and a warning says why.
    """
    found: dict[str, list[dict[str, float]]] = {name: [] for name in systems}
    failed: set[str] = set()
    if progress is not None:
        progress.stage("cold starts", total=starts * len(systems))
    for turn in range(starts):
        for index, (name, system) in enumerate(systems.items()):
            if name not in failed:
                try:
                    found[name].append(start_once(system, shapes, timeout_s))
                except ChildFailed as error:
                    failed.add(name)
                    if progress is not None:
                        progress.warning(f"{name}: {system.runtime} {system.precision}: no cold start measured ({error})")
            if progress is not None:
                progress.step(turn * len(systems) + index + 1)
    return {name: None if name in failed else _median(rows) for name, rows in found.items()}


def cold_fields(start: ColdStart | None) -> dict[str, Any]:
    """The keys of a cold start in a row of a table; None where it was not measured."""
    names = ("import_s", "load_s", "first_inference_ms", "import_rss_bytes", "peak_rss_bytes")
    values = {} if start is None else asdict(start)
    return {name: values.get(name) for name in names}


class ChildFailed(Exception):
    """A process did not answer; the text says why."""


def start_once(system: Deployed, shapes: Sequence[tuple[int, int]], timeout_s: float = TIMEOUT_S) -> dict[str, float]:
    """The numbers of one fresh process. Raises ``ChildFailed``."""
    request = {
        "model_dir": os.path.abspath(system.model_dir), "runtime": system.runtime, "precision": system.precision,
        "threads": system.threads, "vocab_size": system.vocab_size, "shapes": [list(shape) for shape in shapes],
        "graph": None if system.graph is None else os.path.abspath(system.graph),
        "root": str(Path(__file__).resolve().parents[1]),
    }  # fmt: skip
    threads = {name: str(system.threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    environment = {**os.environ, **threads, "OMP_WAIT_POLICY": "PASSIVE"}
    with tempfile.TemporaryDirectory(prefix="adasearch-cold-") as nowhere:  # so that no file here hides a library
        child = subprocess.Popen(
            [sys.executable, "-c", CHILD, os.path.abspath(__file__), json.dumps(request)], cwd=nowhere, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, env=environment,
            start_new_session=True,
        )  # fmt: skip
        try:
            answer, complaint = child.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired as error:
            raise ChildFailed(f"no answer in {timeout_s:.0f} s") from error
        finally:
            _end_group(child)
    lines = [line for line in answer.splitlines() if line.startswith("{")]
    if child.returncode != 0 or not lines:
        words = complaint.strip().splitlines()
        raise ChildFailed(words[-1] if words else f"exit code {child.returncode}, nothing said")
    return json.loads(lines[-1])


def _end_group(child: subprocess.Popen[str]) -> None:
    """End the process, and what it may have started (compilers), unless all is over."""
    if child.poll() is None:
        try:
            os.killpg(child.pid, signal.SIGKILL)
        except (AttributeError, ProcessLookupError):  # no groups (Windows), or just gone
            child.kill()
        child.communicate()


def _median(rows: Sequence[Mapping[str, float]]) -> ColdStart | None:
    if not rows:
        return None

    def middle(name: str) -> float:
        values = sorted(row[name] for row in rows)
        return (values[(len(values) - 1) // 2] + values[len(values) // 2]) / 2

    return ColdStart(
        middle("import_s"), middle("load_s"), middle("first_inference_ms"), int(middle("import_rss_bytes")),
        int(middle("peak_rss_bytes")), len(rows),
    )  # fmt: skip


def peak_rss_bytes() -> int:
    """The most memory this process has held so far. 0 where the system does not tell (Windows)."""
    status = Path("/proc/self/status")  # Linux: ru_maxrss outlives exec there, so it may be the parent's
    if status.exists() and (found := re.search(r"^VmHWM:\s*(\d+) kB", status.read_text(), re.M)):
        return int(found.group(1)) * 1024
    try:
        import resource
    except ImportError:
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # KiB, but bytes on macOS


def answer_request(request: dict[str, Any]) -> dict[str, float]:
    """In the fresh process: import, load, call every shape once; the numbers of ``ColdStart``."""
    clock = time.perf_counter
    begun = clock()
    load = _importer(request)
    imported, import_rss_bytes = clock(), peak_rss_bytes()
    call = load()
    loaded = clock()
    import numpy as np  # every runtime has imported it

    first_s = 0.0
    for index, (batch, length) in enumerate(request["shapes"]):
        lowest = min(LOWEST_PIECE, request["vocab_size"] // 2)
        ids_BL = np.random.default_rng(0).integers(lowest, request["vocab_size"], (batch, length), dtype=np.int64)
        before = clock()
        call(ids_BL, np.ones_like(ids_BL))
        first_s = first_s if index else clock() - before
    return {
        "import_s": imported - begun, "load_s": loaded - imported, "first_inference_ms": first_s * 1e3,
        "import_rss_bytes": import_rss_bytes, "peak_rss_bytes": peak_rss_bytes(),
    }  # fmt: skip


def _importer(request: dict[str, Any]) -> Callable[[], Call]:
    """Import the runtime's library; returns the function that loads the model with it."""
    known = {"onnxruntime": _import_onnxruntime, "openvino": _import_openvino}
    if request["graph"] is not None and request["runtime"] in known:
        return known[request["runtime"]](request["graph"], request["threads"], request["precision"])
    sys.path.append(request["root"])  # where adasearch lies when it is not installed; never before a library
    from adasearch.runtimes import load_runtime

    return lambda: load_runtime(
        request["runtime"], Path(request["model_dir"]), request["threads"], request["precision"]
    )


def _import_onnxruntime(graph: str, threads: int, precision: str) -> Callable[[], Call]:
    """As ``runtimes.OnnxRuntime`` opens a graph, without torch."""
    import onnxruntime

    def load() -> Call:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        names = {node.name for node in session.get_inputs()}
        return lambda ids_BL, mask_BL: session.run(None, _feeds(names, ids_BL, mask_BL))[0]

    return load


def _import_openvino(graph: str, threads: int, precision: str) -> Callable[[], Call]:
    """As ``runtimes`` opens a graph in OpenVINO, without torch."""
    import openvino

    def load() -> Call:
        settings = {
            "PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": "1", "INFERENCE_NUM_THREADS": threads,
            "ENABLE_CPU_PINNING": False, "INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16" else "f32",
        }  # fmt: skip
        compiled = openvino.Core().compile_model(graph, "CPU", settings)
        names, serve = {port.get_any_name() for port in compiled.inputs}, compiled.create_infer_request()
        return lambda ids_BL, mask_BL: serve.infer(_feeds(names, ids_BL, mask_BL))[0]

    return load


def _feeds(names: set[str], ids_BL: Any, mask_BL: Any) -> dict[str, Any]:
    """What the graph asks for: ids and mask, and zeros as token types."""
    given = {"input_ids": ids_BL, "attention_mask": mask_BL, "token_type_ids": ids_BL * 0}
    return {name: array for name, array in given.items() if name in names}


if __name__ == "__main__":
    print(json.dumps(answer_request(json.loads(sys.argv[2]))))
