"""The metrics of GLUE and of multi-label tasks, on arrays. All but ``mse`` are shares where 1 is perfect.

Dimensions: N examples, C classes. Predictions are logits (N, C), in regression the value itself (N,) or (N, 1).
Labels are as in ``Split``: int64 (N,) with -100 unknown; float32 (N, C) or (N,) with NaN unknown.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats
from sklearn import metrics as sk

from adasearch.errors import ConfigError, TrainingError
from adasearch.registry import Registry

SKEWED_SHARE = 0.6  # above this share of the majority class accuracy alone flatters: F1 is shown too
USUAL_METRICS = {
    "single_label": ("accuracy",),
    "multi_label": ("f1_micro", "f1_macro"),
    "regression": ("pearson", "spearmanr", "mse"),
}
SAME_SHARE = 0.01  # of a regression's range: predictions that differ by less are taken for the same
UNKNOWN = -100  # the label that torch's cross entropy leaves out


@dataclass(frozen=True)
class Metric:
    """A function of (predictions, labels), both without unknown examples, and the problems it is defined for."""

    function: Callable[[np.ndarray, np.ndarray], float]
    problem_types: tuple[str, ...]
    higher_is_better: bool = True
    max_labels: int | None = None

    def __call__(self, predictions: np.ndarray, labels: np.ndarray) -> float:
        return float(self.function(np.asarray(predictions), np.asarray(labels)))

    def fits(self, problem_type: str, num_labels: int) -> bool:
        """Whether a task of this kind can be scored by it."""
        return problem_type in self.problem_types and num_labels <= (self.max_labels or num_labels)


METRICS: Registry[Metric] = Registry("metric")


def _metric(name: str, *problem_types: str, higher_is_better: bool = True, max_labels: int | None = None) -> Callable:
    def add(function: Callable[[np.ndarray, np.ndarray], float]) -> Callable[[np.ndarray, np.ndarray], float]:
        METRICS.register(name)(Metric(function, problem_types, higher_is_better, max_labels))
        return function

    return add


def _decisions(predictions_NC: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The predicted class (N,), or in multi-label tasks the predicted set (N, C): every logit above 0 (p > 1/2)."""
    return predictions_NC > 0 if labels.ndim == 2 else predictions_NC.argmax(axis=1)


def counted_labels(labels: np.ndarray) -> list[int] | None:
    """What scikit-learn is to average over: of the single column of a task with one tag, which it takes for two classes, only class 1,
    having the tag; None: all there are."""
    return [1] if labels.ndim == 2 and labels.shape[1] == 1 else None


@_metric("accuracy", "single_label")
def accuracy(predictions_NC: np.ndarray, labels_N: np.ndarray) -> float:
    """Share of examples whose largest logit is the label's."""
    return float((_decisions(predictions_NC, labels_N) == labels_N).mean())


@_metric("f1", "single_label", max_labels=2)
def f1(predictions_NC: np.ndarray, labels_N: np.ndarray) -> float:
    """F1 of class 1, as GLUE reports it for MRPC and QQP; 0 when class 1 is neither there nor predicted."""
    return sk.f1_score(labels_N, _decisions(predictions_NC, labels_N), zero_division=0)


@_metric("f1_macro", "single_label", "multi_label")
def f1_macro(predictions_NC: np.ndarray, labels: np.ndarray) -> float:
    """Mean of the classes' F1, each class weighing the same; one that is neither there nor predicted has none and does not count.

    0 where no class has one.
    """
    decisions, counted = _decisions(predictions_NC, labels), counted_labels(labels)
    found = sk.f1_score(labels, decisions, labels=counted, average="macro", zero_division=np.nan)
    return 0.0 if np.isnan(found) else found


@_metric("f1_micro", "multi_label")
def f1_micro(predictions_NC: np.ndarray, labels_NC: np.ndarray) -> float:
    """F1 over all decisions (example, class)."""
    decisions_NC, counted = _decisions(predictions_NC, labels_NC), counted_labels(labels_NC)
    return sk.f1_score(labels_NC, decisions_NC, labels=counted, average="micro", zero_division=0)


@_metric("matthews_correlation", "single_label")
def matthews_correlation(predictions_NC: np.ndarray, labels_N: np.ndarray) -> float:
    """Correlation of prediction and label (CoLA), -1 to 1; 0 when either is constant."""
    return sk.matthews_corrcoef(labels_N, _decisions(predictions_NC, labels_N))


@_metric("pearson", "regression")
def pearson(predictions: np.ndarray, labels_N: np.ndarray) -> float:
    """Linear correlation (STS-B), -1 to 1; 0 when either side is constant, where it is not defined."""
    values_N = predictions.reshape(-1)
    return 0.0 if _is_constant(values_N) or _is_constant(labels_N) else stats.pearsonr(values_N, labels_N)[0]


@_metric("spearmanr", "regression")
def spearmanr(predictions: np.ndarray, labels_N: np.ndarray) -> float:
    """Correlation of the ranks (STS-B), -1 to 1; 0 when either side is constant, where it is not defined."""
    values_N = predictions.reshape(-1)
    return 0.0 if _is_constant(values_N) or _is_constant(labels_N) else stats.spearmanr(values_N, labels_N)[0]


@_metric("mse", "regression", higher_is_better=False)
def mse(predictions: np.ndarray, labels_N: np.ndarray) -> float:
    """Mean squared error, in squared units of the label."""
    return sk.mean_squared_error(labels_N, predictions.reshape(-1))


def _is_constant(values_N: np.ndarray) -> bool:
    return bool(np.all(values_N == values_N[:1]))


def is_known(labels: np.ndarray) -> np.ndarray:
    """Which examples have a label, (N,) bool."""
    has_value = labels != UNKNOWN if np.issubdtype(labels.dtype, np.integer) else ~np.isnan(labels)
    return has_value.all(axis=tuple(range(1, labels.ndim)))


def with_unknown(labels: np.ndarray, count: int) -> np.ndarray:
    """Labels of ``count`` examples: those given, and behind them unknown ones."""
    unknown = UNKNOWN if np.issubdtype(labels.dtype, np.integer) else np.nan
    return np.concatenate([labels, np.full((count - len(labels), *labels.shape[1:]), unknown, labels.dtype)])


def score(metrics: Sequence[str], logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Every named metric over the examples whose label is known.

    Raises ``TrainingError`` when a logit is not finite (an argmax over NaN would pass for a prediction) or when no
    label is known.
    """
    keep_N = is_known(labels)
    if not keep_N.any():
        raise TrainingError(f"metrics {', '.join(metrics)}: none of the {len(labels)} examples has a label")
    if not np.isfinite(logits).all():
        broken_N = ~np.isfinite(np.asarray(logits).reshape(len(logits), -1)).all(axis=1)
        which = f"{broken_N.sum()} of {len(logits)} examples, the first is example {broken_N.argmax()}"
        raise TrainingError(f"metrics {', '.join(metrics)}: logits are not finite for {which}")
    return {name: METRICS[name](np.asarray(logits)[keep_N], labels[keep_N]) for name in metrics}


def scores_to_keep(metric: str, logits: np.ndarray, labels: np.ndarray) -> tuple[float, ...]:
    """What a smaller copy of a model must keep: the metric, and in regression R², since a correlation sees no wrong offset or scale.

    Raises as ``score`` does.
    """
    found = (score([metric], logits, labels)[metric],)
    if labels.ndim > 1 or np.issubdtype(labels.dtype, np.integer):
        return found
    keep_N = is_known(labels)
    values_N, known_N = np.asarray(logits, np.float64)[keep_N].reshape(-1), labels[keep_N].astype(np.float64)
    spread = known_N.var() or 1.0  # labels that are all alike have none
    return (*found, float(1 - mse(values_N, known_N) / spread))


def points_lost(before: Sequence[float], after: Sequence[float]) -> float:
    """Hundredths by which the score that has lost most is lower; negative where all are higher."""
    return max(100 * (whole - left) for whole, left in zip(before, after, strict=True))


def agreement(first: np.ndarray, second: np.ndarray, problem_type: str) -> float:
    """Share of the examples of which two models predict the same: a label, a set of labels, a number within 1% of the first
    model's range."""
    if problem_type == "regression":
        return float((np.abs(first - second).reshape(-1) <= SAME_SHARE * np.ptp(first)).mean())
    if problem_type == "multi_label":
        return float(((first > 0) == (second > 0)).all(1).mean())
    return float((first.argmax(1) == second.argmax(1)).mean())


def majority_baseline(labels_train: np.ndarray, labels_heldout: np.ndarray, metrics: Sequence[str]) -> dict[str, float]:
    """Scores of the best constant answer: the training majority class, each label's majority, or the training mean."""
    known = labels_train[is_known(labels_train)]
    if np.issubdtype(known.dtype, np.integer):
        counts_C = np.bincount(known, minlength=int(max(labels_heldout.max(), 1)) + 1)
        constant_C = np.eye(len(counts_C))[counts_C.argmax()]
    elif known.ndim == 2:
        constant_C = known.mean(axis=0) - 0.5
    else:
        constant_C = known.mean(keepdims=True)
    return score(metrics, np.broadcast_to(constant_C, (len(labels_heldout), len(constant_C))), labels_heldout)


def is_skewed(labels: np.ndarray) -> bool:
    """Whether one class holds more than 60% of the labelled examples; never so in regression and multi-label tasks."""
    if not np.issubdtype(labels.dtype, np.integer):
        return False
    known = labels[is_known(labels)]
    return len(known) > 0 and bool(np.bincount(known).max() > SKEWED_SHARE * len(known))


def choose_metrics(
    problem_type: str, num_labels: int, *, own: Sequence[str] = (), asked: str | None = None, skewed: bool = False
) -> tuple[str, ...]:
    """The metrics to report, the one that counts first: the one asked for, else the task's own, else the usual.

    F1 is added where the classes are skewed: the classes' mean, since that of class 1, which is what GLUE's ``own`` mean by F1, may be
    of the frequent one and flatter more than accuracy does. Raises ``ConfigError`` when ``asked`` is unknown, does not fit the
    problem, or is an error to be made small (scores are compared as "higher is better").
    """
    names = list(own or USUAL_METRICS[problem_type])
    if skewed and problem_type == "single_label":
        names.append("f1" if own and num_labels == 2 else "f1_macro")
    if asked is not None:
        choices = [n for n in METRICS if METRICS[n].fits(problem_type, num_labels) and METRICS[n].higher_is_better]
        if asked not in choices:
            place = f"a {problem_type} task with {num_labels} labels"
            raise ConfigError(f"metric: {asked!r} cannot count in {place}; choices: {', '.join(choices)}")
        names.insert(0, asked)
    return tuple(dict.fromkeys(names))
