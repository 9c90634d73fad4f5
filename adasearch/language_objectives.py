"""What a language model is taught: the next token, or another model's prediction of it.

Dimensions: B batch, L tokens, V vocabulary, S scored tokens.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

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
    the teacher's entropy. Every token predicts, so nothing is shifted; 0 when the mask is empty.
    """
    is_taught_BL = mask_BL.bool()
    student_SV, teacher_SV = student_BLV[is_taught_BL].float(), teacher_BLV[is_taught_BL].float()
    total = F.cross_entropy(student_SV, teacher_SV.softmax(-1), reduction="sum")
    return total / is_taught_BL.sum().clamp(min=1)


def shift_right(labels_BL: Tensor, start_token_id: int, pad_token_id: int) -> Tensor:
    """What a decoder reads to predict ``labels_BL``: the start token, then all labels but the last; unscored ones as padding."""
    inputs_BL = labels_BL.new_full(labels_BL.shape, start_token_id)
    inputs_BL[:, 1:] = labels_BL[:, :-1]
    return inputs_BL.masked_fill(inputs_BL == UNSCORED, pad_token_id)
