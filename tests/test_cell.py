"""Laws of the cell: what it computes is the sum its edges spell out, and nothing else runs.

Dimensions: B batch, D width, L tokens.
"""

from __future__ import annotations

import pytest
import torch
from tiny import context_of, randomise, tiny_macro
from torch import Tensor

from adasearch.architecture import Edge
from adasearch.cell import Cell, Step, edge_key, fixed_cell, fixed_path
from adasearch.masked_norm import Context
from adasearch.operations import Operation

D = 8
CHOICE = (
    (Edge(0, "conv3"), Edge(1, "skip")),
    (Edge(0, "max_pool3"), Edge(2, "gated_conv5")),
    (Edge(3, "self_attention"),),
)


def inputs(padding: int = 3) -> tuple[Tensor, Tensor, Context]:
    context = context_of([6, 3, 1], padding=padding)
    return context.clean(torch.randn(3, D, 6 + padding)), context.clean(torch.randn(3, D, 6 + padding)), context


@pytest.mark.parametrize("kind", ["attentive", "sum", "mean"])
@pytest.mark.parametrize("is_training", [False, True], ids=["eval", "train"])
def test_a_cell_is_the_sum_its_edges_spell_out(kind: str, is_training: bool) -> None:
    cell = fixed_cell(CHOICE, D, tiny_macro(cell_output=kind)).train(is_training)
    randomise(cell)
    zero, one, context = inputs()
    y_BDL = cell(zero, one, context, fixed_path(CHOICE))
    edges, mask_B1L = cell.edges, context.mask_B1L
    two = (edges["0_to_2"]["conv3"](zero, context) + one) * mask_B1L
    three = (edges["0_to_3"]["max_pool3"](zero, context) + edges["2_to_3"]["gated_conv5"](two, context)) * mask_B1L
    four = edges["3_to_4"]["self_attention"](three, context) * mask_B1L
    weights = {"sum": [1.0] * 3, "mean": [1 / 3] * 3}.get(kind)
    if kind == "attentive":
        exponentials = cell.output_logits.exp()
        weights = (exponentials / exponentials.sum()).tolist()
    expected_BDL = weights[0] * two + weights[1] * three + weights[2] * four
    assert torch.allclose(y_BDL, expected_BDL, atol=1e-5)  # float32, other order of summing
    assert not y_BDL[mask_B1L.expand_as(y_BDL) == 0].any()


def test_dropped_channels_stay_zero() -> None:
    cell = fixed_cell(CHOICE, 12, tiny_macro())
    randomise(cell)
    context = context_of([5, 2], keep_D=(torch.arange(12) < D).float())
    x_BDL = context.clean(torch.randn(2, 12, 5))
    y_BDL = cell(x_BDL, x_BDL, context, fixed_path(CHOICE))
    assert not y_BDL[:, D:].any() and y_BDL[:, :D].any()


def test_only_the_drawn_operations_run() -> None:
    names = ("conv3", "self_attention", "avg_pool3", "skip")
    cell = Cell(
        [[(source, name) for source in range(node + 2) for name in names] for node in range(2)], D, tiny_macro()
    )
    ran: list[str] = []
    for key, module in cell.named_modules():
        if isinstance(module, Operation):
            module.register_forward_hook(lambda *_, key=key: ran.append(key))
    zero, one, context = inputs()
    cell(zero, one, context, [[Step(1, "avg_pool3")], [Step(0, "conv3"), Step(2, "skip")]])
    assert ran == ["edges.1_to_2.avg_pool3", "edges.0_to_3.conv3", "edges.2_to_3.skip"]
    cell(zero, one, context, [[], []])
    assert len(ran) == 3


def test_a_node_without_edges_is_zero() -> None:
    cell = fixed_cell(((), (Edge(2, "skip"), Edge(1, "skip"))), D, tiny_macro(cell_output="sum"))
    zero, one, context = inputs()
    assert torch.equal(cell(zero, one, context, [[], [Step(2, "skip"), Step(1, "skip")]]), one)


def test_the_scale_of_a_step_gets_the_gradient_of_its_result() -> None:
    cell = fixed_cell(CHOICE[:1], D, tiny_macro(cell_output="sum")).eval()
    randomise(cell)
    zero, one, context = inputs()
    scale, slope_BDL = torch.ones((), requires_grad=True), torch.randn_like(zero)
    y_BDL = cell(zero, one, context, [[Step(0, "conv3", scale), Step(1, "skip")]])
    assert torch.equal(y_BDL, cell(zero, one, context, fixed_path(CHOICE[:1])))  # times one changes no bit
    (y_BDL * slope_BDL).sum().backward()
    expected = (context.clean(cell.edges["0_to_2"]["conv3"](zero, context)) * slope_BDL).sum()
    assert scale.grad.item() == pytest.approx(expected.item(), rel=1e-4)


def test_a_derived_cell_holds_only_what_it_runs() -> None:
    cell = fixed_cell(CHOICE, D, tiny_macro(cell_output="sum"))
    held = {(key, name) for key, operations in cell.edges.items() for name in operations}
    assert held == {(edge_key(node, e.source), e.operation) for node, edges in enumerate(CHOICE) for e in edges}
    assert [[(step.source, step.operation, step.scale) for step in node] for node in fixed_path(CHOICE)] == [
        [(edge.source, edge.operation, None) for edge in node] for node in CHOICE
    ]
