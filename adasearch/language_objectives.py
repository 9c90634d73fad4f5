"""What a language model is taught: the next token, or another model's prediction of it.

Dimensions: B batch, L tokens, V vocabulary, S scored tokens.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

KL_ROWS = 32  # tokens whose predictions are compared at a time: 4 MB of a vocabulary of 30,522, which a cache holds
UNSCORED = -100  # the label of a token that is not to be predicted, as torch and transformers have it


def aligned(logits_BLV: Tensor, labels_BL: Tensor, is_shifted: bool) -> tuple[Tensor, Tensor]:
    """Logits and labels such that logits[b, l] predict labels[b, l].

    ``is_shifted``: they do already, as a decoder's that was given ``shift_right(labels)``. A causal model was given
    the labels themselves; the logits of token l then predict token l + 1.
    """
    # the labels move, not the logits, which are V times as large
    return logits_BLV, labels_BL if is_shifted else F.pad(labels_BL[:, 1:], (0, 1), value=UNSCORED)


def next_token_loss(logits_BLV: Tensor, labels_BL: Tensor, is_shifted: bool) -> Tensor:
    """Mean cross-entropy over the scored tokens in nats, a scalar; 0 when none is scored. See ``aligned``."""
    logits_BLV, labels_BL = aligned(logits_BLV, labels_BL, is_shifted)
    is_scored_BL = labels_BL != UNSCORED
    # float32 whatever the mixed precision: bfloat16 has 8 bits for a sum over the vocabulary
    total = F.cross_entropy(logits_BLV.flatten(0, 1).float(), labels_BL.flatten(), ignore_index=UNSCORED, reduction="sum")
    return total / is_scored_BL.sum().clamp(min=1)


def soft_cross_entropy(student_BLV: Tensor, teacher_BLV: Tensor, mask_BL: Tensor) -> Tensor:
    """Mean over the tokens in ``mask_BL`` of the cross-entropy between teacher's and student's predictions, a scalar.

    -sum_v softmax(teacher)_v log softmax(student)_v. Its gradient is that of KL(teacher || student): the two differ by
    the teacher's entropy. Every token predicts, so nothing is shifted; 0 when the mask is empty. The teacher gets no gradient.
    """
    is_taught_BL = mask_BL.bool()
    return _Taught.apply(student_BLV[is_taught_BL], teacher_BLV[is_taught_BL].detach(), 1.0, False)


def softened_kl(student_SV: Tensor, teacher_SV: Tensor, temperature: float) -> Tensor:
    """Mean over tokens of T^2 KL(teacher || student) of predictions softened by T, a scalar; 0 when there is none.

    ``objectives.kl_loss`` for a vocabulary: the same value and gradient, a few rows at a time, where that one would hold
    eight tensors of the size of the logits. The teacher gets no gradient. Hinton et al. 2015, section 2.
    """
    return _Taught.apply(student_SV, teacher_SV.detach(), temperature, True)


class _Taught(torch.autograd.Function):
    """Loss and gradient in one pass: d loss / d student = T (softmax(student / T) - softmax(teacher / T)) / S.

    The loss is a divergence, or with the teacher's entropy on top a cross-entropy.
    """

    @staticmethod
    def forward(ctx: Any, student_SV: Tensor, teacher_SV: Tensor, temperature: float, is_divergence: bool) -> Tensor:
        # in float16 most of a small gradient would be 0 before the loss's scale could save it; bf16 has float32's range
        kept = torch.float32 if student_SV.dtype == torch.float16 else student_SV.dtype
        gradient_SV, total = torch.empty_like(student_SV, dtype=kept), student_SV.new_zeros((), dtype=torch.float32)
        count = max(1, len(student_SV))
        for start in range(0, len(student_SV), KL_ROWS):
            rows = slice(start, start + KL_ROWS)
            own_RV = (student_SV[rows].float() / temperature).log_softmax(-1)
            other_RV = (teacher_SV[rows].float() / temperature).log_softmax(-1)
            p_RV = other_RV.exp()
            total += (p_RV * (other_RV - own_RV if is_divergence else -own_RV)).sum()
            gradient_SV[rows] = (own_RV.exp_() - p_RV).mul_(temperature / count)
        ctx.save_for_backward(gradient_SV)
        ctx.dtype = student_SV.dtype
        return total * temperature**2 / count

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, None, None, None]:
        (gradient_SV,) = ctx.saved_tensors
        return (gradient_SV * slope).to(ctx.dtype), None, None, None


def shift_right(labels_BL: Tensor, start_token_id: int, pad_token_id: int) -> Tensor:
    """What a decoder reads to predict ``labels_BL``: the start token, then all labels but the last; unscored ones as padding."""
    inputs_BL = labels_BL.new_full(labels_BL.shape, start_token_id)
    inputs_BL[:, 1:] = labels_BL[:, :-1]
    return inputs_BL.masked_fill(inputs_BL == UNSCORED, pad_token_id)
