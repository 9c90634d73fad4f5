"""QuantGPT: a generative transformer learns with quantised weights to be what it was in full precision.

Tao et al. 2022: the teacher's predictions and its states, told apart from those of other tokens, while
the weights pass through quantisers with learned scales. The student starts as a copy of its teacher.

Dimensions: B batch, L tokens, D hidden, V vocabulary, N examples, S tokens of a batch that are taught.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from adasearch.contrastive import TokenBank, contrastive_loss
from adasearch.errors import ConfigError
from adasearch.fit_config import steps_of
from adasearch.language import Seq2SeqPairs, TokenBlocks, language_outputs
from adasearch.language_objectives import UNSCORED, next_token_loss, shift_right, soft_cross_entropy
from adasearch.methods.base import Batch, Group, Method, weight_groups
from adasearch.quantgpt_config import QuantGptConfig
from adasearch.quantize_model import Quantized, attach_quantizers, quantized_cache, token_tables


class QuantGpt(Method):
    """Quantisation-aware training of a Hugging Face GPT-2 or BART.

    The loss is ``logits`` (soft cross-entropy at temperature 1) or, without ``config.distill``, ``ce`` (gold tokens), and
    ``contrastive`` times its weight.

    Args:
        teacher: the same model in full precision. It is used as it is, without gradient, and is no part of a checkpoint.
        train: the examples that the batches' ``index`` counts; a bank by position has a row for each of their tokens.

    Raises ``ConfigError`` when the bank would take more memory than ``config.bank_gib``.
    """

    schedule = "linear"

    def __init__(self, config: QuantGptConfig, teacher: PreTrainedModel, train: TokenBlocks | Seq2SeqPairs):
        super().__init__(config.fit_config(), "language")
        self.settings = config
        self._teacher = (teacher.eval().requires_grad_(False),)  # in a tuple, out of sight of state_dict
        self.quantized = Quantized()
        self.bank: TokenBank | None = None
        if config.lambda_contrastive and config.bank != "none":
            self._make_bank(train, teacher.config.hidden_size, teacher.config.vocab_size)

    def _make_bank(self, train: TokenBlocks | Seq2SeqPairs, width: int, vocabulary: int) -> None:
        config = self.settings
        if config.bank == "token":
            self.bank = TokenBank(vocabulary, width, config.momentum)
            return
        if not visits_again(config, len(train)):
            return  # no token is seen twice: a bank would remember, but never be asked
        offsets_N = (train.targets if isinstance(train, Seq2SeqPairs) else train.tokens).offsets
        rows = int(offsets_N[-1])
        size = rows * width * 2 / 2**30
        if size > config.bank_gib:
            raise ConfigError(
                f"bank: position: {rows:,} tokens x {width} in float16 take {size:.1f} GiB, more than bank_gib"
                f" {config.bank_gib:g}; choices: a larger bank_gib, --bank token, --bank none"
            )
        self.starts_N: Tensor
        self.register_buffer("starts_N", torch.from_numpy(np.asarray(offsets_N[:-1], np.int64)), persistent=False)
        self.bank = TokenBank(rows, width, config.momentum, torch.float16)

    @property
    def teacher(self) -> PreTrainedModel:
        """The model in full precision."""
        return self._teacher[0]

    def attach(self, student: PreTrainedModel) -> None:
        """Put the quantisers into the student's weights. Raises ``ConfigError`` and ``ModelError``."""
        config = self.settings
        self.quantized = attach_quantizers(
            student, config.bits, quantizer=config.quantizer, per=config.per, embedding_per=config.embedding_per,
            **config.quantizer_options(),
        )  # fmt: skip

    def groups(self, student: PreTrainedModel) -> list[Group]:
        """"weights", and "scales" where the quantisers learn theirs."""
        scales, rate = self.quantized.scales(), self.settings.scale_learning_rate
        weights = weight_groups([student], self.config.weight_decay, exclude=scales)
        groups = [Group("weights", weights, self.config.learning_rate, self.schedule)]
        if scales:
            groups.append(Group("scales", [{"params": scales, "weight_decay": 0.0}], rate, self.schedule))
        return groups

    def begin_step(self, student: PreTrainedModel, step: int, steps: int) -> None:
        """The teacher follows the student to its device."""
        if self.teacher.device != student.device:
            self.teacher.to(student.device)

    def loss(self, student: PreTrainedModel, batch: Batch) -> dict[str, Tensor]:
        """``logits`` or ``ce``, and ``contrastive``."""
        weight, distill = self.settings.lambda_contrastive, self.settings.distill
        options = {"output_hidden_states": bool(weight)}
        with quantized_cache():
            output = language_outputs(student, batch, **options)
        if distill or weight:
            with torch.no_grad():
                target = language_outputs(self.teacher, batch, **options)
        mask_BL = batch["labels"] != UNSCORED
        terms = {}
        if distill:
            terms["logits"] = soft_cross_entropy(output.logits, target.logits, mask_BL)
        else:
            terms["ce"] = next_token_loss(output.logits, batch["labels"], student.config.is_encoder_decoder)
        if weight:
            terms["contrastive"] = weight * self._contrastive(_last_states(output), _last_states(target), mask_BL, batch)
        return terms

    def _contrastive(self, states_BLD: Tensor, teacher_BLD: Tensor, mask_BL: Tensor, batch: Batch) -> Tensor:
        config = self.settings
        if self.bank is not None:
            keys_S = self._keys(batch, mask_BL)
            # float32: under mixed precision the states are not, and what is mixed is
            states_BLD = states_BLD.float().masked_scatter(mask_BL[..., None], self.bank(keys_S, states_BLD[mask_BL]))
        return contrastive_loss(
            states_BLD, teacher_BLD, mask_BL, temperature=config.temperature, negatives=config.negatives,
            negatives_count=config.negatives_count, table_VD=token_tables(self.teacher)[-1].weight,  # the decoder's, where a BART has several
        )  # fmt: skip

    def _keys(self, batch: Batch, mask_BL: Tensor) -> Tensor:
        """What the bank knows the taught tokens by, (S,): their place in the training texts, or the id that was read."""
        if self.settings.bank == "position":
            places_BL = self.starts_N[batch["index"], None] + torch.arange(mask_BL.shape[1], device=mask_BL.device)
            return places_BL[mask_BL]
        config = self.teacher.config
        if not config.is_encoder_decoder:
            return batch["input_ids"][mask_BL]
        return shift_right(batch["labels"], config.decoder_start_token_id, config.pad_token_id)[mask_BL]

    def weight(self, batch: Batch) -> float:
        """Taught tokens: every term is a mean over them, not over texts."""
        return int((batch["labels"] != UNSCORED).sum())

    def measures(self, student: PreTrainedModel) -> dict[str, Any]:
        """Learned scales by module (the mean of several), and how much of the bank is filled."""
        measured: dict[str, Any] = {}
        learned = {name: quantizer.learned() for name, quantizer in self.quantized.quantizers.items()}
        if any(learned.values()):
            measured["scales"] = {name: float(torch.cat([s.detach().flatten() for s in scales]).mean()) for name, scales in learned.items() if scales}
        if self.bank is not None:
            measured["bank_known_share"] = self.bank.known_share
        return measured


def visits_again(config: QuantGptConfig, examples: int) -> bool:
    """Whether any example is in more than one batch of the training."""
    return config.steps > steps_of(1, examples, config.batch_size)


def _last_states(output: Any) -> Tensor:
    """States after the last layer, a decoder's where there is one, (B, L, D)."""
    states = output.get("decoder_hidden_states") or output.get("hidden_states")
    return states[-1]
