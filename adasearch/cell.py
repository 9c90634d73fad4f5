"""A cell: two input nodes, inner nodes that sum their incoming edges, one output. DARTS; AdaBERT, section 3.1.

One ``Cell`` serves search and deployment: it holds operations and is told by a *path* which of them to run. A derived
cell holds one operation an edge and always runs the same path; a search cell holds every candidate and runs the drawn
ones only, so a step costs the same however many candidates there are (GDAS, Dong & Yang 2019).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from adasearch.architecture import CellChoice, Macro
from adasearch.masked_norm import Context
from adasearch.operations import OPERATIONS


@dataclass(frozen=True)
class Step:
    """One edge to run: ``operation`` on node ``source``, times ``scale`` (1 with a gradient, while searching)."""

    source: int
    operation: str
    scale: Tensor | None = None


CellPath = Sequence[Sequence[Step]]  # the edges into each inner node


def edge_key(node: int, source: int) -> str:
    """Name of the edge from node ``source`` into inner node ``node`` (counted from 0), as modules are named by it."""
    return f"{source}_to_{node + 2}"


class Cell(nn.Module):
    """Operations on edges. ``candidates[n]`` lists (source, operation name) pairs that may lead into inner node n."""

    def __init__(self, candidates: Sequence[Sequence[tuple[int, str]]], width: int, macro: Macro):
        super().__init__()
        self.edges = nn.ModuleDict()
        for node, entries in enumerate(candidates):
            for source, name in entries:
                key = edge_key(node, source)
                if key not in self.edges:
                    self.edges[key] = nn.ModuleDict()
                self.edges[key][name] = OPERATIONS[name](width, macro)
        self.output = macro.cell_output
        if self.output == "attentive":
            self.output_logits = nn.Parameter(torch.zeros(len(candidates)))

    def forward(self, first: Tensor, second: Tensor, context: Context, path: CellPath) -> Tensor:
        """Both input nodes and the output: (B, D, L), zero on padding."""
        nodes = [first, second]
        for node, steps in enumerate(path):
            total = torch.zeros_like(second) if not steps else None
            for step in steps:
                result = self.edges[edge_key(node, step.source)][step.operation](nodes[step.source], context)
                result = result if step.scale is None else result * step.scale
                total = result if total is None else total + result
            nodes.append(context.clean(total))
        return self.mixed(nodes[2:])

    def mixed(self, inner: list[Tensor]) -> Tensor:
        """The cell's output, (B, D, L), of its inner nodes."""
        if self.output == "attentive":
            weights = self.output_logits.softmax(0)
            return sum(weight * node for weight, node in zip(weights.unbind(), inner))
        return sum(inner) if self.output == "sum" else sum(inner) / len(inner)


def fixed_path(choice: CellChoice) -> CellPath:
    """The path of a derived cell."""
    return [[Step(edge.source, edge.operation) for edge in node] for node in choice]


def fixed_cell(choice: CellChoice, width: int, macro: Macro) -> Cell:
    """A derived cell, holding only what it runs. Two edges with equal source and operation share one operation."""
    return Cell([[(edge.source, edge.operation) for edge in node] for node in choice], width, macro)
