"""Several pieces of work side by side in one process, so that whatever else the machine does meets all of them alike.

Each has a thread, but only one works at a time: after so many steps it hands over. Torch's random numbers are handed back
with the turn, so every piece of work draws what it would draw alone.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import TypeVar

import torch
from torch import Tensor

Result = TypeVar("Result")
Tick = Callable[[], None]  # to be called after every step; returns when it is one's turn (again)


class _Stopped(BaseException):
    """Ends a piece of work whose neighbour failed; no ``except Exception`` may keep it."""


class _Turns:
    """Whose turn it is."""

    def __init__(self, names: list[str], steps: int):
        self.waiting, self.steps = list(names), steps
        self.changed, self.failed = threading.Condition(), False

    def wait(self, name: str) -> None:
        with self.changed:
            self.changed.wait_for(lambda: self.failed or self.waiting[0] == name)
            if self.failed:
                raise _Stopped

    def pass_on(self, name: str, *, is_done: bool = False) -> None:
        with self.changed:
            self.waiting.remove(name)
            if not is_done:
                self.waiting.append(name)
            self.changed.notify_all()

    def fail(self) -> None:
        with self.changed:
            self.failed = True
            self.changed.notify_all()


def take_turns(jobs: Mapping[str, Callable[[Tick], Result]], steps: int) -> dict[str, Result]:
    """Do all jobs, in turns of ``steps`` calls of the function each is given, in their order; their results by name.

    The first error ends all of them at their next step, and is raised.
    """
    turns, results, errors = _Turns(list(jobs), steps), {}, []
    beginning = _random_state()

    def work(name: str, job: Callable[[Tick], Result]) -> None:
        count = 0

        def tick() -> None:
            nonlocal count
            count += 1
            if count % steps == 0:
                state = _random_state()
                turns.pass_on(name)
                turns.wait(name)
                _set_random_state(state)

        try:
            turns.wait(name)
            _set_random_state(beginning)
            results[name] = job(tick)
            turns.pass_on(name, is_done=True)
        except _Stopped:
            pass
        except BaseException as error:  # of a thread: raised again where it was asked for
            errors.append(error)
            turns.fail()

    threads = [threading.Thread(target=work, args=entry, name=entry[0], daemon=True) for entry in jobs.items()]
    for thread in threads:
        thread.start()
    try:
        for thread in threads:
            thread.join()
    except BaseException:  # Ctrl-C
        turns.fail()
        raise
    if errors:
        raise errors[0]
    return {name: results[name] for name in jobs}


def _random_state() -> list[Tensor]:
    return [torch.get_rng_state(), *(torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [])]


def _set_random_state(state: list[Tensor]) -> None:
    torch.set_rng_state(state[0])
    if len(state) > 1:
        torch.cuda.set_rng_state_all(state[1:])
