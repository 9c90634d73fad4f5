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


def test_a_single_tag_is_scored_as_one_beside_a_tag_that_nobody_has(generator: np.random.Generator) -> None:
    """scikit-learn takes one column for two classes: not having the tag would be a class to be found."""
    labels_NC, logits_NC = (generator.random((80, 1)) < 0.2).astype(np.float32), generator.normal(size=(80, 1))
    nobody_NC = np.zeros_like(labels_NC)
    hits, wrong = ((logits_NC > 0) & (labels_NC == 1)).sum(), ((logits_NC > 0) != (labels_NC == 1)).sum()
    for name in ("f1_micro", "f1_macro"):
        found = METRICS[name](logits_NC, labels_NC)
        assert found == pytest.approx(2 * hits / (2 * hits + wrong))
        assert found == pytest.approx(METRICS[name](np.concatenate([logits_NC, nobody_NC - 1], 1), np.concatenate([labels_NC, nobody_NC], 1)))
        assert METRICS[name](nobody_NC - 1, labels_NC) == METRICS[name](nobody_NC - 1, nobody_NC) == 0
    assert majority_baseline(labels_NC, labels_NC, ["f1_micro"]) == {"f1_micro": 0}


def skewed(generator: np.random.Generator, count: int = 600) -> tuple[np.ndarray, np.ndarray]:
    """Logits that lean to the frequent one of four classes; the last class is predicted and has no example."""
    labels_N = generator.choice(3, count, p=[0.85, 0.12, 0.03])
    return np.eye(4)[labels_N] + generator.normal(size=(count, 4)) + [1.2, 0.0, -0.3, -1.0], labels_N


def test_skewed_classes_weigh_as_each_metric_says(generator: np.random.Generator) -> None:
    logits_NC, labels_N = skewed(generator)
    table_CC = np.zeros((4, 4))  # gold, predicted
    for gold, logits_C in zip(labels_N, logits_NC):
        table_CC[gold, np.argmax(logits_C)] += 1
    gold_C, found_C, hits_C, count = table_CC.sum(1), table_CC.sum(0), table_CC.diagonal(), table_CC.sum()
    assert found_C[3] and not gold_C[3] and hits_C[2], "one class is wrongly predicted, a rare one found"
    f1_C = 2 * hits_C / (gold_C + found_C)
    ways = {"macro": f1_C.mean(), "micro": hits_C.sum() / count, "weighted": f1_C @ gold_C / count, "of the gold classes": f1_C[:3].mean()}
    assert np.diff(sorted(ways.values())).min() > 0.005, "no two ways of averaging pass for each other"
    assert METRICS["f1_macro"](logits_NC, labels_N) == pytest.approx(ways["macro"])
    assert METRICS["accuracy"](logits_NC, labels_N) == pytest.approx(ways["micro"])
    # Gorodkin 2004: the correlation of one-hot labels and predictions, all classes' covariances together
    covariance = hits_C.sum() * count - gold_C @ found_C
    expected = covariance / np.sqrt((count**2 - found_C @ found_C) * (count**2 - gold_C @ gold_C))
    assert METRICS["matthews_correlation"](logits_NC, labels_N) == pytest.approx(expected)


def test_f1_is_of_class_one_be_it_rare_or_frequent(generator: np.random.Generator) -> None:
    labels_N = (generator.random(400) < 0.1).astype(np.int64)
    logits_NC = np.eye(2)[labels_N] + generator.normal(size=(400, 2))
    for labels, logits in ((labels_N, logits_NC), (1 - labels_N, logits_NC[:, ::-1])):
        found = logits[:, 1] > logits[:, 0]
        hits = (found & (labels == 1)).sum()
        assert METRICS["f1"](logits, labels) == pytest.approx(2 * hits / (found.sum() + labels.sum()))
    rare, frequent = METRICS["f1"](logits_NC, labels_N), METRICS["f1"](logits_NC[:, ::-1], 1 - labels_N)
    assert frequent - rare > 0.2, "the test tells the two classes apart"


def test_skewed_sets_of_labels_against_scikit_learn(generator: np.random.Generator) -> None:
    """One class nearly always there, one seldom, one never there but predicted, one neither: that one has no F1."""
    labels_NC = (generator.random((300, 4)) < [0.9, 0.1, 0.0, 0.0]).astype(np.float32)
    logits_NC = 2 * labels_NC - 1 + generator.normal(size=(300, 4))
    logits_NC[:, 3] = -1.0
    columns = [(labels_NC[:, c].astype(int), (1 / (1 + np.exp(-logits_NC[:, c])) > 0.5).astype(int)) for c in range(4)]
    one_by_one = [sk.f1_score(gold, found, zero_division=0) for gold, found in columns]
    pooled = sk.f1_score(*(np.concatenate(side) for side in zip(*columns)))
    assert abs(np.mean(one_by_one[:3]) - pooled) > 0.1 and one_by_one[2] == 0
    assert METRICS["f1_macro"](logits_NC, labels_NC) == pytest.approx(np.mean(one_by_one[:3]))
    assert METRICS["f1_micro"](logits_NC, labels_NC) == pytest.approx(pooled)


def test_a_logit_of_zero_is_no_yes_and_nothing_asked_nothing_found_scores_zero() -> None:
    nothing_NC, labels_NC = np.zeros((4, 2)), np.zeros((4, 2), np.float32)
    assert METRICS["f1_micro"](nothing_NC, labels_NC) == METRICS["f1_macro"](nothing_NC, labels_NC) == 0
    labels_NC[0, 0] = 1
    assert METRICS["f1_micro"](nothing_NC, labels_NC) == 0, "p = 1/2 is not above one half"
    # one right yes and one wrong one, one yes missed: 2 / (2 + 1 + 1)
    assert METRICS["f1_micro"](np.array([[0.1, 0.0], [-9.0, 1e-9]]), np.array([[1, 1], [0, 0]], np.float32)) == pytest.approx(0.5)
    never = np.array([0, 0, 0])
    assert METRICS["f1"](np.eye(2)[never], never) == 0 and METRICS["matthews_correlation"](np.eye(2)[never], np.array([0, 1, 0])) == 0


def test_a_skewed_regression_is_seen_otherwise_by_values_and_by_ranks(generator: np.random.Generator) -> None:
    """Many small values, few large ones, ties: Pearson by its covariance, Spearman as the covariance of mean ranks."""
    labels_N = np.round(np.exp(generator.normal(size=200) * 1.5)).astype(np.float32)
    values_N = -np.exp(-labels_N) + 0.1 * generator.normal(size=200)
    hidden_N = np.where(np.arange(200) % 4 == 0, np.nan, labels_N).astype(np.float32)
    known_N = np.arange(200) % 4 != 0

    def correlation(one_N: np.ndarray, other_N: np.ndarray) -> float:
        one_N, other_N = one_N - one_N.mean(), other_N - other_N.mean()
        return one_N @ other_N / np.sqrt((one_N @ one_N) * (other_N @ other_N))

    def mean_ranks(x_N: np.ndarray) -> np.ndarray:
        return np.array([(x_N < x).sum() + (x_N == x).sum() / 2 for x in x_N])

    found = score(["pearson", "spearmanr", "mse"], values_N[:, None], hidden_N)
    known = values_N[known_N], labels_N[known_N].astype(np.float64)
    expected = {"pearson": correlation(*known), "spearmanr": correlation(*map(mean_ranks, known)), "mse": ((known[0] - known[1]) ** 2).mean()}
    assert found == pytest.approx(expected, rel=1e-6) and abs(found["pearson"] - found["spearmanr"]) > 0.1
    constant_N = np.full(200, 2.0, np.float32)
    assert METRICS["pearson"](values_N, constant_N) == METRICS["spearmanr"](values_N, constant_N) == 0


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
