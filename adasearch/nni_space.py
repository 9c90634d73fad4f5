"""A search space in NNI's words: choices with labels; and samples of them as architectures. Plain data, NNI is not needed.

A *sample* names a value, as text, for every choice that is open:

    depth                    how many cells are stacked
    width                    channels
    cell.node1.edges         the sources that a node keeps, "0_2"
    cell.node1.from2         the operation on the edge from source 2, kept or not

``cell0``, ``cell1`` and so on where cells do not share. What the space gives one value only is no choice. Sources are chosen
as whole sets: NNI's InputChoice would mix them with weights that sum to 1 where a member adds them up, and its ProxylessNAS
runs one of them. An operation on an edge that is not kept says nothing, so several samples may mean one architecture;
``Choices.sample`` gives one of them. Not expressed are operations that only a search may use (``never_derived``: they are
left out) and ``learned_per_node`` (``Choices.is_member`` tells, ``Learned`` keeps to it): NNI's one-shot strategies know no
conditions between choices.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from adasearch.architecture import Architecture, CellChoice, Edge, Space
from adasearch.member_cost import learned_operations, with_learned

Sample = Mapping[str, str]  # label of an open choice -> its value


@dataclass(frozen=True)
class Choices:
    """What is chosen in a space, by label."""

    space: Space

    @cached_property
    def every(self) -> dict[str, tuple[str, ...]]:
        """Label -> values, of every choice, those of a single value included."""
        space = self.space
        names = tuple(name for name in space.operations if name not in space.never_derived)
        found = {"depth": tuple(map(str, range(space.cells[0], space.cells[1] + 1))), "width": tuple(map(str, space.widths))}
        for cell, node in itertools.product(range(1 if space.share_cells else space.cells[1]), range(space.nodes)):
            sets = itertools.combinations(range(node + 2), min(space.edges_per_node, node + 2))
            found[self.edges(cell, node)] = tuple("_".join(map(str, sources)) for sources in sets)
            found |= {self.operation(cell, node, source): names for source in range(node + 2)}
        return found

    @cached_property
    def open(self) -> dict[str, tuple[str, ...]]:
        """Label -> values, of the choices that have more than one."""
        return {label: values for label, values in self.every.items() if len(values) > 1}

    def edges(self, cell: int, node: int) -> str:
        """Label of the sources that an inner node keeps."""
        return f"cell{'' if self.space.share_cells else cell}.node{node}.edges"

    def operation(self, cell: int, node: int, source: int) -> str:
        """Label of the operation on an edge."""
        return f"cell{'' if self.space.share_cells else cell}.node{node}.from{source}"

    def value(self, sample: Sample, label: str) -> str:
        """What a sample says of a choice; its only value where it is not open."""
        return sample[label] if label in self.open else self.every[label][0]

    def architecture(self, sample: Sample, seed: int = 0) -> Architecture:
        """The architecture that a sample means."""
        space, depth = self.space, int(self.value(sample, "depth"))
        cells = tuple(self._cell(sample, 0 if space.share_cells else index) for index in range(depth))
        return Architecture(space.name, space.digest, cells, int(self.value(sample, "width")), space.macro, seed)

    def _cell(self, sample: Sample, cell: int) -> CellChoice:
        nodes = []
        for node in range(self.space.nodes):
            sources = sources_of(self.value(sample, self.edges(cell, node)))
            nodes.append(tuple(Edge(source, self.value(sample, self.operation(cell, node, source))) for source in sources))
        return tuple(nodes)

    def sample(self, architecture: Architecture) -> dict[str, str]:
        """The sample that means a member of the space: unkept edges, and cells beyond its depth, have the first values."""
        said = {"depth": str(architecture.depth), "width": str(architecture.width)}
        for cell, nodes in enumerate(architecture.cells):
            for node, edges in enumerate(nodes):
                said[self.edges(cell, node)] = "_".join(str(edge.source) for edge in edges)
                said |= {self.operation(cell, node, edge.source): edge.operation for edge in edges}
        return {label: said.get(label, values[0]) for label, values in self.open.items()}

    def is_member(self, sample: Sample) -> bool:
        """Whether every node has as many operations with weights as the space asks (``learned_per_node``)."""
        learned, least = learned_operations(self.space), self.space.learned_per_node
        nodes = (node for cell in self.architecture(sample).cells for node in cell)
        return all(sum(edge.operation in learned for edge in node) >= min(least, len(node)) for node in nodes)


def sources_of(value: str) -> tuple[int, ...]:
    """The sources that a value of an ``edges`` choice names."""
    return tuple(map(int, value.split("_")))


@dataclass(frozen=True)
class Learned:
    """What a strategy has learned: the probability of every value, by label of the open choices. Choices are independent."""

    choices: Choices
    probabilities: Mapping[str, np.ndarray]

    def decide(self, seed: int = 0) -> Architecture:
        """The likeliest value of every choice, as NNI exports it, with as many learning operations as the space asks."""
        return self._repaired({label: values[int(self.probabilities[label].argmax())] for label, values in self.choices.open.items()}, seed)

    def sample(self, generator: np.random.Generator, seed: int = 0) -> Architecture:
        """A drawn member, likewise."""
        drawn = {
            label: values[generator.choice(len(values), p=self.probabilities[label] / self.probabilities[label].sum())]
            for label, values in self.choices.open.items()
        }
        return self._repaired(drawn, seed)

    def _repaired(self, sample: dict[str, str], seed: int) -> Architecture:
        space = self.choices.space
        learned = [name for name in space.operations if name in learned_operations(space) and name not in space.never_derived]
        for labels in self._kept(sample):
            picked = {label: self.choices.value(sample, label) for label in labels}
            sample |= with_learned(picked, learned, space.learned_per_node, self._p)
        return self.choices.architecture(sample, seed)

    def _kept(self, sample: Sample) -> Iterator[list[str]]:
        """The labels of the kept edges of every node."""
        choices, space = self.choices, self.choices.space
        for cell, node in itertools.product(range(1 if space.share_cells else space.cells[1]), range(space.nodes)):
            sources = sources_of(choices.value(sample, choices.edges(cell, node)))
            yield [choices.operation(cell, node, source) for source in sources]

    def _p(self, label: str, value: str) -> float:
        values = self.choices.every[label]
        return float(self.probabilities[label][values.index(value)]) if label in self.probabilities else 1.0
