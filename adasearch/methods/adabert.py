"""AdaBERT: the search. Chen et al., IJCAI 2020 (arXiv 2001.04246), with the cures later work found.

L = (1 - gamma) CE + gamma KD + beta E. E is the expected share of the whole supernet's parameters and MACs that a
member keeps, half and half: linear in what an operation really costs, and of the paper's size (an average operation
costs 1/N of its edge). The paper's own constants pass costs through a softmax, which makes all of them nearly equal.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from adasearch.architecture import Architecture
from adasearch.config import DistillConfig, SearchConfig
from adasearch.cost import Cost, Number
from adasearch.gates import ChoiceGate, gates_of
from adasearch.latency import LatencyModel
from adasearch.member_cost import architecture_cost
from adasearch.methods.base import Batch, Group, Method, Phase
from adasearch.objectives import Distillation
from adasearch.supernet import Supernet

MULTIPLIER_LEARNING_RATE = 0.05  # of the Lagrange multiplier; the gap it integrates is a share of the target


class AdaBert(Method):
    """Weights and architecture of a supernet, from one batch (joint) or two (bilevel).

    Args:
        config: the search's settings.
        distill: gamma and the kind of distillation.
        length: mean tokens of a text of the task, at which MACs are counted.
        latency: what members take on the machine they are for; needed for a latency target.
    """

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
        self.multiplier = nn.Parameter(torch.zeros(()), requires_grad=config.is_constrained)

    def attach(self, student: Supernet) -> None:
        self.student_config = student.config
        width, deepest = max(student.space.widths), student.space.cells[1]
        self.objective = Distillation(self.distill, self.problem_type, self.num_labels, width, deepest)
        full = student.full_cost(self.length)
        self.full_params, self.full_macs = float(full.params), float(full.macs)

    def groups(self, student: Supernet) -> list[Group]:
        gates = [gate.logits for gate in gates_of(student)]
        groups = [
            *self.student_groups(student, student.trunk.embeddings.word, exclude=[*gates, self.multiplier]),
            Group(
                "arch",
                [{"params": gates}],
                self.config.arch_learning_rate,
                "constant",
                torch.optim.Adam,
                {"betas": (0.5, 0.999), "weight_decay": self.config.arch_weight_decay},  # as DARTS and AdaBERT
            ),
        ]
        if self.config.is_constrained:
            params = [{"params": [self.multiplier]}]
            groups.append(Group("multiplier", params, MULTIPLIER_LEARNING_RATE, "constant", torch.optim.SGD, {"maximize": True}))
        return groups

    def begin_step(self, student: Supernet, step: int, steps: int) -> None:
        self.is_warm = step >= self.config.arch_warmup * steps
        start, end = self.config.temperature_start, self.config.temperature_end
        for gate in gates_of(student):
            gate.is_frozen = not self.is_warm
            gate.temperature.fill_(start * (end / start) ** (step / max(1, steps - 1)))

    def phases(self, step: int) -> list[Phase]:
        weights = ("weights", "embeddings")
        if not self.is_warm:
            return [(weights, "train")]
        if self.config.mode == "joint":
            return [(("all",), "train")]
        return [(("arch", "multiplier"), "valid"), (weights, "train")]

    def loss(self, student: Supernet, batch: Batch) -> dict[str, Tensor]:
        output = student(batch["input_ids"], batch["attention_mask"])
        exits = [
            self.objective(logits, output.levels[:depth], batch) for depth, logits in zip(output.depths, output.logits)
        ]
        terms = dict(exits[output.drawn])
        if not self.is_warm:
            return terms
        # The drawn depth trains the weights. To the depth's own choice every exit tells its loss: the paper's dot
        # product of a straight-through one-hot with the losses of all depths.
        losses = torch.stack([sum(exit_terms.values()).detach() for exit_terms in exits])
        weights = output.depth_weights
        terms["depth"] = ((weights - weights.detach()) * losses).sum()
        terms["efficiency"] = self._efficiency(student)
        return terms

    def _efficiency(self, student: Supernet) -> Tensor:
        if not self.config.is_constrained:
            return self._penalty(student.expected_cost(self.length))
        # Lagrangian of "cost <= target": the multiplier rises while the target is missed and falls when it is met.
        cost = student.expected_cost(self.length)
        latency = student.expected_latency(self.latency) if self.config.latency_target_ms else None
        gap = torch.stack([spent / target - 1 for spent, target in self._spending(cost, latency)]).amax()
        return self.multiplier * gap + self.config.beta * gap.relu().square()

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
        """Temperature, entropies, operation shares and expected cost, as the search's curves show them."""
        cost = student.expected_cost(self.length)
        first = student.cell_gates[0]
        p_N = torch.stack([gates.operations.expected().mean(0) for gates in student.cell_gates]).mean(0)
        entropy = {"operations": float(torch.stack([g.operations.entropy() for g in student.cell_gates]).mean())}
        if first.edges is not None:
            entropy["edges"] = float(torch.stack([e.entropy() for g in student.cell_gates for e in g.edges]).mean())
        sizes: dict[str, ChoiceGate | None] = {"depth": student.depth_gate, "width": student.width_gate}
        measured: dict[str, Any] = {} if self.latency is None else {"latency_ms": float(student.expected_latency(self.latency))}
        for name, gate in sizes.items():
            if gate is not None and len(gate.choices) > 1:
                entropy[name] = float(gate.entropy())
                measured[name] = {str(size): float(p) for size, p in zip(gate.choices, gate.expected()[0])}
        return {
            **measured,
            "phase": "search" if self.is_warm else "warmup",
            "temperature": float(student.depth_gate.temperature),
            "entropy": entropy,
            "operations": {name: float(p) for name, p in zip(student.space.operations, p_N)},
            "params": float(cost.params),
            "macs": float(cost.macs),
            "multiplier": float(self.multiplier),
        }
