"""What is shown of a run, against a clock and streams that the tests hold."""

from __future__ import annotations

import io
import logging
import os
import warnings

import pytest
from rich.console import Console

from adasearch import console
from adasearch.console import LogProgress, RichProgress, StageProgress, format_metrics, format_seconds, make_progress


class Clock:
    """Seconds that pass when the test says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def bars(stream: io.StringIO, clock: Clock | None = None) -> RichProgress:
    return RichProgress(Console(file=stream, force_terminal=True, width=120), clock or Clock())


@pytest.fixture(params=["log", "bars"])
def shown(request: pytest.FixtureRequest) -> tuple[StageProgress, io.StringIO, Clock]:
    stream, clock = io.StringIO(), Clock()
    return (LogProgress(stream, clock) if request.param == "log" else bars(stream, clock)), stream, clock


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0.0 s"), (12.34, "12.3 s"), (59.97, "1 min 00 s"), (192, "3 min 12 s"), (3599.7, "1 h 00 min")],
)
def test_seconds_read_as_people_say_them(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text


def test_metrics_have_four_significant_digits() -> None:
    assert format_metrics({"loss": 0.531249, "step": 123456, "phase": "arch"}) == "loss 0.5312, step 123456, phase arch"


def test_log_tells_every_tenth_and_no_more() -> None:
    stream = io.StringIO()
    with LogProgress(stream, Clock()) as progress:
        progress.stage("search", total=100)
        for done in range(1, 101):
            progress.step(done, loss=1.0 / done)
    lines = stream.getvalue().splitlines()
    assert lines[0] == "search: 100 steps"
    assert [line.split(",")[0] for line in lines[1:-1]] == [f"search: {n}/100 ({n}%)" for n in range(10, 101, 10)]
    assert lines[-1] == "search: done in 0.0 s, loss 0.01"


def test_log_tells_every_ten_seconds_of_slow_steps() -> None:
    stream, clock = io.StringIO(), Clock()
    with LogProgress(stream, clock) as progress:
        progress.stage("teacher", total=10_000)
        for done in range(1, 8):
            clock.now += 4.0
            progress.step(done)
    assert [line.split()[1] for line in stream.getvalue().splitlines()[1:-1]] == ["3/10000", "6/10000"]


def test_a_resumed_stage_says_so_and_counts_tenths_from_there() -> None:
    stream = io.StringIO()
    with LogProgress(stream, Clock()) as progress:
        progress.stage("search", total=100, done=95)
        progress.step(96)
        progress.step(100)
    assert stream.getvalue().splitlines() == ["search: 100 steps, 95 done before", "search: done in 0.0 s"]


def test_a_stage_ends_where_the_next_begins(shown: tuple[StageProgress, io.StringIO, Clock]) -> None:
    progress, stream, clock = shown
    with progress:
        progress.stage("first", total=4)
        progress.step(4, loss=0.5)
        clock.now = 2.0
        progress.stage("second")
        clock.now = 5.0
    text = stream.getvalue()
    assert text.index("first: done in 2.0 s, loss 0.5") < text.index("second: done in 3.0 s")


def test_steps_without_stage_and_beyond_the_total_are_shown(shown: tuple[StageProgress, io.StringIO, Clock]) -> None:
    progress, stream, _ = shown
    with progress:
        progress.step(3, loss=1.0)
        progress.stage("short", total=2)
        progress.step(5)
        progress.stage("empty", total=0)
        progress.step(0)
    assert "working: done" in stream.getvalue() and "short: done in" in stream.getvalue()


def test_a_stage_that_fails_is_not_called_done(shown: tuple[StageProgress, io.StringIO, Clock]) -> None:
    progress, stream, _ = shown
    with pytest.raises(KeyboardInterrupt), progress:
        progress.stage("search", total=10)
        progress.step(4)
        raise KeyboardInterrupt
    assert "search: stopped at 4/10 in 0.0 s" in stream.getvalue() and "done" not in stream.getvalue()


def test_texts_are_shown_as_they_are(shown: tuple[StageProgress, io.StringIO, Clock]) -> None:
    progress, stream, _ = shown
    with progress:
        progress.stage("edges [/0] of [bold]", total=3)
        progress.step(1, edge="[/x]")
        progress.message("file [red]a.csv[/red] " + "x" * 150)
        progress.warning("3 rows [skipped]")
    text = stream.getvalue()
    assert "file [red]a.csv[/red] " + "x" * 150 in text and "warning: 3 rows [skipped]" in text
    assert "edges [/0] of [bold]: done" in text.replace("stopped", "done").replace(" at 1/3", "")


def test_bars_only_on_a_terminal_that_can_draw_and_not_when_quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FORCE_COLOR", "NO_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert isinstance(make_progress(stream=Terminal()), RichProgress)
    assert isinstance(make_progress(quiet=True, stream=Terminal()), LogProgress)
    assert isinstance(make_progress(stream=io.StringIO()), LogProgress)
    monkeypatch.setenv("TERM", "dumb")
    assert isinstance(make_progress(stream=Terminal()), LogProgress)


def test_third_parties_fall_silent_and_users_settings_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", {"TRANSFORMERS_VERBOSITY": "debug"})
    level = logging.getLogger("torchao").level
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        console.quiet_third_parties()
        warnings.warn_explicit("old", FutureWarning, "x.py", 1, module="transformers.models.bert")
        warnings.warn_explicit("ours", FutureWarning, "y.py", 1, module="adasearch.fit")
        warnings.warn_explicit("other", FutureWarning, "z.py", 1, module="torch_like")
    assert [str(warning.message) for warning in caught] == ["ours", "other"]
    assert os.environ["TRANSFORMERS_VERBOSITY"] == "debug" and os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] == "1"
    assert logging.getLogger("torchao").level == logging.ERROR
    logging.getLogger("torchao").setLevel(level)
