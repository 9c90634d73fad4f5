"""What all strategies of search share: the supernet, the objective, the terms of cost, warm-up, deriving.

L = (1 - gamma) CE + gamma KD + beta E. E is the expected share of the whole supernet's parameters and MACs that a
member keeps, half and half: linear in what an operation really costs, and of the paper's size (an average operation
costs 1/N of its edge). The paper's own constants pass costs through a softmax, which makes all of them nearly equal.

A strategy says how the gates act (``draw``), what the losses of the exits make together (``mix``) and how one member
comes out (``derive``). It is registered by name and found by ``search.strategy``.

Dimensions: B batch, C labels, K depths.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from adasearch.architecture import Architecture
from adasearch.cost import Cost, Number
from adasearch.derive import Derived, Measure, derive
from adasearch.errors import ConfigError
from adasearch.fit import fit
from adasearch.fit_config import DistillConfig
from adasearch.gates import ChoiceGate, Gate, gates_of
from adasearch.lagrangian import penalty, ramp
from adasearch.latency import LatencyModel
from adasearch.member_cost import architecture_cost
from adasearch.methods.base import Batch, Group, Method, Phase
from adasearch.objectives import Distillation
from adasearch.progress import Progress
from adasearch.registry import Registry
from adasearch.search_config import SearchConfig
from adasearch.settings import check_idle
from adasearch.supernet import Draw, Supernet, SupernetOutput
from adasearch.tokens import Examples

MULTIPLIER_LEARNING_RATE = 0.05  # of the Lagrange multiplier; the gap it integrates is a share of the target
TARGET_FALLS = 0.5  # share of the architecture's steps in which what it may cost falls to the target
WEIGHTS = ("weights", "embeddings")
# of what an architecture that learns by gradients learns by; without one they are read by nobody
LEARNS_BY = (
    "arch_learning_rate", "arch_weight_decay", "arch_warmup", "temperature_start", "temperature_end", "entropy_weight", "operation_dropout",
)  # fmt: skip
EVOLVES_BY = ("population", "generations")


class SearchMethod(Method):
    """Weights and architecture of a supernet, from one batch (joint) or two (bilevel). The base class draws as AdaBERT.

    Args:
        config: the search's settings.
        distill: gamma and the kind of distillation.
        length: mean tokens of a text of the task, at which MACs are counted.
        latency: what members take on the machine they are for; needed for a latency target.
    """

    modes: ClassVar[tuple[str, ...]] = ("joint", "bilevel")
    published_mode: ClassVar[str | None] = None  # of ``modes``, where the publication knows one alone
    learns_architecture: ClassVar[bool] = True  # else the gates stay uniform, and the choice is made when deriving
    weighs_cost: ClassVar[bool] = True  # beta counts, unless a target takes its place
    finds_front: ClassVar[bool] = False  # leaves search/front.json
    one_process: ClassVar[bool] = False
    # settings of a search that have no effect, beside those of ``learns_architecture``
    ignores: ClassVar[tuple[str, ...]] = ("unroll_rate", *EVOLVES_BY)
    trains_depths_evenly: ClassVar[bool] = False  # whatever depth is drawn: to a choice that hears of every exit that is no loss
    arch_betas: ClassVar[tuple[float, float]] = (0.5, 0.999)  # Adam's, as DARTS and AdaBERT

    @classmethod
    def check(cls, config: SearchConfig) -> None:
        """Raise ``ConfigError`` for settings that make no sense with this strategy."""
        name = config.strategy
        if config.mode not in cls.modes:
            raise ConfigError(f"search.mode: {config.mode!r} does not work with search.strategy {name!r}; choices: {', '.join(cls.modes)}")
        if cls.learns_architecture and config.arch_warmup == 1:
            raise ConfigError("search.arch_warmup: 1.0 leaves the architecture no step to learn in; choices: below 1, or a search.strategy such as random")
        for setting in (*cls.ignores, *(() if cls.learns_architecture else LEARNS_BY)):
            why = "" if setting in cls.ignores else ", whose architecture does not learn by gradients"
            usual = getattr(SearchConfig, setting)
            choice = "leave it out" if usual is None else f"{usual:g}" if isinstance(usual, float) else f"{usual}"
            check_idle(
                f"search.{setting}", getattr(config, setting), usual, f"with search.strategy {name!r}{why}", f"{choice}, or another search.strategy"
            )

    def __init__(
        self,
        config: SearchConfig,
        distill: DistillConfig,
        problem_type: str,
        num_labels: int,
        length: float,
        latency: LatencyModel | None = None,
    ):
        super().__init__(config, problem_type)
        assert latency is not None or not config.latency_target_ms, "a latency target needs a latency model"
        self.config: SearchConfig = config
        self.distill, self.num_labels, self.length, self.latency = distill, num_labels, length, latency
        self.multiplier = nn.Parameter(torch.zeros(()), requires_grad=config.is_constrained and self.learns_architecture)
        # the tightest target's excess when the architecture begins to learn, as a multiple of it: 0 until then
        self.register_buffer("first_share", torch.zeros(()))
        self.is_warm = self.is_learning = False
        self.learned = 1.0  # share of the architecture's steps that is done

    def attach(self, student: Supernet) -> None:
        self.order_seed = torch.initial_seed()  # of fair draws; the loop has seeded just before, and does so on resuming
        self.student_config = student.config
        width, deepest = max(student.space.widths), student.space.cells[1]
        self.objective = Distillation(self.distill, self.problem_type, self.num_labels, width, deepest)
        full = student.full_cost(self.length)
        self.full_params, self.full_macs = float(full.params), float(full.macs)

    def groups(self, student: Supernet) -> list[Group]:
        gates = [gate.logits for gate in gates_of(student)]
        groups = self.student_groups(student, student.trunk.embeddings.word, exclude=[*gates, self.multiplier])
        if not self.learns_architecture:
            return groups
        settings = {"betas": self.arch_betas, "weight_decay": self.config.arch_weight_decay}
        groups.append(Group("arch", [{"params": gates}], self.config.arch_learning_rate, "constant", torch.optim.Adam, settings))
        if self.config.is_constrained:
            params = [{"params": [self.multiplier]}]
            groups.append(Group("multiplier", params, MULTIPLIER_LEARNING_RATE, "constant", torch.optim.SGD, {"maximize": True}))
        return groups

    def train(
        self, student: Supernet, splits: Mapping[str, Examples], *, seed: int, folder: Path, accelerator: Accelerator, progress: Progress,
        checkpoint_seconds: float = 60.0,
    ) -> None:  # fmt: skip
        """Train the supernet in place, with a history and checkpoints in ``folder``. A strategy may bring a loop of its own."""
        fit(
            student, self, splits, self.config, seed=seed, folder=folder, accelerator=accelerator, progress=progress, title="search",
            checkpoint_seconds=checkpoint_seconds,
        )  # fmt: skip

    def begin_step(self, student: Supernet, step: int, steps: int) -> None:
        config = self.config
        self.is_warm = self.learns_architecture and step >= config.arch_warmup * steps
        self.is_learning = self.is_warm
        learning = max(1.0, (1 - config.arch_warmup) * steps)  # the part in which the architecture learns
        self.learned = max(0.0, 1 - (steps - step) / learning)
        self.entropy_weight = config.entropy_weight * self.learned if self.is_warm else 0.0
        temperature = self.temperature(min(1.0, self.learned * learning / max(1.0, learning - 1)))  # its end at the last step
        for index, gate in enumerate(gates_of(student)):
            gate.is_frozen = not self.is_warm
            gate.temperature.fill_(temperature)
            gate.turn = (self.order_seed, index, step) if config.fair_sampling else None
        for gates in student.cell_gates:
            dropped = config.operation_dropout * (1 - self.learned) if self.is_warm else 0.0
            gates.operations.drop_N = dropped * (~gates.learns).float() if dropped else None

    def temperature(self, done: float) -> float:
        """Of the gates, when that share (0 to 1) of the part is done in which the architecture learns."""
        start, end = self.config.temperature_start, self.config.temperature_end
        return start * (end / start) ** done

    def phases(self, step: int) -> list[Phase]:
        if not self.is_warm:
            return [(WEIGHTS, "train")]
        if self.config.mode == "joint":
            return [(("all",), "train")]
        return [(("arch", "multiplier"), "valid"), (WEIGHTS, "train")]

    def before_loss(self, student: Supernet, learners: tuple[str, ...], batch_of: Any) -> None:
        self.is_learning = self.is_warm and ("all" in learners or "arch" in learners)

    def draw(self, student: Supernet) -> Draw:
        """How the gates act in this phase; past the warm-up ``is_learning`` says whether the architecture learns in it."""
        return student.draw()

    def loss(self, student: Supernet, batch: Batch) -> dict[str, Tensor]:
        draw = self.draw(student)
        if self.is_warm and self.trains_depths_evenly:
            # by its own choice the depth that is ahead would be trained, which puts it further ahead (FairNAS, Chu et al. 2021)
            (depth,), _ = student.depth_gate(ChoiceGate.uniform)
            draw = dataclasses.replace(draw, depth=depth, every_exit=draw.every_exit and self.is_learning)
        output = student(batch["input_ids"], batch["attention_mask"], draw)
        exits = [
            self.objective(logits, output.levels[:depth], batch) for depth, logits in zip(output.depths, output.logits)
        ]
        terms = self.mix(exits, output)
        if not self.is_warm:
            return terms
        terms["efficiency"] = self._efficiency(student)
        if self.config.entropy_weight:
            terms["entropy"] = self.entropy_weight * _mean_entropy(gates_of(student))
        return terms

    def mix(self, exits: list[dict[str, Tensor]], output: SupernetOutput) -> dict[str, Tensor]:
        """The terms of the loss from those of every exit that was run.

        The drawn depth trains the weights. To the depth's own choice every exit tells what it is worth (``worth_of``): the paper's
        dot product of a straight-through one-hot with the losses of all depths.
        """
        terms = dict(exits[output.drawn])
        if self.is_warm:
            losses = torch.stack([worth_of(exit_terms).detach() for exit_terms in exits])
            weights = output.depth_weights[: len(exits)]
            terms["depth"] = ((weights - weights.detach()) * losses).sum()
        return terms

    def predict(self, student: Supernet, batch: Batch) -> Tensor:
        """Logits (B, C) of what the search trains, drawn as in a step: the supernet's own path, not a derived member's."""
        output = student(batch["input_ids"], batch["attention_mask"], self.draw(student))
        return output.logits[output.drawn]

    def derive(
        self, student: Supernet, examples: Examples, seed: int, progress: Progress, measure: Measure | None = None
    ) -> Derived:
        """One architecture, from the trained supernet. A pure function of weights, examples, seed and what is measured."""
        return derive(student, self, examples, seed, progress, measure)

    def _efficiency(self, student: Supernet) -> Tensor:
        if not self.config.is_constrained:
            return self._penalty(student.expected_cost(self.length))
        # Lagrangian of "cost <= target": the multiplier rises while the target is missed and falls when it is met. The target is
        # the derived member's, so its cost counts, not that of all a step may run.
        cost = student.expected_cost(self.length, is_derived=True)
        latency = student.expected_latency(self.latency) if self.config.latency_target_ms else None
        share = torch.stack([spent / target for spent, target in self._spending(cost, latency)]).amax()
        if self.is_warm and not self.first_share:
            self.first_share.fill_(share.detach())
        # all at once the excess would be most of what the architecture hears first, without noise, and Adam would make of it full steps
        # against whatever is dear, good or bad, and of all that comes later small ones
        gap = share / ramp(1.0, self.learned, TARGET_FALLS, start=max(1.0, float(self.first_share))) - 1
        return penalty(gap, self.multiplier, self.config.beta, is_one_sided=True)

    def _spending(self, cost: Cost, latency_ms: Number | None) -> list[tuple[Number, float]]:
        """What is spent and what may be, for each target there is."""
        config = self.config
        pairs = ((latency_ms, config.latency_target_ms), (cost.macs, config.target_macs), (cost.params, config.target_params))
        return [(spent, target) for spent, target in pairs if target]

    def _penalty(self, cost: Cost) -> Number:
        return self.config.beta * 0.5 * (cost.params / self.full_params + cost.macs / self.full_macs)

    def member_penalty(self, member: Architecture) -> float:
        """What a member's cost adds to its loss: the penalty; nothing under a constraint, which is met or not."""
        if self.config.is_constrained:
            return 0.0
        return float(self._penalty(architecture_cost(member, self.length, self.student_config)))

    def budget_used(self, member: Architecture, latency_factor: float = 1.0) -> float:
        """Share of the tightest target that a member takes; above 1 it misses. ``latency_factor`` mends predictions."""
        latency = latency_factor * self.latency.predict(member) if self.latency and self.config.latency_target_ms else None
        needs_cost = self.config.target_macs or self.config.target_params
        cost = architecture_cost(member, self.length, self.student_config) if needs_cost else Cost()
        return max(float(spent) / target for spent, target in self._spending(cost, latency))

    def after_step(self, student: Supernet, step: int) -> bool:
        with torch.no_grad():
            self.multiplier.clamp_(min=0.0)  # being below the target is no merit
        return False

    @torch.no_grad()
    def measures(self, student: Supernet) -> dict[str, Any]:
        """Temperature, entropies, operation shares and a derived member's expected cost, as the search's curves show them."""
        cost = student.expected_cost(self.length, is_derived=True)
        p_N = torch.stack([gates.operations.expected().mean(0) for gates in student.cell_gates]).mean(0)
        entropy = {"operations": float(_mean_entropy([gates.operations for gates in student.cell_gates]))}
        edges = [gate for gates in student.cell_gates for gate in gates.edges or [] if gate.has_choice]
        if edges:
            entropy["edges"] = float(_mean_entropy(edges))
        sizes: dict[str, ChoiceGate | None] = {"depth": student.depth_gate, "width": student.width_gate}
        measured: dict[str, Any] = {} if self.latency is None else {"latency_ms": float(student.expected_latency(self.latency))}
        for name, gate in sizes.items():
            if gate is not None and gate.has_choice:
                entropy[name] = float(gate.entropy())
                measured[name] = {str(size): float(p) for size, p in zip(gate.choices, gate.expected()[0])}
        return {
            **measured,
            "phase": "search" if self.is_warm or not self.learns_architecture else "warmup",
            "temperature": float(student.depth_gate.temperature),
            "entropy": entropy,
            "operations": {name: float(p) for name, p in zip(student.space.operations, p_N)},
            "params": float(cost.params),
            "macs": float(cost.macs),
            "multiplier": float(self.multiplier),
        }


def worth_of(terms: Mapping[str, Tensor]) -> Tensor:
    """What an exit's terms say of its depth: gold labels and the teacher's logits. Not its probes, of which a deeper exit has more, and
    of higher layers: they teach, and would price depth."""
    return torch.stack([term for name, term in terms.items() if name != "probes"]).sum()


def _mean_entropy(gates: Sequence[Gate]) -> Tensor:
    """Mean entropy as a share of the maximum, scalar, of those gates that have a choice; 0 where none has."""
    shares = [gate.entropy() for gate in gates if gate.has_choice]
    return torch.stack(shares).mean() if shares else torch.zeros(())


STRATEGIES: Registry[type[SearchMethod]] = Registry("search strategy")
