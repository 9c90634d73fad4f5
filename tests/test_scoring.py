"""Intervals against the binomial distribution, differences against hand-counted pairs, labels against scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import precision_recall_fscore_support

from adasearch.errors import TrainingError
from adasearch.metrics import UNKNOWN
from adasearch.scoring import Confusion, Judged, judge
from adasearch.squad_metrics import METRICS_OF_QUESTIONS


def says(classes_N: np.ndarray, labels: int = 2) -> np.ndarray:
    """Logits whose largest is that of the class."""
    return np.eye(labels, dtype=np.float32)[classes_N] * 3


def flipped(labels_N: np.ndarray, *rows: int) -> np.ndarray:
    """A model's classes (two there are): wrong on these rows alone."""
    found_N = labels_N.copy()
    found_N[list(rows)] = 1 - found_N[list(rows)]
    return found_N


@pytest.mark.parametrize(("count", "wrong"), [(400, 60), (900, 30), (50, 25)])
def test_the_interval_of_an_accuracy_is_the_binomials(count: int, wrong: int) -> None:
    labels_N = np.arange(count) % 2
    board = judge([Judged("one", says(flipped(labels_N, *range(wrong))))], ["accuracy"], labels_N, ["no", "yes"])
    found, share = board.models[0].scores["accuracy"], 1 - wrong / count
    assert found.value == pytest.approx(share)
    low, high = (stats.binom.ppf(quantile, count, share) / count for quantile in (0.025, 0.975))
    assert found.low == pytest.approx(low, abs=0.15 * (high - low)) and found.high == pytest.approx(high, abs=0.15 * (high - low))


@pytest.mark.parametrize(("count", "wrong"), [(25, 0), (25, 1), (25, 25)])
def test_few_examples_leave_room_for_what_they_did_not_show(count: int, wrong: int) -> None:
    """Wilson's interval by its formula: no bootstrap of right answers alone has ever seen a wrong one."""
    labels_N = np.arange(count) % 2
    found = judge([Judged("one", says(flipped(labels_N, *range(wrong))))], ["accuracy", "f1_macro"], labels_N, ["no", "yes"]).models[0].scores
    z, share = stats.norm.ppf(0.975), 1 - wrong / count
    middle, half = share + z**2 / (2 * count), z * np.sqrt(share * (1 - share) / count + z**2 / (4 * count**2))
    bounds = (found["accuracy"].low, found["accuracy"].high)
    assert bounds == pytest.approx(((middle - half) / (1 + z**2 / count), (middle + half) / (1 + z**2 / count)))
    assert bounds[1] - bounds[0] > 0.1 and found["f1_macro"].low >= 0


def test_a_label_without_an_example_has_no_score() -> None:
    """Neither the mean of the labels' F1 nor a label's own may take what cannot be measured for a failure."""
    labels_N = np.array([0, 1] * 20)
    found = judge([Judged("one", says(labels_N, 3))], ["f1_macro"], labels_N, ["a", "b", "absent"]).models[0]
    assert found.scores["f1_macro"].value == 1.0
    absent = found.labels[2]
    assert (absent.examples, absent.precision, absent.recall, absent.f1) == (0, None, None, None)
    wrong = judge([Judged("one", says(np.full(40, 2), 3))], ["f1_macro"], labels_N, ["a", "b", "absent"]).models[0].labels
    assert (wrong[2].precision, wrong[2].recall, wrong[2].f1) == (0.0, None, 0.0) and wrong[0].precision is None


def test_examples_are_resampled_for_all_models_together() -> None:
    labels_N = np.arange(300) % 2
    first, other = Judged("first", says(flipped(labels_N, *range(40)))), Judged("other", says(flipped(labels_N, *range(40), 100, 101, 102)))
    board = judge([first, other], ["accuracy"], labels_N, ["no", "yes"])
    difference = board.differences[0].score
    assert difference.value == pytest.approx(0.01)
    # three examples part them: the number drawn of them is binomial, and never below none
    assert 0 <= difference.low <= 0.004 and difference.high == pytest.approx(stats.binom.ppf(0.975, 300, 0.01) / 300, abs=0.004)
    own = board.models[0].scores["accuracy"]
    assert difference.high - difference.low < 0.5 * (own.high - own.low), "no wider than the models differ"
    same = judge([first, first], ["accuracy"], labels_N, ["no", "yes"]).differences[0]
    assert (same.score.value, same.score.low, same.score.high, same.p_value) == (0, 0, 0, None)


def test_mcnemar_by_hand() -> None:
    labels_N = np.arange(40) % 2
    first, other = Judged("first", says(flipped(labels_N, 0, 30))), Judged("other", says(flipped(labels_N, *range(1, 10), 30)))
    found = judge([first, other], ["accuracy"], labels_N, ["no", "yes"]).differences[0]
    assert (found.other, found.only_first, found.only_other) == ("other", 9, 1)  # on example 30 both are wrong
    assert found.p_value == pytest.approx(2 * (1 + 10) / 2**10)  # 0 or 1 of 10 tosses, or 9 or 10
    assert found.score.value == pytest.approx(8 / 40)


def test_labels_confusions_and_calibration() -> None:
    generator = np.random.default_rng(0)
    labels_N = generator.integers(3, size=200)
    found_N = np.where(generator.random(200) < 0.3, (labels_N + 1) % 3, labels_N)
    found_N[:5], labels_N[:5] = 0, 2
    shares_NC = np.full((200, 3), 0.1, np.float32)
    shares_NC[np.arange(200), found_N] = 0.8
    model = judge([Judged("one", says(found_N, 3), shares_NC)], ["accuracy", "f1_macro"], labels_N, ["a", "b", "c"]).models[0]
    expected = precision_recall_fscore_support(labels_N, found_N, average=None)
    np.testing.assert_allclose([[l.precision, l.recall, l.f1, l.examples] for l in model.labels], np.stack(expected, 1))
    assert [l.label for l in model.labels] == ["a", "b", "c"]
    counts = {(gold, other): int(((labels_N == gold) & (found_N == other)).sum()) for gold in range(3) for other in range(3) if gold != other}
    (gold, other), count = max(counts.items(), key=lambda item: item[1])
    assert model.confusions[0] == Confusion("abc"[gold], "abc"[other], count)
    assert sum(c.count for c in model.confusions) == (labels_N != found_N).sum()
    assert model.calibration_error == pytest.approx(abs(0.8 - (labels_N == found_N).mean()), abs=1e-6), "one confidence, one bin"
    assert model.scores["f1_macro"].value == pytest.approx(expected[2].mean())


def test_sets_of_labels_and_numbers() -> None:
    sets_NC = np.array([[1, 0, 1], [0, 0, 0], [0, 1, 0], [1, 1, 1]] * 10, np.float32)
    right = Judged("right", np.where(sets_NC > 0, 2.0, -2.0))
    empty = Judged("empty", np.full_like(sets_NC, -1.0))
    board = judge([right, empty], ["f1_micro"], sets_NC, ["a", "b", "c"])
    assert (board.models[0].scores["f1_micro"].value, board.models[1].scores["f1_micro"].value) == (1, 0)
    assert (board.differences[0].only_first, board.differences[0].only_other) == (30, 0), "the empty sets are right in both"
    assert [label.examples for label in board.models[1].labels] == [20, 20, 20] and not board.models[1].confusions
    values_N = np.linspace(0, 1, 30, dtype=np.float32)
    board = judge([Judged("up", values_N[:, None]), Judged("down", -values_N[:, None])], ["pearson", "mse"], values_N, ["score"])
    assert board.differences[0].score.value == pytest.approx(2) and board.differences[0].only_first is None
    assert not board.models[0].labels and board.models[0].scores["mse"].value == 0


def test_the_only_tag_of_a_task_is_the_one_that_is_counted() -> None:
    tags_NC = np.array([[1], [0], [0], [0], [1]] * 2, np.float32)
    logits_NC = np.array([[2], [-2], [-2], [2], [-2]] * 2, np.float32)
    found = judge([Judged("one", logits_NC)], ["f1_micro"], tags_NC, ["toxic"]).models[0]
    assert [(s.label, s.examples, s.precision, s.recall, s.f1) for s in found.labels] == [("toxic", 4, 0.5, 0.5, 0.5)]
    assert found.scores["f1_micro"].value == 0.5


def test_examples_without_a_label_are_left_out() -> None:
    labels_N = np.array([0, 1, UNKNOWN, 1, UNKNOWN])
    board = judge([Judged("one", says(np.array([0, 1, 1, 0, 0])), np.full((5, 2), 0.5, np.float32))], ["accuracy"], labels_N, ["no", "yes"])
    assert board.examples == 3 and board.models[0].scores["accuracy"].value == pytest.approx(2 / 3)
    with pytest.raises(TrainingError, match="none of the 2 examples has a label"):
        judge([Judged("one", says(np.array([0, 1])))], ["accuracy"], np.full(2, UNKNOWN), ["no", "yes"])
    with pytest.raises(TrainingError, match="not finite"):
        judge([Judged("one", np.full((2, 2), np.nan))], ["accuracy"], np.array([0, 1]), ["no", "yes"])


def test_answers_are_scored_by_their_points() -> None:
    one = Judged("one", points={"f1": np.array([1, 0.5, 0, 1]), "exact_match": np.array([1.0, 0, 0, 1])})
    two = Judged("two", points={"f1": np.array([1, 1, 0, 0.0]), "exact_match": np.array([1.0, 1, 0, 0])})
    board = judge([one, two], METRICS_OF_QUESTIONS)
    assert {name: score.value for name, score in board.models[0].scores.items()} == {"f1": 0.625, "exact_match": 0.5}
    assert board.differences[0].score.value == pytest.approx(0.125)
    assert (board.differences[0].only_first, board.differences[0].only_other) == (1, 1)


def test_the_same_seed_gives_the_same_bounds() -> None:
    labels_N = np.arange(200) % 2
    boards = [judge([Judged("one", says(flipped(labels_N, *range(30))))], ["f1_macro"], labels_N, ["no", "yes"], seed) for seed in (1, 1, 2)]
    bounds = [(board.models[0].scores["f1_macro"].low, board.models[0].scores["f1_macro"].high) for board in boards]
    assert bounds[0] == bounds[1] != bounds[2]


def test_an_interval_holds_its_score_where_resamples_lack_labels() -> None:
    generator = np.random.default_rng(0)
    labels_N = generator.integers(500, size=500)
    found_N = np.where(generator.random(500) < 0.2, generator.integers(500, size=500), labels_N)
    model = judge([Judged("one", says(found_N, 500))], ["f1_macro", "accuracy"], labels_N, [str(n) for n in range(500)]).models[0]
    for score in model.scores.values():
        assert score.low < score.value < score.high < 1
    right = judge([Judged("one", says(labels_N, 500))], ["f1_macro"], labels_N, [str(n) for n in range(500)]).models[0]
    assert right.scores["f1_macro"].high == 1
