"""A training's history: read from its file, and as numbers and names to draw."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from adasearch.errors import ConfigError
from adasearch.report import FIGURES

TERMS = {"ce": "gold labels", "kd": "soft targets", "probes": "teacher's probes", "depth": "depth", "efficiency": "efficiency"}


def read_history(path: Path) -> list[dict[str, Any]]:
    """Records of a history, one a line (``history.jsonl``) or one JSON list (``history.json``). Raises ``ConfigError``."""
    is_list = path.suffix == ".json"
    try:
        text = path.read_text(encoding="utf-8")
        return json.loads(text) if is_list else [json.loads(line) for line in text.splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        choices = "JSON as adasearch writes it" if is_list else "one JSON record a line"
        raise ConfigError(f"{path}: it cannot be read ({error}); choices: {choices}") from error


def read_histories(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """The histories of all trainings in a run's folder, by the name of each one's folder."""
    found: dict[str, list[dict[str, Any]]] = {}
    for pattern in FIGURES["training"][0]:
        for path in sorted(folder.glob(pattern)):
            if path.parent.name not in found:
                found[path.parent.name] = read_history(path)
    return found


def column_of(history: Sequence[dict[str, Any]], *keys: str) -> np.ndarray:
    """One number a record, NaN where a record has none: (records,)."""
    values = []
    for record in history:
        value: Any = record
        for key in keys:
            value = value.get(key) if isinstance(value, dict) else None
        values.append(math.nan if value is None else float(value))
    return np.array(values)


def names_of(history: Sequence[dict[str, Any]], key: str) -> list[str]:
    """The names that the records have under ``key``, in order of appearance."""
    return list(dict.fromkeys(name for record in history for name in record.get(key) or {}))


def shown_terms(history: Sequence[dict[str, Any]]) -> list[str]:
    """The terms of the loss that are not always 0."""
    return [name for name in names_of(history, "terms") if np.nanmax(np.abs(column_of(history, "terms", name))) > 1e-9]


def warm_up_end(history: Sequence[dict[str, Any]]) -> int | None:
    """The last step of a search's warm-up; None where there was none or nothing else."""
    warm = [record["step"] for record in history if record.get("phase") == "warmup"]
    return warm[-1] if 0 < len(warm) < len(history) else None


def kind_of(name: str) -> str:
    """What was trained, of a training that is named ``kind-seed``."""
    return re.sub(r"-\d+$", "", name)
