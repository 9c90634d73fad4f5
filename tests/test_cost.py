"""Laws of cost: an expectation is the weighted mean over members, a certainty the true count.

References: enumeration of every member of a tiny space, numel of the parameters, half of torch's FlopCounterMode.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from every_member import LENGTH, mean_cost
from tiny import WIDTHS, batch_of, make_certain, random_supernet, randomise, texts, tiny_config, tiny_space
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from adasearch.cost import Cost, FixedAxis, expected_product, weights_cost
from adasearch.gates import ChoiceGate, SubsetGate, gates_of
from adasearch.member_cost import architecture_cost
from adasearch.operations import OPERATIONS
from adasearch.shrink import shrink
from adasearch.space import load_space
from adasearch.student import AdasearchForSequenceClassification
from adasearch.supernet import Supernet

WEIGHED = ("conv3", "self_attention", "skip")  # linear and quadratic in the width, linear and quadratic in the length


def size_gate(*sizes: int) -> ChoiceGate:
    gate = ChoiceGate("axis", sizes)
    torch.nn.init.normal_(gate.logits)
    return gate


def cells_params(student: AdasearchForSequenceClassification) -> int:
    """Parameters of the student's cells without the mixing weights of their outputs."""
    return sum(p.numel() for name, p in student.trunk.cells.named_parameters() if not name.endswith("output_logits"))


def cells_macs(student: AdasearchForSequenceClassification, length: int) -> float:
    """Half the floating-point operations that torch counts in the cells, for one text."""
    first, second, context = student.trunk.inputs(*batch_of(texts(length)))
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        for cell, path in zip(student.trunk.cells, student.paths):
            first, second = second, cell(first, second, context, path)
    return counter.get_total_flops() / 2


def test_equal_axes_are_not_independent() -> None:
    a, b = size_gate(2, 5), size_gate(3, 4, 7)
    p_a, p_b = a.expected()[0].tolist(), b.expected()[0].tolist()
    joint = [(p * q, x, y) for p, x in zip(p_a, (2, 5)) for q, y in zip(p_b, (3, 4, 7))]
    sizes = {"a": a, "b": b}
    for axes, product in (
        (("a", "a", 3), lambda x, y: 3 * x * x),  # E[x^2], not E[x]^2
        (("a", "b"), lambda x, y: x * y),
        (("b", "a", "b", 2, "b", 2), lambda x, y: 4 * x * y**3),
        (("a",), lambda x, y: x),
        ((5, 5), lambda x, y: 25),
        ((), lambda x, y: 1),
    ):
        assert float(torch.as_tensor(expected_product(axes, sizes)).detach()) == pytest.approx(
            sum(p * product(x, y) for p, x, y in joint), rel=1e-6
        )
    assert expected_product(("a", "a"), {"a": FixedAxis(6)}) == 36


def test_vectors_cost_parameters_only() -> None:
    weights = {"kernel": ("width", 4, 3), "bias": ("width",)}
    assert weights_cost(weights, {"width": FixedAxis(6)}, length=10) == Cost(6 * 4 * 3 + 6, 6 * 4 * 3 * 10)
    assert Cost(1, 2) + 3 * Cost(1, 2) == Cost(4, 8) == Cost(2, 4) * 2


@pytest.mark.parametrize("is_derived", [False, True], ids=["run", "derived"])
@pytest.mark.parametrize("sample_edges", [True, False], ids=["drawn_edges", "all_edges"])
@pytest.mark.parametrize(
    "changes",
    [
        {"nodes": 2, "operations": WEIGHED[:2]},
        {"nodes": 1, "operations": (*WEIGHED, "none"), "edges_per_node": 1, "share_cells": False, "never_derived": ("none",)},
        {"nodes": 2, "operations": WEIGHED[:2], "edges_per_node": 1, "widths": (12,), "cells": (2, 4)},
    ],
    ids=["shared", "unshared", "one_edge_one_width"],
)
def test_expected_cost_is_the_mean_over_all_members(changes: dict, sample_edges: bool, is_derived: bool) -> None:
    space = tiny_space(**{"cells": (1, 2), **changes, "sample_edges": sample_edges})
    supernet = random_supernet(space)
    total, params, macs = mean_cost(supernet, is_derived)
    expected = supernet.expected_cost(LENGTH, is_derived)
    assert total == pytest.approx(1.0, abs=1e-5)
    # float32 sums of some dozen terms against double sums of hundreds
    assert expected.params.item() == pytest.approx(params, rel=1e-5)
    assert expected.macs.item() == pytest.approx(macs, rel=1e-5)


@pytest.mark.parametrize("sample_edges", [True, False])
def test_what_is_never_derived_may_be_as_sure_of_itself_as_it_likes(sample_edges: bool) -> None:
    """After a long search: the others' probabilities are no float32 numbers then, but members are still derived of them alone."""
    space = tiny_space(operations=("none", "conv3", "skip"), never_derived=("none",), sample_edges=sample_edges)
    supernet = Supernet(space, tiny_config())
    (gates,) = supernet.cell_gates
    found = []
    for ahead in (0.0, 120.0):
        with torch.no_grad():
            gates.operations.logits.copy_(torch.tensor([ahead, 1.0, 0.0]).expand_as(gates.operations.logits))
        supernet.zero_grad()
        cost = supernet.expected_cost(LENGTH, is_derived=True).macs
        cost.backward()
        found.append((cost.detach(), gates.operations.logits.grad[:, 1:].clone()))
        assert all(edge.operation == "conv3" for node in gates.decide() for edge in node)
    assert found[1][0].item() == pytest.approx(found[0][0].item(), rel=1e-5)  # float32, as above
    assert found[1][1].isfinite().all()


MACROS = [
    {},
    {"norm": "layer", "pooling": "attention"},
    {"embedding_size": 6, "position_embeddings": False, "inputs": "two", "cell_output": "sum"},
]


def whole_params(student: AdasearchForSequenceClassification) -> int:
    """Parameters of the deployed student: its embeddings are folded."""
    student.fold_embeddings()
    return sum(parameter.numel() for parameter in student.parameters())


def whole_macs(student: AdasearchForSequenceClassification, length: int) -> float:
    """Half the floating-point operations that torch counts in the folded student, for one text."""
    student.fold_embeddings()
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        student(*batch_of(texts(length)))
    return counter.get_total_flops() / 2


@pytest.mark.parametrize("macro", MACROS, ids=str)
@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("width", WIDTHS)
def test_certain_gates_cost_what_the_student_has(width: int, depth: int, macro: dict) -> None:
    """The whole student: operations, folded tables and read-out, against torch's own counts."""
    operations = tuple(name for name in OPERATIONS if name not in ("none", "soft_alignment"))
    supernet = random_supernet(tiny_space(operations=operations, edges_per_node=1, macro=macro))
    make_certain(supernet, depth, width)
    architecture = supernet.decide()
    student = shrink(supernet, architecture).eval()
    assert (architecture.depth, architecture.width) == (depth, width)
    cost = architecture_cost(architecture, LENGTH)
    assert (cost.params, cost.macs) == (cells_params(student), cells_macs(student, LENGTH))
    true = whole_params(student), whole_macs(student, LENGTH)
    assert supernet.expected_cost(LENGTH).params.item() == pytest.approx(true[0], rel=1e-6)
    assert supernet.expected_cost(LENGTH).macs.item() == pytest.approx(true[1], rel=1e-6)
    whole = architecture_cost(architecture, LENGTH, supernet.config)
    assert (whole.params, whole.macs) == true


def test_the_word_table_counts() -> None:
    """A vocabulary of one row more costs a row of each width; a search pays for it by choosing a narrower one."""
    supernet = random_supernet(tiny_space(widths=(8,)))
    less, more = (architecture_cost(supernet.decide(), LENGTH, tiny_config(vocab_size=rows)) for rows in (30, 31))
    assert more.params - less.params == 8 and more.macs == less.macs
    supernet = random_supernet(tiny_space(operations=("skip", "max_pool3")), vocab_size=50_000)
    supernet.expected_cost(LENGTH).params.backward()
    gradient = supernet.width_gate.logits.grad[0]
    assert gradient[WIDTHS.index(min(WIDTHS))] < 0 < gradient[WIDTHS.index(max(WIDTHS))]


def test_without_its_parent_a_cell_costs_nothing() -> None:
    """Cells beyond the depth are children of the depth gate: at depth 1 neither their cost nor its gradient is left."""
    supernet = random_supernet(tiny_space(share_cells=False, cells=(1, 3)))
    deep = supernet.expected_cost(LENGTH)
    supernet.depth_gate.logits.data.copy_(torch.tensor([[0.0, -200.0, -200.0]]))  # exp(-200) is 0 in float32
    shallow = supernet.expected_cost(LENGTH)
    shallow.macs.backward()
    assert shallow.macs < deep.macs and shallow.params < deep.params
    gradients = [gates.operations.logits.grad.abs().max().item() for gates in supernet.cell_gates]
    assert gradients[0] > 0 and gradients[1:] == [0.0, 0.0]
    before = shallow.macs.item()
    randomise(supernet.cell_gates[1])
    assert supernet.expected_cost(LENGTH).macs.item() == before


def test_full_cost_is_everything_at_once_and_bounds_every_member() -> None:
    supernet = random_supernet(tiny_space(operations=(*WEIGHED, "none"), share_cells=False))
    full = supernet.full_cost(LENGTH)
    supernet.trunk.embeddings.fold()
    # an exit that stops early has weights of the levels before it; a member has those of one exit
    exits = supernet.trunk.read_out.level_logits[1:].numel()
    assert full.params == sum(parameter.numel() for parameter in supernet.trunk.parameters()) - exits
    for _ in range(20):
        randomise(supernet)
        expected, decided = supernet.expected_cost(LENGTH), architecture_cost(supernet.decide(), LENGTH, supernet.config)
        assert expected.params < full.params and expected.macs < full.macs
        assert decided.params < full.params and decided.macs < full.macs


def test_cost_teaches_every_gate() -> None:
    supernet = random_supernet(tiny_space())
    supernet.expected_cost(LENGTH).macs.backward()
    subsets_of_all = [
        gate for gate in gates_of(supernet) if isinstance(gate, SubsetGate) and gate.size == len(gate.logits)
    ]
    for gate in gates_of(supernet):
        if gate not in subsets_of_all:  # where all edges are kept there is nothing to learn
            assert gate.logits.grad.abs().max() > 0, gate.axis


def test_a_longer_text_costs_more_and_parameters_do_not_care() -> None:
    supernet = random_supernet(tiny_space(operations=WEIGHED))
    short, long = supernet.expected_cost(10), supernet.expected_cost(20)
    assert (
        short.params.item() == pytest.approx(long.params.item()) and long.macs > 2 * short.macs
    )  # attention is quadratic


@pytest.mark.parametrize("name", ["adabert", "adasearch"])
def test_a_constraint_holds_what_is_derived(name: str) -> None:
    """Of the packaged spaces, with fresh gates: what a constraint counts is the mean cost of the members that come out."""
    torch.manual_seed(0)
    supernet, generator = Supernet(load_space(name).for_task(is_pair=False), tiny_config()), np.random.default_rng(0)
    mean = np.mean([float(architecture_cost(supernet.sample(generator), 30, supernet.config).macs) for _ in range(300)])
    assert supernet.expected_cost(30, is_derived=True).macs.item() == pytest.approx(mean, rel=0.05)
