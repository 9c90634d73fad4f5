"""Where examples come from: files, a folder of parquet files, a published data set by preset or hub id."""

from __future__ import annotations

import difflib
import os
import re
from dataclasses import dataclass
from pathlib import Path

from adasearch.errors import ConfigError, DataError, one_line
from adasearch.tables import SUFFIXES, Table, from_arrow, read_table
from adasearch.task_config import QUESTION_ANSWERING, TaskConfig


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
    "squad": Preset("rajpurkar/squad", "question", "context", ("start", "end"), ("f1", "exact_match"), QUESTION_ANSWERING),
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
class Source:
    """Tables by split (``train`` at least) and what is known of their columns beforehand."""

    name: str
    tables: dict[str, Table]
    text: str
    pair: str | None
    label: str
    preset: Preset | None = None
    is_published: bool = False  # from the hub: -1 is a hidden label, and its users cannot mend its rows


def find_preset(name: str) -> Preset | None:
    """The preset of that name, its own or the hub's."""
    return PRESETS.get(name) or next((preset for preset in PRESETS.values() if preset.hub == name), None)


def find_source(config: TaskConfig) -> Source:
    """Read what the settings ask for: files, a preset or a hub data set.

    Raises ``ConfigError`` when it is not known or not there, ``DataError`` when it cannot be read.
    """
    name, columns = config.task, (config.text_column, config.text_pair_column, config.label_column)
    files = {split: getattr(config, f"{split}_file") for split in ("train", "validation", "test")}
    if Path(name).suffix.lower() in SUFFIXES and not files["train"]:
        files["train"], name = name, Path(name).stem
    if files["train"]:
        if config.data_dir:
            raise ConfigError(f"data_dir: {config.data_dir} is not read where a file is named ({files['train']}); choices: one of the two")
        tables = {split: read_table(Path(path), f"{split}_file") for split, path in files.items() if path}
        return Source(name, tables, *columns)
    if files["validation"] or files["test"]:
        raise ConfigError("validation_file, test_file: given without train_file")
    preset = find_preset(name)
    if preset:
        own = (preset.text, preset.pair, "label")
        for setting, given, known in zip(("text_column", "text_pair_column", "label_column"), columns, own):
            if not config.unlabeled_file and given not in (known, getattr(TaskConfig, setting)):  # else they are that file's
                raise ConfigError(f"{setting}: {given!r} is not read: task {name!r} has {', '.join(map(str, filter(None, own)))}; choices: leave it out")
        columns = own
    if config.data_dir:
        tables = _read_folder(Path(config.data_dir), name)
        return Source(name, tables, *columns, preset, is_published=preset is not None)
    if name == TaskConfig.task:
        raise ConfigError("task: none named; begin with: adasearch run demo; or --train_file FILE")
    if preset is None and not re.fullmatch(r"[\w.-]+/[\w.-]+(:[\w.-]+)?", name):
        close = difflib.get_close_matches(name, ["demo", *PRESETS], n=1)
        hint = f" (did you mean {close[0]!r}?)" if close else ""
        choices = f"demo, {', '.join(PRESETS)}, a hub id owner/name[:configuration], or --train_file"
        if Path(name).is_dir():
            folder = Path(name) if Path(name).name else Path(name).absolute()
            choices = f"{folder.name} with --data_dir {folder.parent}, where it holds train.parquet; or --train_file FILE"
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
        raise DataError(f"task: {hub!r} cannot be had from the hub ({one_line(error, 300)}); choices: {choices}") from error
    found = {split: next((n for n in names if n in parts), None) for split, names in SPLIT_NAMES.items()}
    if found["train"] is None:
        raise DataError(f"task: data set {hub!r} has no split 'train'; splits: {', '.join(parts)}")
    return {split: from_arrow(parts[n].with_format("arrow")[:], f"{hub}[{n}]") for split, n in found.items() if n}
