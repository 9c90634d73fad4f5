"""How work below the command line tells of itself. Nothing below it prints."""

from __future__ import annotations


class Progress:
    """Hears of the work as it goes; this one keeps silent. The command line has one that draws bars and one that logs."""

    def stage(self, title: str, total: int | None = None, done: int = 0) -> None:
        """A piece of work begins: ``total`` steps, of which ``done`` were done before (a resumed run)."""

    def step(self, done: int, **metrics: float | int | str) -> None:
        """``done`` steps of the current stage are behind us."""

    def message(self, text: str) -> None:
        """Something the user wants to know."""

    def warning(self, text: str) -> None:
        """Something the user should act on."""
