"""The device and precision of a run."""

from __future__ import annotations

import contextlib
import ctypes
import sys
import time
from collections.abc import Iterator
from typing import Protocol

import torch
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState

from adasearch.distributed import agree, open_group
from adasearch.settings import check_threads

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # parameters of mallopt, as malloc.h numbers them
BF16_GAIN = 1.3  # bf16 must multiply matrices this much faster than fp32 to be worth its rounding


class Trained(Protocol):
    """Settings of what trains."""

    threads: int | None
    cpu: bool
    mixed_precision: str


def make_accelerator(config: Trained, begun: str | None = None) -> Accelerator:
    """The device and precision of the run. ``auto`` takes bf16 on a processor where a product is really faster in it.

    ``begun``: the precision that a run goes on with, which a busier moment or another machine would measure differently.

    Raises ``ConfigError`` for more threads than cores.
    """
    use_threads(config.threads)
    _keep_freed_memory()
    open_group(config.cpu)
    precision = config.mixed_precision
    if precision == "auto":
        on_cpu = config.cpu or not (torch.cuda.is_available() or torch.backends.mps.is_available())
        is_faster = on_cpu and (begun == "bf16" if begun else agree(_bf16_gain()) > BF16_GAIN)
        precision = "bf16" if is_faster else "no"
    held = AcceleratorState._shared_state  # that of an earlier run of this process, which an Accelerator of another precision would not take
    if held and held.get("_mixed_precision") != precision and PartialState().num_processes == 1:
        AcceleratorState._reset_state()
    return Accelerator(cpu=config.cpu, mixed_precision=precision)


def use_threads(threads: int | None) -> None:
    """Train on so many; None leaves torch's own choice. Raises ``ConfigError`` for more than there are cores."""
    check_threads(threads)
    if threads:
        torch.set_num_threads(threads)


@contextlib.contextmanager
def keeping_threads() -> Iterator[None]:
    """Torch's threads are afterwards what they were before, for what this process trains next."""
    threads = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _keep_freed_memory() -> None:
    """Keep the memory of tensors that are gone for the next step's, where the C library is glibc.

    It hands large blocks back to the system, which clears every page before it gives them out again: a training step of MiniLM
    spends up to a fifth of its time so. The process stays at the size of its largest step.
    """
    if sys.platform != "linux":
        return
    with contextlib.suppress(AttributeError, OSError):  # another C library
        library = ctypes.CDLL("libc.so.6")
        library.mallopt(M_MMAP_MAX, 0)
        library.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def _bf16_gain() -> float:
    """How many times faster a 1024 x 384 x 1536 product is in bf16 than in fp32, here and now."""
    seconds = {}
    for dtype in (torch.float32, torch.bfloat16):
        a, b = torch.ones(1024, 384, dtype=dtype), torch.ones(384, 1536, dtype=dtype)
        times = []
        for _ in range(7):
            start = time.perf_counter()
            a @ b
            times.append(time.perf_counter() - start)
        seconds[dtype] = sorted(times)[len(times) // 2]
    return seconds[torch.float32] / seconds[torch.bfloat16]
