"""The losses of language models, against sums written out and autograd."""

from __future__ import annotations

import math

import pytest
import torch
from transformers.models.bart.modeling_bart import shift_tokens_right

from adasearch.language_objectives import UNSCORED, next_token_loss, shift_right, soft_cross_entropy


def test_next_token_loss_is_the_mean_of_the_scored_tokens_written_out() -> None:
    logits_BLV = torch.randn(2, 4, 5, generator=torch.Generator().manual_seed(0))
    labels_BL = torch.tensor([[1, 2, 3, 4], [0, UNSCORED, 2, UNSCORED]])
    log_BLV = logits_BLV.log_softmax(-1)
    causal = [log_BLV[0, 0, 2], log_BLV[0, 1, 3], log_BLV[0, 2, 4], log_BLV[1, 1, 2]]  # token l predicts l + 1
    aligned = [log_BLV[0, i, label] for i, label in enumerate((1, 2, 3, 4))] + [log_BLV[1, 0, 0], log_BLV[1, 2, 2]]
    assert next_token_loss(logits_BLV, labels_BL, is_shifted=False).item() == pytest.approx(-sum(causal).item() / 4, rel=1e-6)
    assert next_token_loss(logits_BLV, labels_BL, is_shifted=True).item() == pytest.approx(-sum(aligned).item() / 6, rel=1e-6)


def test_a_batch_without_scored_tokens_costs_nothing_and_gives_no_nan() -> None:
    logits_BLV = torch.randn(1, 3, 5, requires_grad=True)
    loss = next_token_loss(logits_BLV, torch.full((1, 3), UNSCORED), is_shifted=True)
    loss.backward()
    assert loss.item() == 0 and logits_BLV.grad.abs().max() == 0


def test_the_loss_is_computed_in_float32() -> None:
    """In bfloat16 the loss of 64 equal logits would be off by up to half of 2^-8 of its size: 0.008 of ln 64."""
    logits_BLV = torch.full((1, 2, 61), 3.0, dtype=torch.bfloat16)
    loss = next_token_loss(logits_BLV, torch.tensor([[5, 7]]), is_shifted=True)
    assert loss.dtype == torch.float32 and loss.item() == pytest.approx(math.log(61), abs=1e-5)


def test_soft_cross_entropy_has_the_gradient_of_the_divergence() -> None:
    generator = torch.Generator().manual_seed(1)
    student_BLV = torch.randn(2, 3, 6, generator=generator, requires_grad=True)
    teacher_BLV = torch.randn(2, 3, 6, generator=generator)
    mask_BL = torch.tensor([[1, 1, 0], [1, 0, 0]])
    loss = soft_cross_entropy(student_BLV, teacher_BLV, mask_BL)
    (gradient,) = torch.autograd.grad(loss, student_BLV)
    # the gradient of KL at a token: softmax(student) - softmax(teacher); the mean is over three tokens
    expected = (student_BLV.softmax(-1) - teacher_BLV.softmax(-1)).detach() * mask_BL[..., None] / 3
    torch.testing.assert_close(gradient, expected, atol=1e-7, rtol=1e-5)


def test_soft_cross_entropy_is_torchs_over_more_tokens_than_are_taken_at_a_time() -> None:
    generator = torch.Generator().manual_seed(3)
    student_BLV = torch.randn(3, 30, 6, generator=generator, requires_grad=True)
    teacher_BLV = torch.randn(3, 30, 6, generator=generator)
    found = soft_cross_entropy(student_BLV, teacher_BLV, torch.ones(3, 30))
    expected = torch.nn.functional.cross_entropy(student_BLV.flatten(0, 1), teacher_BLV.flatten(0, 1).softmax(-1))
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(*(torch.autograd.grad(loss, student_BLV)[0] for loss in (found, expected)))


def test_soft_cross_entropy_of_a_model_with_itself_is_its_entropy() -> None:
    logits_BLV = torch.randn(2, 3, 6, generator=torch.Generator().manual_seed(2))
    p = logits_BLV.softmax(-1)
    own = soft_cross_entropy(logits_BLV, logits_BLV, torch.ones(2, 3)).item()
    assert own == pytest.approx(-(p * p.log()).sum(-1).mean().item(), rel=1e-6)
    assert soft_cross_entropy(logits_BLV, logits_BLV, torch.zeros(2, 3)).item() == 0


def test_shift_right_is_what_bart_reads() -> None:
    labels_BL = torch.tensor([[5, 6, 7, 2], [8, 2, UNSCORED, UNSCORED]])
    assert shift_right(labels_BL, 2, 1).tolist() == [[2, 5, 6, 7], [2, 8, 2, 1]]
    assert torch.equal(shift_right(labels_BL, 2, 1), shift_tokens_right(labels_BL.clone(), 1, 2))
