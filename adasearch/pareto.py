"""Points of which less is better in every column: who is dominated, how crowded they are, what they cover, where they bend.

Dimensions: N points, M objectives.
"""

from __future__ import annotations

import numpy as np


def dominates(points_NM: np.ndarray) -> np.ndarray:
    """Whether point i is no worse than point j in all objectives and better in one, (N, N) bool."""
    no_worse = (points_NM[:, None] <= points_NM[None]).all(-1)
    return no_worse & (points_NM[:, None] < points_NM[None]).any(-1)


def non_dominated_ranks(points_NM: np.ndarray) -> np.ndarray:
    """The front that each point lies on, (N,), 0 the best. Deb et al. 2002 (NSGA-II), section III.A."""
    over_NN = dominates(np.asarray(points_NM, dtype=float))
    ranks = np.full(len(over_NN), -1)
    left, rank = np.arange(len(over_NN)), 0
    while len(left):
        is_best = ~over_NN[np.ix_(left, left)].any(0)
        ranks[left[is_best]] = rank
        left, rank = left[~is_best], rank + 1
    return ranks


def crowding_distances(points_NM: np.ndarray) -> np.ndarray:
    """How far each point's neighbours are apart, (N,), as the sum over objectives of shares of their range; the ends: infinite.

    Of points of one front. Deb et al. 2002, section III.B.
    """
    points_NM = np.asarray(points_NM, dtype=float)
    distance_N = np.zeros(len(points_NM))
    for values_N in points_NM.T:
        order = np.argsort(values_N, kind="stable")
        distance_N[order[[0, -1]]] = np.inf
        spread = values_N[order[-1]] - values_N[order[0]]
        if spread > 0:
            distance_N[order[1:-1]] += (values_N[order[2:]] - values_N[order[:-2]]) / spread
    return distance_N


def hypervolume(points_N2: np.ndarray, reference: tuple[float, float]) -> float:
    """Area that two-objective points dominate up to ``reference``; what lies beyond it counts nothing."""
    points_N2 = np.asarray(points_N2, dtype=float).reshape(-1, 2)
    inside = points_N2[(points_N2 < np.asarray(reference)).all(1)]
    area, lowest = 0.0, reference[1]
    for x, y in inside[np.lexsort((inside[:, 1], inside[:, 0]))]:
        if y < lowest:
            area += (reference[0] - x) * (lowest - y)
            lowest = y
    return area


def knee(points_N2: np.ndarray) -> int:
    """Index of the point of a two-objective front where it bends most: furthest below the line between its ends.

    Both objectives are scaled to their range on the front (Das 1999, normal-boundary intersection). Of fewer than three
    points, or of a front that bends nowhere, the best in the first objective.
    """
    points_N2 = np.asarray(points_N2, dtype=float)
    low, spread = points_N2.min(0), np.ptp(points_N2, axis=0)
    if len(points_N2) < 3 or (spread == 0).any():
        return int(np.lexsort((points_N2[:, 1], points_N2[:, 0]))[0])
    below_N = 1 - ((points_N2 - low) / spread).sum(1)  # the ends of a front are (0, 1) and (1, 0)
    best = int(below_N.argmax())
    return best if below_N[best] > 1e-12 else int(points_N2[:, 0].argmin())
