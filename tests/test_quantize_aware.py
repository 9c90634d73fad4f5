"""Laws of int8 in a model: what is quantised, mask before rounding, twins and graphs that compute the same, order refused."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny_kinds import KINDS, a_model, inputs, logits
from tiny_masked import tiny_bert
from transformers import BertForMaskedLM, PreTrainedModel

from adasearch.config import FitConfig
from adasearch.errors import ConfigError, ModelError
from adasearch.int8_modules import int8_layers, int8_twin
from adasearch.methods.qat import QuantizeAware
from adasearch.prune_ofa_config import Int8Config
from adasearch.qdq_export import QdqConv1d, export_int8, zeros_of
from adasearch.quantize_aware import attach_int8, bake_int8, find_int8, stacked_layers
from adasearch.quantize_model import weight_integers
from adasearch.runtimes import OnnxRuntime, OpenvinoRuntime, is_installed
from adasearch.sparse_model import attach_masks, lock_pattern, prune_once, prune_to

every_kind = pytest.mark.parametrize("kind", KINDS)
needs_onnx = pytest.mark.skipif(not is_installed("onnxruntime"), reason="onnxruntime is not installed")


def trained(kind: str, **settings: object) -> PreTrainedModel:
    """With quantisers that have seen some batches."""
    model = a_model(kind)
    attach_int8(model, **settings)
    model.train()
    for count in (5, 6, 7):
        model(**inputs(kind, count))
    return model.eval()


@every_kind
def test_all_layers_have_int8_weights_and_inputs(kind: str) -> None:
    model = a_model(kind)
    layers = [name for name, m in model.named_modules() if isinstance(m, (torch.nn.Linear, torch.nn.Conv1d))]
    found = attach_int8(model)
    assert list(found.weights) == list(found.inputs) == layers and layers
    exact = {"classifier", "out_proj"} | (set() if kind == "student" else {"value", "v_lin", "out_lin", "lin2"})
    assert not any(name.rpartition(".")[2] in exact for name in found.outputs)
    assert any(name.endswith(("query", "q_lin")) for name in found.outputs)
    if kind == "student":
        assert {name for name in layers if name.endswith("convolution")} <= set(found.outputs)


def test_outputs_are_rounded_as_published() -> None:
    found = attach_int8(a_model("bert"))
    layer = "bert.encoder.layer.0"
    rounded = {f"{layer}.{part}" for part in ("attention.self.query", "attention.self.key", "intermediate.dense")}
    assert {name for name in found.outputs if name.startswith(layer)} == rounded and "bert.pooler.dense" in found.outputs


def test_one_layer_is_the_formula_by_hand() -> None:
    model = trained("bert")
    layer = model.bert.encoder.layer[0].attention.self.query
    x = torch.randn(2, 3, 16)
    s_in, z_in = layer.input_quantizer.grid()
    s_out, z_out = layer.output_quantizer.grid()
    weight = layer.parametrizations.weight.original.detach()
    s_w = weight.abs().max() / 127
    x_hat = ((x / s_in).round() + z_in).clamp(0, 255).sub(z_in) * s_in
    y = F.linear(x_hat, (weight / s_w).round() * s_w, layer.bias)
    y_hat = ((y / s_out).round() + z_out).clamp(0, 255).sub(z_out) * s_out
    torch.testing.assert_close(layer(x), y_hat, rtol=0, atol=1e-5)


@pytest.mark.parametrize("quantizer", ["min_max", "dynamic_scale", "lsq", "pact"])
def test_pruned_weights_stay_zero_and_do_not_move_the_scale(quantizer: str) -> None:
    model = a_model("bert")
    names = stacked_layers(model)
    before = {name: model.get_submodule(name).weight.detach().clone() for name in names}
    attach_masks(model, names=names)
    prune_to(model, 0.9)
    attach_int8(model, quantizer=quantizer, per="row")
    for name in names:
        layer = model.get_submodule(name)
        integers, scale = weight_integers(layer)
        kept = layer.parametrizations.weight[0].mask
        assert (integers[~kept] == 0).all() and (layer.weight[~kept] == 0).all() and (integers[kept] != 0).any()
        if quantizer == "dynamic_scale":  # a mean over the zeros, too, would be ten times less
            magnitudes = before[name].abs() * kept
            mean = magnitudes.sum(1) / kept.sum(1).clamp_min(1)
            gamma = layer.parametrizations.weight[1].gamma.detach().flatten()
            torch.testing.assert_close((scale * 127).flatten(), gamma * mean, rtol=1e-4, atol=1e-7)


def test_gradients_reach_all_weights_but_those_of_pruned_ones() -> None:
    model = a_model("bert").train()
    prune_once(model, 0.5)
    lock_pattern(model)
    attach_int8(model)
    model(**inputs("bert")).logits.square().sum().backward()
    for name in stacked_layers(model):
        chain = model.get_submodule(name).parametrizations.weight
        gradient = chain.original.grad
        assert (gradient[~chain[0].mask] == 0).all() and (gradient[chain[0].mask] != 0).any(), name


@every_kind
@pytest.mark.parametrize("per", ["tensor", "row"])
def test_the_twin_computes_the_same_in_every_bit(kind: str, per: str) -> None:
    model = trained(kind, per=per, embeddings=True)
    twin = int8_twin(model)
    assert torch.equal(logits(twin, kind), logits(model, kind))
    assert torch.equal(logits(copy.deepcopy(model), kind), logits(model, kind))
    assert all(layer.integers.dtype == torch.int8 for layer in int8_layers(twin).values())
    assert not torch.equal(logits(twin, kind), logits(a_model(kind), kind)), "something is rounded"


def test_baked_weights_are_the_rounded_ones_and_the_hooks_are_gone() -> None:
    model = trained("bert")
    name = stacked_layers(model)[0]
    weight = model.get_submodule(name).weight.detach().clone()
    names = set(a_model("bert").state_dict())
    bake_int8(model)
    assert torch.equal(model.get_submodule(name).weight, weight) and set(model.state_dict()) == names
    assert not find_int8(model).activations and not model.get_submodule(name)._forward_hooks and not model.get_submodule(name)._forward_pre_hooks


def check_grids(path: Path, model: PreTrainedModel) -> None:
    """Each int8 product reads what was rounded to its layer's own levels, and what it makes is rounded where its layer's outputs are."""
    import onnx
    from onnx import numpy_helper

    graph = onnx.load(str(path)).graph
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    made_by = {out: node for node in graph.node for out in node.output}
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)

    def levels(there: onnx.NodeProto) -> tuple[float, int]:
        (back,) = readers[there.output[0]]
        assert (there.op_type, back.op_type) == ("QuantizeLinear", "DequantizeLinear") and there.input[1:] == back.input[1:]
        scale, zero_point = (arrays[name] for name in there.input[1:])
        assert zero_point.dtype == np.uint8
        return scale.item(), zero_point.item()

    found = find_int8(model)
    for name in found.weights:
        integers = weight_integers(model.get_submodule(name))[0].numpy()
        integers = integers.T if integers.ndim == 2 else integers
        (key,) = [key for key, array in arrays.items() if array.dtype == np.int8 and np.array_equal(array, integers)]
        (weight,) = readers[key]
        (product,) = readers[weight.output[0]]
        assert levels(made_by[made_by[product.input[0]].input[0]]) == tuple(tensor.item() for tensor in found.inputs[name].grid()), name
        made = product.output[0]
        if product.op_type == "MatMul":  # its bias
            (bias,) = readers[made]
            assert bias.op_type == "Add" and any(one in arrays for one in bias.input)
            made = bias.output[0]
        after = readers.get(made, [])
        if name in found.outputs:
            assert [levels(node) for node in after] == [tuple(tensor.item() for tensor in found.outputs[name].grid())], name
        else:
            assert not any(node.op_type == "QuantizeLinear" for node in after), name
    assert found.inputs.keys() == found.weights.keys() and found.outputs


@needs_onnx
@pytest.mark.parametrize(("kind", "per"), [("bert", "tensor"), ("ours", "row"), ("student", "row")])  # an export takes seconds
def test_graphs_predict_what_the_model_does_with_its_scales_and_zeros(kind: str, per: str, tmp_path: Path) -> None:
    model = a_model(kind)
    names = stacked_layers(model)
    attach_masks(model, names=names)
    prune_to(model, 0.75)
    attach_int8(model, per=per)
    model.train()
    for count in (5, 6, 7):
        model(**inputs(kind, count))
    model.eval()
    path = export_int8(int8_twin(model), tmp_path / "int8.onnx")
    check_grids(path, model)
    zeros, count = zeros_of(path)
    integers = [weight_integers(model.get_submodule(name))[0] for name in find_int8(model).weights]
    assert zeros == sum(int((n == 0).sum()) for n in integers) and count == sum(n.numel() for n in integers)
    batch = {name: tensor.numpy() for name, tensor in inputs(kind).items()}
    expected = logits(model, kind).numpy()
    step = max(float(q.grid()[0]) for q in find_int8(model).activations)
    runtimes = [OnnxRuntime] + ([OpenvinoRuntime] if is_installed("openvino") else [])
    for runtime in runtimes:
        found = runtime(path, 1, "int8", model.config.vocab_size)(**batch)
        # sums in another order may round to the next level here and there; a wrong scale is off by whole steps everywhere
        assert np.abs(found - expected).mean() < 0.5 * step, runtime.name


def test_a_bias_beyond_int32_in_its_scale_stays_what_it_is() -> None:
    """A row of weights that pruning emptied has hardly any scale; its bias is as large as before."""
    model = a_model("student")
    conv = next(name for name, part in model.named_modules() if isinstance(part, torch.nn.Conv1d) and part.bias is not None and part.groups == 1)
    with torch.no_grad():
        model.get_submodule(conv).weight[0] = 0
        model.get_submodule(conv).bias[:] = 3.0
    attach_int8(model, per="row")
    model.train()
    model(**inputs("student"))
    layer = int8_twin(model.eval()).get_submodule(conv)
    assert not QdqConv1d(layer).has_integer_bias
    layer.scale[0] = layer.scale[1]
    whole = QdqConv1d(layer)
    assert whole.has_integer_bias
    torch.testing.assert_close(whole.bias_integers * whole.bias_scale, layer.bias, atol=1e-3, rtol=0)


def test_activations_round_from_the_delay_on_and_their_ranges_rest_from_the_freeze_on() -> None:
    """And what is learned at a step is the loss of the model as it is at that step."""
    model, batch, labels = a_model("bert"), inputs("bert"), torch.tensor([0, 1, 2, 0, 1, 2])

    def method(**changes: float) -> QuantizeAware:
        made = QuantizeAware(
            FitConfig(steps=20), "single_label", lambda model, batch: model(**inputs("bert")), task_weight=1.0, kd_weight=0.0,
            int8=Int8Config(per="row", **changes),
        )  # fmt: skip
        made.attach(model)
        return made

    def flags(this: QuantizeAware, step: int) -> set[tuple[bool, bool]]:
        this.begin_step(model, step, 20)
        return {(quantizer.is_rounding, quantizer.is_observing) for quantizer in find_int8(model).activations}

    this = method(delay=0.25, freeze=0.5)
    model.train()(**batch)  # ranges to round to
    model.eval()
    baked, twin = copy.deepcopy(model), int8_twin(model)
    bake_int8(baked)  # weights alone are rounded
    exact, rounded = (F.cross_entropy(logits(one, "bert"), labels).item() for one in (baked, twin))
    assert abs(exact - rounded) > 1e-4
    for step, expected, loss in (
        (0, (False, True), exact), (4, (False, True), exact), (5, (True, True), rounded), (9, (True, True), rounded),
        (10, (True, False), rounded), (19, (True, False), rounded),
    ):  # fmt: skip
        assert flags(this, step) == {expected}, step
        assert this.loss(model, {**batch, "labels": labels})["ce"].item() == pytest.approx(loss, abs=1e-6), step
    assert [flags(method(), step) for step in (0, 19)] == [{(True, True)}] * 2, "by default from the first step to the last"
    assert [flags(method(freeze=0.0), step) for step in (0, 1)] == [{(True, True)}, {(True, False)}], "one batch there must be"
    late = method(delay=1.0)
    assert flags(late, 19) == {(False, True)}
    late.finish(model)
    assert all(quantizer.is_rounding for quantizer in find_int8(model).activations)


def test_quantising_twice_is_refused_and_leaves_the_model_as_it_was() -> None:
    model = trained("bert")
    before = logits(model, "bert")
    with pytest.raises(ModelError, match="quantised already"):
        attach_int8(model)
    with pytest.raises(ModelError, match="Masks come before"):
        attach_masks(model)
    assert torch.equal(logits(model, "bert"), before)
    bake_int8(model)
    with pytest.raises(ModelError, match="quantised already"):
        attach_int8(model)


@pytest.mark.parametrize(
    ("settings", "says"),
    [({"per": "column"}, "tensor, row"), ({"quantizer": "twn"}, "min_max"), ({"outputs": "some"}, "published"), ({"exclude": ["nowhere"]}, "no layer's name")],
)
def test_unknown_settings_are_refused(settings: dict[str, object], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        attach_int8(a_model("bert"), **settings)


def test_excluded_layers_stay_plain() -> None:
    found = attach_int8(a_model("bert"), exclude=["classifier", "layer.0."])
    assert found.weights and not any("classifier" in name or "layer.0." in name for name in found.weights)


def test_a_layer_that_shares_the_word_table_stays_plain() -> None:
    """A masked language model's decoder: baking it would round the table as well."""
    model = tiny_bert(BertForMaskedLM).eval()
    with pytest.raises(ModelError, match="the word table is cls.predictions.decoder's weight as well"):
        attach_int8(model, embeddings=True)
    found, ids_BL = attach_int8(model), torch.arange(5, 13)[None]
    assert found.weights and not any("decoder" in name for name in (*found.weights, *found.inputs))
    model.train()(ids_BL)
    expected = model.eval()(ids_BL).logits
    assert torch.equal(int8_twin(model)(ids_BL).logits, expected)


def test_a_model_that_saw_nothing_has_no_twin() -> None:
    model = a_model("bert")
    attach_int8(model)
    with pytest.raises(ModelError, match="no batch"):
        int8_twin(model)
    with pytest.raises(ModelError, match="no int8 quantisers"):
        int8_twin(a_model("bert"))
