"""Reference shapes: the networks a student is compared with, built from their configurations with random weights.

They cost what the trained ones cost and know nothing: every row of theirs is labelled "random weights, time only".
Nothing is downloaded. Dimensions as in the papers; the parameters of each are checked against published counts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    PreTrainedModel,
)

from adasearch.architecture import Architecture, Macro
from adasearch.settings import check_choice
from adasearch.student import AdasearchConfig, AdasearchForSequenceClassification

SEED = 0
VOCAB_SIZE = 30_522  # word pieces of BERT uncased
STATIC_WIDTH = 256  # model2vec's base models (potion-base-8M) have 256 dimensions


@dataclass(frozen=True)
class Reference:
    """A shape: how it is called in a table, what it is, and how it is built (random weights of the current generator)."""

    label: str
    about: str
    build: Callable[[], PreTrainedModel]


def _bert(layers: int, width: int, heads: int, inner: int) -> PreTrainedModel:
    return BertForSequenceClassification(
        BertConfig(num_hidden_layers=layers, hidden_size=width, num_attention_heads=heads, intermediate_size=inner)
    )


def _static_embeddings() -> PreTrainedModel:
    """A student without cells: look-up, mean over tokens, linear. It stands for model2vec and its like."""
    macro = Macro(pooling="mean", position_embeddings=False, dropout=0.0)
    nothing = Architecture("static_embeddings", "0" * 16, (), STATIC_WIDTH, macro)
    config = AdasearchConfig(
        architecture=nothing.to_dict(), vocab_size=VOCAB_SIZE, max_position_embeddings=512, embedding_rank=None,
        num_labels=2, pad_token_id=0, sep_token_id=102,
    )  # fmt: skip
    return AdasearchForSequenceClassification(config)


REFERENCES: dict[str, Reference] = {
    "bert_base": Reference("BERT-base", "12 layers of width 768; Devlin et al. 2019", lambda: _bert(12, 768, 12, 3072)),
    "distilbert": Reference(
        "DistilBERT", "6 layers of width 768; Sanh et al. 2019",
        lambda: DistilBertForSequenceClassification(DistilBertConfig()),
    ),
    "tinybert4": Reference("TinyBERT-4-312", "4 layers of width 312; Jiao et al. 2020", lambda: _bert(4, 312, 12, 1200)),
    "minilm6": Reference("MiniLM-L6", "6 layers of width 384; Wang et al. 2020", lambda: _bert(6, 384, 12, 1536)),
    "static_embeddings": Reference(
        "static embeddings", f"{VOCAB_SIZE:,} vectors of width {STATIC_WIDTH}, their mean, linear: like model2vec",
        _static_embeddings,
    ),
}  # fmt: skip


def reference_label(name: str) -> str:
    """What a row of that shape is called: it says that the weights are random."""
    return f"{REFERENCES[name].label} shape (random weights, time only)"


def make_reference(name: str) -> PreTrainedModel:
    """The shape in eval mode, two labels, weights from a fixed seed; torch's generator is left alone.

    Raises ``ConfigError`` for an unknown name.
    """
    check_choice("reference", name, tuple(REFERENCES))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        return REFERENCES[name].build().eval()
