"""Generated texts and how much of the reference they hold: ROUGE by the package ``rouge-score``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from adasearch.errors import ConfigError, DataError
from adasearch.language import Seq2SeqPairs
from adasearch.progress import Progress

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

KINDS = ("rouge1", "rouge2", "rougeL")


def rouge(predictions: Sequence[str], references: Sequence[str], *, use_stemmer: bool = True) -> dict[str, float]:
    """Mean F measures x 100: rouge1, rouge2, rougeL and, where a reference has several lines, rougeLsum.

    Lin 2004, as the package ``rouge-score`` computes it (the reference in Python of the Perl script; ``use_stemmer`` as
    papers on summaries have it). Raises ``ConfigError`` when the package is not installed, ``DataError`` when there is
    nothing to score or the counts differ.
    """
    if len(predictions) != len(references) or not references:
        raise DataError(f"rouge: {len(predictions)} predictions for {len(references)} references; expected: as many, and some")
    kinds = KINDS + (("rougeLsum",) if any("\n" in reference.strip() for reference in references) else ())
    scorer = rouge_scorer().RougeScorer(list(kinds), use_stemmer=use_stemmer)
    rows = [scorer.score(reference, prediction) for prediction, reference in zip(predictions, references)]
    return {kind: 100 * float(np.mean([row[kind].fmeasure for row in rows])) for kind in kinds}


def rouge_scorer() -> Any:
    """The package's module. Raises ``ConfigError`` when it is not installed: worth calling before a training."""
    try:
        from rouge_score import rouge_scorer as module  # NLTK comes with it, a second to import
    except ModuleNotFoundError as error:
        raise ConfigError("rouge: 'rouge-score' is not installed; pip install 'adasearch[generation]'") from error
    return module


@torch.inference_mode()
def generate_texts(
    model: nn.Module,
    pairs: Seq2SeqPairs,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_new_tokens: int,
    num_beams: int = 1,
    batch_size: int = 32,
    progress: Progress | None = None,
) -> list[str]:
    """What a sequence-to-sequence model writes for each source, in the pairs' order; greedy with one beam, never sampled."""
    was_training, device = model.training, next(model.parameters()).device
    texts = [""] * len(pairs)
    progress = progress or Progress()
    progress.stage(f"generate {len(pairs):,} texts", total=len(pairs))
    model.eval()
    done = 0
    for indices, batch in pairs.in_order(batch_size):
        ids_BL = model.generate(
            input_ids=batch["input_ids"].to(device),
            attention_mask=batch["attention_mask"].to(device),
            max_new_tokens=max_new_tokens,
            num_beams=num_beams,
            do_sample=False,
        )
        for index, text in zip(indices, tokenizer.batch_decode(ids_BL, skip_special_tokens=True)):
            texts[index] = text.strip()
        done += len(indices)
        progress.step(done)
    model.train(was_training)
    return texts
