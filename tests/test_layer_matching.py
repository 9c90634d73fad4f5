"""Layerwise distillation: matching against brute force, the loss against its formula, cutting the student changes nothing."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from adasearch.layer_matching import MATCHINGS, LayerDistillation, masked_mse, spread

B, L, D, E, N = 2, 5, 6, 6, 4


def states(count: int = N, width: int = D) -> list[Tensor]:
    return [torch.randn(B, L, width) for _ in range(count)]


def mask() -> Tensor:
    return torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])


ALIVE = [list(alive) for alive in itertools.product([False, True], repeat=N)]


@pytest.mark.parametrize("alive", ALIVE)
def test_rules_match_as_their_definitions_say(alive: list[bool]) -> None:
    distances = torch.rand(3, N)
    living = [n for n in range(N) if alive[n]]
    expected = [min(living, key=lambda n: float(row[n])) if living else None for row in distances]
    assert MATCHINGS["paper"](distances, alive) == expected
    assert MATCHINGS["any"](distances, alive) == [min(range(N), key=lambda n: float(row[n])) for row in distances]


@pytest.mark.parametrize("alive", ALIVE)
def test_ordered_never_crosses_and_is_greedy_from_the_top(alive: list[bool]) -> None:
    distances = torch.rand(3, N)
    match = MATCHINGS["ordered"](distances, alive)
    chosen = [layer for layer in match if layer is not None]
    assert all(alive[layer] for layer in chosen) and chosen == sorted(set(chosen)), "alive, ascending, each once"
    below = N
    for teacher in (2, 1, 0):
        allowed = {n: float(distances[teacher, n]) for n in range(below) if alive[n]}
        assert match[teacher] == (min(allowed, key=allowed.get) if allowed else None)
        below = match[teacher] if allowed else 0


def test_a_student_that_is_its_teacher_learns_nothing_and_matches_itself() -> None:
    layers = LayerDistillation(D, D, N, N, [1, 3])
    same = states()
    for matching in ("paper", "any", "ordered", "fixed"):
        layers.matching = matching
        loss, match = layers(same, same, mask(), [True] * N)
        assert loss.item() == 0 and match == [1, 3], matching


def test_the_loss_is_the_sum_of_the_errors_of_real_tokens() -> None:
    layers = LayerDistillation(D, E, N, N, [0, 2], "fixed")
    torch.nn.init.normal_(layers.projection.weight)
    own, theirs = states(), states()
    loss, match = layers(own, theirs, mask(), [False] * N)
    expected, real = 0.0, mask().bool()
    for layer in match:
        seen = own[layer][real] @ layers.projection.weight.T + layers.projection.bias
        expected += torch.nn.functional.mse_loss(seen, theirs[layer][real]).item()
    assert match == [0, 2] and loss.item() == pytest.approx(expected, rel=1e-5)


def test_padding_teaches_nothing() -> None:
    layers = LayerDistillation(D, E, N, N, [1])
    own, theirs = states(), states()
    before, _ = layers(own, theirs, mask(), [True] * N)
    for tensor in (*own, *theirs):
        tensor[1, 3:] = 99 * torch.randn(2, D)
    after, _ = layers(own, theirs, mask(), [True] * N)
    assert before.item() == after.item()


def test_gradients_reach_student_and_map_only_where_matched() -> None:
    layers = LayerDistillation(D, E, N, N, [3])
    own = [tensor.requires_grad_() for tensor in states()]
    theirs = states()
    loss, (matched,) = layers(own, theirs, mask(), [True, False, True, False])
    loss.backward()
    assert matched in (0, 2)
    assert [tensor.grad is not None and bool(tensor.grad.any()) for tensor in own] == [n == matched for n in range(N)]
    assert layers.projection.weight.grad.any()


def test_without_any_living_layer_there_is_no_term() -> None:
    layers = LayerDistillation(D, E, N, N, [1, 3])
    own = [tensor.requires_grad_() for tensor in states()]
    loss, match = layers(own, states(), mask(), [False] * N)
    assert loss.item() == 0 and match == [None, None]


def test_cut_hidden_dimensions_leave_the_map_as_it_was() -> None:
    """A cut student hands on the kept dimensions of what the masked one did, whose others are 0."""
    layers = LayerDistillation(D, E, N, N, [1, 3], "paper")
    torch.nn.init.normal_(layers.projection.weight), torch.nn.init.normal_(layers.projection.bias)
    kept = [0, 2, 5]
    masked = [tensor * torch.zeros(D).index_fill(0, torch.tensor(kept), 1.0) for tensor in states()]
    theirs, alive = states(), [True, True, False, True]
    whole, match = layers(masked, theirs, mask(), alive)
    cut, cut_match = layers.narrowed(kept)([tensor[..., kept] for tensor in masked], theirs, mask(), alive)
    assert cut.item() == pytest.approx(whole.item(), rel=1e-5) and cut_match == match


def test_a_wider_teacher_is_met_by_a_rectangular_identity() -> None:
    layers = LayerDistillation(D, 9, 2, 6, [2, 5], "fixed")
    own = states(2)
    theirs = [torch.cat([own[0 if n < 3 else 1], torch.zeros(B, L, 3)], -1) for n in range(6)]
    loss, match = layers(own, theirs, mask(), [True, True])
    assert match == [0, 1] and loss.item() == 0


def test_layers_are_spread_evenly_up_to_the_last() -> None:
    assert spread(4, 12) == [2, 5, 8, 11], "CoFi's"
    assert spread(4, 6) == [0, 2, 3, 5] and spread(1, 6) == [5] and spread(3, 3) == [0, 1, 2]


def test_masked_mse_in_half_precision_is_summed_in_float32() -> None:
    own, target = torch.full((B, L, D), 1.0, dtype=torch.bfloat16), torch.full((B, L, D), 1.0078125)
    assert masked_mse(own, target, mask()).dtype == torch.float32
    assert masked_mse(own, target, mask()).item() == pytest.approx(0.0078125**2)
