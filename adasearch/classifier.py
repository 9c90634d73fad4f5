"""A model folder at work on texts: tokenizer, runtime, temperature and names of the labels behind one call.

Dimensions: N texts, B batch, L tokens of the longest text in a batch, C labels.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerBase

import adasearch
from adasearch.calibration import load_calibration, probabilities
from adasearch.deploy import load_deployed, load_deployment, runtime_here
from adasearch.errors import ConfigError, ModelError, loading
from adasearch.known_labels import labels_of
from adasearch.model_inputs import pads_left, positions_of, segment_ids, uses_token_types
from adasearch.progress import Progress
from adasearch.runtime_base import answers_questions, require_head, require_model
from adasearch.runtimes import RUNTIMES, Runtime, choose_runtime, load_runtime
from adasearch.settings import check_threads
from adasearch.texts import served_pieces

Arrays = dict[str, np.ndarray]
Tell = Callable[[int], None]  # hears how many texts are done


@dataclass(frozen=True)
class Answers:
    """What is said of N texts.

    Attributes: ``predictions`` a label each, labels above one half joined by ``|`` in multi-label tasks, the score in
    regression; ``probabilities_NC`` None in regression; ``is_escalated_N`` whom the teacher answered, None without one;
    ``is_cut_N`` which texts were longer than the model reads.
    """

    predictions: list[str] | list[float]
    probabilities_NC: np.ndarray | None
    logits_NC: np.ndarray
    is_cut_N: np.ndarray
    is_escalated_N: np.ndarray | None = None

    @property
    def cut(self) -> int:
        """How many texts were longer than the model reads."""
        return int(self.is_cut_N.sum())

    def part(self, rows: slice) -> Answers:
        """What is said of some of the texts."""
        shares, who = self.probabilities_NC, self.is_escalated_N
        return Answers(
            self.predictions[rows], None if shares is None else shares[rows], self.logits_NC[rows], self.is_cut_N[rows],
            None if who is None else who[rows],
        )  # fmt: skip


class TextClassifier:
    """Texts in, answers out.

    Attributes: ``labels`` the classes' names; ``problem_type`` as in the model's configuration; ``temperature`` that
    the logits are divided by; ``runtime`` what computes them; ``limit`` word pieces that the model reads of a text;
    ``is_pair`` whether it was trained on pairs of texts, None where its configuration does not say.
    """

    def __init__(
        self, model_dir: str | Path, *, runtime: str = "auto", precision: str | None = None, threads: int | None = None,
        batch_size: int = 32, is_calibrated: bool = True, progress: Progress | None = None,
    ):  # fmt: skip
        """Load what is needed. Raises ``ConfigError`` for a wrong setting, ``ModelError`` for a folder that is damaged."""
        model_dir = Path(model_dir)
        check_settings(model_dir, runtime, batch_size, threads=threads)
        self.batch_size = batch_size
        self.runtime = open_runtime(model_dir, runtime, precision, threads, progress)
        adasearch.register_student()
        with loading(f"{model_dir}: no tokenizer can be loaded", most=None):
            config: Any = AutoConfig.from_pretrained(model_dir, local_files_only=True)
            self.tokenizer = AutoTokenizer.from_pretrained(model_dir, local_files_only=True)
        require_padding(self.tokenizer, model_dir)
        if answers_questions(config):
            raise ModelError(f"{model_dir}: its model answers questions and has no labels to give; choices: a classifier's folder")
        problem_type, names = labels_of(config)
        self.problem_type = problem_type if problem_type == "regression" else f"{problem_type}_classification"
        self.labels = [] if problem_type == "regression" else list(names)
        calibration = load_calibration(model_dir) if is_calibrated and self.labels else None
        self.temperature = calibration.temperature if calibration else 1.0
        # a table of positions ends somewhere, and a tokenizer that knows no limit says 1e30
        self.limit = min(self.tokenizer.model_max_length, positions_of(config) or sys.maxsize)
        self.is_pair = getattr(config, "is_pair", None)
        self._takes_types, self._pads_left = uses_token_types(config), pads_left(config)

    @property
    def is_multi_label(self) -> bool:
        """Whether a text may have several labels, or none."""
        return self.problem_type == "multi_label_classification"

    def answer(self, texts: Sequence[str], pairs: Sequence[str] | None = None, tell: Tell | None = None) -> Answers:
        """What the model says of each text or pair of texts, in their order."""
        return self.interpret(*self.logits(texts, pairs, tell))

    def interpret(self, logits_NC: np.ndarray, is_cut_N: np.ndarray) -> Answers:
        """Logits as predictions and calibrated probabilities. The temperature moves no prediction."""
        if not self.labels:
            return Answers(shortest(logits_NC[:, 0]), None, logits_NC, is_cut_N)
        shares_NC = probabilities(logits_NC, is_multi_label=self.is_multi_label, temperature=self.temperature)
        if self.is_multi_label:
            named = ["|".join(name for name, logit in zip(self.labels, row) if logit > 0) for row in logits_NC]
        else:
            named = [self.labels[index] for index in logits_NC.argmax(-1)]
        return Answers(named, shares_NC, logits_NC, is_cut_N)

    def logits(
        self, texts: Sequence[str], pairs: Sequence[str] | None = None, tell: Tell | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Logits (N, C) float32, and which texts were cut, (N,). Batches are of texts of nearly the same length.

        Raises ``ModelError`` when a logit is not finite: its argmax would pass for a prediction; ``ConfigError`` for pairs where
        the model was trained on single texts, and the other way round.
        """
        check_pairs(self.is_pair, pairs is not None)
        ids, is_cut_N = served_pieces(self.tokenizer, texts, pairs, self.limit)
        logits_NC = np.zeros((len(ids), max(len(self.labels), 1)), dtype=np.float32)
        done = 0
        for rows, batch in self._batches(ids, pairs is not None):
            logits_NC[rows] = self.runtime(**batch)
            done += len(rows)
            if tell is not None:
                tell(done)
        if not np.isfinite(logits_NC).all():
            raise ModelError(f"{self.runtime.name}: the model's logits are not finite; it is damaged, or its precision is too low")
        return logits_NC, is_cut_N

    def _batches(self, ids: list[Sequence[int]], is_pair: bool) -> Iterator[tuple[np.ndarray, Arrays]]:
        """Rows and their padded arrays (B, L), longest first: little padding, and too large a batch fails at once."""
        order = np.argsort([-len(row) for row in ids], kind="stable")
        pad = self.tokenizer.pad_token_id or 0
        is_left = self._pads_left
        for start in range(0, len(order), self.batch_size):
            rows = order[start : start + self.batch_size]
            width = max(1, len(ids[rows[0]]))  # an empty text without special tokens has none: it is read as one padding piece
            ids_BL = np.full((len(rows), width), pad, dtype=np.int64)
            mask_BL = np.zeros_like(ids_BL)
            for line, row in enumerate(rows):
                real = slice(width - len(ids[row]), width) if is_left else slice(0, len(ids[row]))
                ids_BL[line, real], mask_BL[line, real] = ids[row], 1
                mask_BL[line, -1 if is_left else 0] = 1
            types_BL = segment_ids(torch.from_numpy(ids_BL), self.tokenizer, is_pair=is_pair).numpy() if self._takes_types else None
            yield rows, {"input_ids": ids_BL, "attention_mask": mask_BL, "token_type_ids": types_BL}


def require_padding(tokenizer: PreTrainedTokenizerBase, model_dir: Path) -> None:
    """Raise ``ModelError`` for a tokenizer that cannot fill up the shorter texts of a batch."""
    if tokenizer.pad_token_id is None:
        raise ModelError(
            f"{model_dir}: its tokenizer has no padding token, so texts make no batch; choices: give it one (pad_token in"
            " tokenizer_config.json) that its model was trained with"
        )


def check_settings(model_dir: Path, runtime: str, batch_size: int, setting: str = "student", *, threads: int | None = None) -> None:
    """What can be checked before anything is loaded. Raises ``ConfigError``, which calls the folder ``setting``."""
    if batch_size < 1:
        raise ConfigError(f"batch_size: {batch_size} is out of range; choices: 1 or more")
    check_threads(threads)
    require_model(Path(model_dir), setting)
    require_head(Path(model_dir))
    choose_runtime(runtime)


def check_pairs(is_pair: bool | None, has_pairs: bool, setting: str = "pairs") -> None:
    """Raise ``ConfigError`` for texts of another kind than a model was trained on; ``is_pair`` None: not known, all pass."""
    if is_pair is None or is_pair == has_pairs:
        return
    if is_pair:
        raise ConfigError(f"{setting}: none given; the model was trained on pairs of texts; choices: the second texts as well")
    raise ConfigError(f"{setting}: given; the model was trained on single texts; choices: leave it out, or a model of pairs")


def open_runtime(
    model_dir: Path, runtime: str, precision: str | None, threads: int | None, progress: Progress | None = None
) -> Runtime:
    """The model in the runtime, precision and threads that were saved for it, unless others are asked for.

    What is not asked for stays as it was saved: the runtime where it offers the precision, the precision where it is that runtime's.
    """
    if runtime == "auto" and precision is None:
        return load_deployed(model_dir, threads, progress)
    chosen = load_deployment(model_dir) if runtime == "auto" or precision is None or threads is None else None
    if chosen is not None and runtime in ("auto", chosen.runtime) and RUNTIMES[chosen.runtime].missing() is None:
        offered = RUNTIMES[chosen.runtime].offers()
        if precision is None and chosen.precision in offered:
            precision = chosen.precision
        if precision in offered:
            runtime = chosen.runtime
    threads, precision = threads or (chosen.threads if chosen else torch.get_num_threads()), precision or "fp32"
    name = runtime_here(model_dir, precision) if runtime == "auto" else choose_runtime(runtime)
    return load_runtime(name, model_dir, threads, precision)


def shortest(values: np.ndarray) -> list[float]:
    """Float32 values as Python's, with the digits that tell them apart and no more."""
    return [float(text) for text in values.astype(np.float32).astype(str)]
