"""A reader's logits as answers: the likeliest spans of each window, the best over a question's windows, cut from its context.

Dimensions: N questions, T tokens of all windows, L tokens of a window.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from adasearch.errors import ModelError
from adasearch.question_answering import PIECES, PLACE, QUESTION, QuestionExamples
from adasearch.question_config import QuestionConfig
from adasearch.squad_metrics import squad_scores


@dataclass(frozen=True)
class Answer:
    """A text, where it stands in the context (characters), the sum of its two logits, and its probability among the
    question's ``n_best`` spans. No text when the settings let no span pass.
    """

    text: str
    start: int
    end: int
    score: float
    probability: float


NOTHING = Answer("", 0, 0, float("-inf"), 0.0)  # as SQuAD's script takes a question that has no prediction


def window_spans(
    starts_L: np.ndarray, ends_L: np.ndarray, place: int, pieces: int, n_best: int, max_answer_length: int
) -> list[tuple[float, int, int]]:
    """The likeliest spans of one window as (score, first piece, last piece), best first, at most ``n_best``.

    The ``n_best`` likeliest starts and ends among the context's tokens (``place`` to ``place + pieces``) are paired;
    a pair passes when it ends at or after its start and is no longer than ``max_answer_length``. Of equal scores the
    first in the text wins.
    """
    starts_P, ends_P = starts_L[place : place + pieces], ends_L[place : place + pieces]
    first_S = np.argsort(-starts_P, kind="stable")[:n_best]
    last_E = np.argsort(-ends_P, kind="stable")[:n_best]
    length_SE = last_E[None, :] - first_S[:, None] + 1
    s, e = np.nonzero((length_SE >= 1) & (length_SE <= max_answer_length))
    firsts, lasts = first_S[s], last_E[e]
    scores = starts_P[firsts].astype(np.float64) + ends_P[lasts]
    order = np.lexsort((lasts, firsts, -scores))[:n_best]
    return [(float(scores[i]), int(firsts[i]), int(lasts[i])) for i in order]


def best_spans(logits_T2: np.ndarray, examples: QuestionExamples, config: QuestionConfig) -> list[list[Answer]]:
    """For each question its ``n_best`` answers, best first, over all its windows.

    The same characters seen in two windows are one answer, with the better score.
    Raises ``ModelError`` when a logit is not finite: its span would pass for an answer.
    """
    contexts = examples.questions.contexts
    if not np.isfinite(logits_T2).all():
        raise ModelError("the reader's logits are not finite; the model is damaged, or its precision is too low")
    found: list[dict[tuple[int, int], float]] = [{} for _ in contexts]
    for index, window in enumerate(examples.windows_W5):
        logits_L2, characters = examples.of_window(logits_T2, index), examples.characters(index)
        spans = found[window[QUESTION]]
        for score, first, last in window_spans(
            logits_L2[:, 0], logits_L2[:, 1], window[PLACE], window[PIECES], config.n_best, config.max_answer_length
        ):
            place = (int(characters[first, 0]), int(characters[last, 1]))
            spans[place] = max(score, spans.get(place, score))
    return [_ranked(spans, context, config.n_best) for spans, context in zip(found, contexts)]


def best_answers(logits_T2: np.ndarray, examples: QuestionExamples, config: QuestionConfig) -> list[Answer]:
    """The best answer to each question, (N)."""
    return [answers[0] if answers else NOTHING for answers in best_spans(logits_T2, examples, config)]


def score_answers(logits_T2: np.ndarray, examples: QuestionExamples, config: QuestionConfig) -> dict[str, float]:
    """F1 and exact match of the best answers against the gold ones, shares."""
    answers = best_answers(logits_T2, examples, config)
    return squad_scores([answer.text for answer in answers], examples.questions.answers)


def _ranked(spans: dict[tuple[int, int], float], context: str, n_best: int) -> list[Answer]:
    best = sorted(spans.items(), key=lambda item: (-item[1], item[0]))[:n_best]
    if not best:
        return []
    weights = np.exp(np.array([score for _, score in best]) - best[0][1])
    shares = weights / weights.sum()
    starts = [b - len(context[a:b].lstrip()) for (a, b), _ in best]  # some tokenizers count the blank before a word to it
    return [Answer(context[a:b], a, b, score, float(share)) for a, ((_, b), score), share in zip(starts, best, shares)]
