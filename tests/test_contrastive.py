"""The contrastive loss against a plain loop, its gradient against differences, the bank against hand-worked averages."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from adasearch.contrastive import TokenBank, contrastive_loss

TEMPERATURE = 0.1


def states(seed: int = 0, length: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    """Student's and teacher's states of two sequences in float64, the second with two tokens of padding."""
    generator = torch.Generator().manual_seed(seed)
    student_BLD, teacher_BLD = (torch.randn(2, length, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    mask_BL = torch.ones(2, length, dtype=torch.bool)
    mask_BL[1, -2:] = False
    return student_BLD, teacher_BLD, mask_BL


def cosine(a_D: Tensor, b_D: Tensor) -> float:
    return float(a_D @ b_D / math.sqrt(a_D @ a_D) / math.sqrt(b_D @ b_D))


def by_loop(student_BLD: Tensor, teacher_BLD: Tensor, mask_BL: Tensor, others_BLD: Tensor) -> float:
    """Mean of -log(e^(s+ / t) / (e^(s+ / t) + sum of e^(s- / t))), one token at a time."""
    losses = []
    for b, sequence in enumerate(mask_BL.tolist()):
        places = [place for place, is_taught in enumerate(sequence) if is_taught]
        for i in places:
            positive = math.exp(cosine(student_BLD[b, i], teacher_BLD[b, i]) / TEMPERATURE)
            negatives = sum(math.exp(cosine(student_BLD[b, i], others_BLD[b, j]) / TEMPERATURE) for j in places if j != i)
            losses.append(-math.log(positive / (positive + negatives)))
    return sum(losses) / len(losses)


@pytest.mark.parametrize("negatives", ["teacher", "student"])
def test_loss_equals_a_plain_loop(negatives: str) -> None:
    student_BLD, teacher_BLD, mask_BL = states()
    others_BLD = teacher_BLD if negatives == "teacher" else student_BLD
    found = contrastive_loss(student_BLD, teacher_BLD, mask_BL, temperature=TEMPERATURE, negatives=negatives)
    # float32 inside, exponents up to 10
    assert float(found) == pytest.approx(by_loop(student_BLD, teacher_BLD, mask_BL, others_BLD), rel=1e-5)


def test_gradient_equals_differences_of_the_loop_and_negatives_of_the_student_are_constants() -> None:
    student_BLD, teacher_BLD, mask_BL = states()
    for others_BLD, negatives in ((teacher_BLD, "teacher"), (student_BLD.clone(), "student")):
        moved_BLD = student_BLD.clone().requires_grad_()
        contrastive_loss(moved_BLD, teacher_BLD, mask_BL, temperature=TEMPERATURE, negatives=negatives).backward()
        for place in ((0, 0, 0), (0, 3, 2), (1, 2, 1), (1, 4, 0)):  # the last is padding
            step_BLD = torch.zeros_like(student_BLD)
            step_BLD[place] = 1e-5
            ends = [by_loop(student_BLD + sign * step_BLD, teacher_BLD, mask_BL, others_BLD) for sign in (1, -1)]
            assert float(moved_BLD.grad[place]) == pytest.approx((ends[0] - ends[1]) / 2e-5, abs=1e-4), (negatives, place)


def test_vocabulary_negatives_are_rows_of_the_table() -> None:
    student_BLD, teacher_BLD, mask_BL = states()
    row_D = torch.randn(4, dtype=torch.float64)
    found = contrastive_loss(
        student_BLD, teacher_BLD, mask_BL, temperature=TEMPERATURE, negatives="vocabulary", negatives_count=3, table_VD=row_D[None]
    )
    losses = []
    for b, i in mask_BL.nonzero().tolist():
        positive = math.exp(cosine(student_BLD[b, i], teacher_BLD[b, i]) / TEMPERATURE)
        negatives = 3 * math.exp(cosine(student_BLD[b, i], row_D) / TEMPERATURE)  # a table of one row: drawn three times
        losses.append(-math.log(positive / (positive + negatives)))
    assert float(found) == pytest.approx(sum(losses) / len(losses), rel=1e-5)


def test_a_count_of_negatives_draws_so_many_other_tokens() -> None:
    teacher_BLD = torch.eye(6)[None]
    query_BLD = torch.ones(1, 6, 6)  # as near to every token: the loss counts the candidates
    mask_BL = torch.ones(1, 6, dtype=torch.bool)
    for count in (1, 3, 5, 100):
        found = contrastive_loss(query_BLD, teacher_BLD, mask_BL, negatives_count=count)
        assert float(found) == pytest.approx(math.log(1 + min(count, 5)), rel=1e-5)
    mask_BL[0, 2:] = False  # two tokens are left: one negative, whatever is asked for
    assert float(contrastive_loss(query_BLD, teacher_BLD, mask_BL, negatives_count=3)) == pytest.approx(math.log(2), rel=1e-5)


def test_no_token_and_no_negative_cost_nothing_and_give_no_nan() -> None:
    student_BLD, teacher_BLD, mask_BL = states()
    student_BLD = torch.zeros_like(student_BLD).requires_grad_()  # a vector without a direction
    for mask in (torch.zeros_like(mask_BL), torch.zeros_like(mask_BL).index_fill_(1, torch.tensor([1]), True)):
        loss = contrastive_loss(student_BLD, teacher_BLD, mask)
        loss.backward()
        assert loss.item() == 0 and torch.isfinite(student_BLD.grad).all()
    contrastive_loss(student_BLD, teacher_BLD, mask_BL).backward()
    assert torch.isfinite(student_BLD.grad).all()


def test_the_bank_averages_with_what_it_remembers() -> None:
    bank = TokenBank(3, 2, momentum=0.75)
    first_SD = torch.tensor([[1.0, 2.0], [3.0, 4.0]], requires_grad=True)
    assert torch.equal(bank(torch.tensor([0, 2]), first_SD), first_SD)  # nothing is remembered yet
    second_SD = torch.tensor([[5.0, 6.0], [7.0, 8.0]], requires_grad=True)
    mixed_SD = bank(torch.tensor([0, 1]), second_SD)
    expected_SD = torch.tensor([[0.75 * 1 + 0.25 * 5, 0.75 * 2 + 0.25 * 6], [7.0, 8.0]])
    torch.testing.assert_close(mixed_SD, expected_SD)
    mixed_SD.sum().backward()
    torch.testing.assert_close(second_SD.grad, torch.tensor([[0.25, 0.25], [1.0, 1.0]]))  # through the state alone
    torch.testing.assert_close(bank.states_KD, torch.stack([expected_SD[0], torch.tensor([7.0, 8.0]), torch.tensor([3.0, 4.0])]))
    assert bank.known_share == 1.0


def test_a_key_that_stands_twice_remembers_the_mean() -> None:
    bank = TokenBank(2, 1, momentum=0.5)
    bank(torch.tensor([1, 1, 0]), torch.tensor([[2.0], [4.0], [9.0]]))
    assert bank.states_KD.flatten().tolist() == [9.0, 3.0]


def test_a_state_too_large_for_half_precision_is_remembered_as_the_largest() -> None:
    bank = TokenBank(1, 1, momentum=0.5, dtype=torch.float16)
    bank(torch.tensor([0]), torch.tensor([[1e6]]))
    assert torch.isfinite(bank(torch.tensor([0]), torch.tensor([[1.0]]))).all()


@pytest.mark.parametrize("negatives", ["teacher", "student", "vocabulary"])
def test_mixed_precision_does_not_round_the_products(negatives: str) -> None:
    """States that are much alike differ by less than bfloat16 can tell."""
    student_BLD, teacher_BLD, mask_BL = (tensor if tensor.dtype == torch.bool else tensor.float() for tensor in states())
    alike = [tensor * 0.05 + torch.ones(4) for tensor in (student_BLD, teacher_BLD)]
    found = []
    for is_mixed in (False, True):
        torch.manual_seed(0)
        with torch.autocast("cpu", torch.bfloat16, enabled=is_mixed):
            found.append(contrastive_loss(*alike, mask_BL, temperature=TEMPERATURE, negatives=negatives, table_VD=torch.randn(9, 4)))
    assert torch.equal(*found)
