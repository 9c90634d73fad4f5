"""Operations between two texts against naive loops, what they start from, and that they travel with a student.

That padding, width, cost and gradients are right is asked of every registered operation in ``test_operations.py``.
Dimensions: B batch, D width, L tokens, P perspectives.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from elsewhere import logits_without_adasearch
from tiny import context_of, randomise, tiny_macro
from torch import Tensor

from adasearch import export
from adasearch.architecture import Architecture, Edge
from adasearch.masked_norm import Context
from adasearch.operations import OPERATIONS, Operation
from adasearch.pair_operations import PERSPECTIVES
from adasearch.runtimes import OnnxRuntime
from adasearch.student import AdasearchConfig, AdasearchForSequenceClassification

D = 8
LENGTHS, SECONDS = [9, 5, 2, 4], [4, 2, 1, 0]  # the last has no second text
NEW = ("cross_attention", "pair_compare", "max_matching")
CLOSE = {"atol": 1e-5, "rtol": 1e-4}


def build(name: str, is_random: bool = True) -> Operation:
    operation = OPERATIONS[name](D, tiny_macro(norm="layer")).eval()
    if is_random:
        randomise(operation)
    return operation


def text(context: Context) -> Tensor:
    batch, _, length = context.mask_B1L.shape
    return context.clean(torch.randn(batch, D, length))


def others(t: int, length: int, second: int) -> list[int]:
    """The tokens of the text that token t is not of."""
    return [u for u in range(length) if (u >= length - second) != (t >= length - second)]


def mix(layer: torch.nn.Module, x_DL: Tensor) -> Tensor:
    return layer.weight[:, :, 0] @ x_DL


def reference(name: str, operation: Operation, x_DL: Tensor, second: int) -> Tensor:
    """One text, token by token, before the normalisation."""
    length, columns = x_DL.shape[1], []
    for t in range(length):
        x, seen = x_DL[:, t], others(t, length, second)
        own = [u for u in range(length) if u not in seen]
        if name == "cross_attention":
            aligned = torch.zeros(D)
            if seen:
                query, keys = mix(operation.query, x[:, None])[:, 0], mix(operation.key, x_DL[:, seen])
                aligned = x_DL[:, seen] @ (operation.sharpness * (query @ keys)).softmax(0)
            parts = ((operation.output, aligned), (operation.product, x * aligned), (operation.difference, x - aligned))
        elif name == "pair_compare":
            mine = x_DL[:, own].amax(1)
            theirs = x_DL[:, seen].amax(1) if seen else torch.zeros(D)
            parts = (
                (operation.token, x), (operation.other, theirs), (operation.product, mine * theirs),
                (operation.difference, (mine - theirs).abs()),
            )  # fmt: skip
        else:
            best = torch.zeros(PERSPECTIVES)
            for p, weight in enumerate(operation.perspectives if seen else ()):
                best[p] = max(F.cosine_similarity(weight * x, weight * x_DL[:, u], dim=0) for u in seen)
            parts = ((operation.token, x), (operation.match, best))
        columns.append(sum(mix(layer, vector[:, None])[:, 0] for layer, vector in parts))
    return torch.stack(columns, 1).relu()


@pytest.mark.parametrize("name", NEW)
@torch.no_grad()
def test_they_are_naive_loops(name: str) -> None:
    operation, context = build(name), context_of(LENGTHS, SECONDS, padding=2)
    x_BDL = text(context)
    y_BDL = operation(x_BDL, context)
    for b, (length, second) in enumerate(zip(LENGTHS, SECONDS)):
        expected_DL = reference(name, operation, x_BDL[b, :, :length], second)
        assert torch.allclose(y_BDL[b, :, :length], operation.norm(expected_DL[None], context_of([length]))[0], **CLOSE)


@torch.no_grad()
def test_cross_attention_starts_as_soft_alignment() -> None:
    cross, soft = build("cross_attention", is_random=False), build("soft_alignment", is_random=False)
    soft.load_state_dict({name: tensor for name, tensor in cross.state_dict().items() if name in soft.state_dict()})
    context = context_of(LENGTHS, SECONDS)
    x_BDL = text(context)
    assert torch.allclose(cross(x_BDL, context), soft(x_BDL, context), atol=1e-6)


@torch.no_grad()
def test_an_equal_word_matches_fully_from_every_side() -> None:
    operation, context = build("max_matching"), context_of([6], [3])
    words_DL = torch.randn(D, 3)
    x_BDL = torch.cat([words_DL, words_DL[:, torch.tensor([2, 0, 1])] * 3], 1)[None]  # longer, in another order
    assert torch.allclose(operation.matches(x_BDL, context), torch.ones(1, PERSPECTIVES, 6), atol=1e-5)
    assert not operation.matches(x_BDL, context_of([6])).any()


@pytest.mark.parametrize("name", NEW)
def test_both_texts_count_and_their_own_order_does_not(name: str) -> None:
    """Swapping the tokens of the other text changes nothing; changing one of them does."""
    operation, context = build(name), context_of([7], [3])
    x_BDL = text(context)
    y_BDL = operation(x_BDL, context)
    swapped_BDL = x_BDL[:, :, torch.tensor([0, 1, 2, 3, 5, 6, 4])]
    assert torch.allclose(operation(swapped_BDL, context)[:, :, :4], y_BDL[:, :, :4], **CLOSE)
    changed_BDL = x_BDL.clone()
    changed_BDL[:, :, 5] += 3
    assert not torch.allclose(operation(changed_BDL, context)[:, :, :4], y_BDL[:, :, :4], atol=1e-3)


def test_they_travel_with_a_student_and_export(tmp_path: Path) -> None:
    """All new operations and an inherited layer in one student: folder, graph, and a process without adasearch."""
    names = [*NEW, "inherited_50"]
    nodes = tuple((Edge(index + 1 if index else 0, name),) for index, name in enumerate(names))
    macro = tiny_macro(attention_head_size=32, teacher_size=48, teacher_heads=4, teacher_neurons=64)
    architecture = Architecture("test", "0", (nodes,), 32, macro)
    config = AdasearchConfig(architecture=architecture.to_dict(), vocab_size=60, max_position_embeddings=24, sep_token_id=3, num_labels=3)
    torch.manual_seed(0)
    student = AdasearchForSequenceClassification(config).eval()
    folder = export.save_student(student, None, tmp_path / "student")
    path = export.export_student(folder)  # compares with torch at many shapes
    ids = torch.tensor([[2, 8, 9, 3, 11, 3], [2, 59, 3, 0, 0, 0]])
    expected = student(ids).logits
    found = OnnxRuntime(path, 1)(ids.numpy(), (ids != 0).long().numpy())
    np.testing.assert_allclose(found, expected.detach().numpy(), atol=1e-5)
    assert torch.equal(logits_without_adasearch(folder, ids, tmp_path), expected)
