"""Tickets: which elements of an encoder's axes stay, by the rank of a score; how much two tickets differ; when they settle.

A ticket is a list of boolean masks, one a layer, True where an element stays. Nothing here knows heads from neurons.

Dimensions: A elements of a layer, E elements of all layers, T tickets.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from adasearch.earlybert_config import SCOPES
from adasearch.errors import ConfigError

FEWEST = 1  # elements that stay in a layer whatever its scores: the published global rule can empty one


def draw_ticket(scores: Sequence[Tensor], ratio: float, scope: str, *, is_absolute: bool = False, seed: int = 0) -> list[Tensor]:
    """Masks that leave out the share ``ratio`` with the lowest scores, in every layer alike or of all layers together.

    round(ratio * count) elements go, less where a layer's last one would. (EarlyBERT keeps what is above a quantile: with
    tied scores, as before the first step, that is nothing.) Equal scores are ranked at random by ``seed``, so that no layer
    and no low number is preferred, the same way in every call. Raises ``ConfigError`` for an unknown scope or a ratio
    outside [0, 1).
    """
    if scope not in SCOPES:
        raise ConfigError(f"scope: {scope!r} is not known; choices: {', '.join(SCOPES)}")
    if not 0 <= ratio < 1:
        raise ConfigError(f"ratio: {ratio!r} is out of range; choices: 0 to less than 1")
    values = [score.detach().abs() if is_absolute else score.detach() for score in scores]
    parts = [values] if scope == "global" else [[value] for value in values]
    generator = torch.Generator().manual_seed(seed)
    return [mask for part in parts for mask in _keep_best(part, ratio, generator)]


def _keep_best(values: list[Tensor], ratio: float, generator: torch.Generator) -> list[Tensor]:
    """One ranking over several layers."""
    sizes = [len(value) for value in values]
    if not sum(sizes):
        return [torch.zeros(0, dtype=torch.bool) for _ in values]
    flat_E = torch.cat(values).float().cpu()
    shuffled_E = torch.randperm(len(flat_E), generator=generator)
    order_E = shuffled_E[flat_E[shuffled_E].argsort(stable=True)]  # lowest first, ties as they were shuffled
    rank_E = torch.empty_like(order_E)
    rank_E[order_E] = torch.arange(len(order_E))
    is_safe_E = torch.zeros(len(flat_E), dtype=torch.bool)
    for ranks, safe in zip(rank_E.split(sizes), is_safe_E.split(sizes)):
        safe[ranks.topk(min(FEWEST, len(ranks))).indices] = True
    droppable = order_E[~is_safe_E[order_E]]
    kept_E = torch.ones(len(flat_E), dtype=torch.bool)
    kept_E[droppable[: round(ratio * len(flat_E))]] = False
    return list(kept_E.split(sizes))


def random_ticket(sizes: Sequence[int], ratio: float, scope: str, seed: int) -> list[Tensor]:
    """A ticket of random scores: the same ratio, scope and guard, and nothing learned."""
    generator = torch.Generator().manual_seed(seed)
    return draw_ticket([torch.rand(size, generator=generator) for size in sizes], ratio, scope, seed=seed)


def mask_distances(tickets_TE: Tensor) -> Tensor:
    """Share of the elements in which tickets differ, (T, T): Hamming distance over length. You et al. 2020, section 3.2."""
    kept_TE = tickets_TE.float()
    both_TT = kept_TE @ kept_TE.T
    counts_T = kept_TE.sum(1)
    return (counts_T[:, None] + counts_T[None] - 2 * both_TT) / max(1, kept_TE.shape[1])


def is_settled(tickets_TE: Tensor, window: int, threshold: float) -> bool:
    """Whether the last ``window`` tickets are there and the newest differs from each of the others by ``threshold`` at most.

    The early-bird rule as released: a first-in-first-out list of five, 0.1. You et al. 2020, algorithm 1.
    """
    if len(tickets_TE) < window:
        return False
    return bool(mask_distances(tickets_TE[-window:])[-1].max() <= threshold)
