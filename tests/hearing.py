"""Doubles of ``Progress``: one keeps what it hears, one also ends the work as a kill would."""

from __future__ import annotations

from adasearch.progress import Progress


class Heard(Progress):
    """Keeps what it hears; ``stages`` are titles with the steps in all and those done before."""

    def __init__(self) -> None:
        self.stages: list[tuple[str, int | None, int]] = []
        self.done: list[int] = []
        self.messages: list[str] = []
        self.warnings: list[str] = []

    @property
    def titles(self) -> list[str]:
        return [title for title, _, _ in self.stages]

    def stage(self, title: str, total: int | None = None, done: int = 0) -> None:
        self.stages.append((title, total, done))

    def step(self, done: int, **metrics: float | int | str) -> None:
        self.done.append(done)

    def message(self, text: str) -> None:
        self.messages.append(text)

    def warning(self, text: str) -> None:
        self.warnings.append(text)


class Killed(BaseException):
    """Comes from outside, as a kill does: nothing of ours catches it."""


class KillAt(Heard):
    """Kills what reports that step or a later one, in a stage whose title ends so; at 0, as soon as the stage begins."""

    def __init__(self, at: float, stage: str = ""):
        super().__init__()
        self.at, self.wanted = at, stage

    def stage(self, title: str, total: int | None = None, done: int = 0) -> None:
        super().stage(title, total, done)
        if self.at == 0 and title.endswith(self.wanted):
            raise Killed

    def step(self, done: int, **metrics: float | int | str) -> None:
        super().step(done, **metrics)
        if done >= self.at and "".join(self.titles[-1:]).endswith(self.wanted):
            raise Killed
