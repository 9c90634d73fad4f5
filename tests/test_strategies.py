"""Laws of the strategies of search: whose gradient is what, what a forward pass runs, and that each resumes exactly.

Dimensions: B batch, R rows (edges), N choices.
"""

from __future__ import annotations

import dataclasses
import inspect
import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from every_member import LENGTH, mean_cost
from hearing import KillAt, Killed
from tiny import make_certain, randomise, tiny_config, tiny_space
from tiny_fit import examples, run
from torch import Tensor, nn

from adasearch.architecture import Architecture, Edge
from adasearch.comparison import TEXTS, comparison_texts, member_loss
from adasearch.config import DistillConfig, SearchConfig
from adasearch.errors import ConfigError
from adasearch.fit import fit
from adasearch.gates import ChoiceGate, gates_of
from adasearch.latency import LatencyModel
from adasearch.member_cost import architecture_cost
from adasearch.methods import darts
from adasearch.progress import Progress
from adasearch.search_method import STRATEGIES, SearchMethod
from adasearch.shrink import shrink
from adasearch.strategies import find_strategy, remark
from adasearch.supernet import Draw, Supernet

THREE = ("conv3", "max_pool3", "skip")
SMOOTH = ("gated_conv3", "self_attention", "skip")  # derivatives of any order, for finite differences
OURS = ("gumbel", "gumbel_all", "darts", "darts_second", "gdas", "proxyless", "one_shot", "random")


def settings(strategy: str, **changes: Any) -> SearchConfig:
    mode = "bilevel" if strategy == "darts_second" else "joint"
    learns = {"arch_warmup": 0.3} if STRATEGIES[strategy].learns_architecture else {}
    chooses = {} if strategy == "one_shot" else {"candidates": 5}
    return SearchConfig(**{"steps": 6, "batch_size": 8, **learns, **chooses, "strategy": strategy, "mode": mode, **changes})


def parts(strategy: str, space: dict[str, Any] | None = None, **changes: Any) -> tuple[Supernet, SearchMethod, SearchConfig]:
    """A supernet, the strategy's method (not attached), its settings."""
    torch.manual_seed(1)
    config = settings(strategy, **changes)
    supernet = Supernet(tiny_space(**{"operations": THREE, "cells": (1, 2), **(space or {})}), tiny_config())
    return supernet, find_strategy(config)(config, DistillConfig(), "single_label", 3, 6.0), config


def learning(strategy: str, space: dict[str, Any] | None = None, **changes: Any) -> tuple[Supernet, SearchMethod, dict[str, Tensor]]:
    """The same in double precision, all random, in the phase in which the architecture learns; and a batch."""
    free = {"beta": 0.0} if STRATEGIES[strategy].weighs_cost else {}
    supernet, method, _ = parts(strategy, {"operations": SMOOTH, **(space or {})}, **free, **changes)
    method.attach(supernet)
    randomise(supernet)
    supernet.double().train()
    method.double()
    method.begin_step(supernet, 5, 6)
    method.is_learning = method.is_warm
    return supernet, method, batch_of(0)


def batch_of(start: int) -> dict[str, Tensor]:
    batch = examples().collate(np.arange(start, start + 6))
    return {name: tensor.double() if tensor.is_floating_point() else tensor for name, tensor in batch.items()}


def total(method: SearchMethod, supernet: Supernet, batch: dict[str, Tensor]) -> Tensor:
    return sum(method.loss(supernet, batch).values())


@pytest.mark.parametrize("strategy", OURS)
def test_a_killed_search_ends_with_the_weights_of_an_undisturbed_one(tmp_path: Path, strategy: str) -> None:
    extra = {} if strategy in ("one_shot", "random") else {"operation_dropout": 0.3, "entropy_weight": 0.2}
    extra["fair_sampling"] = "fair_sampling" not in STRATEGIES[strategy].ignores
    small = {"nodes": 1, "macro": {"dropout": 0.2}, **({"cells": (1, 1), "widths": (8,)} if strategy == "darts_second" else {})}
    whole, again = parts(strategy, small, **extra), parts(strategy, small, **extra)
    history = run(tmp_path / "whole", whole)
    with pytest.raises(Killed):
        run(tmp_path / "killed", parts(strategy, small, **extra), KillAt(4))
    assert run(tmp_path / "killed", again) == history
    for name, tensor in whole[0].state_dict().items():
        assert torch.equal(tensor, again[0].state_dict()[name]), name
    moved = any((gate.logits.abs() > 0.01).any() for gate in gates_of(whole[0]))
    assert moved == whole[1].learns_architecture


@pytest.mark.parametrize("sample_edges", [True, False])
def test_the_gradient_of_darts_gates_is_that_of_finite_differences(sample_edges: bool) -> None:
    supernet, method, batch = learning("darts", {"sample_edges": sample_edges, "nodes": 2})
    total(method, supernet, batch).backward()
    checked = 0

    def heard(gate: nn.Module) -> float:
        """The depth does not hear of its probes."""
        return float(sum(term.detach() for name, term in method.loss(supernet, batch).items() if gate.axis != "depth" or name != "probes"))

    for gate in gates_of(supernet):
        flat, gradient = gate.logits.data.view(-1), gate.logits.grad.view(-1) if gate.logits.grad is not None else None
        for index in range(0, len(flat), 3):
            sides = []
            for sign in (1, -1):
                flat[index] += sign * 1e-5
                sides.append(heard(gate))
                flat[index] -= sign * 1e-5
            slope = (sides[0] - sides[1]) / 2e-5
            assert slope == pytest.approx(0.0 if gradient is None else float(gradient[index]), abs=1e-7), (gate.axis, index)
            checked += abs(slope) > 1e-4
    assert checked > 4


class Both(nn.Module):
    """Student and method as one module, so that all weights can be replaced at once."""

    def __init__(self, student: Supernet, method: SearchMethod):
        super().__init__()
        self.student, self.method = student, method

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        return total(self.method, self.student, batch)


def test_the_second_order_is_that_of_an_unrolled_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(darts, "DISTANCE", 1e-4)
    supernet, method, train = learning("darts_second", {"nodes": 1}, unroll_rate=0.1)
    valid = batch_of(10)
    method.rate = 0.1
    both = Both(supernet, method)
    gates = {f"student.{name}": p for name, p in supernet.named_parameters() if any(p is gate.logits for gate in gates_of(supernet))}
    weights = {name: p for name, p in both.named_parameters() if p.requires_grad and name not in gates}
    before = {name: p.detach().clone() for name, p in weights.items()}
    slopes = torch.autograd.grad(both(train), list(weights.values()), create_graph=True, allow_unused=True)
    ahead = {name: p if slope is None else p - 0.1 * slope for (name, p), slope in zip(weights.items(), slopes)}
    unrolled = torch.func.functional_call(both, ahead, (valid,))
    expected = torch.autograd.grad(unrolled, list(gates.values()), allow_unused=True)
    still = {name: p.detach() for name, p in ahead.items()}
    first = torch.autograd.grad(torch.func.functional_call(both, still, (valid,)), list(gates.values()), allow_unused=True)

    method.before_loss(supernet, ("arch",), lambda split: train)
    total(method, supernet, valid).backward()
    method.after_backward(supernet, ("arch",), lambda split: train)
    far = 0.0
    for gate, gradient, at_first in zip(gates.values(), expected, first):
        if gradient is None:
            continue
        assert torch.allclose(gate.grad, gradient, rtol=1e-4, atol=1e-7)
        far = max(far, float((gradient - at_first).abs().max()))
    assert far > 1e-3, "the second order's own part is seen"
    assert all(torch.equal(weights[name], tensor) for name, tensor in before.items()), "the weights are where they were"


def member_of(supernet: Supernet, draw: Draw) -> Architecture:
    """The member that a draw runs; its paths must hold one candidate an edge."""
    space, depth = supernet.space, supernet.depth_gate.choices[draw.depth]
    width = max(space.widths) if draw.keep_D is None else int(draw.keep_D.detach().sum().round())
    cells = [tuple(tuple(Edge(step.source, step.operation) for step in node) for node in path) for path in draw.paths]
    return Architecture(space.name, space.digest, tuple(cells * depth if len(cells) == 1 else cells[:depth]), width, space.macro, 0)


class OnMps(nn.Parameter):
    """A parameter that says it lies where it does not."""

    device = property(lambda self: torch.device("mps"))  # type: ignore[assignment]


def test_both_sides_of_the_second_order_have_the_random_numbers_of_the_gradient_on_every_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """The accelerator's state is counted: each look at it finds it one further."""
    count, restored = itertools.count(), []
    monkeypatch.setattr(torch.mps, "get_rng_state", lambda: torch.tensor(next(count)))
    monkeypatch.setattr(torch.mps, "set_rng_state", lambda state: restored.append(int(state)))
    supernet, method, batch = learning("darts_second", {"nodes": 1}, unroll_rate=0.1)
    method.rate = 0.1
    next(supernet.parameters()).__class__ = OnMps
    method.before_loss(supernet, ("arch",), lambda split: batch)
    total(method, supernet, batch).backward()
    method.after_backward(supernet, ("arch",), lambda split: batch)
    assert restored == [0, 0, 1], "both sides begin where the gradient began, and what follows where it had come to"


@pytest.mark.parametrize("strategy", ["gdas", "gumbel", "proxyless", "one_shot"])
@pytest.mark.parametrize("sample_edges", [True, False])
def test_a_sampled_forward_is_that_of_the_member(strategy: str, sample_edges: bool) -> None:
    supernet, method, batch = learning(strategy, {"sample_edges": sample_edges, "edges_per_node": 2 if sample_edges else 3})
    method.is_learning = method.is_warm and strategy != "proxyless"  # whose paths are single in the weights' phase
    for _ in range(3):
        draw = method.draw(supernet)
        output = supernet(batch["input_ids"], batch["attention_mask"], draw)
        student = shrink(supernet, member_of(supernet, draw)).double().train()
        assert torch.allclose(student(batch["input_ids"], batch["attention_mask"]).logits, output.logits[output.drawn], atol=1e-8)


def test_a_mixture_that_is_certain_is_the_decided_member() -> None:
    supernet, method, batch = learning("darts")
    make_certain(supernet, depth=2, width=8)
    logits = method.predict(supernet, batch)
    student = shrink(supernet, supernet.decide()).double().train()
    assert torch.allclose(student(batch["input_ids"], batch["attention_mask"]).logits, logits, atol=1e-6)


def test_gdas_hears_of_the_drawn_exit_alone() -> None:
    supernet, method, batch = learning("gdas")
    for _ in range(4):
        output = supernet(batch["input_ids"], batch["attention_mask"], method.draw(supernet))
        assert len(output.logits) == output.drawn + 1, "no cell runs beyond the drawn depth"
    terms = method.loss(supernet, batch)
    assert "depth" not in terms
    sum(terms.values()).backward()
    value = float(sum(terms.values()).detach())
    p_K = supernet.depth_gate.logits.detach().softmax(-1)[0]
    gradient = supernet.depth_gate.logits.grad[0]
    assert gradient.sum().abs() < 1e-9 and gradient.abs().max() > 0 and p_K.shape == (2,)
    assert gradient.abs().max() <= abs(value) / (4 * float(supernet.depth_gate.temperature)) + 1e-9  # y (1 - y) / temperature times the loss


@pytest.mark.parametrize("strategy", ["gumbel", "gumbel_all", "gdas"])
def test_the_depth_learns_each_exits_loss_through_its_relaxed_choice(strategy: str) -> None:
    """The sum over exits (GDAS: the drawn one alone) of loss times d softmax((log p + noise) / temperature) / d logits, written out.

    The loss is that of labels and teacher: probes teach, and a deeper exit has more of them.
    """
    supernet, method, batch = learning(strategy, {"cells": (1, 3)}, temperature_start=2.0, temperature_end=2.0)
    gate, heard = supernet.depth_gate, set()
    for seed in range(4):
        gate.logits.grad = None
        torch.manual_seed(seed)
        total(method, supernet, batch).backward()
        torch.manual_seed(seed)
        noise_K = -torch.empty(3, dtype=torch.double).exponential_().log()  # the depth is drawn first
        torch.manual_seed(seed)
        output = supernet(batch["input_ids"], batch["attention_mask"], method.draw(supernet))
        losses_K = torch.zeros(3, dtype=torch.double)
        for exit_index, (depth, logits) in enumerate(zip(output.depths, output.logits)):
            if strategy != "gdas" or exit_index == output.drawn:
                terms = method.objective(logits, output.levels[:depth], batch)
                assert terms["probes"] > 0.01
                losses_K[exit_index] = (terms["ce"] + terms["kd"]).detach()
        y_K = ((gate.logits.detach()[0].log_softmax(-1) + noise_K) / gate.temperature).softmax(-1)
        expected_K = y_K * (losses_K - (losses_K * y_K).sum()) / gate.temperature
        assert int(y_K.argmax()) == output.drawn and expected_K.abs().max() > 1e-4
        assert torch.allclose(gate.logits.grad[0], expected_K, atol=1e-8)
        heard.add(output.drawn)
    assert len(heard) > 1


@pytest.mark.parametrize(("strategy", "middle"), [("gumbel", 2.0), ("gdas", 4.25)])
def test_the_temperature_of_every_gate_falls_from_start_to_end(strategy: str, middle: float) -> None:
    """From 8 to 0.5: by the same factor a step, and GDAS's in a straight line."""
    supernet, method, _ = parts(strategy, temperature_start=8.0, temperature_end=0.5, arch_warmup=0.5)
    method.attach(supernet)
    # while the architecture rests the temperature has no effect, so it falls from there on
    for step, expected in ((0, 8.0), (4, 8.0), (5, 8.0), (7, middle), (9, 0.5)):
        method.begin_step(supernet, step, 10)
        assert [float(gate.temperature) for gate in gates_of(supernet)] == pytest.approx([expected] * len(gates_of(supernet)))


@pytest.mark.parametrize("strategy", ["gumbel", "gumbel_all"])
def test_every_depth_is_trained_alike_whatever_the_depth_has_learned(strategy: str) -> None:
    """What is ahead would be trained, which puts it further ahead; the choice itself hears of all exits without that."""
    supernet, method, batch = learning(strategy, {"cells": (1, 3)})
    supernet.depth_gate.logits.data[:] = torch.tensor([30.0, 0.0, 0.0])
    trained = 0
    for seed in range(30):
        torch.manual_seed(seed)
        parameters = [p for p in supernet.trunk.cells[2].parameters() if p.requires_grad]
        gradients = torch.autograd.grad(total(method, supernet, batch), parameters, allow_unused=True)
        trained += any(gradient is not None and bool(gradient.any()) for gradient in gradients)
    assert 4 <= trained <= 16, "a third of thirty, where the gate itself would draw it never"
    gdas, its_method, _ = learning("gdas", {"cells": (1, 3)})
    gdas.depth_gate.logits.data[:] = torch.tensor([30.0, 0.0, 0.0])
    assert all(its_method.draw(gdas).depth == 0 for _ in range(10)), "GDAS trains what it draws"


def test_what_the_architecture_may_cost_falls_to_the_target() -> None:
    """From what it costs when it begins to learn: an excess that is there at once would be all that it hears, and Adam's largest steps."""
    supernet, method, _ = parts("gumbel", target_macs=1.0, arch_warmup=0.5, beta=2.0)
    method.attach(supernet)
    cost = float(supernet.expected_cost(method.length, is_derived=True).macs.detach())
    method.config = dataclasses.replace(method.config, target_macs=cost / 3)
    gaps = {}
    for step in range(5, 10):
        method.begin_step(supernet, step, 10)
        term = float(method._efficiency(supernet).detach())  # two times the squared gap: the multiplier is 0
        gaps[step] = (term / 2) ** 0.5
    assert gaps[5] == 0.0
    assert gaps[6] == pytest.approx(3 / (3 - 2 * 0.4) - 1, rel=1e-4), "a fifth of the steps is two fifths of the way"
    assert gaps[8] == gaps[9] == pytest.approx(2.0, rel=1e-4) and sorted(gaps.values()) == list(gaps.values())

    method.config = dataclasses.replace(method.config, target_macs=cost * 2)
    method.first_share.zero_()
    method.begin_step(supernet, 5, 10)
    assert float(method._efficiency(supernet).detach()) == 0.0 and float(method.first_share) == pytest.approx(0.5, rel=1e-4)
    method.begin_step(supernet, 7, 10)
    assert float(method._efficiency(supernet).detach()) == 0.0, "what is cheaper than the target from the start is left alone"


def test_the_efficiency_term_is_beta_times_the_mean_share_of_the_whole_cost() -> None:
    """Half of parameters, half of MACs; the mean over all members that may be drawn, one by one."""
    supernet, method, _ = parts("gumbel", {"nodes": 1}, beta=3.0)
    method.length = LENGTH
    method.attach(supernet)
    randomise(supernet)
    full, (_, params, macs) = supernet.full_cost(LENGTH), mean_cost(supernet)
    assert params / full.params != pytest.approx(macs / full.macs, rel=0.1)
    for step, is_priced in ((0, False), (5, True)):  # the warm-up knows no price
        method.begin_step(supernet, step, 6)
        terms = method.loss(supernet, examples().collate(np.arange(6)))
        assert ("efficiency" in terms) == is_priced
    assert float(terms["efficiency"].detach()) == pytest.approx(3.0 / 2 * (params / full.params + macs / full.macs), rel=1e-5)
    member = supernet.decide()
    own = architecture_cost(member, LENGTH, supernet.config)
    assert method.member_penalty(member) == pytest.approx(3.0 / 2 * (own.params / full.params + own.macs / full.macs))


@pytest.mark.parametrize("strategy", ["gumbel", "gumbel_all", "darts", "gdas", "proxyless"])
def test_in_bilevel_mode_the_architecture_learns_from_other_texts_than_the_weights(tmp_path: Path, strategy: str) -> None:
    model, method, config = parts(strategy, {"nodes": 1}, mode="bilevel")
    texts = examples()
    splits = {"train": texts.select(np.arange(20)), "valid": texts.select(np.arange(20, 40))}
    seen: dict[tuple[str, ...], set[float]] = {}
    before_loss, loss, learning_now = method.before_loss, method.loss, []

    def watched_before(student: Supernet, learners: tuple[str, ...], batch_of: Any) -> None:
        learning_now[:] = learners
        before_loss(student, learners, batch_of)

    def watched_loss(student: Supernet, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        seen.setdefault(tuple(learning_now), set()).update(batch["teacher_logits"][:, 0].tolist())  # random: each text has its own
        return loss(student, batch)

    method.before_loss, method.loss = watched_before, watched_loss
    fit(model, method, splits, config, seed=3, folder=tmp_path, accelerator=Accelerator(cpu=True), progress=Progress(), title="")
    own = {name: set(part.teacher_logits[:, 0].tolist()) for name, part in splits.items()}
    assert len(seen) == 2
    for learners, texts_seen in seen.items():
        assert len(texts_seen) > 8 and texts_seen <= own["valid" if "arch" in learners else "train"], learners
        assert ("arch" in learners) != ("weights" in learners)


def test_every_candidate_tells_where_all_are_run() -> None:
    """The same draws give the same values; an operation that was not picked is heard in one and not in the other."""
    outputs, gradients = [], []
    for strategy in ("gumbel", "gumbel_all"):
        supernet, method, batch = learning(strategy, {"nodes": 1, "cells": (1, 1), "widths": (8,), "edges_per_node": 2})
        torch.manual_seed(5)
        loss = total(method, supernet, batch)
        loss.backward()
        outputs.append(float(loss.detach()))
        gradients.append(supernet.cell_gates[0].operations.logits.grad.clone())
    assert outputs[0] == pytest.approx(outputs[1]) and not torch.allclose(*gradients)
    # finite differences of the relaxed weights: the loss as a function of every candidate's scale
    torch.manual_seed(5)
    draw = method.draw(supernet)
    noisy_loss = supernet(batch["input_ids"], batch["attention_mask"], draw)
    slopes = slopes_of_scales(supernet, method, batch, draw)
    steps = draw.paths[0][0]
    weights = torch.stack([step.scale for step in steps])
    expected = torch.autograd.grad((weights * torch.tensor(slopes)).sum(), supernet.cell_gates[0].operations.logits)[0]
    assert torch.allclose(expected, gradients[1], atol=1e-6) and noisy_loss.drawn == 0


def slopes_of_scales(supernet: Supernet, method: SearchMethod, batch: dict[str, Tensor], draw: Any, step: float = 1e-5) -> list[float]:
    """dL / d(scale) of every step of the first node of the first path, by finite differences."""

    def loss_with(index: int, change: float) -> float:
        steps = [dataclasses.replace(s, scale=s.scale.detach() + change * (i == index)) for i, s in enumerate(draw.paths[0][0])]
        changed = dataclasses.replace(draw, paths=[[steps, *draw.paths[0][1:]], *draw.paths[1:]])
        output = supernet(batch["input_ids"], batch["attention_mask"], changed)
        depth = output.depths[output.drawn]
        return float(sum(method.objective(output.logits[output.drawn], output.levels[:depth], batch).values()).detach())

    return [(loss_with(i, step) - loss_with(i, -step)) / (2 * step) for i in range(len(draw.paths[0][0]))]


def test_the_two_path_gradient_is_that_of_its_formula() -> None:
    space = {"nodes": 1, "cells": (1, 1), "widths": (8,), "sample_edges": False}
    supernet, method, batch = learning("proxyless", space)
    method.before_loss(supernet, ("arch",), lambda split: batch)
    torch.manual_seed(7)
    total(method, supernet, batch).backward()
    method.after_backward(supernet, ("arch",), lambda split: batch)
    gate = supernet.cell_gates[0].operations
    moved, two_R2, _ = next(entry for entry in method._moved if entry[0] is gate)
    method._moved = []
    torch.manual_seed(7)
    slopes = slopes_of_scales(supernet, method, batch, method.draw(supernet))
    expected = torch.zeros_like(gate.logits)
    for row, (i, j) in enumerate(two_R2.tolist()):
        p = gate.logits.detach()[row, [i, j]].softmax(-1)
        g = torch.tensor(slopes[2 * row : 2 * row + 2])
        for own, place in enumerate((i, j)):
            expected[row, place] = sum(g[k] * p[k] * (float(k == own) - p[own]) for k in range(2))
    assert torch.allclose(gate.logits.grad, expected, atol=1e-6) and expected.abs().max() > 1e-3
    assert ((gate.logits.grad != 0).sum(1) <= 2).all()


@pytest.mark.parametrize(("mode", "decay"), [("joint", 0.0), ("bilevel", 0.0), ("joint", 1e-3)])
def test_two_paths_leave_the_others_probabilities_as_they_were(tmp_path: Path, mode: str, decay: float) -> None:
    operations = ("conv3", "sep_conv3", "max_pool3", "skip")
    learns = {"arch_warmup": 0.0, "arch_learning_rate": 0.3, "arch_weight_decay": decay}
    model, method, config = parts("proxyless", {"operations": operations}, mode=mode, steps=1, **learns)
    before = [gate.expected().detach() for gate in gates_of(model) if isinstance(gate, ChoiceGate)]
    run(tmp_path, (model, method, config))
    after = [gate.expected().detach() for gate in gates_of(model) if isinstance(gate, ChoiceGate)]
    for old_RN, new_RN in zip(before, after):
        changed_R = ((old_RN - new_RN).abs() > 1e-5).sum(1)
        assert (changed_R <= 2).all() and changed_R.any()


def draws_of(gate: ChoiceGate, steps: int) -> Iterator[list[int]]:
    for step in range(steps):
        gate.turn = (3, 0, step)
        yield gate()[0]


def test_fair_draws_give_every_candidate_its_turn() -> None:
    gate = ChoiceGate("operations", "abcd", rows=3).train()
    gate.is_frozen = True
    drawn = np.array(list(draws_of(gate, 12)))
    for block in np.split(drawn, 3):
        assert (np.sort(block, axis=0) == np.arange(4)[:, None]).all()
    assert (drawn == np.array(list(draws_of(gate, 12)))).all() and (drawn[:4] != drawn[4:8]).any()


def test_dropped_operations_are_left_out_of_the_draw_and_of_the_gradient() -> None:
    gate = ChoiceGate("operations", "abc", rows=50).train()
    gate.drop_N = torch.tensor([0.0, 0.0, 1.0])
    picked, weights = gate()
    weights[:, 0].sum().backward()
    assert 2 not in picked and gate.logits.grad[:, 2].abs().max() == 0 < gate.logits.grad[:, 0].abs().max()
    gate.drop_N = torch.ones(3)  # all at once: then none
    assert len(set(gate()[0])) == 3
    supernet, method, _ = parts("gumbel", operation_dropout=0.8)
    method.attach(supernet)
    shares = []
    for step in (0, 2, 4, 6):
        method.begin_step(supernet, step, 6)
        shares.append(supernet.cell_gates[0].operations.drop_N)
    assert shares[0] is None and shares[3] is None  # warm-up; and the last step
    assert shares[1][0] == 0 and 0 < shares[2][1] < shares[1][1] < 0.8 and shares[1][1] == shares[1][2]


def test_the_entropy_term_is_the_gates_mean_entropy_and_rises() -> None:
    supernet, method, batch = learning("gumbel", entropy_weight=0.6)
    # the first node takes both of its two edges: its gate has nothing to decide, and its entropy of 0 is no decision
    open_gates = [gate for gate in gates_of(supernet) if gate.logits.shape[-1] not in (1, getattr(gate, "size", 1))]
    assert sum(gate.axis == "edges" for gate in open_gates) == sum(gate.axis == "edges" for gate in gates_of(supernet)) / 2 > 0
    expected = np.mean([float(gate.entropy().detach()) for gate in open_gates])
    assert float(method.loss(supernet, batch)["entropy"].detach()) == pytest.approx(method.entropy_weight * expected)
    weights = []
    for step in (1, 3, 6):
        method.begin_step(supernet, step, 6)
        weights.append(method.entropy_weight)
    assert weights[0] == 0 < weights[1] < weights[2] == pytest.approx(0.6)


def test_the_entropy_of_edges_is_of_those_that_may_differ() -> None:
    """Before anything is learned all that can be chosen is open: shares of the maximum, near 1."""
    supernet, method, _ = parts("gumbel")
    method.attach(supernet)
    measured = method.measures(supernet)["entropy"]
    assert set(measured) == {"operations", "edges", "depth", "width"} and min(measured.values()) > 0.99
    supernet, method, _ = parts("gumbel", {"nodes": 1})  # which takes both inputs
    method.attach(supernet)
    assert set(method.measures(supernet)["entropy"]) == {"operations", "depth", "width"}


@pytest.mark.parametrize("target", [None, "target_macs", "target_params", "latency_target_ms"])
def test_the_front_of_one_shot_says_what_its_members_cost(target: str | None) -> None:
    space = {"learned_per_node": 1, "nodes": 1}
    names = tiny_space(operations=THREE).operations
    latency = LatencyModel({8: 1.0, 12: 1.5}, {8: 0.1, 12: 0.2}, {name: {8: 0.1 * i, 12: 0.2 * i} for i, name in enumerate(names, 1)})
    limit = {"target_macs": 2_000.0, "target_params": 900.0, "latency_target_ms": 1.6}.get(target or "", None)
    changes = {"population": 6, "generations": 2, **({target: limit, "efficiency": "constraint"} if target else {})}
    supernet, _, _ = parts("one_shot", space)
    config = settings("one_shot", **changes)
    method = STRATEGIES["one_shot"](config, DistillConfig(), "single_label", 3, 6.0, latency if target == "latency_target_ms" else None)
    method.attach(supernet)
    derived = method.derive(supernet, examples(), 4, Progress())
    again = method.derive(supernet, examples(), 4, Progress())
    assert (derived.architecture, derived.losses) == (again.architecture, again.losses)
    assert derived.front(derived.architecture) == again.front(derived.architecture)
    front, cost_name = derived.front(derived.architecture), {"target_params": "params", "latency_target_ms": "latency_ms"}.get(target or "", "macs")
    dearest = type(derived.architecture).from_dict(front["front"][-1]["architecture"])
    assert derived.front(dearest)["chosen"] == front["front"][-1], "another finalist may be taken in the end"
    points = [(point[cost_name], point["loss"]) for point in front["front"]]
    assert front["objectives"] == ["loss", cost_name] and points == sorted(points)
    assert all(left[1] > right[1] for left, right in zip(points, points[1:])), "dearer members of a front are better"
    texts = comparison_texts(examples(), 4)
    assert len(texts) == min(TEXTS, 40)
    for point in [*front["front"], front["chosen"]]:
        member = type(derived.architecture).from_dict(point["architecture"])
        cost = architecture_cost(member, 6.0, supernet.config)
        assert (point["macs"], point["params"]) == (cost.macs, cost.params)
        assert cost_name != "latency_ms" or point["latency_ms"] == latency.predict(member)
        assert point["loss"] == pytest.approx(member_loss(shrink(supernet, member), method, texts))
    chosen = (front["chosen"][cost_name], front["chosen"]["loss"])
    if target is None:
        assert chosen in points
    else:
        within = [loss for loss, cost in front["others"] if cost <= limit]
        assert within and chosen[0] <= limit and chosen[1] == min(within)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"strategy": "annealing"}, r"search.strategy: 'annealing' is not known; choices: .*gdas.*one_shot"),
        ({"strategy": "darts_second"}, "search.mode: 'joint' does not work with search.strategy 'darts_second'; choices: bilevel"),
        ({"strategy": "one_shot", "derive": "argmax"}, "search.derive: 'argmax' does not work"),
        ({"strategy": "random", "entropy_weight": 0.1}, "search.entropy_weight: 0.1 has no effect"),
        ({"strategy": "one_shot", "operation_dropout": 0.1}, "search.operation_dropout: 0.1 has no effect"),
        ({"strategy": "one_shot", "beta": 1.0}, "search.beta: 1.0 has no effect with search.strategy 'one_shot'; choices: 4, or another"),
        ({"strategy": "one_shot", "candidates": 8}, "search.candidates: 8 has no effect with search.strategy 'one_shot'; choices: 64, or another"),
        ({"strategy": "gumbel", "population": 8}, "search.population: 8 has no effect with search.strategy 'gumbel'; choices: 32, or another"),
        ({"strategy": "random", "generations": 3}, "search.generations: 3 has no effect with search.strategy 'random'; choices: 12, or another"),
        ({"strategy": "gumbel", "unroll_rate": 0.1}, "search.unroll_rate: 0.1 has no effect with .*'gumbel'; choices: leave it out, or"),
        ({"strategy": "gumbel", "arch_warmup": 1.0}, "search.arch_warmup: 1.0 leaves the architecture no step to learn in"),
        ({"strategy": "darts", "mode": "bilevel", "fair_sampling": True}, "search.fair_sampling: True has no effect .*'darts'; choices: False"),
    ],
)
def test_settings_that_make_no_sense_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        find_strategy(SearchConfig(**changes))


@pytest.mark.parametrize("strategy", OURS)
@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("arch_learning_rate", 0.1), ("arch_weight_decay", 1e-3), ("arch_warmup", 0.5), ("temperature_start", 5.0), ("temperature_end", 0.1),
        ("entropy_weight", 0.1), ("operation_dropout", 0.1), ("unroll_rate", 0.1),
    ],
)  # fmt: skip
def test_what_an_architecture_learns_by_is_refused_where_none_learns_by_it(strategy: str, setting: str, value: float) -> None:
    """The default says nothing: it is in every run's record."""
    mode = STRATEGIES[strategy].published_mode or "joint"
    find_strategy(SearchConfig(strategy=strategy, mode=mode))
    draws_none = strategy.startswith("darts") and setting.startswith("temperature")
    unrolls = setting == "unroll_rate" and strategy != "darts_second"
    asked = SearchConfig(strategy=strategy, mode=mode, **{setting: value})
    if draws_none or unrolls or (strategy in ("one_shot", "random")):
        with pytest.raises(ConfigError, match=f"^search.{setting}: {value} has no effect with search.strategy '{strategy}'"):
            find_strategy(asked)
    else:
        assert find_strategy(asked) is STRATEGIES[strategy]


OWN = (Path(__file__).parents[1] / "docs" / "search-strategies.md").read_text(encoding="utf-8").partition("## A strategy of your own")[2]


def test_what_the_page_says_can_be_overridden_is_there() -> None:
    """Every name of the table's first column; of a hook its arguments, too, as far as they are written out."""
    rows = re.findall(r"^\| (`.+?) \|", OWN, re.MULTILINE)
    assert len(rows) >= 11
    for name, arguments in (re.fullmatch(r"`(\w+)(?:\((.*)\))?`", row).groups() for row in rows):
        hook = getattr(SearchMethod, name)
        if arguments is not None:
            known = [parameter for parameter in inspect.signature(hook).parameters if parameter != "self"]
            told = arguments.removesuffix(", …").split(", ")
            assert told == known[: len(told)] and (arguments.endswith("…") or len(told) == len(known)), name


def test_the_depth_of_the_pages_strategy_hears_of_its_cost_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(STRATEGIES, "_items", dict(STRATEGIES._items))
    exec(compile(re.search(r"```python\n(.*?)```", OWN, re.DOTALL)[1], "my_strategy.py", "exec"), {"__name__": "my_strategy"})  # noqa: S102
    for beta, hears in ((0.0, False), (4.0, True)):
        supernet, method, batch = learning("deepest", {"cells": (1, 3)})
        method.config = dataclasses.replace(method.config, beta=beta)
        sum(method.loss(supernet, batch).values()).backward()
        assert bool(supernet.depth_gate.logits.grad is not None and supernet.depth_gate.logits.grad.abs().max() > 1e-6) == hears
        assert supernet.cell_gates[0].operations.logits.grad.abs().max() > 0


def test_a_strategy_of_ones_own_is_one_class() -> None:
    class Mine(SearchMethod):
        """Nothing but a name."""

    STRATEGIES.register("mine_of_the_test")(Mine)
    assert find_strategy(SearchConfig(strategy="mine_of_the_test")) is Mine and remark(SearchConfig(strategy="mine_of_the_test")) is None
    assert "as published it is bilevel" in remark(SearchConfig(strategy="darts")) and remark(settings("darts", mode="bilevel")) is None
