"""The runs behind a diagnosis: searches with several seeds, members ranked before and after training, controls.

Everything lies in ``diagnosis/<strategy>/`` of the run's folder: ``seed-<s>/search`` is a search, ``seed-<s>/models`` holds what
was trained with its supernet, one folder a system. What is finished there is read back, so that a diagnosis goes on after a
kill, and a larger one begins with what a smaller one has done; with other settings it is refused. Teacher, tokens and transfer
set are the run's own, and all strategies share them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from adasearch.accelerator import make_accelerator
from adasearch.architecture import Architecture
from adasearch.canvas import save_figure
from adasearch.config import RunConfig
from adasearch.comparison import BATCH, batch_statistics, member_loss
from adasearch.diagnosis import (
    against_controls, agreement, chance_agreement, conv3_stack_like, discretisation_gap, last_entropy, loss_shares, rank_correlation,
)  # fmt: skip
from adasearch.errors import ConfigError
from adasearch.files import fingerprint, read_json, write_json
from adasearch.gates import gates_of
from adasearch.histories import read_history
from adasearch.latency import LatencyModel, derivable
from adasearch.latency_target import known_latency
from adasearch.measure import hardware
from adasearch.member_cost import architecture_cost
from adasearch.pipeline import FREE, check, inputs_of, run_folder
from adasearch.prepare import Problem, Start, prepare
from adasearch.progress import Progress
from adasearch.run_files import begin_run, begun_precision, check_reopening, check_same, commit, only_one, refuse_processes
from adasearch.runtime_base import load_classifier
from adasearch.search_method import STRATEGIES, SearchMethod
from adasearch.search_plots import controls_figure, ranking_figure, retrained_front_figure
from adasearch.settings import check_seeds, part_of, to_dict
from adasearch.shrink import random_architecture, random_architecture_like, shrink
from adasearch.strategies import find_strategy
from adasearch.supernet import Supernet
from adasearch.systems import Trainer, run_search, scores_of, student_logits

PASSES = 4  # over the validation texts with the supernet's own path, which is drawn anew for every batch
# of the settings, those that the findings repeat: no places of files
TOLD = ("seed", "max_steps", "search_seeds", "members", "random_cells", "equal_cost", "front", "search", "retrain", "distill", "transfer")
MORE = ("search_seeds", "members", "random_cells", "equal_cost", "front")  # of the settings, those that only ask for more of the same
WIDTH_STEP = 8  # between the widths tried for the conv3 stack


@dataclass
class DiagnosisConfig(RunConfig):
    """A run's settings and, beside them, how much is diagnosed.

    Args:
        search_seeds: seeds of the searches; two or more, for the agreement of their cells.
        members: random members that are scored with the first seed's supernet, trained, and scored again.
        equal_cost: draw ``members`` at the cost of the searched one, so that size alone cannot rank them; they are the random
            controls too. The cost is the latency where ``search.latency_table`` names a table, else MACs.
        random_cells: random members at the searched one's cost, as controls, where ``members`` are of any cost.
        front: so many points of the first seed's Pareto front are trained, to see whether they keep their order; for strategies
            that find one.
    """

    search_seeds: list[int] = field(default_factory=lambda: [1, 2, 3])
    members: int = 20
    equal_cost: bool = True
    random_cells: int = 5
    front: int = 0

    def run_config(self) -> RunConfig:
        """The run's part."""
        return part_of(RunConfig, self)


@dataclass
class Searched:
    """One finished search: its folder, its supernet, the architecture it chose, and what trains with it."""

    seed: int
    supernet: Supernet
    architecture: Architecture
    folder: Path
    trainer: Trainer


class Diagnosis:
    """All parts of a diagnosis on one problem."""

    def __init__(self, config: DiagnosisConfig, progress: Progress):
        self.options, self.config, self.progress = config, config.run_config(), progress
        check_seeds("search_seeds", config.search_seeds)
        for name, least in (("members", 3), ("random_cells", 0), ("front", 0)):
            if getattr(config, name) < least:
                raise ConfigError(f"{name}: {getattr(config, name)!r} is out of range; choices: {least} or more")
        self.task, self.space = check(self.config)
        strategy = self.config.search.strategy
        if config.front and not STRATEGIES[strategy].finds_front:
            finders = ", ".join(name for name in STRATEGIES if STRATEGIES[name].finds_front)
            raise ConfigError(f"front: search.strategy {strategy!r} finds none; choices: 0, or {finders}")
        self.run_folder = run_folder(self.config)
        self.folder = self.run_folder / "diagnosis" / self.config.search.strategy
        check_reopening(self.folder, to_dict(config), to_dict(DiagnosisConfig()), (*FREE, *MORE))
        check_same(self.folder / "run.json", self.task.data, inputs_of(self.config, self.space))

    @cached_property
    def accelerator(self) -> Accelerator:
        """The device and precision of everything."""
        return make_accelerator(self.config, begun_precision(self.folder))

    @cached_property
    def problem(self) -> Problem:
        """The task made ready, in the run's own cache. From here on the folder is that of a diagnosis with these settings."""

        def begin(_: Start) -> None:
            begin_run(
                self.folder, to_dict(self.options), self.accelerator.mixed_precision,
                data=self.task.data, inputs=inputs_of(self.config, self.space),
            )  # fmt: skip

        with only_one(self.run_folder):
            return prepare(self.config, self.task, self.run_folder, self.accelerator, self.progress, begin)

    def run(self) -> dict[str, Any]:
        """Do what is left to do; the findings, which are also written as ``diagnosis.json`` with figures."""
        with only_one(self.folder):
            return self._run()

    def _run(self) -> dict[str, Any]:
        first, cells, seeds, controls = None, [], [], {name: [] for name in ("searched", "random", "conv3_stack", "bag_of_embeddings")}
        for seed in self.options.search_seeds:
            this = self.search(seed)
            first = first or this
            cells.append(this.architecture.cells)
            seeds.append(self.of_seed(this))
            controls["searched"].append(seeds[-1]["held_out"])
            controls["conv3_stack"].append(self.conv3_stack(this))
            controls["bag_of_embeddings"].append(self.score(this.trainer.train("bag_of_embeddings", this.architecture, seed).scores))
        members = self.ranking(first, self.drawn_members(first))
        controls["random"] = [member["retrained_score"] for member in members] if self.options.equal_cost else self.random_cells(first)
        found = {
            "task": self.task.name, "metric": self.task.metric, "commit": commit(), "space": self.space.name,
            "strategy": self.config.search.strategy, "config": {name: to_dict(self.options)[name] for name in TOLD}, "seeds": seeds,
            "agreement": {"searched": agreement(cells), "chance": chance_agreement(self.space)},
            "ranking": {"equal_cost": self.options.equal_cost, "members": members, **correlations(members)},
            "controls": against_controls(controls), "hardware": hardware(),
        }  # fmt: skip
        if self.options.front:
            points = self.ranking(first, self.front_points(first))
            found["front"] = {"members": points, **correlations(points)}
            if len(points) > 2:  # of fewer there is no order
                save_figure(retrained_front_figure(points, found["front"]["by_score"], self.task.metric), self.folder / "front")
        save_figure(ranking_figure(members, found["ranking"]["by_score"], self.task.metric), self.folder / "ranking")
        save_figure(controls_figure(controls, self.task.metric), self.folder / "controls")
        write_json(self.folder / "diagnosis.json", found)
        return found

    def search(self, seed: int) -> Searched:
        """A search with that seed, in a folder of its own."""
        folder = self.folder / f"seed-{seed}"
        config = dataclasses.replace(self.config, seed=seed, data_seed=self.config.seed_of_data)
        supernet, architecture = run_search(config, self.problem, self.space, folder / "search", self.accelerator, self.progress)
        trainer = Trainer(config, self.problem, self.space, supernet, folder, self.accelerator, self.progress)
        return Searched(seed, supernet, architecture, folder, trainer)

    def of_seed(self, this: Searched) -> dict[str, Any]:
        """One search: the gap between what it trained and what it gave (on the validation texts), its last records, its architecture."""
        history = read_history(this.folder / "search" / "history.jsonl")
        trained = this.trainer.train("student", this.architecture, this.seed)
        logits_NC = student_logits(load_classifier(trained.folder).to(self.accelerator.device), self.problem.validation, self.accelerator)
        retrained = self.score(scores_of(self.problem, logits_NC, self.problem.validation))
        derived = self.member_score(this.supernet, this.architecture)
        return {
            "seed": this.seed, "architecture": this.architecture.to_dict(), **self.price(this, this.architecture),
            "held_out": self.score(trained.scores), "gap": discretisation_gap(self.path_score(this), derived, retrained),
            "loss_shares": loss_shares(history), "entropy": last_entropy(history),
        }  # fmt: skip

    def method(self, this: Searched) -> SearchMethod:
        """The search's method as it was in its last step. Its probes were not kept: its loss is that of the final logits."""
        settings, task = self.config.search, self.problem.task
        distill = dataclasses.replace(self.config.distill, probe_weight=0.0)
        latency = self.latency(this)
        method = find_strategy(settings)(settings, distill, task.problem_type, task.num_labels, self.problem.length, latency)
        method.attach(this.supernet)
        method.begin_step(this.supernet, settings.steps - 1, settings.steps)
        for gate in gates_of(this.supernet):
            gate.turn = None  # fair draws take turns by the step: here each batch has one of its own
        method.is_learning = settings.mode == "joint"  # in the other mode weights learn on what they are shown beside the architecture
        return method

    def latency(self, this: Searched) -> LatencyModel | None:
        """The search's latency table, where it has one."""
        return known_latency(self.config.search, self.problem.labelled, this.folder)

    def path_score(self, this: Searched) -> float:
        """Mean validation score of what the search trained: a draw, or the mixture, for every batch."""
        method = self.method(this)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(this.seed)
            scores = [
                self.score(self.batch_scores(this.supernet, lambda batch: method.predict(this.supernet, batch))) for _ in range(PASSES)
            ]
        return float(np.mean(scores))

    def member_score(self, supernet: Supernet, member: Architecture) -> float:
        """Validation score of a member with the supernet's weights."""
        student = shrink(supernet, member)
        return self.score(self.batch_scores(student, lambda batch: student(batch["input_ids"], batch["attention_mask"]).logits))

    @torch.no_grad()
    def batch_scores(self, model: nn.Module, predict: Callable[[dict[str, Tensor]], Tensor]) -> dict[str, float]:
        """Validation metrics without dropout and with each batch's own statistics, as a supernet has no others that fit."""
        validation = self.problem.validation
        order = np.argsort(validation.tokens.lengths, kind="stable")
        parts = np.array_split(order, max(1, round(len(order) / BATCH)))
        with batch_statistics(model):
            logits_NC = np.concatenate([predict(validation.collate(indices)).numpy() for indices in parts])
        return scores_of(self.problem, logits_NC, validation.select(order))

    def score(self, scores: dict[str, float]) -> float:
        """The metric that counts."""
        return scores[self.task.metric]

    def macs(self, member: Architecture) -> float:
        """Multiply-accumulates of the whole student for a text of mean length."""
        return float(architecture_cost(member, self.problem.length, self.problem.student_config).macs)

    def conv3_stack(self, this: Searched) -> float:
        """Held-out score of the stack of conv3 that costs as much.

        Where the space has no conv3, it starts without the supernet. Where no member has it, its cost is counted in MACs: a latency
        table lacks it.
        """
        has_conv3 = "conv3" in self.space.operations
        latency = self.latency(this) if "conv3" in derivable(self.space) else None
        widths = None if latency else range(WIDTH_STEP, max(self.space.widths) + 1, WIDTH_STEP)
        stack = conv3_stack_like(this.architecture, self.space, latency.predict if latency else self.macs, widths)
        trainer = this.trainer
        if not has_conv3:
            trainer = Trainer(trainer.config, self.problem, self.space, None, this.folder, self.accelerator, self.progress)
        return self.score(trainer.train("conv3_stack", stack, this.seed).scores)

    def price(self, this: Searched, member: Architecture) -> dict[str, float]:
        """What a member costs: "macs" and, with a latency table, "latency_ms"."""
        latency = self.latency(this)
        return {"macs": self.macs(member), **({"latency_ms": latency.predict(member)} if latency else {})}

    def random_cells(self, this: Searched) -> list[float]:
        """Held-out scores of random members at the searched one's cost."""
        trained = (this.trainer.train("random_architecture", this.architecture, index) for index in range(self.options.random_cells))
        return [self.score(found.scores) for found in trained]

    def ranking(self, this: Searched, members: list[Architecture]) -> list[dict[str, Any]]:
        """Members with their scores and losses before and after training, each trained alike."""
        method, validation = self.method(this), self.problem.validation
        texts = validation.select(np.argsort(validation.tokens.lengths, kind="stable"))
        found = []
        for member in members:
            trained = this.trainer.train(f"member-{fingerprint(member.to_dict())[:8]}", member, self.config.seed)
            found.append(
                {
                    "supernet_score": self.member_score(this.supernet, member),
                    "supernet_loss": member_loss(shrink(this.supernet, member), method, texts),
                    "retrained_score": self.score(trained.scores),
                    "retrained_loss": read_json(trained.folder / "training.json")["held_out_loss"],
                    **self.price(this, member), "architecture": member.to_dict(),
                }
            )  # fmt: skip
        return found

    def front_points(self, this: Searched) -> list[Architecture]:
        """Points of the front, as many as asked for and evenly along it."""
        path = this.folder / "search" / "front.json"
        points = read_json(path)["front"]
        chosen = np.unique(np.linspace(0, len(points) - 1, self.options.front).round().astype(int))
        return [Architecture.from_dict(points[index]["architecture"], where=str(path)) for index in chosen]

    def drawn_members(self, this: Searched) -> list[Architecture]:
        """Different members, drawn at random; the first of a larger number are those of a smaller one."""
        generator = np.random.default_rng((self.config.seed, 0xD1A6))
        latency, length = self.latency(this), self.problem.length
        found: dict[Architecture, None] = {}
        for index in range(100 * self.options.members):
            if self.options.equal_cost:
                member = random_architecture_like(this.architecture, self.space, length, self.config.seed + index, latency=latency)
                member = dataclasses.replace(member, seed=0)
            else:
                member = random_architecture(self.space, generator)
            found[member] = None
            if len(found) == self.options.members:
                return list(found)
        raise ConfigError(
            f"members: the space {self.space.name!r} gave {len(found)} different ones; choices: at most so many, or another space"
        )


def correlations(members: list[dict[str, Any]]) -> dict[str, Any]:
    """Whether scores, losses and MACs before training rank members as they are ranked after it."""
    if len(members) < 3:
        return {}
    scores, losses = ([member[f"retrained_{name}"] for member in members] for name in ("score", "loss"))
    return {
        "by_score": rank_correlation([member["supernet_score"] for member in members], scores),
        "by_loss": rank_correlation([member["supernet_loss"] for member in members], losses),
        "by_macs": rank_correlation([member["macs"] for member in members], scores),
    }


def diagnose(config: DiagnosisConfig, progress: Progress | None = None) -> dict[str, Any]:
    """Everything; see ``Diagnosis``. Raises ``ConfigError`` or ``DataError`` before any training when the request is wrong."""
    refuse_processes("a diagnosis")
    return Diagnosis(config, progress or Progress()).run()
