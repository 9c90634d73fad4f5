"""A task: labelled texts, pairs or questions from a preset, the hub or files, checked row by row before any work begins.

Three steps: a source is read into tables that know the line of every row, the tables' columns are checked and turned
into splits (every bad row is collected, not just the first), and what is missing is held out.
Dimensions: N examples, C labels.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from adasearch.demo_assets import fetch_demo_reviews
from adasearch.errors import ConfigError, DataError
from adasearch.files import fingerprint
from adasearch.labels import Schema, check_learnable, drop_single, has_labels, likeliest, read_labels, read_schema, read_soft_labels, text_columns
from adasearch.metrics import choose_metrics, is_known, is_skewed
from adasearch.questions import asks_questions, question_metrics, read_questions
from adasearch.settings import check_choice
from adasearch.sources import Source, find_preset, find_source
from adasearch.tables import Table, read_lines, read_table
from adasearch.task_config import PROBLEM_TYPES, QUESTION_ANSWERING, TaskConfig
from adasearch.texts import Split

HELD_OUT_SHARE = 0.1  # of the training examples, when there is no validation split
_DRAW_STREAM = 0x6472  # keeps the random numbers of the draw apart from every other use of the run's seed
DEMO_SPLIT_SEED = 42  # the demo's split is part of the task: it does not move with the run's seed


@dataclass
class Task:
    """A text-classification, regression or question-answering task, whole and checked.

    In question answering the splits are ``Questions`` and the labels' names "start" and "end".
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

    @property
    def has_gold(self) -> bool:
        """Whether the labels of the final score say more than that the likeliest soft labels are right."""
        labels, soft = self.held_out.labels, self.held_out.soft_labels
        return labels is None or soft is None or not np.array_equal(labels, likeliest(soft, self.problem_type))

    @property
    def scored(self) -> int:
        """How many examples the final score is taken on: those of ``held_out`` that have a label."""
        return len(self.held_out) if self.problem_type == QUESTION_ANSWERING else int(is_known(self.held_out.labels).sum())

    @property
    def splits(self) -> dict[str, Split]:
        """What a model is trained, watched and scored on."""
        return {"train": self.train, "validation": self.validation, "held_out": self.held_out}

    @cached_property
    def data(self) -> dict[str, dict[str, Any]]:
        """What tells the data from others: of every split the number of examples, a fingerprint of its texts and one of its labels.

        A second for a few hundred megabytes of text, once: a run asks for it when it is checked and when it begins.
        """
        splits = {name: getattr(self, name) for name in ("train", "validation", "test", "unlabeled")}
        return {
            name: {
                "examples": len(split),
                "texts": fingerprint(split.texts, split.pairs),
                "labels": fingerprint(self.problem_type, self.label_names, *split.gold),
            }
            for name, split in splits.items() if split is not None
        }  # fmt: skip


def load_task(config: TaskConfig, *, seed: int = 42, cache: Path | None = None) -> Task:
    """The task a user asked for: the demo, a preset, a hub data set or files.

    ``seed`` draws the held-out examples where there is no validation split; ``cache`` keeps the demo's download.
    Raises ``ConfigError`` when the request cannot be met, ``DataError`` when the data are not fit to learn from.
    """
    if config.problem_type is not None:
        check_choice("problem_type", config.problem_type, (*PROBLEM_TYPES, QUESTION_ANSWERING))
    if asks_questions(config):
        return _with_fewer(_question_task(config, seed), config.max_train_examples, seed)
    is_demo = config.task == "demo" and not config.train_file
    task = _load_demo(config, cache) if is_demo else _build(find_source(config), config, seed)
    task = _with_fewer(task, config.max_train_examples, seed)
    for name, split in (("held-out", task.held_out), *([] if task.test is None else [("validation", task.validation)])):
        if copies := count_copies(task.train, split):
            task.notes.append(f"{copies} of {len(split)} {name} texts also stand in the training texts: they are known, not predicted")
    if config.unlabeled_file:
        task.unlabeled = _read_unlabeled(config, task)
    if task.unlabeled is not None and (copies := count_copies(task.unlabeled, task.held_out)):
        task.notes.append(f"{copies} of {len(task.held_out)} held-out texts also stand among those without labels: students learn what the teacher says of them")
    return task


def _question_task(config: TaskConfig, seed: int) -> Task:
    notes: list[str] = []
    name, splits = read_questions(config, seed, notes)
    return Task(name, QUESTION_ANSWERING, ("start", "end"), question_metrics(config.metric), **splits, notes=notes)


def _load_demo(config: TaskConfig, cache: Path | None) -> Task:
    """The demo's own data. Raises ``ConfigError`` for settings of other data, which would be passed over."""
    others = ("validation_file", "test_file", "soft_label_columns", "problem_type", "data_dir")
    columns = () if config.unlabeled_file else ("text_column", "text_pair_column", "label_column")  # else they may be that file's
    given = [name for name in (*others, *columns) if getattr(config, name) != getattr(TaskConfig, name)]
    if given:
        raise ConfigError(f"task: the demo brings its own data, for which there is no {', no '.join(given)}; choices: leave it out, or --train_file FILE")
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


def _build(source: Source, config: TaskConfig, seed: int) -> Task:
    named = [column for column in (source.text, source.pair, source.label, *(config.soft_label_columns or ())) if column]
    if twice := [column for column in dict.fromkeys(named) if named.count(column) > 1]:
        settings = "text_column, text_pair_column, label_column, soft_label_columns"
        raise ConfigError(f"{settings}: {twice[0]!r} stands there twice; choices: a column of its own for each")
    notes: list[str] = []
    labeled = {split: table for split, table in source.tables.items() if split != "unlabeled"}
    parts = {split: _without_hidden(table, split, source, notes) for split, table in labeled.items()}
    tables = {split: table for split, table in parts.items() if table is not None}
    if "train" not in tables:
        raise DataError(f"{source.tables['train'].where}: column {source.label!r}: every label is hidden")
    _texts(tables["train"], source)  # a label that only rows without a text have is none
    schema = read_schema(tables["train"], source, config, notes)
    skip = config.skip_bad_rows or source.is_published
    splits = {split: _split(table, source, schema, split, skip, notes) for split, table in tables.items()}
    holds_out = "validation" not in splits
    if holds_out and config.skip_bad_rows:
        schema = drop_single(splits, schema, notes)
    check_learnable(splits["train"], schema, source, notes, holds_out=holds_out)
    if holds_out:
        splits["train"], splits["validation"] = hold_out(splits["train"], seed)
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


def _split(table: Table, source: Source, schema: Schema | None, split: str, skip: bool, notes: list[str]) -> Split:
    """Check a table's columns, report its bad rows, and keep the good ones. Without a schema: texts only."""
    texts, pairs = _texts(table, source)
    labels = soft = None
    if schema is not None:
        if schema.soft_columns and (split == "train" or schema.soft_columns[0] in table.columns):
            soft = read_soft_labels(table, schema)
        if soft is not None and not schema.has_gold and not has_labels(table, source.label):
            labels = likeliest(soft, schema.problem_type)
        else:
            labels = read_labels(table, source.label, schema, may_be_missing=soft is not None)
    rows = table.good_rows(skip_bad_rows=skip, notes=notes)
    return Split(texts, pairs, labels, soft).select(rows)


def _texts(table: Table, source: Source) -> tuple[list[str], list[str] | None]:
    """The texts and, of pairs, the second ones; rows that lack one are rejected."""
    return table.texts(source.text, "text_column"), None if source.pair is None else table.texts(source.pair, "text_pair_column")


def hold_out(train: Split, seed: int) -> tuple[Split, Split]:
    """Training and held-out examples: 10% by a seed, of each class where there are classes (at least one of two).

    A text that stands in several rows is held out in all of them, or in none: what was learned from one is known in the others. Only a
    class that has one text alone is parted by rows. Examples without a gold label stay: there is nothing to score in them.
    """
    generator = np.random.default_rng(seed)
    known_N = np.flatnonzero(is_known(train.labels))
    keys = list(_keys(train))
    first = {}  # of every text the first row that has it, which stands for all of them
    rows_of: dict[int, list[int]] = {}
    for row in known_N.tolist():
        rows_of.setdefault(first.setdefault(keys[row], row), []).append(row)
    texts_M = np.array(list(rows_of), dtype=np.int64)
    classes_M = train.labels[texts_M] if train.labels.dtype == np.int64 else np.zeros(len(texts_M), np.int64)
    held = [row for label in np.unique(classes_M) for row in _drawn(texts_M[classes_M == label], rows_of, generator)]
    held_H = np.array(sorted(held), dtype=np.int64)
    return train.select(np.setdiff1d(np.arange(len(train)), held_H)), train.select(held_H)


def _drawn(texts: np.ndarray, rows_of: Mapping[int, list[int]], generator: np.random.Generator) -> list[int]:
    """The held-out rows of one class: those of the texts drawn whose rows fit into what is left of its share; of the rarest where none do."""
    units = [[row] for row in rows_of[texts[0]]] if len(texts) == 1 else [rows_of[text] for text in texts.tolist()]
    if len(units) < 2:
        return []
    drawn = [units[index] for index in generator.permutation(len(units))]
    room, held = max(round(HELD_OUT_SHARE * sum(map(len, drawn))), 1), []
    for unit in drawn:
        if len(unit) <= room - len(held):
            held += unit
    return held or min(drawn, key=len)


def _with_fewer(task: Task, count: int | None, seed: int) -> Task:
    """The task with ``count`` of its training examples, in their order; a class has its share of them, give or take one.

    Raises ``DataError`` where a class would have none.
    """
    whole = len(task.train)
    if count is None or count >= whole:
        return task
    generator = np.random.default_rng((seed, _DRAW_STREAM))
    labels_N = task.train.labels if task.problem_type == "single_label" else np.zeros(whole, np.int64)
    place_N = np.empty(whole)  # how far down its shuffled class an example stands: the first ones of all are the draw
    for label in np.unique(labels_N):
        rows = generator.permutation(np.flatnonzero(labels_N == label))
        place_N[rows] = (np.arange(len(rows)) + 0.5) / len(rows)
    order = np.argsort(place_N, kind="stable")
    known, first = np.unique(labels_N[order], return_index=True)
    if (last := first[is_known(known)].max(initial=0)) >= count:
        raise DataError(f"max_train_examples: of {count} examples none has the label {task.label_names[labels_N[order[last]]]!r}; choices: {last + 1} or more")
    task.notes.append(f"{count} of {whole} training examples are learned from (max_train_examples, seed {seed})")
    return dataclasses.replace(task, train=task.train.select(np.sort(order[:count])))


def count_copies(train: Split, held_out: Split) -> int:
    """How many held-out texts (pairs: both texts) stand letter by letter in the training texts."""
    known = {*_keys(train)}
    return sum(key in known for key in _keys(held_out))


def _keys(split: Split) -> Iterator[tuple[str, ...]]:
    return zip(split.texts) if split.pairs is None else zip(split.texts, split.pairs)


def _read_unlabeled(config: TaskConfig, task: Task) -> Split:
    """More texts, from a table or, one a line, from a txt file.

    A table without the task's text column gives its column ``text``, else the only one that holds texts.
    """
    path = Path(config.unlabeled_file)
    if (lines := read_lines(path, "unlabeled_file", task.is_pair)) is not None:
        return Split(lines)
    table, preset = read_table(path, "unlabeled_file"), None if config.train_file else find_preset(task.name)
    own, pair = config.text_column, config.text_pair_column if task.is_pair else None
    # a preset's extra texts may have its columns or those of the settings
    if preset and (own == TaskConfig.text_column or own not in table.columns):
        own = preset.text
    if preset and pair not in table.columns:
        pair = preset.pair
    text = own
    if own not in table.columns:
        others = ["text"] if "text" in table.columns else text_columns(table)
        others = [name for name in others if name != pair]
        text = others[0] if len(others) == 1 else own
    if text != own:
        task.notes.append(f"{table.where}: no column {own!r}: the texts are taken from column {text!r}")
    source = Source(task.name, {"unlabeled": table}, text, pair, config.label_column)
    return _split(table, source, None, "unlabeled", config.skip_bad_rows, task.notes)
