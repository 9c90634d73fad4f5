"""A student at work: a file of texts in, the same rows with prediction and probabilities out.

Dimensions: N texts, B batch, L tokens of the longest text in a batch, C labels.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel

import adasearch
from adasearch.errors import ConfigError, DataError
from adasearch.files import write_atomically
from adasearch.progress import Progress
from adasearch.runtimes import ONNX_FILES, Runtime, choose_runtime, load_classifier, load_runtime

STANDARD_STREAM = Path("-")
Arrays = dict[str, np.ndarray]
WRITERS: dict[str, Callable[[pd.DataFrame, Any], None]] = {
    ".csv": lambda table, file: table.to_csv(file, index=False),
    ".tsv": lambda table, file: table.to_csv(file, index=False, sep="\t"),
    ".jsonl": lambda table, file: table.to_json(file, orient="records", lines=True, force_ascii=False),
    ".parquet": lambda table, file: table.to_parquet(file, index=False),
}
READERS: dict[str, Callable[[Any, str], pd.DataFrame]] = {
    # cells stay what the file says: no column of "null" or "007" becomes a number or nothing
    ".csv": lambda file, column: pd.read_csv(file, dtype=str, keep_default_na=False),
    ".tsv": lambda file, column: pd.read_csv(file, dtype=str, keep_default_na=False, sep="\t"),
    ".jsonl": lambda file, column: _json_lines(Path(file).read_text(encoding="utf-8")),
    ".parquet": lambda file, column: pd.read_parquet(file),
    ".txt": lambda file, column: _lines(Path(file).read_text(encoding="utf-8"), column),
}


def load_student(path: str | Path) -> PreTrainedModel:
    """The sequence classifier in a student's folder, in evaluation mode; other checkpoints' folders load as well.

    Raises ``ModelError`` when the folder does not hold one.
    """
    return load_classifier(Path(path))


def predict_file(
    student_dir: Path, input_file: Path, output_file: Path, text_column: str = "text",
    text_pair_column: str | None = None, batch_size: int = 32, runtime: str = "auto", progress: Progress | None = None,
    threads: int | None = None,
) -> int:  # fmt: skip
    """Label every row of a csv, tsv, jsonl, parquet or txt file (``-``: lines of standard input); returns how many.

    Adds the columns ``prediction`` (labels above one half joined by ``|`` in multi-label tasks, the score in
    regression) and ``probability_<label>``; a ``-`` as output writes JSON lines. Rows keep their order. The file is
    held in memory. ``threads`` are the runtime's, all of torch's when absent. Raises ``ConfigError`` and ``DataError``
    before the model runs, ``ModelError`` when it cannot be loaded.
    """
    progress = progress or Progress()
    if batch_size < 1:
        raise ConfigError(f"batch_size: {batch_size} is out of range; choices: 1 or more")
    _check_output(input_file, output_file)
    logits_of = _load(student_dir, runtime, threads)
    table = _read_table(input_file, text_column)
    texts = _texts(table, input_file, text_column)
    pairs = _texts(table, input_file, text_pair_column) if text_pair_column else None
    adasearch.register_student()
    config = AutoConfig.from_pretrained(student_dir, local_files_only=True)
    tokenizer = AutoTokenizer.from_pretrained(student_dir, local_files_only=True)
    # a table of positions ends somewhere, and a tokenizer that knows no limit says 1e30
    limit = min(tokenizer.model_max_length, getattr(config, "max_position_embeddings", None) or sys.maxsize)
    encoded = tokenizer(texts, pairs, truncation=True, max_length=limit) if texts else {"input_ids": []}
    if at_limit := sum(len(ids) == limit for ids in encoded["input_ids"]):
        progress.warning(f"{at_limit} of {len(texts)} texts fill all {limit} word pieces; what lay beyond was cut")
    logits_NC = np.zeros((len(texts), config.num_labels), dtype=np.float32)
    progress.stage("predict", total=len(texts))
    done = 0
    for rows, batch in _batches(tokenizer, encoded, batch_size):
        logits_NC[rows] = logits_of(batch["input_ids"], batch["attention_mask"], batch.get("token_type_ids"))
        done += len(rows)
        progress.step(done)
    for name, values in _columns(logits_NC, config).items():
        table[name] = values
    _write_table(table, output_file)
    return len(table)


def _batches(tokenizer: Any, encoded: Any, batch_size: int) -> Iterator[tuple[np.ndarray, Arrays]]:
    """Rows and their padded arrays (B, L), longest first: little padding, and too large a batch fails at once."""
    order = np.argsort([-len(ids) for ids in encoded["input_ids"]], kind="stable")
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        picked = {name: [values[row] for row in rows] for name, values in encoded.items()}
        yield rows, dict(tokenizer.pad(picked, return_tensors="np"))


def _load(student_dir: Path, runtime: str, threads: int | None) -> Runtime:
    """The student in a runtime; ``auto`` is the fastest there is: onnxruntime where it is installed and has a file."""
    if not (student_dir / "config.json").is_file():
        raise ConfigError(f"student: {student_dir}: is no model folder (no config.json); choices: runs/<name>/student")
    name = choose_runtime(runtime)
    if runtime == "auto" and not (student_dir / "onnx" / ONNX_FILES["fp32"]).is_file():
        name = "torch"
    return load_runtime(name, student_dir, threads or torch.get_num_threads())


def _check_output(input_file: Path, output_file: Path) -> None:
    if output_file == STANDARD_STREAM:
        return
    if output_file.suffix not in WRITERS:
        choices = f"{', '.join(WRITERS)}, or - for standard output"
        raise ConfigError(f"output_file: {output_file}: cannot write {output_file.suffix!r}; choices: {choices}")
    if output_file.resolve() == input_file.resolve():
        raise ConfigError(f"output_file: {output_file} is the input file; choose another")
    if output_file.is_dir():
        raise ConfigError(f"output_file: {output_file} is a folder; name a file")


def _json_lines(text: str) -> pd.DataFrame:
    rows = []
    for number, line in enumerate(text.split("\n"), start=1):
        try:
            rows += [json.loads(line)] if line.strip() else []
        except json.JSONDecodeError as error:
            raise ValueError(f"line {number}: {error.msg}") from error
        if rows and not isinstance(rows[-1], dict):
            raise ValueError(f"line {number}: holds {type(rows[-1]).__name__}, not an object with named values")
    return pd.DataFrame(rows, dtype=object)


def _lines(text: str, column: str) -> pd.DataFrame:
    return pd.DataFrame({column: text.splitlines()}, dtype=object)


def _read_table(path: Path, text_column: str) -> pd.DataFrame:
    if path == STANDARD_STREAM:
        return _lines(sys.stdin.read(), text_column)
    if path.suffix not in READERS:
        choices = f"{', '.join(READERS)}, or - for standard input"
        raise DataError(f"input_file: {path}: cannot read {path.suffix!r}; choices: {choices}")
    try:
        return READERS[path.suffix](path, text_column)
    except OSError as error:
        raise DataError(f"input_file: {path}: cannot be read ({error.strerror or error})") from error
    except ValueError as error:  # parser errors of pandas and pyarrow, and bytes that are not UTF-8
        raise DataError(f"input_file: {path}: is not a {path.suffix[1:]} file ({error})") from error


def _texts(table: pd.DataFrame, path: Path, column: str) -> list[str]:
    if column not in table.columns:
        raise DataError(f"input_file: {path}: no column {column!r}; columns: {', '.join(map(str, table.columns))}")
    texts = table[column].tolist()
    bad = [row for row, text in enumerate(texts) if not isinstance(text, str)]
    if bad:
        rows = ", ".join(f"row {row + 1}: {texts[row]!r}" for row in bad[:5])
        raise DataError(f"input_file: {path}: {column}: {len(bad)} of {len(texts)} values are not texts ({rows})")
    return texts


def _columns(logits_NC: np.ndarray, config: Any) -> dict[str, Any]:
    """``prediction`` and ``probability_<label>`` of each row, by the problem type the model was trained for."""
    if config.problem_type == "regression" or config.num_labels == 1:
        return {"prediction": logits_NC[:, 0]}
    names = [str(config.id2label[index]) for index in range(config.num_labels)]
    logits = torch.from_numpy(logits_NC)
    if config.problem_type == "multi_label_classification":
        probabilities_NC = logits.sigmoid().numpy()
        labels = ["|".join(name for name, share in zip(names, row) if share > 0.5) for row in probabilities_NC]
    else:
        probabilities_NC = logits.softmax(-1).numpy()
        labels = [names[index] for index in logits_NC.argmax(-1)]
    return {"prediction": labels, **{f"probability_{name}": probabilities_NC[:, c] for c, name in enumerate(names)}}


def _write_table(table: pd.DataFrame, path: Path) -> None:
    if path == STANDARD_STREAM:
        WRITERS[".jsonl"](table, sys.stdout)
        return
    write_atomically(path, lambda partial: WRITERS[path.suffix](table, os.fspath(partial)))
