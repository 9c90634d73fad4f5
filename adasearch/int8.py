"""ONNX graphs in int8: the word table row by row, matrix products and convolutions by static quantisation (QDQ).

What stays fp32: products of two activations (attention), matrices too thin to gain, and the last layer, which makes the
logits. Weights are symmetric with a scale for each output channel; activations are uint8 with an offset, whose ranges
are those of real texts. int8 activations were a third slower on a processor with AVX512-VNNI, and dynamic quantisation,
which measures ranges at every call, several times slower for convolutions.

Dimensions: B batch, L tokens, D width, V vocabulary.
"""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from adasearch.errors import ModelError, one_line
from adasearch.runtime_base import require_onnx
from adasearch.settings import check_choice

CALIBRATIONS = {"minmax": "MinMax", "percentile": "Percentile", "entropy": "Entropy"}  # onnxruntime's names for them
QUANTISED = ("Conv", "MatMul", "Gemm")
THINNEST = 8  # matrices with fewer rows or columns than this gain nothing
Feeds = Mapping[str, np.ndarray]  # input name -> (B, L) int64


def write_int8_embedding(source: Path, target: Path, vocab_size: int) -> Path:
    """Write the graph with its word table as int8 and a scale for each row (a fourth of the bytes); returns ``target``.

    Rows are scaled after they were looked up, so the table stays int8 in memory as well. Raises ``ModelError`` when no
    look-up of input ids in a table of ``vocab_size`` rows is found.
    """
    require_onnx("quantize", "onnx", "onnxruntime")
    import onnx
    from onnx import helper, numpy_helper

    model = onnx.load(str(source))
    graph = model.graph
    tables = {table.name: table for table in graph.initializer if len(table.dims) == 2 and table.dims[0] == vocab_size}
    lookups = [n for n in graph.node if n.op_type == "Gather" and n.input[0] in tables and _axis(n) == 0]
    used_elsewhere = {name for n in graph.node for name in n.input if n not in lookups}
    lookups = [n for n in lookups if n.input[0] not in used_elsewhere]
    if not lookups:
        raise ModelError(f"{source}: no look-up in a word table of {vocab_size} rows is found")
    for name in dict.fromkeys(n.input[0] for n in lookups):
        table_VD = numpy_helper.to_array(tables[name]).astype(np.float32)
        scale_V1 = np.abs(table_VD).max(axis=1, keepdims=True) / 127
        scale_V1[scale_V1 == 0] = 1.0  # rows of zeros, such as padding's
        ints_VD = np.clip(np.rint(table_VD / scale_V1), -127, 127).astype(np.int8)
        graph.initializer.remove(tables[name])
        graph.initializer.append(numpy_helper.from_array(ints_VD, f"{name}.int8"))
        graph.initializer.append(numpy_helper.from_array(scale_V1.astype(np.float32), f"{name}.scale"))
    for node in lookups:
        (table, ids), (out,) = node.input, node.output
        place = list(graph.node).index(node)
        graph.node.remove(node)
        for offset, new in enumerate([
            helper.make_node("Gather", [f"{table}.int8", ids], [f"{out}.int8"], name=f"{out}.rows"),
            helper.make_node("Gather", [f"{table}.scale", ids], [f"{out}.scale"], name=f"{out}.scales"),
            helper.make_node("Cast", [f"{out}.int8"], [f"{out}.float"], name=f"{out}.cast", to=onnx.TensorProto.FLOAT),
            helper.make_node("Mul", [f"{out}.float", f"{out}.scale"], [out], name=f"{out}.scaled"),
        ]):  # fmt: skip
            graph.node.insert(place + offset, new)
    _save(model, target)
    return target


def write_int8(source: Path, target: Path, feeds: Sequence[Feeds], *, calibration: str = "minmax") -> Path:
    """Quantise the graph with the activation ranges that ``feeds`` have; returns ``target``.

    ``calibration``: minmax, percentile (99.999% of the values) or entropy. Raises ``ConfigError`` for another one,
    ``ModelError`` when the graph cannot be quantised or nothing in it can.
    """
    check_choice("calibration", calibration, tuple(CALIBRATIONS))
    require_onnx("quantize", "onnx", "onnxruntime")
    import onnx
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    model = onnx.load(str(source))
    chosen = _worth_quantising(model)
    if not chosen:
        raise ModelError(f"{source}: holds no convolution or matrix product with weights; int8_embedding is its int8")
    try:
        with _quiet():
            quantize_static(
                str(source), str(target), _Reader(feeds), quant_format=QuantFormat.QDQ, per_channel=True,
                activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8, nodes_to_quantize=chosen,
                op_types_to_quantize=list(QUANTISED), calibrate_method=getattr(CalibrationMethod, CALIBRATIONS[calibration]),
                extra_options={
                    # a matrix product may hand on its exact sums as fp32; a convolution in onnxruntime may not
                    "OpTypesToExcludeOutputQuantization": ["MatMul", "Gemm"],
                    # one batch at a time, whatever the method: batches differ in length, and their activations fill memory
                    "CalibStridedMinMax": 1,
                },
            )  # fmt: skip
    except (RuntimeError, ValueError, TypeError, KeyError) as error:
        raise ModelError(f"{source}: cannot be quantised ({one_line(error, 600)})") from error
    quantised = onnx.load(str(target))
    attach_fp32(quantised, chosen)
    for entry in model.metadata_props:  # what says whose graph it is
        if entry.key not in {kept.key for kept in quantised.metadata_props}:
            quantised.metadata_props.append(entry)
    _save(quantised, target)
    return target


def can_be_int8(path: Path) -> bool:
    """Whether a graph holds what ``write_int8`` quantises: one of a look-up and a classifier does not."""
    import onnx

    return bool(_worth_quantising(onnx.load(str(path))))


def quantised_operations(path: Path) -> list[str]:
    """Names of the operations of a quantised graph that compute with int8 activations."""
    import onnx

    graph = onnx.load(str(path)).graph
    made_by = {out: node for node in graph.node for out in node.output}
    return [n.name for n in graph.node if n.op_type in QUANTISED and _raw(n.input[0], made_by) is not None]


def leave_out(path: Path, target: Path, names: Sequence[str]) -> Path:
    """Write the quantised graph with these operations fed, and feeding others, with fp32; returns ``target``.

    Their weights keep their int8 values, and the file its size.
    """
    import onnx

    model = onnx.load(str(path))
    attach_fp32(model, set(quantised_operations(path)) - set(names))
    _save(model, target)
    return target


def attach_fp32(model: Any, quantised: Collection[str]) -> None:
    """Edit in place: whatever is not among the ``quantised`` operations reads fp32 where that is computed anyhow.

    onnxruntime hands the rounded values of a tensor to all that read it, once one of them wants them. The sums of a
    quantised convolution alone are never there in fp32.
    """
    graph = model.graph
    made_by = {out: node for node in graph.node for out in node.output}
    for node in graph.node:
        for index, name in enumerate(node.input):
            raw = None if node.name in quantised else _raw(name, made_by)
            maker = made_by.get(raw)
            if raw is not None and not (maker is not None and maker.op_type == "Conv" and maker.name in quantised):
                node.input[index] = raw
    count = -1
    while count != len(graph.node):  # quantisers that nobody reads any more, last ones first
        count = len(graph.node)
        used = {out.name for out in graph.output} | {name for node in graph.node for name in node.input}
        for node in [node for node in graph.node if not used & set(node.output)]:
            graph.node.remove(node)


def _worth_quantising(model: Any) -> list[str]:
    sizes = {weight.name: list(weight.dims) for weight in model.graph.initializer}
    logits = {out.name for out in model.graph.output}
    chosen = []
    for node in model.graph.node:
        if node.op_type not in QUANTISED or logits & set(node.output) or node.input[1] not in sizes:
            continue
        if node.op_type == "Conv" or min(sizes[node.input[1]]) >= THINNEST:
            chosen.append(node.name)
    return chosen


def _raw(name: str, made_by: Mapping[str, Any]) -> str | None:
    """The fp32 tensor that ``name`` is quantised from and back; None for weights and whatever is not quantised."""
    back = made_by.get(name)
    if back is None or back.op_type != "DequantizeLinear":
        return None
    there = made_by.get(back.input[0])
    return there.input[0] if there is not None and there.op_type == "QuantizeLinear" else None


def _axis(node: Any) -> int:
    return next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 0)


def _save(model: Any, target: Path) -> None:
    import onnx

    target.with_name(f"{target.name}.data").unlink(missing_ok=True)  # onnx would append to it
    weight_bytes = sum(len(weight.raw_data) for weight in model.graph.initializer)
    beside = {"save_as_external_data": True, "location": f"{target.name}.data"} if weight_bytes >= 2_000_000_000 else {}
    onnx.save(model, str(target), **beside)


class _Reader:
    """Hands the calibration's texts to onnxruntime, batch by batch."""

    def __init__(self, feeds: Sequence[Feeds]):
        self._feeds = feeds
        self._rest: Iterator[Feeds] = iter(feeds)

    def __len__(self) -> int:
        return len(self._feeds)

    def set_range(self, start_index: int, end_index: int) -> None:
        """Only the batches of this range come next."""
        self._rest = iter(self._feeds[start_index:end_index])

    def get_next(self) -> dict[str, np.ndarray] | None:
        """The next batch; None after the last."""
        found = next(self._rest, None)
        return None if found is None else dict(found)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence onnxruntime's advice to preprocess what the exporter has done already."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # the histograms' print their steps
            yield
    finally:
        logging.disable(before)
