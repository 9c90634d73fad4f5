"""Laws of the metrics: they equal scikit-learn's and SciPy's, ignore unknown labels, and refuse what is no number."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as sk
from sklearn.dummy import DummyClassifier

from adasearch.errors import ConfigError, TrainingError
from adasearch.metrics import METRICS, agreement, choose_metrics, is_known, is_skewed, majority_baseline, score

GENERATOR_SEED = 7


@pytest.fixture
def generator() -> np.random.Generator:
    return np.random.default_rng(GENERATOR_SEED)


def test_hand_worked_binary_case() -> None:
    """Two true positives, one false positive, one false negative, one true negative."""
    logits_NC = np.array([[0, 1], [0, 1], [0, 1], [1, 0], [1, 0]], dtype=np.float32)
    labels_N = np.array([1, 1, 0, 1, 0])
    scores = score(["accuracy", "f1", "matthews_correlation"], logits_NC, labels_N)
    # F1 = 2 TP / (2 TP + FP + FN); correlation = (TP TN - FP FN) / sqrt(3 * 3 * 2 * 2)
    assert scores == pytest.approx({"accuracy": 3 / 5, "f1": 4 / 6, "matthews_correlation": (2 - 1) / 6})


@pytest.mark.parametrize("num_labels", [2, 3, 5])
def test_single_label_metrics_equal_scikit_learn(generator: np.random.Generator, num_labels: int) -> None:
    logits_NC, labels_N = generator.normal(size=(200, num_labels)), generator.integers(num_labels, size=200)
    predicted_N = logits_NC.argmax(1)
    assert METRICS["accuracy"](logits_NC, labels_N) == sk.accuracy_score(labels_N, predicted_N)
    assert METRICS["f1_macro"](logits_NC, labels_N) == sk.f1_score(labels_N, predicted_N, average="macro")
    assert METRICS["matthews_correlation"](logits_NC, labels_N) == sk.matthews_corrcoef(labels_N, predicted_N)
    if num_labels == 2:
        precision, recall = sk.precision_score(labels_N, predicted_N), sk.recall_score(labels_N, predicted_N)
        assert METRICS["f1"](logits_NC, labels_N) == pytest.approx(2 * precision * recall / (precision + recall))


def test_multi_label_f1_from_counts(generator: np.random.Generator) -> None:
    """A logit above 0 says yes; micro pools the counts of all labels, macro averages their F1."""
    logits_NC, labels_NC = generator.normal(size=(50, 4)), (generator.random((50, 4)) < 0.4).astype(np.float32)
    yes_NC = logits_NC > 0
    hits_C, wrong_C = (yes_NC & (labels_NC == 1)).sum(0), (yes_NC != (labels_NC == 1)).sum(0)
    assert METRICS["f1_micro"](logits_NC, labels_NC) == pytest.approx(2 * hits_C.sum() / (2 * hits_C + wrong_C).sum())
    assert METRICS["f1_macro"](logits_NC, labels_NC) == pytest.approx((2 * hits_C / (2 * hits_C + wrong_C)).mean())


@pytest.mark.parametrize("shape", [(60,), (60, 1)])
def test_regression_metrics(generator: np.random.Generator, shape: tuple[int, ...]) -> None:
    labels_N = generator.normal(size=60).astype(np.float32)
    values_N = labels_N + generator.normal(size=60)
    scores = score(["pearson", "spearmanr", "mse"], values_N.reshape(shape), labels_N)
    ranks = stats.rankdata(values_N), stats.rankdata(labels_N)
    assert scores["pearson"] == pytest.approx(np.corrcoef(values_N, labels_N)[0, 1])
    assert scores["spearmanr"] == pytest.approx(np.corrcoef(*ranks)[0, 1])
    assert scores["mse"] == pytest.approx(((values_N - labels_N) ** 2).mean())
    assert METRICS["pearson"](np.zeros(shape), labels_N) == METRICS["spearmanr"](np.zeros(shape), labels_N) == 0


def test_unknown_labels_are_left_out(generator: np.random.Generator) -> None:
    logits_NC, labels_N = generator.normal(size=(30, 2)), generator.integers(2, size=30)
    with_unknown = np.where(np.arange(30) % 3 == 0, -100, labels_N)
    keep_N = np.arange(30) % 3 != 0
    expected = score(["accuracy", "f1"], logits_NC[keep_N], labels_N[keep_N])
    assert score(["accuracy", "f1"], logits_NC, with_unknown) == expected
    assert is_known(np.array([[0, 1], [np.nan, 1]], np.float32)).tolist() == [True, False]
    with pytest.raises(TrainingError, match="none of the 4 examples"):
        score(["accuracy"], np.zeros((4, 2)), np.full(4, -100))


def test_logits_that_are_not_finite_are_refused() -> None:
    logits_NC = np.zeros((5, 2))
    logits_NC[3, 1] = np.nan
    with pytest.raises(TrainingError, match="1 of 5 examples, the first is example 3"):
        score(["accuracy"], logits_NC, np.array([0, 1, 0, 1, 0]))


def test_agreement_by_hand() -> None:
    expected = np.array([[0.0, 1.0], [1.0, 0.0], [2.0, 1.0], [0.0, 3.0]])
    found = np.array([[0.0, 0.5], [0.0, 1.0], [2.0, 1.5], [1.0, 3.0]])
    assert agreement(expected, found, "single_label") == 0.75
    assert agreement(expected - 0.75, found - 0.75, "multi_label") == 0.25
    assert agreement(expected[:, :1], expected[:, :1] + [[0.0], [0.01], [0.03], [0.0]], "regression") == 0.75


def test_majority_baseline_is_the_best_constant(generator: np.random.Generator) -> None:
    train_N, held_N = generator.choice(3, 100, p=[0.2, 0.5, 0.3]), generator.integers(3, size=40)
    dummy = DummyClassifier(strategy="most_frequent").fit(np.zeros((100, 1)), train_N)
    assert majority_baseline(train_N, held_N, ["accuracy"]) == {"accuracy": dummy.score(np.zeros((40, 1)), held_N)}
    # class 1 is the majority of the training labels: recall 1, precision its held-out share
    scores = majority_baseline(np.array([1, 1, 0]), np.array([1, 0, 0, 0]), ["f1"])
    assert scores["f1"] == pytest.approx(2 * 0.25 / 1.25)
    train_NC, held_NC = np.array([[1, 0], [1, 0], [1, 1]], np.float32), np.array([[1, 0], [0, 1]], np.float32)
    assert majority_baseline(train_NC, held_NC, ["f1_micro"])["f1_micro"] == pytest.approx(0.5)
    values = majority_baseline(np.array([1, 3], np.float32), np.array([2, 4], np.float32), ["mse", "pearson"])
    assert values == {"mse": 2.0, "pearson": 0.0}


def test_skewed_means_more_than_sixty_percent() -> None:
    assert not is_skewed(np.array([0] * 6 + [1] * 4))
    assert is_skewed(np.array([0] * 7 + [1] * 4))
    assert is_skewed(np.array([0] * 7 + [1] * 4 + [-100] * 50))
    assert not is_skewed(np.zeros(9, np.float32))


def test_choice_of_metrics() -> None:
    assert choose_metrics("single_label", 2) == ("accuracy",)
    assert choose_metrics("single_label", 2, skewed=True) == ("accuracy", "f1_macro")  # class 1 may be the frequent one
    assert choose_metrics("single_label", 2, own=("accuracy",), skewed=True) == ("accuracy", "f1")
    assert choose_metrics("single_label", 3, skewed=True) == ("accuracy", "f1_macro")
    assert choose_metrics("single_label", 2, own=("accuracy", "f1"), asked="f1", skewed=True) == ("f1", "accuracy")
    assert choose_metrics("multi_label", 9)[0] == "f1_micro"
    with pytest.raises(ConfigError, match="metric: 'f1' cannot count .* 3 labels; choices: accuracy, f1_macro"):
        choose_metrics("single_label", 3, asked="f1")
    with pytest.raises(ConfigError, match="'mse' cannot count"):  # lower is better
        choose_metrics("regression", 1, asked="mse")


@pytest.mark.parametrize("name", list(METRICS))
def test_perfect_answers_score_one(generator: np.random.Generator, name: str) -> None:
    labels = {
        "single_label": generator.integers(2, size=20),
        "multi_label": (generator.random((20, 3)) < 0.5).astype(np.float32),
        "regression": generator.normal(size=20).astype(np.float32),
    }
    for problem_type in METRICS[name].problem_types:
        known = labels[problem_type]
        perfect = {"single_label": np.eye(2)[labels["single_label"]], "multi_label": known - 0.5, "regression": known}
        best = 1 if METRICS[name].higher_is_better else 0
        assert METRICS[name](perfect[problem_type], known) == pytest.approx(best)
