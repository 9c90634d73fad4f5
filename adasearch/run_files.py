"""A run's folder as files: what was typed, the settings it was begun with, and whether it may go on with others."""

from __future__ import annotations

import contextlib
import itertools
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

from adasearch.errors import ConfigError
from adasearch.files import closed_parent, fingerprint, read_json, write_folder, write_json, write_text
from adasearch.settings import to_dict
from adasearch.user_code import imported_contents

# settings that may differ when a run goes on: they change what is shown, kept or timed, not what is learned. A kind of run may have more
ALWAYS_FREE = ("quiet", "threads", "cpu", "checkpoint_seconds", "output_dir", "data_dir", "demo_assets")
DATA_FILES = ("train_file", "validation_file", "test_file", "unlabeled_file")  # settings that say where data lie, not which

LOCK = ".lock"
WEIGHTS = ("*.safetensors", "*.bin")  # of a model's folder
Inputs = Mapping[str, Path | str | None]  # by setting: where it lies, or what already is a fingerprint


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


def check_folder(folder: Path, *marks: str) -> None:
    """A folder may be written if it is one of these marks' (files or folders in it that are only there in one's own), or as good as empty.

    Raises ``ConfigError`` for a file, a place that cannot be written, and a folder that belongs to something else.
    """
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"output_dir: {folder} is a file; a folder is expected")
    if (parent := closed_parent(folder)) is not None:
        raise ConfigError(f"output_dir: {folder}: cannot be written, {parent} is no folder open for writing")
    if not folder.is_dir() or any((folder / mark).exists() for mark in marks):
        return
    names = sorted(path.name for path in folder.iterdir() if not _comes_first(path))
    if names:
        shown = ", ".join([*names[:3], *(["..."] if len(names) > 3 else [])])
        raise ConfigError(f"output_dir: {folder} belongs to something else ({shown}); choices: another --output_dir, new or empty")


@contextmanager
def only_one(folder: Path) -> Iterator[None]:
    """No other process at work in a folder while the block lasts: two would delete each other's unfinished files. The lock ends with the process.

    Of several that torchrun has started the main one holds it. A folder that is made for it and stays empty is removed again. Raises
    ``ConfigError`` where another process is at work; a place that takes no lock goes without.
    """
    is_new, lock = not folder.exists(), FileLock(folder / LOCK)
    with contextlib.suppress(OSError, NotImplementedError):
        if os.environ.get("RANK", "0") == "0":
            folder.mkdir(parents=True, exist_ok=True)
            try:
                lock.acquire(timeout=0)
            except Timeout:
                raise ConfigError(f"output_dir: another process is at work in {folder}; choices: wait for it, or another --output_dir") from None
    try:
        yield
    finally:
        if lock.is_locked:
            with contextlib.suppress(OSError):  # Windows removes no open file
                (folder / LOCK).unlink()  # before it is released: who opens it later makes one of its own
        lock.release()
        if is_new:
            with contextlib.suppress(OSError):  # something is in it
                folder.rmdir()


def _comes_first(path: Path) -> bool:
    """Whether it may lie in a folder before its mark: downloads and tokens, what a sweep has linked, what a shell writes the output to."""
    if path.name == "cache" or path.name.startswith(".") or path.is_symlink() or path.suffix in (".log", ".out", ".err"):
        return True
    return path.name == "search" and path.is_dir() and all(inner.is_symlink() for inner in path.iterdir())


def check_begun(folder: Path, config: Any, free: Sequence[str]) -> None:
    """A run with these settings, a dataclass that has defaults, may be begun in a folder or go on there; see ``check_reopening``."""
    check_folder(folder, "run.json")
    check_reopening(folder, to_dict(config), to_dict(type(config)()), free)


def check_reopening(folder: Path, settings: dict[str, Any], defaults: dict[str, Any], free: Sequence[str]) -> None:
    """A folder goes on with the settings it was begun with, or not at all. Raises ``ConfigError``.

    ``free`` are those that may differ: they change what is shown, added or timed, not what was learned. Where the data lie
    is free as well in a run whose data are known (``check_same_data``). Settings that an older version did not know are at their
    ``defaults``.
    """
    if not (folder / "run.json").exists():
        return
    begun = read_json(folder / "run.json")
    before, free = completed(begun["config"], defaults), (*free, *(DATA_FILES if "data" in begun else ()))
    if what := differences(before, settings, free):
        raise ConfigError(f"output_dir: {folder} holds a run with other settings ({what}); choices: another --output_dir, or delete it")


def check_same(path: Path, data: dict[str, dict[str, Any]], inputs: Inputs) -> None:
    """What a run learns from, and what else it is made of, are what it was begun with. Raises ``ConfigError``."""
    check_same_data(path, data)
    check_same_inputs(path, inputs)


def check_same_data(path: Path, data: dict[str, dict[str, Any]], splits: Sequence[str] | None = None) -> None:
    """The data are those that a run, or a study, was begun with. Raises ``ConfigError``.

    ``path``: its run.json or study.json; ``data``: of a ``Task``; ``splits``: those that are compared, all when None. One that is not
    begun, or by a version that noted no data, goes on.
    """
    before = read_json(path).get("data") if path.exists() else None
    if before is not None and splits is not None:
        before, data = ({name: facts[name] for name in splits if name in facts} for facts in (before, data))
    if before is None or before == data:
        return
    what = [_change(name, before.get(name), data.get(name)) for name in {**before, **data} if before.get(name) != data.get(name)]
    raise ConfigError(
        f"{path.parent}: the data have changed since ({'; '.join(what)}), and what was learned from both would stand side by side;"
        " choices: another --output_dir, the data as they were, or delete it"
    )


def check_same_inputs(path: Path, inputs: Inputs) -> None:
    """Models, architecture, space and the user's code are those that a run was begun with: a setting names a file, and files change.
    Raises ``ConfigError``.

    ``path``: its run.json, or what else holds ``digests`` as "inputs". One that is not begun, or by a version that noted none, goes on.
    """
    before = read_json(path).get("inputs") if path.exists() else None
    if not before:
        return
    inputs = {**inputs, **imported_contents()}
    now = digests({setting: given for setting, given in inputs.items() if setting in before})
    if what := [f"{setting} {inputs[setting]}" if isinstance(inputs[setting], Path) else setting for setting in now if now[setting] != before[setting]]:
        raise ConfigError(
            f"{path.parent}: begun with another content of {', '.join(what)}, and what was learned from both would stand side by side;"
            " choices: another --output_dir, the content as it was, or delete the whole folder"
        )


def noted_inputs(inputs: Inputs) -> dict[str, str]:
    """What ``check_same_inputs`` compares later: the inputs' digests and those of the user's code."""
    return {**digests(inputs), **imported_contents()}


def digests(inputs: Inputs) -> dict[str, str]:
    """What each input holds, as a fingerprint, by setting: of a file its content, of a model's folder its weights; names of the hub have none."""
    found = {}
    for setting, given in inputs.items():
        if isinstance(given, str):
            found[setting] = given
        elif given is not None and given.is_file():
            found[setting] = fingerprint(given)
        elif given is not None and (weights := [file for kind in WEIGHTS for file in sorted(given.glob(kind))]):
            found[setting] = fingerprint(*weights)
    return found


def path_of(given: str | None) -> Path | None:
    """A setting that may name a folder, as one of ``Inputs``."""
    return None if given is None else Path(given)


def model_path_of(given: str | None) -> Path | None:
    """The same for a setting that takes a run's folder as well: where the model in it lies (``model_in``)."""
    return None if given is None else Path(model_in(given))


def _change(split: str, before: dict[str, Any] | None, now: dict[str, Any] | None) -> str:
    counts = [str(facts["examples"]) if facts else "none" for facts in (before, now)]
    if counts[0] != counts[1]:
        return f"{split}: {counts[0]} -> {counts[1]} examples"
    others = [name for name in now if before.get(name) != now[name]]
    return f"{split}: other {' and '.join(others)}, {counts[0]} examples"


def differences(before: dict[str, Any], now: dict[str, Any], free: Sequence[str] = ()) -> str:
    """The first three settings, but for those that are ``free``, in which ``now`` is not ``before``; "" where there is none.

    Of settings in sections those that differ, under their dotted names.
    """
    changed = itertools.islice(_changed({key: before.get(key) for key in now if key not in free}, now), 3)
    return "; ".join(f"{key} was {old!r}, is {new!r}" for key, old, new in changed)


def _changed(before: dict[str, Any], now: dict[str, Any], where: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Dotted name, old value and new one of all of ``before`` that differ."""
    for key, old in before.items():
        new = now.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            yield from _changed({**dict.fromkeys(new), **old}, new, f"{where}{key}.")
        elif old != new:
            yield f"{where}{key}", old, new


def completed(settings: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """Settings of another version: what they lack is at its default, what is no setting now is left out; nested ones too."""
    if not defaults:
        return settings  # a mapping whose keys are the user's own
    return {
        key: completed(settings.get(key) or {}, value) if isinstance(value, dict) else settings.get(key, value)
        for key, value in defaults.items()
    }


def begin_run(folder: Path, settings: dict[str, Any], precision: str, *, inputs: Inputs | None = None, **facts: Any) -> None:
    """Write ``config.yaml`` and ``run.json``, with more ``facts`` and digests of the ``inputs`` and the user's code in it; of a run that
    was begun before only note that it goes on.

    ``command`` is the latest, the one a report is of: its settings are those of all others, but for what is free. ``commands`` are all
    different ones in order. Data that were moved lie where they are now.
    """
    command, path = typed_command(), folder / "run.json"
    if path.exists():
        about = read_json(path)
        others = [one for one in about.get("commands", [about.get("command")]) if one not in (None, command)]
        config = {**about["config"], **{key: settings[key] for key in DATA_FILES if key in settings}}
        if config != about["config"] or not (folder / "config.yaml").exists():
            write_text(folder / "config.yaml", yaml.safe_dump(config, sort_keys=False))
        write_json(path, {**about, "command": command, "commands": [*others, command], "config": config})
        return
    facts |= {} if inputs is None else {"inputs": noted_inputs(inputs)}
    about = {"command": command, "commands": [command], "commit": commit(), "config": settings, "precision": precision,
             "directory": str(Path.cwd()), **facts, "stages": {}}  # fmt: skip
    write_json(path, about)  # first: it is what says whose the folder is
    write_text(folder / "config.yaml", yaml.safe_dump(settings, sort_keys=False))


def refuse_processes(what: str) -> None:
    """Raise ``ConfigError`` where torchrun has started several processes: each would do the whole work in the same folder."""
    if (processes := int(os.environ.get("WORLD_SIZE", 1))) > 1:
        raise ConfigError(f"{what}: works in one process, torchrun has started {processes}; choices for several: run, search, retrain")


def begun_precision(folder: Path) -> str | None:
    """What a run computes in, as it was measured when the run was begun; None where there is none, or an older version's."""
    path = folder / "run.json"
    return read_json(path).get("precision") if path.exists() else None


def note_stage(folder: Path, stage: str, **facts: Any) -> None:
    """Write into run.json that a stage is done, and what is known of it."""
    state = read_json(folder / "run.json")
    state["stages"].setdefault(stage, {"done": True, **facts})
    write_json(folder / "run.json", state)


def note_settings(folder: Path, settings: Mapping[str, Any]) -> None:
    """Write the settings that a finished run was last started with: others than it was begun with may have added models, or been timed."""
    state = read_json(folder / "run.json")
    config = {**state["config"], **{name: value for name, value in settings.items() if name not in ALWAYS_FREE}}
    if config != state["config"]:
        write_json(folder / "run.json", {**state, "config": config})
        write_text(folder / "config.yaml", yaml.safe_dump(config, sort_keys=False))


def stage_facts(folder: Path, stage: str) -> dict[str, Any]:
    """What ``note_stage`` wrote first of a stage; nothing where it is not done."""
    return read_json(folder / "run.json")["stages"].get(stage, {})


def model_in(path: str | Path) -> str:
    """A run's folder stands for the model in it: the folder itself, ``sparse/`` of a sparse pre-training, ``student/`` of others."""
    return next((str(Path(path) / part) for part in (".", "sparse", "student") if (Path(path) / part / "config.json").is_file()), str(path))


def refuse_run(setting: str, path: str) -> None:
    """Raise ``ConfigError`` where a run's folder is given for a model that may be its teacher as well as its student."""
    folder = Path(path)
    if (folder / "run.json").is_file() and not (folder / "config.json").is_file():
        models = [str(folder / part) for part in ("teacher", "sparse", "student") if (folder / part / "config.json").is_file()]
        raise ConfigError(f"{setting}: {path!r} is a run's folder; choices: {', '.join(models) or 'a folder with a model'}")


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
    """Copy a trained model's folder whole to ``student``, unless it is there already; one of another architecture makes room."""
    if (student / "config.json").exists() and _architecture_of(student) != _architecture_of(model):
        shutil.rmtree(student)  # the model was deleted, as a message told, and trained anew with another
    if not (student / "config.json").exists():
        write_folder(student, lambda partial: shutil.copytree(model, partial, dirs_exist_ok=True))


def _architecture_of(model: Path) -> Any:
    """The cells of a searched student; what is left of a pruned encoder's layers; nothing of any other model."""
    config = read_json(model / "config.json")
    return [config.get(name) for name in ("architecture", "heads", "neurons", "hidden_size")]
