"""What all runtimes have in common: the one call they answer, their registry, and the folder a model is read from.

Dimensions: B batch, L tokens, C labels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import (
    AutoConfig, AutoModelForQuestionAnswering, AutoModelForSequenceClassification, PreTrainedConfig, PreTrainedModel,
)  # fmt: skip

import adasearch
from adasearch.errors import LOAD_ERRORS, ConfigError, ModelError, one_line
from adasearch.files import read_json
from adasearch.registry import Registry
from adasearch.settings import is_installed


class Runtime(ABC):
    """A loaded classifier, ready to be called.

    Attributes: ``name`` of the runtime, ``precision`` it computes in ("fp32", "bf16", "int8", "int8_embedding": only
    the word table is int8), ``threads`` it computes on, ``vocab_size`` of the model: input ids must be smaller.
    """

    name: str
    precision: str
    threads: int
    vocab_size: int

    @abstractmethod
    def __call__(
        self, input_ids: np.ndarray, attention_mask: np.ndarray, token_type_ids: np.ndarray | None = None
    ) -> np.ndarray:
        """Logits (B, C) float32 of ids and mask, (B, L) int64; start and end logits (B, L, 2) of a question answering model.

        ``token_type_ids`` (0 first text, 1 second) are for pairs and for models that have such embeddings; None means
        one text, all zeros, as in transformers. A model without them is not fed any.
        """


@dataclass(frozen=True)
class RuntimeKind:
    """One registration: how a folder's model is loaded, (folder, threads, precision) -> Runtime, in what precisions it
    computes, and why it cannot be used here (None: it can). ``offers`` leaves out precisions that this machine lacks.
    """

    load: Callable[[Path, int, str], Runtime]
    precisions: tuple[str, ...]
    missing: Callable[[], str | None]
    offers: Callable[[], tuple[str, ...]]


HEADS = ("ForSequenceClassification", "ForQuestionAnswering")  # in the name of a class
RUNTIMES: Registry[RuntimeKind] = Registry("runtime", RuntimeKind)


def register_runtime(
    name: str, *, precisions: tuple[str, ...], missing: Callable[[], str | None] = lambda: None,
    offers: Callable[[], tuple[str, ...]] | None = None,
) -> Callable[[Callable[[Path, int, str], Runtime]], Callable[[Path, int, str], Runtime]]:  # fmt: skip
    """Decorator that files a loading function; its parts are those of ``RuntimeKind``."""

    def add(load: Callable[[Path, int, str], Runtime]) -> Callable[[Path, int, str], Runtime]:
        RUNTIMES.register(name)(RuntimeKind(load, precisions, missing, offers or (lambda: precisions)))
        return load

    return add


def needs_package(package: str, extra: str) -> Callable[[], str | None]:
    """Why a runtime of that package cannot be used: it is not installed; here is how to get it."""

    def missing() -> str | None:
        if is_installed(package):
            return None
        return f"runtime: {package!r} is not installed; pip install 'adasearch[{extra}]', or choose torch"

    return missing


def require_onnx(where: str, *packages: str) -> None:
    """Raise ``ConfigError`` that says how to get them unless these packages of the extra ``onnx`` are installed."""
    for package in packages:
        try:
            __import__(package)
        except ImportError as error:
            raise ConfigError(f"{where}: {package!r} is not installed; pip install 'adasearch[onnx]'") from error


def require_runtime(name: str) -> None:
    """Raise ``ConfigError`` that says what is missing, and how to get it, unless the runtime can be used here."""
    if (reason := RUNTIMES[name].missing()) is not None:
        raise ConfigError(reason)


def load_classifier(model_dir: Path) -> PreTrainedModel:
    """A sequence classifier from a folder, in float32 and eval mode. Nothing is downloaded, no foreign code is run.

    A folder of a question answering model gives that one. Raises ``ModelError`` when neither can be loaded, or weights are
    missing that it should have; a bare encoder gets a random head, to be timed (``require_head`` stands before whoever answers).
    """
    if not (Path(model_dir) / "config.json").is_file():
        raise ModelError(f"{model_dir}: no model folder (config.json is missing)")
    adasearch.register_student()
    try:
        config = AutoConfig.from_pretrained(model_dir, local_files_only=True)
        auto = AutoModelForQuestionAnswering if answers_questions(config) else AutoModelForSequenceClassification
        model, report = auto.from_pretrained(
            model_dir, config=config, dtype=torch.float32, local_files_only=True, use_safetensors=True, output_loading_info=True
        )
    except LOAD_ERRORS as error:
        raise ModelError(f"{model_dir}: no sequence classifier can be loaded ({one_line(error, 300)})") from error
    if (missing := sorted(report["missing_keys"])) and not _is_headless(config.architectures):
        raise ModelError(f"{model_dir}: its weights lack {', '.join(missing[:3])}, which would be random; choices: the whole folder, copied anew")
    return model.eval()


def require_model(folder: Path, setting: str) -> None:
    """Raise ``ConfigError``, which names the setting, for a folder that holds no model."""
    if not (Path(folder) / "config.json").is_file():
        models = [str(Path(folder) / part) for part in ("student", "teacher") if (Path(folder) / part / "config.json").is_file()]
        choices = " or ".join(models) or f"runs/<name> of a finished run, a model's folder{_teacher_given(Path(folder))}"
        raise ConfigError(f"{setting}: {folder} is no model folder (no config.json); choices: {choices}")


def _teacher_given(folder: Path) -> str:
    """What to say of a run's ``teacher/`` that is not there: the teacher that it was given, from where it was begun."""
    path = folder.parent / "run.json"
    if folder.name != "teacher" or not path.is_file():
        return ""
    run = read_json(path)
    given = run["config"].get("teacher")
    if not given:
        return ""
    there = Path(run.get("directory") or ".") / given
    is_elsewhere = there.exists() and there.resolve() != Path(given).resolve()
    return f"; this run's teacher is {there if is_elsewhere else given}"


def require_head(model_dir: Path) -> None:
    """Raise ``ModelError`` where a folder's model was saved without a head for classes or answers: one would be made at random."""
    names = _read_config(model_dir).get("architectures")
    if _is_headless(names):
        raise ModelError(
            f"{model_dir}: its {names[0]} has no head for a task, so it has nothing to say of a text; choices: a model that was"
            f" fine-tuned on one (a sparse model: adasearch compress prune-ofa TASK --sparse_model {model_dir})"
        )


def _is_headless(architectures: list[str] | None) -> bool:
    """Whether a model of these classes was saved without a head for classes or answers; of one that names none it is not known: no."""
    return bool(architectures) and not any(head in name for name in architectures for head in HEADS)


def trained_on_pairs(model_dir: Path) -> bool | None:
    """Whether the folder's model learned from pairs of texts; None where its config.json does not say."""
    return _read_config(model_dir).get("is_pair")


def answers_questions(config: PreTrainedConfig) -> bool:
    """Whether a folder's model marks answers in texts (``...ForQuestionAnswering``) instead of labelling them."""
    return any(name.endswith("ForQuestionAnswering") for name in config.architectures or [])


def _read_config(model_dir: Path) -> dict[str, Any]:
    path = Path(model_dir) / "config.json"
    try:
        return dict(read_json(path))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: cannot be read ({one_line(error)})") from error


def read_vocab_size(model_dir: Path) -> int:
    """``vocab_size`` of the folder's config.json. Raises ``ModelError`` when it cannot be read."""
    try:
        return int(_read_config(model_dir)["vocab_size"])
    except (TypeError, ValueError, KeyError) as error:
        raise ModelError(f"{Path(model_dir) / 'config.json'}: no vocab_size can be read ({one_line(error)})") from error


def count_labels(model_dir: Path) -> int:
    """How many labels the folder's config.json names; transformers leaves them out where there are two without names."""
    return len(_read_config(model_dir).get("id2label") or (0, 1))
