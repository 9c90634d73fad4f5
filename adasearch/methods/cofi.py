"""CoFi: coarse- and fine-grained structured pruning under a constraint, taught by the dense model. Xia et al., ACL 2022.

L = a_prediction L_prediction + a_layer L_layer + lambda1 (s - t) + lambda2 (s - t)^2, where s is the expected share of
what is saved (parameters, or milliseconds), differentiable in the gates, and t the target, which rises linearly from 0.
``CofiDistill`` is the phases without gates, before and after; ``CofiPrune`` adds gates and constraint.

Dimensions: B batch, L tokens, D hidden, N layers, C labels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from adasearch.budget import Budget, fill_budget
from adasearch.cofi_config import CofiConfig
from adasearch.encoder import EncoderPreTrainedModel, axes_of
from adasearch.fit_config import FitConfig
from adasearch.hard_concrete import StructureGates
from adasearch.lagrangian import Lagrangian, ramp
from adasearch.layer_matching import LayerDistillation, Match
from adasearch.methods.base import Batch, Group, Method, weight_groups
from adasearch.structure import GateValues, is_open
from adasearch.teaching import predictions, teacher_loss

Forward = Callable[..., Any]  # (model, batch, output_hidden_states=, gates= of a student) -> Hugging Face output, segment ids told
Loss = Callable[[Any, Batch], Tensor]  # (output, batch) -> scalar


@dataclass(frozen=True)
class Guide:
    """The dense model that teaches, how a batch is fed to it and to the student, and the loss on gold labels."""

    model: PreTrainedModel
    forward: Forward
    loss: Loss


class CofiDistill(Method):
    """Predictions and layers of the dense model, without gates.

    Args:
        fit_config: of this phase.
        schedule: of the weights' learning rate.
        problem_type: single_label, multi_label, regression or question_answering.
        guide: the teacher; it is used as it is, without gradient, and is no part of a checkpoint.
        layers: layerwise distillation, which learns with the student and goes on in the next phase.
    """

    def __init__(
        self, config: CofiConfig, fit_config: FitConfig, schedule: str, problem_type: str, guide: Guide, layers: LayerDistillation
    ):  # fmt: skip
        super().__init__(fit_config, problem_type)
        self.settings, self.schedule, self.layers = config, schedule, layers
        self._guide = (guide,)  # in a tuple, out of sight of state_dict
        guide.model.eval().requires_grad_(False)
        self.match: Match = []

    @property
    def guide(self) -> Guide:
        """The teacher."""
        return self._guide[0]

    def attach(self, student: EncoderPreTrainedModel) -> None:
        """The published code never learns the embeddings."""
        student.encoder.embeddings.requires_grad_(self.settings.train_embeddings)

    def finish(self, student: EncoderPreTrainedModel) -> None:
        """Everything can be learned again."""
        student.encoder.embeddings.requires_grad_(True)

    def groups(self, student: EncoderPreTrainedModel) -> list[Group]:
        """"weights": the student's, and the map between the two models' layers."""
        weights = weight_groups([student, self.layers], self.config.weight_decay)
        return [Group("weights", weights, self.config.learning_rate, self.schedule)]

    def begin_step(self, student: EncoderPreTrainedModel, step: int, steps: int) -> None:
        """The teacher follows the student to its device."""
        if self.guide.model.device != student.device:
            self.guide.model.to(student.device)

    def loss(self, student: EncoderPreTrainedModel, batch: Batch) -> dict[str, Tensor]:
        """``prediction``, ``layers`` and ``ce``, each times its weight; those of weight 0 are left out, and what they alone would need."""
        return self.lesson(student, batch, None)

    def lesson(self, student: EncoderPreTrainedModel, batch: Batch, gates: GateValues | None) -> dict[str, Tensor]:
        """The same under gates."""
        config, mask_BL, has_layers = self.settings, batch["attention_mask"], self.settings.layer_weight > 0
        own = self.guide.forward(student, batch, output_hidden_states=has_layers, gates=gates)
        if config.is_taught:
            with torch.no_grad():
                target = self.guide.forward(self.guide.model, batch, output_hidden_states=has_layers)
        terms = {}
        if config.prediction_weight:
            error_B = teacher_loss(predictions(own), predictions(target), mask_BL, self.problem_type, config.temperature)
            terms["prediction"] = config.prediction_weight * error_B.mean()
        if has_layers:
            alive_N = alive_layers(student, gates, config.alive)
            error, self.match = self.layers(own.hidden_states[1:], target.hidden_states[1:], mask_BL, alive_N)
            terms["layers"] = config.layer_weight * error
        if config.gold_weight:
            terms["ce"] = config.gold_weight * self.guide.loss(own, batch)
        return terms

    def measures(self, student: EncoderPreTrainedModel) -> dict[str, Any]:
        """Which student layer learned from each teacher layer in the last step."""
        return {"match": {str(layer): student for layer, student in zip(self.layers.teacher_layers, self.match)}}


class CofiPrune(CofiDistill):
    """The same with gates on the student and a constraint on what they keep.

    Args:
        budget: what is to be saved.
        warmup_steps: steps in which the target rises.
        start: what it rises from; when None, what the gates save at first.
        before: ``state_dict`` of an earlier pruning of the same student: gates, multipliers and map between the layers,
            which go on.
    """

    def __init__(
        self, config: CofiConfig, fit_config: FitConfig, schedule: str, problem_type: str, guide: Guide, layers: LayerDistillation,
        budget: Budget, warmup_steps: int, start: float | None = 0.0, before: dict[str, Tensor] | None = None,
    ):  # fmt: skip
        super().__init__(config, fit_config, schedule, problem_type, guide, layers)
        self.budget, self.warmup_steps = budget, warmup_steps
        self.lagrangian = Lagrangian(config.gap)
        self.start, self.target, self._before = start, start or 0.0, before

    def attach(self, student: EncoderPreTrainedModel) -> None:
        """Gates on every axis of the chosen families."""
        super().attach(student)
        self._student = (student,)  # in a tuple, out of sight of state_dict
        self.gates = StructureGates(axes_of(student), self.settings.families, neuron_drop=self.settings.neuron_drop)
        if self._before is not None:
            self.load_state_dict(self._before)
        if self.start is None:
            self.start = self.target = self.expected_saved()

    def groups(self, student: EncoderPreTrainedModel) -> list[Group]:
        """"weights", "gates" and "multipliers", the last of which ascend. The weights alone are clipped, as published."""
        rate = self.settings.gate_learning_rate
        gates = [{"params": list(self.gates.parameters()), "weight_decay": 0.0}]
        multipliers = [
            {"params": [self.lagrangian.linear], "weight_decay": 0.0},
            {"params": [self.lagrangian.quadratic], "weight_decay": 0.0, "rate": self.settings.quadratic_rate},
        ]
        return [
            *super().groups(student),
            Group("gates", gates, rate, "constant", is_clipped=False),
            Group("multipliers", multipliers, rate, "constant", settings={"maximize": True}, is_clipped=False),
        ]

    def begin_step(self, student: EncoderPreTrainedModel, step: int, steps: int) -> None:
        """Raise the target."""
        super().begin_step(student, step, steps)
        self.target = ramp(self.budget.target, step, self.warmup_steps, self.start)

    def loss(self, student: EncoderPreTrainedModel, batch: Batch) -> dict[str, Tensor]:
        """The lesson under one draw of the gates, which serves the whole batch, and ``constraint``."""
        terms = self.lesson(student, batch, self.gates())
        terms["constraint"] = self.lagrangian(self.budget.saved(self.gates.open_probability()) - self.target).float()
        return terms

    def after_step(self, student: EncoderPreTrainedModel, step: int) -> bool:
        """No gate is ever lost."""
        self.gates.clamp_()
        return False

    @torch.no_grad()
    def expected_saved(self) -> float:
        """The share that is saved on average."""
        return float(self.budget.saved(self.gates.open_probability()))

    @torch.no_grad()
    def decide(self) -> GateValues:
        """The gates' values without chance, as they are scored and cut; with ``exact_target`` of exactly the present target.

        Before the first step that target is where it rises from.
        """
        if not self.settings.exact_target:
            return self.gates.deterministic()
        return fill_budget(self.gates, self.budget, self.target, neuron_importance(self._student[0]))

    @torch.no_grad()
    def measures(self, student: EncoderPreTrainedModel) -> dict[str, Any]:
        """Target, expected and true share saved, multipliers, open share of each family, matching."""
        open_share = self.gates.open_probability()
        found = {
            "target": self.target,
            "expected_saved": self.expected_saved(),
            "saved": float(self.budget.saved(self.gates.deterministic().kept())),
            "multipliers": [float(self.lagrangian.linear), float(self.lagrangian.quadratic)],
            "open": {name: float(torch.cat(tensors).mean()) for name, tensors in open_share.families().items()},
        }
        if self.budget.latency is not None:
            found["latency_ms"] = float(self.budget.milliseconds(open_share))
        return {**super().measures(student), **found}


def neuron_importance(student: EncoderPreTrainedModel) -> list[Tensor]:
    """What each layer's neurons weigh, (F,): the norm of a neuron's weights in times that of its weights out."""
    ffns = [layer.ffn for layer in student.encoder.layers]
    none = student.encoder.embeddings.word_embeddings.weight.new_zeros(0)
    return [none if ffn is None else ffn.input.weight.norm(dim=1) * ffn.output.weight.norm(dim=0) for ffn in ffns]


def alive_layers(student: EncoderPreTrainedModel, gates: GateValues | None, rule: str) -> list[bool]:
    """Which layers are alive under ``gates``: those with their feed-forward sublayer or, with "either", any sublayer."""
    config, gates = student.config, gates or GateValues()
    alive = []
    for n, (heads, neurons) in enumerate(zip(config.heads, config.neurons)):
        of_layer = gates.of_layer(n)
        has_ffn = neurons > 0 and is_open(of_layer["ffn"], of_layer["neurons"])
        has_mha = heads > 0 and is_open(of_layer["mha"], of_layer["heads"])
        alive.append(has_ffn or (rule == "either" and has_mha))
    return alive
