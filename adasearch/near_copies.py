"""Texts that say nearly the same as others, as augmentation makes them: what was learned from a copy is half known already."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
from scipy.sparse import csr_matrix

from adasearch.tokens import TokenStore

FRAGMENT = 3  # different word pieces of a text that is no chance where all stand in one other: it was cut out of it
# share of the different word pieces of two texts that they have in common, from which one is a copy of the other: nineteen of twenty
# copies of twenty pieces have it, of which each was replaced with a chance of 0.3 (0.5 would be three of five)
SIMILAR = 0.35
CHUNK = 8_192  # texts compared at once


def near_copies(of: TokenStore, among: TokenStore, most: float, frame: Collection[int] = ()) -> np.ndarray:
    """Rows of ``among`` that are near copies of one of ``of`` (or these texts themselves), ascending.

    Where every text is like every other something must be left to learn from: not more than the share ``most``, the most similar.
    """
    alike = similarity_to(among, of, frame)
    nearest = np.argsort(-alike, kind="stable")[: round(most * len(among))]
    return np.sort(nearest[alike[nearest] >= SIMILAR])


def similarity_to(store: TokenStore, others: TokenStore, frame: Collection[int] = ()) -> np.ndarray:
    """Of every text the greatest Jaccard similarity of its set of word pieces to that of one of ``others``, (N,), 0 to 1.

    It is 1 as well of a text of ``FRAGMENT`` or more pieces that all stand in one of the others, however long that is. ``frame`` are ids
    that say nothing, such as those of special tokens. Texts without any other piece are like none.
    """
    found = np.zeros(len(store))
    if not len(store) or not len(others):
        return found
    size = 1 + int(max(store.ids.max(initial=0), others.ids.max(initial=0)))
    others_MV = _pieces(others, np.arange(len(others)), size, frame)
    sizes_M = np.asarray(others_MV.sum(1)).ravel()
    for start in range(0, len(store), CHUNK):
        rows = np.arange(start, min(start + CHUNK, len(store)))
        own_BV = _pieces(store, rows, size, frame)
        shared_BM = (own_BV @ others_MV.T).toarray()
        sizes_B1 = np.asarray(own_BV.sum(1))
        alike_BM = shared_BM / np.maximum(sizes_B1 + sizes_M - shared_BM, 1)
        alike_BM[(sizes_B1 >= FRAGMENT) & (shared_BM == sizes_B1)] = 1.0
        found[rows] = alike_BM.max(1)
    return found


def _pieces(store: TokenStore, rows: np.ndarray, size: int, frame: Collection[int]) -> csr_matrix:
    """Which pieces each of the texts has, (B, V) of 0 and 1."""
    texts = store.select(rows)
    owners = np.repeat(np.arange(len(rows)), texts.lengths)
    said = ~np.isin(texts.ids, list(frame))
    pairs = np.unique(np.stack([owners[said], texts.ids[said]]), axis=1)
    return csr_matrix((np.ones(pairs.shape[1], np.float32), (pairs[0], pairs[1])), shape=(len(rows), size))
