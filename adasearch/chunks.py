"""Files of any size in chunks of rows: csv, tsv, jsonl, parquet and txt, read as a stream. Every row knows its line.

A row that cannot be used is an error message beside its number; what to do with it is the caller's to say.
"""

from __future__ import annotations

import csv
import itertools
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from adasearch.errors import DataError, one_line
from adasearch.tables import (
    LONGEST_FIELD,
    SHOWN_ROWS,
    SURROGATE,
    UnclosedQuoteError,
    has_name_twice,
    kept_columns,
    no_column,
    problem_of_quotes,
    problem_of_row,
)

STANDARD_STREAM = Path("-")
CHUNK_ROWS = 8192  # enough for batches of nearly equal lengths; few enough that little is lost by a kill
CHUNK_CHARACTERS = 8_000_000  # so that a chunk of long texts stays small as well
BOM = b"\xef\xbb\xbf"

Values = dict[str, Any]


@dataclass(frozen=True)
class Row:
    """A row's line or row number and its values, or what is wrong with it (then there are none)."""

    number: int
    values: Values
    problem: str | None = None


@dataclass(frozen=True)
class Survey:
    """What a file holds, known before any work: rows in all, how many are bad, the first of these, the columns."""

    rows: int
    bad: int
    problems: tuple[str, ...]
    columns: tuple[str, ...]

    @property
    def good(self) -> int:
        """Rows that can be used."""
        return self.rows - self.bad


@dataclass(frozen=True)
class RowFile:
    """A file (``-``: lines of standard input) whose columns ``texts`` must hold a text in every row.

    Attributes: ``texts`` the columns' names; in a txt file and in standard input the only column bears the first; ``setting``
    what named the file.
    """

    path: Path
    texts: tuple[str, ...]
    setting: str = "input_file"

    @property
    def unit(self) -> str:
        """What a row's number counts."""
        return "row" if self.path.suffix.lower() == ".parquet" else "line"

    def rows(self) -> Iterator[Row]:
        """Every row from the first. Raises ``DataError`` when the file cannot be read or is not what its suffix says."""
        suffix = ".txt" if self.path == STANDARD_STREAM else self.path.suffix.lower()
        if self.path != STANDARD_STREAM and self.path.is_dir():
            raise DataError(f"{self.setting}: {self.path}: is a folder; choices: a file, {', '.join(READERS)}")
        if suffix not in READERS:
            choices = f"{', '.join(READERS)}, or - for standard input"
            raise DataError(f"{self.setting}: {self.path}: cannot read {self.path.suffix!r}; choices: {choices}")
        try:
            for row in READERS[suffix](self.path, self.texts):
                problem = row.problem or self._problem(row.values)
                yield Row(row.number, row.values, problem)
        except OSError as error:
            raise DataError(f"{self.setting}: {self.path}: cannot be read ({error.strerror or error})") from error
        except UnclosedQuoteError as error:
            raise DataError(f"{self.setting}: {self.path}: {error}") from error
        except (ValueError, pa.ArrowException) as error:  # bytes that are not UTF-8, no header, no parquet
            raise DataError(f"{self.setting}: {self.path}: is not a {suffix[1:]} file ({one_line(error, 300)})") from error

    def survey(self) -> Survey:
        """Read the whole file once. Raises ``DataError``, also when a column of texts is not there."""
        rows, bad, problems = 0, 0, []
        columns: dict[str, None] = dict.fromkeys(self.header())
        for row in self.rows():
            rows += 1
            columns.update(dict.fromkeys(row.values))
            if row.problem:
                bad += 1
                problems += [f"{self.unit} {row.number}: {row.problem}"] if bad <= SHOWN_ROWS else []
        if columns or rows > bad:
            self._require_texts(columns)
        return Survey(rows, bad, tuple(problems), tuple(columns) or self.texts)

    def check_header(self) -> None:
        """Raise ``DataError`` where the columns are known without a row and one of texts is not among them."""
        if header := self.header():
            self._require_texts(header)

    def _require_texts(self, columns: Iterable[str]) -> None:
        for name in self.texts:
            if name not in columns:
                raise DataError(f"{self.setting}: {self.path}: {no_column(name, columns)}")

    def header(self) -> list[str]:
        """Columns that are known without a row. Raises ``DataError`` as ``rows`` does."""
        suffix = self.path.suffix.lower()
        if self.path == STANDARD_STREAM or suffix == ".txt":
            return [self.texts[0]]
        try:
            if suffix == ".parquet":
                return pq.read_schema(self.path).names
            if suffix in (".csv", ".tsv"):
                return _header(_csv_reader(self.path))
        except (OSError, ValueError, pa.ArrowException):
            next(self.rows(), None)  # says what is wrong
        return []

    def _problem(self, values: Values) -> str | None:
        for name in self.texts:
            value = values.get(name)
            if not isinstance(value, str):
                return f"column {name!r}: {'no text' if value is None else f'{value!r} is not a text'}"
            if SURROGATE.search(value):
                return f"column {name!r}: half a character (a lone surrogate) in {value[:40]!r}"
        return None


def in_chunks(rows: Iterable[Row], texts: Sequence[str]) -> Iterator[list[Row]]:
    """Consecutive rows, in lists of bounded rows and characters; where they are cut depends on the rows alone."""
    chunk: list[Row] = []
    characters = 0
    for row in rows:
        size = sum(len(row.values[name]) for name in texts) if row.problem is None else 0
        if chunk and (len(chunk) == CHUNK_ROWS or characters + size > CHUNK_CHARACTERS):
            yield chunk
            chunk, characters = [], 0
        chunk.append(row)
        characters += size
    if chunk:
        yield chunk


def _lines(path: Path) -> Iterator[str]:
    """Lines with their ends, decoded one by one so that an error can name its line."""
    with nullcontext(sys.stdin.buffer) if path == STANDARD_STREAM else open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                yield (line.removeprefix(BOM) if number == 1 else line).decode("utf-8")
            except UnicodeDecodeError as error:
                byte = error.object[error.start]
                raise ValueError(f"line {number}: byte 0x{byte:02x} is not UTF-8; save the file as UTF-8") from error


def _csv_reader(path: Path) -> Any:
    csv.field_size_limit(LONGEST_FIELD)
    return csv.reader(_lines(path), delimiter="\t" if path.suffix.lower() == ".tsv" else ",", strict=True)


def _header(reader: Any) -> list[str]:
    try:
        header = next((row for row in reader if row), None)
    except csv.Error as error:
        hint = ": lone carriage returns end its lines; save it with line feeds" if "new-line" in str(error) else ""
        raise ValueError(f"its header cannot be read ({error}){hint}") from error
    if header is None:
        raise ValueError("it is empty; a header with the columns' names is expected")
    names = [name.strip() for name in header]
    if has_name_twice(names):
        raise ValueError(f"a column name stands twice: {', '.join(names)}")
    return names


def _read_csv(path: Path, texts: Sequence[str]) -> Iterator[Row]:
    """With a header; a row's number is the line on which it begins. Every cell stays the text it is."""
    reader = _csv_reader(path)
    header = _header(reader)
    kept = kept_columns(header)
    while True:
        number = reader.line_num + 1
        try:
            cells = next(reader, None)
        except csv.Error as error:
            yield Row(number, {}, problem_of_quotes(error, number, reader.line_num))
            continue
        if cells is None:
            return
        if not cells:
            if len(header) == 1:  # with one column an empty line is an empty text
                yield Row(number, {header[0]: ""})
        elif problem := problem_of_row(cells, header, reader.dialect.delimiter):
            yield Row(number, {}, problem)
        else:
            yield Row(number, {name: cells[i] for i, name in kept})


def _read_jsonl(path: Path, texts: Sequence[str]) -> Iterator[Row]:
    """One object a line."""
    for number, line in enumerate(_lines(path), start=1):
        if not line.strip():
            continue
        try:
            values = json.loads(line)
        except (ValueError, RecursionError) as error:  # a number of thousands of digits is no JSONDecodeError
            yield Row(number, {}, f"no JSON ({getattr(error, 'msg', error)})")
            continue
        is_object = isinstance(values, dict)
        yield Row(number, values if is_object else {}, None if is_object else f"holds {type(values).__name__}, not an object")


def _read_parquet(path: Path, texts: Sequence[str]) -> Iterator[Row]:
    """Row group by row group."""
    if path.is_dir():
        raise IsADirectoryError(None, "Is a directory")
    numbers = itertools.count(1)
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=CHUNK_ROWS):
            for values in batch.to_pylist():
                yield Row(next(numbers), values)


def _read_txt(path: Path, texts: Sequence[str]) -> Iterator[Row]:
    """One text a line."""
    for number, line in enumerate(_lines(path), start=1):
        yield Row(number, {texts[0]: line.rstrip("\n").removesuffix("\r")})


READERS: dict[str, Callable[[Path, Sequence[str]], Iterator[Row]]] = {
    ".csv": _read_csv,
    ".tsv": _read_csv,
    ".jsonl": _read_jsonl,
    ".parquet": _read_parquet,
    ".txt": _read_txt,
}
