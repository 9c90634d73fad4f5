"""Hard-concrete gates: probabilities against samples, the formulas against themselves written out, CoFi's known numbers."""

from __future__ import annotations

import math

import pytest
import torch

from adasearch.errors import ConfigError
from adasearch.gates import gates_of
from adasearch.hard_concrete import LEAST_OPEN, HardConcrete, StructureGates
from adasearch.structure import Axes

BETA = 2 / 3
SMALL = Axes(4, 2, [3, 0], [5, 6])


def gate_at(*log_alpha: float, **settings: object) -> HardConcrete:
    gate = HardConcrete("axis", len(log_alpha), **settings)
    gate.log_alpha_S.data = torch.tensor(log_alpha)
    return gate


def test_probabilities_are_the_samples_frequencies() -> None:
    gate = gate_at(-4.0, -1.6, 0.0, 1.0, 4.0)
    draws = torch.stack([gate().detach() for _ in range(20_000)])
    p = gate.open_probability()
    expected = torch.sigmoid(torch.tensor([-4.0, -1.6, 0.0, 1.0, 4.0]) + 1.5986)  # the specs' own constant
    torch.testing.assert_close(p, expected, atol=1e-5, rtol=0)
    deviation = (p * (1 - p) / len(draws)).sqrt()
    assert ((draws > 0).float().mean(0) - p).abs().le(4 * deviation).all()
    # z = 1 where s > 11/12: P = sigmoid(log alpha - beta ln 11)
    p_one = torch.sigmoid(gate.log_alpha_S.detach() - BETA * math.log(11))
    deviation = (p_one * (1 - p_one) / len(draws)).sqrt()
    assert ((draws == 1).float().mean(0) - p_one).abs().le(4 * deviation).all()
    assert draws.min() == 0 and draws.max() == 1 and torch.equal(gate.expected(), p)


def test_a_sample_is_the_papers_formula() -> None:
    gate = gate_at(-1.0, 0.3, 2.0)
    torch.manual_seed(3)
    found = gate()
    torch.manual_seed(3)
    u = torch.empty(3).uniform_(1e-6, 1 - 1e-6).tolist()
    for z, uniform, log_alpha in zip(found.tolist(), u, (-1.0, 0.3, 2.0)):
        s = 1 / (1 + math.exp(-(math.log(uniform) - math.log(1 - uniform) + log_alpha) / BETA))
        assert z == pytest.approx(min(1.0, max(0.0, s * 1.2 - 0.1)), abs=1e-5)
    gate.double()
    inside = torch.autograd.functional.jacobian(lambda a: _sample_at(gate, a), gate.log_alpha_S.detach())
    step = 1e-6
    for index in range(3):
        moved = gate.log_alpha_S.detach().clone()
        moved[index] += step
        difference = (_sample_at(gate, moved) - _sample_at(gate, gate.log_alpha_S.detach())) / step
        torch.testing.assert_close(inside[:, index], difference, atol=1e-5, rtol=1e-4)


def _sample_at(gate: HardConcrete, log_alpha: torch.Tensor) -> torch.Tensor:
    torch.manual_seed(5)
    return torch.func.functional_call(gate, {"log_alpha_S": log_alpha})


def test_clamped_gates_keep_a_chance() -> None:
    gate = gate_at(-50.0, 0.0, 50.0)
    gate.clamp_()
    assert gate.log_alpha_S.tolist() == pytest.approx([math.log(0.01), 0, math.log(100)])
    assert gate.open_probability().tolist() == pytest.approx([0.0471, 0.8318, 0.9980], abs=1e-4)
    assert LEAST_OPEN == pytest.approx(gate.open_probability()[0].item(), rel=1e-5)


def test_deterministic_values_have_the_expected_number_of_zeros() -> None:
    log_alpha = torch.linspace(-4.5, 4.5, 31)[torch.randperm(31)]
    gate = gate_at(*log_alpha.tolist()).eval()
    zeros = round(31 - float(torch.sigmoid(log_alpha + BETA * math.log(11)).sum()))
    values = gate()
    assert int((values == 0).sum()) == zeros and set(gate.decide()) == set(log_alpha.argsort()[zeros:].tolist())
    kept = values != 0
    torch.testing.assert_close(values[kept], torch.sigmoid(0.8 * log_alpha[kept] / BETA))
    assert log_alpha[~kept].max() < log_alpha[kept].min()
    assert not values.requires_grad and torch.equal(gate(), values)  # no chance in eval
    for p, kept_indices in (((0.2, 0.9), [1]), ((0.7, 0.9), [0, 1])):  # 0.9 zeros are one, 0.4 none
        edge = BETA * math.log(11)
        assert gate_at(*(math.log(share / (1 - share)) - edge for share in p)).decide() == kept_indices


def test_a_hidden_dimension_stays_however_few_there_are() -> None:
    """The expected number of 4 as closed as they can be is 0.19: none of them, but for an encoder's need of one."""
    gates = StructureGates(SMALL)
    with torch.no_grad():
        for gate in gates.gates():
            gate.log_alpha_S.fill_(-4.6)
        gates.hidden.log_alpha_S[2] = -4.5
    values = gates.deterministic()
    assert values.hidden_D.nonzero().flatten().tolist() == gates.hidden.decide() == [2]
    assert not torch.cat([values.mha_N, values.ffn_N, *values.heads, *values.neurons]).any(), "everything else may go"


def test_single_decisions_are_by_one_half() -> None:
    edge = -BETA * math.log(11)  # P = 0.5
    gate = gate_at(edge - 1e-3, edge + 1e-3, 4.6, -4.6, is_each=True).eval()
    values = gate()
    assert [value != 0 for value in values.tolist()] == [False, True, True, False]
    assert values[1] == pytest.approx(0.128, abs=1e-3) and values[2] == pytest.approx(0.996, abs=1e-3)  # survivors are not 1


def test_berts_gates_start_where_cofis_do() -> None:
    axes = Axes(768, 64, [12] * 12, [3072] * 12)
    gates = StructureGates(axes)
    assert 0.11 < float(axes.sparsity(gates.open_probability()).detach()) < 0.117  # 0.113 by the probabilities, derived in the specs
    assert gates.neurons[0].log_alpha_S.mean().item() == pytest.approx(0, abs=1e-3)
    assert gates.hidden.log_alpha_S.mean().item() == pytest.approx(10, abs=2e-3)
    assert gates.hidden.log_alpha_S.std().item() == pytest.approx(0.01, rel=0.2)
    assert StructureGates(axes, neuron_drop=0.1).neurons[3].log_alpha_S.mean().item() == pytest.approx(math.log(9), abs=1e-2)


@pytest.mark.parametrize("families", [["heads"], ["layers", "hidden"], ["heads", "neurons", "layers", "hidden"]])
def test_gates_stand_on_the_chosen_families(families: list[str]) -> None:
    gates = StructureGates(SMALL, families)
    for values in (gates(), gates.open_probability(), gates.deterministic(), gates.eval()()):
        values.check(SMALL.heads, SMALL.neurons, SMALL.hidden)
        found = {"heads": values.heads, "neurons": values.neurons, "layers": values.mha_N, "hidden": values.hidden_D}
        assert {name for name, value in found.items() if value is not None} == set(families)
    assert gates_of(gates) == gates.gates()
    assert all(name.endswith("log_alpha_S") for name, _ in gates.named_parameters())
    again = StructureGates(SMALL, families)
    again.load_state_dict(gates.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(again.deterministic().tensors(), gates.deterministic().tensors()))


def test_the_size_falls_along_its_gradient() -> None:
    gates = StructureGates(SMALL)
    optimizer = torch.optim.Adam(gates.parameters(), lr=0.3)
    sizes = []
    for _ in range(60):
        size = SMALL.expected_params(gates.open_probability()) / SMALL.expected_params()
        optimizer.zero_grad()
        size.backward()
        optimizer.step()
        gates.clamp_()
        sizes.append(float(size.detach()))
    assert sizes[-1] < 0.1 * sizes[0]


def test_frozen_gates_are_open_and_learn_nothing() -> None:
    gates = StructureGates(SMALL)
    for gate in gates.gates():
        gate.is_frozen = True
    values = gates()
    assert all(torch.equal(tensor, torch.ones_like(tensor)) and not tensor.requires_grad for tensor in values.tensors())


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(ConfigError, match="families: 'head' is not known; choices: heads, neurons, layers, hidden"):
        StructureGates(SMALL, ["head"])
    with pytest.raises(ConfigError, match="neuron_drop: 1.0 is out of range"):
        StructureGates(SMALL, neuron_drop=1.0)
