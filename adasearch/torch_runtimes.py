"""PyTorch as a runtime, eager and compiled, in fp32 or bf16. Both read the folder's own weights.

Dimensions: B batch, L tokens, C labels.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedModel

from adasearch.errors import ModelError, one_line
from adasearch.model_inputs import uses_token_types
from adasearch.runtime_base import Runtime, load_classifier, register_runtime
from adasearch.trace import input_names, logits_of, trace

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


class TorchRuntime(Runtime):
    """Eager PyTorch on the processor."""

    name = "torch"

    def __init__(self, model: PreTrainedModel, threads: int):
        self.model, self.threads = model.eval(), threads
        self.precision = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}.get(
            model.dtype, str(model.dtype)
        )
        self.vocab_size = model.config.vocab_size
        self._takes_types = uses_token_types(model.config)

    def __call__(
        self, input_ids: np.ndarray, attention_mask: np.ndarray, token_type_ids: np.ndarray | None = None
    ) -> np.ndarray:
        """See ``Runtime``."""
        self._set_threads()
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask}
        if self._takes_types and token_type_ids is not None:
            inputs["token_type_ids"] = token_type_ids
        with torch.inference_mode():
            logits = logits_of(self.model(**{name: torch.from_numpy(array) for name, array in inputs.items()}))
        return logits.float().numpy()

    def _set_threads(self) -> None:
        if torch.get_num_threads() != self.threads:  # a setting of the whole process: somebody else may have moved it
            torch.set_num_threads(self.threads)


class CompiledTorchRuntime(TorchRuntime):
    """torch.compile on the processor. What is compiled is the traced graph, in which batch and length are free.

    Kernels are generated at the first call, for seconds to a minute, and again at the first one of another kind: a
    single text, a small batch, a large one (torch puts the border at 16), texts of one token. The model as it is
    written would be compiled anew for every length: ``max_pool1d`` and breaks in the graph fix it.
    """

    name = "torch_compile"

    def __init__(self, model: PreTrainedModel, threads: int):
        super().__init__(model, threads)
        try:
            program = trace(model)
        except (RuntimeError, ValueError, TypeError) as error:
            raise ModelError(f"runtime: torch_compile cannot trace {_say(model, error)}") from error
        self._names = input_names(model)
        self._compiled = torch.compile(program.module(), dynamic=True, fullgraph=True)

    def __call__(
        self, input_ids: np.ndarray, attention_mask: np.ndarray, token_type_ids: np.ndarray | None = None
    ) -> np.ndarray:
        """See ``Runtime``. Raises ``ModelError`` when the model cannot be compiled."""
        self._set_threads()
        types = np.zeros_like(input_ids) if token_type_ids is None else token_type_ids
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask, "token_type_ids": types}
        try:
            with torch.inference_mode():
                return self._compiled(*(torch.from_numpy(inputs[name]) for name in self._names)).float().numpy()
        except torch._dynamo.exc.TorchDynamoException as error:
            raise ModelError(f"runtime: torch_compile cannot compile {_say(self.model, error)}") from error


def _say(model: PreTrainedModel, error: Exception) -> str:
    return f"{type(model).__name__} ({one_line(error, 600)})"


def _without_compiler() -> str | None:
    """Why torch.compile cannot work: it writes C++. ``CXX`` is where torch, too, looks for the compiler."""
    compiler = os.environ.get("CXX", {"darwin": "clang++", "win32": "cl"}.get(sys.platform, "g++"))
    if shutil.which(compiler) is not None:
        return None
    return f"runtime: 'torch_compile' needs a C++ compiler, and {compiler!r} is not there; install it, or choose torch"


@register_runtime("torch", precisions=("fp32", "bf16"))
def load_torch(model_dir: Path, threads: int, precision: str = "fp32") -> Runtime:
    """The folder's own weights, rounded to ``precision``."""
    return TorchRuntime(load_classifier(model_dir).to(DTYPES[precision]), threads)


@register_runtime("torch_compile", precisions=("fp32", "bf16"), missing=_without_compiler)
def load_torch_compile(model_dir: Path, threads: int, precision: str = "fp32") -> Runtime:
    """The same, compiled at its first calls."""
    return CompiledTorchRuntime(load_classifier(model_dir).to(DTYPES[precision]), threads)
