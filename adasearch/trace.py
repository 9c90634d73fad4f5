"""A classifier as a graph of plain operations whose batch and length stay free: what is exported, and what is compiled.

Dimensions: B batch, L tokens, H heads, K head width.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from adasearch.model_inputs import positions_of, uses_token_types


def trace(model: PreTrainedModel, length: int = 7) -> torch.export.ExportedProgram:
    """The model's logits as a program of its inputs (``input_names``), each (B, L) int64; ``length`` is only an example's.

    The model must be on the processor; it is traced in eval mode and left as it was. Raises what torch.export raises.
    """
    names, was_training = input_names(model), model.training
    wrapper = Logits(model, names).eval()
    limit = positions_of(model.config)
    examples = example_inputs(model, batch=2, length=min(length, limit or length))
    free = {
        0: torch.export.Dim("batch"),
        1: torch.export.Dim("length", max=limit) if limit else torch.export.Dim("length"),
    }
    try:
        with torch.no_grad(), Exportable():
            # Guards as run-time assertions: "length - 1 != 1" would otherwise refuse lengths that compute the same.
            return torch.export.export(
                wrapper, tuple(examples[name] for name in names), dynamic_shapes=(tuple(free for _ in names),),
                strict=False, prefer_deferred_runtime_asserts_over_guards=True,
            )  # fmt: skip
    finally:
        model.train(was_training)


class Exportable(TorchFunctionMode):
    """While tracing, says what the exporter or onnxruntime cannot take in terms that they can, with equal values.

    ``max_pool1d`` fixes the length it was traced with (torch 2.13), ``max_pool2d`` does not; onnxruntime has no
    ``Where`` on booleans; the exporter's attention looks for NaN in every weight, a quarter of a small student's time.
    Operations, our users' too, are thus written as anybody would write them.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in (F.max_pool1d, torch.max_pool1d) and not kwargs.get("return_indices"):
            return _max_pool1d(*args, **kwargs)
        if func in (torch.where, Tensor.where) and len(args) == 3:
            condition, yes, no = (args[1], args[0], args[2]) if func is Tensor.where else args
            if all(isinstance(value, Tensor) and value.dtype == torch.bool for value in (yes, no)):
                return (condition & yes) | (~condition & no)
        is_attention = func is F.scaled_dot_product_attention and len(args) == 3
        if is_attention and not any(kwargs.get(name) for name in ("dropout_p", "is_causal", "enable_gqa")):
            return _attention(*args, mask=kwargs.get("attn_mask"), scale=kwargs.get("scale"))
        return func(*args, **kwargs)


def _max_pool1d(
    x: Tensor, kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1, ceil_mode: bool = False,
    return_indices: bool = False,
) -> Tensor:  # fmt: skip
    def flat(value: Any) -> tuple[int, int]:
        return 1, value[0] if isinstance(value, (tuple, list)) else value

    steps = flat(kernel_size if stride in (None, (), []) else stride)
    sides = (0, flat(padding)[1])
    return F.max_pool2d(x.unsqueeze(-2), flat(kernel_size), steps, sides, flat(dilation), ceil_mode).squeeze(-2)


def _attention(q_BHLK: Tensor, k_BHLK: Tensor, v_BHLK: Tensor, mask: Tensor | None, scale: float | None) -> Tensor:
    """Scaled dot-product attention in four operations. A query that may look at nothing gets 0, as from torch."""
    scores_BHLL = (q_BHLK * (q_BHLK.shape[-1] ** -0.5 if scale is None else scale)) @ k_BHLK.mT
    if mask is None:
        return scores_BHLL.softmax(-1) @ v_BHLK
    if mask.dtype != torch.bool:
        return (scores_BHLL + mask).softmax(-1) @ v_BHLK
    lowest = torch.finfo(scores_BHLL.dtype).min  # -inf would make NaN where nothing is visible
    bias = torch.where(mask, 0.0, lowest).to(scores_BHLL.dtype)
    return ((scores_BHLL + bias).softmax(-1) @ v_BHLK) * mask.any(-1, keepdim=True)


class Logits(nn.Module):
    """A classifier as a function of tensors alone."""

    def __init__(self, model: PreTrainedModel, names: tuple[str, ...]):
        super().__init__()
        self.model, self.names = model, names
        takes_cache = "use_cache" in inspect.signature(model.forward).parameters
        self.settings = {"use_cache": False} if takes_cache else {}

    def forward(self, *inputs: Tensor) -> Tensor:
        return logits_of(self.model(**dict(zip(self.names, inputs)), return_dict=True, **self.settings))


def logits_of(output: ModelOutput) -> Tensor:
    """A classifier's logits (B, C); of a model that answers questions, each token's start and end logit, (B, L, 2)."""
    return output.logits if "logits" in output else torch.stack([output.start_logits, output.end_logits], -1)


def input_names(model: PreTrainedModel) -> tuple[str, ...]:
    """What the ONNX graph takes: ids, mask, and token types where the model has embeddings for them."""
    return ("input_ids", "attention_mask", *(("token_type_ids",) if uses_token_types(model.config) else ()))


def example_inputs(model: PreTrainedModel, batch: int, length: int, seed: int = 0) -> dict[str, Tensor]:
    """Random texts (B, L) by input name, with a separator in the middle; the first of several is padded by half."""
    generator = torch.Generator().manual_seed(seed)
    config = model.config
    input_ids = torch.randint(0, config.vocab_size, (batch, length), generator=generator)
    pad_token_id = config.pad_token_id if getattr(config, "pad_token_id", None) is not None else 0
    input_ids[input_ids == pad_token_id] = (
        pad_token_id + 1 if pad_token_id + 1 < config.vocab_size else pad_token_id - 1
    )
    middle = length // 3
    separator = next(
        (i for i in (getattr(config, key, None) for key in ("sep_token_id", "eos_token_id")) if isinstance(i, int)),
        None,
    )
    if separator is not None and length > 2:
        input_ids[:, middle] = separator
    mask = torch.ones_like(input_ids)
    if batch > 1 and length > 1:
        mask[0, (length + 1) // 2 :] = 0
        input_ids[0, (length + 1) // 2 :] = pad_token_id
    types = (torch.arange(length) > middle).long().expand(batch, length).contiguous() * mask
    return {"input_ids": input_ids, "attention_mask": mask, "token_type_ids": types}
