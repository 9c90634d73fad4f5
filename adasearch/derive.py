"""From a trained supernet to one architecture, by trying its members instead of trusting its probabilities.

Gates tell well what is cheap and, after a short search, less well what is good: the most probable operation of each
edge is often the cheapest of near equals. So members are drawn from the gates, each is run with the supernet's
weights on the same texts, and the one whose loss and cost are least is kept (Guo et al. 2020, single-path one-shot;
Wang et al. 2021, who show that a gate's size tells little of an operation's worth).
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from adasearch.architecture import Architecture
from adasearch.methods.adabert import AdaBert
from adasearch.progress import Progress
from adasearch.shrink import shrink
from adasearch.student import AdasearchForSequenceClassification
from adasearch.supernet import Supernet, architecture_cost
from adasearch.tokens import Examples

TEXTS = 1_024  # on which members are compared; all see the same, so their differences are far less noisy than their losses
BATCH = 128


def derive(supernet: Supernet, method: AdaBert, examples: Examples, seed: int, progress: Progress) -> Architecture:
    """The best of the decided member and ``method.config.candidates`` drawn ones, on up to ``TEXTS`` of ``examples``.

    Batch statistics are those of the texts at hand (the supernet's running ones belong to no member). The supernet is
    left as it was. A pure function of weights, examples and seed.
    """
    decided = supernet.decide(seed)
    if method.config.derive == "argmax":
        return decided
    generator = np.random.default_rng((seed, 0xDE21))
    chosen = generator.permutation(len(examples))[:TEXTS]
    texts = examples.select(chosen[np.argsort(examples.tokens.lengths[chosen], kind="stable")])
    members = list(dict.fromkeys([decided, *(supernet.sample(generator, seed) for _ in range(method.config.candidates))]))
    progress.stage("compare members", len(members))
    best, least = decided, float("inf")
    for done, member in enumerate(members, start=1):
        loss = member_loss(shrink(supernet, member), method, texts, max(supernet.space.widths))
        total = loss + method.member_penalty(architecture_cost(member, method.length))
        if total < least:
            best, least = member, total
        progress.step(done, loss=loss, best=least)
    return best


@torch.no_grad()
def member_loss(student: AdasearchForSequenceClassification, method: AdaBert, texts: Examples, widest: int) -> float:
    """Mean loss of a member against labels and teacher, without dropout, with the batches' own statistics; ``widest`` is the supernet's."""
    student.train()
    for module in student.modules():
        if isinstance(module, nn.Dropout):
            module.eval()
    total = 0.0
    for start in range(0, len(texts), BATCH):
        indices = np.arange(start, min(start + BATCH, len(texts)))
        batch = texts.collate(indices)
        output = student(batch["input_ids"], batch["attention_mask"])
        # a narrower member's levels are the leading channels of the supernet's, whose others would be zero
        levels = [F.pad(level, (0, widest - level.shape[1])) for level in output.hidden_states[:-1]]
        terms = method.objective(output.logits, levels, batch)
        total += float(sum(terms.values())) * len(indices)
    return total / len(texts)
