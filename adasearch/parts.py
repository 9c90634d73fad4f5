"""Rows written part by part beside their target, so that a kill costs one part; joined into one file at the end.

``.<name>.parts/`` beside the target holds ``state.json`` (what the work was begun with, what is done) and a file a
chunk. A part lies there only when it is whole, and counts only when the state says so. When they are joined,
``.<name>.job.json`` says what the target was made with, so that no other file is ever taken for it and written over.
"""

from __future__ import annotations

import csv
import io
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

import pyarrow as pa
import pyarrow.parquet as pq

from adasearch.chunks import STANDARD_STREAM, RowFile, Values, in_chunks
from adasearch.errors import ConfigError, DataError, one_line
from adasearch.files import closed_parent, fingerprint, read_json, write_atomically, write_json
from adasearch.run_files import differences
from adasearch.task_config import SUFFIXES

STATE = "state.json"


@dataclass
class Parts:
    """An output file in the making.

    Attributes: ``target`` the file; ``schema`` its columns in order, with the types that parquet needs; ``begun_with``
    what must be the same for the work to go on; ``done`` the chunks written, ``counts`` what was counted in them;
    ``is_finished`` whether the target is there already, made with the same.
    """

    target: Path
    schema: pa.Schema
    begun_with: dict[str, Any]
    done: int = 0
    counts: dict[str, int] = field(default_factory=dict)
    is_finished: bool = False

    @property
    def folder(self) -> Path:
        """Where the parts lie."""
        return _parts_folder(self.target)

    def open(self, *, is_resumable: bool = True, overwrite: bool = False) -> None:
        """Go on with what a killed run has left, find that nothing is left to do, or begin.

        Raises ``ConfigError`` when what is there was begun with something else, unless it may be overwritten; what
        cannot be resumed is begun anew.
        """
        path = self.folder / STATE
        if is_resumable and path.is_file():
            state = read_json(path)
            what = self._changed(state)
            if not what:
                self.done, self.counts = state["done"], state["counts"]
                return
            if not overwrite:
                raise ConfigError(
                    f"output_file: {self.folder} holds an unfinished run that was begun otherwise ({what}); choices: "
                    "the settings it was begun with, another --output_file, or --overwrite true"
                )
        elif self.target.exists() and not overwrite:
            if not is_resumable or not (job := job_of(self.target)):
                raise ConfigError(_is_taken(self.target, "is there already"))
            if what := self._changed(job):
                raise ConfigError(_is_taken(self.target, f"was made otherwise ({what})"))
            self.is_finished, self.counts = True, job["counts"]
            return
        shutil.rmtree(self.folder, ignore_errors=True)
        self._save()

    def add(self, rows: Sequence[Values], counts: dict[str, int]) -> None:
        """Write the next chunk and note that it is there. Raises ``TrainingError`` when the disk is full."""
        suffix = self.target.suffix.lower()
        write_atomically(self._part(self.done), lambda path: path.write_bytes(encode_rows(rows, self.schema, suffix)))
        self.done += 1
        self.counts = {key: self.counts.get(key, 0) + count for key, count in counts.items()}
        self._save()

    def join(self) -> None:
        """Make the target of the parts, whole or not at all, and remove them."""
        write_atomically(self.target, self._join)
        job = {"begun_with": self.begun_with, "counts": self.counts, "output": fingerprint(self.target)}
        write_json(_job_file(self.target), job)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _join(self, path: Path) -> None:
        suffix = self.target.suffix.lower()
        if suffix == ".parquet":
            with pq.ParquetWriter(path, self.schema) as writer:
                for index in range(self.done):
                    writer.write_table(pq.read_table(self._part(index), schema=self.schema))  # a row group each
            return
        with open(path, "wb") as file:
            file.write(encode_header(self.schema, suffix))
            for index in range(self.done):
                with open(self._part(index), "rb") as part:
                    shutil.copyfileobj(part, file)

    def _changed(self, state: dict[str, Any]) -> str:
        """In what something was begun otherwise than this; "" where it was not."""
        before = state["begun_with"]
        return differences(before, {**dict.fromkeys(before), **self.begun_with})

    def _part(self, index: int) -> Path:
        return self.folder / f"{index:06}{self.target.suffix.lower()}"

    def _save(self) -> None:
        write_json(self.folder / STATE, {"begun_with": self.begun_with, "done": self.done, "counts": self.counts})


def job_of(target: Path) -> dict[str, Any] | None:
    """What a finished target was made with; None where it is a file of another origin, or was changed since."""
    try:
        job = read_json(_job_file(target))
        return job if job["output"] == fingerprint(target) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _parts_folder(target: Path) -> Path:
    return target.with_name(f".{target.name}.parts")


def _job_file(target: Path) -> Path:
    return target.with_name(f".{target.name}.job.json")


def _is_taken(target: Path, why: str) -> str:
    return f"output_file: {target} {why} and would be overwritten; choices: another --output_file, or --overwrite true"


def check_output(input_file: Path, output_file: Path, *, overwrite: bool = False) -> None:
    """Raise ``ConfigError`` unless the output can be written (``-``: JSON lines on standard output).

    A file that is there is in the way unless ``overwrite``, or a like job made it or is making it; ``Parts.open``
    then says whether it is the same.
    """
    if output_file == STANDARD_STREAM:
        return
    if output_file.suffix.lower() not in SUFFIXES:
        choices = f"{', '.join(SUFFIXES)}, or - for standard output"
        raise ConfigError(f"output_file: {output_file}: cannot write {output_file.suffix!r}; choices: {choices}")
    if output_file.resolve() == input_file.resolve():
        raise ConfigError(f"output_file: {output_file} is the input file; choose another")
    if output_file.is_dir():
        raise ConfigError(f"output_file: {output_file} is a folder; name a file")
    if parent := closed_parent(output_file.parent):
        raise ConfigError(f"output_file: {output_file}: cannot be written, {parent} is no folder open for writing")
    is_being_made = _parts_folder(output_file).joinpath(STATE).is_file()
    if output_file.exists() and not overwrite and not is_being_made and (input_file == STANDARD_STREAM or not job_of(output_file)):
        raise ConfigError(_is_taken(output_file, "is there already"))


def input_schema(source: RowFile, columns: Sequence[str], output_file: Path) -> pa.Schema:
    """Names and types of the input's columns. Only parquet needs types; for its sake JSON lines are read once more.

    Raises ``DataError`` naming the column whose values have no common type.
    """
    suffix = source.path.suffix.lower()
    if suffix == ".parquet":
        return pq.read_schema(source.path).remove_metadata()
    if suffix != ".jsonl" or output_file.suffix.lower() != ".parquet":
        return pa.schema([(name, pa.string()) for name in columns])
    types: dict[str, pa.DataType] = {name: pa.null() for name in columns}
    for chunk in in_chunks(source.rows(), source.texts):
        good = [row.values for row in chunk if row.problem is None]
        for name in columns:
            try:
                found = pa.array([values.get(name) for values in good]).type
                both = [pa.schema([(name, types[name])]), pa.schema([(name, found)])]
                types[name] = pa.unify_schemas(both, promote_options="permissive").field(name).type
            except (pa.ArrowException, ValueError, OverflowError) as error:
                raise DataError(
                    f"input_file: {source.path}: column {name!r} has no type that parquet knows ({one_line(error, 300)}); "
                    "choices: an output_file that ends in .jsonl"
                ) from error
    return pa.schema(list(types.items()))


def encode_header(schema: pa.Schema, suffix: str) -> bytes:
    """What stands before the first row."""
    return _separated([schema.names], suffix) if suffix in (".csv", ".tsv") else b""


def encode_rows(rows: Sequence[Values], schema: pa.Schema, suffix: str) -> bytes:
    """Rows as the bytes of a file of that suffix, without a header."""
    if suffix == ".parquet":
        arrays = [pa.array([row.get(field.name) for row in rows], field.type) for field in schema]
        sink = io.BytesIO()
        pq.write_table(pa.Table.from_arrays(arrays, schema=schema), sink)
        return sink.getvalue()
    if suffix == ".jsonl":
        text = "".join(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows)
        return text.encode("utf-8", "backslashreplace")  # half a character becomes its JSON escape
    return _separated([[_cell(row.get(name)) for name in schema.names] for row in rows], suffix)


def write_stream(file: TextIO, rows: Sequence[Values], schema: pa.Schema) -> None:
    """Rows as JSON lines, at once; in UTF-8 as they are read, whatever the locale's encoding, which may not have their characters."""
    encoded = encode_rows(rows, schema, ".jsonl")
    if hasattr(file, "buffer"):
        file.flush()  # what was written as text comes first
        file.buffer.write(encoded)
    else:
        file.write(encoded.decode("utf-8"))
    file.flush()


def _separated(rows: Sequence[Sequence[Any]], suffix: str) -> bytes:
    # the csv module quotes a line feed but not a lone carriage return, at which readers stop as well
    has_return = any("\r" in cell for row in rows for cell in row if isinstance(cell, str))
    quoting = csv.QUOTE_ALL if has_return else csv.QUOTE_MINIMAL
    sink = io.StringIO(newline="")
    csv.writer(sink, delimiter="\t" if suffix == ".tsv" else ",", lineterminator="\n", quoting=quoting).writerows(rows)
    return sink.getvalue().encode("utf-8", "backslashreplace")


def _cell(value: Any) -> Any:
    """Lists and objects as JSON; nothing as an empty cell."""
    return json.dumps(value, ensure_ascii=False, default=str) if isinstance(value, (list, dict)) else value
