"""Searches whose supernet learns on uniformly drawn paths and whose choice is made afterwards.

``one_shot`` (Guo et al. 2020, single-path one-shot): evolution over the trained supernet, here NSGA-II over loss and cost,
so that one training gives a whole Pareto front. The architecture taken is the best of the front within the target; without
a target the front's knee. ``random`` (Li & Talwalkar 2020, random search with weight sharing): the best of ``candidates``
random members; with ``search.derive argmax`` a single one, the first of the seed, which is chance pure.

Members are compared on labelled texts that the supernet has not learned from.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from adasearch.architecture import Architecture
from adasearch.comparison import comparison_texts, member_loss
from adasearch.derive import Derived, Measure, best_within
from adasearch.errors import ConfigError
from adasearch.evolution import Evolution, evolve
from adasearch.member_cost import architecture_cost
from adasearch.pareto import knee
from adasearch.progress import Progress
from adasearch.search_config import SearchConfig
from adasearch.search_method import STRATEGIES, SearchMethod
from adasearch.shrink import fastest_member, shrink
from adasearch.supernet import Supernet
from adasearch.tokens import Examples


@STRATEGIES.register("random")
class RandomSearch(SearchMethod):
    """Uniform paths; of random members the best by loss and cost, or the first."""

    learns_architecture = False


@STRATEGIES.register("one_shot")
class OneShot(SearchMethod):
    """Uniform paths, then NSGA-II."""

    learns_architecture = False
    weighs_cost = False
    ignores = ("unroll_rate", "beta", "candidates")
    finds_front = True

    @classmethod
    def check(cls, config: SearchConfig) -> None:
        super().check(config)
        if config.derive != "evaluated":
            raise ConfigError(f"search.derive: {config.derive!r} does not work with search.strategy 'one_shot'; choices: evaluated")
        if config.finalists > 1 and not config.is_constrained:
            raise ConfigError("search.finalists: without a target 'one_shot' takes the front's knee; choices: 1, or a target such as search.target_macs")

    @property
    def cost_name(self) -> str:
        """What the second objective is: "latency_ms", "params" or "macs"."""
        if self.config.latency_target_ms:
            return "latency_ms"
        return "params" if self.config.target_params and not self.config.target_macs else "macs"

    def cost_of(self, member: Architecture) -> float:
        """The second objective of a member: predicted milliseconds, parameters or multiply-accumulates of the student."""
        if self.cost_name == "latency_ms":
            return self.latency.predict(member)
        return float(getattr(architecture_cost(member, self.length, self.student_config), self.cost_name))

    def derive(
        self, student: Supernet, examples: Examples, seed: int, progress: Progress, measure: Measure | None = None
    ) -> Derived:
        texts, config = comparison_texts(examples, seed), self.config

        def weigh(member: Architecture) -> tuple[float, float]:
            return member_loss(shrink(student, member), self, texts), self.cost_of(member)

        first = (fastest_member(student.space, self.latency, seed),) if config.latency_target_ms else ()
        evolution = evolve(student.space, weigh, config.population, config.generations, seed, progress, first)

        front = evolution.front()
        if not config.is_constrained:
            chosen = front[knee(np.array([evolution.found[member] for member in front]))]
            return Derived(chosen, partial(self.describe, evolution))
        losses = {member: loss for member, (loss, _) in evolution.found.items()}
        chosen = best_within(losses, self, progress, measure)
        return Derived(chosen, partial(self.describe, evolution), losses)

    def describe(self, evolution: Evolution, chosen: Architecture) -> dict[str, Any]:
        """The front as plain data, cheapest first, each point with its loss, its costs and its architecture."""

        def point(member: Architecture) -> dict[str, Any]:
            cost = architecture_cost(member, self.length, self.student_config)
            latency = {} if self.latency is None else {"latency_ms": self.latency.predict(member)}
            loss = evolution.found[member][0]
            return {"loss": loss, "macs": float(cost.macs), "params": float(cost.params), **latency, "architecture": member.to_dict()}

        return {
            "objectives": ["loss", self.cost_name],
            "evaluated": len(evolution.found),
            "hypervolume": evolution.hypervolumes,
            "reference": list(evolution.reference),
            "front": [point(member) for member in evolution.front()],
            "chosen": point(chosen),
            "others": [list(values) for values in evolution.found.values()],
        }
