"""Tiny spaces, configs, batches and gates that the tests of the core share.

Dimensions: B batch, L tokens.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from adasearch.architecture import Architecture, Edge, Macro, Space
from adasearch.gates import gates_of
from adasearch.masked_norm import Context
from adasearch.student import AdasearchConfig
from adasearch.supernet import Supernet

PAD, CLS, SEP, VOCAB = 0, 1, 2, 30
HEAD_SIZE = 4  # so that widths 8 and 12 have two and three heads
WIDTHS = (8, 12)


def tiny_macro(**changes: Any) -> Macro:
    """A macro shape with heads small enough for tiny widths; dropout off, so that training mode is deterministic."""
    teacher = {"teacher_size": 10, "teacher_heads": 5, "teacher_neurons": 14}
    return Macro(**{"attention_head_size": HEAD_SIZE, "dropout": 0.0, **teacher, **changes})


def tiny_space(macro: dict[str, Any] | None = None, **changes: Any) -> Space:
    """A sampled-edge space of 1 to 3 cells; every argument of Space and Macro may be changed."""
    operations = ("conv3", "dilated_sep_conv3", "gated_conv3", "self_attention", "max_pool3", "avg_pool3", "skip")
    settings = {
        "operations": operations,
        "widths": WIDTHS,
        "cells": (1, 3),
        "nodes": 2,
        "sample_edges": True,
        **changes,
    }
    return Space("tiny", **settings, macro=tiny_macro(**(macro or {})))


def tiny_config(architecture: Architecture | None = None, **changes: Any) -> AdasearchConfig:
    """A configuration with a vocabulary of 30, three labels, a teacher's table of width 6."""
    settings: dict[str, Any] = {
        "vocab_size": VOCAB,
        "max_position_embeddings": 24,
        "embedding_rank": 6,
        "num_labels": 3,
    }
    settings |= {"sep_token_id": SEP, "pad_token_id": PAD, **changes}
    return AdasearchConfig(architecture=None if architecture is None else architecture.to_dict(), **settings)


def tiny_architecture(width: int = 8, cells: int = 2, **macro: Any) -> Architecture:
    """A fixed architecture with operations of every family, in which node 1 uses node 0."""
    first = (Edge(0, "conv3"), Edge(1, "self_attention"))
    second = (Edge(1, "max_pool3"), Edge(2, "gated_conv3"))
    return Architecture("tiny", "0" * 16, ((first, second),) * cells, width, tiny_macro(**macro))


def texts(*lengths: int | tuple[int, int]) -> list[list[int]]:
    """Random ``[CLS] a [SEP]`` of n tokens in all or, for a pair (n, m), ``[CLS] a [SEP] b [SEP]`` of n + m tokens."""

    def words(count: int) -> list[int]:
        return torch.randint(SEP + 1, VOCAB, (count,)).tolist()

    rows = []
    for length in lengths:
        first, second = length if isinstance(length, tuple) else (length, 0)
        rows.append([CLS, *words(first - 2), SEP] + ([*words(second - 1), SEP] if second else []))
    return rows


def batch_of(rows: list[list[int]], padding: int = 0) -> tuple[Tensor, Tensor]:
    """Ids and mask (B, L) of the rows, with ``padding`` more columns than the longest needs."""
    width = max(map(len, rows)) + padding
    ids_BL = torch.tensor([row + [PAD] * (width - len(row)) for row in rows])
    mask_BL = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    return ids_BL, mask_BL


def context_of(
    lengths: list[int], seconds: list[int] | None = None, keep_D: Tensor | None = None, padding: int = 0
) -> Context:
    """The context of texts of those lengths, of which the last ``seconds[b]`` tokens are the second text."""
    columns_L = torch.arange(max(lengths) + padding)
    length_B1 = torch.tensor(lengths)[:, None]
    real_BL = columns_L < length_B1
    second_BL = real_BL & (columns_L >= length_B1 - torch.tensor(seconds or [0] * len(lengths))[:, None])
    return Context(real_BL[:, None].float(), second_BL, keep_D)


@torch.no_grad()
def randomise(module: nn.Module) -> None:
    """Edit in place: every parameter, running statistic and gate random, so that nothing agrees by chance."""
    for parameter in module.parameters():
        parameter.copy_(torch.randn_like(parameter) * (0.5 if parameter.ndim > 1 else 1.0))
    for name, buffer in module.named_buffers():
        if name.endswith("running_mean"):
            buffer.copy_(torch.randn_like(buffer) * 0.3)
        elif name.endswith("running_var"):
            buffer.copy_(torch.rand_like(buffer) + 0.5)
    for gate in gates_of(module):
        gate.logits.copy_(torch.randn_like(gate.logits))


def random_supernet(space: Space, **config: Any) -> Supernet:
    """A supernet in eval whose weights, statistics and gates are all random."""
    supernet = Supernet(space, tiny_config(**config))
    randomise(supernet)
    return supernet.eval()


def without(architecture: Architecture, **changes: Any) -> dict[str, Any]:
    """The architecture's JSON data with keys changed, or left out where the value is ``...``."""
    data = {**architecture.to_dict(), **changes}
    return {key: value for key, value in data.items() if value is not ...}


@torch.no_grad()
def make_certain(supernet: Supernet, depth: int, width: int) -> None:
    """Edit in place: every gate puts probability 1 (exactly) on one choice; depth and width on the given."""
    for gate in gates_of(supernet):
        flat = gate.logits.view(-1, gate.logits.shape[-1])
        order = torch.rand_like(flat).argsort(-1)
        flat.copy_(-200.0 * order)  # exp(-200) is 0 in float32
    for gate, choice in ((supernet.depth_gate, depth), (supernet.width_gate, width)):
        if gate is not None:
            gate.logits.fill_(-200.0)
            gate.logits[0, gate.choices.index(choice)] = 0.0
