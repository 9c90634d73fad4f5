"""Constraints: which way each multiplier moves, where the constrained optimum lies, how targets rise."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from adasearch.lagrangian import Lagrangian, penalty, ramp


@pytest.mark.parametrize(("gap", "kind", "linear", "quadratic"), [
    (-0.3, "signed", -0.3, 0.09), (0.3, "signed", 0.3, 0.09), (-0.3, "absolute", 0.3, 0.09), (0.0, "signed", 0.0, 0.0),
])  # fmt: skip
def test_multipliers_gradients_are_the_gap_and_its_square(gap: float, kind: str, linear: float, quadratic: float) -> None:
    lagrangian = Lagrangian(kind)
    lagrangian(torch.tensor(gap)).backward()
    assert [lagrangian.linear.grad.item(), lagrangian.quadratic.grad.item()] == pytest.approx([linear, quadratic])


def test_ascent_pushes_the_gap_to_zero_from_both_sides() -> None:
    for start in (-0.5, 0.5):
        lagrangian, gap = Lagrangian(), nn.Parameter(torch.tensor(start))
        optimizer = torch.optim.SGD([{"params": [gap]}, {"params": lagrangian.parameters(), "maximize": True}], lr=0.5)
        lagrangian(gap).backward()
        optimizer.step()
        assert lagrangian.linear.sign() == torch.tensor(start).sign() and lagrangian.quadratic > 0
        before = gap.item()
        optimizer.zero_grad()
        lagrangian(gap).backward()
        optimizer.step()
        assert abs(gap.item()) < abs(before), "minimised, the term brings the gap nearer to 0"


@pytest.mark.parametrize("kind", ["signed", "absolute"])
def test_the_saddle_point_is_the_constrained_minimum(kind: str) -> None:
    """Minimise (x - 3)^2 with x = 1: the constraint holds at the end, and lambda1 is the known multiplier -f'(1) = 4 (signed)."""
    lagrangian, x = Lagrangian(kind), nn.Parameter(torch.tensor(3.0))
    groups = [{"params": [x], "lr": 0.02}, {"params": lagrangian.parameters(), "maximize": True, "lr": 0.02}]
    optimizer = torch.optim.SGD(groups)
    for _ in range(6_000):
        optimizer.zero_grad()
        ((x - 3).square() + lagrangian(x - 1)).backward()
        optimizer.step()
    # |gap| has a kink where it is 0: gradient steps jump across it by lr x lambda1
    assert x.item() == pytest.approx(1.0, abs=0.005 if kind == "signed" else 0.3)
    if kind == "signed":
        assert lagrangian.linear.item() == pytest.approx(4.0, abs=0.05)


def test_one_sided_penalties_do_not_square_what_is_below() -> None:
    below = torch.tensor(-0.5, requires_grad=True)
    assert penalty(below, 2.0, 10.0, is_one_sided=True).item() == -1.0
    assert penalty(below, 2.0, 10.0).item() == pytest.approx(1.5)
    assert penalty(-below, 2.0, 10.0, is_one_sided=True).item() == penalty(-below, 2.0, 10.0).item() == pytest.approx(3.5)


def test_the_target_rises_linearly_and_stays() -> None:
    assert [ramp(0.8, step, 4) for step in range(7)] == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 0.8, 0.8])
    assert ramp(0.8, 2, 4, start=0.4) == pytest.approx(0.6)
    assert ramp(0.8, 0, 0) == 0.8, "without a warm-up the target is there at once"
