"""The user's own code: modules and files that ``--import`` names, and what they held when they were imported."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from pathlib import Path

from adasearch.errors import ConfigError
from adasearch.files import fingerprint

OTHERS = {"adasearch", "site-packages", "dist-packages"}  # folders whose files are no user's, wherever the user's own lie
_imported: dict[str, str] = {}  # what ``import_user_code`` was asked for, files as whole paths -> the module's name
_contents: dict[str, str] = {}  # modules that were loaded for it -> fingerprint of the file


def import_user_code(name: str) -> None:
    """Import a module, or a ``.py`` file under its stem. Raises ``ConfigError`` when it is absent or does not parse."""
    known = {*sys.modules}
    try:
        if not name.endswith(".py"):
            if os.getcwd() not in sys.path:
                sys.path.insert(0, os.getcwd())  # a console script, unlike python -m, does not look here
            importlib.import_module(name)
            _imported[name] = name
            _note_contents(name, known)
            return
        path = Path(name).resolve()
        if not path.is_file():
            raise ConfigError(f"--import {name}: no such file")
        if path.stem in sys.modules:
            raise ConfigError(f"--import {name}: a module named {path.stem!r} is loaded already; rename the file")
        spec = importlib.util.spec_from_file_location(path.stem, path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[path.stem] = module  # where inspect finds the source that is saved with the student
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[path.stem]  # as the import statement does
            raise
        _imported[str(path)] = path.stem
        _note_contents(path.stem, known)
    except (ImportError, SyntaxError) as error:
        raise ConfigError(f"--import {name}: cannot be imported ({error})") from error


def _note_contents(name: str, known: set[str]) -> None:
    """Fingerprints of the module's file and of those beside or below it that were loaded with it: it may import files of the user's."""
    files = {other: getattr(sys.modules[other], "__file__", None) for other in [*sys.modules] if other == name or other not in known}
    if files[name] is None:  # a package without a file
        return
    root = Path(files[name]).resolve().parent
    for other, file in files.items():
        path = Path(file or "").resolve()
        if path.suffix == ".py" and path.is_relative_to(root) and (other == name or not OTHERS & {*path.relative_to(root).parts}):
            _contents[other] = fingerprint(path)


def import_once(name: str) -> None:
    """Import a user's module or file, but not a file that is loaded already: a script's worker has imported what the script does."""
    path = Path(name)
    loaded = (getattr(module, "__file__", None) or "" for module in [*sys.modules.values()])
    if not any(Path(file).name == path.name and Path(file).resolve() == path for file in loaded):
        import_user_code(name)


def code_for_workers(base: type) -> tuple[str, ...]:
    """What a new process must import to know what this one knows, in order: all that ``--import`` named, modules with subclasses of ``base``.

    Files as whole paths, modules of a package by name: their own relative imports need it. The class is handed in, so that help and bad
    usage, which know of ``--import``, load no torch.
    """
    found, classes = set(), [base]
    while classes:
        classes += (cls := classes.pop()).__subclasses__()
        found.add(cls.__module__)
    own = sorted(name for name in found if name.partition(".")[0] not in ("adasearch", "__main__", "__mp_main__") and name in sys.modules)
    files = {name: getattr(sys.modules[name], "__file__", None) for name in own}
    modules = (name if "." in name else str(Path(file).resolve()) for name, file in files.items() if file)
    return tuple(dict.fromkeys([*(name for name, module in _imported.items() if module in sys.modules), *modules]))


def imported_contents() -> dict[str, str]:
    """What the files held that were read for ``--import``, as fingerprints, each under a name that a message can show."""
    return {f"--import {module}": held for module, held in _contents.items() if module in sys.modules}
