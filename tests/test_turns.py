"""Side by side: each piece of work is done as it would be alone, in turns, and an error ends all; and the stopwatch."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch

from adasearch.stopwatch import Stopwatch
from adasearch.turns import Tick, take_turns


def worker(name: str, steps: int, seen: list[str], seed: int | None = None):
    def work(tick: Tick) -> list[float]:
        if seed is not None:
            torch.manual_seed(seed)
        drawn = []
        for _ in range(steps):
            drawn.append(float(torch.rand(())))
            seen.append(name)
            tick()
        return drawn

    return work


def test_turns_are_of_equal_length_until_one_is_done() -> None:
    seen: list[str] = []
    take_turns({"a": worker("a", 5, seen), "b": worker("b", 2, seen), "c": worker("c", 4, seen)}, steps=2)
    assert "".join(seen) == "aabbccaacca"


def test_each_draws_the_random_numbers_it_would_draw_alone() -> None:
    jobs = {name: (name, 7, [], seed) for name, seed in (("a", 1), ("b", 2), ("c", None))}
    torch.manual_seed(9)
    side_by_side = take_turns({name: worker(*job) for name, job in jobs.items()}, steps=3)
    for name, job in jobs.items():
        torch.manual_seed(9)
        assert side_by_side[name] == worker(*job)(lambda: None)


def test_the_first_error_ends_all_and_is_raised() -> None:
    seen: list[str] = []

    def fails(tick: Tick) -> None:
        tick()
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        take_turns({"a": worker("a", 100, seen), "b": fails}, steps=1)
    assert len(seen) < 10


def test_the_watch_rests_in_pauses_and_goes_on_as_it_was() -> None:
    watch = Stopwatch()
    with watch.running():
        with watch.paused():
            time.sleep(0.05)
            rested = watch.wall_s
            with watch.paused():
                pass
            assert watch.wall_s == rested < 0.04
        with watch.running():
            time.sleep(0.02)
        assert watch.wall_s >= 0.02
    stopped = watch.wall_s
    time.sleep(0.01)
    assert watch.wall_s == stopped and watch.cpu_s >= 0


def test_what_a_training_took_is_not_told_where_it_goes_on_from_a_checkpoint(tmp_path: Path) -> None:
    watch = Stopwatch()
    with watch.running():
        time.sleep(0.01)
    wall_s, cpu_s = watch.wall_s, watch.cpu_s
    with watch.timing(tmp_path) as took:
        assert took == {} and watch._since is not None
        (tmp_path / "checkpoint.pt").touch()  # its own
    assert took == {"seconds": watch.wall_s - wall_s, "cpu_seconds": watch.cpu_s - cpu_s} and 0 < took["seconds"] < watch.wall_s
    with watch.timing(tmp_path) as took:
        pass
    assert took == {}
