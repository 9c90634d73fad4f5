"""The ONNX graph of a model that was trained in int8: QuantizeLinear and DequantizeLinear with the trained scales (QDQ).

Nothing is calibrated here: integers, scales and zero points are those of training, zeros of pruned weights stay zeros, and
what training left in float32 stays so. A runtime turns "dequantise, multiply" into its int8 kernels.

Dimensions: O outputs, I inputs, K kernel.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from adasearch.deploy import DEPLOY_FILE
from adasearch.errors import ConfigError, ModelError
from adasearch.export import copy_tokenizer, export_onnx, export_student, staged
from adasearch.files import read_json
from adasearch.graph_runtimes import ONNX_FILES, WEIGHTS_KEY, weights_of
from adasearch.int8_modules import Grid, Int8Conv1d, Int8Layer, Int8Linear, int8_layers
from adasearch.progress import Progress
from adasearch.quantize_aware import INPUT, MARK, OUTPUT
from adasearch.runtime_base import require_head
from adasearch.settings import is_installed
from adasearch.sparse_files import FILE, SparseModel

OPERATORS = ("MatMul", "Gemm", "Conv")
PACKAGES = ("onnx", "onnxscript", "onnxruntime")
SPARSE = "sparse"  # the part of a folder that holds the integers and scales of a model that was trained in int8


def is_trained_int8(folder: Path) -> bool:
    """Whether a folder's model was trained in int8, and its integers lie beside its rounded weights."""
    config = folder / "config.json"
    return config.is_file() and MARK in read_json(config) and (folder / SPARSE / FILE).is_file()


def export_folder(folder: Path, progress: Progress | None = None) -> list[Path]:
    """Write and check a model folder's graphs; returns their paths. A model that was trained in int8 has one with its scales.

    Graphs of other weights are removed, which ``progress`` hears. Raises as ``export_student`` and ``export_int8``, and ``ModelError``
    for a model without a head for a task.
    """
    require_head(folder)
    written = [export_student(folder), *([export_trained(folder)] if is_trained_int8(folder) else [])]
    _drop_stale(folder, written, progress or Progress())
    return written


def _drop_stale(folder: Path, written: Sequence[Path], progress: Progress) -> None:
    """Remove graphs of other precisions that were made of other weights, and the choice among them: they would answer as before."""
    known = (folder / "onnx" / name for name in ONNX_FILES.values())
    stale = [path for path in known if path not in written and path.is_file() and _is_stale(path, folder)]
    for path in stale:
        path.unlink()
    if stale:
        (folder / DEPLOY_FILE).unlink(missing_ok=True)
        names = ", ".join(path.name for path in stale)
        progress.warning(f"{folder}: {names}: made of other weights, removed with {DEPLOY_FILE}; `adasearch quantize {folder}` writes anew")


def _is_stale(graph: Path, folder: Path) -> bool:
    """Whether a graph was made of other weights than the folder's: by its own word, else where it is older than they are.

    Times alone say little: a copy or a download has them as the files came.
    """
    import onnx

    try:
        said = {entry.key: entry.value for entry in onnx.load(str(graph), load_external_data=False).metadata_props}
    except Exception:  # a half file says nothing; the reader's own errors have no other common base
        said = {}
    if WEIGHTS_KEY in said:
        return said[WEIGHTS_KEY] != weights_of(folder)
    return graph.stat().st_mtime < max((path.stat().st_mtime for path in folder.glob("*.safetensors")), default=0.0)


def export_trained(folder: Path) -> Path:
    """Write the int8 graph of a folder whose model was trained in int8, from the integers and scales in it; returns its path."""
    path = folder / "onnx" / ONNX_FILES["int8"]
    with staged(path) as partial:
        export_int8(SparseModel.from_pretrained(folder / SPARSE), partial, weights=weights_of(folder))
    copy_tokenizer(folder)
    return path


def has_packages() -> bool:
    """Whether graphs can be written and run here."""
    return all(map(is_installed, PACKAGES))


def check_exporter() -> None:
    """Raise ``ConfigError`` where torch is too old to write the operators of int8 graphs."""
    if not hasattr(torch.onnx, "ops"):
        raise ConfigError(
            f"export: int8 graphs need torch 2.8 or newer, here is {torch.__version__}; choices: pip install -U torch, or --export false"
        )


def export_int8(twin: PreTrainedModel, path: Path, *, weights: str | None = None) -> Path:
    """Write the graph of a twin (``int8_twin``); returns ``path``. ``weights`` as in ``export_onnx``.

    Raises as ``export_onnx``, ``ConfigError`` where torch is too old to write the operators, and ``ModelError`` where a model
    has no int8 layers or a graph lost one: an exporter that folds constants would write float32 weights and say nothing.
    """
    layers = {name: layer for name, layer in int8_layers(twin).items() if isinstance(layer, (Int8Linear, Int8Conv1d))}
    if not layers:
        raise ModelError(f"{type(twin).__name__}: it has no int8 layers to export; int8_twin makes such a model")
    check_exporter()
    exported = copy.deepcopy(twin).cpu()
    for name, layer in layers.items():
        kind = QdqLinear if isinstance(layer, Int8Linear) else QdqConv1d
        exported.set_submodule(name, kind(exported.get_submodule(name)))
    export_onnx(exported, path, weights=weights)
    _check_graph(path, len(layers))
    return path


def zeros_of(path: Path) -> tuple[int, int]:
    """How many weights of a graph's int8 matrices and kernels are 0, and how many there are: what a mask left must be there."""
    import onnx
    from onnx import numpy_helper

    graph = onnx.load(str(path)).graph
    weights = {node.input[0] for node in graph.node if node.op_type == "DequantizeLinear"}
    arrays = [numpy_helper.to_array(t) for t in graph.initializer if t.name in weights and t.data_type == onnx.TensorProto.INT8]
    return sum(int((a == 0).sum()) for a in arrays), sum(a.size for a in arrays)


class QdqLayer(nn.Module):
    """An int8 layer in ONNX's words. It can be traced, not called: eager torch knows no such operators."""

    def __init__(self, layer: Int8Layer, integers: Tensor, axis: int):
        super().__init__()
        self.axis = axis
        self.register_buffer("integers", integers.contiguous())
        self.register_buffer("scale", layer.scale.flatten() if layer.scale.numel() > 1 else layer.scale.reshape(()))
        self.register_buffer("zero_point", torch.zeros_like(self.scale, dtype=torch.int8))
        self.bias = layer.bias
        self.input_grid, self.output_grid = (layer._modules[kind] for kind in (INPUT, OUTPUT))

    def weight(self) -> Tensor:
        """DequantizeLinear of the integers; with one scale a row along ``axis``."""
        return _dequantize(self.integers, self.scale, self.zero_point, self.axis if self.scale.ndim else None)


class QdqLinear(QdqLayer):
    """x @ W + bias with W (I, O) as a matrix product wants it: nothing stands between it and its integers."""

    def __init__(self, layer: Int8Linear):
        super().__init__(layer, layer.integers.T, axis=1)

    def forward(self, inputs: Tensor) -> Tensor:
        """As ``Int8Linear``."""
        outputs = _qdq(inputs, self.input_grid) @ self.weight()
        return _qdq(outputs if self.bias is None else outputs + self.bias, self.output_grid)


class QdqConv1d(QdqLayer):
    """A convolution whose bias is int32 with the scale of its sums, as int8 convolutions add it (Jacob et al. 2018, eq. 11).

    Where a row of weights is so small that the bias is beyond int32 in its scale, the bias stays as it is.
    """

    def __init__(self, layer: Int8Conv1d):
        super().__init__(layer, layer.integers, axis=0)
        self.settings = (layer.stride, layer.padding, layer.dilation, layer.groups)
        self.has_integer_bias = False
        if layer.bias is not None and self.input_grid is not None:
            scale_O = (self.input_grid.scale * layer.scale.flatten()).expand(len(layer.bias)).contiguous()
            steps_O = (layer.bias.detach() / scale_O).round()
            self.has_integer_bias = bool((steps_O.abs() < 2**31).all())
        if self.has_integer_bias:
            self.register_buffer("bias_integers", steps_O.to(torch.int32))
            self.register_buffer("bias_scale", scale_O)
            self.register_buffer("bias_zero_point", torch.zeros(len(layer.bias), dtype=torch.int32))

    def forward(self, inputs: Tensor) -> Tensor:
        """As ``Int8Conv1d``, but for the rounding of the bias: half a step of a sum, which has thousands."""
        bias = self.bias
        if self.has_integer_bias:
            bias = _dequantize(self.bias_integers, self.bias_scale, self.bias_zero_point, 0)
        return _qdq(F.conv1d(_qdq(inputs, self.input_grid), self.weight(), bias, *self.settings), self.output_grid)


def _qdq(values: Tensor, grid: Grid | None) -> Tensor:
    """QuantizeLinear and back; values as they are without a grid."""
    if grid is None:
        return values
    inputs = (values, grid.scale, grid.zero_point)
    rounded = torch.onnx.ops.symbolic("QuantizeLinear", inputs, dtype=torch.uint8, shape=values.shape)
    return _dequantize(rounded, grid.scale, grid.zero_point, None)


def _dequantize(integers: Tensor, scale: Tensor, zero_point: Tensor, axis: int | None) -> Tensor:
    attributes = {} if axis is None else {"axis": axis}
    return torch.onnx.ops.symbolic(
        "DequantizeLinear", (integers, scale, zero_point), attributes, dtype=torch.float32, shape=integers.shape
    )


def _check_graph(path: Path, expected: int) -> None:
    """Raise ``ModelError`` unless every int8 layer is one product of integers dequantised right before it."""
    import onnx

    graph = onnx.load(str(path)).graph
    integers = {t.name for t in graph.initializer if t.data_type == onnx.TensorProto.INT8}
    dequantised = {n.output[0] for n in graph.node if n.op_type == "DequantizeLinear" and n.input[0] in integers}
    found = sum(n.op_type in OPERATORS and n.input[1] in dequantised for n in graph.node)
    if found != expected:
        raise ModelError(f"{path}: {found} int8 products where the model has {expected} int8 layers; this exporter cannot write them")
