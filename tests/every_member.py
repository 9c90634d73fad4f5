"""Every member of a tiny space and its probability, written out, and the mean of their costs."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import torch
from torch import Tensor

from adasearch.architecture import Architecture, Edge
from adasearch.cost import Cost
from adasearch.member_cost import architecture_cost
from adasearch.supernet import CellGates, Supernet

LENGTH = 7
Member = tuple[float, tuple[tuple[Edge, ...], ...]]


def subsets(strengths: Tensor, size: int) -> Iterator[tuple[float, set[int]]]:
    """Every ordered draw without replacement and its probability."""
    p = (strengths / strengths.sum()).tolist()
    for order in itertools.permutations(range(len(p)), size):
        probability, left = 1.0, 1.0
        for element in order:
            probability, left = probability * p[element] / left, left - p[element]
        yield probability, set(order)


def members(gates: CellGates, is_derived: bool = False) -> list[Member]:
    """Every cell that ``gates`` may draw, or derive, and its probability, written out."""
    space, shares_RN = gates.space, gates.operations.logits.softmax(-1)
    if is_derived:
        allowed = torch.tensor([name not in space.never_derived for name in space.operations])
        allowed_RN = shares_RN * allowed
        shares_RN = allowed_RN / allowed_RN.sum(1, keepdim=True)
    drawn = [[(1.0, set(range(node + 2)))] for node in range(space.nodes)]
    if gates.edges is not None:
        drawn = [list(subsets(gate.logits.softmax(-1), gate.size)) for gate in gates.edges]
    elif is_derived:
        best = [torch.stack([p_N.max() for p_N, pair in zip(allowed_RN, gates.pairs) if pair[0] == node]) for node in range(space.nodes)]
        drawn = [list(subsets(p_S, min(len(p_S), space.edges_per_node))) for p_S in best]
    p_RN, found = shares_RN.tolist(), []
    for picked in itertools.product(range(len(space.operations)), repeat=len(gates.pairs)):
        p_operations = 1.0
        for row, choice in enumerate(picked):
            p_operations *= p_RN[row][choice]
        for kept in itertools.product(*drawn):
            probability, nodes = p_operations, [[] for _ in range(space.nodes)]
            for p_subset, _ in kept:
                probability *= p_subset
            for (node, source), choice in zip(gates.pairs, picked):
                if source in kept[node][1]:
                    nodes[node].append(Edge(source, space.operations[choice]))
            found.append((probability, tuple(map(tuple, nodes))))
    return found


def mean_cost(supernet: Supernet, is_derived: bool = False) -> tuple[float, float, float]:
    """Probability-weighted mean of ``architecture_cost`` over all members, and the sum of the probabilities.

    A cell's own share of embeddings and read-out is the difference of a member with it and one without.
    """
    space, cells = supernet.space, [members(gates, is_derived) for gates in supernet.cell_gates]
    depths = dict(zip(supernet.depth_gate.choices, supernet.depth_gate.logits.softmax(-1)[0].tolist()))
    widths = dict(
        zip(space.widths, supernet.width_gate.logits.softmax(-1)[0].tolist() if supernet.width_gate else [1.0])
    )
    known: dict[tuple[object, int], Cost] = {}

    def whole_cost(cells: tuple[object, ...], width: int) -> Cost:
        if (cells, width) not in known:
            member = Architecture(space.name, space.digest, cells, width, space.macro)
            known[cells, width] = architecture_cost(member, LENGTH, supernet.config)
        return known[cells, width]

    def cell_cost(cell: tuple[tuple[Edge, ...], ...], width: int) -> Cost:
        return whole_cost((cell,), width) + -1 * whole_cost((), width)

    total, params, macs = 0.0, 0.0, 0.0
    for (depth, p_depth), (width, p_width) in itertools.product(depths.items(), widths.items()):
        # shared: one draw for all cells; otherwise a draw for each
        stacks = [(p, (cell,) * depth) for p, cell in cells[0]]
        if not space.share_cells:
            stacks = []
            for stack in itertools.product(*cells[:depth]):
                stacks.append((float(torch.tensor([p for p, _ in stack]).prod()), tuple(cell for _, cell in stack)))
        for p_stack, stack in stacks:
            p, cost = p_depth * p_width * p_stack, sum((cell_cost(cell, width) for cell in stack), whole_cost((), width))
            total, params, macs = total + p, params + p * cost.params, macs + p * cost.macs
    return total, params, macs
