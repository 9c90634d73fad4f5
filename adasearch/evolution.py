"""NSGA-II over the members of a space. Deb et al. 2002; on a trained supernet: Guo et al. 2020 (single-path one-shot).

A child takes each node of its cells, its depth and its width from either parent and then changes in one place: an
operation, a node, the width or the depth. What changes is taken from a random member, so that every child is one of the
space. Members are weighed once; a generation of children that are all known is filled up with random members.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from adasearch.architecture import Architecture, CellChoice, Space
from adasearch.member_cost import learned_operations
from adasearch.pareto import crowding_distances, hypervolume, non_dominated_ranks
from adasearch.progress import Progress
from adasearch.shrink import random_architecture

Objectives = tuple[float, float]  # loss and cost: less is better
TRIES = 20  # to make a child that is not known yet


@dataclass
class Evolution:
    """What was weighed, in order, and how much of the plane up to ``reference`` it covered after each generation."""

    found: dict[Architecture, Objectives] = field(default_factory=dict)
    reference: Objectives = (0.0, 0.0)
    hypervolumes: list[float] = field(default_factory=list)

    def front(self) -> list[Architecture]:
        """The members that no other is at least as good as in both objectives and better in one, cheapest first."""
        members = list(self.found)
        ranks = non_dominated_ranks(np.array([self.found[member] for member in members]))
        best = {self.found[member]: member for member, rank in zip(reversed(members), ranks[::-1]) if rank == 0}  # equals: the first
        return sorted(best.values(), key=lambda member: self.found[member][1])


def evolve(
    space: Space, weigh: Callable[[Architecture], Objectives], population: int, generations: int, seed: int, progress: Progress,
    first: tuple[Architecture, ...] = (),
) -> Evolution:  # fmt: skip
    """``generations`` after a random one, of ``population`` members each. A pure function of its arguments.

    ``first`` are members of the first generation (the fastest of a space, say, which chance does not find).
    """
    generator = np.random.default_rng((seed, 0xE701))
    evolution = Evolution()
    progress.stage("evolve members", population * (generations + 1))

    def add(members: list[Architecture]) -> list[Architecture]:
        for member in members:
            evolution.found[member] = tuple(map(float, weigh(member)))
            progress.step(len(evolution.found), loss=evolution.found[member][0], cost=evolution.found[member][1])
        if not evolution.hypervolumes:  # a little beyond the worst of the first generation, so that its ends count
            points = np.array([evolution.found[member] for member in members])
            evolution.reference = tuple((points.max(0) + 0.1 * np.maximum(np.ptp(points, axis=0), 1e-9)).tolist())
        evolution.hypervolumes.append(hypervolume(np.array(list(evolution.found.values())), evolution.reference))
        return members

    def fresh(count: int, known: dict[Architecture, None]) -> list[Architecture]:
        for _ in range(TRIES * count):  # a small space may have no more
            if count <= 0:
                break
            member = random_architecture(space, generator, seed)
            if member not in known and member not in evolution.found:
                known[member] = None
                count -= 1
        return list(known)

    parents = add(fresh(population - len(first), dict.fromkeys(first)))
    for _ in range(generations):
        ranks, crowding = _order([evolution.found[member] for member in parents])
        children: dict[Architecture, None] = {}
        for _ in range(TRIES * population):
            if len(children) == population:
                break
            one, two = (parents[_tournament(ranks, crowding, generator)] for _ in range(2))
            child = mutate(cross(one, two, space, generator), space, generator)
            if child not in evolution.found:
                children[child] = None
        members = fresh(population - len(children), children)
        if not members:
            break
        parents = _survivors([*parents, *add(members)], evolution.found, population)
    return evolution


def cross(one: Architecture, two: Architecture, space: Space, generator: np.random.Generator) -> Architecture:
    """Depth, width and every node from either parent; a cell that one of them lacks from the other."""
    depth, width = (one, two)[generator.integers(2)].depth, (one, two)[generator.integers(2)].width

    def cell(index: int) -> CellChoice:
        known = [parent.cells[index] for parent in (one, two) if index < parent.depth]
        return tuple(known[generator.integers(len(known))][node] for node in range(space.nodes))

    cells = (cell(0),) * depth if space.share_cells else tuple(cell(index) for index in range(depth))
    return dataclasses.replace(one, cells=cells, width=width)


def mutate(member: Architecture, space: Space, generator: np.random.Generator) -> Architecture:
    """The same with one operation, one node, the width or the depth as in a random member."""
    other = random_architecture(space, generator, member.seed)
    kinds = ["operation", "node"] + ["width"] * (len(space.widths) > 1) + ["depth"] * (space.cells[0] < space.cells[1])
    kind = kinds[generator.integers(len(kinds))]
    if kind == "width":
        return dataclasses.replace(member, width=other.width)
    if kind == "depth":
        if space.share_cells:
            return dataclasses.replace(member, cells=member.cells[:1] * other.depth)
        return dataclasses.replace(member, cells=(member.cells + other.cells[member.depth :])[: other.depth])
    index = 0 if space.share_cells else int(generator.integers(member.depth))
    node = int(generator.integers(space.nodes))
    edges = list(member.cells[index][node])
    if kind == "operation":
        place = int(generator.integers(len(edges)))
        names = [name for name in space.operations if name not in space.never_derived]
        edges[place] = dataclasses.replace(edges[place], operation=names[generator.integers(len(names))])
        learned = sum(edge.operation in learned_operations(space) for edge in edges)
        if learned < min(space.learned_per_node, len(edges)):
            kind = "node"
    if kind == "node":
        edges = list(other.cells[0][node])
    cell = (*member.cells[index][:node], tuple(edges), *member.cells[index][node + 1 :])
    cells = (cell,) * member.depth if space.share_cells else (*member.cells[:index], cell, *member.cells[index + 1 :])
    return dataclasses.replace(member, cells=cells)


def _order(points: list[Objectives]) -> tuple[np.ndarray, np.ndarray]:
    """Rank and crowding (within its rank) of each point."""
    points_N2 = np.array(points)
    ranks, crowding = non_dominated_ranks(points_N2), np.zeros(len(points_N2))
    for rank in range(ranks.max() + 1):
        crowding[ranks == rank] = crowding_distances(points_N2[ranks == rank])
    return ranks, crowding


def _tournament(ranks: np.ndarray, crowding: np.ndarray, generator: np.random.Generator) -> int:
    """The better of two drawn at random: of the lower rank, in the same rank the lonelier."""
    one, two = (int(index) for index in generator.integers(len(ranks), size=2))
    return min((one, two), key=lambda index: (ranks[index], -crowding[index]))


def _survivors(members: list[Architecture], found: dict[Architecture, Objectives], count: int) -> list[Architecture]:
    """The ``count`` best by rank, then by crowding."""
    ranks, crowding = _order([found[member] for member in members])
    return [members[index] for index in np.lexsort((-crowding, ranks))[:count]]
