"""A student at work in bulk: a file of texts in, the same rows with prediction and probabilities out.

The file is read, answered and written chunk by chunk, so memory does not grow with it and a kill costs one chunk.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
from transformers import PreTrainedModel

from adasearch.accelerator import keeping_threads
from adasearch.answers_file import SCHEMA, QuestionAnswerer, SpanAnswers, is_reader, question_columns
from adasearch.cascade import Cascade, check_teacher
from adasearch.chunks import CHUNK_ROWS, STANDARD_STREAM, Row, RowFile, Values, in_chunks
from adasearch.classifier import Answers, TextClassifier, check_pairs, check_settings, shortest
from adasearch.errors import ConfigError, DataError
from adasearch.files import fingerprint
from adasearch.parts import Parts, check_output, input_schema, write_stream
from adasearch.progress import Progress
from adasearch.runtime_base import trained_on_pairs
from adasearch.runtimes import load_classifier

WHO = "answered_by"  # the column of a cascade
ADVICE = ". Mend them, or leave them out with --skip_bad_rows"
NOT_THE_MODEL = {"README.md", "history.json", "scores.json", "figures"}  # files and folders of a model's folder that change no answer


def load_student(path: str | Path) -> PreTrainedModel:
    """The sequence classifier in a student's folder, in evaluation mode; other checkpoints' folders load as well.

    Raises ``ModelError`` when the folder does not hold one.
    """
    return load_classifier(Path(path))


@keeping_threads()
def predict_file(
    student_dir: str | Path, input_file: str | Path, output_file: str | Path, text_column: str = "text",
    text_pair_column: str | None = None, batch_size: int = 32, runtime: str = "auto", progress: Progress | None = None,
    threads: int | None = None, *, precision: str | None = None, skip_bad_rows: bool = False, calibrated: bool = True,
    cascade_teacher: str | Path | None = None, cascade_threshold: float | None = None, cascade_share: float | None = None,
    overwrite: bool = False,
) -> int:  # fmt: skip
    """Label every row of a csv, tsv, jsonl, parquet or txt file (``-``: lines of standard input); returns how many.

    Adds the columns ``prediction`` (labels above one half joined by ``|`` in multi-label tasks, the score in
    regression) and ``probability_<label>``; a ``-`` as output writes JSON lines. Rows keep their order. Runtime,
    precision and threads are those saved with the student unless given. A killed run goes on when it is started again
    with the same input, model and settings; a finished one is not done again. Another file in the output's place is
    refused unless ``overwrite``. With ``cascade_teacher``, a model's folder, the teacher answers where the
    student's confidence is below the threshold, or the given share of every chunk of 8,192 rows, the least sure; the
    column ``answered_by`` says who did. A folder with a question-answering model reads the columns ``question`` and
    ``context`` unless others are named, and adds ``prediction``, ``probability`` and the answer's characters. Raises
    ``ConfigError`` and ``DataError`` before the model runs, ``ModelError`` when one cannot be loaded.
    """
    progress = progress or Progress()
    student_dir, input_file, output_file = Path(student_dir), Path(input_file), Path(output_file)
    cascade_teacher = None if cascade_teacher is None else Path(cascade_teacher)
    check_settings(student_dir, runtime, batch_size, threads=threads)
    check_output(input_file, output_file, overwrite=overwrite)
    is_asked = is_reader(student_dir)
    if is_asked:
        text_column, text_pair_column = question_columns(text_column, text_pair_column)
        if cascade_teacher is not None:
            raise ConfigError(f"cascade_teacher: {cascade_teacher}: a cascade is for single labels; {student_dir} answers questions")
    check_pairs(trained_on_pairs(student_dir), text_pair_column is not None, "text_pair_column")
    check_teacher(cascade_teacher, cascade_threshold, cascade_share, batch_size)
    source = RowFile(input_file, (text_column, *((text_pair_column,) if text_pair_column else ())))
    columns, total = _survey(source, skip_bad_rows, progress)
    schema = input_schema(source, columns, output_file)
    settings = {"runtime": runtime, "precision": precision, "threads": threads, "batch_size": batch_size, "progress": progress}
    student: TextClassifier | QuestionAnswerer
    student = QuestionAnswerer(student_dir, **settings) if is_asked else TextClassifier(student_dir, is_calibrated=calibrated, **settings)
    answerer: TextClassifier | Cascade | QuestionAnswerer = student
    if cascade_teacher is not None:
        teacher = TextClassifier(cascade_teacher, threads=threads, batch_size=batch_size, is_calibrated=calibrated, progress=progress)
        answerer = Cascade(student, teacher, cascade_threshold, cascade_share)
    schema = _with_answers(schema, answerer, input_file)
    parts = None
    if output_file != STANDARD_STREAM:
        begun_with = {
            "input": _fingerprint(input_file), "model": _fingerprint(student_dir, output_file), "runtime": student.runtime.name,
            "precision": student.runtime.precision, "text_column": text_column, "text_pair_column": text_pair_column,
            "skip_bad_rows": skip_bad_rows, "calibrated": calibrated, "chunk_rows": CHUNK_ROWS,
            "cascade_teacher": _fingerprint(cascade_teacher, output_file) if cascade_teacher else None,
            "cascade_threshold": cascade_threshold, "cascade_share": cascade_share,
        }  # fmt: skip
        parts = Parts(output_file, schema, begun_with)
        parts.open(is_resumable=input_file != STANDARD_STREAM, overwrite=overwrite)
    return _Work(answerer, source, schema, parts, skip_bad_rows, progress).do(total)


@dataclass
class _Work:
    """What is kept while a file is answered. ``parts`` None: JSON lines go to standard output."""

    answerer: TextClassifier | Cascade | QuestionAnswerer
    source: RowFile
    schema: pa.Schema
    parts: Parts | None
    skip_bad_rows: bool
    progress: Progress

    def do(self, total: int | None) -> int:
        """Answer what is not answered yet; returns how many rows there are in all."""
        before = self.parts.done if self.parts else 0
        counts = {"rows": 0, "cut": 0, "escalated": 0, "bad": 0} | (self.parts.counts if self.parts else {})
        if self.parts and self.parts.is_finished:
            self.progress.message(f"{self.parts.target} is there already, made with the same input, model and settings")
            self._say(counts)
            return counts["rows"]
        resumed = counts["rows"]
        self.progress.stage("predict", total=total, done=resumed)
        start = time.monotonic()
        for index, chunk in enumerate(in_chunks(self.source.rows(), self.source.texts)):
            if index < before:
                continue
            good = self._good(chunk)

            def tell(done: int, base: int = counts["rows"]) -> None:
                speed = (base + done - resumed) / max(time.monotonic() - start, 1e-9)
                self.progress.step(base + done, texts_per_s=round(speed))

            first, *second = ([values[name] for values in good] for name in self.source.texts)
            answers = self.answerer.answer(first, second[0] if second else None, tell)
            rows = [{**values, **answer} for values, answer in zip(good, as_rows(answers, self.answerer.labels))]
            escalated = 0 if answers.is_escalated_N is None else int(answers.is_escalated_N.sum())
            new = {"rows": len(good), "cut": answers.cut, "escalated": escalated, "bad": len(chunk) - len(good)}
            counts = {name: counts[name] + count for name, count in new.items()}
            if self.parts:
                self.parts.add(rows, new)
            else:
                write_stream(sys.stdout, rows, self.schema)
        if self.parts:
            self.parts.join()
        self._say(counts)
        return counts["rows"]

    def _good(self, chunk: Sequence[Row]) -> list[Values]:
        """The rows that can be used. A stream was not surveyed: its bad rows are met here."""
        bad = [row for row in chunk if row.problem]
        if bad and not self.skip_bad_rows:
            problems = [f"{self.source.unit} {row.number}: {row.problem}" for row in bad[:1]]
            raise DataError(_bad_rows(self.source.path, len(bad), problems))
        return [row.values for row in chunk if not row.problem]

    def _say(self, counts: dict[str, int]) -> None:
        if counts["cut"]:
            self.progress.warning(
                f"{counts['cut']} of {counts['rows']} texts are longer than {self.answerer.limit} word pieces; what lay beyond was cut"
            )
        if isinstance(self.answerer, Cascade):
            share = counts["escalated"] / max(counts["rows"], 1)
            self.progress.message(f"the teacher answered {counts['escalated']} of {counts['rows']} texts ({share:.1%})")


def as_rows(answers: Answers | SpanAnswers, labels: Sequence[str]) -> list[Values]:
    """Answers as a row of named values each: what predict writes and the server sends."""
    if isinstance(answers, SpanAnswers):
        return answers.rows()
    columns: dict[str, Sequence[Any]] = {"prediction": answers.predictions}
    if answers.probabilities_NC is not None:
        columns |= {f"probability_{name}": shortest(answers.probabilities_NC[:, c]) for c, name in enumerate(labels)}
    if answers.is_escalated_N is not None:
        columns[WHO] = ["teacher" if is_escalated else "student" for is_escalated in answers.is_escalated_N]
    return [dict(zip(columns, values)) for values in zip(*columns.values())]


def _survey(source: RowFile, skip_bad_rows: bool, progress: Progress) -> tuple[tuple[str, ...], int | None]:
    """Columns and number of usable rows; a stream's number is not known. Raises ``DataError`` for bad rows."""
    if source.path == STANDARD_STREAM:
        if len(source.texts) > 1:
            raise ConfigError(f"text_pair_column: {source.texts[1]!r}: lines of standard input have one column; choices: a file")
        return source.texts, None
    survey = source.survey()
    if survey.bad and not skip_bad_rows:
        raise DataError(_bad_rows(source.path, survey.bad, survey.problems))
    if survey.bad:
        progress.warning(f"left out: {_bad_rows(source.path, survey.bad, survey.problems, advice='')}")
    return survey.columns, survey.good


def _bad_rows(path: Path, count: int, problems: Sequence[str], advice: str = ADVICE) -> str:
    more = f"; and {count - len(problems)} more" if count > len(problems) else ""
    return f"input_file: {path}: {count} bad row{'s' * (count > 1)}: {'; '.join(problems)}{more}{advice}"


def _with_answers(schema: pa.Schema, answerer: TextClassifier | Cascade | QuestionAnswerer, path: Path) -> pa.Schema:
    """The columns of the output. Raises ``DataError`` when the input has one of them already."""
    new = [("prediction", pa.string() if answerer.labels else pa.float32())]
    new += [(f"probability_{name}", pa.float32()) for name in answerer.labels]
    new += [(WHO, pa.string())] if isinstance(answerer, Cascade) else []
    new = list(SCHEMA) if isinstance(answerer, QuestionAnswerer) else new
    if taken := [name for name, _ in new if name in schema.names]:
        raise DataError(f"input_file: {path}: column {taken[0]!r} is there already and would be overwritten; rename it")
    return pa.schema([*schema, *(pa.field(name, kind) for name, kind in new)])


def _fingerprint(path: Path, output_file: Path | None = None) -> str | None:
    """Of a file's content, or of all files of a model's folder that change an answer; the output may lie among them."""
    if path == STANDARD_STREAM:
        return None
    if path.is_file():
        return fingerprint(path)
    name = "" if output_file is None else output_file.name

    def is_read(file: Path) -> bool:
        parts = file.relative_to(path).parts
        is_written = name and any(part == name or part.startswith(f".{name}.") for part in parts)
        return file.is_file() and NOT_THE_MODEL.isdisjoint(parts) and not is_written

    files = sorted(file for file in path.rglob("*") if is_read(file))
    return fingerprint(*(part for file in files for part in (str(file.relative_to(path)), file)))
