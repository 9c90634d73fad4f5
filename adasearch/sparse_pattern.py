"""Which weights may be zero together: any, N of every M, or whole blocks. As plain data, from text."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from adasearch.errors import ConfigError

UNSTRUCTURED = "unstructured"
SCOPES = ("layer", "global")


@dataclass(frozen=True)
class Pattern:
    """``group`` > 0: of every ``group`` weights after each other along a layer's inputs ``kept`` stay at the end ("2:4").

    Else weights go in blocks of ``rows`` outputs by ``columns`` inputs; 1 by 1 is unstructured.
    """

    kept: int = 0
    group: int = 0
    rows: int = 1
    columns: int = 1

    @classmethod
    def parse(cls, text: str) -> Pattern:
        """From "unstructured", "N:M" or "RxC". Raises ``ConfigError``."""
        found = re.fullmatch(r"(\d{1,4})([:x])(\d{1,4})", text)
        if text == UNSTRUCTURED:
            return cls()
        if found:
            first, second = int(found[1]), int(found[3])
            if found[2] == ":" and 0 < first < second:
                return cls(kept=first, group=second)
            if found[2] == "x" and first and second:
                return cls(rows=first, columns=second)
        raise ConfigError(
            f"pattern: {text!r} is not known; choices: {UNSTRUCTURED}, N:M (N of every M inputs stay, as 2:4),"
            " RxC (blocks of R outputs by C inputs, as 4x1)"
        )

    def __str__(self) -> str:
        if self.group:
            return f"{self.kept}:{self.group}"
        return UNSTRUCTURED if (self.rows, self.columns) == (1, 1) else f"{self.rows}x{self.columns}"

    @property
    def most(self) -> float:
        """The largest sparsity there is in this pattern."""
        return (self.group - self.kept) / self.group if self.group else 1.0  # 4:5 holds 0.2; 1 - 4/5 is less in floats

    def check(self, sparsity: float) -> None:
        """Raise ``ConfigError`` when the pattern cannot hold so many zeros."""
        if not 0 <= sparsity <= self.most:
            most = math.floor(self.most * 1e6 + 1e-6) / 1e6  # of 1:3 what may be typed
            raise ConfigError(f"sparsity: {sparsity!r} is out of range; choices: 0 to {most:g} with pattern {self}")
