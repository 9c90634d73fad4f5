"""Our encoder's configuration and layers: BERT-shaped, each layer of its own size, every part under a gate that may be given.

With gates a model computes what it would be: heads, neurons, sublayers and hidden dimensions times their values. Where a
value is exactly 0 the part is gone, as it is from the model that ``shrink_encoder`` cuts out: LayerNorms see surviving
dimensions only, a sublayer without heads or neurons is skipped with its LayerNorm and biases. Where gates act follows
CoFi (Xia et al. 2022) as released.

This file travels with every saved encoder as its remote code.

Dimensions: B batch, L tokens, D hidden, H heads, K head width, F neurons, N layers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.activations import ACT2FN

from adasearch.carried_code import CarryingConfig
from adasearch.gate_values import GateValues, is_open

HEAD_KINDS = ("bert", "distilbert", "roberta")


class EncoderConfig(CarryingConfig):
    """Configuration of an encoder whose layers differ in size.

    Args:
        hidden_size: D. It need not be a product of heads and head size.
        head_size: K of every head.
        heads: H of each layer; 0: no attention sublayer and no LayerNorm of it.
        neurons: F of each layer; 0: no feed-forward sublayer and no LayerNorm of it.
        type_vocab_size: rows of the token type table; 0: there is none (DistilBERT).
        position_offset: 0: positions count columns from 0. Else padding id + 1: they count real tokens from there (RoBERTa).
        attention_output_dropout, hidden_dropout, attention_dropout, head_dropout: of the attention sublayer's output; the
            feed-forward's and the embeddings'; the attention weights; the head.
        head_kind: of a sequence classifier: "bert" (dense, tanh, dropout), "distilbert" (relu) or "roberta" (a dropout first).
        pooler_size: rows of that dense layer, which stays as wide as the unpruned model's hidden size; None: D.
        family: the model type it was loaded from.
        is_pair: whether it was trained on pairs of texts; None: not known.
    """

    model_type = "adasearch-encoder"

    def __init__(
        self,
        vocab_size: int = 30522,
        hidden_size: int = 384,
        head_size: int = 32,
        heads: list[int] | None = None,
        neurons: list[int] | None = None,
        hidden_act: str = "gelu",
        max_position_embeddings: int = 512,
        type_vocab_size: int = 2,
        position_offset: int = 0,
        layer_norm_eps: float = 1e-12,
        hidden_dropout: float = 0.1,
        attention_output_dropout: float = 0.1,
        attention_dropout: float = 0.1,
        head_dropout: float = 0.1,
        head_kind: str = "bert",
        pooler_size: int | None = None,
        family: str = "bert",
        initializer_range: float = 0.02,
        pad_token_id: int | None = 0,
        is_pair: bool | None = None,
        **kwargs: Any,
    ):
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.head_size = head_size
        self.heads = [12] * 6 if heads is None else list(heads)
        self.neurons = [1536] * len(self.heads) if neurons is None else list(neurons)
        self.hidden_act = hidden_act
        self.max_position_embeddings = max_position_embeddings
        self.type_vocab_size = type_vocab_size
        self.position_offset = position_offset
        self.layer_norm_eps = layer_norm_eps
        self.hidden_dropout = hidden_dropout
        self.attention_output_dropout = attention_output_dropout
        self.attention_dropout = attention_dropout
        self.head_dropout = head_dropout
        self.head_kind = head_kind
        self.pooler_size = hidden_size if pooler_size is None else pooler_size
        self.family = family
        self.initializer_range = initializer_range
        self.is_pair = is_pair
        if len(self.heads) != len(self.neurons):
            raise ValueError(f"config: heads are of {len(self.heads)} layers, neurons of {len(self.neurons)}")
        if head_kind not in HEAD_KINDS:
            raise ValueError(f"config: head_kind: {head_kind!r} is not known; choices: {', '.join(HEAD_KINDS)}")
        super().__init__(pad_token_id=pad_token_id, **kwargs)

    @property
    def num_hidden_layers(self) -> int:
        """N, layers without any sublayer included."""
        return len(self.heads)


@dataclass(frozen=True)
class HiddenGate:
    """The hidden dimensions' gate, prepared once for all LayerNorms: values, survivors (None: all) and their number."""

    z_D: Tensor
    keep_D: Tensor | None
    count: int

    @classmethod
    def of(cls, z_D: Tensor | None) -> HiddenGate | None:
        """Of gate values; None stays None."""
        if z_D is None:
            return None
        keep_D = z_D.detach() != 0
        count = int(keep_D.sum())
        return cls(z_D, None if count == len(keep_D) else keep_D, max(count, 1))


class SurvivorNorm(nn.LayerNorm):
    """LayerNorm over the hidden dimensions whose gate is not 0, its output times the gate."""

    def forward(self, x_BLD: Tensor, hidden: HiddenGate | None = None) -> Tensor:
        """(B, L, D) -> (B, L, D).

        Dead dimensions are filled with the survivors' mean. That mean is then everybody's, and everybody's variance is
        the survivors' times count / D: torch's own fused kernel gives the survivors' normalisation up to that factor.
        """
        if hidden is None:
            return super().forward(x_BLD)
        weight_D, bias_D, eps = self.weight * hidden.z_D, self.bias * hidden.z_D, self.eps
        if hidden.keep_D is not None:
            mean_BL1 = (x_BLD * hidden.keep_D).sum(-1, keepdim=True) / hidden.count
            x_BLD = torch.where(hidden.keep_D, x_BLD, mean_BL1)
            share = hidden.count / len(hidden.z_D)
            weight_D, eps = weight_D * share**0.5, eps * share
        return F.layer_norm(x_BLD, self.normalized_shape, weight_D, bias_D, eps)


def gated(x_BLD: Tensor, own: Tensor | None, hidden: HiddenGate | None) -> Tensor:
    """A sublayer's output times its own gate and the hidden dimensions'."""
    if own is not None:
        x_BLD = x_BLD * own
    return x_BLD if hidden is None else x_BLD * hidden.z_D


class EncoderEmbeddings(nn.Module):
    """Word, position and, where there are such, token type embeddings, summed and normalised."""

    def __init__(self, config: EncoderConfig):
        super().__init__()
        D, self.offset, self.pad_token_id = config.hidden_size, config.position_offset, config.pad_token_id
        self.word_embeddings = nn.Embedding(config.vocab_size, D, padding_idx=config.pad_token_id)
        padding_idx = self.offset - 1 if self.offset else None
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, D, padding_idx=padding_idx)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, D) if config.type_vocab_size else None
        self.norm = SurvivorNorm(D, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout)

    def forward(self, input_ids: Tensor, token_type_ids: Tensor | None, hidden: HiddenGate | None) -> Tensor:
        """(B, L) -> (B, L, D). A gated sum is normalised over survivors and gated again."""
        x_BLD = self.word_embeddings(input_ids)
        if self.offset:
            is_real_BL = (input_ids != self.pad_token_id).long()
            x_BLD = x_BLD + self.position_embeddings(is_real_BL.cumsum(1) * is_real_BL + self.offset - 1)
        else:
            x_BLD = x_BLD + self.position_embeddings.weight[: input_ids.shape[1]]
        if self.token_type_embeddings is not None:
            types = self.token_type_embeddings.weight[0] if token_type_ids is None else self.token_type_embeddings(token_type_ids)
            x_BLD = x_BLD + types
        return self.dropout(self.norm(gated(x_BLD, None, hidden), hidden))


def is_slow_fused(x: Tensor, dropout: float) -> bool:
    """Whether torch's fused attention goes back far slower than plain products do: in bf16 on a processor, without dropout.

    Of 32 x 13 tokens it takes 22 ms a layer instead of 2 in torch 2.13; forward, in float32 and with dropout it is as it should be.
    """
    return x.dtype == torch.bfloat16 and x.device.type == "cpu" and not dropout and torch.is_grad_enabled()


class SelfAttention(nn.Module):
    """Multi-head attention of as many heads as are left, each of a fixed width."""

    def __init__(self, config: EncoderConfig, heads: int):
        super().__init__()
        self.heads, self.head_size, self.dropout = heads, config.head_size, config.attention_dropout
        D, width = config.hidden_size, heads * config.head_size
        self.query, self.key, self.value = (nn.Linear(D, width) for _ in range(3))
        self.output = nn.Linear(width, D)

    def forward(self, x_BLD: Tensor, visible_B11L: Tensor | None, gate_H: Tensor | None) -> Tensor:
        """(B, L, D) -> (B, L, D); ``gate_H`` multiplies each head's context."""
        q_BHLK, k_BHLK, v_BHLK = (
            layer(x_BLD).unflatten(-1, (self.heads, self.head_size)).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        dropout = self.dropout if self.training else 0.0
        if is_slow_fused(q_BHLK, dropout):
            scores_BHLL = q_BHLK @ k_BHLK.mT * self.head_size**-0.5
            if visible_B11L is not None:
                scores_BHLL = scores_BHLL.masked_fill(~visible_B11L, torch.finfo(scores_BHLL.dtype).min)
            mixed_BHLK = scores_BHLL.softmax(-1).to(v_BHLK.dtype) @ v_BHLK
        else:
            mixed_BHLK = F.scaled_dot_product_attention(q_BHLK, k_BHLK, v_BHLK, attn_mask=visible_B11L, dropout_p=dropout)
        if gate_H is not None:
            mixed_BHLK = mixed_BHLK * gate_H[:, None, None]
        return self.output(mixed_BHLK.transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    """Linear, activation, linear."""

    def __init__(self, config: EncoderConfig, neurons: int):
        super().__init__()
        self.input = nn.Linear(config.hidden_size, neurons)
        self.activation = ACT2FN[config.hidden_act]
        self.output = nn.Linear(neurons, config.hidden_size)

    def forward(self, x_BLD: Tensor, gate_F: Tensor | None) -> Tensor:
        """(B, L, D) -> (B, L, D); ``gate_F`` multiplies each neuron's activation."""
        x_BLF = self.activation(self.input(x_BLD))
        return self.output(x_BLF if gate_F is None else x_BLF * gate_F)


class EncoderLayer(nn.Module):
    """Attention and feed-forward, each added to its input and normalised after; either may be absent."""

    def __init__(self, config: EncoderConfig, heads: int, neurons: int):
        super().__init__()
        D, eps = config.hidden_size, config.layer_norm_eps
        self.attention = SelfAttention(config, heads) if heads else None
        self.attention_norm = SurvivorNorm(D, eps=eps) if heads else None
        self.attention_dropout = nn.Dropout(config.attention_output_dropout)
        self.ffn = FeedForward(config, neurons) if neurons else None
        self.ffn_norm = SurvivorNorm(D, eps=eps) if neurons else None
        self.ffn_dropout = nn.Dropout(config.hidden_dropout)

    def forward(
        self, x_BLD: Tensor, visible_B11L: Tensor | None, hidden: HiddenGate | None = None, mha: Tensor | None = None,
        heads: Tensor | None = None, ffn: Tensor | None = None, neurons: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """(B, L, D) -> (B, L, D), under the gates of this layer. A closed sublayer leaves its input as it is."""
        if self.attention is not None and is_open(mha, heads):
            y_BLD = gated(self.attention(x_BLD, visible_B11L, heads), mha, hidden)
            x_BLD = self.attention_norm(x_BLD + self.attention_dropout(y_BLD), hidden)
        if self.ffn is not None and is_open(ffn, neurons):
            y_BLD = gated(self.ffn(x_BLD, neurons), ffn, hidden)
            x_BLD = self.ffn_norm(x_BLD + self.ffn_dropout(y_BLD), hidden)
        return x_BLD


class Encoder(nn.Module):
    """Embeddings and layers."""

    def __init__(self, config: EncoderConfig):
        super().__init__()
        self.sizes = config.heads, config.neurons, config.hidden_size
        self.embeddings = EncoderEmbeddings(config)
        self.layers = nn.ModuleList(EncoderLayer(config, *sizes) for sizes in zip(config.heads, config.neurons))

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None,
        gates: GateValues | None = None,
    ) -> list[Tensor]:  # fmt: skip
        """N + 1 states (B, L, D): the embeddings' and each layer's. Raises ``ModelError`` for gates of other sizes."""
        visible_B11L = None if attention_mask is None else attention_mask.bool()[:, None, None, :]
        if gates is not None:
            gates.check(*self.sizes)
        hidden = None if gates is None else HiddenGate.of(gates.hidden_D)
        states = [self.embeddings(input_ids, token_type_ids, hidden)]
        for index, layer in enumerate(self.layers):
            of_layer = {} if gates is None else gates.of_layer(index)
            states.append(layer(states[-1], visible_B11L, hidden, **of_layer))
        return states
