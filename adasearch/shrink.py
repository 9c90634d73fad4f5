"""From an Architecture to the physical student: built fresh, or cut out of a trained supernet."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from torch import Tensor

from adasearch.architecture import Architecture, Edge, Space
from adasearch.latency import LatencyModel, derivable
from adasearch.member_cost import architecture_cost, learned_operations
from adasearch.student import AdasearchConfig, AdasearchForSequenceClassification, Trunk
from adasearch.supernet import Supernet

PRICE_TOLERANCE = 0.05  # within which a random member costs as much as another
READ_OUT_ROWS = "trunk.read_out.level_logits"  # one row an exit in the supernet, a single one in the student


def build_student(architecture: Architecture, config: AdasearchConfig) -> AdasearchForSequenceClassification:
    """A student of that shape with fresh weights; ``config`` gives vocabulary, labels and embedding rank."""
    settings = {**config.to_dict(), "architecture": architecture.to_dict()}
    return AdasearchForSequenceClassification(AdasearchConfig.from_dict(settings))


@torch.no_grad()
def shrink(supernet: Supernet, architecture: Architecture) -> AdasearchForSequenceClassification:
    """The student cut out of the supernet: it computes what the supernet does on that path, to rounding.

    Widths are prefixes, so every smaller tensor is the leading block of the supernet's.
    """
    with torch.device("meta"):  # a word table of random numbers, to be overwritten, takes longer than all the rest
        student = build_student(architecture, supernet.config)
    source, own = supernet.state_dict(), {}
    for name, tensor in student.state_dict().items():
        whole = source[name]
        if name == READ_OUT_ROWS:
            whole = whole[architecture.depth - supernet.space.cells[0]][None]
        own[name] = whole[tuple(slice(0, n) for n in tensor.shape)].clone()
    student.load_state_dict(own, assign=True)
    return student


@torch.no_grad()
def inherit_embeddings(trunk: Trunk, word: Tensor, position: Tensor | None) -> None:
    """Edit in place: start from a teacher's tables, (V, R) and (positions, R), seen through their principal directions.

    The projection's rows are the leading right singular vectors of the word table: the linear map to the student's
    width that loses least of it. Being a prefix of one another, they suit every width of a search.
    """
    embeddings = trunk.embeddings
    assert embeddings.projection is not None, "a folded table cannot be started from a teacher's"
    embeddings.word.weight.copy_(word)
    if embeddings.position is not None and position is not None:
        rows = min(len(position), len(embeddings.position.weight))
        embeddings.position.weight[:rows] = position[:rows]
    _, directions = torch.linalg.eigh((word.mT @ word).double())
    size = embeddings.projection.out_features
    leading = directions.flip(1).mT[:size].to(word.dtype)
    embeddings.projection.weight[: len(leading)] = leading


def random_architecture(space: Space, generator: np.random.Generator, seed: int = 0) -> Architecture:
    """A uniformly drawn member of the space."""
    names = [name for name in space.operations if name not in space.never_derived]
    learned = learned_operations(space)
    depth = int(generator.integers(space.cells[0], space.cells[1] + 1))

    def cell() -> tuple[tuple[Edge, ...], ...]:
        nodes = []
        for node in range(space.nodes):
            kept = min(space.edges_per_node, node + 2)
            sources = np.sort(generator.choice(node + 2, kept, replace=False))
            while True:  # uniform among the nodes that the space allows
                node_edges = tuple(Edge(int(source), names[generator.integers(len(names))]) for source in sources)
                if sum(edge.operation in learned for edge in node_edges) >= min(space.learned_per_node, kept):
                    break
            nodes.append(node_edges)
        return tuple(nodes)

    cells = (cell(),) * depth if space.share_cells else tuple(cell() for _ in range(depth))
    width = int(generator.choice(space.widths))
    return Architecture(space.name, space.digest, cells, width, space.macro, seed)


def random_architecture_like(
    architecture: Architecture,
    space: Space,
    length: float,
    seed: int,
    draws: int = 2_000,
    latency: LatencyModel | None = None,
) -> Architecture:
    """The first random member, other than the given one, whose price is within ``PRICE_TOLERANCE`` of it; else the nearest.

    The price is that of ``price_gap``. The control of the honest table: what the same budget and the same training give
    without a search.
    """
    generator = np.random.default_rng((seed, 0x5EED))
    best, gap = None, float("inf")
    for _ in range(draws):
        candidate = random_architecture(space, generator, seed)
        if candidate.cells == architecture.cells and candidate.width == architecture.width:
            continue
        off = price_gap(candidate, architecture, length, latency)
        if off < gap:
            best, gap = candidate, off
        if gap <= PRICE_TOLERANCE:
            break
    assert best is not None, "the space has a single member"
    return dataclasses.replace(best, seed=seed)


def price_gap(member: Architecture, architecture: Architecture, length: float, latency: LatencyModel | None = None) -> float:
    """How far a member's price is from another's, as a share of that: the predicted latency where there is a model of it, else MACs."""
    own, target = (latency.predict(one) if latency else float(architecture_cost(one, length).macs) for one in (member, architecture))
    return abs(own - target) / max(target, 1e-9)


def fastest_member(space: Space, latency: LatencyModel, seed: int = 0) -> Architecture:
    """The member of the space that is predicted to take the least time: no other member is faster."""
    learned = learned_operations(space)

    def at(width: int) -> Architecture:
        ranked = sorted(derivable(space), key=lambda name: latency.operation_ms[name][width])
        nodes = []
        for node in range(space.nodes):
            kept = min(space.edges_per_node, node + 2)
            must = min(space.learned_per_node, kept)
            names = [name for name in ranked if name in learned][:1] * must + [ranked[0]] * (kept - must)
            nodes.append(tuple(Edge(source, name) for source, name in enumerate(names)))
        return Architecture(space.name, space.digest, (tuple(nodes),) * space.cells[0], width, space.macro, seed)

    return min(map(at, space.widths), key=latency.predict)
