"""Histories of searches and trainings as they are written, for the trackers that a run reports to."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from accelerate import Accelerator


def track(accelerator: Accelerator, stage: str, record: dict[str, Any]) -> None:
    """Give a record of ``fit``'s history to every tracker of the accelerator (none: nothing happens).

    Names begin with the stage ("search/terms/kd", "earlybert-1/train/loss"), which is one of a kind in a run. TensorBoard counts the stage's own steps; the others want one count
    for a whole run, so that they number the records and get the step as "<stage>/step".
    """
    values = {f"{stage}/{name}": value for name, value in numbers(record)}
    for tracker in accelerator.trackers:
        if tracker.name == "tensorboard":
            tracker.log({name: value for name, value in values.items() if name != f"{stage}/step"}, step=record["step"])
        else:
            tracker.log(values)


def numbers(record: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """The numbers of a record, named by their path."""
    for name, value in record.items():
        if isinstance(value, dict):
            yield from numbers(value, f"{prefix}{name}/")
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            yield f"{prefix}{name}", value
