"""Time that a piece of work takes: wall clock and this process's processor time, with pauses that do not count."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class Stopwatch:
    """Seconds while it runs. ``cpu_s`` is of the whole process, so only one watch may run at a time for it to mean anything."""

    def __init__(self) -> None:
        self._wall_s, self._cpu_s = 0.0, 0.0
        self._since: tuple[float, float] | None = None

    def start(self) -> None:
        """Let it run; no effect when it does."""
        self._since = self._since or (time.perf_counter(), time.process_time())

    def stop(self) -> None:
        """Let it rest; no effect when it does."""
        if self._since is not None:
            self._wall_s += time.perf_counter() - self._since[0]
            self._cpu_s += time.process_time() - self._since[1]
            self._since = None

    @property
    def wall_s(self) -> float:
        """Seconds by the clock so far."""
        return self._wall_s + (time.perf_counter() - self._since[0] if self._since else 0.0)

    @property
    def cpu_s(self) -> float:
        """Processor seconds of this process so far, all its threads together."""
        return self._cpu_s + (time.process_time() - self._since[1] if self._since else 0.0)

    @contextmanager
    def running(self) -> Iterator[Stopwatch]:
        """It runs inside the block, and is as it was after it."""
        was_running = self._since is not None
        self.start()
        try:
            yield self
        finally:
            if not was_running:
                self.stop()

    @contextmanager
    def timing(self, work: Path) -> Iterator[dict[str, float]]:
        """It runs inside the block; after it what the training in ``work`` took: "seconds" and "cpu_seconds".

        Nothing where the training goes on from a checkpoint: of an interrupted one only the last part is known.
        """
        is_whole, wall_s, cpu_s = not (work / "checkpoint.pt").exists(), self.wall_s, self.cpu_s
        took: dict[str, float] = {}
        with self.running():
            yield took
        if is_whole:
            took.update(seconds=self.wall_s - wall_s, cpu_seconds=self.cpu_s - cpu_s)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """It rests inside the block, and is as it was after it."""
        was_running = self._since is not None
        self.stop()
        try:
            yield
        finally:
            if was_running:
                self.start()
