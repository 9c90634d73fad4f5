"""A task: labelled texts or text pairs from a preset, the hub or files, checked row by row before any work begins.

Three steps: a source is read into tables that know the line of every row, the tables' columns are checked and turned
into splits (every bad row is collected, not just the first), and the splits are tokenised once.
Dimensions: N examples, C labels.
"""

from __future__ import annotations

import csv
import dataclasses
import difflib
import io
import json
import math
import os
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from adasearch.config import TaskConfig, check_choice
from adasearch.demo_assets import fetch_demo_reviews
from adasearch.errors import ConfigError, DataError, ModelError
from adasearch.files import fingerprint, read_json, write_json
from adasearch.metrics import UNKNOWN, choose_metrics, is_known, is_skewed
from adasearch.progress import Progress
from adasearch.tokens import TokenStore

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SUFFIXES = (".csv", ".tsv", ".jsonl", ".parquet")
HELD_OUT_SHARE = 0.1  # of the training examples, when there is no validation split
DEMO_SPLIT_SEED = 42  # the demo's split is part of the task: it does not move with the run's seed
SOFT_SUM_TOLERANCE = 1e-3  # probabilities written with three digits still pass
SHOWN_ROWS, SHOWN_NAMES = 5, 20  # in error messages
NUMBER = re.compile(r"[+-]?(0|[1-9]\d*|(?=\.\d))(\.\d*)?([eE][+-]?\d+)?")  # "007" stays a name
SURROGATE = re.compile("[\ud800-\udfff]")  # JSON can hold halves of characters; no tokenizer takes them
CHUNK_TEXTS = 2_000


@dataclass(frozen=True)
class Preset:
    """A published data set: where it lies on the hub, its columns, its labels in the order of their numbers."""

    hub: str
    text: str
    pair: str | None
    label_names: tuple[str, ...]
    metrics: tuple[str, ...] = ("accuracy",)
    problem_type: str = "single_label"


_ENTAILMENT = ("entailment", "neutral", "contradiction")
# Columns, label order and metrics of GLUE: Wang et al. 2018 and the data card of nyu-mll/glue
PRESETS = {
    "sst2": Preset("nyu-mll/glue:sst2", "sentence", None, ("negative", "positive")),
    "mrpc": Preset("nyu-mll/glue:mrpc", "sentence1", "sentence2", ("not_equivalent", "equivalent"), ("accuracy", "f1")),
    "qqp": Preset("nyu-mll/glue:qqp", "question1", "question2", ("not_duplicate", "duplicate"), ("accuracy", "f1")),
    "mnli": Preset("nyu-mll/glue:mnli", "premise", "hypothesis", _ENTAILMENT),
    "qnli": Preset("nyu-mll/glue:qnli", "question", "sentence", ("entailment", "not_entailment")),
    "rte": Preset("nyu-mll/glue:rte", "sentence1", "sentence2", ("entailment", "not_entailment")),
    "cola": Preset("nyu-mll/glue:cola", "sentence", None, ("unacceptable", "acceptable"), ("matthews_correlation",)),
    "stsb": Preset("nyu-mll/glue:stsb", "sentence1", "sentence2", ("score",), ("pearson", "spearmanr"), "regression"),
    "rotten_tomatoes": Preset("cornell-movie-review-data/rotten_tomatoes", "text", None, ("neg", "pos")),
    "imdb": Preset("stanfordnlp/imdb", "text", None, ("neg", "pos")),
    "snli": Preset("stanfordnlp/snli", "premise", "hypothesis", _ENTAILMENT),
    "ag_news": Preset("fancyzhx/ag_news", "text", None, ("World", "Sports", "Business", "Sci/Tech")),
}
# What the parts are called in the wild; MNLI's are its matched ones, IMDB's unlabelled reviews are "unsupervised"
SPLIT_NAMES = {
    "train": ("train",),
    "validation": ("validation", "validation_matched", "dev", "valid", "val"),
    "test": ("test", "test_matched"),
    "unlabeled": ("unlabeled", "unsupervised"),
}


@dataclass
class Split:
    """Texts (N) or pairs of texts, with what is known of them.

    ``labels``: single_label int64 (N,), -100 = unknown; regression float32 (N,), multi_label float32 (N, C) of 0 and 1,
    NaN = unknown. ``soft_labels``: float32 (N, C) probabilities.
    """

    texts: list[str]
    pairs: list[str] | None = None
    labels: np.ndarray | None = None
    soft_labels: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.texts)

    def select(self, indices: Sequence[int] | np.ndarray) -> Split:
        """The named examples, in that order."""
        rows = np.asarray(indices, dtype=np.int64)
        texts, pairs = (values and [values[row] for row in rows] for values in (self.texts, self.pairs))
        labels, soft = (array if array is None else array[rows] for array in (self.labels, self.soft_labels))
        return Split(texts, pairs, labels, soft)


@dataclass
class Task:
    """A text-classification or regression task, whole and checked.

    ``metrics``: the first is the one that counts. ``notes``: what was left out, held out or guessed, for the user.
    """

    name: str
    problem_type: str
    label_names: tuple[str, ...]
    metrics: tuple[str, ...]
    train: Split
    validation: Split
    test: Split | None = None
    unlabeled: Split | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def num_labels(self) -> int:
        """C; 1 in regression."""
        return len(self.label_names)

    @property
    def is_pair(self) -> bool:
        """Whether an example is two texts."""
        return self.train.pairs is not None

    @property
    def metric(self) -> str:
        """The metric that counts."""
        return self.metrics[0]

    @property
    def held_out(self) -> Split:
        """The split on which the final score is taken: test where its labels are known, else validation."""
        return self.validation if self.test is None else self.test


# --- tables: rows that know their line -----------------------------------------------------------------------------


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
            raise DataError(f"{self.where}: {setting}: no column {name!r}; columns: {', '.join(self.columns)}")
        return self.columns[name]

    def reject(self, row: int, column: str, message: str) -> None:
        """Note that a row is bad."""
        self.bad.setdefault(row, f"column {column!r}: {message}")

    def good_rows(self, *, skip_bad_rows: bool, notes: list[str]) -> np.ndarray:
        """Indices of the rows that passed. Raises ``DataError`` with the number and the first of the others."""
        problems = sorted(self.broken + [(self.numbers[row], message) for row, message in self.bad.items()])
        if problems:
            shown = "; ".join(f"{self.unit} {number}: {message}" for number, message in problems[:SHOWN_ROWS])
            more = f"; and {len(problems) - SHOWN_ROWS} more" if len(problems) > SHOWN_ROWS else ""
            report = f"{self.where}: {len(problems)} bad row{'s' * (len(problems) > 1)}: {shown}{more}"
            if not skip_bad_rows:
                raise DataError(f"{report}. Mend them, or leave them out with --skip_bad_rows")
            notes.append(f"left out: {report}")
        good = np.array([row for row in range(len(self.numbers)) if row not in self.bad], dtype=np.int64)
        if not len(good):
            raise DataError(f"{self.where}: no examples{' are left' if problems else ''}")
        return good


def read_table(path: Path, setting: str) -> Table:
    """Read csv, tsv, jsonl or parquet. ``setting`` is the flag that named the file.

    Raises ``ConfigError`` when there is no such file or its suffix is unknown, ``DataError`` when it cannot be read.
    """
    suffix = _check_file(path, setting, SUFFIXES)
    if suffix == ".parquet":
        table = _read_parquet(path)
    elif suffix == ".jsonl":
        table = _read_jsonl(_read_text(path), str(path))
    else:
        table = _read_csv(_read_text(path), str(path), delimiter="\t" if suffix == ".tsv" else ",")
    if not table.numbers:
        table.good_rows(skip_bad_rows=False, notes=[])  # raises: says which lines are broken, or that there are none
    return table


def _check_file(path: Path, setting: str, suffixes: Sequence[str]) -> str:
    if path.is_dir():
        raise ConfigError(f"{setting}: {path} is a directory; expected: a file, {', '.join(suffixes)}")
    if path.suffix.lower() not in suffixes:
        raise ConfigError(f"{setting}: {path}: unknown suffix {path.suffix!r}; choices: {', '.join(suffixes)}")
    if not path.is_file():
        raise ConfigError(f"{setting}: {path}: no such file")
    return path.suffix.lower()


def _read_text(path: Path) -> str:
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


def _read_csv(text: str, where: str, *, delimiter: str) -> Table:
    """With a header; a row's number is the line on which it begins, quoted line breaks counted."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
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
            broken.append((number, f"cannot be read ({error}; quotes inside a quoted field are doubled)"))
            continue
        if not row:
            continue
        if header is None:
            header = [name.strip() for name in row]
            if len(set(header)) < len(header):
                raise DataError(f"{where}: line {number}: a column name stands twice: {', '.join(header)}")
        elif len(row) != len(header):
            broken.append((number, f"{len(row)} fields where the header has {len(header)}"))
        else:
            rows.append(row)
            numbers.append(number)
    columns = {name: [row[i] for row in rows] for i, name in enumerate(header or ())}
    return Table(where, columns, numbers, is_typed=False, broken=broken)


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
            return _from_arrow(file.read(), str(path))
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: no parquet file can be read ({_one_line(error)})") from error


def _from_arrow(data: pa.Table, where: str) -> Table:
    class_names = {}
    if b"huggingface" in (data.schema.metadata or {}):
        from datasets import ClassLabel, Features  # slow to import, and only this knows its own metadata

        for name, feature in Features.from_arrow_schema(data.schema).items():
            feature = getattr(feature, "feature", feature)  # a list of class labels: multi-label
            if isinstance(feature, ClassLabel):
                class_names[name] = tuple(feature.names)
    return Table(where, data.to_pydict(), range(1, data.num_rows + 1), unit="row", class_names=class_names)


# --- sources ---------------------------------------------------------------------------------------------------------


@dataclass
class Source:
    """Tables by split (``train`` at least) and what is known of their columns beforehand."""

    name: str
    tables: dict[str, Table]
    text: str
    pair: str | None
    label: str
    preset: Preset | None = None
    is_published: bool = False  # from the hub: -1 is a hidden label, and its users cannot mend its rows


def load_task(config: TaskConfig, *, seed: int = 42, cache: Path | None = None) -> Task:
    """The task a user asked for: the demo, a preset, a hub data set or files.

    ``seed`` draws the held-out examples where there is no validation split; ``cache`` keeps the demo's download.
    Raises ``ConfigError`` when the request cannot be met, ``DataError`` when the data are not fit to learn from.
    """
    if config.problem_type is not None:
        check_choice("problem_type", config.problem_type, ("single_label", "multi_label", "regression"))
    is_demo = config.task == "demo" and not config.train_file
    task = _load_demo(config, cache) if is_demo else _build(_source(config), config, seed)
    if config.unlabeled_file:
        task.unlabeled = _read_unlabeled(config, task)
    return task


def _load_demo(config: TaskConfig, cache: Path | None) -> Task:
    assets = None if config.demo_assets is None else Path(config.demo_assets)
    with tempfile.TemporaryDirectory() as scratch:
        reviews = fetch_demo_reviews(Path(scratch) if cache is None else cache, assets)
    return demo_task(reviews, metric=config.metric)


def demo_task(reviews: Sequence[tuple[str, float]], *, metric: str | None = None) -> Task:
    """Movie-review sentences with their mean rating; positive = above 0. 80/10/10 by a fixed seed."""
    whole = Split([text for text, _ in reviews], labels=np.array([rating > 0 for _, rating in reviews], dtype=np.int64))
    order = np.random.default_rng(DEMO_SPLIT_SEED).permutation(len(whole))
    test, validation, train = np.split(order, [len(whole) // 10, 2 * (len(whole) // 10)])
    metrics = choose_metrics("single_label", 2, asked=metric)
    notes = ["demo: movie-review sentences of Hutto and Gilbert (2014); positive where the mean rating is above 0"]
    splits = map(whole.select, (train, validation, test))
    return Task("demo", "single_label", ("negative", "positive"), metrics, *splits, notes=notes)


def _preset(name: str) -> Preset | None:
    """By its own name or by the hub's."""
    return PRESETS.get(name) or next((preset for preset in PRESETS.values() if preset.hub == name), None)


def _source(config: TaskConfig) -> Source:
    name, columns = config.task, (config.text_column, config.text_pair_column, config.label_column)
    files = {split: getattr(config, f"{split}_file") for split in ("train", "validation", "test")}
    if Path(name).suffix.lower() in SUFFIXES and not files["train"]:
        files["train"], name = name, Path(name).stem
    if files["train"]:
        tables = {split: read_table(Path(path), f"{split}_file") for split, path in files.items() if path}
        return Source(name, tables, *columns)
    if files["validation"] or files["test"]:
        raise ConfigError("validation_file, test_file: given without train_file")
    preset = _preset(name)
    if preset:
        columns = (preset.text, preset.pair, "label")
    if config.data_dir:
        tables = _read_folder(Path(config.data_dir), name)
        return Source(name, tables, *columns, preset, is_published=preset is not None)
    if preset is None and not re.fullmatch(r"[\w.-]+/[\w.-]+(:[\w.-]+)?", name):
        close = difflib.get_close_matches(name, ["demo", *PRESETS], n=1)
        hint = f" (did you mean {close[0]!r}?)" if close else ""
        choices = f"demo, {', '.join(PRESETS)}, a hub id owner/name[:configuration], or --train_file"
        raise ConfigError(f"task: {name!r} is not known{hint}; choices: {choices}")
    return Source(name, _download(preset.hub if preset else name), *columns, preset, is_published=True)


def _read_folder(data_dir: Path, name: str) -> dict[str, Table]:
    folder = data_dir / name
    if not folder.is_dir():
        there = sorted(entry.name for entry in data_dir.iterdir() if entry.is_dir()) if data_dir.is_dir() else []
        raise ConfigError(f"data_dir: {folder} is not a folder; folders in {data_dir}: {', '.join(there) or 'none'}")
    files = {entry.stem: entry for entry in sorted(folder.iterdir()) if entry.suffix == ".parquet"}
    if "train" not in files:
        there = ", ".join(sorted(os.listdir(folder))) or "none"
        raise ConfigError(f"data_dir: {folder} holds no train.parquet; files: {there}")
    found = {split: next((n for n in names if n in files), None) for split, names in SPLIT_NAMES.items()}
    return {split: read_table(files[n], "data_dir") for split, n in found.items() if n}


def _download(hub: str) -> dict[str, Table]:
    """A hub data set through ``datasets``, which keeps it in its own cache and respects the offline flags."""
    import datasets  # a second to import

    name, _, configuration = hub.partition(":")
    try:
        parts = datasets.load_dataset(name, configuration or None)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        choices = "a hub that can be reached, a copy in its cache (HF_HOME), --data_dir, or --train_file"
        raise DataError(f"task: {hub!r} cannot be had from the hub ({_one_line(error)}); choices: {choices}") from error
    found = {split: next((n for n in names if n in parts), None) for split, names in SPLIT_NAMES.items()}
    if found["train"] is None:
        raise DataError(f"task: data set {hub!r} has no split 'train'; splits: {', '.join(parts)}")
    return {split: _from_arrow(parts[n].with_format("arrow")[:], f"{hub}[{n}]") for split, n in found.items() if n}


# --- columns to splits -----------------------------------------------------------------------------------------------


@dataclass
class Schema:
    """How labels are read: the problem, the names in order, and the soft-label column of each name."""

    problem_type: str
    names: tuple[str, ...]
    has_gold: bool
    is_numbered: bool = False  # integers are the labels' numbers (presets, class labels), not their names
    soft_columns: tuple[str, ...] = ()


def _build(source: Source, config: TaskConfig, seed: int) -> Task:
    notes: list[str] = []
    labeled = {split: table for split, table in source.tables.items() if split != "unlabeled"}
    parts = {split: _without_hidden(table, split, source, notes) for split, table in labeled.items()}
    tables = {split: table for split, table in parts.items() if table is not None}
    if "train" not in tables:
        raise DataError(f"{source.tables['train'].where}: column {source.label!r}: every label is hidden")
    schema = _read_schema(tables["train"], source, config, notes)
    skip = config.skip_bad_rows or source.is_published
    splits = {split: _split(table, source, schema, split, skip, notes) for split, table in tables.items()}
    _check_learnable(splits["train"], schema, source, notes)
    if "validation" not in splits:
        splits["train"], splits["validation"] = _hold_out(splits["train"], seed)
        notes.append(f"no validation split: {len(splits['validation'])} training examples are held out (seed {seed})")
    for split in ("validation", "test"):
        if split in splits and not is_known(splits[split].labels).any():
            where = tables.get(split, tables["train"]).where
            raise DataError(f"{where}: column {source.label!r}: no {split} example has a label")
    if "unlabeled" in source.tables:
        splits["unlabeled"] = _split(source.tables["unlabeled"], source, None, "unlabeled", skip, notes)
    own = source.preset.metrics if source.preset and schema.problem_type == source.preset.problem_type else ()
    skewed = is_skewed(splits.get("test", splits["validation"]).labels)
    metrics = choose_metrics(schema.problem_type, len(schema.names), own=own, asked=config.metric, skewed=skewed)
    return Task(source.name, schema.problem_type, schema.names, metrics, **splits, notes=notes)


def _without_hidden(table: Table, split: str, source: Source, notes: list[str]) -> Table | None:
    """The rows of a published set that have a label: -1 stands for a hidden one. None when all are hidden."""
    if not source.is_published and source.label not in table.class_names:
        return table
    labels = table.columns.get(source.label)
    if labels is None and split == "test":
        notes.append(f"{table.where}: no column {source.label!r}; the final score is taken on validation")
        return None
    keep = [row for row, label in enumerate(labels or ()) if not (isinstance(label, (int, float)) and label == -1)]
    if labels is None or len(keep) == len(labels):
        return table
    if not keep:
        notes.append(f"{table.where}: the labels are hidden; left out")
        return None
    notes.append(f"{table.where}: {len(labels) - len(keep)} rows without a label (-1) left out")
    columns = {name: [values[row] for row in keep] for name, values in table.columns.items()}
    return dataclasses.replace(table, columns=columns, numbers=[table.numbers[row] for row in keep])


def _read_schema(train: Table, source: Source, config: TaskConfig, notes: list[str]) -> Schema:
    """What the training table's labels are. Rows whose label is of another type than the most are rejected."""
    soft = tuple(config.soft_label_columns or ())
    for column in soft:
        train.column(column, "soft_label_columns")
    if soft and source.label not in train.columns and source.label == TaskConfig.label_column:
        notes.append(f"{train.where}: no column {source.label!r}: the likeliest soft label stands in for it")
        if config.problem_type == "regression":
            raise ConfigError("soft_label_columns: probabilities cannot be the labels of a regression")
        return Schema(config.problem_type or "single_label", _strip_prefix(soft), False, soft_columns=soft)
    values = [_plain(value, train.is_typed) for value in train.column(source.label, "label_column")]
    kinds = Counter(kind for kind in map(_kind, values) if kind != "missing")
    usual = kinds.most_common(1)[0][0] if kinds else "missing"
    names = source.preset.label_names if source.preset else train.class_names.get(source.label)
    declared = config.problem_type or (source.preset.problem_type if source.preset else None)
    problem_type = declared or _guess(values, usual, is_named=names is not None)
    if declared is None and names is None:
        notes.append(f"{train.where}: column {source.label!r}: taken for {problem_type}; problem_type overrules it")
    if problem_type == "regression":
        if soft:
            raise ConfigError("soft_label_columns: not for a regression; problem_type choices: single_label, multi_label")
        return Schema(problem_type, ("score",), True)
    is_numbered = names is not None
    if names is None and problem_type == "multi_label":
        tags = {tag if _kind(tag) in ("text", "number") else None for value in values for tag in _tags(value)}
        names = _sorted_names({str(tag) for tag in tags if tag is not None})
    elif names is None:
        if usual not in ("text", "number", "missing"):
            raise DataError(f"{train.where}: column {source.label!r}: labels are a {usual}; expected: texts or numbers")
        for row, value in enumerate(values):
            if _kind(value) not in (usual, "missing"):
                train.reject(row, source.label, f"{value!r} is a {_kind(value)} where most labels are a {usual}")
        names = _sorted_names({value for value in values if _kind(value) == usual})
    if soft:
        names, soft = _match_soft(names, soft, source.label, train.where, notes, may_grow=not is_numbered)
    return Schema(problem_type, names, True, is_numbered, soft)


def _split(table: Table, source: Source, schema: Schema | None, split: str, skip: bool, notes: list[str]) -> Split:
    """Check a table's columns, report its bad rows, and keep the good ones. Without a schema: texts only."""
    texts = _texts(table, source.text, "text_column")
    pairs = None if source.pair is None else _texts(table, source.pair, "text_pair_column")
    labels = soft = None
    if schema is not None:
        if schema.soft_columns and (split == "train" or schema.soft_columns[0] in table.columns):
            soft = _soft_labels(table, schema)
        if soft is not None and source.label not in table.columns and not schema.has_gold:
            labels = soft.argmax(axis=1) if schema.problem_type == "single_label" else (soft > 0.5).astype(np.float32)
        else:
            labels = _labels(table, source.label, schema, may_be_missing=soft is not None)
    rows = table.good_rows(skip_bad_rows=skip, notes=notes)
    return Split(texts, pairs, labels, soft).select(rows)


def _texts(table: Table, column: str, setting: str) -> list[str]:
    values = table.column(column, setting)
    for row, value in enumerate(values):
        if not isinstance(value, str):
            table.reject(row, column, "no text" if value is None else f"{value!r} is not a text")
        elif not value.strip():
            table.reject(row, column, "empty text")
        elif SURROGATE.search(value):
            table.reject(row, column, f"half a character (a lone surrogate) in {value[:40]!r}")
    return values


def _labels(table: Table, column: str, schema: Schema, *, may_be_missing: bool) -> np.ndarray:
    """Gold labels as ``Split`` has them; a row whose label cannot be read is rejected."""
    values = [_plain(value, table.is_typed) for value in table.column(column, "label_column")]
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
            if _kind(value) == "number" and math.isfinite(value):
                labels[row] = value
            else:
                table.reject(row, column, f"label {value!r} is not a finite number")
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


def _soft_labels(table: Table, schema: Schema) -> np.ndarray:
    """Probabilities (N, C) float32: finite, from 0, and in single-label tasks with sum 1."""
    soft_NC = np.zeros((len(table.numbers), len(schema.soft_columns)), dtype=np.float32)
    for c, column in enumerate(schema.soft_columns):
        for row, value in enumerate(table.column(column, "soft_label_columns")):
            try:
                soft_NC[row, c] = probability = float(value)
            except (TypeError, ValueError):
                table.reject(row, column, f"soft label {value!r} is not a number")
                continue
            if not 0 <= probability <= 1 + SOFT_SUM_TOLERANCE:
                table.reject(row, column, f"soft label {value!r} is not a probability; choices: 0 to 1")
    if schema.problem_type == "single_label":
        for row in np.flatnonzero(~(np.abs(soft_NC.sum(axis=1) - 1) <= SOFT_SUM_TOLERANCE)):
            total = f"{soft_NC[row].sum():.4g}"
            table.reject(int(row), "+".join(schema.soft_columns), f"the soft labels sum to {total}, not 1")
    return soft_NC


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


def _check_learnable(train: Split, schema: Schema, source: Source, notes: list[str]) -> None:
    """Raise ``DataError`` when the training labels hold one value only, or one example of a class."""
    column = source.label if schema.has_gold else "+".join(schema.soft_columns)
    place = f"{source.tables['train'].where}: column {column!r}"
    labels = train.labels[is_known(train.labels)]
    if len(train) < 2:
        raise DataError(f"{place}: {len(train)} example; at least two are needed")
    if schema.problem_type != "multi_label" and len(labels) and np.all(labels == labels[0]):
        is_value = schema.problem_type == "regression"
        only = f"value, {labels[0]:g}," if is_value else f"class, {schema.names[labels[0]]!r},"
        raise DataError(f"{place}: only one {only} in {len(labels)} examples; at least two are needed")
    if schema.problem_type == "regression":
        return
    is_single = schema.problem_type == "single_label"
    counts_C = np.bincount(labels, minlength=len(schema.names)) if is_single else labels.sum(axis=0)
    few = [name for name, count in zip(schema.names, counts_C) if count == 1]
    shown = f"{len(few)} of {len(schema.names)} labels have one example only: {', '.join(few[:SHOWN_ROWS])}"
    if few and is_single and train.soft_labels is None:
        raise DataError(f"{place}: {shown}; each needs two (if they are amounts: problem_type regression)")
    if few:
        notes.append(f"{place}: {shown}")


def _hold_out(train: Split, seed: int) -> tuple[Split, Split]:
    """Training and held-out examples: 10% by a seed, of each class where there are classes (at least one of two)."""
    generator = np.random.default_rng(seed)
    groups = [np.arange(len(train))]
    if train.labels.dtype == np.int64:
        groups = [np.flatnonzero(train.labels == label) for label in np.unique(train.labels)]
    shuffled = [generator.permutation(group) for group in groups]
    sizes = [max(round(HELD_OUT_SHARE * len(group)), 1) if len(group) > 1 else 0 for group in groups]
    held = np.sort(np.concatenate([group[:size] for group, size in zip(shuffled, sizes)]))
    return train.select(np.setdiff1d(np.arange(len(train)), held)), train.select(held)


def _read_unlabeled(config: TaskConfig, task: Task) -> Split:
    """More texts, from a table with the task's text columns or, one a line, from a txt file."""
    path = Path(config.unlabeled_file)
    if _check_file(path, "unlabeled_file", (".txt", *SUFFIXES)) == ".txt":
        if task.is_pair:
            raise ConfigError(f"unlabeled_file: {path}: a line holds no pair of texts; choices: {', '.join(SUFFIXES)}")
        return Split([line.strip() for line in _read_text(path).split("\n") if line.strip()])
    table, preset = read_table(path, "unlabeled_file"), None if config.train_file else _preset(task.name)
    text, pair = config.text_column, config.text_pair_column if task.is_pair else None
    if preset and text not in table.columns:  # a preset's extra texts may have its columns or those of the settings
        text = preset.text
    if preset and pair not in table.columns:
        pair = preset.pair
    source = Source(task.name, {"unlabeled": table}, text, pair, config.label_column)
    return _split(table, source, None, "unlabeled", config.skip_bad_rows, task.notes)


# --- label values ----------------------------------------------------------------------------------------------------


def _plain(value: Any, is_typed: bool) -> Any:
    """A label as None, str, int, float or tuple: numbers are read out of csv, whole floats become ints, bools names."""
    if isinstance(value, (list, tuple)):
        return tuple(_plain(element, is_typed) for element in value)
    if isinstance(value, bool):
        return str(value)
    if isinstance(value, str):
        value = value.strip()
        if is_typed or not NUMBER.fullmatch(value):
            return value
        value = float(value) if set(value) & set(".eE") else int(value)
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _kind(value: Any) -> str:
    if value is None or value == "" or (isinstance(value, float) and math.isnan(value)):
        return "missing"
    kinds = {str: "text", int: "number", float: "number", tuple: "list"}
    return kinds.get(type(value), type(value).__name__)


def _guess(values: Iterable[Any], usual: str, *, is_named: bool) -> str:
    if any(isinstance(value, tuple) or (isinstance(value, str) and "|" in value) for value in values):
        return "multi_label"
    is_real = usual == "number" and any(isinstance(value, float) and math.isfinite(value) for value in values)
    return "regression" if is_real and not is_named else "single_label"


def _tags(value: Any) -> list[Any]:
    """The labels of one multi-label example."""
    if isinstance(value, tuple):
        return list(value)
    if isinstance(value, str):
        return [tag.strip() for tag in value.split("|") if tag.strip()]
    return [] if _kind(value) == "missing" else [value]


def _sorted_names(values: set[Any]) -> tuple[str, ...]:
    """Numbers (also written as text) by size, everything else by letter."""
    is_numeric = all(NUMBER.fullmatch(str(value)) for value in values)
    return tuple(map(str, sorted(values, key=(lambda v: float(v)) if is_numeric else str)))


def _strip_prefix(columns: tuple[str, ...]) -> tuple[str, ...]:
    """Column names without what they share up to a separator: p_neg, p_pos -> neg, pos."""
    shared = len(re.sub(r"[^_.:-]*$", "", os.path.commonprefix(columns))) if len(columns) > 1 else 0
    return tuple(column[shared:] or column for column in columns)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


# --- texts to tokens -------------------------------------------------------------------------------------------------

_ABBREVIATION = r"(?<!\b[A-Z]\.)(?<!\bMr\.)(?<!\bMs\.)(?<!\bDr\.)(?<!\bSt\.)(?<!\bvs\.)(?<!\bMrs\.)"
_SENTENCE_END = re.compile(rf"""(?<=[.!?]){_ABBREVIATION}\s+|(?<=[.!?]["')\]])\s+|\n+""")


def split_sentences(texts: Iterable[str], *, shortest: int = 3, longest: int = 60) -> list[str]:
    """Sentences of ``shortest`` to ``longest`` words, HTML line breaks taken for paragraph ends. Rules, no model."""
    sentences = []
    for text in texts:
        for sentence in _SENTENCE_END.split(re.sub(r"(<br\s*/?>\s*)+", "\n", text)):
            words = sentence.split()
            if shortest <= len(words) <= longest:
                sentences.append(" ".join(words))
    return sentences


def tokenize(
    split: Split, tokenizer: PreTrainedTokenizerBase, max_length: int, *,
    cache: Path, name: str, progress: Progress | None = None,
) -> tuple[TokenStore, int]:
    """All texts as word pieces with special tokens, mapped from ``cache``, and how many were cut to ``max_length``.

    Pairs are cut longest text first. Done once: the files' name holds a fingerprint of texts, tokenizer and length.
    Raises ``ModelError`` for a tokenizer without a fast version, ``ConfigError`` when it cannot take ``max_length``.
    """
    if not tokenizer.is_fast:
        raise ModelError(f"tokenizer {tokenizer.name_or_path!r} ({type(tokenizer).__name__}) has no fast version")
    if max_length > tokenizer.model_max_length:
        most = f"tokenizer {tokenizer.name_or_path!r} takes up to {tokenizer.model_max_length}"
        raise ConfigError(f"max_seq_length: {max_length} is too long; {most}")
    rules = json.loads(tokenizer.backend_tokenizer.to_str())
    for key in ("truncation", "padding"):  # left over from the last call
        rules.pop(key, None)
    name = f"{name}-{fingerprint(split.texts, split.pairs, rules, max_length)}"
    if (store := TokenStore.load(cache, name)) is not None:
        return store, read_json(cache / f"{name}.json")["cut"]
    cut = 0

    def sequences(report: Callable[..., None]) -> Iterable[list[int]]:
        nonlocal cut
        for start in range(0, len(split), CHUNK_TEXTS):
            chunk = slice(start, start + CHUNK_TEXTS)
            batch = tokenizer(
                split.texts[chunk], split.pairs and split.pairs[chunk], truncation="longest_first",
                max_length=max_length, padding=False, return_attention_mask=False, return_token_type_ids=False,
            )  # fmt: skip
            cut += sum(bool(encoding.overflowing) for encoding in batch.encodings)
            yield from batch["input_ids"]
            report(min(start + CHUNK_TEXTS, len(split)), cut=cut)

    progress = progress or Progress()
    progress.stage(f"tokenize {name.rsplit('-', 1)[0]}", total=len(split))
    store = TokenStore.from_lists(sequences(progress.step))
    write_json(cache / f"{name}.json", {"texts": len(store), "cut": cut, "max_length": max_length})
    store.save(cache, name)  # last: its presence says that all is there
    return TokenStore.load(cache, name), cut
