"""Tables that know the line of every row: csv, tsv, jsonl, parquet and txt files, and which of their rows are bad."""

from __future__ import annotations

import csv
import difflib
import io
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from adasearch.errors import ConfigError, DataError, one_line
from adasearch.task_config import SUFFIXES

LONGEST_FIELD = 2**31 - 1  # the csv module stops at 131,072 characters unless told otherwise; a C long on Windows
SHOWN_ROWS = 5  # in error messages
NEVER_CLOSED = "unexpected end of data"  # what the csv module says where the file ends within a quoted field
SURROGATE = re.compile("[\ud800-\udfff]")  # JSON can hold halves of characters; no tokenizer takes them


@dataclass
class Table:
    """Columns of equal length, the line (or row) number of each row, and what was found wrong with which."""

    where: str
    columns: dict[str, list[Any]]
    numbers: Sequence[int]
    unit: str = "line"
    is_typed: bool = True  # False: csv and tsv, where every value is a string
    class_names: dict[str, tuple[str, ...]] = field(default_factory=dict)  # of integer columns that carry names
    broken: list[tuple[int, str]] = field(default_factory=list)  # lines that are no rows
    bad: dict[int, str] = field(default_factory=dict)  # row index -> the first thing wrong with it

    def column(self, name: str, setting: str) -> list[Any]:
        """One column's values. Raises ``DataError`` naming the columns there are."""
        if name not in self.columns:
            raise DataError(f"{self.where}: {setting}: {no_column(name, self.columns)}")
        return self.columns[name]

    def reject(self, row: int, column: str, message: str) -> None:
        """Note that a row is bad."""
        self.bad.setdefault(row, f"column {column!r}: {message}")

    def texts(self, column: str, setting: str) -> list[str]:
        """A column of texts; a row without one is rejected. Raises ``DataError`` as ``column`` does."""
        values = self.column(column, setting)
        for row, value in enumerate(values):
            if not isinstance(value, str):
                self.reject(row, column, "no text" if value is None else f"{value!r} is not a text")
            elif not value.strip():
                self.reject(row, column, "empty text")
            elif SURROGATE.search(value):
                self.reject(row, column, f"half a character (a lone surrogate) in {value[:40]!r}")
        return values

    def good_rows(self, *, skip_bad_rows: bool, notes: list[str], advice: str = "Mend them, or leave them out with --skip_bad_rows") -> np.ndarray:
        """Indices of the rows that passed. Raises ``DataError`` with the number and the first of the others."""
        problems = sorted(self.broken + [(self.numbers[row], message) for row, message in self.bad.items()])
        if problems:
            shown = "; ".join(f"{self.unit} {number}: {message}" for number, message in problems[:SHOWN_ROWS])
            more = f"; and {len(problems) - SHOWN_ROWS} more" if len(problems) > SHOWN_ROWS else ""
            report = f"{self.where}: {len(problems)} bad row{'s' * (len(problems) > 1)}: {shown}{more}"
            if not skip_bad_rows:
                raise DataError(f"{report}. {advice}")
            notes.append(f"left out: {report}")
        good = np.array([row for row in range(len(self.numbers)) if row not in self.bad], dtype=np.int64)
        if not len(good):
            raise DataError(f"{self.where}: no examples{' are left' if problems else ''}")
        return good


def no_column(name: str, columns: Iterable[str]) -> str:
    """What to say of a column that a file has not: those it has, and what may have been meant."""
    names = [str(column) for column in columns]
    text = f"no column {name!r}; columns: {', '.join(names)}"
    if len(names) == 1 and (separator := next((mark for mark in (";", "\t") if mark in names[0]), None)):
        shown = "tabs; name it .tsv" if separator == "\t" else f"{separator!r}; save it with commas"
        return f"{text}; the file seems to be separated by {shown}"
    close = difflib.get_close_matches(name, names, n=1)
    return f"{text}{f'; did you mean {close[0]!r}?' if close else ''}"


def read_table(path: Path, setting: str) -> Table:
    """Read csv, tsv, jsonl or parquet. ``setting`` is the flag that named the file.

    Raises ``ConfigError`` when there is no such file or its suffix is unknown, ``DataError`` when it cannot be read.
    """
    suffix = check_file(path, setting, SUFFIXES)
    if suffix == ".parquet":
        table = _read_parquet(path)
    elif suffix == ".jsonl":
        table = _read_jsonl(read_text(path), str(path))
    else:
        table = _read_csv(read_text(path), str(path), delimiter="\t" if suffix == ".tsv" else ",")
    if not table.numbers:
        table.good_rows(skip_bad_rows=False, notes=[])  # raises: says which lines are broken, or that there are none
    return table


def check_file(path: Path, setting: str, suffixes: Sequence[str]) -> str:
    """The file's suffix in lower case. Raises ``ConfigError`` when there is no such file or its suffix is another."""
    if path.is_dir():
        raise ConfigError(f"{setting}: {path} is a directory; expected: a file, {', '.join(suffixes)}")
    if path.suffix.lower() not in suffixes:
        raise ConfigError(f"{setting}: {path}: unknown suffix {path.suffix!r}; choices: {', '.join(suffixes)}")
    if not path.is_file():
        raise ConfigError(f"{setting}: {path}: no such file")
    return path.suffix.lower()


def read_text(path: Path) -> str:
    """A file's whole content. Raises ``DataError`` when it is empty, cannot be read or is not UTF-8."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    if not content.strip():
        raise DataError(f"{path}: the file is empty")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line, byte = error.object.count(b"\n", 0, error.start) + 1, error.object[error.start]
        raise DataError(f"{path}: line {line}: byte 0x{byte:02x} is not UTF-8; save the file as UTF-8") from error


def read_lines(path: Path, setting: str, is_pair: bool) -> list[str] | None:
    """Texts, one a line, of a txt file; None where it is a table. Raises ``ConfigError`` and ``DataError``."""
    if check_file(path, setting, (".txt", *SUFFIXES)) != ".txt":
        return None
    if is_pair:
        raise ConfigError(f"{setting}: {path}: a line holds no pair of texts; choices: {', '.join(SUFFIXES)}")
    return [line.strip() for line in read_text(path).split("\n") if line.strip()]


def _read_csv(text: str, where: str, *, delimiter: str) -> Table:
    """With a header; a row's number is the line on which it begins, quoted line breaks counted."""
    csv.field_size_limit(LONGEST_FIELD)
    reader = csv.reader(io.StringIO(text, newline="\n"), delimiter=delimiter, strict=True)  # a lone carriage return ends no line
    rows: list[list[str]] = []
    numbers: list[int] = []
    broken: list[tuple[int, str]] = []
    header: list[str] | None = None
    while True:
        number = reader.line_num + 1
        try:
            row = next(reader)
        except StopIteration:
            break
        except csv.Error as error:
            if header is None and "new-line" in str(error):
                raise DataError(f"{where}: lone carriage returns end its lines; save it with line feeds") from error
            try:
                broken.append((number, problem_of_quotes(error, number, reader.line_num)))
            except UnclosedQuoteError as unclosed:
                raise DataError(f"{where}: {unclosed}") from error
            continue
        if not row:
            continue
        if header is None:
            header = [name.strip() for name in row]
            if has_name_twice(header):
                raise DataError(f"{where}: line {number}: a column name stands twice: {', '.join(header)}")
        elif problem := problem_of_row(row, header, delimiter):
            broken.append((number, problem))
        else:
            rows.append(row)
            numbers.append(number)
    columns = {name: [row[i] for row in rows] for i, name in kept_columns(header or [])}
    return Table(where, columns, numbers, is_typed=False, broken=broken)


def has_name_twice(header: list[str]) -> bool:
    """Whether two columns have one name; several without any are no such."""
    names = [name for name in header if name]
    return len(set(names)) < len(names)


def kept_columns(header: list[str]) -> list[tuple[int, str]]:
    """Place and name of the columns that are read: all with a name, and one without where it is the only such, as an index is written."""
    is_index = header.count("") == 1
    return [(i, name) for i, name in enumerate(header) if name or is_index]


class UnclosedQuoteError(ValueError):
    """A quoted field of several lines that does not end before the file: good rows may be in it."""


def problem_of_quotes(error: csv.Error, first: int, last: int) -> str:
    """Why the lines from first to last are no row of csv or tsv. Raises ``UnclosedQuoteError``: to leave that row out would lose all the others."""
    if NEVER_CLOSED in str(error) and last > first:
        raise UnclosedQuoteError(
            f"the quote opened in line {first} is never closed; lines {first}-{last} cannot be told apart; "
            "choices: close it, or double it where it belongs to the text, the field in quotes"
        )
    lines = f"; lines {first}-{last} are taken for one row" if last > first else ""
    return f"cannot be read ({error}; quotes inside a quoted field are doubled{lines})"


def problem_of_row(row: list[str], header: list[str], delimiter: str) -> str | None:
    """Why a row of csv or tsv cannot be what was meant; None where it may. Columns without a name, as Excel adds them, are left out.

    A field with tabs and line breaks is several rows of a tsv file, whose quotes are often none; in csv it is a text like others.
    """
    if len(row) != len(header):
        return f"{len(row)} fields where the header has {len(header)}"
    if delimiter == "\t" and any("\t" in cell and ("\n" in cell or "\r" in cell) for cell in row):
        return "a quoted field runs over tabs and lines; a quotation mark that belongs to the text is doubled, the field in quotes"
    if header.count("") > 1 and any(cell and not name for cell, name in zip(row, header)):
        return "a field in a column without a name"
    return None


def _read_jsonl(text: str, where: str) -> Table:
    """One object a line; a key that an object lacks is null there."""
    rows: list[dict[str, Any]] = []
    numbers: list[int] = []
    broken: list[tuple[int, str]] = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            broken.append((number, f"no JSON ({error.msg}, character {error.pos + 1})"))
            continue
        except (ValueError, RecursionError) as error:  # a number of thousands of digits, brackets in brackets in brackets
            broken.append((number, f"no JSON ({one_line(error, 100)})"))
            continue
        if isinstance(row, dict):
            rows.append(row)
            numbers.append(number)
        else:
            broken.append((number, f"a JSON {type(row).__name__}, not an object"))
    names = dict.fromkeys(name for row in rows for name in row)
    return Table(where, {name: [row.get(name) for row in rows] for name in names}, numbers, broken=broken)


def _read_parquet(path: Path) -> Table:
    try:
        with pq.ParquetFile(path) as file:
            return from_arrow(file.read(), str(path))
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: no parquet file can be read ({one_line(error, 300)})") from error


def from_arrow(data: pa.Table, where: str) -> Table:
    """A table in memory; class labels keep the names that ``datasets`` gave them."""
    class_names = {}
    if b"huggingface" in (data.schema.metadata or {}):
        from datasets import ClassLabel, Features  # slow to import, and only this knows its own metadata

        for name, feature in Features.from_arrow_schema(data.schema).items():
            feature = getattr(feature, "feature", feature)  # a list of class labels: multi-label
            if isinstance(feature, ClassLabel):
                class_names[name] = tuple(feature.names)
    return Table(where, data.to_pydict(), range(1, data.num_rows + 1), unit="row", class_names=class_names)
