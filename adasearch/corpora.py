"""Where the texts of a language model come from: text files, tables, published data sets by preset or hub id."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from adasearch.errors import ConfigError, DataError
from adasearch.sources import find_source
from adasearch.tables import SUFFIXES, SURROGATE, Table, check_file, read_table, read_text
from adasearch.task_config import TaskConfig

TEXT_SUFFIX = ".txt"


@dataclass(frozen=True)
class Corpus:
    """Texts of one split. ``is_joined``: they are the lines of one text, so nothing stands between them."""

    name: str
    texts: tuple[str, ...]
    is_joined: bool = False


@dataclass(frozen=True)
class Pairs:
    """Sources and targets of one split."""

    name: str
    sources: tuple[str, ...]
    targets: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.sources)


@dataclass(frozen=True)
class CorpusPreset:
    """A published corpus: where it lies on the hub, its column, whether its rows are the lines of one text."""

    hub: str
    column: str = "text"
    is_joined: bool = False


@dataclass(frozen=True)
class PairsPreset:
    """Published pairs: where they lie on the hub and their two columns."""

    hub: str
    source: str
    target: str


# Names, configurations and columns: the data cards on the hub. The first two are QuantGPT's.
CORPORA = {
    "wikitext2": CorpusPreset("Salesforce/wikitext:wikitext-2-v1", is_joined=True),
    "wikitext103": CorpusPreset("Salesforce/wikitext:wikitext-103-v1", is_joined=True),
    "ptb": CorpusPreset("ptb-text-only/ptb_text_only", "sentence"),
    "imdb": CorpusPreset("stanfordnlp/imdb"),
}
PAIRS = {
    "xsum": PairsPreset("EdinburghNLP/xsum", "document", "summary"),
    "cnn_dailymail": PairsPreset("abisee/cnn_dailymail:3.0.0", "article", "highlights"),
}
Files = Mapping[str, str | Path | None]  # by split: train, validation, test


def find_corpus(
    name: str, *, files: Files | None = None, data_dir: str | None = None, text_column: str | None = None, is_joined: bool | None = None
) -> dict[str, Corpus]:
    """Corpora by split ("train" at least), from files, a folder ``data_dir/name``, or the hub.

    Args:
        name: a preset, a hub id ``owner/name[:configuration]``, or what to call the files.
        files: ``{"train": path, ...}``; a .txt file is one text, the rows of a table are texts.
        text_column: the tables' column; the preset's, or "text", when None.
        is_joined: rows are the lines of one text and are joined as they are; the preset's, or False, when None.

    Raises ``ConfigError`` when it is not known or not there, ``DataError`` when it cannot be read or holds no text.
    """
    preset = CORPORA.get(name)
    column = text_column or (preset.column if preset else "text")
    is_joined = is_joined if is_joined is not None else bool(preset and preset.is_joined)
    files = _given(files)
    if files:
        texts = {split: _file_texts(path, f"{split}_file", column) for split, path in files.items()}
    else:
        tables = _published_tables(name, preset.hub if preset else name, data_dir, CORPORA)
        texts = {split: _texts(table, column, "text_column") for split, table in tables.items()}
    return {split: Corpus(f"{name}[{split}]", tuple(values), is_joined) for split, values in texts.items()}


def find_pairs(
    name: str, *, files: Files | None = None, data_dir: str | None = None, source_column: str | None = None, target_column: str | None = None
) -> dict[str, Pairs]:
    """Pairs by split ("train" at least); arguments and errors as ``find_corpus``. A row without either text is refused."""
    preset = PAIRS.get(name)
    source = source_column or (preset.source if preset else "source")
    target = target_column or (preset.target if preset else "target")
    files = _given(files)
    if files:
        tables = {split: read_table(path, f"{split}_file") for split, path in files.items()}
    else:
        tables = _published_tables(name, preset.hub if preset else name, data_dir, PAIRS)
    found = {}
    for split, table in tables.items():
        sources, targets = table.texts(source, "source_column"), table.texts(target, "target_column")
        table.good_rows(skip_bad_rows=False, notes=[])
        found[split] = Pairs(f"{name}[{split}]", tuple(sources), tuple(targets))
    return found


def _given(files: Files | None) -> dict[str, Path]:
    """The files there are. Raises ``ConfigError`` for others without a training file."""
    given = {split: Path(path) for split, path in (files or {}).items() if path}
    if given and "train" not in given:
        raise ConfigError(f"{', '.join(f'{split}_file' for split in given)}: given without train_file")
    return given


def _published_tables(name: str, hub: str, data_dir: str | None, presets: Mapping[str, object]) -> dict[str, Table]:
    if data_dir is None and name not in presets and not re.fullmatch(r"[\w.-]+/[\w.-]+(:[\w.-]+)?", name):
        close = difflib.get_close_matches(name, presets, n=1)
        hint = f" (did you mean {close[0]!r}?)" if close else ""
        choices = f"{', '.join(presets)}, a hub id owner/name[:configuration], or --train_file"
        raise ConfigError(f"task: {name!r} is not known{hint}; choices: {choices}")
    return find_source(TaskConfig(task=name if data_dir else hub, data_dir=data_dir)).tables


def _file_texts(path: Path, setting: str, column: str) -> list[str]:
    if check_file(path, setting, (TEXT_SUFFIX, *SUFFIXES)) == TEXT_SUFFIX:
        return [read_text(path)]
    return _texts(read_table(path, setting), column, "text_column")


def _texts(table: Table, column: str, setting: str) -> list[str]:
    """A column of texts, empty rows left out: a blank line of a joined text is none of its tokens' business.

    Unlike a classifier's example an empty row is no fault here (a third of WikiText's are). Raises ``DataError``.
    """
    values = table.column(column, setting)
    for row, value in enumerate(values):
        if value is not None and not isinstance(value, str):
            table.reject(row, column, f"{value!r} is not a text")
        elif value and SURROGATE.search(value):
            table.reject(row, column, f"half a character (a lone surrogate) in {value[:40]!r}")
    table.good_rows(skip_bad_rows=False, notes=[])
    texts = [value for value in values if value]
    if not any(text.strip() for text in texts):
        raise DataError(f"{table.where}: {setting}: column {column!r} holds no text")
    return texts
