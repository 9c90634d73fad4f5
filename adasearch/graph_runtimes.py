"""The runtimes that read ONNX graphs, onnxruntime and OpenVINO, and the check that a graph belongs to its folder.

Dimensions: B batch, L tokens, C labels.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from adasearch.errors import ModelError, one_line
from adasearch.files import fingerprint
from adasearch.runtime_base import (
    Runtime, count_labels, needs_package, read_vocab_size, register_runtime, require_runtime,
)  # fmt: skip

# by precision, in the model's folder ``onnx/``; bf16 is no file: OpenVINO rounds what it reads from the fp32 graph
ONNX_FILES = {"fp32": "model.onnx", "int8": "model_int8.onnx", "int8_embedding": "model_int8_embedding.onnx"}
# in a graph's metadata: rows of the word table, and the fingerprint of the weights it was made of
VOCABULARY_KEY, WEIGHTS_KEY = "adasearch.vocab_size", "adasearch.weights"


class OnnxRuntime(Runtime):
    """onnxruntime on the processor, one graph at a time.

    Its idle threads sleep instead of spinning: with another program on the machine, spinning ones cost far more than
    the microseconds they save.
    """

    name = "onnxruntime"

    def __init__(self, path: Path, threads: int, precision: str = "fp32", vocab_size: int = 0):
        require_runtime("onnxruntime")
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3  # errors only
        try:
            self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # its own exceptions have no other common base
            raise ModelError(f"{path}: onnxruntime cannot load it ({one_line(error)})") from error
        self.input_names = {node.name for node in self.session.get_inputs()}
        self.metadata = dict(self.session.get_modelmeta().custom_metadata_map)
        labels = self.session.get_outputs()[0].shape[-1]
        self.labels = labels if isinstance(labels, int) else None
        self.threads, self.precision, self.vocab_size = threads, precision, vocab_size

    def __call__(
        self, input_ids: np.ndarray, attention_mask: np.ndarray, token_type_ids: np.ndarray | None = None
    ) -> np.ndarray:
        """See ``Runtime``."""
        return self.session.run(None, _feeds(self.input_names, input_ids, attention_mask, token_type_ids))[0]


@functools.cache
def openvino_core() -> Any:
    """The process's one ``openvino.Core``, never freed.

    Each core gives the thread a signal stack of its own and puts the one before it back when it is freed. Of two that are freed
    in the order of their making the second puts back what the first has freed, and the next Ctrl-C ends in a segmentation fault
    (OpenVINO 2026.4).
    """
    import openvino

    return openvino.Core()


class OpenvinoRuntime(Runtime):
    """OpenVINO on the processor, one stream for one text (or batch) at a time, shapes left free.

    Its threads are not pinned to cores: a pinned thread waits for whatever else runs on its core.
    """

    name = "openvino"

    def __init__(
        self, path: Path, threads: int, precision: str = "fp32", vocab_size: int = 0, settings: Mapping[str, Any] | None = None
    ):
        """``settings`` are further properties of OpenVINO's processor plugin, such as CPU_SPARSE_WEIGHTS_DECOMPRESSION_RATE."""
        properties = {
            "PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": "1", "INFERENCE_NUM_THREADS": threads,
            "ENABLE_CPU_PINNING": False,
            # said in so many words: by itself OpenVINO takes bf16 wherever the processor has it
            "INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16" else "f32", **(settings or {}),
        }  # fmt: skip
        try:
            graph = openvino_core().read_model(str(path))
            places = {key: ["framework", key] for key in (VOCABULARY_KEY, WEIGHTS_KEY)}
            self.metadata = {key: graph.get_rt_info(place).value for key, place in places.items() if graph.has_rt_info(place)}
            self.compiled = openvino_core().compile_model(graph, "CPU", properties)
        except Exception as error:  # its own exceptions have no other common base
            raise ModelError(f"{path}: OpenVINO cannot load it ({one_line(error, 600)})") from error
        self.request = self.compiled.create_infer_request()
        self.input_names = {port.get_any_name() for port in self.compiled.inputs}
        labels = self.compiled.output(0).get_partial_shape()[1]
        self.labels = labels.get_length() if labels.is_static else None
        self.threads, self.precision, self.vocab_size = threads, precision, vocab_size

    def __call__(
        self, input_ids: np.ndarray, attention_mask: np.ndarray, token_type_ids: np.ndarray | None = None
    ) -> np.ndarray:
        """See ``Runtime``."""
        feeds = _feeds(self.input_names, input_ids, attention_mask, token_type_ids)
        self.request.infer(feeds)
        return self.request.get_output_tensor(0).data.copy()  # the tensor itself is overwritten by the next call


def _feeds(
    names: set[str], input_ids: np.ndarray, attention_mask: np.ndarray, token_type_ids: np.ndarray | None
) -> dict[str, np.ndarray]:
    """What a graph with these inputs is fed; token types are zeros where the caller has none."""
    feeds = {"input_ids": input_ids, "attention_mask": attention_mask}
    if "token_type_ids" in names:
        feeds["token_type_ids"] = np.zeros_like(input_ids) if token_type_ids is None else token_type_ids
    return {name: array for name, array in feeds.items() if name in names}


def _openvino_precisions() -> tuple[str, ...]:
    """bf16 only where the processor computes in it: elsewhere OpenVINO would compute in fp32 and not say so."""
    capabilities = openvino_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return ("fp32", *(("bf16",) if "BF16" in capabilities else ()), "int8", "int8_embedding")


@register_runtime("onnxruntime", precisions=tuple(ONNX_FILES), missing=needs_package("onnxruntime", "onnx"))
def load_onnxruntime(model_dir: Path, threads: int, precision: str = "fp32") -> Runtime:
    """The folder's ``onnx/`` file of that precision. Raises ``ModelError`` when it is not there or not this model's."""
    path = graph_file(model_dir, precision)
    runtime = OnnxRuntime(path, threads, precision, read_vocab_size(model_dir))
    check_graph(path, Path(model_dir), runtime.labels, runtime.metadata)
    return runtime


@register_runtime(
    "openvino", precisions=("fp32", "bf16", "int8", "int8_embedding"), missing=needs_package("openvino", "openvino"),
    offers=_openvino_precisions,
)  # fmt: skip
def load_openvino(model_dir: Path, threads: int, precision: str = "fp32") -> Runtime:
    """The same files in OpenVINO; bf16 is the fp32 graph, rounded while it is loaded. Raises ``ModelError`` likewise."""
    path = graph_file(model_dir, precision)
    runtime = OpenvinoRuntime(path, threads, precision, read_vocab_size(model_dir))
    check_graph(path, Path(model_dir), runtime.labels, runtime.metadata)
    return runtime


def graph_file(model_dir: Path, precision: str) -> Path:
    """The ONNX file that a precision is computed from. Raises ``ModelError`` when it is not there."""
    name = ONNX_FILES["fp32" if precision == "bf16" else precision]
    path = Path(model_dir) / "onnx" / name
    if not path.is_file():
        verb = "export" if name == ONNX_FILES["fp32"] else "quantize"
        raise ModelError(f"{path}: not there; `adasearch {verb} {model_dir}` writes it")
    return path


def check_graph(path: Path, model_dir: Path, labels: int | None, metadata: Mapping[str, str]) -> None:
    """Raise ``ModelError`` unless the graph has the folder's labels, vocabulary and weights: it may be of another task or training.

    A graph that was not written by this package says nothing of its vocabulary, and one of a model in no folder nothing of weights.
    """
    expected = {"labels": count_labels(model_dir), "vocabulary": read_vocab_size(model_dir)}
    found = {"labels": labels, "vocabulary": int(metadata[VOCABULARY_KEY]) if VOCABULARY_KEY in metadata else None}
    for what, number in found.items():
        if number is not None and number != expected[what]:
            raise ModelError(
                f"{path}: is the graph of another task: its {what} count {number}, those of "
                f"{model_dir / 'config.json'} {expected[what]}; `adasearch export {model_dir}` writes it anew"
            )
    if WEIGHTS_KEY in metadata and weights_of(model_dir) not in (None, metadata[WEIGHTS_KEY]):
        raise ModelError(f"{path}: was made of other weights than those of {model_dir}; `adasearch export {model_dir}` writes it anew")


def weights_of(model_dir: Path) -> str | None:
    """The fingerprint of a folder's weights, by which a graph knows what it was made of; None where there are none."""
    files = [path.resolve() for path in sorted(Path(model_dir).glob("*.safetensors"))]
    return _fingerprint_of(tuple((path, path.stat().st_size, path.stat().st_mtime_ns) for path in files)) if files else None


@functools.cache
def _fingerprint_of(files: tuple[tuple[Path, int, int], ...]) -> str:
    """Of the content of files; once for each size and time of theirs: quantising loads half a dozen graphs of one folder."""
    return fingerprint(*(path for path, _, _ in files))
