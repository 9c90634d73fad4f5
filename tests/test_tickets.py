"""Tickets: how many elements go and which, ties, the guard, distances and when they settle."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from adasearch.errors import ConfigError
from adasearch.tickets import draw_ticket, is_settled, mask_distances, random_ticket


def distinct(*sizes: int) -> list[torch.Tensor]:
    """Scores without ties, of either sign."""
    flat = torch.randperm(sum(sizes)).float() - sum(sizes) / 2
    return list(flat.split(sizes))


@pytest.mark.parametrize("ratio", [0.0, 0.25, 1 / 3, 0.4, 0.9])
def test_the_lowest_share_goes_in_each_layer_or_of_all(ratio: float) -> None:
    scores = distinct(12, 12, 12)
    for score, mask in zip(scores, draw_ticket(scores, ratio, "layerwise")):
        assert int((~mask).sum()) == min(round(12 * ratio), 11)
        assert mask.all() or score[mask].min() > score[~mask].max()
    kept = torch.cat(draw_ticket(scores, ratio, "global"))
    assert int((~kept).sum()) == round(36 * ratio)


def test_the_published_quantile_rule_keeps_the_same_heads() -> None:
    scores = distinct(12, 12)  # "keep what is above the quantile of a third, along the layer": EarlyBERT's released rule
    for score, mask in zip(scores, draw_ticket(scores, 1 / 3, "layerwise")):
        assert torch.equal(mask, score > np.quantile(score.numpy(), 1 / 3))


@pytest.mark.parametrize("ratio", [0.3, 0.5, 0.7])
def test_globally_it_is_the_best_choice_that_leaves_no_layer_empty(ratio: float) -> None:
    for _ in range(20):
        scores = distinct(2, 3, 2)
        kept = draw_ticket(scores, ratio, "global")
        flat, count = torch.cat(scores), max(3, 7 - round(7 * ratio))
        best = max(
            (set(chosen) for chosen in itertools.combinations(range(7), count)
             if {0, 1} & set(chosen) and {2, 3, 4} & set(chosen) and {5, 6} & set(chosen)),
            key=lambda chosen: sum(float(flat[index]) for index in chosen),
        )  # fmt: skip
        assert set(torch.cat(kept).nonzero().flatten().tolist()) == best


@pytest.mark.parametrize("scope", ["layerwise", "global"])
def test_one_element_stays_in_every_layer(scope: str) -> None:
    scores = [torch.full((4,), -5.0), torch.arange(4.0), torch.full((1,), -9.0), torch.zeros(0)]
    assert [int(mask.sum()) >= 1 for mask in draw_ticket(scores, 0.95, scope)] == [True, True, True, False]


def test_equal_scores_lose_as_many_as_any_others_and_prefer_no_layer() -> None:
    scores = [torch.ones(300), torch.ones(300)]
    kept = draw_ticket(scores, 0.5, "global", seed=3)
    assert sum(int(mask.sum()) for mask in kept) == 300
    assert all(110 < int(mask.sum()) < 190 for mask in kept), "150 expected, with a standard deviation of 6"
    assert all(torch.equal(a, b) for a, b in zip(kept, draw_ticket(scores, 0.5, "global", seed=3)))
    assert not torch.equal(torch.cat(kept), torch.cat(draw_ticket(scores, 0.5, "global", seed=4)))


def test_signed_scores_drop_the_negative_and_absolute_ones_the_small() -> None:
    scores = [torch.tensor([-3.0, 0.1, 2.0, 1.0])]
    assert draw_ticket(scores, 0.25, "layerwise")[0].tolist() == [False, True, True, True]
    assert draw_ticket(scores, 0.25, "layerwise", is_absolute=True)[0].tolist() == [True, False, True, True]


def test_a_random_ticket_has_the_same_counts_and_another_choice() -> None:
    drawn, other = (random_ticket([12, 12], 1 / 3, "layerwise", seed) for seed in (1, 2))
    assert [int(mask.sum()) for mask in drawn] == [8, 8]
    assert not torch.equal(torch.cat(drawn), torch.cat(other))
    assert torch.equal(torch.cat(drawn), torch.cat(random_ticket([12, 12], 1 / 3, "layerwise", 1)))


@pytest.mark.parametrize(("ratio", "scope"), [(1.0, "global"), (-0.1, "global"), (0.5, "rows")])
def test_what_cannot_be_drawn_is_refused(ratio: float, scope: str) -> None:
    with pytest.raises(ConfigError, match="choices"):
        draw_ticket([torch.ones(3)], ratio, scope)


def test_distances_are_shares_of_differing_elements() -> None:
    tickets_TE = torch.rand(6, 41) < 0.5
    expected = [[sum(x != y for x, y in zip(a, b)) / 41 for b in tickets_TE.tolist()] for a in tickets_TE.tolist()]
    assert mask_distances(tickets_TE).tolist() == [pytest.approx(row) for row in expected]


def test_the_newest_must_be_near_each_of_the_window() -> None:
    base = torch.zeros(10, dtype=torch.bool)
    far, near = base.clone(), base.clone()
    far[:2], near[0] = True, True  # 0.2 and 0.1 away
    assert not is_settled(torch.stack([base] * 4), 5, 0.1), "the window is not full"
    assert is_settled(torch.stack([near, base, base, near, base]), 5, 0.1), "0.1 is near enough"
    assert not is_settled(torch.stack([far, base, base, base, base]), 5, 0.1)
    assert is_settled(torch.stack([far, base, base, base, base, base]), 5, 0.1), "it has left the window"
    assert not is_settled(torch.stack([base, base, base, base, far]), 5, 0.1)
