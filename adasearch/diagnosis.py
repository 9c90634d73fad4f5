"""Is a search worth its time? The measures, as pure functions; ``diagnosis_run`` makes what they are taken of.

- *Discretisation gap*: what the supernet's own path scores, the member cut out of it, and that member after retraining.
- *Agreement*: how alike the cells of several seeds are, against members drawn by chance.
- *Rank correlation*: whether members that are good with the supernet's weights are good after training.
- *Controls*: searched students against random ones, a fixed stack and no cells at all, at equal cost and training.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from scipy import stats

from adasearch.architecture import Architecture, Edge, Space
from adasearch.errors import ConfigError
from adasearch.shrink import random_architecture

RESAMPLES = 2_000
CHANCE_PAIRS = 1_000
INTERVAL = 0.95
Cell = tuple[tuple[Edge, ...], ...]


def agreement(networks: Sequence[Sequence[Cell]]) -> dict[str, float] | None:
    """How alike the cells of networks are, as means over all pairs; None of fewer than two.

    Of networks of different depths the cells that both have are compared. ``edges``: share of their edges (from a source into a node)
    that the other has too; ``operations``: of the edges that both have, the share with the same operation (None where no pair shares an
    edge); ``both``: share of the edges that the other has with the same operation.
    """
    edges, operations, both = [], [], []
    for pair in itertools.combinations(networks, 2):
        first, second = (
            {
                (index, node, edge.source): edge.operation
                for index, cell in enumerate(cells[: min(map(len, pair))]) for node, kept in enumerate(cell) for edge in kept
            }
            for cells in pair
        )  # fmt: skip
        shared = first.keys() & second.keys()
        alike = sum(first[place] == second[place] for place in shared)
        count = max(len(first), len(second))
        edges.append(len(shared) / count)
        both.append(alike / count)
        if shared:
            operations.append(alike / len(shared))
    if not edges:
        return None
    return {"edges": float(np.mean(edges)), "operations": float(np.mean(operations)) if operations else None, "both": float(np.mean(both))}


def chance_agreement(space: Space, seed: int = 0) -> dict[str, float]:
    """The agreement of two members drawn at random from the space, as the mean over ``CHANCE_PAIRS`` pairs."""
    generator = np.random.default_rng((seed, 0xA6EE))
    pairs = [agreement([random_architecture(space, generator).cells for _ in range(2)]) for _ in range(CHANCE_PAIRS)]
    known = {name: [pair[name] for pair in pairs if pair[name] is not None] for name in pairs[0]}
    return {name: float(np.mean(values)) if values else None for name, values in known.items()}


def rank_correlation(before: Sequence[float], after: Sequence[float], seed: int = 0) -> dict[str, Any]:
    """Spearman's rho and Kendall's tau (b), each with a 95% percentile interval over resampled members.

    Raises ``ConfigError`` for fewer than three members. A resample in which one side does not vary is left out.
    """
    before_N, after_N = np.asarray(before, dtype=float), np.asarray(after, dtype=float)
    if len(before_N) != len(after_N) or len(before_N) < 3:
        raise ConfigError(f"rank correlation: {len(before_N)} and {len(after_N)} scores; choices: as many of each, 3 or more")
    generator = np.random.default_rng((seed, 0x4A2C))
    draws = [generator.integers(len(before_N), size=len(before_N)) for _ in range(RESAMPLES)]
    kinds: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {"spearman": _spearman, "kendall": _kendall}
    found: dict[str, Any] = {"members": len(before_N)}
    for name, measure in kinds.items():
        resampled = [measure(before_N[draw], after_N[draw]) for draw in draws]
        kept = [value for value in resampled if np.isfinite(value)]
        value = measure(before_N, after_N)
        low, high = np.quantile(kept, [(1 - INTERVAL) / 2, (1 + INTERVAL) / 2]) if kept else (np.nan, np.nan)
        found[name] = {"value": _finite(value), "low": _finite(low), "high": _finite(high)}
    return found


def _spearman(before_N: np.ndarray, after_N: np.ndarray) -> float:
    if np.ptp(before_N) == 0 or np.ptp(after_N) == 0:
        return float("nan")
    return float(np.corrcoef(stats.rankdata(before_N), stats.rankdata(after_N))[0, 1])


def _kendall(before_N: np.ndarray, after_N: np.ndarray) -> float:
    if np.ptp(before_N) == 0 or np.ptp(after_N) == 0:
        return float("nan")
    one_NN, two_NN = (np.sign(values[:, None] - values) for values in (before_N, after_N))
    return float((one_NN * two_NN).sum() / np.sqrt((one_NN**2).sum() * (two_NN**2).sum()))


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def discretisation_gap(path: float, derived: float, retrained: float) -> dict[str, float]:
    """The three scores, what discretising lost and what retraining gave."""
    return {
        "supernet_path": path, "derived": derived, "retrained": retrained,
        "lost_by_discretising": path - derived, "gained_by_retraining": retrained - derived,
    }  # fmt: skip


def loss_shares(history: Sequence[dict[str, Any]], last: float = 0.2) -> dict[str, float]:
    """Share of each term in the sum of the terms' sizes, over the last part of a search's records."""
    records = history[-max(1, round(last * len(history))) :]
    names = list(dict.fromkeys(name for record in records for name in record["terms"]))
    sizes = {name: float(np.mean([abs(record["terms"].get(name, 0.0)) for record in records])) for name in names}
    whole = sum(sizes.values())
    return {name: size / whole if whole else 0.0 for name, size in sizes.items()}


def last_entropy(history: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Entropy of the gates at the end of a search, as shares of their maximum."""
    return dict(history[-1].get("entropy", {})) if history else {}


def against_controls(groups: dict[str, Sequence[float]]) -> dict[str, Any]:
    """Mean and standard deviation of each group's scores, and what "searched" is ahead of each other group.

    ``ahead_in_sds`` counts the difference of the means in standard deviations of the control's scores; None where the
    control has fewer than two scores or does not vary. ``p_value``: Welch's t-test, two-sided, from two scores each on.
    """
    found: dict[str, Any] = {}
    searched = np.asarray(groups["searched"], dtype=float)
    for name, scores in groups.items():
        values = np.asarray(scores, dtype=float)
        if not len(values):
            continue
        spread = float(values.std(ddof=1)) if len(values) > 1 else None
        found[name] = {"scores": values.tolist(), "mean": float(values.mean()), "sd": spread}
        if name != "searched" and len(searched):
            ahead = float(searched.mean() - values.mean())
            in_sds = ahead / spread if spread else None
            found[name] |= {"searched_ahead": ahead, "ahead_in_sds": in_sds, "p_value": welch(searched, values)}
    return found


def welch(one: np.ndarray, two: np.ndarray) -> float | None:
    """p of equal means, two-sided, by Welch's t-test; None with fewer than two scores a side or where nothing varies."""
    if min(len(one), len(two)) < 2:
        return None
    errors = np.array([one.var(ddof=1) / len(one), two.var(ddof=1) / len(two)])
    if errors.sum() < 1e-24:
        return None
    freedom = errors.sum() ** 2 / (errors[0] ** 2 / (len(one) - 1) + errors[1] ** 2 / (len(two) - 1))
    return float(2 * stats.t.sf(abs(one.mean() - two.mean()) / np.sqrt(errors.sum()), freedom))


def conv3_stack_like(
    architecture: Architecture, space: Space, price: Callable[[Architecture], float], widths: Sequence[int] | None = None
) -> Architecture:
    """The stack of nothing but ``conv3`` whose price is nearest to the architecture's.

    Every node reads the nodes right before it, as many as the space keeps. ``widths`` are those allowed, the space's when
    absent; depths those of the space. The control of someone who does not search.
    """
    cell = tuple(
        tuple(Edge(source, "conv3") for source in range(max(0, node + 2 - space.edges_per_node), node + 2)) for node in range(space.nodes)
    )
    candidates = [
        Architecture(architecture.space, architecture.space_digest, (cell,) * depth, width, architecture.macro, architecture.seed)
        for depth in range(space.cells[0], space.cells[1] + 1)
        for width in (widths or space.widths)
    ]
    target = price(architecture)
    return min(candidates, key=lambda member: abs(price(member) - target))
