"""Expected cost over axes: exact where it can be checked by counting, and its derivative."""

from __future__ import annotations

import itertools

import pytest
import torch
from tiny_encoder import every_gate, make_encoder
from torch import Tensor

from adasearch.encoder import axes_of
from adasearch.errors import ConfigError, ModelError
from adasearch.measure import count_macs
from adasearch.shrink_encoder import shrink_encoder
from adasearch.structure import FAMILIES, SCOPES, Axes, GateValues, is_open

SMALL = Axes(2, 3, [2, 1], [2, 1], tables=[5, 4], pooler=2, labels=3)


def random_probabilities(axes: Axes, dtype: torch.dtype = torch.float64) -> GateValues:
    return axes.ones().map(lambda tensor: torch.rand(tensor.shape, dtype=dtype) * 0.8 + 0.1)


@pytest.mark.parametrize("task", ["single_label", "question_answering"])
@pytest.mark.parametrize("family", ["bert", "distilbert", "roberta"])
def test_certain_gates_cost_what_is_left(family: str, task: str) -> None:
    model = make_encoder(family, task)
    axes = axes_of(model)
    for name, values in every_gate(model).items():
        smaller = shrink_encoder(model, values)
        counts, macs = {scope: 0 for scope in SCOPES}, sum(2 * 7**2 * smaller.config.head_size * heads for heads in smaller.config.heads)
        for parameter_name, parameter in smaller.named_parameters():
            in_layer, is_norm = "layers." in parameter_name, "_norm." in parameter_name
            counts["all"] += parameter.numel()
            counts["encoder"] += in_layer * parameter.numel()
            counts["prunable"] += (in_layer and not is_norm) * parameter.numel()
            if parameter.ndim == 2 and "embeddings" not in parameter_name:  # of each of seven tokens; a label is the text's
                macs += parameter.numel() * (7 if in_layer or task == "question_answering" else 1)
        for scope, count in counts.items():
            for certain in (values.kept(), values.map(lambda tensor: (tensor != 0).double())):
                assert float(axes.expected_params(certain, scope)) == pytest.approx(count, abs=1e-6), (name, scope)
            assert float(axes_of(smaller).expected_params(None, scope)) == count, (name, scope)
        assert count_macs(smaller, 7) == macs, name
        assert float(axes.sparsity(values.kept())) == pytest.approx(1 - counts["prunable"] / float(axes.expected_params()))


def count_by_hand(mha: list[int], ffn: list[int], heads: list[list[int]], neurons: list[list[int]], hidden: list[int]) -> tuple[int, int]:
    """Parameters of SMALL in all, and in the layers' linear maps, matrix by matrix, element by element."""
    D, K = sum(hidden), 3
    linear = norms = 0
    for layer in range(2):
        H = sum(heads[layer]) * mha[layer]
        if H:
            linear += 3 * (H * K * D + H * K) + D * H * K + D
            norms += 2 * D
        F = sum(neurons[layer]) * ffn[layer]
        if F:
            linear += F * D + F + D * F + D
            norms += 2 * D
    return linear + norms + (5 + 4) * D + 2 * D + (2 * D + 2) + (3 * 2 + 3), linear


def test_expectations_are_those_of_all_settings() -> None:
    p = random_probabilities(SMALL)
    flat = [float(value) for tensor in p.tensors() for value in tensor]
    sums, total = [0.0, 0.0], 0.0
    for bits in itertools.product((0, 1), repeat=len(flat)):
        weight = 1.0
        for bit, probability in zip(bits, flat):
            weight *= probability if bit else 1 - probability
        mha, ffn = list(bits[0:2]), list(bits[2:4])
        heads, neurons, hidden = [list(bits[4:6]), [bits[6]]], [list(bits[7:9]), [bits[9]]], list(bits[10:12])
        counts = count_by_hand(mha, ffn, heads, neurons, hidden)
        sums = [before + weight * count for before, count in zip(sums, counts)]
        total += weight
    assert total == pytest.approx(1)
    assert float(SMALL.expected_params(p, "all")) == pytest.approx(sums[0], rel=1e-12)
    assert float(SMALL.expected_params(p, "prunable")) == pytest.approx(sums[1], rel=1e-12)


def with_values(tensors: tuple[Tensor, ...]) -> GateValues:
    return GateValues(tensors[0], tensors[1], list(tensors[2:4]), list(tensors[4:6]), tensors[6])


@pytest.mark.parametrize("edge", [False, True])
def test_derivatives_are_those_of_finite_differences(edge: bool) -> None:
    p = random_probabilities(SMALL)
    if edge:  # where products of 1 - p have zeros
        p.heads[0][:] = 1.0
        p.neurons[0][:] = 0.0
    inputs = tuple(tensor.requires_grad_() for tensor in p.tensors())
    for scope in SCOPES:
        assert torch.autograd.gradcheck(lambda *tensors: SMALL.expected_params(with_values(tensors), scope), inputs)


def test_bert_bases_prunable_parameters_are_the_papers() -> None:
    axes = Axes(768, 64, [12] * 12, [3072] * 12, tables=[30522, 512, 2], pooler=768, labels=2)
    assert float(axes.expected_params()) == 85_017_600  # CoFi: 12 (4 d d + 4 d + 2 d 3072 + 3072 + d)
    assert float(axes.expected_params(None, "encoder")) == 85_017_600 + 24 * 2 * 768
    assert float(axes.expected_params(None, "all")) == 109_483_778  # bert-base-uncased with two labels
    assert float(axes.sparsity(None)) == 0


def test_a_closed_parent_takes_its_children_along() -> None:
    values = SMALL.ones()
    values.mha_N[0] = 0
    without = values.kept()
    assert without.heads[0].tolist() == [0, 0] and without.mha_N.tolist() == [0, 1] and without.ffn_N.tolist() == [1, 1]
    values = SMALL.ones(["neurons"])
    values.neurons[1][:] = 0
    assert values.kept().ffn_N.tolist() == [1, 0] and values.kept().mha_N is None
    sizes = SMALL.expected_sizes(values)
    assert {name: float(size) for name, size in sizes.items()} == {
        "hidden": 2, "0.mha": 1, "0.heads": 2, "0.ffn": 1, "0.neurons": 2, "1.mha": 1, "1.heads": 1, "1.ffn": 0, "1.neurons": 0,
    }  # fmt: skip
    assert SMALL.axes["1.heads"].parent == "1.mha" and SMALL.axes["hidden"].parent is None


@pytest.mark.parametrize("families", [["heads"], ["layers", "hidden"], list(FAMILIES)])
def test_what_is_not_gated_is_open(families: list[str]) -> None:
    values = SMALL.ones(families)
    assert (values.heads is None) == ("heads" not in families) and (values.ffn_N is None) == ("layers" not in families)
    assert float(SMALL.expected_params(values, "all")) == float(SMALL.expected_params(None, "all"))


def test_values_survive_being_plain() -> None:
    values = random_probabilities(SMALL, torch.float32)
    values.mha_N = None
    again = GateValues.from_plain(values.to_plain())
    assert again.mha_N is None
    assert all(torch.equal(a, b) for a, b in zip(again.tensors(), values.tensors(), strict=True))
    with pytest.raises(ConfigError, match="gate values: 'embeddings' is not known; choices: mha_N"):
        GateValues.from_plain({"embeddings": [1.0]})


def test_open_means_not_exactly_zero() -> None:
    zero, some = torch.zeros(3), torch.tensor([0.0, 1e-30, 0.0])
    assert is_open() and is_open(None, some) and is_open(torch.tensor(0.1), None)
    assert not is_open(None, zero) and not is_open(torch.tensor(0.0), some) and not is_open(torch.tensor(1.0), zero)
    assert not is_open(None, torch.zeros(0))


def test_wrong_sizes_and_names_are_refused() -> None:
    values = SMALL.ones()
    values.neurons[1] = torch.ones(7)
    with pytest.raises(ModelError, match=r"gates: neurons has \[2, 7\] elements, the encoder \[2, 1\]"):
        SMALL.expected_params(values)
    with pytest.raises(ConfigError, match="scope: 'everything' is not known; choices: prunable, encoder, all"):
        SMALL.expected_params(None, "everything")
    for families in (["head"], []):
        with pytest.raises(ConfigError, match="choices: heads, neurons, layers, hidden"):
            SMALL.ones(families)
