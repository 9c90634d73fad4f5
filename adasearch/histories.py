"""A training's history, as ``history.jsonl`` holds it, as numbers to draw."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np


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
