"""A language task as a run needs it: tokens of every split, and how a model is scored on them.

A causal model is scored by its perplexity on a stream of tokens, a sequence-to-sequence model by the ROUGE of what it
writes and its perplexity on the targets.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from accelerate import Accelerator
from torch import nn

from adasearch.corpora import find_corpus, find_pairs
from adasearch.errors import DataError
from adasearch.language import Seq2SeqPairs, TokenBlocks, tokenize_blocks, tokenize_pairs
from adasearch.perplexity import perplexity, target_perplexity
from adasearch.progress import Progress
from adasearch.quantgpt_config import QuantGptConfig
from adasearch.rouge import generate_texts, rouge, rouge_scorer
from adasearch.settings import check_range

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

GLANCE_TOKENS = 65_536  # of the validation stream that are scored while a model trains
GLANCE_PAIRS = 500


@dataclass(frozen=True)
class LanguageTask:
    """The splits by name ("train", "validation", and "test" where there is one) as tokens."""

    name: str
    splits: dict[str, TokenBlocks] | dict[str, Seq2SeqPairs]
    tokenizer: PreTrainedTokenizerBase
    config: QuantGptConfig
    is_causal: bool

    @property
    def metric(self) -> str:
        """What systems are compared by."""
        return "perplexity" if self.is_causal else "rougeL"

    @property
    def scored_split(self) -> str:
        """The split that nothing was chosen on, where there is one."""
        return "test" if "test" in self.splits else "validation"

    def score(self, model: nn.Module, accelerator: Accelerator, progress: Progress) -> dict[str, float]:
        """All metrics on ``scored_split``, in full."""
        config, examples = self.config, self.splits[self.scored_split]
        if isinstance(examples, TokenBlocks):
            progress.stage(f"score {len(examples.stream_T):,} tokens")
            return perplexity(
                model, examples.stream_T, block_length=config.block_length, stride=config.stride, words=examples.words, accelerator=accelerator
            )
        if config.eval_texts and config.eval_texts < len(examples):
            examples = examples.select(np.arange(config.eval_texts))
        texts = generate_texts(
            model, examples, self.tokenizer, max_new_tokens=config.target_length, num_beams=config.num_beams, progress=progress
        )
        return {**rouge(texts, examples.references), **target_perplexity(model, examples, accelerator=accelerator), "texts": len(texts)}

    def glance(self, model: nn.Module, accelerator: Accelerator) -> dict[str, float]:
        """Perplexity on a part of the validation split: what a training shows of itself, and what settings are chosen by."""
        examples = self.splits["validation"]
        if isinstance(examples, TokenBlocks):
            stream_T, length = examples.stream_T[:GLANCE_TOKENS], self.config.block_length
            found = perplexity(model, stream_T, block_length=length, stride=length, accelerator=accelerator)
        else:
            part = examples.select(np.arange(min(GLANCE_PAIRS, len(examples))))
            found = target_perplexity(model, part, accelerator=accelerator)
        return {"perplexity": found["perplexity"]}


def load_language_task(
    config: QuantGptConfig, model_config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase, *, cache: Path, progress: Progress
) -> LanguageTask:
    """The task for a model. Raises ``ConfigError`` and ``DataError`` before any text is tokenised, but for short data."""
    files = {split: getattr(config, f"{split}_file") for split in ("train", "validation", "test")}
    where: dict[str, Any] = {"files": files, "data_dir": config.data_dir}
    is_causal = not model_config.is_encoder_decoder
    positions = model_config.max_position_embeddings
    for name in ("block_length",) if is_causal else ("source_length", "target_length"):
        check_range(name, getattr(config, name), 2, positions)
    splits: dict[str, Any] = {}
    if is_causal:
        corpora = find_corpus(config.task, text_column=config.text_column, **where)
        _check_splits(config, corpora)
        for split, corpus in corpora.items():
            splits[split] = tokenize_blocks(corpus, tokenizer, config.block_length, cache=cache, name=split, progress=progress)
    else:
        rouge_scorer()  # before a training, not after it
        pairs = find_pairs(config.task, source_column=config.source_column, target_column=config.target_column, **where)
        _check_splits(config, pairs)
        lengths = (config.source_length, config.target_length)
        for split, texts in pairs.items():
            splits[split], cut = tokenize_pairs(texts, tokenizer, *lengths, cache=cache, name=split, progress=progress)
            if cut:
                progress.message(f"{split}: {cut:,} of {2 * len(texts):,} texts are cut to {lengths[0]} and {lengths[1]} tokens")
    return LanguageTask(config.task, splits, tokenizer, config, is_causal)


def _check_splits(config: QuantGptConfig, found: dict[str, Any]) -> None:
    if "validation" not in found:
        raise DataError(f"task: {config.task} has the splits {', '.join(found)}; expected: train, validation and perhaps test")
