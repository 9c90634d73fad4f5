"""How well a language model predicts: perplexity per token and per word, with a sliding window.

Dimensions: T tokens of a stream, W windows in a batch, L tokens of a window, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn

from adasearch.errors import ConfigError, DataError
from adasearch.language import Seq2SeqPairs, language_outputs
from adasearch.language_objectives import UNSCORED
from adasearch.outputs import autocast

MOST_NATS = 709.0  # e^709 is the largest power of e that a float holds


def windows(length: int, block_length: int, stride: int) -> Iterator[tuple[int, int, int]]:
    """(begin, end, first scored token) of each window over a stream, as Hugging Face's guide to perplexity slides it.

    Every token but the first is scored once, and but for the first window with at least ``block_length - stride`` tokens
    before it. With ``stride == block_length`` windows do not overlap, and the first token of each has nothing before it:
    it is not scored.
    """
    scored = 0
    for begin in range(0, length, stride):
        end = min(begin + block_length, length)
        yield begin, end, max(scored, begin + 1)
        scored = end
        if end == length:
            return


@torch.inference_mode()
def perplexity(
    model: nn.Module,
    stream_T: np.ndarray | Tensor,
    *,
    block_length: int,
    stride: int | None = None,
    batch_size: int = 16,
    words: int | None = None,
    accelerator: Accelerator | None = None,
    is_mixed: bool = False,
) -> dict[str, float]:
    """A causal model's perplexity on one stream of tokens; ``model`` is left as it is found (train or eval).

    Args:
        stride: tokens from one window to the next; half of ``block_length`` when None.
        words: of the same texts; gives ``word_perplexity`` too, which models of different vocabularies can be compared by.
        accelerator: where to compute, and with ``is_mixed`` in which precision; the model's own device when None.

    Returns ``nll`` (mean per scored token, nats), ``perplexity`` (its exponential), ``tokens`` (scored) and perhaps
    ``word_perplexity`` (exp of the loss of all tokens but the first over ``words``; where windows side by side leave tokens
    unscored, these count as the mean of the others). Raises ``ConfigError`` for a stride outside
    1..block_length or a window longer than the model's positions, ``DataError`` for fewer than two tokens.
    """
    stride = max(1, block_length // 2) if stride is None else stride
    if not 1 <= stride <= block_length:
        raise ConfigError(f"stride: {stride} is not possible; choices: 1 to block_length ({block_length})")
    most = getattr(model.config, "max_position_embeddings", None)
    if most is not None and block_length > most:
        raise ConfigError(f"block_length: {block_length} is too long; the model has {most} positions")
    ids_T = torch.as_tensor(np.asarray(stream_T, dtype=np.int64))
    if len(ids_T) < 2:
        raise DataError(f"perplexity: {len(ids_T)} tokens; expected: 2 or more")
    total, tokens = 0.0, 0
    with _evaluating(model, accelerator, is_mixed) as device:
        plan = list(windows(len(ids_T), block_length, stride))
        for first in range(0, len(plan), batch_size):
            part = plan[first : first + batch_size]
            # only the last window may be shorter; padded on the right, which a causal model's other tokens do not see
            longest = max(end - begin for begin, end, _ in part)
            ids_WL = torch.zeros(len(part), longest, dtype=torch.int64)
            labels_WL = torch.full_like(ids_WL, UNSCORED)
            mask_WL = torch.zeros_like(ids_WL)
            for row, (begin, end, scored) in enumerate(part):
                ids_WL[row, : end - begin] = ids_T[begin:end]
                mask_WL[row, : end - begin] = 1
                labels_WL[row, scored - begin : end - begin] = ids_T[scored:end]
            batch = {"input_ids": ids_WL.to(device), "attention_mask": mask_WL.to(device)}
            logits_WLV = language_outputs(model, batch).logits[:, :-1]
            total += _summed(logits_WLV, labels_WL[:, 1:].to(device))
            tokens += int((labels_WL[:, 1:] != UNSCORED).sum())
    return _summary(total, tokens, words and words * tokens / (len(ids_T) - 1))


@torch.inference_mode()
def target_perplexity(
    model: nn.Module, pairs: Seq2SeqPairs, *, batch_size: int = 32, accelerator: Accelerator | None = None, is_mixed: bool = False
) -> dict[str, float]:
    """A sequence-to-sequence model's perplexity on its targets, as far as they were not cut, given the sources.

    Keys as ``perplexity``; ``word_perplexity`` where the pairs know their ``target_words``.
    """
    total, tokens = 0.0, 0
    with _evaluating(model, accelerator, is_mixed) as device:
        for _, batch in pairs.in_order(batch_size):
            batch = {name: tensor.to(device) for name, tensor in batch.items()}
            total += _summed(language_outputs(model, batch).logits, batch["labels"])
            tokens += int((batch["labels"] != UNSCORED).sum())
    return _summary(total, tokens, sum(pairs.target_words) or None)


@contextmanager
def _evaluating(model: nn.Module, accelerator: Accelerator | None, is_mixed: bool) -> Iterator[torch.device]:
    """The model in eval mode and the wished precision inside, in its former mode afterwards; gives the device."""
    was_training = model.training
    model.eval()
    try:
        with autocast(accelerator, is_mixed) if accelerator else nullcontext():
            yield accelerator.device if accelerator else next(model.parameters()).device
    finally:
        model.train(was_training)


def _summed(logits_WLV: Tensor, labels_WL: Tensor) -> float:
    """Sum of the scored tokens' losses, in nats."""
    losses = F.cross_entropy(logits_WLV.flatten(0, 1).float(), labels_WL.flatten(), ignore_index=UNSCORED, reduction="none")
    return losses.cpu().double().sum().item()  # float64: a sum over a corpus


def _summary(total: float, tokens: int, words: float | None) -> dict[str, float]:
    found = {"perplexity": _exp(total / tokens), "nll": total / tokens, "tokens": tokens}
    return found if words is None else {**found, "word_perplexity": _exp(total / words)}


def _exp(nats: float) -> float:
    """e^nats, infinite where a float ends: a model broken by few bits is a result, not an error."""
    return math.exp(nats) if nats < MOST_NATS else math.inf
