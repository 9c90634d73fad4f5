"""How members of a space are compared: by their loss on texts that neither they nor the supernet have learned from.

On texts that a supernet has learned from its loss told nothing of a member: on MRPC its rank correlation with the loss on new texts
was -0.03, while one half of the new texts ranked members as the other did (0.97; results/LOG.md).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from adasearch.objectives import Distillation
from adasearch.tokens import Examples

if TYPE_CHECKING:
    from adasearch.search_method import SearchMethod
    from adasearch.student import AdasearchForSequenceClassification

TEXTS = 512  # members are compared on at most; all see the same, so their differences are far less noisy than their losses
BATCH = 128


def comparison_texts(examples: Examples, seed: int) -> Examples:
    """At most ``TEXTS`` of the examples, drawn at random and sorted by length."""
    chosen = np.random.default_rng((seed, 0xDE21)).permutation(len(examples))[:TEXTS]
    return examples.select(chosen[np.argsort(examples.tokens.lengths[chosen], kind="stable")])


@contextmanager
def batch_statistics(model: nn.Module) -> Iterator[None]:
    """Each batch's own statistics in normalisation, without dropout: a supernet's running ones belong to no member."""
    model.train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.eval()
    try:
        yield
    finally:
        model.eval()


@torch.no_grad()
def member_loss(student: AdasearchForSequenceClassification, method: SearchMethod, texts: Examples, is_trained: bool = False) -> float:
    """Mean loss of a member against labels and the teacher's final logits.

    ``is_trained``: it was trained alone and is in eval mode; else it was cut out of a supernet, and each batch's own statistics
    are used.
    """
    if not is_trained:
        with batch_statistics(student):
            return member_loss(student, method, texts, is_trained=True)
    distill = dataclasses.replace(method.distill, probe_weight=0.0)
    objective = Distillation(distill, method.problem_type, method.num_labels, 1, 1)
    total = 0.0
    # parts of equal size: the statistics of a last batch of one text would say nothing of it
    for indices in np.array_split(np.arange(len(texts)), max(1, round(len(texts) / BATCH))):
        batch = texts.collate(indices)
        terms = objective(student(batch["input_ids"], batch["attention_mask"]).logits, [], batch)
        total += float(sum(terms.values())) * len(indices)
    return total / len(texts)
