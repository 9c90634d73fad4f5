"""Exact match and F1 of answers, as the evaluation script of SQuAD v1.1 defines them. Shares, where 1 is perfect.

Rajpurkar et al. 2016, section 6.1. Both look at normalised texts, and a question's score is the best over its gold answers.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence

F1, EXACT = METRICS_OF_QUESTIONS = ("f1", "exact_match")  # the first counts: CoFi, EarlyBERT and Prune OFA compare by it
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)  # ASCII's 32 marks; a dash or quote beyond it stays, as published


def normalize_answer(text: str) -> str:
    """Lower case without punctuation, articles and extra white space, removed in this order.

    Punctuation is deleted, not replaced: "well-known" becomes one word.
    """
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(prediction: str, gold: str) -> float:
    """1 when the normalised texts are the same, else 0."""
    return float(normalize_answer(prediction) == normalize_answer(gold))


def answer_f1(prediction: str, gold: str) -> float:
    """Harmonic mean of precision and recall over words, as often as each stands in both; 0 where none is shared.

    So two answers that normalise to nothing match exactly and have an F1 of 0: v1.1 has no empty answers.
    """
    predicted, true = normalize_answer(prediction).split(), normalize_answer(gold).split()
    shared = sum((Counter(predicted) & Counter(true)).values())
    if not shared:
        return 0.0
    precision, recall = shared / len(predicted), shared / len(true)
    return 2 * precision * recall / (precision + recall)


def squad_points(predictions: Sequence[str], golds: Sequence[Sequence[str]]) -> dict[str, list[float]]:
    """F1 and exact match of every answer, against the gold one that suits it best."""
    assert len(predictions) == len(golds) > 0 and all(golds), "an answer for every question, and a gold one at least"

    def points(score: Callable[[str, str], float]) -> list[float]:
        return [max(score(text, gold) for gold in answers) for text, answers in zip(predictions, golds)]

    return {F1: points(answer_f1), EXACT: points(exact_match)}


def squad_scores(predictions: Sequence[str], golds: Sequence[Sequence[str]]) -> dict[str, float]:
    """Mean F1 and exact match over questions."""
    return {name: sum(points) / len(points) for name, points in squad_points(predictions, golds).items()}
