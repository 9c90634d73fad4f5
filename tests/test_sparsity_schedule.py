"""The schedule against the numbers of the published run (100,000 steps, pruning until 50,000, masks until 80,000) and by hand."""

from __future__ import annotations

import pytest

from adasearch.errors import ConfigError
from adasearch.sparsity_schedule import SparsitySchedule, rewinding_factor, warmed_linear

STEPS, WARMUP = 100_000, 1_000
PUBLISHED = SparsitySchedule(final=0.85, start=0, end=50_000, until=80_000, every=1_000)


@pytest.mark.parametrize(
    ("step", "sparsity"),
    [
        (0, 0.0),
        (10_000, 0.85 * 0.488),  # 1 - 0.8^3
        (25_000, 0.85 * 0.875),  # 1 - 0.5^3
        (40_000, 0.85 * 0.992),  # 1 - 0.2^3
        (50_000, 0.85),
        (80_000, 0.85),
        (99_999, 0.85),
    ],
)
def test_sparsity_rises_along_the_cubic(step: int, sparsity: float) -> None:
    assert PUBLISHED.sparsity(step) == pytest.approx(sparsity, abs=1e-12)


def test_sparsity_begins_where_it_is_told() -> None:
    schedule = SparsitySchedule(final=0.9, start=100, end=300, until=300, every=50, initial=0.5)
    assert [schedule.sparsity(step) for step in (0, 100, 200, 300)] == pytest.approx([0.5, 0.5, 0.5 + 0.4 * 0.875, 0.9])


def test_masks_are_chosen_until_the_fixed_phase() -> None:
    updates = [step for step in range(STEPS) if PUBLISHED.is_update(step)]
    assert updates == list(range(0, 80_001, 1_000))
    odd = SparsitySchedule(final=0.9, start=3, end=10, until=14, every=4)
    assert [step for step in range(30) if odd.is_update(step)] == [3, 7, 10, 11]  # the end itself, so that 0.9 is reached


@pytest.mark.parametrize("steps", [1, 2, 3, 7, 10, 100, 1234])
def test_shares_always_reach_the_final_sparsity(steps: int) -> None:
    for end, until in ((0.5, 0.8), (0.0, 0.0), (0.9, 0.9), (1.0, 1.0)):
        schedule = SparsitySchedule.of_shares(steps, 0.85, end=end, until=until)
        last = [step for step in range(steps) if schedule.is_update(step)][-1]
        assert schedule.sparsity(last) == 0.85
    assert SparsitySchedule.of_shares(STEPS, 0.85) == PUBLISHED


@pytest.mark.parametrize(
    ("step", "factor"),
    [
        (0, 0.0),
        (500, 0.5),  # warm-up
        (1_000, 50 / 49),  # the first tooth after it: Tw / (Tw - W)
        (1_999, (50_000 - 999) / 49_000),
        (2_000, 50 / 49),
        (49_999, (50_000 - 999) / 49_000),
        (50_000, 50 / 49),  # then the line to 0
        (75_000, 25 / 49),
        (99_999, 1 / 49_000),
    ],
)
def test_the_learning_rate_waits_while_weights_go(step: int, factor: float) -> None:
    assert rewinding_factor(step, STEPS, WARMUP, PUBLISHED) == pytest.approx(factor, abs=1e-12)


def test_the_saw_tooth_stays_at_the_peak() -> None:
    teeth = [rewinding_factor(step, STEPS, WARMUP, PUBLISHED) for step in range(WARMUP, 50_000)]
    assert max(teeth) == pytest.approx(1.0204, abs=1e-4) and min(teeth) == pytest.approx(1.0, abs=1e-4)


def test_pruning_that_begins_later_goes_on_from_the_line_before_it() -> None:
    schedule = SparsitySchedule(final=0.5, start=20, end=60, until=60, every=10)  # 100 steps: Tw = 60, W = 10
    factors = [rewinding_factor(step, 100, 10, schedule) for step in (9, 10, 19, 20, 29, 30, 59, 60, 99)]
    assert factors == pytest.approx([0.9, 1.0, 41 / 50, 40 / 50, 31 / 50, 40 / 50, 31 / 50, 40 / 50, 1 / 50])


def test_the_learning_rate_is_never_negative() -> None:
    schedule = SparsitySchedule(final=0.5, start=0, end=98, until=98, every=50)
    assert min(rewinding_factor(step, 100, 0, schedule) for step in range(100)) == 0


def test_linear() -> None:
    assert [warmed_linear(step, 12, 2) for step in (-3, 0, 1, 2, 7, 11, 12)] == pytest.approx([0, 0, 0.5, 1, 0.5, 0.1, 0])
    assert warmed_linear(-1, 5, 0) == 0 and warmed_linear(0, 5, 0) == 1


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"start": 5, "end": 4}, "start 5, end 4"),
        ({"until": 3}, "until 3"),
        ({"every": 0}, "every 0"),
        ({"initial": 0.9}, "sparsity from 0.9 to 0.8"),
        ({"final": 1.5}, "to 1.5"),
    ],
)
def test_schedules_that_make_no_sense_are_refused(settings: dict[str, float], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        SparsitySchedule(**{"final": 0.8, "start": 0, "end": 4, "until": 4, "every": 1, **settings})
