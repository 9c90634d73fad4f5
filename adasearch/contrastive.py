"""Token-level contrastive distillation: a token's state should be its teacher's, and not that of other tokens.

Tao et al. 2022 (QuantGPT). Its code was never published; where the text leaves a detail open both readings
are here: what a memory bank remembers by, and where the negatives come from.

Dimensions: B batch, L tokens, D hidden, N negatives, S tokens of all texts that are taught, K keys of a bank.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def contrastive_loss(
    states_BLD: Tensor,
    teacher_BLD: Tensor,
    mask_BL: Tensor,
    *,
    temperature: float = 0.1,
    negatives: str = "teacher",
    negatives_count: int | None = None,
    table_VD: Tensor | None = None,
) -> Tensor:
    """Mean over the tokens in ``mask_BL`` of -log softmax of the positive's cosine among its negatives', a scalar.

    The positive of a token is the teacher's state of the same token. Its negatives are the ``negatives_count`` (None: all)
    other tokens of the same sequence, in the teacher's states or in the student's, which are constants here; or, for
    "vocabulary", as many random rows of ``table_VD``, the same for the whole batch. A token without negatives costs 0, and
    so does a batch without tokens. Random choices come from torch's generator.
    """
    is_taught_BL = mask_BL.bool()
    query_BLD = F.normalize(states_BLD.float(), dim=-1)
    teacher_BLD = F.normalize(teacher_BLD.float(), dim=-1)
    positive_BL = (query_BLD * teacher_BLD).sum(-1) / temperature
    if negatives == "vocabulary":
        assert table_VD is not None, "negatives 'vocabulary' need a table to draw rows from"
        count = mask_BL.shape[1] - 1 if negatives_count is None else negatives_count
        rows_N = torch.randint(len(table_VD), (count,), device=table_VD.device)
        negatives_BLN = _cosines(query_BLD, F.normalize(table_VD[rows_N].float(), dim=-1)) / temperature
    else:
        others_BLD = teacher_BLD if negatives == "teacher" else query_BLD.detach()
        is_negative_BLL = _other_tokens(is_taught_BL, negatives_count)
        negatives_BLN = (_cosines(query_BLD, others_BLD) / temperature).masked_fill(~is_negative_BLL, -torch.inf)
    loss_BL = torch.cat([positive_BL[..., None], negatives_BLN], -1).logsumexp(-1) - positive_BL
    # where, not a product: a state at padding may be anything
    return loss_BL.where(is_taught_BL, 0.0).sum() / is_taught_BL.sum().clamp(min=1)


def _cosines(one_BLD: Tensor, other: Tensor) -> Tensor:
    """Products of unit vectors, (B, L, N), in float32: in bfloat16 what tells the negatives of alike states apart would be rounding."""
    with torch.autocast(one_BLD.device.type, enabled=False):
        return one_BLD @ other.mT


def _other_tokens(is_taught_BL: Tensor, count: int | None) -> Tensor:
    """Which tokens (last axis) are negatives of which, (B, L, L) bool: all others, or ``count`` random ones of them."""
    length = is_taught_BL.shape[1]
    others_BLL = is_taught_BL[:, None, :] & ~torch.eye(length, dtype=torch.bool, device=is_taught_BL.device)
    if count is None or count >= length - 1:
        return others_BLL
    draws_BLL = torch.rand(others_BLL.shape, device=others_BLL.device).masked_fill(~others_BLL, -1.0)
    chosen_BLL = torch.zeros_like(others_BLL).scatter_(-1, draws_BLL.topk(count, -1).indices, True)
    return chosen_BLL & others_BLL  # a short text has fewer than ``count``


class TokenBank(nn.Module):
    """What the student made of each token before: a moving average of its states, kept by key, in buffers.

    Args:
        keys: K; a key is a token's place in the training texts, or its id in the vocabulary: the caller's choice.
        width: D.
        momentum: share of what is remembered in a mixed state.
        dtype: of the memory; float16 halves a bank that has a row for every token of a corpus.
    """

    def __init__(self, keys: int, width: int, momentum: float, dtype: torch.dtype = torch.float32):
        super().__init__()
        self.momentum = momentum
        self.states_KD: Tensor
        self.is_known_K: Tensor
        self.register_buffer("states_KD", torch.zeros(keys, width, dtype=dtype))
        self.register_buffer("is_known_K", torch.zeros(keys, dtype=torch.bool))

    def forward(self, keys_S: Tensor, states_SD: Tensor) -> Tensor:
        """momentum x memory + (1 - momentum) x state, (S, D) float32, which is remembered. The gradient reaches the state.

        A key seen for the first time has no memory: its state is taken as it is. Where a key stands several times, the
        mean of its mixed states is remembered.
        """
        states_SD = states_SD.float()
        share_S1 = self.momentum * self.is_known_K[keys_S, None]
        mixed_SD = share_S1 * self.states_KD[keys_S].float() + (1 - share_S1) * states_SD
        self._remember(keys_S, mixed_SD.detach())
        return mixed_SD

    @torch.no_grad()
    def _remember(self, keys_S: Tensor, mixed_SD: Tensor) -> None:
        unique_U, inverse_S, counts_U = keys_S.unique(return_inverse=True, return_counts=True)
        sums_UD = mixed_SD.new_zeros(len(unique_U), mixed_SD.shape[1]).index_add_(0, inverse_S, mixed_SD)
        most = torch.finfo(self.states_KD.dtype).max
        means_UD = (sums_UD / counts_U[:, None]).clamp(-most, most)  # an infinite memory would stay infinite
        self.states_KD[unique_U] = means_UD.to(self.states_KD.dtype)
        self.is_known_K[unique_U] = True

    @property
    def known_share(self) -> float:
        """Share of the keys that have been seen."""
        return float(self.is_known_K.float().mean()) if len(self.is_known_K) else 0.0
