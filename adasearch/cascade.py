"""A cascade: the student answers what it is sure of, the teacher the rest. How much each share buys, and doing it.

Dimensions: N examples, C classes. Confidence is the largest calibrated probability; below the threshold is unsure.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from adasearch.calibration import probabilities
from adasearch.classifier import Answers, Tell, TextClassifier, check_settings
from adasearch.errors import ConfigError, ModelError
from adasearch.known_labels import places_of
from adasearch.metrics import METRICS, is_known, score

ALWAYS = float(np.nextafter(np.float32(1), np.float32(2)))  # a threshold that no confidence reaches: the teacher answers all


def cascade_curve(
    student_logits_NC: np.ndarray, teacher_logits_NC: np.ndarray, labels_N: np.ndarray, metric: str, *,
    temperature: float = 1.0, points: int = 21,
) -> list[dict[str, float]]:  # fmt: skip
    """The cascade's score against the share of texts that the teacher answers, from none to all.

    Each point: ``threshold`` of the student's confidence, ``share_escalated`` (what is below it; ties go together, so
    a share may be less than asked for), ``score``. Thresholds are quantiles of the confidence. Examples without a
    label are left out. Raises ``ConfigError`` unless every text has one label, or shapes do not fit.
    """
    labels_N = np.asarray(labels_N)
    is_class = labels_N.ndim == 1 and np.issubdtype(labels_N.dtype, np.integer)
    if not is_class or metric not in METRICS or "single_label" not in METRICS[metric].problem_types:
        choices = ", ".join(name for name in METRICS if "single_label" in METRICS[name].problem_types)
        raise ConfigError(f"cascade: metric {metric!r}, labels {labels_N.shape} {labels_N.dtype}: one class number a text "
                          f"is needed; choices: {choices}")  # fmt: skip
    shapes = {np.shape(student_logits_NC), np.shape(teacher_logits_NC), (len(labels_N), np.shape(student_logits_NC)[-1])}
    if len(shapes) > 1:
        raise ConfigError(f"cascade: logits and labels of different shapes: {', '.join(map(str, sorted(shapes)))}")
    if points < 2:
        raise ConfigError(f"cascade: points: {points} is out of range; choices: 2 or more")
    known_N = is_known(labels_N)
    student_NC, teacher_NC = np.asarray(student_logits_NC)[known_N], np.asarray(teacher_logits_NC)[known_N]
    confidence_N = probabilities(student_NC, temperature=temperature).max(axis=1)
    ordered_N = np.sort(confidence_N)
    curve = []
    for share in np.linspace(0, 1, points):
        count = round(share * len(ordered_N))
        # the least confidence that stays; to send all away, the next number above the greatest
        threshold = ordered_N[count] if count < len(ordered_N) else np.nextafter(ordered_N[-1], np.float32(2))
        unsure_N = confidence_N < threshold
        logits_NC = np.where(unsure_N[:, None], teacher_NC, student_NC)
        value = score([metric], logits_NC, labels_N[known_N])[metric]
        curve.append({"threshold": float(threshold), "share_escalated": float(unsure_N.mean()), "score": value})
    return curve


def choose_threshold(curve: Sequence[dict[str, float]], target: float) -> float:
    """The threshold that asks the teacher least often and still scores ``target``.

    Raises ``ConfigError`` that says the best score there is, when none reaches it.
    """
    enough = [point for point in curve if point["score"] >= target]
    if not enough:
        best = max(curve, key=lambda point: point["score"])
        raise ConfigError(
            f"cascade: target: no threshold scores {target:.4f}; the best is {best['score']:.4f}, with "
            f"{best['share_escalated']:.0%} of the texts sent to the teacher"
        )
    return min(enough, key=lambda point: point["share_escalated"])["threshold"]


@dataclass(frozen=True)
class Cascade:
    """Two classifiers of the same labels behind the call of one.

    Attributes: ``threshold`` of the student's confidence below which the teacher answers; or ``share`` of the texts
    of a call, the least sure, that it answers. Raises ``ConfigError`` and ``ModelError`` when the two do not fit.
    """

    student: TextClassifier
    teacher: TextClassifier
    threshold: float | None = None
    share: float | None = None

    def __post_init__(self) -> None:
        check_cascade(self.threshold, self.share)
        for name, model in (("student", self.student), ("teacher", self.teacher)):
            if model.problem_type != "single_label_classification":
                raise ModelError(f"cascade: the {name} is for {model.problem_type}; only single labels have one confidence")
        self._order()
        if None not in (kinds := (self.student.is_pair, self.teacher.is_pair)) and len(set(kinds)) > 1:
            names = ["pairs of texts" if is_pair else "single texts" for is_pair in kinds]
            raise ModelError(f"cascade: the student was trained on {names[0]}, the teacher on {names[1]}; choices: a teacher of the same task")

    def _order(self) -> list[int]:
        """Where the student's classes stand among the teacher's."""
        places = places_of(self.labels, self.teacher.labels)
        if places is not None:
            return places
        raise ModelError(
            f"cascade: the teacher knows other labels ({', '.join(self.teacher.labels)}) than the student ({', '.join(self.labels)}); "
            "choices: a teacher of the same task"
        )

    @property
    def labels(self) -> list[str]:
        """The classes' names, in the student's order."""
        return self.student.labels

    @property
    def is_pair(self) -> bool | None:
        """Whether the two were trained on pairs of texts, as the first says that knows; None: neither does."""
        return self.teacher.is_pair if self.student.is_pair is None else self.student.is_pair

    @property
    def limit(self) -> int:
        """Word pieces that the student reads of a text."""
        return self.student.limit

    def answer(self, texts: Sequence[str], pairs: Sequence[str] | None = None, tell: Tell | None = None) -> Answers:
        """The student's answers, with the teacher's in the place of the unsure ones."""
        first = self.student.answer(texts, pairs)
        unsure_N = self._unsure(first.probabilities_NC)
        rows = np.flatnonzero(unsure_N)
        if tell is not None:
            tell(len(texts) - len(rows))
        if not len(rows):
            return dataclasses.replace(first, is_escalated_N=unsure_N)

        def tell_rest(done: int) -> None:
            if tell is not None:
                tell(len(texts) - len(rows) + done)

        asked = [texts[row] for row in rows], None if pairs is None else [pairs[row] for row in rows]
        second = self.teacher.answer(*asked, tell_rest)
        order_C = self._order()
        shares_NC, logits_NC = first.probabilities_NC.copy(), first.logits_NC.copy()
        shares_NC[rows], logits_NC[rows] = second.probabilities_NC[:, order_C], second.logits_NC[:, order_C]
        predictions: list[Any] = list(first.predictions)
        for row in rows:
            predictions[row] = self.labels[logits_NC[row].argmax()]
        is_cut_N = first.is_cut_N.copy()
        is_cut_N[rows] = second.is_cut_N
        return Answers(predictions, shares_NC, logits_NC, is_cut_N, unsure_N)

    def _unsure(self, shares_NC: np.ndarray) -> np.ndarray:
        confidence_N = shares_NC.max(axis=1, initial=0)
        if self.threshold is not None:
            return confidence_N < self.threshold
        unsure_N = np.zeros(len(confidence_N), dtype=bool)
        unsure_N[np.argsort(confidence_N, kind="stable")[: round(self.share * len(confidence_N))]] = True
        return unsure_N


def check_cascade(threshold: float | None, share: float | None, has_share: bool = True) -> None:
    """Raise ``ConfigError`` unless exactly one of the two is given, and within 0 to 1. ``has_share``: the caller knows the second."""
    by_confidence = "--cascade_threshold 0.9 (confidence below which it is asked)"
    if threshold is None and not has_share:
        raise ConfigError(f"cascade_threshold: none given, and a teacher needs one; choices: {by_confidence}")
    if (threshold is None) == (share is None):
        raise ConfigError(
            f"cascade_threshold: {threshold}, cascade_share: {share}: a teacher needs one of the two; choices: "
            f"{by_confidence}, --cascade_share 0.1 (of the texts)"
        )
    if share is not None and not 0 <= share <= 1:
        raise ConfigError(f"cascade_share: {share} is out of range; choices: 0 to 1")
    if threshold is not None and not 0 <= threshold <= ALWAYS:
        raise ConfigError(f"cascade_threshold: {threshold} is out of range; choices: 0 to 1")


def check_teacher(
    teacher_dir: Path | None, threshold: float | None, share: float | None, batch_size: int, has_share: bool = True
) -> None:
    """Before anything is loaded, raise ``ConfigError`` unless a teacher's folder is given with when to ask it, or neither."""
    if teacher_dir is not None:
        check_cascade(threshold, share, has_share)
        check_settings(teacher_dir, "auto", batch_size, "cascade_teacher")
    elif threshold is not None or share is not None:
        raise ConfigError("cascade_teacher: none given, so there is nobody to ask; choices: a model's folder")
