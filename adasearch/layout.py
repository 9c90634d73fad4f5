"""Where the parts of a cell's picture stand, and what they are called: plain numbers and words, nothing is drawn."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from adasearch.architecture import Architecture, CellChoice, Edge

Costs = dict[str, tuple[int, int]]  # operation -> (parameters, MACs per token)


@dataclass(frozen=True)
class Placed:
    """An edge of a cell in its place: ``row`` above (positive) or below the line of the inner nodes, in which it runs
    from its source to the column of boxes left of node ``target`` (numbered as in the Architecture: 2 and up)."""

    edge: Edge
    target: int
    row: int


def place_edges(cell: CellChoice) -> list[Placed]:
    """Give every edge a row in which its box meets no other wire and its wire no other box or node.

    Edge s -> t takes its row from column(s) to column(t); two edges may share one where these spans do not overlap.
    Row 0 is the nodes' own: only edges between neighbours may run in it. Short edges choose first, so they stay near.
    """
    edges = [(edge, node + 2) for node, entries in enumerate(cell) for edge in entries]

    def order(item: tuple[Edge, int]) -> tuple[int, int, int]:
        edge, target = item
        return column_of(target) - column_of(edge.source), target, -edge.source

    taken: dict[int, list[tuple[int, int]]] = defaultdict(list)
    placed = []
    for edge, target in sorted(edges, key=order):
        start, end = column_of(edge.source), column_of(target)
        preferred = {0: -1, 1: 1}.get(edge.source, 0)  # the inputs fan out to their own side
        rows = sorted(range(-len(edges), len(edges) + 1), key=lambda row: (abs(row - preferred), -row))
        row = next(
            row for row in rows
            if (row != 0 or end - start == 1) and all(end <= low or high <= start for low, high in taken[row])
        )  # fmt: skip
        taken[row].append((start, end))
        placed.append(Placed(edge, target, row))
    return sorted(placed, key=lambda p: (p.target, -p.row))


def column_of(node: int) -> int:
    """Inputs stand in column 0, inner nodes in columns of their own."""
    return max(0, node - 1)


def cell_groups(architecture: Architecture) -> list[tuple[CellChoice, list[int]]]:
    """The distinct cells, each with the numbers (from 1) of the cells of that shape."""
    groups: dict[CellChoice, list[int]] = defaultdict(list)
    for number, cell in enumerate(architecture.cells, start=1):
        groups[cell].append(number)
    return list(groups.items())


def name_ranges(numbers: Sequence[int], noun: str = "cell") -> str:
    """``cell 1``, ``cells 1–3, 5``."""
    runs = [[n for _, n in run] for _, run in groupby(enumerate(numbers), key=lambda item: item[1] - item[0])]
    text = ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}–{run[-1]}" for run in runs)
    return f"{noun}{'s' * (len(numbers) > 1)} {text}"


def input_lines(node: int, numbers: Sequence[int], inputs: str) -> list[str]:
    """What input node 0 or 1 is, for a group of cells: its role, then what stands there where there is no such cell."""
    starts = ("sentence 1", "sentence 2") if inputs == "two" else ("embeddings", "embeddings")
    usual = ("cell before that", "previous cell")[node]
    special = {1: starts[node], **({2: starts[1]} if node == 0 else {})}
    exceptions: dict[str, list[int]] = defaultdict(list)
    for number in numbers:
        if number in special:
            exceptions[special[number]].append(number)
    if sum(map(len, exceptions.values())) == len(numbers) and len(exceptions) == 1:
        return [*exceptions]
    lines = [] if sum(map(len, exceptions.values())) == len(numbers) else [usual]
    return lines + [f"{name_ranges(where)}: {what}" for what, where in exceptions.items()]


def cell_params(cell: CellChoice, costs: Costs) -> int | None:
    """Parameters of a cell's operations, None where one's cost is unknown. Twin edges (same ends, same operation)
    share one operation."""
    distinct = {(node, edge) for node, entries in enumerate(cell) for edge in entries}
    names = [edge.operation for _, edge in distinct]
    return sum(costs[name][0] for name in names) if all(name in costs for name in names) else None
