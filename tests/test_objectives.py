"""Laws of what a student is taught. References: torch's losses and distributions, a batch of two worked by hand.

Dimensions: B batch, C labels, P levels, D width.
"""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import Bernoulli, Categorical, kl_divergence

from adasearch.config import DistillConfig
from adasearch.objectives import DISTILLATION_LOSSES, Distillation, kl_loss, known, probe_weights, task_loss, teacher_level
from adasearch.teaching import teaching_terms

B, C, D = 5, 3, 4
PROBLEMS = ("single_label", "multi_label", "regression")
EVERY = pytest.mark.parametrize("name", list(DISTILLATION_LOSSES))
TYPES = pytest.mark.parametrize("problem_type", PROBLEMS)


def logits_of(problem_type: str) -> Tensor:
    return 2 * torch.randn(B, 1 if problem_type == "regression" else C)


def labels_of(problem_type: str) -> Tensor:
    choices = {"single_label": torch.randint(0, C, (B,)), "multi_label": torch.randint(0, 2, (B, C)).float()}
    return choices.get(problem_type, torch.randn(B))


def unknown_first(labels: Tensor) -> Tensor:
    """The labels with the first example's unknown."""
    labels = labels.clone()
    labels[0] = math.nan if labels.is_floating_point() else -100
    return labels


def distillation(problem_type: str = "single_label", deepest: int = 3, **config: float | str) -> Distillation:
    return Distillation(DistillConfig(**config), problem_type, 1 if problem_type == "regression" else C, D, deepest)


@EVERY
@TYPES
@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_nothing_is_learnt_from_oneself(name: str, problem_type: str, temperature: float) -> None:
    teacher = logits_of(problem_type)
    student, other = teacher.clone().requires_grad_(), logits_of(problem_type)
    loss_B = DISTILLATION_LOSSES[name](student, teacher, problem_type, temperature)
    loss_B.sum().backward()
    assert loss_B.shape == (B,) and loss_B.abs().max() < 1e-6 and student.grad.abs().max() < 1e-6
    assert (DISTILLATION_LOSSES[name](other, teacher, problem_type, temperature) > 1e-4).all()


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_kl_is_that_of_the_softened_distributions(temperature: float) -> None:
    kl, student, teacher = DISTILLATION_LOSSES["kl"], torch.randn(B, C), torch.randn(B, C)
    soft = [{"logits": logits / temperature} for logits in (teacher, student)]
    reference = kl_divergence(*(Categorical(**s) for s in soft)) * temperature**2
    assert torch.allclose(kl(student, teacher, "single_label", temperature), reference, atol=1e-5)
    reference = kl_divergence(*(Bernoulli(**s) for s in soft)).mean(-1) * temperature**2
    assert torch.allclose(kl(student, teacher, "multi_label", temperature), reference, atol=1e-5)
    assert torch.allclose(kl(student[:, :1], teacher[:, :1], "regression"), (student - teacher)[:, 0] ** 2)


def test_mse_does_not_see_what_a_softmax_does_not_see() -> None:
    mse, student, teacher = DISTILLATION_LOSSES["mse"], torch.randn(B, C), torch.randn(B, C)
    shift_B1 = torch.randn(B, 1)
    assert torch.allclose(
        mse(student + shift_B1, teacher, "single_label"), mse(student, teacher, "single_label"), atol=1e-5
    )
    difference = student - teacher
    assert torch.allclose(mse(student, teacher, "single_label"), difference.var(-1, correction=0), atol=1e-6)
    assert torch.allclose(mse(student, teacher, "multi_label"), F.mse_loss(student, teacher, reduction="none").mean(-1))


@TYPES
def test_task_losses_are_those_of_torch_and_zero_where_unknown(problem_type: str) -> None:
    logits, labels = logits_of(problem_type).requires_grad_(), labels_of(problem_type)
    reference = {
        "single_label": lambda: F.cross_entropy(logits, labels, reduction="none"),
        "multi_label": lambda: F.binary_cross_entropy_with_logits(logits, labels, reduction="none").mean(-1),
        "regression": lambda: F.mse_loss(logits[:, 0], labels, reduction="none"),
    }[problem_type]()
    assert torch.allclose(task_loss(logits, labels, problem_type), reference)
    partly = unknown_first(labels)
    assert known(partly).tolist() == [False] + [True] * (B - 1) and known(labels).all()
    loss_B = task_loss(logits, partly, problem_type)
    assert torch.allclose(loss_B[1:], reference[1:]) and loss_B[0] == 0
    loss_B.sum().backward()
    assert not logits.grad[0].any() and logits.grad.isfinite().all() and logits.grad[1:].any()


@TYPES
def test_gamma_zero_is_plain_training(problem_type: str) -> None:
    logits, labels = logits_of(problem_type), labels_of(problem_type)
    batch = {"labels": labels, "teacher_logits": logits_of(problem_type)}
    terms = distillation(problem_type, gamma=0.0, probe_weight=0.0)(logits, [], batch)
    assert terms["ce"].item() == pytest.approx(task_loss(logits, labels, problem_type).mean().item())
    assert terms["kd"] == 0 and set(terms) == {"ce", "kd"}
    without_teacher = distillation(problem_type)(logits, [], {"labels": labels})
    assert set(without_teacher) == {"ce"} and torch.equal(without_teacher["ce"], terms["ce"])


@EVERY
@TYPES
def test_an_example_without_a_label_learns_from_the_teacher_alone(name: str, problem_type: str) -> None:
    logits, teacher = logits_of(problem_type).requires_grad_(), logits_of(problem_type)
    labels = unknown_first(labels_of(problem_type))
    teach = distillation(problem_type, gamma=0.3, loss=name, probe_weight=0.0)
    terms = teach(logits, [], {"labels": labels, "teacher_logits": teacher})
    kd_B, ce_B = DISTILLATION_LOSSES[name](logits, teacher, problem_type, 1.0), task_loss(logits, labels, problem_type)
    assert terms["kd"].item() == pytest.approx(((kd_B[0] + 0.3 * kd_B[1:].sum()) / B).item(), rel=1e-5)
    assert terms["ce"].item() == pytest.approx((0.7 * ce_B[1:].sum() / B).item(), rel=1e-5)
    (slope,) = torch.autograd.grad(terms["ce"], logits)
    assert not slope[0].any() and slope[1:].any()


def test_a_better_probe_teaches_more() -> None:
    """AdaBERT, section 3.2: w_i = p_i(y) / sum over levels of p(y), the probability each probe gives the truth."""
    probes_BPC, labels = torch.randn(B, 4, C), labels_of("single_label")
    weights_BP = probe_weights(probes_BPC, labels, "single_label")
    p_BP = torch.stack([probes_BPC[b, :, labels[b]].exp() / probes_BPC[b].exp().sum(-1) for b in range(B)])
    assert torch.allclose(weights_BP, p_BP / p_BP.sum(1, keepdim=True), atol=1e-6)
    for problem_type in PROBLEMS:
        good = torch.ones(B, 1, C) * 3 if problem_type != "regression" else torch.ones(B, 1, 1)
        labels = {"single_label": torch.zeros(B, dtype=torch.long), "multi_label": torch.ones(B, C)}.get(
            problem_type, torch.ones(B)
        )
        if problem_type == "single_label":
            good[:, :, 1:] = 0
        weights_BP = probe_weights(torch.cat([-good, good, 0 * good], 1), labels, problem_type)
        assert torch.allclose(weights_BP.sum(1), torch.ones(B)) and (weights_BP.argmax(1) == 1).all()


@pytest.mark.parametrize(
    ("deepest", "teacher_levels", "expected"),
    [
        (8, 13, [0, 2, 3, 5, 6, 8, 9, 11, 12]),  # ceil(12 i / 8): BERT-base and K_max = 8, as the authors' code
        (4, 7, [0, 2, 3, 5, 6]),
        (3, 4, [0, 1, 2, 3]),
        (2, 2, [0, 1, 1]),
        (4, 1, [0, 0, 0, 0, 0]),
    ],
)
def test_levels_are_mapped_as_the_paper_maps_them(deepest: int, teacher_levels: int, expected: list[int]) -> None:
    assert [teacher_level(i, deepest, teacher_levels) for i in range(deepest + 1)] == expected


def kl_by_hand(teacher: list[float], student: list[float], temperature: float) -> float:
    p, q = ([math.exp(x / temperature) / sum(math.exp(y / temperature) for y in row) for x in row] for row in (teacher, student))
    return temperature**2 * sum(a * math.log(a / b) for a, b in zip(p, q))


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_the_terms_of_a_batch_of_two(temperature: float) -> None:
    """Two labels, one level with a probe below the final one; the second example has no gold label."""
    teach = Distillation(DistillConfig(gamma=0.8, probe_weight=0.5, temperature=temperature), "single_label", 2, width=2, deepest=2)
    teach.probes[0].weight.data.copy_(torch.eye(2))
    teach.probes[0].bias.data.zero_()
    teach.probes[1].weight.data.copy_(2 * torch.eye(2))
    teach.probes[1].bias.data.zero_()
    logits, teacher = [[1.0, 0.0], [0.0, 2.0]], [[2.0, 0.0], [0.0, 1.0]]
    levels = [[[0.5, -0.5], [0.1, 0.3]], [[0.2, 0.4], [-0.6, 0.0]]]
    probes = [[[0.0, 0.0], [9.0, 9.0], [1.0, 0.0]], [[0.3, 0.0], [9.0, 9.0], [0.0, 2.0]]]  # three teacher levels
    batch = {"labels": torch.tensor([1, -100]), "teacher_logits": torch.tensor(teacher)}
    batch["probe_logits"] = torch.tensor(probes)
    # deepest 2 of a teacher with 3 levels: level i is taught by teacher level i
    terms = teach(torch.tensor(logits), list(torch.tensor(levels)), batch)
    ce = math.log(math.exp(1) + 1) - 0.0  # label 1 has logit 0
    kd = [kl_by_hand(teacher[b], logits[b], temperature) for b in range(2)]
    probe = []
    for b, truth in enumerate((1, 1)):  # the gold label; what the teacher holds true
        p = [math.exp(probes[b][i][truth]) / sum(map(math.exp, probes[b][i])) for i in (0, 1)]
        own = [[scale * math.tanh(x) for x in levels[i][b]] for i, scale in enumerate((1, 2))]
        probe.append(sum(p[i] / sum(p) * kl_by_hand(probes[b][i], own[i], temperature) for i in (0, 1)))
    assert terms["ce"].item() == pytest.approx(0.2 * ce / 2, rel=1e-5)
    assert terms["kd"].item() == pytest.approx(0.5 * (0.8 * kd[0] + 1.0 * kd[1]) / 2, rel=1e-5)
    assert terms["probes"].item() == pytest.approx(0.5 * (0.8 * probe[0] + 1.0 * probe[1]) / 2, rel=1e-5)
    assert set(terms) == {"ce", "kd", "probes"}


# Of two examples and two labels: what a model says, what its teacher says, gold labels; the gold label's logit is 0 in both
SAYS, TEACHES, GOLD = [[1.0, 0.0], [0.0, 2.0]], [[2.0, 0.0], [0.0, 1.0]], [1, 0]
GOLD_LOSS = (math.log(math.exp(1) + 1) + math.log(math.exp(2) + 1)) / 2


def kl_of_two(temperature: float = 1.0) -> float:
    """Mean over the two examples of the softened divergence, without T^2."""
    soft = [[[x / temperature for x in row] for row in rows] for rows in (TEACHES, SAYS)]
    return sum(kl_by_hand(*pair, 1.0) for pair in zip(*soft)) / 2


def test_without_a_teachers_word_gold_labels_are_all_there_is_and_count_in_full() -> None:
    teach = Distillation(DistillConfig(gamma=0.8, probe_weight=0.5), "single_label", 2, width=2, deepest=2)
    levels, probes = [torch.randn(2, 2) for _ in range(2)], torch.randn(2, 3, 2)
    terms = teach(torch.tensor(SAYS), levels, {"labels": torch.tensor(GOLD), "probe_logits": probes})
    assert {name: term.item() for name, term in terms.items()} == {"ce": pytest.approx(GOLD_LOSS, rel=1e-5)}


def test_without_the_probes_word_the_final_logits_teach_with_the_whole_of_gamma() -> None:
    teach = Distillation(DistillConfig(gamma=0.8, probe_weight=0.5), "single_label", 2, width=2, deepest=2)
    batch = {"labels": torch.tensor(GOLD), "teacher_logits": torch.tensor(TEACHES)}
    terms = teach(torch.tensor(SAYS), [torch.randn(2, 2) for _ in range(2)], batch)
    expected = {"ce": 0.2 * GOLD_LOSS, "kd": 0.8 * kl_of_two()}
    assert {name: term.item() for name, term in terms.items()} == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("has_teacher", "task_weight", "kd_weight", "expected"),
    [
        (True, 0.3, 0.7, {"ce": 0.3 * GOLD_LOSS, "kd": 0.7 * 4 * kl_of_two(2.0)}),
        (True, 0.0, 0.7, {"kd": 0.7 * 4 * kl_of_two(2.0)}),
        (True, 0.3, 0.0, {"ce": 0.3 * GOLD_LOSS}),
        (False, 0.3, 0.0, {"ce": 0.3 * GOLD_LOSS}),
        (False, 0.3, 0.7, {"ce": GOLD_LOSS}),  # asked for a teacher that is not there: gold labels in full
        (False, 0.0, 1.0, {"ce": GOLD_LOSS}),
    ],
)
def test_a_task_model_is_taught_by_what_its_batch_has(
    has_teacher: bool, task_weight: float, kd_weight: float, expected: dict[str, float]
) -> None:
    batch = {"labels": torch.tensor(GOLD), "attention_mask": torch.ones(2, 3), **({"teacher_logits": torch.tensor(TEACHES)} if has_teacher else {})}
    terms = teaching_terms(torch.tensor(SAYS), batch, "single_label", task_weight=task_weight, kd_weight=kd_weight, temperature=2.0)
    assert {name: term.item() for name, term in terms.items()} == pytest.approx(expected, rel=1e-5)


def test_a_reader_without_a_teachers_word_learns_where_the_answer_begins_and_ends() -> None:
    """One window of three tokens, the last of which is padding: two cross-entropies over two tokens, their mean."""
    batch = {"labels": torch.tensor([[1, 0]]), "attention_mask": torch.tensor([[1, 1, 0]])}
    logits_B2L, weights = torch.tensor([[[2.0, 0.0, 9.0], [1.0, 0.0, 9.0]]]), {"task_weight": 0.3, "kd_weight": 0.7, "temperature": 2.0}
    terms = teaching_terms(logits_B2L, batch, "question_answering", **weights)
    expected = (math.log(math.exp(2) + 1) + math.log(math.exp(1) + 1) - 1) / 2
    assert {name: term.item() for name, term in terms.items()} == {"ce": pytest.approx(expected, rel=1e-5)}


@EVERY
@TYPES
def test_probes_learn_and_the_levels_hear_of_it(name: str, problem_type: str) -> None:
    teach, width = distillation(problem_type, loss=name), 1 if problem_type == "regression" else C
    levels = [torch.randn(B, D, requires_grad=True) for _ in range(3)]
    batch = {"teacher_logits": logits_of(problem_type), "probe_logits": torch.randn(B, 7, width)}
    for labels in (None, unknown_first(labels_of(problem_type))):
        terms = teach(logits_of(problem_type), levels, batch if labels is None else {**batch, "labels": labels})
        terms["probes"].backward()
        assert terms["probes"] > 0
    for tensor in (*levels, *teach.parameters()):
        assert tensor.grad.isfinite().all() and tensor.grad.any()


def test_without_levels_the_final_logits_have_the_whole_share() -> None:
    logits, teacher = logits_of("single_label"), logits_of("single_label")
    whole = distillation(probe_weight=0.0)(logits, [], {"teacher_logits": teacher})["kd"]
    probes = torch.randn(B, 7, C)
    for levels, batch in (([], {"probe_logits": probes}), ([torch.randn(B, D)], {})):
        assert torch.equal(distillation()(logits, levels, {"teacher_logits": teacher, **batch})["kd"], whole)
    assert len(distillation(probe_weight=0.0).probes) == 0 and len(distillation(deepest=3).probes) == 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_small_divergence_is_exact_under_autocast(dtype: torch.dtype) -> None:
    teacher = torch.randn(256, 2)
    student = (teacher + 0.02 * torch.randn(256, 2)).to(dtype).requires_grad_()
    one, two = (logits.detach().double() / 2 for logits in (student, teacher))
    exact = 4 * (two.softmax(-1) * (two.log_softmax(-1) - one.log_softmax(-1))).sum(-1)
    with torch.autocast("cpu", torch.bfloat16):
        found = kl_loss(student, teacher, "single_label", 2.0)
    torch.testing.assert_close(found.double(), exact, atol=1e-6, rtol=0)  # in bf16 it was off by up to 0.02, and negative on the mean
    found.mean().backward()
    expected = 2 * (one.softmax(-1) - two.softmax(-1)) / 256
    torch.testing.assert_close(student.grad.double(), expected, atol=1e-6 if dtype == torch.float32 else 1e-4, rtol=1e-2)


def test_labels_of_a_regression_keep_their_digits_under_autocast() -> None:
    logits = torch.tensor([[1999.0], [4.25]], dtype=torch.bfloat16)
    found = task_loss(logits, torch.tensor([1999.0, 4.28]), "regression")
    torch.testing.assert_close(found, torch.tensor([(2000 - 1999.0) ** 2, 0.03**2]), rtol=1e-4, atol=0)  # bf16 has 2000 next to 1999
