"""Labels: guessed or declared, read out of a table's columns and checked row by row; gold, soft or both.

Dimensions: N examples, C labels.
"""

from __future__ import annotations

import dataclasses
import math
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from adasearch.errors import ConfigError, DataError
from adasearch.metrics import UNKNOWN, is_known
from adasearch.sources import Source
from adasearch.tables import SHOWN_ROWS, Table
from adasearch.task_config import TaskConfig
from adasearch.texts import Split

SOFT_SUM_TOLERANCE = 1e-3
FEWEST_DIGITS = 2  # what is written with fewer is no rounded probability
SHOWN_NAMES = 20  # in error messages
MOST_DIGITS = 300  # of a whole number: with more it is an id, which no float holds, and int() reads no more than 4,300
LARGEST = float(np.finfo(np.float32).max)  # that a regression can learn
NUMBER = re.compile(r"[+-]?(0|[1-9]\d*|(?=\.\d))(\.\d*)?([eE][+-]?\d+)?")  # "007" stays a name


@dataclass
class Schema:
    """How labels are read: the problem, the names in order, and the soft-label column of each name."""

    problem_type: str
    names: tuple[str, ...]
    has_gold: bool
    is_numbered: bool = False  # integers are the labels' numbers (presets, class labels), not their names
    soft_columns: tuple[str, ...] = ()
    are_codes: bool = False  # what stands in a csv cell is the label's name letter by letter, 1E3 and 1000 are two


def read_schema(train: Table, source: Source, config: TaskConfig, notes: list[str]) -> Schema:
    """What the training table's labels are. Rows whose label is of another type than the most are rejected; rows that are already do not count.

    What was guessed is added to ``notes``. Raises ``ConfigError`` or ``DataError`` when columns and problem do not fit.
    """
    soft = tuple(config.soft_label_columns or ())
    for column in soft:
        train.column(column, "soft_label_columns")
    place = f"{train.where}: column {source.label!r}"
    if soft and source.label not in train.columns and source.label == TaskConfig.label_column:
        if config.problem_type == "regression":
            raise ConfigError("soft_label_columns: probabilities cannot be the labels of a regression")
        return _soft_schema(soft, config, f"{train.where}: no column {source.label!r}", notes)
    names = source.preset.label_names if source.preset else train.class_names.get(source.label)
    declared = config.problem_type or (source.preset.problem_type if source.preset else None)
    cells = [None if row in train.bad else cell for row, cell in enumerate(train.column(source.label, "label_column"))]
    values = [_plain(cell, train.is_typed) for cell in cells]
    if soft and not _kinds(values) and config.problem_type != "regression":
        return _soft_schema(soft, config, f"{place} is empty", notes)
    problem_type = declared or _guess(values, is_named=names is not None)
    if problem_type == "regression":
        if soft:
            raise ConfigError("soft_label_columns: not for a regression; problem_type choices: single_label, multi_label")
        return Schema(problem_type, ("score",), True)
    if are_codes := not train.is_typed and any(map(_has_exponent, cells)):
        values = [_plain(cell, is_typed=True) for cell in cells]
    is_numbered = names is not None
    if names is None:
        names = _tag_names(values, place) if problem_type == "multi_label" else _class_names(values, train, source.label)
    if declared is None and not is_numbered:
        seen = f" with {_say_counts(values)}" if problem_type == "single_label" else ""
        notes.append(f"{place}: taken for {problem_type}{seen}; problem_type overrules it")
    if soft:
        names, soft = _match_soft(names, soft, source.label, train.where, notes, may_grow=not is_numbered)
    return Schema(problem_type, names, True, is_numbered, soft, are_codes)


def _soft_schema(soft: tuple[str, ...], config: TaskConfig, why: str, notes: list[str]) -> Schema:
    """The schema of soft labels alone."""
    notes.append(f"{why}: the likeliest soft label stands in for it")
    return Schema(config.problem_type or "single_label", _strip_prefix(soft), False, soft_columns=soft)


def _tag_names(values: Sequence[Any], place: str) -> tuple[str, ...]:
    """The names of multi-label tags; refuses lists of another form."""
    _refuse_other_lists(values, place)
    return _sorted_names({str(tag) for value in values for tag in _tags(value) if _kind(tag) in ("text", "number")})


def _class_names(values: Sequence[Any], train: Table, column: str) -> tuple[str, ...]:
    """The names of classes: texts or numbers, whichever most labels are; rows of the other kind are rejected."""
    usual = _usual(_kinds(values))
    if usual not in ("text", "number", "missing"):
        raise DataError(f"{train.where}: column {column!r}: labels are a {usual}; expected: texts or numbers")
    for row, value in enumerate(values):
        if _kind(value) not in (usual, "missing"):
            train.reject(row, column, f"{value!r} is a {_kind(value)} where most labels are a {usual}")
    return _sorted_names({value for value in values if _kind(value) == usual})


def has_labels(table: Table, column: str) -> bool:
    """Whether a column is there and holds anything."""
    return any(_kind(_plain(value, table.is_typed)) != "missing" for value in table.columns.get(column, ()))


def read_labels(table: Table, column: str, schema: Schema, *, may_be_missing: bool) -> np.ndarray:
    """Gold labels as ``Split`` has them; a row whose label cannot be read is rejected."""
    values = [_plain(value, table.is_typed or schema.are_codes) for value in table.column(column, "label_column")]
    numbers = {name: number for number, name in enumerate(schema.names)}
    shown = [f"{i} = {name}" if schema.is_numbered else name for i, name in enumerate(schema.names[:SHOWN_NAMES])]
    known = f"known: {', '.join(shown)}{', ...' if len(schema.names) > SHOWN_NAMES else ''}"

    def number(value: Any) -> int | None:
        if schema.is_numbered and isinstance(value, int):
            return value if 0 <= value < len(schema.names) else None
        return numbers.get(str(value))

    is_single = schema.problem_type == "single_label"
    shape = (len(values), len(schema.names)) if schema.problem_type == "multi_label" else (len(values),)
    labels = np.full(shape, UNKNOWN, dtype=np.int64) if is_single else np.full(shape, np.nan, dtype=np.float32)
    for row, value in enumerate(values):
        if _kind(value) == "missing" and not (schema.problem_type == "multi_label" and value == ""):
            if not may_be_missing:
                table.reject(row, column, "no label")
        elif schema.problem_type == "regression":
            if (is_number := _kind(value) == "number") and abs(value) <= LARGEST:
                labels[row] = value
            else:
                wrong = "too large for float32" if is_number and math.isfinite(value) else "not a finite number"
                table.reject(row, column, f"label {value!r} is {wrong}")
        else:
            tags = [value] if is_single else _tags(value)
            unknown = [tag for tag in tags if number(tag) is None]
            if unknown:
                table.reject(row, column, f"unknown label {unknown[0]!r}; {known}")
            elif is_single:
                labels[row] = number(value)
            else:
                labels[row] = 0
                labels[row, [number(tag) for tag in tags]] = 1
    return labels


def read_soft_labels(table: Table, schema: Schema) -> np.ndarray:
    """Probabilities (N, C) float32: finite, from 0, and in single-label tasks with sum 1.

    Rounding moves a sum by up to half a unit of the last digit for each label; what is off by no more is divided by its sum. Raises ``DataError`` where most rows have less: not they are wrong, but the choice of columns.
    """
    soft_NC = np.zeros((len(table.numbers), len(schema.soft_columns)), dtype=np.float32)
    for c, column in enumerate(schema.soft_columns):
        for row, value in enumerate(table.column(column, "soft_label_columns")):
            try:
                soft_NC[row, c] = probability = float(value)
            except (TypeError, ValueError, OverflowError):
                table.reject(row, column, f"soft label {value!r} is not a number")
                continue
            if not 0 <= probability <= 1 + SOFT_SUM_TOLERANCE:
                table.reject(row, column, f"soft label {value!r} is not a probability; choices: 0 to 1")
    if schema.problem_type == "single_label":
        read_N = np.array([row not in table.bad for row in range(len(soft_NC))], dtype=bool)  # the sum of what is no number says nothing
        sums_N = soft_NC.sum(axis=1)
        tolerance = max(SOFT_SUM_TOLERANCE, len(schema.soft_columns) * _half_unit(table, schema.soft_columns))
        short = np.flatnonzero(read_N & (sums_N < 1 - tolerance))
        if len(short) > read_N.sum() / 2:
            raise DataError(
                f"{table.where}: soft_label_columns: {', '.join(schema.soft_columns)}: in {len(short)} of {read_N.sum()} rows they sum to less"
                f" than 1 ({table.unit} {table.numbers[short[0]]}: {sums_N[short[0]]:.4g}); is a label's column missing in soft_label_columns?"
            )
        for row in np.flatnonzero(read_N & ~(np.abs(sums_N - 1) <= tolerance)):
            table.reject(int(row), "+".join(schema.soft_columns), f"the soft labels sum to {sums_N[row]:.4g}, not 1")
        rounded_N = (np.abs(sums_N - 1) > SOFT_SUM_TOLERANCE) & (np.abs(sums_N - 1) <= tolerance)
        soft_NC[rounded_N] /= sums_N[rounded_N, None]
    return soft_NC


def likeliest(soft_NC: np.ndarray, problem_type: str) -> np.ndarray:
    """The labels that soft ones stand for where there are no gold ones: (N,) int64, in multi-label tasks (N, C) float32 of 0 and 1."""
    return soft_NC.argmax(axis=1) if problem_type == "single_label" else (soft_NC > 0.5).astype(np.float32)


def _half_unit(table: Table, columns: Sequence[str]) -> float:
    """Half of the last digit that the columns' numbers are written with, as far as it shows: 0.005 of 0.93, 0.05 and 0.9."""
    texts = (str(value).strip().lower() for column in columns for value in table.columns[column])
    digits = max((17 if "e" in text else len(text.partition(".")[2]) for text in texts), default=0)
    return 0.5 * 10.0 ** -max(digits, FEWEST_DIGITS)


def _match_soft(
    names: tuple[str, ...], soft: tuple[str, ...], label: str, where: str, notes: list[str], *, may_grow: bool
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Label names and, in their order, the soft-label columns: matched by name where they agree, else by position.

    With ``may_grow`` a column may stand for a label that no training example has.
    """
    for soft_names in (soft, _strip_prefix(soft)):
        if set(names) <= set(soft_names) and (may_grow or len(names) == len(soft_names)):
            ordered = names if len(names) == len(soft_names) else _sorted_names(set(soft_names))
            return ordered, tuple(soft[soft_names.index(name)] for name in ordered)
    if len(names) != len(soft):
        labels = f"the {len(names)} labels of column {label!r} ({', '.join(names)})"
        raise ConfigError(f"soft_label_columns: {len(soft)} columns ({', '.join(soft)}) for {labels}")
    notes.append(f"{where}: soft labels matched by position: {', '.join(f'{c} = {n}' for c, n in zip(soft, names))}")
    return names, soft


def text_columns(table: Table) -> list[str]:
    """The columns that hold texts: strings or nothing, and in csv not numbers alone."""
    names = []
    for name, values in table.columns.items():
        kinds = {_kind(_plain(value, table.is_typed)) for value in values}
        if "text" in kinds and kinds <= {"text", "missing", *(() if table.is_typed else ("number",))}:
            names.append(name)
    return names


def drop_single(splits: dict[str, Split], schema: Schema, notes: list[str]) -> Schema:
    """The schema without those classes of which training has one example; in place ``splits`` without their examples.

    Where most labels are of that kind nothing is dropped: they are no classes.
    """
    if schema.problem_type != "single_label" or splits["train"].soft_labels is not None:
        return schema
    few = _single_labels(splits["train"], schema)
    if not few or _are_texts(few, schema):
        return schema
    kept = np.setdiff1d(np.arange(len(schema.names)), few)
    for name, split in splits.items():
        split = splits[name] = split.select(np.flatnonzero(np.isin(split.labels, kept)))
        split.labels = np.searchsorted(kept, split.labels)
    notes.append(f"left out: {_say_single(few, schema)}")
    return dataclasses.replace(schema, names=tuple(schema.names[number] for number in kept))


def _single_labels(train: Split, schema: Schema) -> list[int]:
    """Numbers of the labels of which there is one example."""
    labels = train.labels[is_known(train.labels)]
    counts_C = np.bincount(labels, minlength=len(schema.names)) if schema.problem_type == "single_label" else labels.sum(axis=0)
    return np.flatnonzero(counts_C == 1).tolist()


def _are_texts(few: list[int], schema: Schema) -> bool:
    return schema.problem_type == "single_label" and len(few) > len(schema.names) / 2


def _say_single(few: list[int], schema: Schema) -> str:
    return f"{len(few)} of {len(schema.names)} labels have one example only: {', '.join(schema.names[number] for number in few[:SHOWN_ROWS])}"


def check_learnable(train: Split, schema: Schema, source: Source, notes: list[str], *, holds_out: bool = True) -> None:
    """Raise ``DataError`` when the training labels hold one value only, or one example of a class though some are to be held out."""
    column = source.label if schema.has_gold else "+".join(schema.soft_columns)
    place = f"{source.tables['train'].where}: column {column!r}"
    labels = train.labels[is_known(train.labels)]
    if len(train) < 2:
        raise DataError(f"{place}: {len(train)} example; at least two are needed")
    if not schema.names or (schema.problem_type == "multi_label" and len(labels) and not labels.any()):
        raise DataError(f"{place}: no label in {len(labels)} examples; at least one is needed")
    if schema.problem_type != "multi_label" and len(labels) and np.all(labels == labels[0]):
        is_value = schema.problem_type == "regression"
        only = f"value, {labels[0]:g}," if is_value else f"class, {schema.names[labels[0]]!r},"
        raise DataError(f"{place}: only one {only} in {len(labels)} examples; at least two are needed")
    if schema.problem_type == "regression":
        return
    few = _single_labels(train, schema)
    if few and holds_out and schema.problem_type == "single_label" and train.soft_labels is None:
        amounts = "; if they are amounts: problem_type regression" if all(NUMBER.fullmatch(schema.names[number]) for number in few) else ""
        if _are_texts(few, schema):
            counted = f"{len(few)} of {len(schema.names)} values stand in one row only"
            raise DataError(f"{place}: {counted}: it looks like a text column; label_column?{amounts}")
        raise DataError(
            f"{place}: {_say_single(few, schema)}; each needs two, one of which is held out{amounts}; choices: more examples,"
            " --skip_bad_rows to leave them out, or a validation_file"
        )
    if few:
        notes.append(f"{place}: {_say_single(few, schema)}")


def _plain(value: Any, is_typed: bool) -> Any:
    """A label as None, str, int, float or tuple: numbers are read out of csv, whole floats become ints, bools names."""
    if isinstance(value, (list, tuple)):
        return tuple(_plain(element, is_typed) for element in value)
    if isinstance(value, bool):
        return str(value)
    if isinstance(value, str):
        value = value.strip()
        if is_typed or len(value) > MOST_DIGITS or not NUMBER.fullmatch(value):
            return value
        value = float(value) if set(value) & set(".eE") else int(value)
    if isinstance(value, int):
        return value if abs(value) < 10**MOST_DIGITS else str(value)
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _kind(value: Any) -> str:
    if value is None or value == "" or (isinstance(value, float) and math.isnan(value)):
        return "missing"
    kinds = {str: "text", int: "number", float: "number", tuple: "list"}
    return kinds.get(type(value), type(value).__name__)


def _has_exponent(cell: Any) -> bool:
    """Whether a cell of text could be a number such as 1E3; labels of that form are as likely to be codes."""
    return isinstance(cell, str) and bool({"e", "E"} & set(cell)) and NUMBER.fullmatch(cell.strip()) is not None


def _kinds(values: Iterable[Any]) -> Counter[str]:
    """How many labels are of each kind; missing ones are of none."""
    return Counter(kind for kind in map(_kind, values) if kind != "missing")


def _usual(kinds: Counter[str]) -> str:
    """What kind most labels are of."""
    return kinds.most_common(1)[0][0] if kinds else "missing"


def _guess(values: Sequence[Any], *, is_named: bool) -> str:
    if any(isinstance(value, tuple) or (isinstance(value, str) and "|" in value) for value in values):
        return "multi_label"
    is_real = _usual(_kinds(values)) == "number" and any(isinstance(value, float) and math.isfinite(value) for value in values)
    return "regression" if is_real and not is_named else "single_label"


def _tags(value: Any) -> list[Any]:
    """The labels of one multi-label example."""
    if isinstance(value, tuple):
        return list(value)
    if isinstance(value, str):
        return [tag.strip() for tag in value.split("|") if tag.strip()]
    return [] if _kind(value) == "missing" else [value]


def _refuse_other_lists(values: Sequence[Any], place: str) -> None:
    """Raise ``DataError`` for labels of an example that stand neither as a list of names nor between bars."""
    lists = [value for value in values if isinstance(value, tuple)]
    if lists and len({len(value) for value in lists}) == 1 and len(lists[0]) > 1 and all(set(value) <= {0, 1} for value in lists):
        raise DataError(f"{place}: lists of 0 and 1; expected: the labels of each example by name, such as [\"spam\", \"urgent\"]")
    written = [value for value in values if isinstance(value, str) and value.startswith("[") and value.endswith("]")]
    if 2 * len(written) > sum(_kind(value) != "missing" for value in values):
        raise DataError(f"{place}: {written[0]!r} is a list as a program writes it; expected: the labels of each example by name, such as spam|urgent")


def _say_counts(values: Sequence[Any]) -> str:
    """How many labels there are, and how often the most frequent: what a stray spelling or an ``nan`` shows in."""
    counts = Counter(str(value) for value in values if _kind(value) != "missing")
    shown = ", ".join(f"{name} {count:,}" for name, count in counts.most_common(SHOWN_NAMES))
    more = ", ..." if len(counts) > SHOWN_NAMES else ""
    alike = Counter(unicodedata.normalize("NFC", name).casefold() for name in counts)
    twins = [name for name, others in alike.items() if others > 1]
    odd = [name for name in counts if name.casefold() in ("nan", "none", "null", "n/a", "na")]
    doubt = f"; is {odd[0]!r} a label?" if odd else f"; {twins[0]!r} stands in several spellings" if twins else ""
    return f"{len(counts)} labels ({shown}{more}){doubt}"


def _sorted_names(values: set[Any]) -> tuple[str, ...]:
    """Numbers (also written as text) by size, everything else by letter."""
    is_numeric = all(NUMBER.fullmatch(str(value)) for value in values)
    return tuple(map(str, sorted(values, key=(lambda value: (float(value), str(value))) if is_numeric else str)))  # 1000 and 1E3 are two


def _strip_prefix(columns: tuple[str, ...]) -> tuple[str, ...]:
    """Column names without what they share up to a separator: p_neg, p_pos -> neg, pos."""
    shared = len(re.sub(r"[^_.:-]*$", "", os.path.commonprefix(columns))) if len(columns) > 1 else 0
    return tuple(column[shared:] or column for column in columns)
