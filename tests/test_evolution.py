"""Laws of the evolution: fronts against brute force, covered area against counting, members that the space has."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from tiny import tiny_space

from adasearch.architecture import Architecture
from adasearch.evolution import cross, evolve, mutate
from adasearch.member_cost import architecture_cost, learned_operations
from adasearch.pareto import crowding_distances, dominates, hypervolume, knee, non_dominated_ranks
from adasearch.progress import Progress
from adasearch.shrink import random_architecture

OPERATIONS = ("conv3", "sep_conv3", "max_pool3", "skip")
WORTH = {"conv3": 3.0, "sep_conv3": 2.5, "max_pool3": 1.5, "skip": 1.0}


def points(count: int, objectives: int = 2, seed: int = 0) -> np.ndarray:
    """Random points on a coarse grid, so that there are ties and equals."""
    return np.random.default_rng(seed).integers(0, 8, (count, objectives)).astype(float)


@pytest.mark.parametrize("objectives", [1, 2, 3])
def test_ranks_are_those_of_peeling_by_hand(objectives: int) -> None:
    found = points(40, objectives)
    ranks, left, rank = non_dominated_ranks(found), set(range(40)), 0
    while left:
        beaten = {
            j for i, j in itertools.permutations(left, 2)
            if all(found[i] <= found[j]) and any(found[i] < found[j])
        }  # fmt: skip
        assert {int(i) for i in np.flatnonzero(ranks == rank)} == left - beaten
        left, rank = beaten, rank + 1
    assert not dominates(found).diagonal().any()


def test_crowding_is_the_gap_between_neighbours() -> None:
    front = np.array([[0.0, 10.0], [1.0, 6.0], [4.0, 5.0], [10.0, 0.0]])
    distances = crowding_distances(front)
    assert np.isinf(distances[[0, 3]]).all()
    assert distances[1:3] == pytest.approx([4 / 10 + 5 / 10, 9 / 10 + 6 / 10])
    order = np.array([2, 0, 3, 1])
    assert (crowding_distances(front[order]) == distances[order]).all()
    assert np.isinf(crowding_distances(np.array([[1.0, 1.0], [1.0, 1.0]]))).all()


def test_the_hypervolume_is_the_count_of_dominated_cells() -> None:
    for seed in range(5):
        found, reference = points(12, seed=seed), (7.0, 6.0)
        cells = [(x + 0.5, y + 0.5) for x in range(7) for y in range(6)]
        counted = sum(any(p[0] < x and p[1] < y for p in found) for x, y in cells)
        assert hypervolume(found, reference) == pytest.approx(counted)
    assert hypervolume(np.empty((0, 2)), (1.0, 1.0)) == 0


def test_the_knee_is_where_the_front_bends() -> None:
    assert knee(np.array([[0.0, 10.0], [1.0, 2.0], [9.0, 1.0], [10.0, 0.0]])) == 1
    assert knee(np.array([[0.0, 2.0], [1.0, 1.0], [2.0, 0.0]])) == 0  # a straight line: the best in the first
    assert knee(np.array([[3.0, 1.0], [1.0, 2.0]])) == 1


def weigh(member: Architecture) -> tuple[float, float]:
    """A known problem: each operation is worth something, twice the same less, and costs what it costs."""
    worth = sum(WORTH[name] for name in set(member.operations)) * (1 + 0.1 * member.depth) + 0.01 * member.width
    return -worth, float(architecture_cost(member, 6.0).macs)


def every_member(space) -> list[Architecture]:
    """All members of a space, found by drawing until nothing new comes."""
    generator, found = np.random.default_rng(1), {}
    for _ in range(6_000):
        found[random_architecture(space, generator)] = None
    return list(found)


def test_evolution_finds_the_front_of_a_known_space_and_never_loses_ground() -> None:
    space = tiny_space(operations=OPERATIONS, nodes=1, cells=(1, 2), learned_per_node=1)
    members = every_member(space)
    values = np.array([weigh(member) for member in members])
    best = {tuple(value) for value in values[non_dominated_ranks(values) == 0].tolist()}
    evolution = evolve(space, weigh, population=8, generations=4, seed=3, progress=Progress())
    assert len(evolution.found) == 40 < len(members), "it has not simply weighed all"
    assert {evolution.found[member] for member in evolution.front()} == best
    volumes = evolution.hypervolumes
    assert volumes == sorted(volumes)
    assert volumes[-1] == pytest.approx(hypervolume(values, evolution.reference))
    assert all(evolution.found[member] == weigh(member) for member in evolution.found)


def test_evolution_is_better_than_as_many_random_members() -> None:
    space = tiny_space(operations=OPERATIONS, nodes=3, cells=(1, 3), learned_per_node=1)
    gains = []
    for seed in range(3):
        evolution = evolve(space, weigh, population=16, generations=8, seed=seed, progress=Progress())
        chance = evolve(space, weigh, population=len(evolution.found), generations=0, seed=seed, progress=Progress())
        assert len(evolution.found) == len(chance.found) == 16 * 9
        values = np.array(list(chance.found.values()))
        gains.append(evolution.hypervolumes[-1] / hypervolume(values, evolution.reference))
        assert evolution.hypervolumes[-1] > evolution.hypervolumes[0] and len(evolution.hypervolumes) == 9
    assert np.mean(gains) > 1.0
    again = evolve(space, weigh, population=16, generations=8, seed=2, progress=Progress())
    assert again.found == evolution.found


@pytest.mark.parametrize("share_cells", [True, False])
def test_children_are_members_of_the_space(share_cells: bool) -> None:
    space = tiny_space(operations=(*OPERATIONS, "none"), never_derived=("none",), nodes=3, share_cells=share_cells, learned_per_node=1)
    generator, learned = np.random.default_rng(0), learned_operations(space)
    seen: dict[str, set[int]] = {"depth": set(), "width": set()}
    for _ in range(300):
        one, two = random_architecture(space, generator), random_architecture(space, generator)
        child = mutate(cross(one, two, space, generator), space, generator)
        assert space.cells[0] <= child.depth <= space.cells[1] and child.width in space.widths
        assert not share_cells or len(set(child.cells)) == 1
        for node, edges in enumerate(node for cell in child.cells for node in cell):
            sources = [edge.source for edge in edges]
            assert len(sources) == 2 and sources == sorted(set(sources)) and max(sources) < node % space.nodes + 2
            assert any(edge.operation in learned for edge in edges) and all(edge.operation != "none" for edge in edges)
        seen["depth"].add(child.depth)
        seen["width"].add(child.width)
    assert len(seen["depth"]) == 3 and len(seen["width"]) == 2


def test_a_child_differs_from_its_parent_in_one_place() -> None:
    space = tiny_space(operations=OPERATIONS, nodes=3)
    generator, changed = np.random.default_rng(0), 0
    for _ in range(100):
        one = random_architecture(space, generator)
        child = mutate(one, space, generator)
        places = (child.width != one.width) + (child.depth != one.depth)
        places += sum(mine != theirs for mine, theirs in zip(child.cells[0], one.cells[0]))
        assert places <= 1
        changed += places
    assert changed > 50
