"""A model's outputs for whole sets of texts: in memory, or computed once into memory-mapped files.

Dimensions: N texts, B batch, L tokens.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import AutocastKwargs
from filelock import FileLock
from torch import Tensor

from adasearch.errors import TrainingError
from adasearch.files import read_json, write_array, write_json
from adasearch.progress import Progress
from adasearch.tokens import Examples

CHUNK = 8_192  # texts between two saves
Forward = Callable[[Tensor, Tensor], tuple[Tensor, ...]]  # (input_ids, attention_mask), both (B, L) -> outputs (B, ...)


def autocast(accelerator: Accelerator, is_mixed: bool) -> AbstractContextManager[None]:
    """The accelerator's mixed precision, or none."""
    return accelerator.autocast(AutocastKwargs(enabled=is_mixed and accelerator.mixed_precision != "no"))


@torch.inference_mode()
def outputs_of(
    forward: Forward, examples: Examples, accelerator: Accelerator, *, batch_size: int = 128, is_mixed: bool = False
) -> list[np.ndarray]:
    """Every output of ``forward`` for all examples in their order, each (N, ...) float32."""
    rows: list[np.ndarray] = []
    for indices, batch in examples.in_order(batch_size):
        with autocast(accelerator, is_mixed):
            outputs = forward(batch["input_ids"].to(accelerator.device), batch["attention_mask"].to(accelerator.device))
        if not rows:
            rows = [np.empty((len(examples), *output.shape[1:]), np.float32) for output in outputs]
        for row, output in zip(rows, outputs):
            row[indices] = output.float().cpu().numpy()
    return rows


def partial_path(path: Path) -> Path:
    """Where ``streamed_outputs`` writes until ``path`` is whole."""
    return path.with_name(f".{path.name}.partial")


def streamed_outputs(
    forward: Forward, examples: Examples, path: Path, accelerator: Accelerator, progress: Progress, title: str
) -> np.ndarray:
    """The one output of ``forward`` for all examples, (N, ...) float16, in a file that is written in place and mapped back.

    However many examples, memory holds ``CHUNK`` of them and the disk one copy. A killed pass goes on with the chunk it was
    at. Raises ``TrainingError`` for values that float16 cannot hold, and when the disk is full.
    """
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_name(f".{path.name}.lock")):  # two that write one file in place would leave holes in it
            if not path.exists():
                _stream_outputs(forward, examples, path, accelerator, progress, title)
    return np.load(path, mmap_mode="r")


def _stream_outputs(
    forward: Forward, examples: Examples, path: Path, accelerator: Accelerator, progress: Progress, title: str
) -> None:
    """``path``, or what is left of it to be written."""
    partial, state = partial_path(path), path.with_name(f".{path.name}.done.json")
    done = read_json(state)["done"] if partial.exists() and state.exists() else 0
    progress.stage(title, len(examples), done)
    try:
        rows = np.load(partial, mmap_mode="r+") if done else None
        while done < len(examples):
            stop = min(done + CHUNK, len(examples))
            (values,) = outputs_of(forward, examples.select(np.arange(done, stop)), accelerator, is_mixed=True)
            with np.errstate(over="ignore"):  # told below
                half = values.astype(np.float16)
            if not np.isfinite(half).all():
                raise TrainingError(f"{path}: an output of texts {done} to {stop} is beyond float16 ({np.abs(values).max():.3g})")
            if rows is None:
                rows = np.lib.format.open_memmap(partial, "w+", np.float16, (len(examples), *values.shape[1:]))
            rows[done:stop] = half
            rows.flush()
            done = stop
            write_json(state, {"done": done})
            progress.step(done)
        os.replace(partial, path)
        state.unlink(missing_ok=True)
    except OSError as error:
        raise TrainingError(f"{path}: cannot be written ({error.strerror or error}); what was saved before is intact") from error


def cached_outputs(
    forward: Forward,
    examples: Examples,
    folder: Path,
    names: tuple[str, ...],
    accelerator: Accelerator,
    progress: Progress,
    title: str,
    *,
    is_mixed: bool = True,
) -> list[np.ndarray]:
    """The same from memory-mapped files ``folder/<name>.npy``, one for each output, made when they are absent."""

    def compute(chunk: np.ndarray) -> list[np.ndarray]:
        return outputs_of(forward, examples.select(chunk), accelerator, is_mixed=is_mixed)

    return cached_in_chunks(compute, len(examples), folder, names, progress, title)


def cached_in_chunks(
    compute: Callable[[np.ndarray], Sequence[np.ndarray]], count: int, folder: Path, names: Sequence[str], progress: Progress, title: str
) -> list[np.ndarray]:
    """What ``compute`` makes of the examples' indices, an array for each name, from memory-mapped files ``folder/<name>.npy``.

    Made when they are absent, and saved every ``CHUNK`` examples, so that a killed pass goes on where it was.
    """
    targets = [folder / f"{name}.npy" for name in names]
    if not all(path.exists() for path in targets):
        starts = range(0, count, CHUNK)
        progress.stage(title, count)
        for start in starts:
            stop = min(start + CHUNK, count)
            parts = [folder / f"{name}.{start}.npy" for name in names]
            if not all(path.exists() for path in parts):
                for path, array in zip(parts, compute(np.arange(start, stop))):
                    write_array(path, array)
            progress.step(stop)
        for name, path in zip(names, targets):
            write_array(path, np.concatenate([np.load(folder / f"{name}.{start}.npy") for start in starts]))
        for name in names:
            for start in starts:
                (folder / f"{name}.{start}.npy").unlink()
    return [np.load(path, mmap_mode="r") for path in targets]
