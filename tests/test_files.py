"""Laws of writing: a file is whole or the old one, whatever happens; equal content, equal fingerprint."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import resource
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from adasearch.errors import TrainingError
from adasearch.files import fingerprint, read_json, write_array, write_atomically, write_folder, write_json, write_text


def half_then(end: Callable[[], Any]) -> Callable[[Path], None]:
    """A write that is cut short by ``end``; into a folder it writes a file."""

    def write(partial: Path) -> None:
        (partial / "file" if partial.is_dir() else partial).write_text("hal", encoding="utf-8")
        end()

    return write


def disk_full() -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def interrupt() -> None:
    raise KeyboardInterrupt


def overflow_torch(partial: Path) -> None:
    """torch's writer on a disk that takes no more: it raises a RuntimeError."""
    torch.save(torch.zeros(100_000), partial)


def overflow_safetensors(partial: Path) -> None:
    """safetensors' writer likewise, with an error of its own."""
    partial = partial / "model.safetensors" if partial.is_dir() else partial
    save_file({"weight": torch.zeros(100_000)}, partial)


@pytest.mark.parametrize("overflow", [overflow_torch, overflow_safetensors])
@pytest.mark.parametrize("write", [write_atomically, write_folder])
def test_the_writers_of_others_say_a_full_disk_too(overflow: Callable[[Path], None], write: Callable[..., None], tmp_path: Path) -> None:
    def limited(partial: Path) -> None:
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # a write beyond the limit is an error then, not the end
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
        try:
            overflow(partial / "model.pt" if partial.is_dir() and overflow is overflow_torch else partial)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
            signal.signal(signal.SIGXFSZ, before)

    with pytest.raises(TrainingError, match="out: cannot be written .*what was saved before is intact"):
        write(tmp_path / "out", limited)
    assert not list(tmp_path.iterdir())


def test_what_is_written_is_read(tmp_path: Path) -> None:
    file = tmp_path / "new" / "folders" / "file.json"
    data = {"näme": ["ü", 1, 2.5, None, True], "b": {}}
    write_json(file, data)
    assert (
        read_json(file) == data
        and file.read_text(encoding="utf-8") == json.dumps(data, indent=2, ensure_ascii=False) + "\n"
    )
    write_text(file, "second")
    assert file.read_text(encoding="utf-8") == "second"
    array = np.arange(6, dtype=np.float16).reshape(2, 3).T  # not contiguous
    write_array(tmp_path / "array.npy", array)
    mapped = np.load(tmp_path / "array.npy", mmap_mode="r")
    assert np.array_equal(mapped, array) and mapped.dtype == array.dtype
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == ["array.npy", "file.json"]


def test_pickles_are_not_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="allow_pickle"):
        write_array(tmp_path / "array.npy", np.array([{}], dtype=object))
    assert not (tmp_path / "array.npy").exists()


@pytest.mark.parametrize("write", [write_atomically, write_folder])
def test_a_full_disk_is_one_clear_error_and_leaves_nothing_behind(write: Callable[..., None], tmp_path: Path) -> None:
    path = tmp_path / "thing"
    if write is write_atomically:
        write_text(path, "old")
    with pytest.raises(TrainingError) as error:
        write(path, half_then(disk_full))
    assert str(error.value) == f"{path}: cannot be written (No space left on device); what was saved before is intact"
    assert [p.name for p in tmp_path.iterdir()] == (["thing"] if write is write_atomically else [])
    if write is write_atomically:
        assert path.read_text(encoding="utf-8") == "old"


@pytest.mark.parametrize("write", [write_atomically, write_folder])
def test_an_interrupted_write_leaves_the_old_file_and_can_be_repeated(
    write: Callable[..., None], tmp_path: Path
) -> None:
    path = tmp_path / "thing"
    if write is write_atomically:
        write_text(path, "old")
    with pytest.raises(KeyboardInterrupt):
        write(path, half_then(interrupt))
    assert path.read_text(encoding="utf-8") == "old" if write is write_atomically else not path.exists()
    write(path, half_then(lambda: None))
    assert (path if path.is_file() else path / "file").read_text(encoding="utf-8") == "hal"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills a forked child")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("write", [write_atomically, write_folder])
def test_a_kill_leaves_the_old_file_and_the_next_write_goes_through(write: Callable[..., None], tmp_path: Path) -> None:
    path = tmp_path / "thing"
    if write is write_atomically:
        write_text(path, "old")
    child = os.fork()
    if child == 0:
        try:
            write(path, half_then(lambda: os.kill(os.getpid(), signal.SIGKILL)))
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert path.read_text(encoding="utf-8") == "old" if write is write_atomically else not path.exists()
    write(path, half_then(lambda: None))
    assert (path if path.is_file() else path / "file").read_text(encoding="utf-8") == "hal"


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "folder" / "full").mkdir(parents=True)
    for write, path in ((write_atomically, tmp_path / "folder"), (write_folder, tmp_path / "folder")):
        with pytest.raises(TrainingError, match="cannot be written") as error:
            write(path, half_then(lambda: None))
        assert str(error.value).startswith(f"{path}: ")
    assert [p.name for p in tmp_path.iterdir()] == ["folder"] and (tmp_path / "folder" / "full").is_dir()


def test_equal_content_has_an_equal_fingerprint(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    for file in (one, two):
        file.write_bytes(b"x" * 3_000_000)  # more than one block
    array = np.arange(12).reshape(3, 4)
    assert fingerprint({"a": 1, "b": [2]}, array) == fingerprint({"b": [2], "a": 1}, array.copy())
    assert fingerprint(array.T) == fingerprint(np.ascontiguousarray(array.T))
    assert fingerprint(one) == fingerprint(two) == hashlib.sha256(b"x" * 3_000_000 + b"\0").hexdigest()[:16]
    two.write_bytes(b"x" * 2_999_999 + b"y")
    assert fingerprint(one) != fingerprint(two)


def test_different_content_has_different_fingerprints() -> None:
    array = np.arange(12)
    different = [
        (), (None,), ("",), ("a",), ("a", "b"), ("ab",), (["a", "b"],), (1,), (1.5,), ("1",), (True,), (b"a",),
        ({"a": 1},), ({"a": 2},), (array,), (array.reshape(3, 4),), (array.astype(np.int32),), (array[::-1],),
    ]  # fmt: skip
    assert len({fingerprint(*parts) for parts in different}) == len(different)


def test_two_writers_of_one_file_do_not_meet(tmp_path: Path) -> None:
    """Containers that share a disk have the same process numbers: each writer's partial file is its own."""
    path, seen = tmp_path / "a.json", []

    def inner(partial: Path) -> None:
        seen.append(partial)
        partial.write_text("inner")

    def outer(partial: Path) -> None:
        seen.append(partial)
        partial.write_text("outer")
        write_atomically(path, inner)

    write_atomically(path, outer)
    assert seen[0] != seen[1] and path.read_text() == "outer" and os.listdir(tmp_path) == ["a.json"]


def test_what_a_killed_writer_left_goes_with_the_next_write(tmp_path: Path) -> None:
    old, young, others = (tmp_path / name for name in (".a.pt.123.partial", ".a.pt.456.partial", ".b.pt.123.partial"))
    for left in (old, young, others):
        left.write_text("half")
    for left in (old, others):
        os.utime(left, (0, 0))
    write_text(tmp_path / "a.pt", "whole")
    assert not old.exists() and young.exists() and others.exists()
