"""What the held-out examples say one by one: what is taken for what, where student and teacher part, what a cascade gains.

All of it comes from logits that are computed once and kept in the run's cache. Single-label tasks only: elsewhere there
is no one class to be right or wrong about.

Dimensions: N examples, C labels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.special import softmax

from adasearch.calibration import Calibration
from adasearch.cascade import cascade_curve
from adasearch.files import fingerprint
from adasearch.metrics import UNKNOWN
from adasearch.outputs import Forward, cached_outputs
from adasearch.texts import Split
from adasearch.tokens import Examples

if TYPE_CHECKING:
    from adasearch.pipeline import Run

MOST_CLASSES = 20  # rows of a confusion matrix; of more labels the most confused are shown, the others together
MOST_CHARACTERS = 400  # of a text in the report
OTHERS = "all others"


def kept_logits(run: Run, forward: Forward, examples: Examples, name: str, model_dir: Path) -> np.ndarray:
    """Logits of all examples, (N, C) float32, computed once: ``cache/logits-<name>-<fingerprint>.npy``.

    ``name`` says model and split for people; the fingerprint is of the texts and of the weights in ``model_dir``, where
    they lie there (a teacher that was not fine-tuned here lies elsewhere, and does not change in a run's life).
    """
    store = examples.tokens
    file = f"logits-{name}-{fingerprint(store.ids, store.offsets, *sorted(Path(model_dir).glob('*.safetensors')))}"
    title = f"score {name.replace('_', ' ')}"
    folder = Path(run.folder) / "cache"
    return cached_outputs(forward, examples, folder, (file,), run.accelerator, run.progress, title, is_mixed=False)[0]


def confusion(logits: Mapping[str, np.ndarray], labels_N: np.ndarray, names: Sequence[str]) -> dict[str, Any]:
    """Counts of (gold label, predicted label) by kind of system, with the ``labels`` of rows and columns.

    Of more than ``MOST_CLASSES`` labels the ones that take part in most errors keep a row; the rest share the last, and how many
    examples of theirs are right is under ``others_right`` by kind: in their common cell stand those that were taken for another of them, too.
    """
    known_N = labels_N != UNKNOWN
    matrices = {}
    for kind, logits_NC in logits.items():
        counts_CC = np.zeros((len(names), len(names)), np.int64)
        np.add.at(counts_CC, (labels_N[known_N], np.asarray(logits_NC)[known_N].argmax(1)), 1)
        matrices[kind] = counts_CC
    shown, right = list(names), {}
    if len(names) > MOST_CLASSES:
        errors_CC = sum(counts - np.diag(np.diag(counts)) for counts in matrices.values())
        worst = np.sort(np.argsort(-(errors_CC.sum(0) + errors_CC.sum(1)), kind="stable")[: MOST_CLASSES - 1])
        group_C = np.full(len(names), len(worst))  # old class -> row
        group_C[worst] = np.arange(len(worst))
        fold = np.eye(len(worst) + 1, dtype=np.int64)[group_C]
        right = {kind: int(np.diag(counts)[group_C == len(worst)].sum()) for kind, counts in matrices.items()}
        matrices = {kind: fold.T @ counts @ fold for kind, counts in matrices.items()}
        shown = [names[index] for index in worst] + [OTHERS]
    return {"labels": shown, **{kind: counts.tolist() for kind, counts in matrices.items()}, **({"others_right": right} if right else {})}


def disagreements(
    student_NC: np.ndarray, teacher_NC: np.ndarray, split: Split, names: Sequence[str], most: int
) -> dict[str, Any]:
    """Where student and teacher choose different classes: how often, who is right, and at most ``most`` examples.

    The surest first, by the product of the two probabilities (softmax of the logits as they are, not calibrated).
    """
    known_N = split.labels != UNKNOWN
    p_student_NC, p_teacher_NC = softmax(np.asarray(student_NC, np.float64), 1), softmax(np.asarray(teacher_NC, np.float64), 1)
    student_N, teacher_N, gold_N = p_student_NC.argmax(1), p_teacher_NC.argmax(1), split.labels
    rows = np.flatnonzero(known_N & (student_N != teacher_N))
    sure = p_student_NC[rows, student_N[rows]] * p_teacher_NC[rows, teacher_N[rows]]
    examples = [
        {
            "text": _cut(split.texts[row]),
            **({} if split.pairs is None else {"pair": _cut(split.pairs[row])}),
            "gold": names[gold_N[row]],
            "student": names[student_N[row]],
            "student_probability": round(float(p_student_NC[row, student_N[row]]), 4),
            "teacher": names[teacher_N[row]],
            "teacher_probability": round(float(p_teacher_NC[row, teacher_N[row]]), 4),
        }
        for row in rows[np.argsort(-sure, kind="stable")][:most]
    ]
    student_right, teacher_right = (int((who[rows] == gold_N[rows]).sum()) for who in (student_N, teacher_N))
    return {
        "count": len(rows), "of": int(known_N.sum()), "student_right": student_right, "teacher_right": teacher_right,
        "examples": examples,
    }  # fmt: skip


def _cut(text: str) -> str:
    return text if len(text) <= MOST_CHARACTERS else text[: MOST_CHARACTERS - 1].rstrip() + "…"


def cascade(
    student_NC: np.ndarray, teacher_NC: np.ndarray, labels_N: np.ndarray, metric: str, calibration: Calibration | None
) -> dict[str, Any]:
    """The score when the student hands what it is unsure of to its teacher, by the share handed over.

    ``calibration`` is the student's; without one its temperature stays at 1, and ``fitted_on`` at 0.
    """
    temperature, fitted_on = (1.0, 0) if calibration is None else (calibration.temperature, calibration.examples)
    curve = cascade_curve(student_NC, teacher_NC, labels_N, metric, temperature=temperature)
    return {"temperature": temperature, "fitted_on": fitted_on, "curve": curve}
