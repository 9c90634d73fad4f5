"""What members of a space cost, whole and in parts, without building them: parameters and multiply-accumulates.

Dimensions: W widths, K depths, C cells, R edges of a cell, N operations.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeVar

import torch
from torch import Tensor

from adasearch.architecture import Architecture, Macro, Space
from adasearch.cost import Cost, FixedAxis
from adasearch.operations import OPERATIONS, WIDTH, Operation
from adasearch.student import AdasearchConfig

Place = TypeVar("Place")  # of an edge
Choice = TypeVar("Choice")  # of an operation


@dataclass(frozen=True)
class CostTable:
    """What the parts of members cost at each width: the frame (W,), a cell's share of it (W,), each operation on each edge
    (W, R, N), or (W, 1, N) where it is the same on all. ``cells`` are the smallest and the largest depth.
    """

    frame_W: Tensor
    cell_W: Tensor
    edges_WRN: Tensor
    cells: tuple[int, int]

    def expected(self, p_W: Tensor, p_K: Tensor, shares_CRN: Sequence[Tensor]) -> Tensor:
        """E[cost] of a member, from the probabilities of the widths, of the depths, and that an edge is kept and has that
        operation in each cell (in all, where there is one). These choices are independent, so it is exact. Differentiable.
        """
        deep_enough = p_K.flip(0).cumsum(0).flip(0)  # P(K >= each choice of depth)
        run_RN: Tensor | float = 0.0
        reached: Tensor | float = 0.0
        for index in range(self.cells[1]):
            p = deep_enough[max(0, index + 1 - self.cells[0])]
            run_RN, reached = run_RN + shares_CRN[0 if len(shares_CRN) == 1 else index] * p, reached + p
        frame_W, cell_W, edges_WRN = (part.to(p_W) for part in (self.frame_W, self.cell_W, self.edges_WRN))
        return (p_W * (frame_W + reached * cell_W + (run_RN * edges_WRN).sum((1, 2)))).sum()


@lru_cache(maxsize=32)
def learned_operations(space: Space) -> frozenset[str]:
    """The operations of a space that have weights to learn: those that multiply."""
    names = [name for name in space.operations if name != "none"]
    return frozenset(name for name, cost in operation_costs(names, max(space.widths), space.macro, 8).items() if cost.macs > 0)


def with_learned(
    picked: dict[Place, Choice], learned: Sequence[Choice], least: int, probability: Callable[[Place, Choice], float]
) -> dict[Place, Choice]:
    """A node's operations by edge, with ``least`` of them such that learn, or all where it has fewer edges.

    Those are changed first whose likeliest operation that learns comes nearest to the one that was picked.
    """
    free = [place for place, choice in picked.items() if choice not in learned]
    missing = min(least, len(picked)) - (len(picked) - len(free))
    if missing <= 0:
        return picked
    best = {place: max(learned, key=lambda choice: probability(place, choice)) for place in free}
    changed = sorted(free, key=lambda place: probability(place, picked[place]) / max(probability(place, best[place]), 1e-12))[:missing]
    return picked | {place: best[place] for place in changed}


def operation_costs(names: list[str], width: int, macro: Macro, length: float) -> dict[str, Cost]:
    """Cost of each named operation at ``width`` channels for a text of ``length`` tokens; nothing is allocated."""
    return {name: _operation_cost(OPERATIONS[name], width, macro, length) for name in dict.fromkeys(names)}


@lru_cache(maxsize=4_096)
def _operation_cost(make: Callable[[int, Macro], Operation], width: int, macro: Macro, length: float) -> Cost:
    with torch.device("meta"):
        return make(width, macro).cost({WIDTH: FixedAxis(width)}, length)


def frame_cost(config: AdasearchConfig, macro: Macro, nodes: int, width: int, length: float) -> tuple[Cost, Cost]:
    """Cost of what surrounds the operations, for one text: that of the whole network, and that added by each cell.

    The first is the embedding tables (folded, as they are deployed), their normalisation and widening, the pooling of
    level 0 and the classifier; the second the mixing of a cell's nodes, its pooling and its level's weight.
    """
    size = macro.embedding_size or width
    rows = config.vocab_size + (config.max_position_embeddings if macro.position_embeddings else 0)
    widen = size * width if macro.embedding_size else 0
    texts = 2 if macro.inputs == "two" else 1  # each input node is embedded by itself
    is_scored = macro.pooling == "attention"
    level = Cost(1 + width * is_scored, 2 * length * width * is_scored)  # a weight; scores and their weighted sum
    head = Cost((width + 1) * config.num_labels, width * config.num_labels)
    tables = Cost(rows * size + widen + 2 * width, texts * length * widen)
    return tables + level + head, level + Cost(nodes if macro.cell_output == "attentive" else 0)


def cheapest_cost(space: Space, length: float, config: AdasearchConfig) -> Cost:
    """Parameters and MACs that no member of the space goes below, for one text of ``length`` tokens."""
    names = [name for name in space.operations if name not in space.never_derived]
    learned = learned_operations(space)

    def least(kind: str, width: int) -> float:
        costs = operation_costs(names, width, space.macro, length)
        frame, cell = frame_cost(config, space.macro, space.nodes, width, length)
        every = min(float(getattr(cost, kind)) for cost in costs.values())
        learning = min((float(getattr(cost, kind)) for name, cost in costs.items() if name in learned), default=every)
        edges = [min(space.edges_per_node, node + 2) for node in range(space.nodes)]
        must = [min(space.learned_per_node, count) for count in edges]
        in_cell = sum(m * learning + (count - m) * every for m, count in zip(must, edges))
        return getattr(frame, kind) + space.cells[0] * (getattr(cell, kind) + in_cell)

    # not always of the smallest width: a layer of the teacher needs no projections at the teacher's own
    return Cost(*(min(least(kind, width) for width in space.widths) for kind in ("params", "macs")))


def architecture_cost(architecture: Architecture, length: float, config: AdasearchConfig | None = None) -> Cost:
    """Cost of an architecture for one text of ``length`` tokens: of its operations; with ``config``, of the whole student."""
    costs = operation_costs(architecture.operations, architecture.width, architecture.macro, length)
    total = sum((costs[name] for name in architecture.operations), Cost())
    if config is None:
        return total
    nodes = len(architecture.cells[0]) if architecture.cells else 0
    frame, cell = frame_cost(config, architecture.macro, nodes, architecture.width, length)
    return total + frame + architecture.depth * cell
