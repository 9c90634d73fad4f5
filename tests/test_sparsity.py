"""Laws of zeros in weights: exactly so many, where the pattern allows, never lost under a lock, never seen by a gradient.

References: sorted lists, loops over groups, autograd on the product with the mask, Hugging Face models that know no mask.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny_masked import tiny_bert
from torch import Tensor, nn
from torch.nn.utils import parametrize
from transformers import (
    BertForMaskedLM, BertForSequenceClassification, DistilBertConfig, DistilBertForSequenceClassification, GPT2Config, GPT2LMHeadModel,
    RobertaConfig, RobertaForMaskedLM,
)  # fmt: skip
from transformers.pytorch_utils import Conv1D

from adasearch.errors import ConfigError, ModelError
from adasearch.quantize_model import bake, parametrize_weight
from adasearch.quantizers import WEIGHT_QUANTIZERS
from adasearch.sparse_model import (
    attach_masks, bake_masks, broken_zeros, encoder_linears, find_masks, lock_pattern, mean_sparsity, pattern_of,
    prune_once, prune_to, sparsity_of,
)  # fmt: skip
from adasearch.sparse_pattern import Pattern
from adasearch.sparsity import WeightMask, dropped_count, select

RATIOS = [0.0, 0.1, 0.29, 0.5, 0.85, 0.9, 0.999, 1.0]
INPUTS = {"input_ids": torch.tensor([[2, 5, 6, 7, 3], [2, 8, 9, 3, 0]]), "attention_mask": torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 1, 0]])}


@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("size", [(7, 11), (100,), (1, 1), (16, 64)])
def test_exactly_the_least_go(ratio: float, size: tuple[int, ...]) -> None:
    scores = torch.randn(size).abs()
    kept = select({"w": scores}, ratio)["w"]
    count = -(-round(ratio * 1000) * scores.numel() // 1000)  # rounded up in whole numbers: never less than was asked for
    assert kept.shape == scores.shape and int((~kept).sum()) == count == dropped_count(ratio, scores.numel())
    order = sorted(range(scores.numel()), key=lambda i: scores.flatten()[i].item())
    assert set((~kept).flatten().nonzero().flatten().tolist()) == set(order[:count])


@pytest.mark.parametrize("ratio", RATIOS)
def test_of_equals_the_first_go(ratio: float) -> None:
    scores = {"a": torch.ones(3, 5), "b": torch.tensor([2.0, 1.0, 1.0, 0.5, 1.0])}
    kept = select(scores, ratio)
    assert kept["a"].flatten().tolist() == [i >= dropped_count(ratio, 15) for i in range(15)]
    order = [3, 1, 2, 4, 0]  # of b by (score, place)
    assert (~kept["b"]).nonzero().flatten().tolist() == sorted(order[: dropped_count(ratio, 5)])
    together = select(scores, ratio, "global")
    values = {number: scores[name].flatten().tolist() for number, name in enumerate(scores)}
    ranked = sorted((score, number, place) for number in values for place, score in enumerate(values[number]))
    expected = {(number, place) for _, number, place in ranked[: dropped_count(ratio, 20)]}
    found = {(number, place) for number, name in enumerate(scores) for place in (~together[name]).flatten().nonzero().flatten().tolist()}
    assert found == expected


@pytest.mark.parametrize("ratio", RATIOS)
def test_global_is_one_threshold_for_all(ratio: float) -> None:
    scores = {name: torch.randn(size).abs() * scale for name, size, scale in (("a", (8, 9), 1.0), ("b", (5, 4), 3.0), ("c", (33,), 0.1))}
    kept = select(scores, ratio, "global")
    everything = sorted(score for tensor in scores.values() for score in tensor.flatten().tolist())
    count = dropped_count(ratio, len(everything))
    assert sum(int((~part).sum()) for part in kept.values()) == count
    for name, tensor in scores.items():
        assert torch.equal(kept[name], tensor > (everything[count - 1] if count else -1.0))


LAYERS = {
    "linear": lambda: nn.Linear(16, 6),
    "gpt2": lambda: GPT2LMHeadModel(_gpt2()).transformer.h[0].attn.c_attn,
    "conv": lambda: nn.Conv1d(16, 6, 3),
}


@pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS)
@pytest.mark.parametrize("pattern", ["2:4", "1:4", "1:8"])
def test_n_of_every_m_stay_along_the_inputs(make: Callable[[], nn.Module], pattern: str) -> None:
    layer = make()
    model, shape, dim = nn.Sequential(layer), Pattern.parse(pattern), 0 if type(layer) is Conv1D else 1
    attach_masks(model, pattern, ["0"])
    dense = layer.parametrizations.weight.original.detach().movedim(dim, -1)
    assert dense.shape[-1] == 16
    for ratio in (0.2, 0.4, shape.most):  # on the way there only what must go in the end goes
        prune_to(model, ratio)
        weight = layer.weight.detach().movedim(dim, -1)
        assert int((weight == 0).sum()) == dropped_count(ratio, weight.numel())
        for values, before in zip(weight.reshape(-1, shape.group), dense.reshape(-1, shape.group)):
            zeros = (values == 0).nonzero().flatten().tolist()
            least = sorted(range(shape.group), key=lambda i: abs(before[i].item()))
            assert set(zeros) <= set(least[: shape.group - shape.kept])
            assert ratio < shape.most or len(zeros) == shape.group - shape.kept
    with pytest.raises(ConfigError, match=f"choices: 0 to {shape.most:g} with pattern {pattern}"):
        prune_to(model, 0.95)


def test_blocks_go_whole_and_by_their_mean() -> None:
    model = nn.Sequential(nn.Linear(12, 8))
    attach_masks(model, "4x3", ["0"])
    prune_to(model, 0.5)
    dense, kept = model[0].parametrizations.weight.original.detach().abs(), model[0].weight.detach() != 0
    blocks = {(r, c): dense[4 * r : 4 * r + 4, 3 * c : 3 * c + 3].mean().item() for r in range(2) for c in range(4)}
    gone = sorted(blocks, key=blocks.get)[:4]
    for (r, c) in blocks:
        assert kept[4 * r : 4 * r + 4, 3 * c : 3 * c + 3].eq((r, c) not in gone).all()


def test_blocks_of_a_convolution_are_of_neighbouring_outputs_at_one_place() -> None:
    model = nn.Sequential(nn.Conv1d(6, 8, 3))
    attach_masks(model, "4x2", ["0"])
    prune_to(model, 0.5)
    dense, kept = model[0].parametrizations.weight.original.detach().abs(), model[0].weight.detach() != 0
    blocks = {(r, c, k): dense[4 * r : 4 * r + 4, 2 * c : 2 * c + 2, k].mean().item() for r in range(2) for c in range(3) for k in range(3)}
    gone = sorted(blocks, key=blocks.get)[:9]
    for r, c, k in blocks:
        assert kept[4 * r : 4 * r + 4, 2 * c : 2 * c + 2, k].eq((r, c, k) not in gone).all()
    with pytest.raises(ModelError, match="a weight of 6 outputs by 8 inputs"):  # 6 outputs at 2 places are no 3 blocks of 4
        attach_masks(nn.Sequential(nn.Conv1d(8, 6, 2)), "4x1", ["0"])


@pytest.mark.parametrize(("text", "says"), [("4:2", "'4:2'"), ("2x", "'2x'"), ("0:4", "'0:4'"), ("some", "unstructured, N:M")])
def test_unknown_patterns_are_refused(text: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        Pattern.parse(text)


@pytest.mark.parametrize(("text", "most"), [("2:4", 0.5), ("4:5", 0.2), ("9:10", 0.1), ("1:3", 0.666666), ("4x1", 1)])
def test_a_pattern_holds_the_zeros_that_it_says_it_does(text: str, most: float) -> None:
    with pytest.raises(ConfigError, match=f"choices: 0 to {most:g} with pattern {text}"):
        Pattern.parse(text).check(1.1)
    Pattern.parse(text).check(most)


@pytest.mark.parametrize("text", ["unstructured", "2:4", "1:16", "4x1", "16x16"])
def test_patterns_are_written_as_they_are_read(text: str) -> None:
    assert str(Pattern.parse(text)) == text


def test_what_does_not_divide_is_refused_and_the_model_left_as_it_was() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(10, 8))
    with pytest.raises(ModelError, match="1: pattern 2:4: a weight of 8 outputs by 10 inputs"):
        attach_masks(model, "2:4", ["0", "1"])
    assert not find_masks(model)
    with pytest.raises(ModelError, match="'2' is no layer with a weight"):
        attach_masks(model, names=["2"])


def test_the_gradient_of_what_is_dropped_is_zero() -> None:
    layer, x, slope = nn.Linear(6, 4), torch.randn(5, 6), torch.randn(5, 4)
    dense = layer.weight.detach().clone().requires_grad_()
    model = nn.Sequential(layer)
    attach_masks(model, names=["0"])
    prune_to(model, 0.5)
    mask = find_masks(model)["0"].mask.float()
    (model(x) * slope).sum().backward()
    (nn.functional.linear(x, dense * mask, layer.bias) * slope).sum().backward()
    gradient = layer.parametrizations.weight.original.grad
    assert torch.equal(gradient, dense.grad) and torch.equal(gradient == 0, mask == 0)


def test_dense_weights_stay_under_the_mask_and_may_return() -> None:
    model = nn.Sequential(nn.Linear(4, 1, bias=False))
    model[0].weight.data = torch.tensor([[1.0, -2.0, 3.0, -4.0]])
    attach_masks(model, names=["0"])
    prune_to(model, 0.5)
    assert model[0].weight.tolist() == [[0, 0, 3, -4]]
    model[0].parametrizations.weight.original.data[0, 2] = 0.5  # another falls below
    prune_to(model, 0.5)
    assert model[0].weight.tolist() == [[0, -2, 0, -4]]
    prune_to(model, 0.0)
    assert model[0].weight.tolist() == [[1, -2, 0.5, -4]]


def test_zeros_are_positive_whatever_was_there() -> None:
    mask = WeightMask(torch.ones(3))
    mask.mask[:] = False
    assert mask(torch.tensor([-1.0, math.inf, math.nan])).tolist() == [0, 0, 0]
    assert not mask(torch.tensor([-1.0, 1.0, 2.0])).signbit().any()


def _gpt2() -> GPT2Config:
    return GPT2Config(vocab_size=40, n_layer=2, n_embd=16, n_head=2, n_positions=32, bos_token_id=0, eos_token_id=0)


def _distilbert() -> DistilBertForSequenceClassification:
    config = DistilBertConfig(vocab_size=40, n_layers=2, n_heads=2, dim=16, hidden_dim=32, max_position_embeddings=16)
    return DistilBertForSequenceClassification(config)


def _roberta() -> RobertaForMaskedLM:
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    return RobertaForMaskedLM(RobertaConfig(vocab_size=40, max_position_embeddings=20, pad_token_id=1, **sizes))


@pytest.mark.parametrize(
    ("make", "layers", "weights"),
    [
        (lambda: tiny_bert(BertForMaskedLM), 12, 2 * (4 * 16 * 16 + 2 * 16 * 32)),
        (lambda: tiny_bert(BertForSequenceClassification), 12, 2 * (4 * 16 * 16 + 2 * 16 * 32)),  # neither pooler nor classifier
        (_distilbert, 12, 2 * (4 * 16 * 16 + 2 * 16 * 32)),
        (_roberta, 12, 2 * (4 * 16 * 16 + 2 * 16 * 32)),
        (lambda: GPT2LMHeadModel(_gpt2()), 8, 2 * (4 * 16 * 16 + 2 * 16 * 64)),
    ],
    ids=["bert-mlm", "bert", "distilbert", "roberta", "gpt2"],
)
def test_the_layers_of_any_transformer_are_found(make: Callable[[], nn.Module], layers: int, weights: int) -> None:
    model = make().eval()
    found = encoder_linears(model)
    assert len(found) == layers and sum(layer.weight.numel() for layer in found.values()) == weights
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    prune_once(model, 0.85)
    for name, share in sparsity_of(model).items():
        assert share * found[name].weight.numel() == pytest.approx(dropped_count(0.85, found[name].weight.numel()))
    after = model.state_dict()
    assert after.keys() == before.keys()
    for name, tensor in before.items():  # the others, ties and biases included, are as they were
        assert torch.equal(after[name], tensor if name.removesuffix(".weight") not in found else tensor.where(after[name] != 0, 0.0))


def test_what_has_no_stack_must_be_named() -> None:
    with pytest.raises(ModelError, match="name the layers"):
        encoder_linears(nn.Sequential(nn.Linear(2, 2)))


def test_what_shares_the_embeddings_weight_stays_dense() -> None:
    table, own, tied = nn.Embedding(8, 4), nn.Linear(4, 4), nn.Linear(4, 8, bias=False)
    tied.weight = table.weight
    model = nn.ModuleDict({"table": table, "layers": nn.ModuleList([own, tied])})
    assert encoder_linears(model) == {"layers.0": own}


def test_a_masked_model_is_the_model_with_those_zeros(tmp_path: Path) -> None:
    model = tiny_bert(BertForSequenceClassification).eval()
    attach_masks(model)
    prune_to(model, 0.7, "global")
    logits = model(**INPUTS).logits
    replica = copy.deepcopy(model)
    bake_masks(model)
    assert not find_masks(model) and len(find_masks(replica)) == 12  # a copy is whole, and its own
    assert mean_sparsity(model) == dropped_count(0.7, 4096) / 4096 == mean_sparsity(replica)
    model.save_pretrained(tmp_path)
    plain = BertForSequenceClassification.from_pretrained(tmp_path).eval()
    for found in (model, replica, plain):
        assert torch.equal(found(**INPUTS).logits, logits)


OPTIMISERS = {
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.05, weight_decay=0.3),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.1),
}


@pytest.mark.parametrize("optimiser", OPTIMISERS)
@pytest.mark.parametrize("quantizer", [None, "min_max", "dynamic_scale", "lsq"])
def test_a_locked_pattern_survives(optimiser: str, quantizer: str | None) -> None:
    model = tiny_bert(BertForSequenceClassification).eval()
    prune_once(model, 0.85)
    pattern = pattern_of(model)
    masks = lock_pattern(model)
    assert len(masks) == 12
    if quantizer:
        for name in masks:
            layer = model.get_submodule(name)
            dense = layer.weight.detach()
            parametrize_weight(layer, [WEIGHT_QUANTIZERS[quantizer](dense, 8, skip_zeros=True)])
    optimizer = OPTIMISERS[optimiser](model.parameters())
    for layer in encoder_linears(model).values():  # whatever lies under the mask does not show
        layer.parametrizations.weight.original.data += 0.01 * (layer.parametrizations.weight.original.data == 0)
    start = {name: model.get_submodule(name).weight.detach().clone() for name in masks}
    for _ in range(5):
        optimizer.zero_grad()
        model(**INPUTS, labels=torch.tensor([0, 1])).loss.backward()
        optimizer.step()
        assert not broken_zeros(model, pattern)
    assert all(not torch.equal(model.get_submodule(name).weight, before) for name, before in start.items())  # it learned
    if quantizer:
        with pytest.raises(ModelError, match="bake the quantisers"):
            bake_masks(model)
        bake(model)
    else:
        bake_masks(model)
    assert not any(parametrize.is_parametrized(module) for module in model.modules())
    assert not broken_zeros(model, pattern)


def test_a_lock_takes_the_masks_that_are_there_and_refuses_another_choice() -> None:
    model = tiny_bert(BertForMaskedLM)
    attach_masks(model)
    prune_to(model, 0.5)
    before = pattern_of(model)
    lock_pattern(model)
    with pytest.raises(ModelError, match="locked"):
        prune_to(model, 0.6)
    with pytest.raises(ModelError, match="WeightMask already"):
        attach_masks(model)
    assert all(torch.equal(before[name], kept) for name, kept in pattern_of(model).items())


def test_masks_come_before_quantisers() -> None:
    model = nn.Sequential(nn.Linear(4, 4))
    parametrize_weight(model[0], [WEIGHT_QUANTIZERS["min_max"](model[0].weight.detach(), 8)])
    with pytest.raises(ModelError, match="Masks come before quantisers"):
        attach_masks(model, names=["0"])


def test_a_broken_pattern_is_seen() -> None:
    model = tiny_bert(BertForMaskedLM)
    prune_once(model, 0.5)
    pattern = pattern_of(model)
    name = next(iter(pattern))
    weight: Tensor = model.get_submodule(name).weight
    weight.data[weight == 0] = torch.where(torch.arange(int((weight == 0).sum())) < 3, 1e-9, 0.0)
    assert broken_zeros(model, pattern) == {name: 3}


def test_masks_are_saved_and_loaded_with_the_model() -> None:
    saved, fresh = tiny_bert(BertForMaskedLM), tiny_bert(BertForMaskedLM, seed=1)
    attach_masks(saved), attach_masks(fresh)
    prune_to(saved, 0.6)
    fresh.load_state_dict(saved.state_dict())
    assert all(torch.equal(mask.mask, find_masks(fresh)[name].mask) for name, mask in find_masks(saved).items())
