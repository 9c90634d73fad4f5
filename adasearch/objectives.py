"""What a student is taught: gold labels, the teacher's logits, the knowledge its hidden levels hold.

Every loss is given per example, (B,), so that examples without a gold label learn from the teacher alone, and is computed in float32 at least:
under autocast a processor takes log_softmax in bf16, where a small divergence came out wrong by several times itself, or negative.
Dimensions: B batch, C labels, P levels, D width.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adasearch.fit_config import DistillConfig
from adasearch.registry import Registry

DISTILLATION_LOSSES: Registry[Callable[..., Tensor]] = Registry("distillation loss")


def whole(tensor: Tensor) -> Tensor:
    """bf16 and fp16 as float32; anything else as it is."""
    return tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor


def known(labels: Tensor) -> Tensor:
    """Which examples have a gold label, (B,) bool; unknown is -100 or NaN."""
    if labels.is_floating_point():
        return ~labels.isnan().flatten(1).any(1) if labels.ndim > 1 else ~labels.isnan()
    return labels >= 0


def task_loss(logits: Tensor, labels: Tensor, problem_type: str) -> Tensor:
    """Loss against gold labels (B,): cross-entropy, binary cross-entropy or squared error; 0 where unknown."""
    is_known, logits = known(labels), whole(logits)
    if problem_type == "single_label":
        return F.cross_entropy(logits, labels.where(is_known, 0), reduction="none") * is_known
    labels = labels.nan_to_num(0.0).to(logits.dtype)
    if problem_type == "multi_label":
        return F.binary_cross_entropy_with_logits(logits, labels, reduction="none").mean(-1) * is_known
    return (logits.squeeze(-1) - labels).square() * is_known


@DISTILLATION_LOSSES.register("kl")
def kl_loss(student: Tensor, teacher: Tensor, problem_type: str, temperature: float = 1.0) -> Tensor:
    """T^2 KL(teacher || student) of predictions softened by T, (B,). Hinton et al. 2015, section 2.

    Multi-label: the mean over labels of the binary divergence. Regression: squared error.
    """
    student, teacher = whole(student), whole(teacher)
    if problem_type == "regression":
        return (student - teacher).square().mean(-1)
    student, teacher = student / temperature, teacher / temperature
    if problem_type == "multi_label":
        p = teacher.sigmoid()
        cross = F.binary_cross_entropy_with_logits(student, p, reduction="none")
        own = F.binary_cross_entropy_with_logits(teacher, p, reduction="none")
        return (cross - own).mean(-1) * temperature**2
    divergence = F.kl_div(student.log_softmax(-1), teacher.log_softmax(-1), reduction="none", log_target=True)
    return divergence.sum(-1) * temperature**2


@DISTILLATION_LOSSES.register("mse")
def mse_loss(student: Tensor, teacher: Tensor, problem_type: str, temperature: float = 1.0) -> Tensor:
    """Squared error of the logits, (B,). Ba & Caruana 2014; Tang et al. 2019.

    A softmax does not see a shift of all logits, so theirs are centred first.
    """
    student, teacher = whole(student), whole(teacher)
    if problem_type == "single_label":
        student, teacher = student - student.mean(-1, keepdim=True), teacher - teacher.mean(-1, keepdim=True)
    return (student - teacher).square().mean(-1)


def teacher_level(student_level: int, deepest: int, teacher_levels: int) -> int:
    """Level of the teacher (0 = embeddings) that teaches a student level: ceil(i T / K_max). AdaBERT's own code."""
    return math.ceil(student_level * (teacher_levels - 1) / deepest)


def probe_weights(probe_logits_BPC: Tensor, targets: Tensor, problem_type: str) -> Tensor:
    """How much each level is worth for each example, (B, P), summing to 1: softmax of minus the probe's loss.

    AdaBERT, section 3.2: a level whose probe knows the answer teaches more. ``targets`` are gold labels.
    """
    losses = [task_loss(probe_logits_BPC[:, p], targets, problem_type) for p in range(probe_logits_BPC.shape[1])]
    return (-torch.stack(losses, 1)).softmax(1)


class Distillation(nn.Module):
    """L = (1 - gamma) CE + gamma KD, KD shared between the final logits and the probes of the hidden levels.

    Args:
        config: gamma, temperature, kind of loss, share of the probes.
        problem_type: single_label, multi_label or regression.
        num_labels: C.
        width: D of the student's levels.
        deepest: the student's largest depth K_max; levels 0..K_max - 1 have a probe (the last is the final logits'). In a search
            that of the space, as in AdaBERT's code; of a student of known depth its own, so that its levels reach up to the
            teacher's last.
    """

    def __init__(self, config: DistillConfig, problem_type: str, num_labels: int, width: int, deepest: int):
        super().__init__()
        self.config, self.problem_type, self.deepest = config, problem_type, deepest
        heads = [nn.Linear(width, num_labels) for _ in range(deepest)] if config.probe_weight else []
        self.probes = nn.ModuleList(heads)

    def forward(self, logits: Tensor, levels: list[Tensor], batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Weighted contributions whose sum is the loss: "ce", "kd" and "probes", scalars.

        ``levels`` are those below the final one. Without ``teacher_logits`` in the batch gold labels are all there is;
        without gold labels the teacher is.
        """
        labels, teacher = batch.get("labels"), batch.get("teacher_logits")
        gamma = torch.zeros(len(logits), device=logits.device)
        if teacher is not None:
            gamma += self.config.gamma
            gamma = torch.where(known(labels), gamma, 1.0) if labels is not None else torch.ones_like(gamma)
        terms = {}
        if labels is not None:
            terms["ce"] = ((1 - gamma) * task_loss(logits, labels, self.problem_type)).mean()
        if teacher is None:
            return terms
        share = self.config.probe_weight if self.probes and "probe_logits" in batch and levels else 0.0
        loss = DISTILLATION_LOSSES[self.config.loss]
        final = loss(logits, teacher, self.problem_type, self.config.temperature)
        terms["kd"] = (1 - share) * (gamma * final).mean()
        if share:
            terms["probes"] = share * (gamma * self._probe_loss(levels, batch, teacher)).mean()
        return terms

    def _probe_loss(self, levels: list[Tensor], batch: dict[str, Tensor], teacher: Tensor) -> Tensor:
        """Sum over levels of weight x divergence from the teacher's probe of that level, (B,)."""
        teacher_levels = batch["probe_logits"].shape[1]
        picked = [teacher_level(i, self.deepest, teacher_levels) for i in range(len(levels))]
        probes_BPC = batch["probe_logits"][:, picked]
        targets = self._targets(batch.get("labels"), teacher)
        weights_BP = probe_weights(probes_BPC, targets, self.problem_type)
        loss = DISTILLATION_LOSSES[self.config.loss]
        total = torch.zeros(len(teacher), device=teacher.device)
        for i, level in enumerate(levels):
            own = self.probes[i](level.tanh())
            total = total + weights_BP[:, i] * loss(own, probes_BPC[:, i], self.problem_type, self.config.temperature)
        return total

    def _targets(self, labels: Tensor | None, teacher: Tensor) -> Tensor:
        """Gold labels where known, else what the teacher holds true."""
        if self.problem_type == "single_label":
            own = teacher.argmax(-1)
        elif self.problem_type == "multi_label":
            own = (teacher > 0).to(teacher.dtype)
        else:
            own = teacher.squeeze(-1)
        if labels is None:
            return own
        is_known = known(labels)
        return torch.where(is_known[:, None] if labels.ndim > 1 else is_known, labels, own)
