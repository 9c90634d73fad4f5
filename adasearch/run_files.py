"""A run's folder as files: what was typed, the settings it was begun with, and whether it may go on with others."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from adasearch.errors import ConfigError
from adasearch.files import read_json, write_folder, write_json, write_text


def typed_command() -> str:
    """What was typed, without where the program lies."""
    program = Path(sys.argv[0]).name
    return shlex.join(["adasearch" if program in ("adasearch", "__main__.py") else program, *sys.argv[1:]])


def commit() -> str | None:
    """Commit of the checkout the package runs from; None where it is no checkout."""
    here = Path(__file__).resolve().parent
    try:
        found = subprocess.run(["git", "-C", str(here), "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return found.stdout.strip()


def script_command() -> str:
    """The same of a program in ``scripts/``, as it is typed in the project's root."""
    return shlex.join(["python", f"scripts/{Path(sys.argv[0]).name}", *sys.argv[1:]])


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
    if what := differences(before, settings, free):
        raise ConfigError(f"output_dir: {folder} holds a run with other settings ({what}); choices: another --output_dir, or delete it")


def differences(before: dict[str, Any], now: dict[str, Any], free: Sequence[str] = ()) -> str:
    """The first three settings, but for those that are ``free``, in which ``now`` is not ``before``; "" where there is none."""
    changed = [key for key in now if key not in free and before.get(key) != now[key]]
    return "; ".join(f"{key} was {before.get(key)!r}, is {now[key]!r}" for key in changed[:3])


def completed(settings: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """Settings of another version: what they lack is at its default, what is no setting now is left out; nested ones too."""
    if not defaults:
        return settings  # a mapping whose keys are the user's own
    return {
        key: completed(settings.get(key) or {}, value) if isinstance(value, dict) else settings.get(key, value)
        for key, value in defaults.items()
    }


def begin_run(folder: Path, settings: dict[str, Any], precision: str, **facts: Any) -> None:
    """Write ``config.yaml`` and ``run.json``, with more ``facts`` in it, unless the run was begun before."""
    if (folder / "run.json").exists():
        return
    write_text(folder / "config.yaml", yaml.safe_dump(settings, sort_keys=False))
    about = {"command": typed_command(), "commit": commit(), "config": settings, "precision": precision, **facts, "stages": {}}
    write_json(folder / "run.json", about)


def note_stage(folder: Path, stage: str, **facts: Any) -> None:
    """Write into run.json that a stage is done, and what is known of it."""
    state = read_json(folder / "run.json")
    state["stages"].setdefault(stage, {"done": True, **facts})
    write_json(folder / "run.json", state)


def stage_facts(folder: Path, stage: str) -> dict[str, Any]:
    """What ``note_stage`` wrote first of a stage; nothing where it is not done."""
    return read_json(folder / "run.json")["stages"].get(stage, {})


def model_in(path: str) -> str:
    """A run's folder stands for the model in it: the folder itself, ``sparse/`` of a sparse pre-training, ``student/`` of others."""
    return next((str(Path(path) / part) for part in (".", "sparse", "student") if (Path(path) / part / "config.json").is_file()), path)


def check_first(folder: Path, first: str) -> None:
    """``student/`` is a copy of the model that was a run's first when it was handed over. Raises ``ConfigError`` for another first one."""
    if not (folder / "run.json").exists():
        return
    if (known := stage_facts(folder, "student").get("model", first)) != first:
        raise ConfigError(
            f"output_dir: student/ of {folder} is the run's first model, {known}, and would be {first}; choices: targets and seeds"
            " with that one first, or another --output_dir"
        )


def hand_over(model: Path, student: Path) -> None:
    """Copy a trained model's folder whole to ``student``, unless there is one already."""
    if not (student / "config.json").exists():
        write_folder(student, lambda partial: shutil.copytree(model, partial, dirs_exist_ok=True))
