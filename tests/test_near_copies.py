"""Jaccard similarity, and being cut out of another text, against sets counted one by one."""

from __future__ import annotations

import numpy as np
import pytest

import adasearch.near_copies as subject
from adasearch.near_copies import near_copies, similarity_to
from adasearch.tokens import TokenStore


def by_sets(store: TokenStore, others: TokenStore, frame: set[int]) -> list[float]:
    found = []
    for n in range(len(store)):
        own, best = set(store[n].tolist()) - frame, 0.0
        for m in range(len(others)):
            other = set(others[m].tolist()) - frame
            is_cut_out = len(own) >= 3 and own <= other
            best = max(best, float(is_cut_out), len(own & other) / len(own | other) if own | other else 0.0)
        found.append(best)
    return found


def test_similarity_is_that_of_sets_of_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subject, "CHUNK", 7)
    generator = np.random.default_rng(0)
    store, others = (TokenStore.from_lists([generator.integers(0, 12, size=generator.integers(0, 9)) for _ in range(n)]) for n in (30, 5))
    for frame in (set(), {0, 3}):
        assert similarity_to(store, others, frame) == pytest.approx(by_sets(store, others, frame))
    assert similarity_to(store, store)[[len(store[n]) > 0 for n in range(30)]] == pytest.approx(1)


def test_nothing_is_like_nothing() -> None:
    nothing, some = TokenStore.from_lists([]), TokenStore.from_lists([[1, 2], [], [2, 2]])
    assert similarity_to(nothing, some).tolist() == [] and similarity_to(some, nothing).tolist() == [0, 0, 0]
    assert similarity_to(some, TokenStore.from_lists([[], [2, 9]]), frame={9}).tolist() == [0.5, 0, 1]


def test_a_fragment_is_a_copy_of_the_text_it_was_cut_out_of() -> None:
    long, fragment, short = list(range(10, 22)), [13, 14, 15], [13, 14]
    among = TokenStore.from_lists([fragment, short, [13, 14, 40]])
    assert near_copies(TokenStore.from_lists([long]), among, most=1.0).tolist() == [0]
