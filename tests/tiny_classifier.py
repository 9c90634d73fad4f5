"""A classifier's folder in miniature, and texts for it."""

from __future__ import annotations

import zlib
from pathlib import Path

import torch
from tiny_words import wrapped
from transformers import BertConfig, BertForSequenceClassification

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "good", "bad", "film", "very", ",", "the", "end"]
TEXTS = ["a good film", "bad", "the end , very very bad", "", "a very good , good film , the end", "null", 'say "film", end']


def make_classifier(
    folder: Path, problem_type: str = "single_label_classification", labels: int = 3, is_pair: bool | None = None
) -> Path:
    """A BERT of one layer, random weights and loud opinions, with a word tokenizer of 16 tokens at most."""
    names = ["input_ids", "token_type_ids", "attention_mask"]
    wrapped(WORDS, model_max_length=16, model_input_names=names).save_pretrained(folder)
    torch.manual_seed(zlib.crc32(folder.name.encode()))  # other names, other weights; the same whichever tests ran before
    config = BertConfig(
        vocab_size=len(WORDS), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=16, num_labels=labels, problem_type=problem_type, initializer_range=1.0,
        id2label=dict(enumerate(["neg", "neu", "pos"][:labels])),
    )  # fmt: skip
    if is_pair is not None:
        config.is_pair = is_pair
    BertForSequenceClassification(config).save_pretrained(folder)
    return folder
