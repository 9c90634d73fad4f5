"""The cascade's curve against counting by hand, and the cascade at work against its two models alone."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tiny_classifier import TEXTS, make_classifier

from adasearch.cascade import Cascade, cascade_curve, check_cascade, choose_threshold
from adasearch.classifier import TextClassifier
from adasearch.errors import ConfigError, ModelError
from adasearch.known_labels import places_of


def problem(count: int = 400) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A student that is often wrong where it is unsure, a teacher that is seldom wrong, labels."""
    rng = np.random.default_rng(0)
    labels_N = rng.integers(0, 3, count)
    gold_NC = np.eye(3)[labels_N]
    return gold_NC * 2 + rng.normal(size=(count, 3)) * 1.5, gold_NC * 4 + rng.normal(size=(count, 3)), labels_N


def test_the_curve_is_what_counting_gives() -> None:
    student_NC, teacher_NC, labels_N = problem()
    curve = cascade_curve(student_NC, teacher_NC, labels_N, "accuracy", temperature=2.0, points=5)
    scaled_NC = np.exp(student_NC / 2.0)
    confidence_N = (scaled_NC / scaled_NC.sum(axis=1, keepdims=True)).max(axis=1)
    order = np.argsort(confidence_N)
    for point, count in zip(curve, [0, 100, 200, 300, 400], strict=True):
        answers_N = student_NC.argmax(axis=1)
        answers_N[order[:count]] = teacher_NC.argmax(axis=1)[order[:count]]
        assert point["share_escalated"] == count / 400
        assert point["score"] == pytest.approx((answers_N == labels_N).mean())
        assert (confidence_N.astype(np.float32) < point["threshold"]).sum() == count
    assert json.loads(json.dumps(curve)) == curve


def test_the_ends_are_the_models_alone_for_any_metric() -> None:
    student_NC, teacher_NC, labels_N = problem()
    curve = cascade_curve(student_NC, teacher_NC, labels_N, "matthews_correlation")
    alone = [cascade_curve(one, one, labels_N, "matthews_correlation")[3]["score"] for one in (student_NC, teacher_NC)]
    assert [curve[0]["score"], curve[-1]["score"]] == alone and len(curve) == 21
    assert (curve[0]["share_escalated"], curve[-1]["share_escalated"]) == (0, 1)


def test_equally_sure_texts_go_together_and_unlabelled_ones_do_not_count() -> None:
    labels_N = np.array([0, 0, 1, -100])
    same_NC = np.array([[2.0, 0.0]] * 3 + [[0.0, 9.0]])
    curve = cascade_curve(same_NC, -same_NC, labels_N, "accuracy", points=4)
    assert [point["share_escalated"] for point in curve] == [0, 0, 0, 1]  # no threshold parts them
    assert [point["score"] for point in curve] == [2 / 3, 2 / 3, 2 / 3, 1 / 3]


def test_the_cheapest_threshold_that_is_good_enough() -> None:
    shares, scores = (0.0, 0.25, 0.5, 1.0), (0.80, 0.88, 0.91, 0.90)
    curve = [{"threshold": t, "share_escalated": t, "score": s} for t, s in zip(shares, scores)]
    assert [choose_threshold(curve, target) for target in (0.5, 0.85, 0.9, 0.91)] == [0.0, 0.25, 0.5, 0.5]
    with pytest.raises(ConfigError, match="no threshold scores 0.9200; the best is 0.9100, with 50%"):
        choose_threshold(curve, 0.92)


@pytest.mark.parametrize(
    ("labels", "metric", "says"),
    [
        (np.zeros(4), "accuracy", "one class number a text"),
        (np.zeros((4, 2), dtype=int), "accuracy", "one class number a text"),
        (np.zeros(4, dtype=int), "pearson", "choices: accuracy, f1"),
        (np.zeros(4, dtype=int), "accurcy", "metric 'accurcy'"),
        (np.zeros(3, dtype=int), "accuracy", "different shapes"),
    ],
)
def test_what_has_no_curve_is_refused(labels: np.ndarray, metric: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        cascade_curve(np.zeros((4, 2)), np.zeros((4, 2)), labels, metric)


@pytest.mark.parametrize(
    ("threshold", "share", "says"),
    [(None, None, "needs one of the two"), (0.5, 0.5, "needs one of the two"), (1.5, None, "cascade_threshold: 1.5"),
     (None, -0.1, "cascade_share: -0.1 is out of range; choices: 0 to 1")],
)  # fmt: skip
def test_one_rule_is_needed(threshold: float | None, share: float | None, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        check_cascade(threshold, share)


def test_every_threshold_of_a_curve_can_be_asked_for() -> None:
    """Of a student that is wholly sure of a text the one that sends all away is above 1."""
    logits, teacher = np.array([[200.0, 0], [0, 1]]), np.array([[0, 200.0], [1, 0]])
    curve = cascade_curve(logits, teacher, np.array([1, 0]), "accuracy", points=3)
    assert (threshold := choose_threshold(curve, 1.0)) > 1
    check_cascade(threshold, None)
    with pytest.raises(ConfigError, match="^cascade_threshold: none given, and a teacher needs one; choices: --cascade_threshold 0.9 [^,]*$"):
        check_cascade(None, None, has_share=False)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[TextClassifier, TextClassifier]:
    """A student, and a teacher whose classes stand in another order."""
    folder = tmp_path_factory.mktemp("models")
    make_classifier(folder / "student")
    make_classifier(folder / "teacher")
    path = folder / "teacher" / "config.json"
    names = {"0": "pos", "1": "neg", "2": "neu"}
    config = json.loads(path.read_text()) | {"id2label": names, "label2id": {name: int(key) for key, name in names.items()}}
    path.write_text(json.dumps(config))
    return TextClassifier(folder / "student", runtime="torch"), TextClassifier(folder / "teacher", runtime="torch")


def test_each_answers_its_part(models: tuple[TextClassifier, TextClassifier]) -> None:
    student, teacher = models
    first, second = student.answer(TEXTS), teacher.answer(TEXTS)
    confidence_N = first.probabilities_NC.max(axis=1)
    order = np.argsort(confidence_N)
    heard: list[int] = []
    for cascade in (Cascade(student, teacher, threshold=float(confidence_N[order[3]])), Cascade(student, teacher, share=3 / 7)):
        answers = cascade.answer(TEXTS, None, heard.append)
        assert set(np.flatnonzero(answers.is_escalated_N)) == set(order[:3])
        for row, is_escalated in enumerate(answers.is_escalated_N):
            expected = second if is_escalated else first
            assert answers.predictions[row] == expected.predictions[row]
            named = dict(zip(student.labels, answers.probabilities_NC[row]))
            by_name = dict(zip((teacher if is_escalated else student).labels, expected.probabilities_NC[row]))
            assert named == pytest.approx(by_name, abs=1e-6)
            assert max(named, key=named.get) == answers.predictions[row]
    assert heard == [4, 7, 4, 7]


def test_what_the_teacher_read_whole_is_not_cut(models: tuple[TextClassifier, TextClassifier], monkeypatch: pytest.MonkeyPatch) -> None:
    student, teacher = models
    monkeypatch.setattr(student, "limit", 4)
    assert student.answer(TEXTS).cut and not teacher.answer(TEXTS).cut
    answers = Cascade(student, teacher, share=0.5).answer(TEXTS)
    expected_N = student.answer(TEXTS).is_cut_N & ~answers.is_escalated_N
    assert answers.is_cut_N.tolist() == expected_N.tolist() != student.answer(TEXTS).is_cut_N.tolist()


def test_nobody_and_everybody(models: tuple[TextClassifier, TextClassifier]) -> None:
    student, teacher = models
    nobody, everybody = (Cascade(student, teacher, share=share).answer(TEXTS) for share in (0.0, 1.0))
    assert nobody.predictions == student.answer(TEXTS).predictions and not nobody.is_escalated_N.any()
    assert everybody.predictions == teacher.answer(TEXTS).predictions and everybody.is_escalated_N.all()
    assert Cascade(student, teacher, share=0.5).answer([]).predictions == []


def test_a_teacher_of_another_task_is_refused(models: tuple[TextClassifier, TextClassifier], tmp_path: Path) -> None:
    other = TextClassifier(make_classifier(tmp_path / "other", labels=2), runtime="torch")
    with pytest.raises(ModelError, match="knows other labels \\(neg, neu\\) than the student \\(neg, neu, pos\\)"):
        Cascade(models[0], other, threshold=0.5)
    many = TextClassifier(make_classifier(tmp_path / "many", "multi_label_classification"), runtime="torch")
    with pytest.raises(ModelError, match="the teacher is for multi_label_classification"):
        Cascade(models[0], many, threshold=0.5)


@pytest.mark.parametrize("pattern", ["{}", "LABEL_{}"])
def test_classes_without_names_stand_in_the_same_order(
    models: tuple[TextClassifier, TextClassifier], tmp_path: Path, pattern: str
) -> None:
    folder = make_classifier(tmp_path / "nameless")
    config = json.loads((folder / "config.json").read_text())
    config |= {"id2label": {str(n): pattern.format(n) for n in range(3)}, "label2id": {pattern.format(n): n for n in range(3)}}
    (folder / "config.json").write_text(json.dumps(config))
    teacher = TextClassifier(folder, runtime="torch")
    answers = Cascade(models[0], teacher, share=1.0).answer(TEXTS)
    assert answers.predictions == [models[0].labels[index] for index in teacher.answer(TEXTS).logits_NC.argmax(axis=1)]


def test_names_in_capitals_are_the_same_names_where_that_is_clear(models: tuple[TextClassifier, TextClassifier], tmp_path: Path) -> None:
    """As when a model is loaded to teach. Names that differ in nothing else are not mixed up."""
    folder = make_classifier(tmp_path / "loud")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"id2label": {"0": "POS", "1": "Neg", "2": "neu"}}))
    teacher = TextClassifier(folder, runtime="torch")
    answers = Cascade(models[0], teacher, share=1.0).answer(TEXTS)
    assert answers.predictions == [["pos", "neg", "neu"][index] for index in teacher.answer(TEXTS).logits_NC.argmax(axis=1)]
    assert places_of(("us", "US"), ("US", "us")) == [1, 0] and places_of(("us", "US"), ("Us", "uS")) is None


@pytest.mark.parametrize(
    ("student", "teacher", "both"), [(None, None, None), (None, True, True), (None, False, False), (False, None, False), (True, True, True)]
)
def test_either_model_may_know_whether_it_reads_pairs(
    student: bool | None, teacher: bool | None, both: bool | None, models: tuple[TextClassifier, TextClassifier], monkeypatch: pytest.MonkeyPatch
) -> None:
    for model, is_pair in zip(models, (student, teacher)):
        monkeypatch.setattr(model, "is_pair", is_pair)
    assert Cascade(*models, share=0.5).is_pair is both
