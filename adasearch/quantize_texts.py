"""The texts that quantising needs: some to set the ranges, labelled ones for the scores; from a run or from files.

Dimensions: N texts, B batch, L tokens, C labels.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig

import adasearch
from adasearch.classifier import check_pairs
from adasearch.errors import ConfigError, DataError, ModelError, loading, one_line
from adasearch.finished import FinishedRun
from adasearch.known_labels import Columns, labels_of, read_examples, read_texts
from adasearch.metrics import choose_metrics, is_skewed
from adasearch.model_inputs import pads_left, positions_of, segment_ids
from adasearch.quantize_config import QuantizeConfig
from adasearch.run_files import model_in
from adasearch.runtime_base import answers_questions, require_head, require_model, trained_on_pairs
from adasearch.runtimes import Runtime, count_labels
from adasearch.texts import Split

FEWEST_TEXTS = 32  # ranges of fewer are those of single words
BATCH = 32  # texts a batch, in calibration and in scoring
SEQ_LENGTH = 128  # timed where nothing says otherwise


@dataclass(frozen=True)
class Texts:
    """Tokenised texts or pairs of texts, and what pads them."""

    tokenizer: Any
    ids: list[list[int]]
    is_pair: bool

    def __len__(self) -> int:
        return len(self.ids)

    def batches(self, batch_size: int = BATCH) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
        """Every text once, longest first, as (rows, arrays (B, L) int64 by input name, segment ids among them)."""
        order = np.argsort([-len(ids) for ids in self.ids], kind="stable")
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            padded = self.tokenizer.pad({"input_ids": [self.ids[row] for row in rows]}, return_attention_mask=True, return_tensors="pt")
            arrays = {**padded, "token_type_ids": segment_ids(padded["input_ids"], self.tokenizer, is_pair=self.is_pair)}
            yield rows, {name: array.numpy() for name, array in arrays.items()}

    def logits_of(self, runtime: Runtime) -> np.ndarray:
        """The runtime's logits of all texts in their order, (N, C)."""
        parts = [(rows, runtime(**batch)) for rows, batch in self.batches()]
        logits_NC = np.empty((len(self), parts[0][1].shape[1]), dtype=np.float32)
        for rows, logits_BC in parts:
            logits_NC[rows] = logits_BC
        return logits_NC


@dataclass(frozen=True)
class Material:
    """What quantising works on: the model's folder, its texts for ranges and those for scores with their labels and
    metrics (the first counts), and the length of the texts to time."""

    model_dir: Path
    calibration: Texts
    validation: Texts
    labels: np.ndarray
    metrics: tuple[str, ...]
    seq_len: int


def load_material(path: Path, config: QuantizeConfig) -> Material:
    """Find model and texts of a run's folder (its student) or a model's folder, check them and tokenise.

    A model that lies in a run's folder takes the run's texts, unless files are named. Raises ``ConfigError``,
    ``DataError`` or ``ModelError`` before any work.
    """
    path = Path(path)
    if not path.is_dir():
        raise ConfigError(f"path: {path}: no such folder; choices: runs/<name>, or a model's folder")
    run_dir = next((place for place in (path, *path.resolve().parents[:2]) if (place / "run.json").is_file()), None)
    model_dir = Path(model_in(path))
    require_model(model_dir, "path")
    require_head(model_dir)
    adasearch.register_student()
    with loading(f"{model_dir}: config and tokenizer cannot be loaded", most=None):
        model_config = AutoConfig.from_pretrained(model_dir, local_files_only=True)
        tokenizer = AutoTokenizer.from_pretrained(model_dir, local_files_only=True)
    tokenizer.padding_side = "left" if pads_left(model_config) else "right"
    if answers_questions(model_config):
        choices = "choices: adasearch compress prune-ofa (int8 for readers), or a classifier's folder"
        raise ConfigError(f"path: {model_dir}: its model answers questions, and quantize scores labels alone; {choices}")
    settings = _run_settings(run_dir) if run_dir is not None else {}
    calibration, validation, metrics = _splits(model_dir, model_config, run_dir, settings, config)
    takes = min(tokenizer.model_max_length, positions_of(model_config) or 1 << 30)
    longest = min(config.max_seq_length or settings.get("max_seq_length") or takes, takes)
    if config.seq_length is not None and config.seq_length > takes:
        raise ConfigError(f"seq_length: {config.seq_length} is more than {model_dir} takes; choices: up to {takes}")
    lengths = (settings.get("bench") or {}).get("seq_lengths") or [SEQ_LENGTH]
    generator = np.random.default_rng(config.seed)
    calibration, validation = (
        split if len(split) <= most else split.select(np.sort(generator.choice(len(split), most, replace=False)))
        for split, most in ((calibration, config.calibration_texts), (validation, config.validation_texts))
    )
    texts = [
        Texts(tokenizer, tokenizer(split.texts, split.pairs, truncation=True, max_length=longest)["input_ids"], split.pairs is not None)
        for split in (calibration, validation)
    ]
    return Material(model_dir, *texts, validation.labels, metrics, config.seq_length or min(lengths[0], longest))


def _run_settings(run_dir: Path) -> dict[str, Any]:
    path = run_dir / "config.yaml"
    try:
        return dict(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (OSError, yaml.YAMLError, TypeError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read ({one_line(error)})") from error


def _splits(
    model_dir: Path, model_config: PreTrainedConfig, run_dir: Path | None, settings: dict[str, Any],
    config: QuantizeConfig,
) -> tuple[Split, Split, tuple[str, ...]]:  # fmt: skip
    """Texts to calibrate on, labelled ones to score, and the metrics: of files where they are named, else of the run."""
    task, run = None, None if run_dir is None else FinishedRun(run_dir, {"seed": config.seed, **settings})
    if config.calibration_file is None or config.validation_file is None:
        if run is None:
            absent = "calibration_file" if config.calibration_file is None else "validation_file"
            raise ConfigError(f"{absent}: {model_dir} lies in no run's folder, which would have texts; name a file")
        task = run.task(instead="--calibration_file and --validation_file")
        if task.num_labels != count_labels(model_dir):
            raise ModelError(
                f"{model_dir} is a model of another task: it has {count_labels(model_dir)} labels, "
                f"{task.name} of {run_dir} has {task.num_labels}"
            )
    columns = Columns(config.text_column, config.text_pair_column, config.label_column)
    given = config.calibration_file
    if given is not None or config.validation_file is not None:
        check_pairs(trained_on_pairs(model_dir), columns.pair is not None, "text_pair_column")
    calibration = task.train if given is None else read_texts(Path(given), "calibration_file", columns)
    count = min(len(calibration), config.calibration_texts)
    if count < FEWEST_TEXTS:
        where = config.calibration_file or "the run's training texts"
        raise DataError(
            f"calibration: {count} texts ({where}) are too few to set ranges; at least {FEWEST_TEXTS} are asked for, "
            f"and calibration_texts ({config.calibration_texts}) are used at most"
        )
    if config.validation_file is None:
        return calibration, task.validation, task.metrics
    kind, names = labels_of(model_config)
    labelled = read_examples(Path(config.validation_file), "validation_file", kind, names, columns)
    return calibration, labelled, choose_metrics(kind, len(names), skewed=is_skewed(labelled.labels), **({} if run is None else run.metrics_of(kind)))
