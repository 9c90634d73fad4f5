"""Scores of finished models on labelled examples, and what chance may have added to each: intervals, paired differences, errors.

The interval of a share of right answers is Wilson's (1927). Others are percentiles of bootstrap resamples of the examples (Efron and Tibshirani 1993, chapter 13), moved so that the resamples'
mean is the score: a resample lacks rare labels, and its macro F1 with them. All models are resampled together, so that a
difference has an interval of its own, narrower than those of its two sides. They speak of other examples of the same kind, not of
other seeds of a training.
Dimensions: N examples, C labels, M metrics, R resamples.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats
from sklearn.metrics import precision_recall_fscore_support

from adasearch.calibration import expected_calibration_error
from adasearch.metrics import METRICS, counted_labels, is_known, score
from adasearch.progress import Progress
from adasearch.squad_metrics import EXACT

LEVEL = 0.95
MOST_RESAMPLES, FEWEST_RESAMPLES, WORK = 1_000, 200, 10_000_000  # fewer of many examples: ``WORK`` decisions a model in all
MOST_CONFUSIONS = 5
COUNTED = ("accuracy", EXACT)  # shares of examples that are right, each or not
CORRELATIONS = ("matthews_correlation", "pearson", "spearmanr")


@dataclass(frozen=True)
class Judged:
    """What one model says of all examples: logits, and the probabilities it serves (None in regression); or, of a reader, ``points``.

    ``points``: of every answer by every metric of ``squad_metrics``, (N,) each.
    """

    name: str
    logits_NC: np.ndarray | None = None
    probabilities_NC: np.ndarray | None = None
    points: Mapping[str, np.ndarray] | None = None

    def __len__(self) -> int:
        return len(self.logits_NC if self.points is None else self.points[EXACT])

    def scores(self, rows: np.ndarray, metrics: Sequence[str], labels: np.ndarray | None) -> list[float]:
        """Each metric over the named examples."""
        if self.points is not None:
            return [float(self.points[name][rows].mean()) for name in metrics]
        return [METRICS[name](self.logits_NC[rows], labels[rows]) for name in metrics]

    def is_right(self, labels: np.ndarray | None) -> np.ndarray | None:
        """Which examples are answered rightly, (N,): the label, the whole set of labels, the answer word by word. None in regression."""
        if self.points is not None:
            return self.points[EXACT] == 1
        if labels.ndim == 2:
            return ((self.logits_NC > 0) == (labels > 0.5)).all(axis=1)
        return self.logits_NC.argmax(axis=1) == labels if np.issubdtype(labels.dtype, np.integer) else None


@dataclass(frozen=True)
class Interval:
    """A number measured on examples, and the bounds of its 95% interval: Wilson's (1927) where it counts right answers, else a bootstrap's."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class LabelScore:
    """One label: how many examples have it, and how well it is found, as shares; None where there is nothing to find, or nothing found."""

    label: str
    examples: int
    precision: float | None
    recall: float | None
    f1: float | None


@dataclass(frozen=True)
class Confusion:
    """How many examples of label ``gold`` were taken for ``predicted``."""

    gold: str
    predicted: str
    count: int


@dataclass(frozen=True)
class ModelScore:
    """One model: a score for every metric, its calibration error (of the probabilities it serves), every label, the commonest confusions."""

    name: str
    scores: dict[str, Interval]
    calibration_error: float | None = None
    labels: tuple[LabelScore, ...] = ()
    confusions: tuple[Confusion, ...] = ()


@dataclass(frozen=True)
class Difference:
    """The first model's score minus another's on the same examples.

    ``only_first`` and ``only_other`` count the examples that one of them alone gets right; ``p_value`` is McNemar's exact test
    of their being equally many by chance (1947; None in regression, or where no example parts them).
    """

    other: str
    score: Interval
    only_first: int | None = None
    only_other: int | None = None
    p_value: float | None = None


@dataclass(frozen=True)
class Scoreboard:
    """All models on the same examples; ``differences`` are of the first model's ``metric`` against every other's."""

    examples: int
    metric: str
    models: tuple[ModelScore, ...]
    differences: tuple[Difference, ...]


def judge(
    judged: Sequence[Judged], metrics: Sequence[str], labels: np.ndarray | None = None, names: Sequence[str] = (), seed: int = 0,
    progress: Progress | None = None,
) -> Scoreboard:
    """Score every model on the same examples; the first metric counts, the first model is compared with the others.

    ``labels`` as in ``Split``, examples without one are left out; None for readers. ``names`` are the labels'. Raises
    ``TrainingError`` for logits that are not finite, and where no example has a label.
    """
    if labels is not None:
        for model in judged:
            score(metrics, model.logits_NC, labels)  # says what is wrong with logits or labels
        known_N = is_known(labels)
        labels = labels[known_N]
        judged = [
            Judged(m.name, m.logits_NC[known_N], None if m.probabilities_NC is None else m.probabilities_NC[known_N]) for m in judged
        ]
    count = len(judged[0])
    progress, resamples = progress or Progress(), _count_resamples(labels, count)
    generator = np.random.default_rng((seed, 0x5C0E))
    values = [np.array(model.scores(np.arange(count), metrics, labels)) for model in judged]
    drawn: list[list[list[float]]] = []
    progress.stage("resample the examples", total=resamples)
    for number in range(resamples):
        rows = generator.integers(count, size=count)
        drawn.append([model.scores(rows, metrics, labels) for model in judged])
        progress.step(number + 1)
    resampled = np.array(drawn).transpose(1, 0, 2)  # a model's are (R, M)
    models = tuple(
        ModelScore(
            model.name, {name: _score_interval(name, value_M[m], value_RM[:, m], count) for m, name in enumerate(metrics)},
            _calibration_error(model, labels), _label_scores(model, labels, names), _confusions(model, labels, names),
        )
        for model, value_M, value_RM in zip(judged, values, resampled)
    )  # fmt: skip
    differences = tuple(
        _difference(judged[0], other, _interval(values[0][0] - value_M[0], resampled[0][:, 0] - value_RM[:, 0]), labels)
        for other, value_M, value_RM in zip(judged[1:], values[1:], resampled[1:])
    )
    return Scoreboard(count, metrics[0], models, differences)


def _count_resamples(labels: np.ndarray | None, count: int) -> int:
    decisions = count * (labels.shape[1] if labels is not None and labels.ndim == 2 else 1)
    return min(MOST_RESAMPLES, max(FEWEST_RESAMPLES, WORK // decisions))


def _score_interval(metric: str, value: float, resampled_R: np.ndarray, count: int) -> Interval:
    if metric in COUNTED:  # of few examples, or all of them right, a bootstrap is too sure: it has never seen a wrong one
        bounds = stats.binomtest(round(value * count), count).proportion_ci(LEVEL, method="wilson")
        return Interval(float(value), float(bounds.low), float(bounds.high))
    return _interval(value, resampled_R, *_range(metric))


def _range(metric: str) -> tuple[float, float]:
    """What a metric can be at least and at most: shares 0 and 1, correlations from -1, errors without an end."""
    is_error = metric in METRICS and not METRICS[metric].higher_is_better
    return -1.0 if metric in CORRELATIONS else 0.0, math.inf if is_error else 1.0


def _interval(value: float, resampled_R: np.ndarray, least: float = -math.inf, most: float = math.inf) -> Interval:
    low, high = np.quantile(resampled_R, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]) + value - resampled_R.mean()
    return Interval(float(value), float(min(max(low, least), value)), float(max(value, min(high, most))))


def _calibration_error(model: Judged, labels: np.ndarray | None) -> float | None:
    return None if model.probabilities_NC is None else expected_calibration_error(model.probabilities_NC, labels)


def _label_scores(model: Judged, labels: np.ndarray | None, names: Sequence[str]) -> tuple[LabelScore, ...]:
    if labels is None or model.is_right(labels) is None:
        return ()
    found = model.logits_NC > 0 if labels.ndim == 2 else model.logits_NC.argmax(axis=1)
    counted = counted_labels(labels) or range(len(names))
    *shares, counts = precision_recall_fscore_support(labels, found, labels=counted, zero_division=np.nan)
    known = ([None if np.isnan(share) else float(share) for share in column] for column in shares)
    return tuple(LabelScore(name, int(n), p, r, f) for name, n, p, r, f in zip(names, counts, *known))


def _confusions(model: Judged, labels: np.ndarray | None, names: Sequence[str]) -> tuple[Confusion, ...]:
    """The commonest, most first; none in multi-label tasks, where no label stands in another's place."""
    if labels is None or labels.ndim == 2 or (is_right_N := model.is_right(labels)) is None:
        return ()
    wrong = Counter(zip(labels[~is_right_N].tolist(), model.logits_NC[~is_right_N].argmax(axis=1).tolist()))
    return tuple(Confusion(names[gold], names[found], count) for (gold, found), count in wrong.most_common(MOST_CONFUSIONS))


def _difference(first: Judged, other: Judged, interval: Interval, labels: np.ndarray | None) -> Difference:
    one_N, two_N = first.is_right(labels), other.is_right(labels)
    if one_N is None or two_N is None:
        return Difference(other.name, interval)
    only_first, only_other = int((one_N & ~two_N).sum()), int((two_N & ~one_N).sum())
    parted = only_first + only_other
    p_value = float(stats.binomtest(only_first, parted).pvalue) if parted else None
    return Difference(other.name, interval, only_first, only_other, p_value)
