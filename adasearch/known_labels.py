"""Files of texts for a model that is trained already: its labels are known, so none has to be guessed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adasearch.errors import DataError
from adasearch.labels import Schema, read_labels
from adasearch.metrics import is_known
from adasearch.tables import Table, read_lines, read_table
from adasearch.tasks import Task
from adasearch.texts import Split


HF_PROBLEM_TYPES = {
    "single_label": "single_label_classification",
    "multi_label": "multi_label_classification",
    "regression": "regression",
}


@dataclass(frozen=True)
class Columns:
    """Names of the columns of texts, of second texts and of labels."""

    text: str = "text"
    pair: str | None = None
    label: str = "label"


def label_settings(task: Task) -> dict[str, Any]:
    """What a Hugging Face model's configuration says of a task's labels; ``labels_of`` reads it back."""
    names = task.label_names
    return {
        "num_labels": task.num_labels,
        "id2label": dict(enumerate(names)),
        "label2id": {name: index for index, name in enumerate(names)},
        "problem_type": HF_PROBLEM_TYPES[task.problem_type],
    }


def labels_of(model_config: Any) -> tuple[str, tuple[str, ...]]:
    """Problem type and label names of a Hugging Face model's configuration; one output without a type is a regression."""
    names = tuple(str(model_config.id2label[index]) for index in range(model_config.num_labels))
    declared = model_config.problem_type or ("regression" if len(names) == 1 else "single_label_classification")
    return declared.removesuffix("_classification"), names


def places_of(names: Sequence[str], theirs: Sequence[str]) -> list[int] | None:
    """Where the labels ``names`` stand among another model's; None where it knows other labels.

    Upper and lower case count only where they alone tell labels apart. Numbers and LABEL_0, LABEL_1, ... are no names and say
    nothing: such labels meet the others by number.
    """
    count = len(names)
    if len(theirs) != count:
        return None
    for told_apart in (str, str.casefold):
        ours, others = ([told_apart(name) for name in given] for given in (names, theirs))
        if sorted(others) == sorted(ours) and len(set(ours)) == count:
            return [others.index(name) for name in ours]
    nameless = [[f"{pattern}{number}" for number in range(count)] for pattern in ("", "LABEL_")]
    return list(range(count)) if any(list(some) in nameless for some in (names, theirs)) else None


def read_texts(path: Path, setting: str, columns: Columns) -> Split:
    """Texts, one a line of a txt file or those of a table; ``setting`` is the flag that named the file.

    Raises ``ConfigError`` and ``DataError``; a bad row refuses the file.
    """
    if (lines := read_lines(path, setting, is_pair=bool(columns.pair))) is not None:
        return Split(lines)
    table = read_table(path, setting)
    return _good(table, _texts(table, columns))


def read_examples(path: Path, setting: str, problem_type: str, names: tuple[str, ...], columns: Columns) -> Split:
    """Labelled examples of a task that is known: labels are names, or numbers where no name is a number.

    Raises ``ConfigError`` and ``DataError`` naming file, column and rows; a bad row refuses the file.
    """
    table = read_table(path, setting)
    split = _texts(table, columns)
    is_numbered = not any(name.strip("+-").replace(".", "", 1).isdigit() for name in names)
    schema = Schema(problem_type, names, has_gold=True, is_numbered=is_numbered)
    classes = table.class_names.get(columns.label, ())
    if set(classes) == set(names):  # numbers that carry names, in an order of their own
        table.columns[columns.label] = [_named(value, classes) for value in table.columns[columns.label]]
    split.labels = read_labels(table, columns.label, schema, may_be_missing=False)
    split = _good(table, split)
    if not is_known(split.labels).any():
        raise DataError(f"{path}: column {columns.label!r}: no example has a label")
    return split


def _named(value: Any, classes: Sequence[str]) -> Any:
    if isinstance(value, (list, tuple)):
        return [_named(one, classes) for one in value]
    return classes[value] if isinstance(value, int) and 0 <= value < len(classes) else value


def _texts(table: Table, columns: Columns) -> Split:
    pairs = table.texts(columns.pair, "text_pair_column") if columns.pair else None
    return Split(table.texts(columns.text, "text_column"), pairs)


def _good(table: Table, split: Split) -> Split:
    return split.select(table.good_rows(skip_bad_rows=False, notes=[], advice="Mend them"))
