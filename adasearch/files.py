"""Files that are either whole or absent, and fingerprints that say what they were made from."""

from __future__ import annotations

import contextlib
import glob
import hashlib
import json
import os
import shutil
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adasearch.errors import TrainingError, one_line

if TYPE_CHECKING:  # settings are fingerprinted too: `adasearch --help` reads them and does without numpy
    import numpy as np

ABANDONED_S = 3600.0  # a partial file that nobody has written to for so long has lost its writer


def closed_parent(path: Path) -> Path | None:
    """Of a path, or of what of it exists, the folder that is none or that nothing can be written into; None where there is no such thing."""
    path = path.absolute()
    nearest = next(place for place in (path, *path.parents) if place.exists())
    return None if nearest.is_dir() and os.access(nearest, os.W_OK) else nearest


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Let ``write`` fill a temporary neighbour of ``path``, flush it to disk, then rename it into place.

    A kill at any moment leaves either the old file or the new one. Raises ``TrainingError`` when the disk is full.
    """
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.partial")  # containers on one disk have the same process numbers
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_old_partials(path)
        write(partial)
        sync(partial)
        os.replace(partial, path)
    except BaseException as error:
        with contextlib.suppress(OSError):  # there may be no folder for it to lie in
            partial.unlink()
        refuse_full_disk(path, error)
        raise


def write_folder(path: Path, write: Callable[[Path], None]) -> None:
    """The same for a folder that is not there yet: filled under another name, then renamed. Raises ``TrainingError``."""
    partial = path.with_name(f".{path.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # left there by a kill
    try:
        partial.mkdir(parents=True)
        write(partial)
        for file in partial.rglob("*"):
            if file.is_file():
                sync(file)
        os.replace(partial, path)
    except BaseException as error:
        shutil.rmtree(partial, ignore_errors=True)
        refuse_full_disk(path, error)
        raise


def sync(path: Path) -> None:
    """Flush a file to disk: a name must not be there before what it names."""
    with open(path, "rb+") as file:
        os.fsync(file.fileno())


def _remove_old_partials(path: Path) -> None:
    """What killed writers of ``path`` left beside it, each as large as the file."""
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.partial"):
        with contextlib.suppress(OSError):  # another process has just renamed it
            if time.time() - left.stat().st_mtime > ABANDONED_S:
                left.unlink()


def refuse_full_disk(path: Path, error: BaseException) -> None:
    """Raise ``TrainingError`` where an error means that the disk took no more; else return.

    Python raises OSError; safetensors and tokenizers say "os error 28", torch names its inline_container, in exceptions of their own.
    """
    if isinstance(error, OSError) or "os error" in str(error) or "inline_container" in str(error):
        reason = getattr(error, "strerror", None) or one_line(error, 200)
        raise TrainingError(f"{path}: cannot be written ({reason}); what was saved before is intact") from error


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    write_atomically(path, lambda partial: partial.write_text(text, encoding="utf-8"))


def write_json(path: Path, data: Any) -> None:
    """Write JSON atomically, two-space indented, with a final newline."""
    write_text(path, json.dumps(data, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file. Raises OSError or json.JSONDecodeError."""
    return json.loads(path.read_text(encoding="utf-8"))


def write_array(path: Path, array: np.ndarray) -> None:
    """Write one ``.npy`` file atomically; ``numpy.load(path, mmap_mode='r')`` maps it back."""
    import numpy as np

    def write(partial: Path) -> None:
        with open(partial, "wb") as file:
            np.save(file, array, allow_pickle=False)

    write_atomically(path, write)


def fingerprint(*parts: Any) -> str:
    """A short SHA-256 over JSON-like values, bytes, arrays and paths' contents: equal inputs, equal name."""
    import numpy as np

    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, np.ndarray):
            digest.update(str((part.dtype, part.shape)).encode())
            digest.update(np.ascontiguousarray(part).data)
        elif isinstance(part, bytes):
            digest.update(part)
        elif isinstance(part, Path):
            with open(part, "rb") as file:
                while block := file.read(1 << 20):
                    digest.update(block)
        else:
            digest.update(json.dumps(part, sort_keys=True, default=str).encode())
        digest.update(b"\0")
    return digest.hexdigest()[:16]
