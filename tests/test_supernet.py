"""Laws of the supernet: it runs one member at a time, teaches every gate, and decides for what it ran.

Dimensions: B batch, D width, C labels.
"""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny import batch_of, make_certain, random_supernet, texts, tiny_config, tiny_macro, tiny_space
from torch import Tensor

from adasearch.architecture import Architecture, Edge, Space
from adasearch.gates import SubsetGate, gates_of
from adasearch.member_cost import architecture_cost, learned_operations, operation_costs
from adasearch.operations import OPERATIONS, Operation
from adasearch.supernet import CellGates, Supernet, SupernetOutput

TEN = tuple(name for name in OPERATIONS if name not in ("none", "soft_alignment"))[:10]
THREE = ("conv3", "max_pool3", "skip")


def batch(*lengths: int | tuple[int, int]) -> tuple[Tensor, Tensor]:
    return batch_of(texts(*(lengths or (7, (3, 4), 2))), padding=1)


def search_loss(output: SupernetOutput) -> Tensor:
    """Cross-entropy of the drawn exit, through the depth gate's one-hot."""
    losses = [F.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.long)) for logits in output.logits]
    return (torch.stack(losses) * output.depth_weights[: len(losses)]).sum()


def count_runs(supernet: Supernet) -> list[str]:
    """The list that the names of executed operations will be appended to."""
    ran: list[str] = []
    for name, module in supernet.named_modules():
        if isinstance(module, Operation):
            module.register_forward_hook(lambda *_, name=name: ran.append(name))
    return ran


@pytest.mark.parametrize("sample_edges", [True, False])
@pytest.mark.parametrize("is_frozen", [True, False])
def test_a_step_runs_as_many_operations_whatever_the_candidates(sample_edges: bool, is_frozen: bool) -> None:
    runs = []
    for operations in (THREE, TEN):
        space = tiny_space(operations=operations, nodes=3, cells=(3, 3), sample_edges=sample_edges)
        supernet = Supernet(space, tiny_config()).train()
        for gate in gates_of(supernet):
            gate.is_frozen = is_frozen
        ran = count_runs(supernet)
        supernet(*batch())
        assert len(set(ran)) == len(ran)
        runs.append(len(ran))
    assert runs == [3 * (3 * 2 if sample_edges else 2 + 3 + 4)] * 2


def test_no_cell_runs_beyond_the_depth_unless_the_depth_is_learning() -> None:
    supernet = Supernet(tiny_space(cells=(1, 4)), tiny_config()).train()
    make_certain(supernet, depth=2, width=8)
    ran = count_runs(supernet)
    output = supernet(*batch())
    assert {name.split(".")[2] for name in ran} == {"0", "1", "2", "3"}
    # exits beyond the drawn one inform the depth gate and nobody else
    assert output.depths == [1, 2, 3, 4] and output.drawn == 1 and output.depth_weights.tolist() == [0, 1, 0, 0]
    assert [logits.requires_grad for logits in output.logits] == [True, True, False, False]
    for evaluates in (False, True):
        ran.clear()
        supernet.train(not evaluates)
        for gate in gates_of(supernet):
            gate.is_frozen = True
        output = supernet(*batch())
        assert {int(name.split(".")[2]) for name in ran} == set(range(output.depths[output.drawn]))
        assert len(output.logits) == output.drawn + 1 == len(output.depths) and len(output.levels) == output.drawn + 2


@pytest.mark.parametrize("share_cells", [True, False])
def test_the_loss_teaches_every_gate_and_drawn_weight(share_cells: bool) -> None:
    supernet = Supernet(tiny_space(share_cells=share_cells, operations=("conv3", "sep_conv3")), tiny_config()).train()
    assert len(gates_of(supernet)) == 2 + (1 if share_cells else 3) * 3
    for _ in range(12):  # a gate of a cell beyond the drawn depth learns nothing in that draw
        search_loss(supernet(*batch())).backward()
    for gate in gates_of(supernet):
        if not (isinstance(gate, SubsetGate) and gate.size == len(gate.logits)):
            assert gate.logits.grad.abs().max() > 0, gate.axis
    assert supernet.trunk.embeddings.projection.weight.grad.abs().max() > 0


def test_while_frozen_only_weights_learn() -> None:
    supernet = Supernet(tiny_space(), tiny_config()).train()
    for gate in gates_of(supernet):
        gate.is_frozen = True
    output = supernet(*batch())
    F.cross_entropy(output.logits[-1], torch.zeros(3, dtype=torch.long)).backward()
    assert all(gate.logits.grad is None for gate in gates_of(supernet))
    assert supernet.trunk.read_out.classifier.weight.grad.abs().max() > 0


def test_the_depth_gate_weighs_the_losses_of_the_exits() -> None:
    supernet = Supernet(tiny_space(), tiny_config()).train()
    output = supernet(*batch())
    losses = torch.tensor([0.3, -1.0, 2.0])
    (output.depth_weights * losses).sum().backward()
    p = supernet.depth_gate.expected()[0]
    assert supernet.depth_gate.logits.grad.sum().abs() < 1e-6  # of a softmax
    assert output.depth_weights.argmax() == output.drawn and p.shape == (3,)


def strongest_by_hand(space: Space, p_RN: Tensor) -> tuple[tuple[Edge, ...], ...]:
    """DARTS, section 2.3: the best allowed operation of an edge, the strongest edges of a node."""
    allowed = [name for name in space.operations if name not in space.never_derived]
    row, nodes = 0, []
    for node in range(space.nodes):
        edges = []
        for source in range(node + 2):
            p = dict(zip(space.operations, p_RN[row].tolist()))
            best = max(allowed, key=p.__getitem__)
            edges.append((p[best], Edge(source, best)))
            row += 1
        kept = sorted(edges, key=lambda pair: pair[0], reverse=True)[: space.edges_per_node]
        nodes.append(tuple(sorted((edge for _, edge in kept), key=lambda edge: edge.source)))
    return tuple(nodes)


@pytest.mark.parametrize("share_cells", [True, False])
def test_undrawn_edges_are_kept_by_their_best_operation(share_cells: bool) -> None:
    space = tiny_space(
        operations=(*THREE, "none"), never_derived=("none",), nodes=3, sample_edges=False, share_cells=share_cells
    )
    for _ in range(5):
        supernet = random_supernet(space)
        architecture = supernet.decide(seed=5)
        gates = list(supernet.cell_gates) if not share_cells else [supernet.cell_gates[0]] * 3
        expected = [strongest_by_hand(space, cell.operations.logits.softmax(-1)) for cell in gates]
        assert architecture.cells == tuple(expected[: architecture.depth]) and "none" not in architecture.operations
        assert architecture.depth == 1 + supernet.depth_gate.logits[0].argmax().item()
        assert (architecture.space_digest, architecture.seed) == (space.digest, 5)
        assert Architecture.from_dict(json.loads(json.dumps(architecture.to_dict()))) == architecture


@pytest.mark.parametrize("never_derived", [(), ("max_pool3",)])
def test_members_are_drawn_as_often_as_expected(never_derived: tuple[str, ...]) -> None:
    space = tiny_space(operations=THREE, never_derived=never_derived, nodes=2, edges_per_node=2)
    gates, draws, generator = CellGates(space), 500, np.random.default_rng(0)
    for gate in gates_of(gates):
        torch.nn.init.normal_(gate.logits)
    p_RN = gates.operations.logits.detach().softmax(-1)
    for name in never_derived:
        p_RN[:, THREE.index(name)] = 0
    kept_R = torch.cat([gate.expected() for gate in gates.edges]).detach()
    expected_RN = p_RN / p_RN.sum(1, keepdim=True) * kept_R[:, None]
    count_RN = torch.zeros_like(expected_RN)
    for _ in range(draws):
        for node, edges in enumerate(gates.sample(generator)):
            for edge in edges:
                count_RN[gates.pairs.index((node, edge.source)), THREE.index(edge.operation)] += 1
    # five standard deviations of a binomial share
    spread_RN = (expected_RN * (1 - expected_RN).clamp_min(0) / draws).sqrt()
    assert ((count_RN / draws - expected_RN).abs() <= 5 * spread_RN + 1e-6).all()


def test_an_edge_that_learned_to_be_absent_is_seldom_derived() -> None:
    space = tiny_space(operations=(*THREE, "none"), never_derived=("none",), nodes=1, edges_per_node=1, sample_edges=False)
    gates = CellGates(space)
    p_RN = torch.tensor([[0.08, 0.01, 0.01, 0.90], [0.30, 0.28, 0.28, 0.14]])
    with torch.no_grad():
        gates.operations.logits.copy_(p_RN.log())
    assert gates.decide()[0][0].source == 1
    # one edge of two, each as likely as its best operation: 0.08 against 0.30; then an operation by what is left without "none"
    shares = torch.tensor([0.08, 0.30]) / 0.38
    expected_RN = torch.cat([p_RN[:, :3] / p_RN[:, :3].sum(1, keepdim=True), torch.zeros(2, 1)], 1) * shares[:, None]
    torch.testing.assert_close(gates.expected_share(is_derived=True).detach(), expected_RN)
    draws, generator = 1000, np.random.default_rng(0)
    absent = sum(gates.sample(generator)[0][0].source == 0 for _ in range(draws)) / draws
    assert abs(absent - 0.08 / 0.38) < 5 * (0.21 * 0.79 / draws) ** 0.5


@pytest.mark.parametrize("sample_edges", [True, False])
@pytest.mark.parametrize("least", [1, 2])
def test_every_derived_node_has_operations_that_learn(sample_edges: bool, least: int) -> None:
    space = tiny_space(operations=THREE, sample_edges=sample_edges, learned_per_node=least, nodes=3)
    supernet, free = random_supernet(space), tiny_space(operations=THREE, sample_edges=sample_edges, nodes=3)
    logits_RN = supernet.cell_gates[0].operations.logits.data
    logits_RN[:, 2] += 3  # skips nearly everywhere
    other = Supernet(free, tiny_config())
    other.load_state_dict(supernet.state_dict())
    constrained, unconstrained = supernet.decide().cells[0], other.decide().cells[0]
    for node, (edges, wished) in enumerate(zip(constrained, unconstrained)):
        learned = sum(edge.operation == "conv3" for edge in edges)
        wanted = sum(edge.operation == "conv3" for edge in wished)
        assert [edge.source for edge in edges] == [edge.source for edge in wished]
        assert learned == max(wanted, least)  # no more is changed than must be
        if wanted == 0 and least == 1:  # the edge that gives up least, as a share of its wish
            rows = [sum(range(2, node + 2)) + edge.source for edge in wished]
            loss = [(logits_RN[row].max() - logits_RN[row, 0]).item() for row in rows]
            assert edges[loss.index(min(loss))].operation == "conv3"
    generator = np.random.default_rng(0)
    for _ in range(50):
        for edges in supernet.sample(generator).cells[0]:
            assert sum(edge.operation == "conv3" for edge in edges) >= least


def test_what_learns_has_matrices() -> None:
    space = tiny_space(operations=tuple(name for name in OPERATIONS))
    built = {name: OPERATIONS[name](12, tiny_macro()) for name in OPERATIONS}
    expected = {name for name, operation in built.items() if any(p.ndim > 1 for p in operation.parameters())}
    assert learned_operations(space) == expected


def test_none_is_never_run_and_leaves_the_sum() -> None:
    space = tiny_space(
        operations=("skip", "none"), cells=(1, 1), sample_edges=False, widths=(8,), macro={"cell_output": "sum"}
    )
    supernet = random_supernet(space)
    rows = supernet.cell_gates[0].operations.logits.data
    rows.copy_(torch.tensor([[0.0, 9.0]]).expand_as(rows))
    rows[1] = torch.tensor([9.0, 0.0])  # node 0 = input 1; node 1 = nothing
    output = supernet(*batch())
    assert torch.allclose(output.levels[1], output.levels[0], atol=1e-6)  # joint: input 1 is the embeddings


def test_eval_is_deterministic_and_training_is_not() -> None:
    supernet, (ids_BL, mask_BL) = random_supernet(tiny_space()), batch()
    first, again = supernet(ids_BL, mask_BL), supernet(ids_BL, mask_BL)
    assert all(torch.equal(a, b) for a, b in zip(first.logits, again.logits)) and first.drawn == again.drawn
    supernet.train()
    assert len({supernet(ids_BL, mask_BL).levels[1].sum().item() for _ in range(5)}) > 1


def test_a_search_resumes_from_its_state_dict() -> None:
    saved, fresh = random_supernet(tiny_space(share_cells=False)), random_supernet(tiny_space(share_cells=False))
    for gate in gates_of(saved):
        gate.temperature.fill_(0.4)
    fresh.load_state_dict(saved.state_dict())
    assert fresh.decide() == saved.decide() and all(
        gate.temperature == gates_of(saved)[0].temperature for gate in gates_of(fresh)
    )
    for model in (saved, fresh):
        model.train()
    torch.manual_seed(1)
    one = saved(*batch())
    torch.manual_seed(1)
    assert torch.equal(one.logits[-1], fresh(*batch()).logits[-1])


def test_costs_of_operations_are_counted_without_weights() -> None:
    space = tiny_space(operations=THREE)
    costs = operation_costs([*THREE, "conv3"], 12, space.macro, length=5)
    assert list(costs) == list(THREE) and costs["conv3"].macs == 5 * 3 * 12 * 12 and costs["skip"].params == 0
    cell = ((Edge(0, "conv3"), Edge(1, "conv3")), (Edge(2, "skip"),))
    member = Architecture("tiny", space.digest, (cell, cell), 12, space.macro)
    assert architecture_cost(member, 5).params == 4 * costs["conv3"].params
