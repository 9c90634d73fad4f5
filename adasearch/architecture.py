"""The plain data that crosses from search to the final student: a search space's shape and the decisions made in it.

``Space`` is what a YAML file of ``search_spaces/`` says, ``Architecture`` one member of it. Neither knows torch.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adasearch.errors import ConfigError

ARCHITECTURE_VERSION = 1


@dataclass(frozen=True)
class Macro:
    """What every member of a space has in common: the parts of the network that are not searched."""

    inputs: str = "joint"  # "joint": one sequence; "two": the sentences of a pair are cell 0's two input nodes
    embedding_size: int | None = None  # width of the folded embedding table; None = the cells' width
    position_embeddings: bool = True
    zero_cls: bool = False  # blank the first token's embedding (constant over texts)
    norm: str = "batch"  # normalisation in the operations: "batch" or "layer"
    norm_affine: bool = True
    cell_output: str = "attentive"  # "attentive": learned softmax weights over the inner nodes; "sum"; "mean"
    pooling: str = "mean"  # tokens -> vector: "mean", "max" or "attention"
    attention_head_size: int = 32  # heads are width / this: widths are its multiples
    dropout: float = 0.1
    teacher_size: int | None = None  # the teacher's hidden size, heads and feed-forward neurons, where ``inherited``
    teacher_heads: int | None = None  # operations take its layers
    teacher_neurons: int | None = None


@dataclass(frozen=True)
class Space:
    """A search space: the candidates of every gate, and the macro shape around them.

    ``operations`` are the candidates of each edge, ``widths`` those of the width axis, ``cells`` the smallest and
    largest number of stacked cells, ``nodes`` the inner nodes of a cell, ``edges_per_node`` how many incoming edges
    a derived node keeps, ``sample_edges`` whether the search already draws that many (else it sums all of them),
    ``share_cells`` whether all cells share one choice, ``never_derived`` operations that only the search may use,
    ``pair_operations`` candidates that are added when the task has text pairs, ``learned_per_node`` how many of a
    derived node's edges must have weights to learn (a cell of skips and pools is the collapse of many a search).
    """

    name: str
    operations: tuple[str, ...]
    widths: tuple[int, ...] = (128,)
    cells: tuple[int, int] = (1, 8)
    nodes: int = 3
    edges_per_node: int = 2
    sample_edges: bool = False
    share_cells: bool = True
    never_derived: tuple[str, ...] = ()
    pair_operations: tuple[str, ...] = ()
    learned_per_node: int = 0
    macro: Macro = Macro()

    def for_task(self, *, is_pair: bool) -> Space:
        """The space as one task sees it: pair operations join the candidates of pair tasks and leave the others'."""
        extra = self.pair_operations if is_pair else ()
        return dataclasses.replace(self, operations=(*self.operations, *extra), pair_operations=())

    @property
    def digest(self) -> str:
        """Fingerprint of everything in the space; an Architecture names the space it was drawn from by it."""
        data = dataclasses.asdict(self)
        # a space without inherited layers keeps the fingerprint it had before there were any
        data["macro"] = {key: value for key, value in data["macro"].items() if value is not None or not key.startswith("teacher_")}
        return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Edge:
    """One kept edge of a cell: ``operation`` applied to node ``source`` (0 and 1 are the cell's inputs)."""

    source: int
    operation: str


CellChoice = tuple[tuple[Edge, ...], ...]  # the incoming edges of each inner node


@dataclass(frozen=True)
class Architecture:
    """Every decision of a search, as data: ``cells[c][n]`` are the edges into inner node n (node number n + 2)."""

    space: str
    space_digest: str
    cells: tuple[CellChoice, ...]
    width: int
    macro: Macro
    seed: int = 0
    version: int = ARCHITECTURE_VERSION

    @property
    def depth(self) -> int:
        """K, the number of stacked cells."""
        return len(self.cells)

    @property
    def operations(self) -> list[str]:
        """The operation of every edge, in order."""
        return [edge.operation for cell in self.cells for node in cell for edge in node]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; ``cells`` become lists of nodes, each a list of [source, operation]."""
        data = dataclasses.asdict(self)
        data["cells"] = [[[[edge.source, edge.operation] for edge in node] for node in cell] for cell in self.cells]
        return data

    @classmethod
    def from_dict(cls, data: dict[str, Any], *, where: str = "architecture") -> Architecture:
        """Inverse of ``to_dict``. Raises ``ConfigError`` naming ``where`` and the offending key or value."""
        if not isinstance(data, dict):
            raise ConfigError(f"{where}: an object is expected, found {type(data).__name__}")
        known = {field.name for field in dataclasses.fields(cls)}
        unknown, missing = set(data) - known, known - set(data) - {"seed", "version"}
        if unknown or missing:
            raise ConfigError(f"{where}: unknown keys {sorted(unknown)}, missing keys {sorted(missing)}; known: {sorted(known)}")
        if data.get("version", ARCHITECTURE_VERSION) != ARCHITECTURE_VERSION:
            raise ConfigError(f"{where}: version {data['version']!r} cannot be read; known: {ARCHITECTURE_VERSION}")
        try:
            cells = tuple(tuple(tuple(Edge(int(source), str(name)) for source, name in node) for node in cell) for cell in data["cells"])
            macro = Macro(**data["macro"])
        except (TypeError, ValueError) as error:
            raise ConfigError(f"{where}: cells or macro cannot be read ({error})") from error
        if type(data["width"]) is not int or data["width"] < 1:
            raise ConfigError(f"{where}: width: {data['width']!r} is no positive whole number")
        for c, cell in enumerate(cells):
            for n, node in enumerate(cell):
                for edge in node:
                    if not 0 <= edge.source < n + 2:
                        raise ConfigError(f"{where}: cells[{c}][{n}]: source {edge.source} is not an earlier node; choices: 0..{n + 1}")
        return cls(**{**data, "cells": cells, "macro": macro})

    @classmethod
    def load(cls, path: Path) -> Architecture:
        """Read from JSON. Raises ``ConfigError`` when the file is absent, is no JSON or does not fit."""
        try:
            data = json.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, json.JSONDecodeError) as error:
            raise ConfigError(f"{path}: no architecture can be read ({error}); choices: architecture.json of a search, a student's or a run's folder") from error
        return cls.from_dict(data, where=str(path))
