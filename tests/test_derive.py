"""Deriving: members are compared by their own loss on the same texts, the cheapest of equals wins, nothing is changed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from test_fit import examples
from tiny import tiny_config, tiny_space

from adasearch.config import DistillConfig, SearchConfig
from adasearch.derive import derive, member_loss
from adasearch.methods.adabert import AdaBert
from adasearch.progress import Progress
from adasearch.shrink import random_architecture, shrink
from adasearch.supernet import Supernet, architecture_cost, cheapest_cost, learned_operations


def parts(**settings) -> tuple[Supernet, AdaBert]:
    """A supernet of random weights and its method, attached."""
    torch.manual_seed(0)
    supernet = Supernet(tiny_space(learned_per_node=1), tiny_config())
    method = AdaBert(SearchConfig(**settings), DistillConfig(), "single_label", 3, 6.0)
    method.attach(supernet)
    return supernet, method


def test_member_loss_is_the_objective_with_the_batchs_own_statistics() -> None:
    supernet, method = parts()
    method.objective.config = DistillConfig(gamma=0.0, probe_weight=0.0)
    texts = examples(20)
    student = shrink(supernet, supernet.decide())
    batch = texts.collate(np.arange(20))
    expected = F.cross_entropy(student.train()(batch["input_ids"], batch["attention_mask"]).logits, batch["labels"])
    assert member_loss(shrink(supernet, supernet.decide()), method, texts, 12) == pytest.approx(expected.item(), rel=1e-5)


def test_the_derived_member_is_the_best_of_those_compared() -> None:
    supernet, method = parts(candidates=12)
    texts = examples()
    told: list[float] = []

    class Listen(Progress):
        def step(self, done: int, **metrics: float) -> None:
            told.append(metrics["best"])

    before = {name: tensor.clone() for name, tensor in supernet.state_dict().items()}
    best = derive(supernet, method, texts, 7, Listen())
    assert told == sorted(told, reverse=True) and len(told) > 5
    order = texts.select(np.argsort(texts.tokens.lengths, kind="stable"))
    loss = member_loss(shrink(supernet, best), method, order, 12)
    assert told[-1] == pytest.approx(loss + method.member_penalty(architecture_cost(best, 6.0)), rel=1e-4)
    assert all(torch.equal(tensor, before[name]) for name, tensor in supernet.state_dict().items())
    assert derive(supernet, method, texts, 7, Progress()) == best


def test_argmax_is_the_decided_member() -> None:
    supernet, method = parts(derive="argmax")
    assert derive(supernet, method, examples(), 3, Progress()) == supernet.decide(3)


def test_a_constraint_is_met_by_the_derived_member_where_one_is_within_it() -> None:
    supernet, method = parts(candidates=40)
    costs = sorted(architecture_cost(supernet.sample(np.random.default_rng(i)), 6.0).params for i in range(40))
    target = float(costs[10])
    method.config = replace(method.config, efficiency="constraint", target_params=target)
    assert architecture_cost(derive(supernet, method, examples(), 0, Progress()), 6.0).params <= target


@pytest.mark.parametrize("share_cells", [True, False])
@pytest.mark.parametrize("sample_edges", [True, False])
def test_sampled_members_follow_the_gates_and_learn_in_every_node(share_cells: bool, sample_edges: bool) -> None:
    torch.manual_seed(0)
    space = tiny_space(learned_per_node=1, share_cells=share_cells, sample_edges=sample_edges, edges_per_node=2)
    supernet = Supernet(space, tiny_config())
    learned = learned_operations(space)
    assert learned == {"conv3", "dilated_sep_conv3", "gated_conv3", "self_attention"}
    generator = np.random.default_rng(0)
    with torch.no_grad():
        supernet.depth_gate.logits.copy_(torch.tensor([[0.0, 2.0, -1.0]]))
    depths = []
    for _ in range(300):
        member = supernet.sample(generator)
        depths.append(member.depth)
        for cell in member.cells:
            assert all(any(edge.operation in learned for edge in node) for node in cell)
    expected = supernet.depth_gate.expected()[0].detach().numpy()
    found = np.bincount(depths, minlength=4)[1:] / len(depths)
    assert np.abs(found - expected).max() < 4 * np.sqrt(0.25 / 300)


def test_a_node_of_skips_is_mended_by_its_likeliest_change() -> None:
    supernet, _ = parts()
    gates = supernet.cell_gates[0]
    names = list(supernet.space.operations)
    with torch.no_grad():
        gates.operations.logits.zero_()
        gates.operations.logits[:, names.index("skip")] = 3.0
        gates.operations.logits[:, names.index("gated_conv3")] = 1.0
        gates.operations.logits[0, names.index("gated_conv3")] = 2.0
    first = gates.decide()[0]
    assert [edge.operation for edge in first] == ["gated_conv3", "skip"]


@pytest.mark.parametrize("learned_per_node", [0, 1, 2])
def test_cheapest_cost_is_the_least_of_all_members(learned_per_node: int) -> None:
    """Against many random members of a space so small that the cheapest is among them."""
    space = tiny_space(operations=("conv3", "sep_conv3", "skip"), cells=(1, 2), learned_per_node=learned_per_node)
    members = [random_architecture(space, np.random.default_rng(seed)) for seed in range(400)]
    found = [architecture_cost(member, 5.0) for member in members]
    cheapest = cheapest_cost(space, 5.0)
    assert cheapest.params == min(cost.params for cost in found) and cheapest.macs == min(cost.macs for cost in found)


def test_random_members_learn_in_every_node_too() -> None:
    space = tiny_space(learned_per_node=2)
    learned = learned_operations(space)
    for seed in range(20):
        member = random_architecture(space, np.random.default_rng(seed))
        assert all(edge.operation in learned for cell in member.cells for node in cell for edge in node)
