"""When weights go: gradual magnitude pruning's cubic schedule, and a learning rate that waits for it.

Zhu & Gupta 2017, equation 1; the phases and the learning rate as Prune Once for All has them (Zafrir et al. 2021; specs
c.2, c.3). Steps are counted as the optimiser's steps that are done.
"""

from __future__ import annotations

from dataclasses import dataclass

from adasearch.errors import ConfigError


@dataclass(frozen=True)
class SparsitySchedule:
    """Sparsity rises from ``start`` to ``end``; the mask is chosen anew until ``until``, and stays as it is after that.

    Args:
        final: sparsity at ``end``.
        start: step t0 of the first mask.
        end: step t1 from which the sparsity is final.
        until: step of the last mask; from ``end`` to here masks are refreshed at the final sparsity.
        every: steps between two masks.
        initial: sparsity at ``start``.

    Raises ``ConfigError`` unless 0 <= start <= end <= until, and 0 <= initial <= final <= 1.
    """

    final: float
    start: int
    end: int
    until: int
    every: int
    initial: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.start <= self.end <= self.until or self.every < 1:
            raise ConfigError(
                f"schedule: start {self.start}, end {self.end}, until {self.until}, every {self.every};"
                " expected: 0 <= start <= end <= until, every >= 1"
            )
        if not 0 <= self.initial <= self.final <= 1:
            raise ConfigError(f"schedule: sparsity from {self.initial} to {self.final}; expected: 0 <= initial <= final <= 1")

    @classmethod
    def of_shares(
        cls, steps: int, final: float, *, start: float = 0.0, end: float = 0.5, until: float = 0.8, every: float = 0.01,
        initial: float = 0.0,
    ) -> SparsitySchedule:
        """The same as shares of a training's steps; the defaults are the published 50,000, 80,000 and 1,000 of 100,000."""
        last = steps - 1  # a mask after the last step would never be trained with
        first, second = (min(last, round(share * steps)) for share in (start, end))
        return cls(final, first, second, min(last, max(second, round(until * steps))), max(1, round(every * steps)), initial)

    def sparsity(self, step: int) -> float:
        """s_t = s_i + (s_f - s_i) (1 - (1 - (t - t0) / (t1 - t0))^3); ``initial`` before t0, ``final`` from t1 on."""
        if step >= self.end:
            return self.final
        done = max(0, step - self.start) / (self.end - self.start)
        return self.initial + (self.final - self.initial) * (1 - (1 - done) ** 3)

    def is_update(self, step: int) -> bool:
        """Whether the mask is chosen anew before this step; at ``end`` in any case, so that the final sparsity is reached."""
        if not self.start <= step <= self.until:
            return False
        return (step - self.start) % self.every == 0 or step == self.end


def rewinding_factor(step: int, steps: int, warmup: int, schedule: SparsitySchedule) -> float:
    """Share of the peak learning rate at ``step`` of ``steps``: linear, but set back at every new mask (specs c.3).

    A linear warm-up and decay over the steps outside of ``start`` to ``end``; within, the decay begins anew with every
    mask, so that the rate stays at the peak while weights go: a saw-tooth of slope 1 / (Tw - W), Tw = steps - (end - start).
    With ``start`` 0 its teeth begin slightly above 1, at Tw / (Tw - W), as published: the decay counts from step 0, not from
    the warm-up's end. Where the warm-up reaches into the pruning it goes first.
    """
    pruning = schedule.end - schedule.start
    left = steps - pruning
    slope = max(1, left - warmup)
    if step < warmup:
        return step / warmup
    if step < schedule.start:
        return (left - step) / slope
    if step < schedule.end:
        back = (step - schedule.start) // schedule.every * schedule.every
        return max(0.0, (left - step + back) / slope)  # teeth longer than what is left after them would go below 0
    return (steps - step) / slope


def warmed_linear(step: int, steps: int, warmup: int) -> float:
    """Share of the peak at ``step`` of ``steps``: up to it in ``warmup`` steps, then linearly to 0; 0 before step 0."""
    if step < 0:
        return 0.0
    if step < warmup:
        return step / warmup
    return max(0, steps - step) / max(1, steps - warmup)


def check_rewound(where: str, warmup: float, free: float, otherwise: str) -> None:
    """Raise ``ConfigError`` for a warm-up, a share of the steps, of more than half of those in which nothing is pruned, ``free``.

    The rewound rate would rise far above its peak. ``otherwise`` is what else may be chosen.
    """
    if warmup > free / 2 + 1e-9:
        raise ConfigError(
            f"{where}: {warmup:g} is more than half of the steps outside of pruning ({free:g}), so that a rewound rate would rise far above"
            f" its peak; choices: up to {free / 2:g}, {otherwise}"
        )
