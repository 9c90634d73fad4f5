"""What a task model learns from its dense teacher and from gold labels, for every kind of task.

Dimensions: B batch, C labels, L tokens, d hidden size, N layers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from adasearch.objectives import kl_loss, task_loss
from adasearch.span_objectives import span_kl_loss, span_loss
from adasearch.task_config import QUESTION_ANSWERING


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

    ``kd`` is ``teacher_loss`` towards ``teacher_logits`` of the batch; where it is asked for and the batch has none, gold labels are
    all there is and count in full.
    """
    targets = batch.get("teacher_logits")
    if kd_weight and targets is None:
        return {"ce": _gold(logits, batch, problem_type)}
    terms = {"ce": task_weight * _gold(logits, batch, problem_type)} if task_weight else {}
    if kd_weight:
        terms["kd"] = kd_weight * teacher_loss(logits, targets, batch["attention_mask"], problem_type, temperature).mean()
    return terms


def states_loss(states: Sequence[Tensor], targets: Sequence[Tensor], mask_BL: Tensor) -> Tensor:
    """Squared distance of a model's states (B, L, d) from another's, over the squares of the other's: the mean of the layers.

    Padding does not count. 0 says equal, 1 as far as nothing at all is; so no layer outweighs another by its scale.
    """
    errors_N, squares_N = squared_distances(states, targets, mask_BL)
    return (errors_N / squares_N.clamp_min(1e-12)).mean()


def squared_distances(states: Sequence[Tensor], targets: Sequence[Tensor], mask_BL: Tensor) -> tuple[Tensor, Tensor]:
    """Of N layers the summed squares of the differences, and of the targets, (N,) each; padding left out."""
    is_text_BL = ... if bool(mask_BL.all()) else mask_BL.bool()  # packed blocks have no padding to be left out
    pairs = [(state[is_text_BL].float(), target[is_text_BL].float()) for state, target in zip(states, targets, strict=True)]
    errors = [(state - target).square().sum() for state, target in pairs]
    return torch.stack(errors), torch.stack([target.square().sum() for _, target in pairs])


def _gold(logits: Tensor, batch: Mapping[str, Tensor], problem_type: str) -> Tensor:
    if problem_type == QUESTION_ANSWERING:
        return span_loss(logits, batch["labels"], batch["attention_mask"]).mean()
    return task_loss(logits, batch["labels"], problem_type).mean()
