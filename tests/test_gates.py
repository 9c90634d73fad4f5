"""Laws of the gates: what is expected is what is drawn, what runs is hard, what learns is soft.

References: counted frequencies, sums written out over orders of drawing, autograd on softmax by its formula.
"""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor, nn

from adasearch.gates import ChoiceGate, Gate, SubsetGate, gates_of, gumbel_noise

DRAWS = 20_000
LOGITS = (0.9, -0.4, 0.0, -1.3)
SIZES = range(1, 5)


def choice_gate(rows: int = 1, temperature: float = 1.0) -> ChoiceGate:
    gate = ChoiceGate("operations", ["conv", "pool", "skip", "none"], rows)
    gate.logits.data.copy_(torch.tensor(LOGITS).expand(rows, -1))
    gate.temperature.fill_(temperature)
    return gate


def subset_gate(size: int, temperature: float = 1.0) -> SubsetGate:
    gate = SubsetGate("edges", len(LOGITS), size)
    gate.logits.data.copy_(torch.tensor(LOGITS))
    gate.temperature.fill_(temperature)
    return gate


def inclusion(p_N: Tensor, size: int) -> Tensor:
    """P(element is drawn) in ``size`` draws without replacement, one order at a time, as one would do it by hand."""
    total = [torch.zeros(()) for _ in p_N]
    for order in itertools.permutations(range(len(p_N)), size):
        probability, left = torch.ones(()), torch.ones(())
        for element in order:
            probability, left = probability * p_N[element] / left, left - p_N[element]
        for element in order:
            total[element] = total[element] + probability
    return torch.stack(total)


def assert_binomial(frequency: Tensor, p: Tensor, draws: int) -> None:
    """Five standard deviations of a binomial share: a wrong p of 2% is seen at these numbers of draws."""
    assert ((frequency - p).abs() <= 5 * (p * (1 - p) / draws).sqrt() + 1e-6).all(), (frequency, p)


def test_gumbel_noise_is_standard() -> None:
    noise = gumbel_noise(torch.zeros(200_000))
    assert noise.isfinite().all()
    # mean is Euler's constant, variance pi^2 / 6; standard errors 0.003 and 0.009
    assert noise.mean().item() == pytest.approx(0.57722, abs=0.015)
    assert noise.var().item() == pytest.approx(math.pi**2 / 6, abs=0.045)


@pytest.mark.parametrize("temperature", [0.1, 1.0, 5.0])
def test_choices_are_drawn_as_often_as_expected(temperature: float) -> None:
    gate = choice_gate(rows=DRAWS, temperature=temperature)  # the rows are independent: one call is 20,000 draws
    picked, weights_RN = gate()
    assert torch.equal(weights_RN.argmax(-1), torch.tensor(picked))
    assert_binomial(weights_RN.detach().mean(0), gate.expected()[0].detach(), DRAWS)
    assert torch.allclose(gate.expected()[0], torch.tensor(LOGITS).exp() / sum(map(math.exp, LOGITS)))


@pytest.mark.parametrize(("size", "temperature"), [(1, 0.1), (2, 1.0), (3, 5.0)])
def test_subsets_are_drawn_as_often_as_expected(size: int, temperature: float) -> None:
    gate, count, draws = subset_gate(size, temperature), torch.zeros(len(LOGITS)), 8_000  # no rows here: a call each
    with torch.no_grad():
        for _ in range(draws):
            picked, weights_N = gate()
            assert picked == weights_N.nonzero().flatten().tolist() and len(picked) == size
            count += weights_N
    assert_binomial(count / draws, gate.expected().detach(), draws)


@pytest.mark.parametrize("size", SIZES)
def test_inclusion_is_the_sum_over_all_orders_of_drawing(size: int) -> None:
    gate = subset_gate(size)
    assert torch.allclose(gate.expected(), inclusion(torch.tensor(LOGITS).softmax(-1), size), atol=1e-6)
    assert gate.expected().sum().item() == pytest.approx(size, abs=1e-5)


def test_a_subset_of_all_is_all() -> None:
    gate = SubsetGate("edges", 3, size=7)
    assert gate()[0] == gate.decide() == [0, 1, 2] and gate.entropy() == 0
    assert torch.allclose(gate.expected(), torch.ones(3), atol=1e-6) and torch.equal(gate()[1], torch.ones(3))


@pytest.mark.parametrize("temperature", [0.7, 1.0, 3.0])
@pytest.mark.parametrize("size", [None, 1, 2, 3], ids=lambda size: "choice" if size is None else f"subset{size}")
def test_forward_is_hard_and_backward_is_soft(size: int | None, temperature: float) -> None:
    gate: Gate = choice_gate(temperature=temperature) if size is None else subset_gate(size, temperature)
    torch.manual_seed(7)
    _, weights = gate()
    assert set(weights.flatten().tolist()) <= {0.0, 1.0} and weights.sum() == (size or 1)
    slope_N = torch.tensor([0.3, -1.0, 2.0, 0.7])
    (weights * slope_N).sum().backward()

    torch.manual_seed(7)  # the same noise; then the relaxation from its formula
    logits_N = torch.tensor(LOGITS, requires_grad=True)
    noise_N = -torch.empty(len(LOGITS)).exponential_().log()
    scores_N = (logits_N - logits_N.exp().sum().log() + noise_N) / temperature
    soft_N = scores_N.exp() / scores_N.exp().sum()
    (inclusion(soft_N, size or 1) * slope_N).sum().backward()
    largest = scores_N.topk(size or 1).indices.tolist()
    assert sorted(largest) == weights.flatten().nonzero().flatten().tolist() and logits_N.grad.abs().max() > 0.01
    # the same sums in another order; where one probability nears 1 the remainder loses digits
    assert torch.allclose(gate.logits.grad.flatten(), logits_N.grad, atol=1e-4)


@pytest.mark.parametrize("size", [None, 2])
def test_frozen_gates_draw_uniformly_and_learn_nothing(size: int | None) -> None:
    gate: Gate = choice_gate(rows=4_000) if size is None else subset_gate(size)
    gate.is_frozen = True
    with torch.no_grad():
        frequency = gate()[1].mean(0) if size is None else torch.stack([gate()[1] for _ in range(4_000)]).mean(0)
    assert_binomial(frequency, torch.full((4,), (size or 1) / 4), 4_000)
    assert not gate()[1].requires_grad


@pytest.mark.parametrize("is_frozen", [False, True])
def test_eval_takes_the_most_probable_without_noise(is_frozen: bool) -> None:
    choice, subset = choice_gate(rows=2).eval(), subset_gate(2).eval()
    choice.is_frozen = subset.is_frozen = is_frozen
    for _ in range(3):
        picked, weights = choice()
        assert picked == [0, 0] and weights.tolist() == [[1, 0, 0, 0]] * 2 and not weights.requires_grad
        picked, weights = subset()
        assert picked == subset.decide() == [0, 2] and weights.tolist() == [1, 0, 1, 0] and not weights.requires_grad


def test_decide_takes_the_likeliest_of_every_row() -> None:
    gate = choice_gate(rows=2)
    gate.logits.data[1] = -gate.logits.data[1]
    assert gate.decide() == ["conv", "none"]


@pytest.mark.parametrize("make", [choice_gate, lambda: subset_gate(2)], ids=["choice", "subset"])
def test_entropy_is_a_share_of_its_maximum(make: object) -> None:
    gate = make()
    reference = torch.distributions.Categorical(logits=torch.tensor(LOGITS)).entropy().item() / math.log(4)
    assert gate.entropy().item() == pytest.approx(reference, abs=1e-6)
    gate.logits.data.fill_(0.3)
    assert gate.entropy().item() == pytest.approx(1.0, abs=1e-6)
    gate.logits.data.flatten()[1] = 200.0
    assert gate.entropy().item() == pytest.approx(0.0, abs=1e-6)
    assert ChoiceGate("width", [128]).entropy() == 0


@pytest.mark.parametrize("power", [1, 2, 3])
def test_moment_is_the_mean_of_the_power(power: int) -> None:
    gate, p = ChoiceGate("width", [8, 12, 20, 32]), torch.tensor(LOGITS).softmax(-1).tolist()
    gate.logits.data.copy_(torch.tensor([LOGITS]))
    gate.moment(power).backward()
    assert gate.moment(power).item() == pytest.approx(sum(q * v**power for q, v in zip(p, (8, 12, 20, 32))), rel=1e-6)
    assert gate.logits.grad[0, 3] > 0 > gate.logits.grad[0, 0]


@pytest.mark.parametrize("make", [choice_gate, lambda: subset_gate(2)], ids=["choice", "subset"])
def test_a_search_resumes_with_the_same_gate(make: object) -> None:
    saved, fresh = make(), make()
    saved.logits.data.copy_(torch.randn_like(saved.logits))
    saved.temperature.fill_(0.37)
    fresh.load_state_dict(saved.state_dict())
    assert torch.equal(fresh.logits, saved.logits) and fresh.temperature.item() == pytest.approx(0.37)
    torch.manual_seed(3)
    drawn = saved()
    torch.manual_seed(3)
    assert drawn[0] == fresh()[0] and set(saved.state_dict()) == {"logits", "temperature"}


def test_gates_are_found_in_order() -> None:
    first, second = choice_gate(), subset_gate(2)
    assert gates_of(nn.Sequential(nn.Linear(2, 2), first, nn.ModuleList([second]))) == [first, second]
