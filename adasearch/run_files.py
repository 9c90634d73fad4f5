"""A run's folder as files: what was typed, the settings it was begun with, and whether it may go on with others."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from adasearch.errors import ConfigError
from adasearch.files import read_json, write_json, write_text
from adasearch.honest import commit


def typed_command() -> str:
    """What was typed, without where the program lies."""
    program = Path(sys.argv[0]).name
    return shlex.join(["adasearch" if program in ("adasearch", "__main__.py") else program, *sys.argv[1:]])


def check_reopening(folder: Path, settings: dict[str, Any], defaults: dict[str, Any], free: Sequence[str]) -> None:
    """A folder goes on with the settings it was begun with, or not at all. Raises ``ConfigError``.

    ``free`` are those that may differ: they change what is shown, added or timed, not what was learned. Settings that an
    older version did not know are at their ``defaults``.
    """
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"output_dir: {folder} is a file; a folder is expected")
    if not (folder / "run.json").exists():
        return
    before = completed(read_json(folder / "run.json")["config"], defaults)
    changed = [key for key in settings if key not in free and before.get(key) != settings[key]]
    if changed:
        what = "; ".join(f"{key} was {before.get(key)!r}, is {settings[key]!r}" for key in changed[:3])
        raise ConfigError(f"output_dir: {folder} holds a run with other settings ({what}); choices: another --output_dir, or delete it")


def completed(settings: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """Settings with what they lack at its default, nested ones too."""
    known = {
        key: completed(settings.get(key) or {}, value) if isinstance(value, dict) else settings.get(key, value)
        for key, value in defaults.items()
    }
    return {**settings, **known}


def begin_run(folder: Path, settings: dict[str, Any], precision: str) -> None:
    """Write ``config.yaml`` and ``run.json``, unless the run was begun before."""
    if (folder / "run.json").exists():
        return
    write_text(folder / "config.yaml", yaml.safe_dump(settings, sort_keys=False))
    about = {"command": typed_command(), "commit": commit(), "config": settings, "precision": precision, "stages": {}}
    write_json(folder / "run.json", about)


def note_stage(folder: Path, stage: str, **facts: Any) -> None:
    """Write into run.json that a stage is done, and what is known of it."""
    state = read_json(folder / "run.json")
    state["stages"].setdefault(stage, {"done": True, **facts})
    write_json(folder / "run.json", state)
