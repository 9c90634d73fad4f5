"""What the command line shows of a run: bars on a terminal, plain lines elsewhere. Both write to standard error."""

from __future__ import annotations

import logging
import os
import sys
import time
import warnings
from collections.abc import Callable
from types import TracebackType
from typing import TextIO

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars
from rich.progress import TimeRemainingColumn

from adasearch.progress import Progress

LOG_SECONDS = 10.0  # a plain log says something at least this often while steps come in
LOG_SHARE = 0.1  # and at every tenth of a stage
UNNAMED = "working"  # title of steps that no stage announced
# Loud libraries: whatever they say of their own insides, our errors and messages say in the user's terms.
QUIET_ENVIRONMENT = {
    "DATASETS_VERBOSITY": "error",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",  # transformers follows this one
    "TRANSFORMERS_VERBOSITY": "error",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
}
QUIET_LOGGERS = ("torchao", "torch.onnx", "torch.export", "onnxscript", "onnx_ir", "matplotlib", "fsspec", "httpx")
QUIET_MODULES = r"(torch|torchao|transformers|datasets|huggingface_hub|accelerate|onnx|onnxscript|onnx_ir)(\.|$)"


def quiet_third_parties() -> None:
    """Silence progress bars, advice and deprecation warnings of the libraries below. Call before they are imported.

    Changes the process's environment, loggers and warning filters; a variable that the user has set is left alone.
    """
    for name, value in QUIET_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    for name in QUIET_LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)
    if (theirs := sys.modules.get("transformers.utils.logging")) is not None and os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] == "1":
        theirs.disable_progress_bar()  # it has read the environment already
    for category in (UserWarning, FutureWarning, DeprecationWarning):
        warnings.filterwarnings("ignore", category=category, module=QUIET_MODULES)


def format_seconds(seconds: float) -> str:
    """``12.3 s``, ``3 min 12 s`` or ``1 h 02 min``."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def format_metrics(metrics: dict[str, float | int | str]) -> str:
    """``loss 0.5312, accuracy 0.91``: four significant digits."""
    return ", ".join(f"{name} {v:.4g}" if isinstance(v, float) else f"{name} {v}" for name, v in metrics.items())


class StageProgress(Progress):
    """Keeps the current stage. A stage ends when the next begins or on leaving the ``with``; steps without one get one.

    A step beyond the total makes the total grow. What is shown is the subclass's:
    ``_begin``, ``_show`` and ``_line``.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self._clock = clock
        self._title: str | None = None

    def stage(self, title: str, total: int | None = None, done: int = 0) -> None:
        """End the current stage and begin another."""
        self._end("done")
        self._title, self._total, self._done, self._metrics = title, total, done, {}
        self._started = self._clock()
        self._begin()

    def step(self, done: int, **metrics: float | int | str) -> None:
        """Take note of the state of the current stage."""
        if self._title is None:
            self.stage(UNNAMED)
        self._done = done
        if self._total is not None:
            self._total = max(self._total, done)
        if metrics:
            self._metrics = metrics
        self._show()

    def message(self, text: str) -> None:
        """Say something."""
        self._line(text)

    def warning(self, text: str) -> None:
        """Say something that calls for action."""
        self._line(f"warning: {text}")

    def __enter__(self) -> StageProgress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end("done" if kind is None else "stopped")

    def _end(self, how: str) -> None:
        if self._title is None:
            return
        title, self._title = self._title, None
        at = f" at {self._done}/{self._total}" if self._total and self._done < self._total and self._done else ""
        metrics = f", {format_metrics(self._metrics)}" if self._metrics else ""
        self._line(f"{title}: {how}{at} in {format_seconds(self._clock() - self._started)}{metrics}")

    def _begin(self) -> None:
        raise NotImplementedError

    def _show(self) -> None:
        raise NotImplementedError

    def _line(self, text: str) -> None:
        raise NotImplementedError


class LogProgress(StageProgress):
    """Plain lines: where a stage begins and ends, and between them every tenth of it or every ten seconds."""

    def __init__(self, stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic):
        super().__init__(clock)
        self._stream = stream or sys.stderr

    def _begin(self) -> None:
        self._told_at, self._told_done = self._started, self._done
        if self._total is not None:
            self._line(f"{self._title}: {self._total} steps" + (f", {self._done} done before" if self._done else ""))
        else:
            self._line(f"{self._title}: begins")

    def _show(self) -> None:
        now = self._clock()
        tenth = self._total is not None and self._done - self._told_done >= LOG_SHARE * self._total
        if not tenth and now - self._told_at < LOG_SECONDS:
            return
        self._told_at, self._told_done = now, self._done
        of = f"/{self._total} ({self._done / self._total:.0%})" if self._total else ""
        metrics = f", {format_metrics(self._metrics)}" if self._metrics else ""
        self._line(f"{self._title}: {self._done}{of}{metrics}")

    def _line(self, text: str) -> None:
        print(text, file=self._stream, flush=True)


class RichProgress(StageProgress):
    """A bar with the latest metrics for the current stage, and one line for each stage behind us."""

    def __init__(self, console: Console | None = None, clock: Callable[[], float] = time.monotonic):
        super().__init__(clock)
        self._bars = Bars(
            SpinnerColumn(), TextColumn("{task.description}"), BarColumn(bar_width=24), MofNCompleteColumn(),
            TimeElapsedColumn(), TimeRemainingColumn(), TextColumn("{task.fields[metrics]}"),
            console=console or Console(stderr=True), transient=True,
        )  # fmt: skip
        self._task: TaskID | None = None

    def __enter__(self) -> RichProgress:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)
        self._bars.stop()

    def _begin(self) -> None:
        self._task = self._bars.add_task(escape(str(self._title)), total=self._total, completed=self._done, metrics="")

    def _show(self) -> None:
        assert self._task is not None
        metrics = escape(format_metrics(self._metrics))
        self._bars.update(self._task, completed=self._done, total=self._total, metrics=metrics)

    def _end(self, how: str) -> None:
        if self._task is not None:
            self._bars.remove_task(self._task)
            self._task = None
        super()._end(how)

    def _line(self, text: str) -> None:
        style = "yellow" if text.startswith("warning: ") else None
        self._bars.console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)


def make_progress(quiet: bool = False, stream: TextIO | None = None) -> StageProgress:
    """Bars where ``stream`` (standard error when absent) is a terminal and ``quiet`` was not asked for, else lines."""
    stream = stream or sys.stderr
    console = Console(file=stream)
    can_draw = console.is_terminal and not console.is_dumb_terminal
    return RichProgress(console) if can_draw and not quiet else LogProgress(stream)
