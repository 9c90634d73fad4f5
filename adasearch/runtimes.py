"""Runtimes: the programs that execute a saved classifier. All answer one call, so any system can be timed in any.

Dimensions: B batch, L tokens, C labels.
"""

from __future__ import annotations

import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedModel

import adasearch
from adasearch.errors import ConfigError, ModelError
from adasearch.files import read_json
from adasearch.registry import Registry

ONNX_FILES = {"fp32": "model.onnx", "int8": "model_int8.onnx"}  # by precision, in the model's folder ``onnx/``


class Runtime(ABC):
    """A loaded classifier, ready to be called.

    Attributes: ``name`` of the runtime, ``precision`` of its weights ("fp32", "bf16", "int8"), ``threads`` it computes
    on, ``vocab_size`` of the model: input ids must be smaller.
    """

    name: str
    precision: str
    threads: int
    vocab_size: int

    @abstractmethod
    def __call__(
        self, input_ids: np.ndarray, attention_mask: np.ndarray, token_type_ids: np.ndarray | None = None
    ) -> np.ndarray:
        """Logits (B, C) float32 of ids and mask, (B, L) int64.

        ``token_type_ids`` (0 first text, 1 second) are for pairs and for models that have such embeddings; None means
        one text, all zeros, as in transformers. A model without them is not fed any.
        """


RUNTIMES: Registry[Callable[[Path, int, str], Runtime]] = Registry(
    "runtime"
)  # (model folder, threads, precision) -> Runtime


def load_classifier(model_dir: Path) -> PreTrainedModel:
    """A sequence classifier from a folder, in float32 and eval mode. Nothing is downloaded, no foreign code is run.

    Raises ``ModelError`` when the folder holds none that can be loaded.
    """
    if not (Path(model_dir) / "config.json").is_file():
        raise ModelError(f"{model_dir}: no model folder (config.json is missing)")
    adasearch.register_student()
    try:
        config = AutoConfig.from_pretrained(model_dir, local_files_only=True)
        model = AutoModelForSequenceClassification.from_pretrained(
            model_dir, config=config, dtype=torch.float32, local_files_only=True, use_safetensors=True
        )
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"{model_dir}: no sequence classifier can be loaded ({one_line(error)})") from error
    return model.eval()


def one_line(error: BaseException) -> str:
    """An error's text, or its kind, without line breaks."""
    return " ".join(str(error).split()) or type(error).__name__


def uses_token_types(model: PreTrainedModel) -> bool:
    """Whether token type ids change what the model says: it has embeddings for more than one type."""
    return (getattr(model.config, "type_vocab_size", 0) or 0) > 1


class TorchRuntime(Runtime):
    """Eager PyTorch on the processor."""

    name = "torch"

    def __init__(self, model: PreTrainedModel, threads: int):
        self.model, self.threads = model.eval(), threads
        self.precision = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}.get(
            model.dtype, str(model.dtype)
        )
        self.vocab_size = model.config.vocab_size
        self._takes_types = uses_token_types(model)

    def __call__(
        self, input_ids: np.ndarray, attention_mask: np.ndarray, token_type_ids: np.ndarray | None = None
    ) -> np.ndarray:
        """See ``Runtime``."""
        if torch.get_num_threads() != self.threads:  # a setting of the whole process: somebody else may have moved it
            torch.set_num_threads(self.threads)
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask}
        if self._takes_types and token_type_ids is not None:
            inputs["token_type_ids"] = token_type_ids
        with torch.inference_mode():
            logits = self.model(**{name: torch.from_numpy(array) for name, array in inputs.items()}).logits
        return logits.float().numpy()


class OnnxRuntime(Runtime):
    """onnxruntime on the processor, one graph at a time.

    Its idle threads sleep instead of spinning: with another program on the machine, spinning ones cost far more than
    the microseconds they save.
    """

    name = "onnxruntime"

    def __init__(self, path: Path, threads: int, precision: str = "fp32", vocab_size: int = 0):
        require_onnxruntime()
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
        self.threads, self.precision, self.vocab_size = threads, precision, vocab_size

    def __call__(
        self, input_ids: np.ndarray, attention_mask: np.ndarray, token_type_ids: np.ndarray | None = None
    ) -> np.ndarray:
        """See ``Runtime``."""
        feeds = {"input_ids": input_ids, "attention_mask": attention_mask}
        if "token_type_ids" in self.input_names:
            feeds["token_type_ids"] = np.zeros_like(input_ids) if token_type_ids is None else token_type_ids
        return self.session.run(None, {name: array for name, array in feeds.items() if name in self.input_names})[0]


def require_onnxruntime() -> None:
    """Raise ``ConfigError`` that says how to get onnxruntime unless it is installed."""
    if importlib.util.find_spec("onnxruntime") is None:
        raise ConfigError("runtime: 'onnxruntime' is not installed; pip install 'adasearch[onnx]', or choose torch")


@RUNTIMES.register("torch")
def load_torch(model_dir: Path, threads: int, precision: str = "fp32") -> Runtime:
    """The folder's own weights. Raises ``ConfigError`` for a precision that only another runtime has."""
    if precision != "fp32":
        raise ConfigError(f"precision: {precision!r} is not known to runtime 'torch'; choices: fp32")
    return TorchRuntime(load_classifier(model_dir), threads)


@RUNTIMES.register("onnxruntime")
def load_onnxruntime(model_dir: Path, threads: int, precision: str = "fp32") -> Runtime:
    """The folder's ``onnx/`` file of that precision. Raises ``ModelError`` when it was not exported."""
    require_onnxruntime()
    if precision not in ONNX_FILES:
        raise ConfigError(
            f"precision: {precision!r} is not known to runtime 'onnxruntime'; choices: {', '.join(ONNX_FILES)}"
        )
    path = Path(model_dir) / "onnx" / ONNX_FILES[precision]
    if not path.is_file():
        raise ModelError(f"{path}: not there; `adasearch export {model_dir}` writes it")
    return OnnxRuntime(path, threads, precision, read_vocab_size(model_dir))


def read_vocab_size(model_dir: Path) -> int:
    """``vocab_size`` of the folder's config.json. Raises ``ModelError`` when it cannot be read."""
    path = Path(model_dir) / "config.json"
    try:
        config: dict[str, Any] = read_json(path)
        return int(config["vocab_size"])
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"{path}: no vocab_size can be read ({one_line(error)})") from error


def choose_runtime(name: str = "auto") -> str:
    """``auto`` is onnxruntime where it is installed, else torch. ``ConfigError`` for an unknown or missing one."""
    if name == "auto":
        return "onnxruntime" if importlib.util.find_spec("onnxruntime") is not None else "torch"
    if name not in RUNTIMES:
        raise ConfigError(f"runtime: {name!r} is not known; choices: auto, {', '.join(sorted(RUNTIMES))}")
    if name == "onnxruntime":
        require_onnxruntime()
    return name


def load_runtime(name: str, model_dir: Path, threads: int = 1, precision: str = "fp32") -> Runtime:
    """The model of a folder in the named runtime (or ``auto``). Raises ``ConfigError`` or ``ModelError``."""
    if threads < 1:
        raise ConfigError(f"threads: {threads} is out of range; choices: 1 or more")
    return RUNTIMES[choose_runtime(name)](Path(model_dir), threads, precision)
