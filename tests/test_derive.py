"""Deriving: members are compared by their own loss on the same texts, the cheapest of equals wins, nothing is changed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hearing import Heard
from tiny import tiny_config, tiny_space
from tiny_fit import examples

from adasearch.architecture import Architecture
from adasearch.comparison import member_loss
from adasearch.config import DistillConfig, SearchConfig
from adasearch.derive import USED, derive, finalists
from adasearch.latency import LatencyModel
from adasearch.member_cost import architecture_cost, cheapest_cost, learned_operations
from adasearch.methods.adabert import AdaBert
from adasearch.progress import Progress
from adasearch.shrink import fastest_member, random_architecture, shrink
from adasearch.supernet import Supernet


def parts(**settings) -> tuple[Supernet, AdaBert]:
    """A supernet of random weights and its method, attached."""
    torch.manual_seed(0)
    supernet = Supernet(tiny_space(learned_per_node=1), tiny_config())
    method = AdaBert(SearchConfig(**settings), DistillConfig(), "single_label", 3, 6.0)
    method.attach(supernet)
    return supernet, method


def test_member_loss_is_the_objective_with_the_batchs_own_statistics() -> None:
    supernet, method = parts()
    method.distill = DistillConfig(gamma=0.0)
    texts = examples(20)
    student = shrink(supernet, supernet.decide())
    batch = texts.collate(np.arange(20))
    expected = F.cross_entropy(student.train()(batch["input_ids"], batch["attention_mask"]).logits, batch["labels"])
    assert member_loss(shrink(supernet, supernet.decide()), method, texts) == pytest.approx(expected.item(), rel=1e-5)


def test_the_derived_member_is_the_best_of_those_compared() -> None:
    supernet, method = parts(candidates=12)
    texts = examples()
    told: list[float] = []

    class Listen(Progress):
        def step(self, done: int, **metrics: float) -> None:
            told.append(metrics["best"])

    before = {name: tensor.clone() for name, tensor in supernet.state_dict().items()}
    best = derive(supernet, method, texts, 7, Listen()).architecture
    assert told == sorted(told, reverse=True) and len(told) > 5
    order = texts.select(np.argsort(texts.tokens.lengths, kind="stable"))
    loss = member_loss(shrink(supernet, best), method, order)
    assert told[-1] == pytest.approx(loss + method.member_penalty(best), rel=1e-4)
    assert all(torch.equal(tensor, before[name]) for name, tensor in supernet.state_dict().items())
    assert derive(supernet, method, texts, 7, Progress()).architecture == best


def test_finalists_are_the_chosen_and_the_best_others_within_the_target() -> None:
    supernet, method = parts(candidates=20, finalists=5)
    derived = derive(supernet, method, examples(), 7, Progress())
    best = finalists(derived, method)
    assert best[0] == derived.architecture and len(set(best)) == 5
    by_depth = {depth: min(loss for member, loss in derived.losses.items() if member.depth == depth) for depth in supernet.depth_gate.choices}
    first = [member.depth for member in best[: len(by_depth)]]
    assert sorted(first) == sorted(by_depth) and len(first) > 1, "the best of every depth, which the supernet cannot compare"
    assert [derived.losses[member] for member in best[: len(by_depth)]] == [by_depth[depth] for depth in first]
    rest = sorted(set(derived.losses.values()) - set(by_depth.values()))
    assert [derived.losses[member] for member in best[len(by_depth) :]] == rest[: 5 - len(by_depth)]

    supernet, method = latency_parts(2.0, finalists=4)
    derived = derive(supernet, method, examples(), 0, Progress())
    slow = max(finalists(derived, method)[1:], key=method.latency.predict)

    def measure(member: Architecture) -> float:  # one of them is slower than predicted
        return 2.1 if member == slow else method.latency.predict(member)

    found = finalists(derived, method, measure)
    assert slow not in found and all(method.budget_used(member) <= 1 for member in found) and len(found) <= 4
    generator = np.random.default_rng(0)
    late = next(member for member in iter(lambda: random_architecture(supernet.space, generator), None) if method.budget_used(member) > 1)
    derived.losses[late] = -1.0
    assert late not in finalists(derived, method), "its prediction is all that is known"
    assert late in finalists(derived, method, lambda member: 1.9), "measured within the target, whatever was predicted"


def test_argmax_is_the_decided_member() -> None:
    supernet, method = parts(derive="argmax")
    assert derive(supernet, method, examples(), 3, Progress()).architecture == supernet.decide(3)


def test_a_constraint_is_met_by_the_derived_member_where_one_is_within_it() -> None:
    supernet, method = parts(candidates=40)
    config = supernet.config
    costs = sorted(architecture_cost(supernet.sample(np.random.default_rng(i)), 6.0, config).params for i in range(40))
    target = float(costs[10])
    method.config = replace(method.config, efficiency="constraint", target_params=target)
    assert architecture_cost(derive(supernet, method, examples(), 0, Progress()).architecture, 6.0, config).params <= target


def test_half_of_the_members_under_a_target_are_drawn_at_random() -> None:
    """Gates that are sure of one width know nothing of the other; nor do they when all they like is too cheap to be near the target."""
    supernet, method = parts(candidates=40)
    width = supernet.width_gate.choices
    supernet.width_gate.logits.data[:] = torch.tensor([0.0, 30.0])  # the wider
    narrow = [supernet.sample(np.random.default_rng(i)) for i in range(200)]
    narrow = [architecture_cost(replace(member, width=width[0]), 6.0, supernet.config).params for member in narrow]
    method.config = replace(method.config, efficiency="constraint", target_params=float(max(narrow)))
    found = derive(supernet, method, examples(), 0, Progress()).losses
    assert {member.width for member in found} == {*width}, "the gates alone would have given the wider, of which few fit, and no other"
    again = derive(supernet, method, examples(), 0, Progress()).losses
    assert again == found


def latency_parts(target_ms: float, **settings) -> tuple[Supernet, AdaBert]:
    """The same with a latency target, in a model where an operation takes a tenth of a millisecond more than the one before."""
    torch.manual_seed(0)
    supernet = Supernet(tiny_space(learned_per_node=1), tiny_config())
    names = supernet.space.operations
    model = LatencyModel(
        {8: 0.1, 12: 0.2}, {8: 0.05, 12: 0.1}, {name: {8: 0.1 * i, 12: 0.2 * i} for i, name in enumerate(names)}
    )
    config = SearchConfig(latency_target_ms=target_ms, candidates=12, **settings)
    method = AdaBert(config, DistillConfig(), "single_label", 3, 6.0, model)
    method.attach(supernet)
    return supernet, method


@pytest.mark.parametrize("how", ["evaluated", "argmax"])
@pytest.mark.parametrize("target_ms", [1.0, 2.0, 4.0])
def test_a_latency_target_is_met_and_used(target_ms: float, how: str) -> None:
    supernet, method = latency_parts(target_ms, derive=how)
    with torch.no_grad():
        supernet.depth_gate.logits[0, 2] = 3.0  # the decided member is a deep and slow one
    predicted = method.latency.predict(derive(supernet, method, examples(), 0, Progress()).architecture)
    assert predicted <= target_ms
    if how == "evaluated" or method.budget_used(supernet.decide()) > 1:  # else the most probable is taken as it is
        assert predicted >= USED * target_ms


def test_a_target_that_only_the_fastest_member_meets_is_met() -> None:
    fastest = fastest_member(latency_parts(1.0)[0].space, latency_parts(1.0)[1].latency)
    supernet, method = latency_parts(latency_parts(1.0)[1].latency.predict(fastest))
    assert method.budget_used(derive(supernet, method, examples(), 0, Progress()).architecture) <= 1


@pytest.mark.parametrize("slower", [0.7, 1.0, 1.4])
def test_what_a_member_really_takes_mends_the_choice(slower: float) -> None:
    supernet, method = latency_parts(2.0)
    told = Heard()
    measured: list[float] = []

    def measure(member: Architecture) -> float:
        measured.append(slower * method.latency.predict(member))
        return measured[-1]

    member = derive(supernet, method, examples(), 0, told, measure).architecture
    assert USED * 2.0 <= slower * method.latency.predict(member) <= 2.0 and not told.warnings
    assert len(measured) == (1 if slower == 1.0 else 2)


def test_the_most_probable_member_is_taken_where_it_meets_the_target() -> None:
    supernet, method = latency_parts(20.0, derive="argmax")
    assert derive(supernet, method, examples(), 0, Progress(), method.latency.predict).architecture == supernet.decide(0)


def test_no_member_is_measured_twice_and_the_slowest_that_met_the_target_is_kept() -> None:
    """A machine on which every member takes 0.5, 0.6, ... of the target, whatever is predicted."""
    supernet, method = latency_parts(2.0)
    taken: dict[Architecture, float] = {}

    def measure(member: Architecture) -> float:
        assert member not in taken
        taken[member] = 2.0 * (0.5 + 0.05 * len(taken))
        return taken[member]

    member = derive(supernet, method, examples(), 0, Progress(), measure).architecture
    assert taken[member] == max(taken.values()) < USED * 2.0 and 1 < len(taken) <= 8


def test_the_least_loss_decides_where_the_target_holds_nobody_back() -> None:
    """A target beyond the slowest member, and one that the MACs are reached long before."""
    supernet, method = latency_parts(50.0)
    macs = sorted(architecture_cost(supernet.sample(np.random.default_rng(i)), 6.0, supernet.config).macs for i in range(40))
    for target_macs in (None, macs[20]):
        method.config = replace(method.config, target_macs=target_macs)
        measured: list[Architecture] = []

        def measure(member: Architecture) -> float:
            measured.append(member)
            return method.latency.predict(member)

        derived = derive(supernet, method, examples(), 0, Progress(), measure)
        assert measured == [derived.architecture] == [min(derived.losses, key=derived.losses.__getitem__)]


def test_a_missed_target_of_macs_is_said_beside_a_latency_that_is_met() -> None:
    supernet, method = latency_parts(50.0)
    method.config = replace(method.config, target_macs=10.0)
    told = Heard()
    derive(supernet, method, examples(), 0, told, method.latency.predict)
    assert len(told.warnings) == 1 and "no member within the target was found" in told.warnings[0]


def test_a_target_that_is_missed_whenever_it_is_measured_is_said_aloud() -> None:
    supernet, method = latency_parts(2.0)
    told, taken = Heard(), {}

    def measure(member: Architecture) -> float:
        taken[member] = 5.0 + len(taken)
        return taken[member]

    member = derive(supernet, method, examples(), 0, told, measure).architecture
    assert taken[member] == 5.0 and "2 ms is missed by every member that was measured; the nearest takes 5 ms" in told.warnings[-1]


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
    found = [architecture_cost(member, 5.0, tiny_config()) for member in members]
    cheapest = cheapest_cost(space, 5.0, tiny_config())
    assert cheapest.params == min(cost.params for cost in found) and cheapest.macs == min(cost.macs for cost in found)


def test_a_layer_of_the_teacher_may_cost_least_at_the_teacher_s_width() -> None:
    """It needs no projections there, and its own size is the same at every width."""
    macro = {"teacher_size": 16, "teacher_heads": 2, "teacher_neurons": 4}
    space = tiny_space(macro, operations=("inherited_50",), widths=(8, 16), cells=(1, 1))
    found = [architecture_cost(random_architecture(space, np.random.default_rng(seed)), 5.0, tiny_config()) for seed in range(50)]
    assert cheapest_cost(space, 5.0, tiny_config()).macs == min(cost.macs for cost in found)


def test_random_members_learn_in_every_node_too() -> None:
    space = tiny_space(learned_per_node=2)
    learned = learned_operations(space)
    for seed in range(20):
        member = random_architecture(space, np.random.default_rng(seed))
        assert all(edge.operation in learned for cell in member.cells for node in cell for edge in node)
