"""Calling any Hugging Face masked language model: logits of chosen tokens alone, its loss, its head.

Dimensions: B batch, L tokens, V vocabulary, S chosen tokens.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn
from transformers import AutoModelForMaskedLM, PreTrainedModel

from adasearch.errors import ModelError, loading
from adasearch.language_objectives import UNSCORED
from adasearch.masked_language import MaskedBlocks, Masking
from adasearch.outputs import autocast
from adasearch.teaching import squared_distances

EVALUATION_STEP = 2**31  # of the masking when a model is scored: a step that no training has
UNTRAINED_HEAD = "untrained_head"  # true in the config of a saved model whose head was drawn and never learned


def load_masked_model(name: str, dropout: float | None = None, setting: str = "model") -> tuple[PreTrainedModel, bool]:
    """A masked language model in float32 from a folder or the hub, and whether its head is new: drawn here, or before and never trained.

    A checkpoint without that head (MiniLM, any sentence encoder) is given the one of its family: a transform, fresh, and the
    word table as the decoder. ``dropout`` replaces that of hidden states and attention. Raises ``ModelError``, which names ``setting``.
    """
    choices = "a folder or a hub id of BERT, RoBERTa, DistilBERT, MiniLM ..."
    with loading(f"{setting}: {name!r} cannot be loaded as a masked language model", choices):
        model, report = AutoModelForMaskedLM.from_pretrained(
            name, dtype=torch.float32, trust_remote_code=False, output_loading_info=True
        )
    if model.get_output_embeddings() is None:
        raise ModelError(f"{setting}: {name!r} ({type(model).__name__}) has no output embeddings; expected: a masked language model's")
    prefix = f"{model.base_model_prefix}."
    missing = [key for key in report["missing_keys"] if key.startswith(prefix) and "pooler" not in key]
    if missing:
        raise ModelError(f"{setting}: {name!r} lacks {len(missing)} weights of a {type(model).__name__}, such as {missing[0]}")
    if dropout is not None:
        set_dropout(model, dropout)
    is_new = any(not key.startswith(prefix) for key in report["missing_keys"])
    return model, is_new or bool(getattr(model.config, UNTRAINED_HEAD, False))


def set_dropout(model: nn.Module, share: float) -> None:
    """Set every dropout of a model in place."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = share
        for name in ("attention_dropout", "dropout"):  # some attentions have a number instead: ModernBERT's, our encoder's
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, share)


def layer_states(model: PreTrainedModel, batch: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
    """Every layer's output (B, L, d), the first layer's first, without the head."""
    body = model.base_model
    output = body(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], output_hidden_states=True)
    return tuple(output.hidden_states[1:])


def head_parameters(model: PreTrainedModel) -> list[nn.Parameter]:
    """The parameters outside of the body, the tied decoder not among them."""
    body = {id(parameter) for parameter in model.base_model.parameters()}
    return [parameter for parameter in model.parameters() if id(parameter) not in body]


def token_logits(model: PreTrainedModel, batch: Mapping[str, Tensor], chosen_BL: Tensor) -> Tensor:
    """Logits of the chosen tokens, (S, V), in the order of ``input_ids[chosen_BL]``."""
    return logits_and_states(model, batch, chosen_BL, False)[0]


def logits_and_states(
    model: PreTrainedModel, batch: Mapping[str, Tensor], chosen_BL: Tensor, with_states: bool = True
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """The same, and every layer's output (B, L, d), the first layer's first; none without ``with_states``.

    The product with the vocabulary is as dear as the layers of a small model; it is made for these tokens only.
    """
    decoder = model.get_output_embeddings()
    handle = decoder.register_forward_pre_hook(lambda module, inputs: (inputs[0][chosen_BL], *inputs[1:]))
    try:
        output = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], output_hidden_states=with_states)
    finally:
        handle.remove()
    logits = output.logits if output.logits.ndim == 2 else output.logits[chosen_BL]  # MobileBERT's head reads its decoder's weight alone
    return logits, tuple(output.hidden_states[1:]) if with_states else ()


def masked_loss(logits_SV: Tensor, labels_S: Tensor) -> Tensor:
    """Mean cross-entropy of the hidden tokens in nats, a scalar; 0 when there is none."""
    return F.cross_entropy(logits_SV.float(), labels_S, reduction="sum") / max(1, len(labels_S))


@torch.inference_mode()
def layer_distances(
    model: PreTrainedModel, teacher: PreTrainedModel, blocks: MaskedBlocks, accelerator: Accelerator, *, batch_size: int = 32,
    is_mixed: bool = False,
) -> list[float]:
    """How far each layer's states are from the teacher's over the blocks, as ``states_loss`` says, with nothing hidden."""
    errors, squares = [], []
    for _, batch in blocks.in_order(batch_size):
        batch = {name: tensor.to(accelerator.device) for name, tensor in batch.items()}
        with autocast(accelerator, is_mixed):
            own, others = (layer_states(one.eval(), batch) for one in (model, teacher))
        for sums, found in zip((errors, squares), squared_distances(own, others, batch["attention_mask"])):
            sums.append(found)
    return (torch.stack(errors).sum(0) / torch.stack(squares).sum(0).clamp_min(1e-12)).tolist()


@torch.inference_mode()
def score_masked(
    model: PreTrainedModel, blocks: MaskedBlocks, masking: Masking, accelerator: Accelerator, *, batch_size: int = 32,
    is_mixed: bool = False,
) -> dict[str, float]:
    """Loss in nats, perplexity and accuracy on hidden tokens, the same ones in every call."""
    was_training = model.training
    model.eval()
    total, right, tokens = 0.0, 0, 0
    try:
        for _, batch in blocks.in_order(batch_size):
            batch = {name: tensor.to(accelerator.device) for name, tensor in masking(batch, EVALUATION_STEP).items()}
            is_hidden_BL = batch["labels"] != UNSCORED
            labels_S = batch["labels"][is_hidden_BL]
            with autocast(accelerator, is_mixed):
                logits_SV = token_logits(model, batch, is_hidden_BL).float()
            total += float(F.cross_entropy(logits_SV, labels_S, reduction="sum"))
            right += int((logits_SV.argmax(-1) == labels_S).sum())
            tokens += len(labels_S)
    finally:
        model.train(was_training)
    loss = total / max(1, tokens)
    return {"mlm_loss": loss, "mlm_perplexity": math.exp(min(loss, 700)), "mlm_accuracy": right / max(1, tokens), "tokens": tokens}
