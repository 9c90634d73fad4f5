"""EarlyBERT's search: a slimming coefficient on each head and neuron, L1 on them, and an end as soon as the mask has settled.

Chen et al., "EarlyBERT: Efficient BERT Training via Early-bird Lottery Tickets", ACL 2021; the detector is that of You et
al., "Drawing Early-Bird Tickets", ICLR 2020, which the released EarlyBERT lacks. Coefficients scale a head's context and a
neuron's activation, start at 1 and change by about a learning rate a step: what counts is their order.

Dimensions: N layers, H heads of a layer, F neurons of a layer, T checks, E elements of all layers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from adasearch.earlybert_config import TicketConfig
from adasearch.fit_config import FitConfig
from adasearch.gate_values import GateValues
from adasearch.methods.base import Batch, Group, Method, weight_groups
from adasearch.tickets import draw_ticket, is_settled, mask_distances

CHECKS_AN_EPOCH = 25  # or some more: with a window of five, a ticket can be seen within a fifth of an epoch, EarlyBERT's fixed point
FAMILIES = ("heads", "neurons")
Forward = Callable[..., Any]  # (model, batch, gates=GateValues) -> its output
Loss = Callable[[Any, Batch], Tensor]  # (output, batch) -> scalar


class EarlyBert(Method):
    """Weights and coefficients learn together; ``after_step`` ends the search at the ticket.

    Args:
        config: the stage's steps and so on; its learning rate falls as over ``config.steps``, of which few are taken.
        ticket: how the ticket is drawn.
        steps_per_epoch: what "the first epoch" is.
        forward: calls a model with a batch and gates.
        loss: the task's loss.
        seed: decides ties.
    """

    schedule = "linear"

    def __init__(self, config: FitConfig, ticket: TicketConfig, steps_per_epoch: int, forward: Forward, loss: Loss, seed: int = 0):
        super().__init__(config, "")
        self.ticket_config, self.seed = ticket, seed
        self.forward_model, self.task_loss = forward, loss
        self.last_step = min(config.steps, max(1, round(ticket.epochs * steps_per_epoch)))
        self.check_every = ticket.check_every or max(1, steps_per_epoch // CHECKS_AN_EPOCH)
        self.fixed_step = max(1, round(ticket.draw_step * (steps_per_epoch if ticket.draw_step < 1 else 1)))
        self.heads, self.neurons = nn.ParameterList(), nn.ParameterList()

    def attach(self, student: nn.Module) -> None:
        """Make the coefficients, all 1, and room for the tickets seen."""
        sizes = {"heads": student.config.heads, "neurons": student.config.neurons}
        checks = self.last_step // self.check_every
        for family in FAMILIES:
            setattr(self, family, nn.ParameterList(nn.Parameter(torch.ones(size)) for size in sizes[family]))
            seen_TE = torch.zeros(checks, sum(sizes[family]), dtype=torch.bool)
            self.register_buffer(f"seen_{family}_TE", seen_TE)
        self.register_buffer("checks", torch.zeros((), dtype=torch.long))
        self.register_buffer("is_found", torch.zeros((), dtype=torch.bool))

    def groups(self, student: nn.Module) -> list[Group]:
        """The model, and the coefficients, which never decay: a decay would shrink all of them alike towards the dead."""
        weights = weight_groups([student], self.config.weight_decay)
        coefficients = [{"params": [*self.heads, *self.neurons], "weight_decay": 0.0}]
        rate = self.config.learning_rate
        return [Group("weights", weights, rate, self.schedule), Group("coefficients", coefficients, rate, self.schedule)]

    def coefficients(self) -> GateValues:
        """The coefficients as gates."""
        return GateValues(heads=list(self.heads), neurons=list(self.neurons))

    def loss(self, student: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Task loss + lambda sum |c|, heads and neurons apart. EarlyBERT, section 3.2."""
        output = self.forward_model(student, batch, gates=self.coefficients())
        config = self.ticket_config
        magnitudes = {family: sum(c.abs().sum() for c in getattr(self, family)) for family in FAMILIES}
        return {
            "ce": self.task_loss(output, batch),
            "l1_heads": config.lambda_heads * magnitudes["heads"],
            "l1_neurons": config.lambda_neurons * magnitudes["neurons"],
        }

    def after_step(self, student: nn.Module, step: int) -> bool:
        """Whether the search is over: the ticket is found, the fixed step or the last one reached."""
        done = step + 1
        if self.ticket_config.draw == "fixed":
            return done >= min(self.fixed_step, self.last_step)
        if done % self.check_every == 0 and self._check():
            self.is_found.fill_(True)
        return bool(self.is_found) or done >= self.last_step

    def _check(self) -> bool:
        """Note the ticket of now; whether the last ones are alike, heads and neurons each by themselves."""
        count, drawn = int(self.checks), self.draw()
        self.checks += 1
        for family in FAMILIES:
            self.get_buffer(f"seen_{family}_TE")[count] = torch.cat(getattr(drawn, family)).bool()
        config = self.ticket_config
        return all(is_settled(self.seen(family), config.window, config.threshold) for family in FAMILIES)

    def seen(self, family: str) -> Tensor:
        """The tickets noted so far, (T, E)."""
        return self.get_buffer(f"seen_{family}_TE")[: int(self.checks)]

    @torch.no_grad()
    def draw(self) -> GateValues:
        """The ticket by the coefficients as they are: 1 where a head or neuron stays, else 0."""
        config = self.ticket_config

        def pick(scores: Sequence[Tensor], ratio: float, scope: str) -> list[Tensor]:
            kept = draw_ticket(list(scores), ratio, scope, is_absolute=config.absolute, seed=self.seed)
            return [mask.to(score.device, score.dtype) for mask, score in zip(kept, scores)]

        heads = pick(self.heads, config.head_ratio, config.head_scope)
        return GateValues(heads=heads, neurons=pick(self.neurons, config.neuron_ratio, config.neuron_scope))

    def measures(self, student: nn.Module) -> dict[str, Any]:
        """The newest ticket's largest distance to the others of the window, and the coefficients' spread."""
        distances = {}
        if int(self.checks) > 1:
            for family in FAMILIES:
                window_TE = self.seen(family)[-self.ticket_config.window :]
                distances[family] = float(mask_distances(window_TE)[-1].max())
        spread = {family: float(torch.cat(list(getattr(self, family))).detach().std()) for family in FAMILIES}
        return {"mask_distance": distances, "coefficient_spread": spread}
