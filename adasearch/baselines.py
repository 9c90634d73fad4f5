"""The baseline a small model must beat: TF-IDF of words and word pairs with a linear model on top.

Dimensions: N texts, C labels, V terms. The linear model's strength is chosen by cross-validation on the training
texts alone. Words are runs of two and more word characters: scripts without spaces are served badly.
"""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import sparse
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import GridSearchCV
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import Pipeline

from adasearch.errors import ConfigError, DataError
from adasearch.metrics import is_known

FOLDS = 3
STRENGTHS = (0.25, 1.0, 4.0, 16.0)  # C of the logistic regression; Ridge's alpha is 1 / C
RARE_FROM = 1_000  # with so many texts, terms that only one of them has are left out; with fewer they are worth keeping
MEMORY_BYTES = 4 << 30  # that fitting may take: of many labels the most frequent terms alone are kept
BYTES_PER_COEFFICIENT = 32 * 8  # the solver's: its last ten steps and gradients, and copies
CHOICE_TEXTS = 20_000  # so many texts, drawn by the seed, decide on the strength; all are used to fit
ABSENT_SCORE = -1e4  # score of a label that no training text has
Texts = Sequence[str] | Sequence[tuple[str, str]]


class PairTfidf(TransformerMixin, BaseEstimator):
    """Pairs of texts -> (N, 4V): the TF-IDF vectors a and b of either, a * b and |a - b|. One vocabulary for both."""

    def __init__(self, min_df: int = 1, max_features: int | None = None):
        self.min_df = min_df
        self.max_features = max_features

    def fit(self, pairs: Sequence[tuple[str, str]], y: Any = None) -> PairTfidf:
        """Learn the vocabulary and the weights of its terms from all texts of all pairs."""
        self.vectorizer_ = _vectorizer(self.min_df, self.max_features).fit([text for pair in pairs for text in pair])
        return self

    def transform(self, pairs: Sequence[tuple[str, str]]) -> sparse.csr_matrix:
        """The features, sparse."""
        a_NV, b_NV = (self.vectorizer_.transform([pair[side] for pair in pairs]) for side in (0, 1))
        return sparse.hstack([a_NV, b_NV, a_NV.multiply(b_NV), abs(a_NV - b_NV)], format="csr")


def _vectorizer(min_df: int, max_features: int | None) -> TfidfVectorizer:
    return TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, min_df=min_df, max_features=max_features, dtype=np.float64)


def most_terms(num_labels: int, is_pair: bool) -> int:
    """So many terms fit into ``MEMORY_BYTES``: two labels never come near, at a thousand it is 16,777. V of a pair is four times as many."""
    return max(1, MEMORY_BYTES // (BYTES_PER_COEFFICIENT * num_labels * (4 if is_pair else 1)))


@dataclass(frozen=True)
class TfidfBaseline:
    """A fitted baseline.

    Args:
        pipeline: scikit-learn's, from texts (or tuples of two) to predictions.
        problem_type: single_label, multi_label or regression.
        num_labels: C.
        strength: C of the logistic regression, 1 / alpha of Ridge.
        is_strength_chosen: whether cross-validation chose it; with too few texts of a label it is 1.
    """

    pipeline: Pipeline
    problem_type: str
    num_labels: int
    strength: float
    is_strength_chosen: bool
    runtime: str = "scikit-learn"

    def scores(self, texts: Sequence[str], pairs: Sequence[str] | None = None) -> np.ndarray:
        """Scores (N, C) float32 in the role of logits: their softmax, in multi-label tasks their sigmoid, are the
        model's probabilities (softmax of several labels: multinomial); regression: the value, (N, 1)."""
        inputs = _join(texts, pairs)
        if self.problem_type == "regression":
            return self.pipeline.predict(inputs).reshape(-1, 1).astype(np.float32)
        found = self.pipeline.decision_function(inputs)
        if self.problem_type == "multi_label":
            return found.reshape(len(texts), self.num_labels).astype(np.float32)
        found = np.stack([-found / 2, found / 2], axis=1) if found.ndim == 1 else found
        scores_NC = np.full((len(texts), self.num_labels), ABSENT_SCORE, dtype=np.float32)
        scores_NC[:, self.pipeline.named_steps["model"].classes_] = found
        return scores_NC

    @property
    def params(self) -> int:
        """Coefficients and intercepts. The weights of the terms (V more) and the vocabulary are not counted."""
        model = self.pipeline.named_steps["model"]
        parts = model.estimators_ if isinstance(model, OneVsRestClassifier) else [model]
        return sum(np.size(getattr(part, name, ())) for part in parts for name in ("coef_", "intercept_"))

    @property
    def size_bytes(self) -> int:
        """Length of the pickled pipeline: what it would take on disk. It is made in memory only; none is ever read."""
        return len(pickle.dumps(self.pipeline, protocol=pickle.HIGHEST_PROTOCOL))

    def factory(
        self, texts: Sequence[str], pairs: Sequence[str] | None = None
    ) -> Callable[[int, int], Callable[[], Any]]:
        """For ``measure.time_systems``: (batch size, length) -> a call on that many raw texts, each on the next ones.

        The length is the texts' own, so times are those of this task, from text to score, without a tokenizer to add.
        """

        def make(batch: int, length: int) -> Callable[[], np.ndarray]:
            position = 0

            def call() -> np.ndarray:
                nonlocal position
                rows = [index % len(texts) for index in range(position, position + batch)]
                position += batch
                return self.scores(
                    [texts[row] for row in rows], None if pairs is None else [pairs[row] for row in rows]
                )

            return call

        make.runtime, make.threads = self.runtime, 1  # type: ignore[attr-defined]
        return make


def _join(texts: Sequence[str], pairs: Sequence[str] | None) -> Texts:
    return list(texts) if pairs is None else list(zip(texts, pairs, strict=True))


def tfidf_baseline(
    texts: Sequence[str], labels: np.ndarray, *, pairs: Sequence[str] | None = None, problem_type: str = "single_label",
    num_labels: int | None = None, seed: int = 42,
) -> TfidfBaseline:  # fmt: skip
    """Fit TF-IDF (1-2 grams, sublinear) and a linear model on training texts.

    ``labels``: single_label (N,) ints, -100 = unknown; multi_label (N, C) of 0 and 1; regression (N,) floats, NaN =
    unknown. Logistic regression for classes, one a label for multi_label, Ridge for regression. ``num_labels`` as the
    labels say when absent. Raises ``DataError`` when there is nothing to learn from.
    """
    fitters = {"single_label": LogisticRegression, "multi_label": OneVsRestClassifier, "regression": Ridge}
    if problem_type not in fitters:
        raise ConfigError(f"problem_type: {problem_type!r} is not known; choices: {', '.join(fitters)}")
    inputs, labels = _join(texts, pairs), np.asarray(labels)
    if len(labels) != len(inputs):
        raise DataError(f"tfidf: {len(inputs)} texts but {len(labels)} labels")
    keep = np.flatnonzero(is_known(labels))
    inputs, labels = [inputs[index] for index in keep], labels[keep]
    labels = labels.reshape(len(labels)).astype(float) if problem_type == "regression" else labels.astype(np.int64)
    if problem_type != "multi_label" and len(np.unique(labels)) < 2:
        raise DataError(
            f"tfidf: {len(labels)} labelled texts with {len(np.unique(labels))} different labels; at least 2 are needed"
        )
    if num_labels is None:
        num_labels = {"single_label": lambda: int(labels.max()) + 1, "multi_label": lambda: labels.shape[1]}.get(
            problem_type, lambda: 1
        )()
    kept = 2 if len(inputs) >= RARE_FROM else 1, most_terms(num_labels, is_pair=pairs is not None)
    vectorizer = _vectorizer(*kept) if pairs is None else PairTfidf(*kept)
    try:
        features_NV = vectorizer.fit_transform(inputs)
    except ValueError as error:  # "empty vocabulary"
        raise DataError(f"tfidf: no terms in {len(inputs)} texts ({' '.join(str(error).split())})") from error
    terms = vectorizer if pairs is None else vectorizer.vectorizer_
    terms.vocabulary_ = {term: int(place) for term, place in terms.vocabulary_.items()}  # numpy's would treble the pickle
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the last digits of a baseline do not matter
        warnings.filterwarnings("ignore", message="Label .* is present in all training examples")
        warnings.filterwarnings("ignore", message="Label not .* is present in all training examples")
        strength, is_chosen = _choose_strength(problem_type, features_NV, labels, seed)
        model = _linear(problem_type, strength).fit(features_NV, labels)
    pipeline = Pipeline([("features", vectorizer), ("model", model)])
    return TfidfBaseline(pipeline, problem_type, num_labels, strength, is_chosen)


def _linear(problem_type: str, strength: float) -> BaseEstimator:
    if problem_type == "regression":
        return Ridge(alpha=1 / strength)
    logistic = LogisticRegression(C=strength, max_iter=300)
    return logistic if problem_type == "single_label" else OneVsRestClassifier(logistic)


def _choose_strength(
    problem_type: str, features_NV: sparse.csr_matrix, labels: np.ndarray, seed: int
) -> tuple[float, bool]:
    """The best of ``STRENGTHS`` by cross-validation (accuracy, micro F1, squared error); whether it was a choice."""
    rows = np.random.default_rng(seed).permutation(len(labels))[:CHOICE_TEXTS]
    features_NV, labels = features_NV[rows], labels[rows]
    fewest = np.unique(labels, return_counts=True)[1].min() if problem_type == "single_label" else len(labels)
    if fewest < FOLDS:
        return 1.0, False
    name, values = {
        "single_label": ("C", list(STRENGTHS)),
        "multi_label": ("estimator__C", list(STRENGTHS)),
        "regression": ("alpha", [1 / strength for strength in STRENGTHS]),
    }[problem_type]
    scoring = {"single_label": "accuracy", "multi_label": "f1_micro", "regression": "neg_mean_squared_error"}[
        problem_type
    ]
    if problem_type == "multi_label" and labels.shape[1] == 1:
        scoring = "f1"  # what scikit-learn calls micro F1 is accuracy where there is one column
    search = GridSearchCV(_linear(problem_type, 1.0), {name: values}, cv=FOLDS, scoring=scoring, refit=False)
    search.fit(features_NV, labels)
    return STRENGTHS[values.index(search.best_params_[name])], True
