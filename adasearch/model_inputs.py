"""What a transformer can be given, as its config says: segment ids, so many positions, so many kinds of tokens.

Dimensions: B batch, L tokens.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from adasearch.errors import ConfigError, ModelError

# model types whose table of positions begins at padding id + 1, as RoBERTa's; our own encoder's config says so itself
COUNTS_FROM_PADDING = (
    "camembert", "data2vec-text", "esm", "ibert", "layoutlmv3", "lilt", "longformer", "luke", "markuplm", "mpnet", "roberta",
    "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "xmod",
)  # fmt: skip

LAST_READERS = ("xlnet",)  # model types whose head reads the last position, whatever stands there


def pads_left(config: PreTrainedConfig) -> bool:
    """Whether texts are filled up before their first token: where the head reads the last position.

    Tokenizers of causal models pad left as well, for generating; of a classifier that only moves the positions, by as much as
    the longest text of the batch says.
    """
    return config.model_type in LAST_READERS


def uses_token_types(config: PreTrainedConfig) -> bool:
    """Whether token type ids change what the model says: it has embeddings for more than one type."""
    return (getattr(config, "type_vocab_size", 0) or 0) > 1


def segment_ids(input_ids: Tensor, tokenizer: PreTrainedTokenizerBase, *, is_pair: bool) -> Tensor:
    """Token types (B, L) int64 of ids (B, L): of pairs 1 after the first separator, 0 before it and at padding; 0 of single texts.

    The only place where they are made: a tokenizer may name none, though its model was trained with two. Tokenizers take "[SEP]"
    in a text for the separator: it begins no second text in a single one; in the first text of a pair it would, one too early,
    unless the tokenizer is ``read_literally``.
    """
    if not is_pair:
        return torch.zeros_like(input_ids)
    is_sep_BL = input_ids.eq(-1 if tokenizer.sep_token_id is None else tokenizer.sep_token_id).long()
    second_BL = (is_sep_BL.cumsum(1) - is_sep_BL) > 0
    return (second_BL & (input_ids != tokenizer.pad_token_id)).long()


def positions_of(config: PreTrainedConfig) -> int | None:
    """The most tokens that a model has positions for; None where its config sets no limit."""
    rows = getattr(config, "max_position_embeddings", None)
    if not rows or rows < 0:
        return None
    is_counted = config.model_type in COUNTS_FROM_PADDING
    return rows - (config.pad_token_id + 1 if is_counted else getattr(config, "position_offset", 0))


def check_separator(setting: str, name: str, tokenizer: PreTrainedTokenizerBase, task: str) -> None:
    """Raise ``ModelError`` where a tokenizer, that of the model called ``name``, which ``setting`` chose, joins two texts as if they were one.

    A student finds the second text by the separator: without one its operations of pairs would see nothing. ``task`` asks for pairs.
    """
    if tokenizer.sep_token_id is None or tokenizer.sep_token_id not in tokenizer("a", "b")["input_ids"]:
        raise ModelError(
            f"{setting}: {name!r}: its tokenizer puts no separator between two texts, and {task} is of pairs; choices: a model whose"
            " tokenizer does, as BERT's and RoBERTa's, or single texts"
        )


def read_literally(tokenizer: PreTrainedTokenizerBase) -> None:
    """Edit in place: "[SEP]" and other special tokens that are written in a text are text, here and wherever it is saved to.

    For pairs, whose second text is found by the separator. Single texts keep what Hugging Face reads: some people join a title and a
    text by "[SEP]" on purpose. A SentencePiece vocabulary that lists its special tokens among its pieces finds them in spite of this.
    """
    tokenizer.split_special_tokens = True
    tokenizer.init_kwargs["split_special_tokens"] = True  # what is saved


def limited_tokenizer(tokenizer: PreTrainedTokenizerBase, most: int | None) -> PreTrainedTokenizerBase:
    """A copy to be saved beside a model, which cuts texts at ``most`` word pieces where it did not cut them earlier; None: as it is."""
    limited = copy.deepcopy(tokenizer)
    limited.model_max_length = min(limited.model_max_length, most or limited.model_max_length)
    return limited


def check_positions(setting: str, length: int, name: str, config: PreTrainedConfig) -> None:
    """Raise ``ConfigError`` where ``setting`` allows texts of more word pieces than the model called ``name`` has positions for."""
    most = positions_of(config)
    if most is not None and length > most:
        raise ConfigError(f"{setting}: {length}: model {name!r} has positions for {most}; choices: up to {most}")


def check_vocabulary(setting: str, name: str, tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig) -> None:
    """Raise ``ModelError`` where a tokenizer knows more tokens than its model, called ``name``, which ``setting`` chose, has rows for."""
    if len(tokenizer) > config.vocab_size:
        raise ModelError(
            f"{setting}: {name!r} has {config.vocab_size} embeddings, its tokenizer {len(tokenizer)} tokens; choices: a model that was"
            " resized to its tokenizer"
        )
