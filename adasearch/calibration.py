"""Probabilities that mean what they say: a temperature for the logits (Guo et al. 2017) and the error that remains.

Dimensions: N examples, C classes. Labels are class numbers (N,), or sets of classes (N, C) in multi-label tasks.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.optimize import brentq
from scipy.special import expit, log_softmax, softmax

from adasearch.errors import ConfigError, ModelError
from adasearch.files import read_json, write_json
from adasearch.metrics import is_known

FILE = "calibration.json"  # in a model's folder
COLDEST, HOTTEST = 0.05, 20.0  # the range of temperatures; all-right and worse-than-chance logits have no finite best one
FEWEST_EXAMPLES = 20  # below it a temperature says more of the examples than of the model
BINS = 15  # of confidence, Guo et al. 2017, section 5
FOLDS = 5


@dataclass(frozen=True)
class Calibration:
    """A fitted temperature, what it was fitted on, and what it changed.

    Attributes: ``nll_before`` and ``nll_after`` the mean negative log-likelihood on these examples; ``ece_before`` and
    ``ece_after`` the expected calibration error, the latter of examples that the temperature had not seen (5 folds).
    """

    temperature: float
    fitted_on: str
    examples: int
    nll_before: float
    nll_after: float
    ece_before: float
    ece_after: float

    def save(self, model_dir: Path) -> Path:
        """Write ``calibration.json`` into the model's folder."""
        write_json(Path(model_dir) / FILE, dataclasses.asdict(self))
        return Path(model_dir) / FILE


def load_calibration(model_dir: Path) -> Calibration | None:
    """What ``Calibration.save`` wrote; None where there is no such file. Raises ``ModelError`` when it is damaged."""
    path = Path(model_dir) / FILE
    if not path.is_file():
        return None
    try:
        calibration = Calibration(**read_json(path))
        is_usable = math.isfinite(calibration.temperature) and calibration.temperature > 0
    except (OSError, ValueError, TypeError) as error:
        raise ModelError(f"{path}: no calibration can be read ({error}); choices: delete it, or calibrate again") from error
    if not is_usable:
        raise ModelError(f"{path}: temperature: {calibration.temperature!r} is out of range; choices: above 0")
    return calibration


def probabilities(logits_NC: np.ndarray, *, is_multi_label: bool = False, temperature: float = 1.0) -> np.ndarray:
    """Softmax, or in multi-label tasks the sigmoid, of logits / temperature, (N, C). No label's rank changes."""
    scaled_NC = np.asarray(logits_NC, dtype=np.float64) / temperature
    return (expit(scaled_NC) if is_multi_label else softmax(scaled_NC, axis=1)).astype(np.float32)


def negative_log_likelihood(logits_NC: np.ndarray, labels: np.ndarray, temperature: float = 1.0) -> float:
    """Mean over examples, in nats; in multi-label tasks over examples and classes."""
    scaled_NC = np.asarray(logits_NC, dtype=np.float64) / temperature
    if labels.ndim == 2:
        return float((np.logaddexp(0, scaled_NC) - labels * scaled_NC).mean())
    return float(-log_softmax(scaled_NC, axis=1)[np.arange(len(labels)), labels].mean())


def may_calibrate(labels: np.ndarray) -> bool:
    """Whether there are probabilities to calibrate, and examples enough: classes or sets of classes, 20 of them."""
    is_class = labels.ndim == 2 or np.issubdtype(labels.dtype, np.integer)
    return bool(is_class and is_known(labels).sum() >= FEWEST_EXAMPLES)


def fit_temperature(logits_NC: np.ndarray, labels: np.ndarray) -> float:
    """The temperature of least negative log-likelihood, between 0.05 and 20; examples without a label are left out.

    The likelihood is concave in the inverse temperature b = 1 / T: the root of its slope, the mean over examples of
    sum_c (p_c - y_c) z_c (z logits, p what they say at b, y gold labels), is the one best. Guo et al. 2017, section
    4.2. Raises ``ConfigError`` for what has no probabilities, too few examples, or logits that are not finite.
    """
    return _fit(*_checked(logits_NC, labels))


def calibrate(logits_NC: np.ndarray, labels: np.ndarray, fitted_on: str) -> Calibration:
    """Fit a temperature and say what it does. Raises ``ConfigError`` as ``fit_temperature``."""
    logits_NC, labels = _checked(logits_NC, labels)
    is_multi_label = labels.ndim == 2
    fold_N = np.random.default_rng(0).permutation(len(labels)) % FOLDS
    unseen_NC = np.zeros(logits_NC.shape, dtype=np.float32)
    for fold in range(FOLDS):
        seen_N = fold_N != fold
        temperature = _fit(logits_NC[seen_N], labels[seen_N])
        unseen_NC[~seen_N] = probabilities(logits_NC[~seen_N], is_multi_label=is_multi_label, temperature=temperature)
    temperature = _fit(logits_NC, labels)
    return Calibration(
        temperature=temperature, fitted_on=fitted_on, examples=len(labels),
        nll_before=negative_log_likelihood(logits_NC, labels),
        nll_after=negative_log_likelihood(logits_NC, labels, temperature),
        ece_before=expected_calibration_error(probabilities(logits_NC, is_multi_label=is_multi_label), labels),
        ece_after=expected_calibration_error(unseen_NC, labels),
    )  # fmt: skip


def expected_calibration_error(probabilities_NC: np.ndarray, labels: np.ndarray, bins: int = BINS) -> float:
    """Mean distance between confidence and accuracy over bins of equal width of confidence, weighted by their size.

    In multi-label tasks every class of every example is a decision of its own, between the class and its absence.
    """
    if labels.ndim == 2:
        share = np.asarray(probabilities_NC, dtype=np.float64).reshape(-1)
        confidence_N, is_right_N = np.maximum(share, 1 - share), (share > 0.5) == (labels.reshape(-1) > 0.5)
    else:
        confidence_N = np.asarray(probabilities_NC, dtype=np.float64).max(axis=1)
        is_right_N = np.asarray(probabilities_NC).argmax(axis=1) == labels
    bin_N = np.minimum((confidence_N * bins).astype(int), bins - 1)
    gaps = np.bincount(bin_N, weights=confidence_N - is_right_N, minlength=bins)  # bin size * (confidence - accuracy)
    return float(np.abs(gaps).sum() / len(confidence_N))


def _checked(logits_NC: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both for the examples whose label is known, logits in float64."""
    logits_NC, labels = np.asarray(logits_NC, dtype=np.float64), np.asarray(labels)
    is_class = labels.ndim == 1 and np.issubdtype(labels.dtype, np.integer) and len(labels) == len(logits_NC)
    if logits_NC.ndim != 2 or (labels.ndim == 1 and logits_NC.shape[1] < 2) or not (is_class or labels.shape == logits_NC.shape):
        raise ConfigError(
            f"calibration: logits {logits_NC.shape} with labels {labels.shape} {labels.dtype}: only probabilities can be "
            "calibrated; choices: class numbers (N,) of two classes or more, or sets of classes (N, C)"
        )
    keep_N = is_known(labels)
    if keep_N.sum() < FEWEST_EXAMPLES:
        raise ConfigError(f"calibration: {keep_N.sum()} labelled examples; at least {FEWEST_EXAMPLES} are needed")
    if not np.isfinite(logits_NC).all():
        raise ConfigError("calibration: logits are not finite")
    return logits_NC[keep_N], labels[keep_N]


def _fit(logits_NC: np.ndarray, labels: np.ndarray) -> float:
    is_multi_label = labels.ndim == 2
    gold_NC = labels if is_multi_label else np.eye(logits_NC.shape[1])[labels]

    def slope(inverse: float) -> float:
        """Of the negative log-likelihood, by the inverse temperature."""
        expected_NC = expit(inverse * logits_NC) if is_multi_label else softmax(inverse * logits_NC, axis=1)
        return float(((expected_NC - gold_NC) * logits_NC).sum(axis=1).mean())

    if slope(1 / HOTTEST) >= 0:
        return HOTTEST
    if slope(1 / COLDEST) <= 0:
        return COLDEST
    return float(1 / brentq(slope, 1 / HOTTEST, 1 / COLDEST, xtol=1e-10))
