"""NNI's strategies as strategies of ours: the same space, supernet, loss, data and result. Microsoft NNI 3.0, the extra ``nni``.

``nni.darts``, ``nni.gumbel_darts`` and ``nni.proxyless`` learn probabilities, from which the architecture is chosen as from our
gates. ``nni.random_one_shot`` trains on uniform paths. ``nni.random``, ``nni.evolution``, ``nni.grid`` and ``nni.tpe`` train as it does and
then choose among members with the supernet's weights. NNI is imported when a search begins and not before.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from adasearch.architecture import Architecture
from adasearch.comparison import comparison_texts, member_loss
from adasearch.derive import Derived, Measure, best_within, derive
from adasearch.errors import ConfigError
from adasearch.gates import gates_of
from adasearch.methods.base import Batch, Group
from adasearch.nni_cost import CostProfiler
from adasearch.nni_log import told_to
from adasearch.nni_space import Choices, Learned, sources_of
from adasearch.progress import Progress
from adasearch.search_config import SearchConfig
from adasearch.search_method import MULTIPLIER_LEARNING_RATE, STRATEGIES, SearchMethod
from adasearch.settings import is_installed
from adasearch.shrink import shrink
from adasearch.supernet import Supernet
from adasearch.tokens import Examples

if TYPE_CHECKING:
    from adasearch.nni_network import NetworkOutput

PACKAGES = {"nni": "nni", "pytorch_lightning": "pytorch-lightning"}
OVERSPENT = 100.0  # what a member beyond its target weighs more for each time that it takes the target too much
NOT_ANNEALED = (*SearchMethod.ignores, "temperature_start", "temperature_end")  # what NNI draws or mixes without a temperature ignores
LEAST = 1e-9  # of a probability whose logarithm is taken


class Drawn:
    """A trained supernet whose members come from what NNI's strategy learned; what ``derive`` asks of a supernet."""

    def __init__(self, student: Supernet, learned: Learned):
        self.space, self.config, self.state_dict = student.space, student.config, student.state_dict
        self.decide: Callable[..., Architecture] = learned.decide
        self.sample: Callable[..., Architecture] = learned.sample


class NniSearch(SearchMethod):
    """Training by one of NNI's one-shot strategies, choosing as after ours."""

    trained_by: ClassVar[str]  # NNI's strategy that trains the supernet
    one_process = True

    @classmethod
    def check(cls, config: SearchConfig) -> None:
        missing = [name for package, name in PACKAGES.items() if not is_installed(package)]
        if missing:
            raise ConfigError(
                f"search.strategy: {config.strategy!r} needs {' and '.join(missing)}, not installed; choices: pip install 'adasearch[nni]',"
                f" or one of {', '.join(name for name in STRATEGIES if not name.startswith('nni.'))}"
            )
        for setting in ("entropy_weight", "operation_dropout", "fair_sampling", "arch_weight_decay"):
            if getattr(config, setting):
                value = getattr(config, setting)
                raise ConfigError(
                    f"search.{setting}: {value!r} is not known to NNI's strategies; choices: {type(value)()}, or another search.strategy"
                )
        super().check(config)

    def attach(self, student: Supernet) -> None:
        super().attach(student)
        self.choices = Choices(student.space)
        self.alphas: dict[str, Tensor] = {}  # NNI's architecture parameters, by label, once there are any

    def groups(self, student: Supernet) -> list[Group]:
        gates = [gate.logits for gate in gates_of(student)]
        return self.student_groups(student, student.trunk.embeddings.word, exclude=[*gates, self.multiplier])

    def train(
        self, student: Supernet, splits: Mapping[str, Examples], *, seed: int, folder: Path, accelerator: Accelerator, progress: Progress,
        checkpoint_seconds: float = 60.0,
    ) -> None:  # fmt: skip
        self.log = folder / "nni.log"
        with told_to(self.log):
            from adasearch.nni_training import train

            train(
                self.trained_by, self, student, dict(splits), seed=seed, folder=folder, accelerator=accelerator, progress=progress,
                checkpoint_seconds=checkpoint_seconds,
            )  # fmt: skip
        with torch.no_grad():
            self.outcome = Learned(self.choices, {label: p.cpu().double().numpy() for label, p in self.probabilities().items()})
        self._tell_gates(student)

    def probabilities(self) -> dict[str, Tensor]:
        """Of every value, by label of the open choices; uniform where nothing is learned."""
        device = self.multiplier.device
        uniform = {label: torch.full((len(values),), 1 / len(values), device=device) for label, values in self.choices.open.items()}
        return uniform | {label: alpha.softmax(-1) for label, alpha in self.alphas.items()}

    def terms(self, output: NetworkOutput, batch: Batch) -> dict[str, Tensor]:
        """The loss's terms: the objective of the logits, whose probes are those below each depth, as much as it weighs, which they do not
        price (``worth_of``)."""
        depths = range(self.choices.space.cells[0], self.choices.space.cells[1] + 1)
        exits = [
            (weight, self.objective(output.logits, output.levels[:depth], batch))
            for depth, weight in zip(depths, output.depth_K)
            if weight.requires_grad or weight != 0
        ]
        terms = dict(exits[0][1])
        if "probes" in terms:
            terms["probes"] = sum(weight.detach() * each["probes"] for weight, each in exits)
        return terms

    def price(self, profiler: CostProfiler) -> Tensor:
        """The efficiency term of NNI's probabilities."""
        return self._efficiency(profiler)

    @torch.no_grad()
    def raise_multiplier(self) -> None:
        """One step of gradient ascent, where the loss holds a constraint."""
        if self.multiplier.grad is not None:
            self.multiplier.add_(MULTIPLIER_LEARNING_RATE * self.multiplier.grad).clamp_(min=0.0)
            self.multiplier.grad = None

    @torch.no_grad()
    def told(self, profiler: CostProfiler, temperature: float, is_warm: bool) -> dict[str, Any]:
        """What the history holds beside the loss, as ``measures`` of a search with gates."""
        cost, p = profiler.expected_cost(self.length), {label: p.cpu() for label, p in self.probabilities().items()}
        kinds: dict[str, list[str]] = {"operations": [], "edges": [], "depth": [], "width": []}
        for label in p:
            kinds["operations" if ".from" in label else label.rpartition(".")[2]].append(label)
        entropy = {
            kind: float(np.mean([-(p[label] * p[label].log()).sum() / np.log(len(p[label])) for label in labels]))
            for kind, labels in kinds.items()
            if labels
        }
        sizes = {kind: dict(zip(self.choices.open[kind], p[kind].tolist())) for kind in ("depth", "width") if kind in p}
        shares = dict.fromkeys(self.choices.space.operations, 0.0)
        for label in kinds["operations"]:
            for name, share in zip(self.choices.open[label], p[label].tolist()):
                shares[name] += share / len(kinds["operations"])
        latency = {} if self.latency is None else {"latency_ms": float(profiler.expected_latency(self.latency))}
        return {
            **latency, **sizes, "phase": "search" if is_warm else "warmup", "temperature": temperature, "entropy": entropy,
            "operations": shares, "params": float(cost.params), "macs": float(cost.macs), "multiplier": float(self.multiplier),
        }  # fmt: skip

    @torch.no_grad()
    def _tell_gates(self, student: Supernet) -> None:
        """Edit in place: gates that say what was learned, for whoever reads the supernet.

        Exact but for the sources of nodes with more than three: gates weigh single sources, NNI whole sets.
        """
        p = {label: torch.ones(1) for label in self.choices.every} | {label: p.cpu() for label, p in self.probabilities().items()}
        student.depth_gate.logits[0] = p["depth"].clamp_min(LEAST).log()
        if student.width_gate is not None:
            student.width_gate.logits[0] = p["width"].clamp_min(LEAST).log()
        for cell, gates in enumerate(student.cell_gates):
            for row, (node, source) in enumerate(gates.pairs):
                label = self.choices.operation(cell, node, source)
                said = dict(zip(self.choices.every[label], p[label].tolist()))
                p_N = torch.tensor([said.get(name, 0.0) for name in student.space.operations])
                gates.operations.logits[row] = p_N.clamp_min(LEAST).log()
            for node, gate in enumerate(gates.edges or ()):
                label = self.choices.edges(cell, node)
                kept = torch.zeros(node + 2)
                for value, chance in zip(self.choices.every[label], p[label]):
                    kept[list(sources_of(value))] += chance
                gate.logits.copy_(kept.clamp_min(LEAST).log())

    def derive(
        self, student: Supernet, examples: Examples, seed: int, progress: Progress, measure: Measure | None = None
    ) -> Derived:
        return derive(Drawn(student, self.outcome), self, examples, seed, progress, measure)


class NniDifferentiable(NniSearch):
    """Strategies with architecture parameters, which learn from held-out texts alone."""

    modes = ("bilevel",)
    published_mode = "bilevel"


@STRATEGIES.register("nni.random_one_shot")
class NniRandomOneShot(NniSearch):
    """Uniform paths."""

    learns_architecture = False
    trained_by = "random_one_shot"

    def derive(
        self, student: Supernet, examples: Examples, seed: int, progress: Progress, measure: Measure | None = None
    ) -> Derived:
        if self.config.derive == "argmax" and not self.config.is_constrained:  # nothing is most probable: NNI exports a random sample
            return Derived(self.outcome.sample(np.random.default_rng((seed, 0xDE21)), seed))
        return super().derive(student, examples, seed, progress, measure)


class NniTrials(NniRandomOneShot):
    """Uniform paths, then NNI's strategy over members with the supernet's weights."""

    chosen_by: ClassVar[str]  # NNI's strategy that chooses members

    @classmethod
    def check(cls, config: SearchConfig) -> None:
        super().check(config)
        if config.derive != "evaluated":
            raise ConfigError(
                f"search.derive: {config.derive!r} does not work with search.strategy {config.strategy!r}; choices: evaluated"
            )

    @property
    def budget(self) -> int:
        """How many members are weighed."""
        return self.config.candidates

    def derive(
        self, student: Supernet, examples: Examples, seed: int, progress: Progress, measure: Measure | None = None
    ) -> Derived:
        texts = comparison_texts(examples, seed)
        losses: dict[Architecture, float] = {}

        def weigh(member: Architecture) -> float:
            losses[member] = member_loss(shrink(student, member), self, texts) + self.member_penalty(member)
            return losses[member] + (OVERSPENT * max(0.0, self.budget_used(member) - 1) if self.config.is_constrained else 0.0)

        with told_to(self.log):
            from adasearch.nni_trials import run_trials

            run_trials(self.chosen_by, student, weigh, self.budget, self.config, seed, progress)
        if self.config.is_constrained:
            return Derived(best_within(losses, self, progress, measure), losses=losses)
        return Derived(min(losses, key=losses.__getitem__), losses=losses)


@STRATEGIES.register("nni.darts")
class NniDarts(NniDifferentiable):
    """All candidates mixed by their probabilities, first order."""

    ignores = NOT_ANNEALED
    trained_by = "darts"


@STRATEGIES.register("nni.gumbel_darts")
class NniGumbelDarts(NniDifferentiable):
    """All candidates mixed by Gumbel-softmax weights, drawn anew for every edge of every cell."""

    trained_by = "gumbel_darts"


@STRATEGIES.register("nni.proxyless")
class NniProxyless(NniDifferentiable):
    """One sampled candidate forward; backward all of them, for the gradient of the binary gates."""

    ignores = NOT_ANNEALED
    trained_by = "proxyless"


@STRATEGIES.register("nni.random")
class NniRandom(NniTrials):
    """Random members."""

    chosen_by = "random"


@STRATEGIES.register("nni.evolution")
class NniEvolution(NniTrials):
    """Regularized evolution. Real et al. 2019."""

    chosen_by = "evolution"
    ignores = ("unroll_rate", "candidates")

    @property
    def budget(self) -> int:
        return self.config.population * (self.config.generations + 1)


@STRATEGIES.register("nni.grid")
class NniGrid(NniTrials):
    """The first members of the grid, in random order a hundred at a time."""

    chosen_by = "grid"


@STRATEGIES.register("nni.tpe")
class NniTpe(NniTrials):
    """Tree-structured Parzen estimators. Bergstra et al. 2011."""

    chosen_by = "tpe"
