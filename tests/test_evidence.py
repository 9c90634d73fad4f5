"""Confusion, disagreements and cascade against independent counts, on logits made by hand and by chance."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from reports import make_report, system
from sklearn.metrics import accuracy_score, confusion_matrix

from adasearch import evidence
from adasearch.calibration import calibrate
from adasearch.progress import Progress
from adasearch.report_tables import confusion_tables
from adasearch.texts import Split
from adasearch.tokens import Examples, TokenStore

NAMES = ("negative", "neutral", "positive")


def logits_of(classes: list[int], sure: float = 4.0) -> np.ndarray:
    """Logits (N, 3) that choose the given classes."""
    return sure * np.eye(3, dtype=np.float32)[classes]


def test_confusion_is_scikit_learns_without_unknown_labels() -> None:
    rng = np.random.default_rng(0)
    labels_N, logits_NC = rng.integers(0, 3, 200), rng.normal(size=(200, 3))
    labels_N[:20] = -100
    found = evidence.confusion({"student": logits_NC}, labels_N, NAMES)
    assert found["labels"] == list(NAMES) and set(found) == {"labels", "student"}
    assert found["student"] == confusion_matrix(labels_N[20:], logits_NC[20:].argmax(1)).tolist()


def test_many_labels_keep_those_with_most_errors_and_every_example() -> None:
    rng = np.random.default_rng(0)
    count = 60
    labels_N = np.repeat(np.arange(count), 10)
    logits_NC = 5.0 * np.eye(count)[labels_N]
    hard = [7, 33]
    wrong_N = np.isin(labels_N, hard) & (rng.random(len(labels_N)) < 0.8)
    logits_NC[wrong_N] = 9 * np.eye(count)[np.where(labels_N[wrong_N] == 7, 33, 7)]
    found = evidence.confusion({"student": logits_NC, "teacher": logits_NC}, labels_N, [f"label {i}" for i in range(count)])
    assert len(found["labels"]) == evidence.MOST_CLASSES and found["labels"][-1] == evidence.OTHERS
    matrix = np.array(found["student"])
    assert matrix.sum() == len(labels_N) and np.trace(matrix) == (~wrong_N).sum()
    row, column = (found["labels"].index(f"label {index}") for index in hard)
    assert matrix[row, column] == (wrong_N & (labels_N == 7)).sum() > 0
    folded = np.array([name not in found["labels"] for name in (f"label {i}" for i in range(count))])
    assert found["others_right"]["student"] == (folded[labels_N] & (logits_NC.argmax(1) == labels_N)).sum()


def test_what_is_taken_for_another_of_the_folded_labels_is_not_right() -> None:
    """Two of forty labels, far from the most confused, are taken for each other: their common cell is not their recall."""
    count = evidence.MOST_CLASSES + 20
    labels_N = np.repeat(np.arange(count), 4)
    found_N = labels_N.copy()
    for shown in range(0, evidence.MOST_CLASSES - 1):  # three errors each among those that keep a row
        found_N[4 * shown : 4 * shown + 3] = (shown + 1) % (evidence.MOST_CLASSES - 1)
    found_N[-4], found_N[-8] = count - 2, count - 1
    found = evidence.confusion({"student": np.eye(count)[found_N]}, labels_N, [f"label {i}" for i in range(count)])
    assert found["labels"][-1] == evidence.OTHERS and found["student"][-1][-1] == 4 * 21 and found["others_right"] == {"student": 4 * 21 - 2}
    matrix = confusion_tables(make_report(system("student", (0.9,)), confusion=found))[0]
    assert matrix.is_folded and matrix.rows[-1][2] == pytest.approx((4 * 21 - 2) / (4 * 21))


def test_disagreements_are_the_hand_worked_ones() -> None:
    texts = ["agree", "student right", "teacher right", "neither", "unknown", "x" * 900]
    split = Split(texts, labels=np.array([0, 0, 1, 2, -100, 1]))
    student, teacher = logits_of([0, 0, 0, 0, 0, 0]), logits_of([0, 1, 1, 1, 1, 1])
    student[3] *= 2  # the surest of all
    found = evidence.disagreements(student, teacher, split, NAMES, most=3)
    assert {key: found[key] for key in ("count", "of", "student_right", "teacher_right")} == {
        "count": 4, "of": 5, "student_right": 1, "teacher_right": 2,
    }  # fmt: skip
    assert [item["text"] for item in found["examples"]][:3] == ["neither", "student right", "teacher right"]
    first = found["examples"][0]
    p = np.exp(8) / (np.exp(8) + 2)
    assert first["gold"] == "positive" and first["student"] == "negative" and first["teacher"] == "neutral"
    assert first["student_probability"] == pytest.approx(p, abs=1e-4) and "pair" not in first
    long = evidence.disagreements(student, teacher, split, NAMES, most=9)["examples"][-1]["text"]
    assert len(long) == evidence.MOST_CHARACTERS and long.endswith("…")
    assert evidence.disagreements(student, teacher, split, NAMES, most=0)["examples"] == []  # counted, no text kept


def test_pairs_are_shown_whole() -> None:
    split = Split(["premise"], ["hypothesis"], np.array([0]))
    (item,) = evidence.disagreements(logits_of([0]), logits_of([1]), split, NAMES, 5)["examples"]
    assert (item["text"], item["pair"]) == ("premise", "hypothesis")


def test_the_cascade_begins_with_the_student_and_ends_with_the_teacher() -> None:
    rng = np.random.default_rng(1)
    labels_N = rng.integers(0, 3, 300)
    student, teacher = (logits_of(labels_N.tolist(), s) + rng.normal(size=(300, 3)) * 2 for s in (2.0, 5.0))
    fitted = calibrate(student[:100], labels_N[:100], "validation")
    found = evidence.cascade(student, teacher, labels_N, "accuracy", fitted)
    assert found["temperature"] == fitted.temperature and found["fitted_on"] == 100
    curve = sorted(found["curve"], key=lambda point: point["share_escalated"])
    assert curve[0]["share_escalated"] == 0 and curve[0]["score"] == pytest.approx(accuracy_score(labels_N, student.argmax(1)))
    assert curve[-1]["share_escalated"] == 1 and curve[-1]["score"] == pytest.approx(accuracy_score(labels_N, teacher.argmax(1)))


def test_without_a_calibration_the_temperature_is_left_alone_and_that_is_said() -> None:
    labels_N = np.array([0, 1, 0, 1])
    logits = logits_of(labels_N.tolist())
    found = evidence.cascade(logits, logits, labels_N, "accuracy", None)
    assert (found["temperature"], found["fitted_on"]) == (1.0, 0)


def test_logits_are_computed_once_for_the_same_texts_and_weights(tmp_path: Path) -> None:
    calls = []

    def forward(ids: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor]:
        calls.append(len(ids))
        return (ids[:, :2].float(),)

    run = SimpleNamespace(folder=tmp_path, accelerator=Accelerator(cpu=True), progress=Progress())
    examples = Examples(TokenStore.from_lists([[3, 1], [2, 5, 7], [1, 1]]), 0)
    model = tmp_path / "model"
    model.mkdir()
    (model / "model.safetensors").write_bytes(b"these")
    first = evidence.kept_logits(run, forward, examples, "student-1-held_out", model)
    again = evidence.kept_logits(run, forward, examples, "student-1-held_out", model)
    np.testing.assert_array_equal(first, [[3, 1], [2, 5], [1, 1]])
    np.testing.assert_array_equal(again, first)
    assert calls == [3]
    evidence.kept_logits(run, forward, examples.select(np.array([0, 1])), "student-1-held_out", model)
    assert calls == [3, 2], "other texts are other logits"
    (model / "model.safetensors").write_bytes(b"those")
    evidence.kept_logits(run, forward, examples, "student-1-held_out", model)
    assert calls == [3, 2, 3], "so are other weights"
