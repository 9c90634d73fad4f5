"""Questions with the context that holds their answer: read from SQuAD's own JSON, tables or the hub, checked row by row.

A row is a question, its context and its gold answers, each a text and the character of the context at which it begins.
The columns are those of ``rajpurkar/squad``: id, question, context, answers. Dimensions: N questions.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from adasearch.errors import ConfigError, DataError
from adasearch.sources import find_preset, find_source
from adasearch.squad_metrics import METRICS_OF_QUESTIONS
from adasearch.tables import SUFFIXES, Table, check_file, read_table, read_text
from adasearch.task_config import QUESTION_ANSWERING, QUESTION_SUFFIXES, TaskConfig
from adasearch.texts import Split

HELD_OUT_SHARE = 0.1  # of the contexts, when there is no validation split
COLUMNS = {"text_column": "question", "text_pair_column": "context", "label_column": "answers"}
ANSWER_SHAPE = "expected: {'text': [...], 'answer_start': [...]} or [{'text': ..., 'answer_start': ...}, ...]"


@dataclass
class Questions(Split):
    """Questions (``texts``) on contexts (``pairs``).

    ``answers``: the gold answers' texts, at least one a question. ``starts``: where the first of them begins in the
    context, in characters; -1 = not known, good enough to be scored on but not to be learned from.
    """

    answers: list[tuple[str, ...]] = field(default_factory=list)
    starts: list[int] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)

    @property
    def contexts(self) -> list[str]:
        """The text that each question is about."""
        assert self.pairs is not None
        return self.pairs

    @property
    def gold(self) -> tuple[Any, ...]:
        """The answers and where they begin."""
        return self.answers, self.starts

    def select(self, indices: Sequence[int] | np.ndarray) -> Questions:
        """The named questions, in that order."""
        rows = [int(row) for row in indices]
        columns = (self.texts, self.contexts, self.answers, self.starts, self.ids)
        texts, contexts, answers, starts, ids = ([values[row] for row in rows] for values in columns)
        return Questions(texts, contexts, answers=answers, starts=starts, ids=ids)


def asks_questions(config: TaskConfig) -> bool:
    """Whether a task's settings mean extractive question answering: said so, or a preset that is."""
    if config.problem_type is not None or config.train_file:
        return config.problem_type == QUESTION_ANSWERING
    preset = find_preset(config.task)
    return preset is not None and preset.problem_type == QUESTION_ANSWERING


def refuse_questions(config: TaskConfig, verb: str) -> None:
    """Raise ``ConfigError`` when the task asks questions: ``verb`` makes models that have no head for them."""
    if asks_questions(config):
        raise ConfigError(
            f"task: {config.task!r} is extractive question answering; {verb} makes students that classify and have no head"
            " for it; choices: adasearch compress cofi, compress earlybert, compress prune-ofa; or a classification task"
        )


def question_metrics(asked: str | None) -> tuple[str, ...]:
    """F1 and exact match, the one that was asked for first: it counts. Raises ``ConfigError`` for another."""
    if asked is not None and asked not in METRICS_OF_QUESTIONS:
        raise ConfigError(f"metric: {asked!r} cannot count in question answering; choices: {', '.join(METRICS_OF_QUESTIONS)}")
    return tuple(dict.fromkeys([asked or METRICS_OF_QUESTIONS[0], *METRICS_OF_QUESTIONS]))


def read_questions(config: TaskConfig, seed: int, notes: list[str]) -> tuple[str, dict[str, Questions]]:
    """Name and splits ("train", "validation", "test" where there is one) of what the settings ask for.

    Without a validation split a tenth of the training contexts is held out by ``seed``, with all their questions.
    Raises ``ConfigError`` when the request cannot be met, ``DataError`` when the data cannot be learned from.
    """
    for name in ("soft_label_columns", "unlabeled_file"):
        if getattr(config, name):
            raise ConfigError(f"{name}: not for question answering; leave it out")
    question_metrics(config.metric)
    name, tables, is_published = _tables(config)
    skip = config.skip_bad_rows or is_published
    splits, columns = {}, _columns(config)
    for split, table in tables.items():
        if split == "test" and is_published and columns["label_column"] not in table.columns:
            notes.append(f"{table.where}: no column {columns['label_column']!r}; the final score is taken on validation")
            continue
        splits[split] = read_rows(table, columns, needs_starts=split == "train", skip_bad_rows=skip, notes=notes)
    if "validation" not in splits:
        splits["train"], splits["validation"] = _hold_out(splits["train"], seed)
        notes.append(f"no validation split: {len(splits['validation'])} questions on a tenth of the contexts are held out (seed {seed})")
    return name, splits


def read_rows(table: Table, columns: dict[str, str], *, needs_starts: bool, skip_bad_rows: bool, notes: list[str]) -> Questions:
    """A table's questions. Rows without an answer, or whose answer does not stand where it should, are bad.

    Raises ``DataError`` for a missing column or, unless they are to be skipped, for bad rows.
    """
    questions, contexts = (table.texts(columns[setting], setting) for setting in ("text_column", "text_pair_column"))
    column = columns["label_column"]
    answers: list[tuple[str, ...]] = []
    starts: list[int] = []
    for row, (value, context) in enumerate(zip(table.column(column, "label_column"), contexts)):
        try:
            texts, places = _answers(value)
        except ValueError as error:
            table.reject(row, column, str(error))
            texts, places = (), ()
        answers.append(texts)
        starts.append(places[0] if places else -1)
        if texts and needs_starts and isinstance(context, str):
            if not places:
                table.reject(row, column, "no answer_start: where an answer begins must be known to learn it")
            elif context[places[0] : places[0] + len(texts[0])] != texts[0]:
                table.reject(row, column, f"answer {texts[0]!r} does not stand at character {places[0]} of the context")
    given = table.columns.get("id")
    ids = [str(table.numbers[row] if given is None else given[row]) for row in range(len(questions))]
    rows = table.good_rows(skip_bad_rows=skip_bad_rows, notes=notes)
    return Questions(questions, contexts, answers=answers, starts=starts, ids=ids).select(rows)


def read_squad_json(path: Path) -> Table:
    """A file as SQuAD publishes it (``data`` -> ``paragraphs`` -> ``qas``) as a table; rows are counted as they stand.

    Raises ``DataError`` naming the place that is not as it should be.
    """
    try:
        articles = _list(json.loads(read_text(path)), "data", "")
        rows = list(_squad_rows(articles))
    except ValueError as error:
        raise DataError(
            f"{path}: is not a file as SQuAD publishes it ({error}); choices: {', '.join(SUFFIXES)} with a row a question"
        ) from error
    columns = {name: [row[name] for row in rows] for name in ("id", "context", "question", "answers")}
    return Table(str(path), columns, range(1, len(rows) + 1), unit="question")


def read_question_table(path: Path, setting: str) -> Table:
    """A file of questions: SQuAD's own JSON, or a table. ``setting`` is the flag that named it. Raises as ``read_table``."""
    return read_squad_json(path) if check_file(path, setting, QUESTION_SUFFIXES) == ".json" else read_table(path, setting)


def _squad_rows(articles: list[Any]) -> Iterator[dict[str, Any]]:
    for a, article in enumerate(articles):
        for p, paragraph in enumerate(_list(article, "paragraphs", f"data[{a}]")):
            place = f"data[{a}].paragraphs[{p}]"
            for q, question in enumerate(_list(paragraph, "qas", place)):
                if not isinstance(question, dict):
                    raise ValueError(f"{place}.qas[{q}]: no object")
                yield {"context": paragraph.get("context"), **{name: question.get(name) for name in ("id", "question", "answers")}}


def _list(value: Any, name: str, place: str) -> list[Any]:
    found = value.get(name) if isinstance(value, dict) else None
    if not isinstance(found, list):
        raise ValueError(f"{f'{place}.' if place else ''}{name}: no list")
    return found


def _tables(config: TaskConfig) -> tuple[str, dict[str, Table], bool]:
    """Name, tables by split, and whether they are published (then their users cannot mend them)."""
    files = {split: getattr(config, f"{split}_file") for split in ("train", "validation", "test")}
    name = config.task
    if Path(name).suffix.lower() in QUESTION_SUFFIXES and not files["train"]:
        files["train"], name = name, Path(name).stem
    if not files["train"]:
        source = find_source(config)
        return name, {split: table for split, table in source.tables.items() if split != "unlabeled"}, source.is_published
    return name, {split: read_question_table(Path(path), f"{split}_file") for split, path in files.items() if path}, False


def _columns(config: TaskConfig) -> dict[str, str]:
    """The columns by the setting that names them: SQuAD's where the user named no other."""
    given = {setting: getattr(config, setting) for setting in COLUMNS}
    usual = {setting: getattr(TaskConfig, setting) for setting in COLUMNS}
    return {setting: COLUMNS[setting] if given[setting] in (None, usual[setting]) else given[setting] for setting in COLUMNS}


def _answers(value: Any) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Texts and begins of one question's gold answers. Raises ValueError with what is wrong."""
    if isinstance(value, str):
        value = _parsed(value)
    if isinstance(value, (list, tuple)):
        if not all(isinstance(answer, dict) and "text" in answer for answer in value):
            raise ValueError(f"{str(value)[:60]!r} are no answers; {ANSWER_SHAPE}")
        found = [answer.get("answer_start") for answer in value]
        value = {"text": [answer["text"] for answer in value], "answer_start": None if None in found else found}
    if not isinstance(value, dict) or not isinstance(value.get("text"), (list, tuple)):
        raise ValueError(f"{str(value)[:60]!r} is no answer; {ANSWER_SHAPE}")
    texts, starts = tuple(value["text"]), tuple(value.get("answer_start") or ())
    if not texts:
        raise ValueError("no answer: every question needs one (SQuAD 2.0's questions without an answer are not learned)")
    if not all(isinstance(text, str) and text.strip() for text in texts):
        raise ValueError("an answer is empty, or no text")
    if starts and (len(starts) != len(texts) or not all(isinstance(start, int) and start >= 0 for start in starts)):
        raise ValueError(f"answer_start: {str(starts)[:60]} for {len(texts)} answers; expected: a whole number from 0 for each")
    return texts, starts


def _parsed(value: str) -> Any:
    """csv has no lists: JSON that begins like answers, else a text, which by itself is the only answer."""
    if value.lstrip().startswith(("{", "[")):
        try:
            return json.loads(value)
        except json.JSONDecodeError:  # brackets of the text's own
            pass
    return {"text": [value]}


def _hold_out(train: Questions, seed: int) -> tuple[Questions, Questions]:
    """Training and held-out questions, parted by context: questions on one context give each other's answers away."""
    contexts = list(dict.fromkeys(train.contexts))
    if len(contexts) < 2:
        raise DataError("train_file: all questions are on one context, so none can be held out; choices: --validation_file")
    order = np.random.default_rng(seed).permutation(len(contexts))
    held = {contexts[number] for number in order[: max(1, round(HELD_OUT_SHARE * len(contexts)))]}
    rows = {True: [], False: []}
    for row, context in enumerate(train.contexts):
        rows[context in held].append(row)
    return train.select(rows[False]), train.select(rows[True])
