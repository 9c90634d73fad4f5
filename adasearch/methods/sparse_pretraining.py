"""Prune Once for All, stages 1 and 2: a masked language model goes on learning, then a copy of it is made sparse.

Zafrir et al. 2021, sections 3.1 and 3.2 (specs c.1 to c.4).

Dimensions: B batch, L tokens, V vocabulary, S chosen tokens.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from adasearch.fit_config import FitConfig
from adasearch.gradual_pruning import GradualPruning
from adasearch.language_objectives import UNSCORED, softened_kl
from adasearch.masked_language import Masking
from adasearch.masked_model import head_parameters, layer_states, logits_and_states, masked_loss, token_logits
from adasearch.methods.base import Batch, Group, Method, weight_groups
from adasearch.sparsity_schedule import rewinding_factor, warmed_linear
from adasearch.teaching import states_loss


class TeacherPreparation(Method):
    """Continued masked-language training on the corpus. A new head may learn alone first, under a frozen body.

    Args:
        config: steps, batch size, rates.
        masking: which tokens are hidden.
        head_warmup_steps: so many steps the head learns alone: its first, random gradients would spoil the body.
    """

    def __init__(self, config: FitConfig, masking: Masking, head_warmup_steps: int = 0):
        super().__init__(config, "masked_language")
        self.masking, self.head_warmup_steps = masking, head_warmup_steps
        self.step = 0

    def groups(self, student: PreTrainedModel) -> list[Group]:
        """"head" and "body", each with a warm-up of its own."""
        steps, share, late = self.config.steps, self.config.warmup, self.head_warmup_steps
        head = head_parameters(student)
        decay, rate = self.config.weight_decay, self.config.learning_rate

        def body_rate(step: int) -> float:
            return warmed_linear(step - late, steps - late, round(share * (steps - late)))

        def head_rate(step: int) -> float:
            return warmed_linear(step, steps, round(share * steps))

        found = [Group("body", weight_groups([student], decay, exclude=head), rate, body_rate)]
        if head:
            known = {id(parameter) for parameter in head}
            others = [parameter for parameter in student.parameters() if id(parameter) not in known]
            found.append(Group("head", weight_groups([student], decay, exclude=others), rate, head_rate))
        return found

    def begin_step(self, student: PreTrainedModel, step: int, steps: int) -> None:
        """Freeze or free the body."""
        self.step = step
        head = {id(parameter) for parameter in head_parameters(student)}
        for parameter in student.parameters():
            parameter.requires_grad_(step >= self.head_warmup_steps or id(parameter) in head)

    def phases(self, step: int) -> list[tuple[tuple[str, ...], str]]:
        return [(("head",) if step < self.head_warmup_steps else ("all",), "train")]

    def loss(self, student: PreTrainedModel, batch: Batch) -> dict[str, Tensor]:
        batch = self.masking(batch, self.step)
        is_hidden_BL = batch["labels"] != UNSCORED
        return {"mlm": masked_loss(token_logits(student, batch, is_hidden_BL), batch["labels"][is_hidden_BL])}

    def finish(self, student: PreTrainedModel) -> None:
        student.requires_grad_(True)


class SparsePretraining(Method):
    """The student loses weights while it learns from hidden tokens and from its dense teacher; it ends with exact zeros.

    The loss is task_weight x masked-language loss ("mlm") + kd_weight x T^2 KL(teacher || student) ("kd") over all tokens that
    are no padding, hidden or not. With ``layer_weight`` the states of every layer are taught as well ("layers"), which the paper does
    not do: it says more a step, where steps are few.

    Args:
        config: steps, batch size, rates; ``warmup`` is a share of the steps.
        masking: which tokens are hidden.
        teacher: the same model, dense. It is used as it is, without gradient, and is no part of a checkpoint.
        pruning: schedule, pattern and scope.
        distill_share: random share of the tokens on which the teacher is asked; below 1 the term is estimated from a sample,
            at less cost.
        layer_weight: of ``states_loss`` towards the teacher's layers, on all tokens.
        rewind: the learning rate waits for the pruning; else it falls linearly.
    """

    def __init__(
        self, config: FitConfig, masking: Masking, teacher: PreTrainedModel, pruning: GradualPruning, *,
        task_weight: float = 0.5, kd_weight: float = 0.5, temperature: float = 2.0, distill_share: float = 1.0, layer_weight: float = 0.0,
        rewind: bool = True,
    ):  # fmt: skip
        super().__init__(config, "masked_language")
        self.masking, self.pruning, self.rewind = masking, pruning, rewind
        self.task_weight, self.kd_weight, self.layer_weight = task_weight, kd_weight, layer_weight
        self.temperature, self.distill_share = temperature, distill_share
        self._teacher = (teacher.eval().requires_grad_(False),)  # in a tuple, out of sight of state_dict
        self.step = 0

    @property
    def teacher(self) -> PreTrainedModel:
        """The dense model."""
        return self._teacher[0]

    def attach(self, student: PreTrainedModel) -> None:
        """Masks into the layers. Raises ``ModelError`` where the pattern does not fit."""
        self.pruning.attach(student)

    def groups(self, student: PreTrainedModel) -> list[Group]:
        config = self.config
        warmup = round(config.warmup * config.steps)

        def rate(step: int) -> float:
            if self.rewind:
                return rewinding_factor(step, config.steps, warmup, self.pruning.schedule)
            return warmed_linear(step, config.steps, warmup)

        return [Group("weights", weight_groups([student], config.weight_decay), config.learning_rate, rate)]

    def begin_step(self, student: PreTrainedModel, step: int, steps: int) -> None:
        """The step's masks; the teacher follows the student to its device."""
        self.step = step
        self.pruning.begin_step(student, step)
        if self.teacher.device != student.device:
            self.teacher.to(student.device)

    def loss(self, student: PreTrainedModel, batch: Batch) -> dict[str, Tensor]:
        """"mlm", "kd" and "layers", each times its weight; layers that teach alone need no head, and no token is hidden."""
        if not self.task_weight and not self.kd_weight:
            with torch.no_grad():
                targets = layer_states(self.teacher, batch)
            return {"layers": self.layer_weight * states_loss(layer_states(student, batch), targets, batch["attention_mask"])}
        batch = self.masking(batch, self.step, self.distill_share)
        is_hidden_BL = batch["labels"] != UNSCORED
        is_taught_BL = batch["drawn_BL"] & bool(self.kd_weight)
        is_chosen_BL = is_hidden_BL | is_taught_BL
        logits_SV, states = logits_and_states(student, batch, is_chosen_BL, bool(self.layer_weight))
        is_hidden_S, is_taught_S = is_hidden_BL[is_chosen_BL], is_taught_BL[is_chosen_BL]
        terms = {"mlm": self.task_weight * masked_loss(logits_SV[is_hidden_S], batch["labels"][is_hidden_BL])}
        if self.kd_weight or self.layer_weight:
            with torch.no_grad():
                target_SV, targets = logits_and_states(self.teacher, batch, is_taught_BL, bool(self.layer_weight))
        if self.kd_weight:
            taught_SV = logits_SV if bool(is_taught_S.all()) else logits_SV[is_taught_S]  # a copy of so many logits takes time
            terms["kd"] = self.kd_weight * softened_kl(taught_SV, target_SV, self.temperature)
        if self.layer_weight:
            terms["layers"] = self.layer_weight * states_loss(states, targets, batch["attention_mask"])
        return terms

    def measures(self, student: PreTrainedModel) -> dict[str, Any]:
        return self.pruning.measures(student)

    def finish(self, student: PreTrainedModel) -> None:
        """Exact zeros in plain weights."""
        self.pruning.finish(student)
