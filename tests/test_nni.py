"""NNI's strategies on our space: the networks they run are our members, their searches resume, and write into one folder.

Dimensions: B batch, C labels.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from hearing import KillAt, Killed
from tiny import batch_of, random_supernet, texts, tiny_config, tiny_space
from tiny_fit import examples
from tiny_task import tiny_run

pytest.importorskip("nni")
pytest.importorskip("pytorch_lightning")

from nni.nas.nn.pytorch import LayerChoice, ModelSpace
from nni.nas.oneshot.pytorch.profiler import ExpectationProfilerPenalty
from nni.nas.profiler.pytorch.flops import FlopsProfiler
from nni.nas.strategy import DARTS, Proxyless, RandomOneShot

from adasearch.architecture import Architecture
from adasearch.comparison import comparison_texts, member_loss
from adasearch.errors import ConfigError, TrainingError
from adasearch.fit_config import DistillConfig
from adasearch.member_cost import architecture_cost
from adasearch.methods.nni_search import NniSearch
from adasearch.nni_network import SupernetSpace
from adasearch.nni_space import Choices
from adasearch.nni_trials import run_trials
from adasearch.pipeline import search
from adasearch.progress import Progress
from adasearch.search_config import SearchConfig
from adasearch.shrink import random_architecture, shrink
from adasearch.space import load_space
from adasearch.strategies import find_strategy
from adasearch.student import AdasearchConfig
from adasearch.supernet import Supernet

STEPS = 7
BILEVEL = ("nni.darts", "nni.gumbel_darts", "nni.proxyless")


def parts(strategy: str, **settings: Any) -> tuple[Supernet, NniSearch]:
    """A supernet with dropout, so that random numbers matter, and its method."""
    torch.manual_seed(1)
    learns = {"arch_warmup": 0.3} if strategy in BILEVEL else {}
    chooses = {"population": 4, "generations": 1} if strategy == "nni.evolution" else {"candidates": 5}
    changes = {"steps": STEPS, "batch_size": 8, **learns, **chooses, **settings}
    config = SearchConfig(strategy=strategy, mode="bilevel" if strategy in BILEVEL else "joint", **changes)
    space = tiny_space({"dropout": 0.2}, operations=("conv3", "gated_conv3", "max_pool3", "skip"), cells=(1, 2), learned_per_node=1)
    supernet = Supernet(space, tiny_config())
    return supernet, find_strategy(config)(config, DistillConfig(), "single_label", 3, 6.0)


def run(folder: Path, search: tuple[Supernet, NniSearch], progress: Progress | None = None, seed: int = 3) -> list[dict[str, Any]]:
    """Train; with 0 seconds between checkpoints every round is saved, and a round is a step here."""
    supernet, method = search
    data = examples()
    splits = {"train": data, "valid": data.select(np.arange(20))}
    method.train(
        supernet, splits, seed=seed, folder=folder, accelerator=Accelerator(cpu=True), progress=progress or Progress(),
        checkpoint_seconds=0.0,
    )  # fmt: skip
    return [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]


def set_to(network: SupernetSpace, sample: dict[str, str]) -> None:
    """Edit in place: every choice of a network that a strategy has changed, by what that strategy goes by."""
    for module in network.modules():
        if hasattr(module, "_arch_alpha"):
            module._arch_alpha.data.fill_(-200.0)  # exp(-200) is 0 in float32
            module._arch_alpha.data[list(module.names).index(sample[module.label])] = 0.0
        if hasattr(module, "resample"):
            module.resample(dict(sample))


@pytest.mark.parametrize("strategy", [RandomOneShot, DARTS, Proxyless])
@pytest.mark.parametrize(
    "space",
    [
        {"nodes": 3}, {"share_cells": False}, {"sample_edges": False, "cells": (2, 2), "widths": (8,)}, {"macro": {"inputs": "two"}},
        {"macro": {"norm": "layer"}, "operations": ("conv3", "none", "inherited_50")}, {"operations": ("soft_alignment", "skip")},
    ],
    ids=str,
)  # fmt: skip
def test_a_network_of_nnis_set_to_a_member_is_that_student(strategy: type, space: dict[str, Any]) -> None:
    torch.manual_seed(0)
    supernet = random_supernet(tiny_space(**space))
    choices, generator = Choices(supernet.space), np.random.default_rng(0)
    network = strategy().mutate_model(SupernetSpace(supernet, choices)).eval()
    assert {label: tuple(each.values) for label, each in network.simplify().items()} == choices.open
    ids, mask = batch_of(texts(5, (4, 5), 7), padding=1)
    for _ in range(4):
        member = random_architecture(supernet.space, generator)
        set_to(network, choices.sample(member))
        output = network(ids, mask)
        student = shrink(supernet, member).eval()
        assert torch.allclose(output.logits, student(ids, mask).logits, atol=1e-4, rtol=1e-4)
        assert output.depth_K.tolist() == [float(depth == member.depth) for depth in supernet.depth_gate.choices]


def values_of(terms: dict[str, torch.Tensor]) -> dict[str, float]:
    """The numbers."""
    return {name: float(value.detach()) for name, value in terms.items()}


@pytest.mark.parametrize("strategy", ["nni.darts", "nni.random_one_shot"])
def test_the_loss_of_a_member_is_the_objective_of_that_student(strategy: str) -> None:
    supernet, method = parts(strategy)
    method.attach(supernet)
    choices = method.choices
    network = (DARTS if strategy in BILEVEL else RandomOneShot)().mutate_model(SupernetSpace(supernet, choices)).eval()
    supernet.eval()
    batch = examples().collate(np.arange(6))
    for seed in range(4):
        member = random_architecture(supernet.space, np.random.default_rng(seed))
        set_to(network, choices.sample(member))
        terms = method.terms(network(batch["input_ids"], batch["attention_mask"]), batch)
        output = shrink(supernet, member).eval()(batch["input_ids"], batch["attention_mask"])
        levels = [torch.nn.functional.pad(level, (0, 12 - level.shape[1])) for level in output.hidden_states[:-1]]
        expected = method.objective(output.logits, levels, batch)
        assert values_of(terms) == pytest.approx(values_of(expected), rel=1e-4)


@pytest.mark.parametrize(
    ("strategy", "settings"),
    [("nni.gumbel_darts", {}), ("nni.proxyless", {"efficiency": "constraint", "target_params": 500.0}), ("nni.random_one_shot", {})],
)
def test_a_killed_search_ends_with_the_weights_of_an_undisturbed_one(tmp_path: Path, strategy: str, settings: dict[str, Any]) -> None:
    whole, again = parts(strategy, **settings), parts(strategy, **settings)
    history = run(tmp_path / "whole", whole)
    with pytest.raises(Killed):
        run(tmp_path / "killed", parts(strategy, **settings), KillAt(5))
    assert run(tmp_path / "killed", again) == history
    for name, tensor in whole[0].state_dict().items():
        assert torch.equal(tensor, again[0].state_dict()[name]), name
    assert whole[1].derive(whole[0], examples(), 3, Progress()) == again[1].derive(again[0], examples(), 3, Progress())
    assert [record["step"] for record in history] == list(range(1, STEPS + 1))
    for record in history:
        assert record["loss"] == pytest.approx(sum(record["terms"].values())) and sum(record["operations"].values()) == pytest.approx(1)
    moved = history[-1]["entropy"]["operations"] < 1 - 1e-6
    assert moved == (strategy in BILEVEL) and [record["phase"] for record in history].count("warmup") == (2 if moved else 0)
    if settings:
        assert history[-1]["multiplier"] > history[3]["multiplier"] > 0 == history[1]["multiplier"]
        assert history[-1]["params"] < history[1]["params"]
        prices = [record["terms"]["efficiency"] for record in history[2:]]
        assert prices[0] == pytest.approx(0.0, abs=1e-6) and prices[1] > 0, "a target falls from what the architecture costs when it begins to learn"
    gates = whole[0].cell_gates[0].operations.expected().detach()
    assert float(gates[0, 0]) == pytest.approx(whole[1].outcome.probabilities["cell.node0.from0"][0] if moved else 1 / 4, rel=1e-3)


def test_seeds_reproduce_and_differ(tmp_path: Path) -> None:
    """NNI's own uniform paths come from the system's entropy; ours from the seed."""
    first, second, other = parts("nni.random_one_shot"), parts("nni.random_one_shot"), parts("nni.random_one_shot")
    assert run(tmp_path / "a", first) == run(tmp_path / "b", second) != run(tmp_path / "c", other, seed=4)


def test_a_loss_that_is_not_finite_stops_the_search(tmp_path: Path) -> None:
    supernet, method = parts("nni.random_one_shot")
    with torch.no_grad():
        supernet.trunk.read_out.classifier.bias.fill_(float("nan"))
    with pytest.raises(TrainingError, match=r"the loss is nan at step 0 \(ce nan"):
        run(tmp_path, (supernet, method))


@pytest.mark.parametrize("strategy", ["random", "evolution", "grid", "tpe"])
def test_trials_weigh_as_many_members_as_they_may(strategy: str) -> None:
    supernet = random_supernet(tiny_space(operations=("conv3", "skip", "max_pool3"), learned_per_node=1))
    calls: list[Architecture] = []

    def weigh(member: Architecture) -> float:
        calls.append(member)
        return float(architecture_cost(member, 6.0).macs)

    config = SearchConfig(population=5, strategy=f"nni.{strategy}")
    found = run_trials(strategy, supernet, weigh, 12, config, 3, Progress())
    assert list(found) == calls and len(set(calls)) == 12, "each once"
    choices = Choices(supernet.space)
    assert all(choices.is_member(choices.sample(member)) and member.seed == 3 for member in calls)
    assert run_trials(strategy, supernet, weigh, 12, config, 3, Progress()) == found
    assert run_trials(strategy, supernet, weigh, 12, config, 4, Progress()) != found


def test_a_grid_of_a_large_space_gives_as_many_members_as_asked() -> None:
    """What changes first along the grid are edges that no member keeps."""
    supernet = Supernet(load_space("adasearch"), tiny_config())
    found = run_trials("grid", supernet, lambda member: float(len(member.operations)), 20, SearchConfig(), 1, Progress())
    assert len(found) == 20


def test_samples_that_are_no_members_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("adasearch.nni_trials.GRID_SAMPLES", 20)
    space = load_space("adasearch")
    idle_first = replace(space, operations=space.operations[::-1])  # the grid begins with nodes of skips and pools alone, which no member has
    with pytest.raises(TrainingError, match="nni.grid proposed no member of space 'adasearch' in 240 samples; choices: another strategy"):
        run_trials("grid", Supernet(idle_first, tiny_config()), lambda member: 0.0, 12, SearchConfig(), 1, Progress())


@pytest.mark.parametrize(("strategy", "setting"), [("tpe", "population"), ("random_one_shot", "generations"), ("evolution", "candidates")])
def test_what_a_strategy_does_not_choose_by_is_refused(strategy: str, setting: str) -> None:
    with pytest.raises(ConfigError, match=f"^search.{setting}: 9 has no effect with search.strategy 'nni.{strategy}'; choices: "):
        find_strategy(SearchConfig(strategy=f"nni.{strategy}", **{setting: 9}))


def test_evolution_finds_what_weighs_least() -> None:
    """The metric's sign is right: cheap members are bred from cheap ones."""
    supernet = random_supernet(tiny_space(operations=("conv3", "skip", "max_pool3", "gated_conv3")))
    for name in ("evolution", "tpe"):
        config = SearchConfig(population=10)
        found = run_trials(name, supernet, lambda member: float(architecture_cost(member, 6.0).macs), 60, config, 1, Progress())
        weights = list(found.values())
        assert np.mean(weights[-20:]) < 0.7 * np.mean(weights[:10]), name


def test_a_whole_search_leaves_what_ours_leaves_and_nothing_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    home, here = tmp_path / "home", tmp_path / "here"
    home.mkdir(), here.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(here)
    changes = {"strategy": "nni.evolution", "steps": 4, "batch_size": 8, "population": 4, "generations": 1}
    config = tiny_run(tmp_path, output_dir=str(tmp_path / "run"), search=SearchConfig(**changes))
    path = search(config)
    architecture = Architecture.load(path)
    folder = tmp_path / "run" / "search"
    assert {file.name for file in folder.iterdir()} == {"architecture.json", "supernet.pt", "history.jsonl", "nni.log"}
    assert "NNI" in (folder / "nni.log").read_text() or "lightning" in (folder / "nni.log").read_text()
    assert list(home.iterdir()) == [] == list(here.iterdir())
    said = capfd.readouterr()
    assert "Lightning" not in said.out + said.err and "GPU available" not in said.out + said.err
    weights = torch.load(folder / "supernet.pt", weights_only=True)
    vocabulary, rank = weights["trunk.embeddings.word.weight"].shape
    supernet = Supernet(load_space(config.space), AdasearchConfig(vocab_size=vocabulary, embedding_rank=rank, num_labels=2))
    supernet.load_state_dict(weights)
    assert shrink(supernet, architecture).architecture == architecture
    before = path.stat().st_mtime_ns
    assert search(config) == path and path.stat().st_mtime_ns == before, "read back, not searched again"


def test_the_chosen_is_the_least_of_those_weighed(tmp_path: Path) -> None:
    supernet, method = parts("nni.random")
    run(tmp_path, (supernet, method))
    data = examples()
    chosen = method.derive(supernet, data, 3, Progress()).architecture
    texts = comparison_texts(data, 3)
    weigh = lambda member: member_loss(shrink(supernet, member), method, texts) + method.member_penalty(member)  # noqa: E731
    found = run_trials("random", supernet, weigh, 5, method.config, 3, Progress())
    assert chosen == min(found, key=found.__getitem__) and len(found) == 5


class TwoLayers(ModelSpace):
    """A space that NNI's own profiler understands."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = LayerChoice([torch.nn.Linear(4, 4), torch.nn.Linear(4, 4, bias=False)], label="layer")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)


def test_nnis_own_penalty_has_no_gradient() -> None:
    """Why the price is a term of our loss. A failure here is good news: NNI has learned it."""
    space = TwoLayers()
    penalty = ExpectationProfilerPenalty(FlopsProfiler(space, torch.zeros(2, 4)), baseline=1.0)
    network = DARTS().mutate_model(space)
    loss, _ = penalty(torch.zeros(()), network.layer.export_probs({}))
    assert float(loss) > 0 and network.layer._arch_alpha.requires_grad and not loss.requires_grad


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"strategy": "nni.darts"}, "search.mode: 'joint' does not work with search.strategy 'nni.darts'; choices: bilevel"),
        ({"strategy": "nni.tpe", "derive": "argmax"}, "search.derive: 'argmax' does not work with search.strategy 'nni.tpe'"),
        ({"strategy": "nni.proxyless", "mode": "bilevel", "entropy_weight": 0.1}, "search.entropy_weight: 0.1 is not known to NNI"),
        ({"strategy": "nni.random", "fair_sampling": True}, "search.fair_sampling: True is not known to NNI"),
        ({"strategy": "nni.darts", "mode": "bilevel", "temperature_start": 5.0}, "search.temperature_start: 5.0 has no effect with .*'nni.darts'"),
        ({"strategy": "nni.tpe", "arch_learning_rate": 0.1}, "search.arch_learning_rate: 0.1 has no effect with .*'nni.tpe', whose architecture"),
    ],
)
def test_settings_that_nni_does_not_have_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        find_strategy(SearchConfig(**changes))
