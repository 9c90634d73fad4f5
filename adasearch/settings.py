"""What all settings share: checks of a single value, and settings as plain data."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
from collections.abc import Mapping
from typing import Any, TypeVar

from adasearch.errors import ConfigError

Part = TypeVar("Part")
PRECISIONS = ("no", "bf16", "fp16")  # that ``mixed_precision`` may name
TRACKERS = ("tensorboard", "trackio", "wandb")  # that ``report_to`` may name


def check_choice(where: str, value: Any, choices: tuple[str, ...]) -> None:
    """Raise ``ConfigError`` naming place, value and choices unless ``value`` is one of them."""
    if value not in choices:
        raise ConfigError(f"{where}: {value!r} is not known; choices: {', '.join(choices)}")


def check_range(where: str, value: float, low: float, high: float) -> None:
    """Raise ``ConfigError`` unless low <= value <= high."""
    if not low <= value <= high:
        raise ConfigError(f"{where}: {value!r} is out of range; choices: {low} to {high}")


def check_optional(where: str, value: float | None, low: float, high: float) -> None:
    """``check_range`` of a setting that may be left out (None)."""
    if value is not None:
        check_range(where, value, low, high)


def check_idle(where: str, value: Any, usual: Any, because: str, choices: str) -> None:
    """Raise ``ConfigError`` for a setting that nothing would read, unless it has its default ``usual``: it would be passed over in silence."""
    if value != usual:
        raise ConfigError(f"{where}: {value!r} has no effect {because}; choices: {choices}")


def check_seeds(where: str, seeds: list[int] | None) -> None:
    """Raise ``ConfigError`` unless ``seeds`` is left out or names one or more different ones that every generator takes."""
    if seeds is not None and not seeds:
        raise ConfigError(f"{where}: the list is empty; choices: one or more whole numbers, or leave it out")
    for seed in seeds or []:
        check_range(where, seed, 0, 2**32 - 1)
    if seeds and len(set(seeds)) < len(seeds):
        raise ConfigError(f"{where}: {seeds}: one is named twice and would count as two; choices: different whole numbers")


def cores_here() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def is_installed(package: str) -> bool:
    """Whether a package can be imported, without importing it."""
    try:
        return importlib.util.find_spec(package) is not None
    except ValueError:  # an entry of None in sys.modules, Python's own way to say: not installed
        return False


def check_threads(threads: int | None) -> None:
    """Raise ``ConfigError`` for more threads than this machine lends cores: they would wait for each other. None: not set."""
    cores = cores_here()
    if threads is not None and not 1 <= threads <= cores:
        raise ConfigError(f"threads: {threads} on {cores} core{'s' * (cores > 1)}; choices: 1 to {cores}, or leave it out")


def tracker_names(report_to: str | list[str]) -> list[str]:
    """Names of the trackers that ``report_to`` asks for, each once; none for "none"."""
    names = [report_to] if isinstance(report_to, str) else report_to
    return [] if names == ["none"] else list(dict.fromkeys(names))


def check_report_to(report_to: str | list[str]) -> None:
    """Raise ``ConfigError`` unless ``report_to`` names trackers that are known, or none at all."""
    names = tracker_names(report_to)
    for name in names:
        check_choice("report_to", name, (*TRACKERS, *(("none",) if not names[1:] else ())))


def to_dict(config: Any) -> dict[str, Any]:
    """A config as nested plain data, for config.yaml and fingerprints."""
    return dataclasses.asdict(config)


def part_of(kind: type[Part], settings: Any, **changes: Any) -> Part:
    """A ``kind`` with ``changes``, else what ``settings`` (a dataclass or its plain data) has of its fields, else its defaults."""
    values = settings if isinstance(settings, Mapping) else vars(settings)
    return kind(**{**{field.name: values[field.name] for field in dataclasses.fields(kind) if field.name in values}, **changes})
