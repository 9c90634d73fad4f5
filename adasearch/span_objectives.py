"""What a reader is taught: where an answer begins and where it ends, from gold positions or from another reader.

A reader gives every token two logits, so its predictions are two distributions over the tokens of a window. Losses are
per example, (B,), as those of ``objectives``.
Dimensions: B batch, L tokens; axis 2 is (start, end).
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def masked_log_softmax(logits_B2L: Tensor, mask_BL: Tensor) -> Tensor:
    """Log-probabilities over the tokens in ``mask_BL`` in float32, (B, 2, L); 0 at the others.

    Without the mask a window's loss would depend on the padding of its batch.
    """
    is_padding_B1L = mask_BL[:, None] == 0
    logs_B2L = logits_B2L.float().masked_fill(is_padding_B1L, float("-inf")).log_softmax(-1)
    return logs_B2L.masked_fill(is_padding_B1L, 0.0)


def span_loss(logits_B2L: Tensor, positions_B2: Tensor, mask_BL: Tensor) -> Tensor:
    """Mean of the cross-entropies of start and end, (B,). Devlin et al. 2019, section 4.2.

    A window that does not hold the answer has both positions on its first token.
    """
    logs_B2L = masked_log_softmax(logits_B2L, mask_BL)
    return -logs_B2L.gather(-1, positions_B2[:, :, None]).squeeze(-1).mean(-1)


def span_kl_loss(student_B2L: Tensor, teacher_B2L: Tensor, mask_BL: Tensor, temperature: float = 1.0) -> Tensor:
    """T^2 KL(teacher || student), averaged over start and end, (B,). Hinton et al. 2015; the average as CoFi's code."""
    # float32 first: in bfloat16 the quotient would be rounded once more
    student_B2L, teacher_B2L = (masked_log_softmax(logits_B2L.float() / temperature, mask_BL) for logits_B2L in (student_B2L, teacher_B2L))
    # at padding both are log 1, hence equal: nothing is added
    divergence_B2L = F.kl_div(student_B2L, teacher_B2L, reduction="none", log_target=True)
    return divergence_B2L.sum(-1).mean(-1) * temperature**2
