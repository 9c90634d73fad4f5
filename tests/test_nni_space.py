"""What needs no NNI: samples and architectures, what was learned, what it costs, and the error that names the extra."""

from __future__ import annotations

import dataclasses
import itertools
import sys

import numpy as np
import pytest
import torch
from tiny import tiny_config, tiny_space

from adasearch.architecture import Space
from adasearch.errors import ConfigError
from adasearch.latency import LatencyModel
from adasearch.member_cost import architecture_cost, learned_operations
from adasearch.nni_cost import CostProfiler
from adasearch.nni_space import Choices, Learned
from adasearch.search_config import SearchConfig
from adasearch.search_method import STRATEGIES
from adasearch.shrink import random_architecture
from adasearch.space import load_space
from adasearch.strategies import find_strategy
from adasearch.supernet import Supernet

NNI = tuple(name for name in STRATEGIES if name.startswith("nni."))
SPACES = {
    "adasearch": lambda: load_space("adasearch").for_task(is_pair=True),
    "adabert": lambda: load_space("adabert").for_task(is_pair=False),
    "own cells": lambda: tiny_space(share_cells=False, learned_per_node=1, nodes=3),
    "one of each": lambda: tiny_space(cells=(2, 2), widths=(8,), nodes=1),
}


@pytest.fixture(params=SPACES)
def space(request: pytest.FixtureRequest) -> Space:
    return SPACES[request.param]()


def test_every_member_has_a_sample_that_means_it(space: Space) -> None:
    choices, generator = Choices(space), np.random.default_rng(0)
    for seed in range(50):
        member = random_architecture(space, generator, seed)
        sample = choices.sample(member)
        assert choices.architecture(sample, seed) == member and choices.is_member(sample)
        assert set(sample) == set(choices.open) and all(sample[label] in values for label, values in choices.open.items())


def test_every_sample_means_a_network_of_the_space(space: Space) -> None:
    """Of the right depth, width, edges and operations; a member unless a node has too few operations with weights."""
    choices, generator = Choices(space), np.random.default_rng(1)
    learned, refused = learned_operations(space), 0
    for _ in range(200):
        sample = {label: values[generator.integers(len(values))] for label, values in choices.open.items()}
        member = choices.architecture(sample)
        assert space.cells[0] <= member.depth <= space.cells[1] and member.width in space.widths
        for node, edges in ((n, edges) for cell in member.cells for n, edges in enumerate(cell)):
            sources = [edge.source for edge in edges]
            assert len(edges) == min(space.edges_per_node, node + 2) and sources == sorted(set(sources)) and max(sources) < node + 2
            assert {edge.operation for edge in edges} <= set(space.operations) - set(space.never_derived)
        short = any(sum(edge.operation in learned for edge in edges) < space.learned_per_node for cell in member.cells for edges in cell)
        assert choices.is_member(sample) != short
        refused += short
        assert choices.architecture(choices.sample(member)) == member
    assert (refused > 0) == bool(space.learned_per_node)


def uneven(choices: Choices) -> dict[str, torch.Tensor]:
    """Logits of every open choice, far from equal."""
    generator = torch.Generator().manual_seed(3)
    return {label: torch.randn(len(values), generator=generator, dtype=torch.float64) for label, values in choices.open.items()}


def test_what_was_learned_is_decided_and_drawn_as_often_as_it_says() -> None:
    choices = Choices(tiny_space(nodes=2))
    p = {label: logits.softmax(-1).numpy() for label, logits in uneven(choices).items()}
    learned = Learned(choices, p)
    assert choices.sample(learned.decide(5)) == choices.sample(
        choices.architecture({label: values[p[label].argmax()] for label, values in choices.open.items()})
    )
    generator, count = np.random.default_rng(0), 4_000
    members = [learned.sample(generator, 5) for _ in range(count)]
    assert {member.seed for member in members} == {5}
    samples = [choices.sample(member) for member in members]
    for label in ("depth", "width", "cell.node1.edges"):
        for value, chance in zip(choices.open[label], p[label]):
            share = sum(sample[label] == value for sample in samples) / count
            assert share == pytest.approx(chance, abs=4 * np.sqrt(chance * (1 - chance) / count)), (label, value)


def test_what_was_learned_gives_members_only() -> None:
    """A skip nearly everywhere: one edge a node is changed to its likeliest operation with weights."""
    space = tiny_space(operations=("skip", "conv3", "gated_conv3", "max_pool3"), learned_per_node=1, nodes=2, share_cells=False)
    choices = Choices(space)
    p = {label: np.full(len(values), 1 / len(values)) for label, values in choices.open.items()}
    for label in p:
        if ".from" in label:
            p[label] = np.array([0.9, 0.02, 0.05, 0.03])
    p["cell0.node0.from1"] = np.array([0.5, 0.02, 0.4, 0.08])
    learned = Learned(choices, p)
    assert [(edge.source, edge.operation) for edge in learned.decide().cells[0][0]] == [(0, "skip"), (1, "gated_conv3")]
    for member in [learned.decide(), *(learned.sample(np.random.default_rng(seed)) for seed in range(30))]:
        assert choices.is_member(choices.sample(member))


@pytest.mark.parametrize("name", ["own cells", "one of each", "none"])
def test_the_expected_cost_is_the_mean_over_samples(name: str) -> None:
    none = {"operations": ("conv3", "skip", "none"), "never_derived": ("none",), "cells": (1, 2)}
    widths = (8, 12) if name == "none" else (8,)
    nodes = 1 if name == "own cells" else 2  # all samples are gone through: 18,000 with two
    space = tiny_space(operations=("conv3", "skip"), cells=(1, 2), nodes=nodes, share_cells=name != "own cells", widths=widths)
    space = dataclasses.replace(space, **none) if name == "none" else space
    choices, supernet = Choices(space), Supernet(space, tiny_config())
    p = {label: logits.softmax(-1) for label, logits in uneven(choices).items()}
    profiler = CostProfiler(supernet, choices, lambda: p, 6.0)
    latency = LatencyModel({8: 1.0, 12: 1.5}, {8: 0.1, 12: 0.2}, {"conv3": {8: 0.1, 12: 0.3}, "skip": {8: 0.05, 12: 0.07}})
    params = macs = ms = total = 0.0
    for values in itertools.product(*choices.open.values()):
        sample = dict(zip(choices.open, values))
        chance = float(np.prod([p[label][choices.open[label].index(value)].item() for label, value in sample.items()]))
        member = choices.architecture(sample)
        cost = architecture_cost(member, 6.0, supernet.config)
        assert profiler.profile(sample) == cost.macs
        total, params, macs = total + chance, params + chance * cost.params, macs + chance * cost.macs
        ms += chance * latency.predict(member)
    assert total == pytest.approx(1)
    expected = profiler.expected_cost(6.0)
    assert (float(expected.params), float(expected.macs)) == (pytest.approx(params, rel=1e-5), pytest.approx(macs, rel=1e-5))
    assert float(profiler.expected_latency(latency)) == pytest.approx(ms, rel=1e-5)


def test_the_price_of_what_is_learned_has_its_gradient() -> None:
    choices, logits = Choices(tiny_space()), uneven(Choices(tiny_space()))
    supernet = Supernet(tiny_space(), tiny_config())
    profiler = CostProfiler(supernet, choices, lambda: {label: each.softmax(-1) for label, each in logits.items()}, 6.0)
    for each in logits.values():
        each.requires_grad_()
    profiler.expected_cost(6.0).macs.backward()
    for label, index in (("depth", 1), ("width", 0), ("cell.node1.edges", 2), ("cell.node1.from2", 3)):
        with torch.no_grad():
            sides = []
            for sign in (1, -1):
                logits[label][index] += sign * 1e-4
                sides.append(float(profiler.expected_cost(6.0).macs))
                logits[label][index] -= sign * 1e-4
        assert float(logits[label].grad[index]) == pytest.approx((sides[0] - sides[1]) / 2e-4, rel=1e-3, abs=1e-3), label


@pytest.mark.parametrize("package", ["nni", "pytorch_lightning"])
def test_without_nni_the_error_names_the_extra(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)  # Python's own way to say: not installed
    for name in NNI:
        told = rf"search.strategy: '{name}' needs .*{package.replace('_', '-')}.*pip install 'adasearch\[nni\]'.*gumbel"
        with pytest.raises(ConfigError, match=told):
            find_strategy(SearchConfig(strategy=name))


def test_all_of_nnis_strategies_are_there() -> None:
    assert set(NNI) == {f"nni.{name}" for name in "darts gumbel_darts proxyless random_one_shot random evolution grid tpe".split()}
