"""What a task model learns from its dense teacher and from gold labels, for every kind of task.

Dimensions: B batch, C labels, L tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from adasearch.objectives import kl_loss, task_loss
from adasearch.span_objectives import span_kl_loss, span_loss

QUESTION_ANSWERING = "question_answering"


def predictions(output: Any) -> Tensor:
    """A Hugging Face output as one tensor: logits (B, C), or a reader's start and end logits (B, 2, L)."""
    return output.logits if "logits" in output else torch.stack([output.start_logits, output.end_logits], 1)


def teacher_loss(logits: Tensor, targets: Tensor, mask_BL: Tensor, problem_type: str, temperature: float) -> Tensor:
    """(B,). T^2 KL(teacher || student); of regression the squared error, of which a softmax of one logit knows nothing."""
    if problem_type == QUESTION_ANSWERING:
        return span_kl_loss(logits, targets, mask_BL, temperature)
    return kl_loss(logits, targets, problem_type, temperature)


def teaching_terms(
    logits: Tensor, batch: Mapping[str, Tensor], problem_type: str, *, task_weight: float, kd_weight: float, temperature: float
) -> dict[str, Tensor]:
    """"ce" and "kd", each times its weight, scalars; a term of weight 0 is left out (specs c.4).

    ``kd`` is ``teacher_loss`` towards ``teacher_logits`` of the batch; where the batch has none, gold labels are all there is
    and count in full.
    """
    targets = batch.get("teacher_logits") if kd_weight else None
    if targets is None:
        return {"ce": _gold(logits, batch, problem_type)}
    terms = {"kd": kd_weight * teacher_loss(logits, targets, batch["attention_mask"], problem_type, temperature).mean()}
    return {"ce": task_weight * _gold(logits, batch, problem_type), **terms} if task_weight else terms


def _gold(logits: Tensor, batch: Mapping[str, Tensor], problem_type: str) -> Tensor:
    if problem_type == QUESTION_ANSWERING:
        return span_loss(logits, batch["labels"], batch["attention_mask"]).mean()
    return task_loss(logits, batch["labels"], problem_type).mean()
