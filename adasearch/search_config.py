"""Settings of the search."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

from adasearch.errors import ConfigError
from adasearch.fit_config import FitConfig, check_fit
from adasearch.settings import check_choice, check_optional, check_range


@dataclass
class SearchConfig(FitConfig):
    """The differentiable search (AdaBERT, sections 3-4).

    Args:
        strategy: how architectures are searched: gumbel (AdaBERT on sampled paths), gumbel_all (AdaBERT, every candidate
            run), darts, darts_second, gdas, proxyless, one_shot (uniform paths, then evolution: a whole Pareto front),
            random (uniform paths, then random members), NNI's own as nni.darts, nni.gumbel_darts, nni.proxyless,
            nni.random_one_shot, nni.random, nni.evolution, nni.grid, nni.tpe (the extra nni), or one registered from outside.
        mode: joint (weights and architecture learn from the same batch) or bilevel (architecture from held-out examples).
        beta: weight of the efficiency term; under a constraint of the squared excess, beside a multiplier that is learned.
        efficiency: penalty adds beta times the cost; constraint learns a multiplier so that the targets below are met, to which what
            may be spent falls over half of the architecture's steps. Where a target is named it is always a constraint.
        target_macs: multiply-accumulates of the student at the task's mean length.
        target_params: parameters of the student, its embedding table included.
        latency_target_ms: milliseconds that one call of the student may take, as predicted from a table measured on this
            machine (``latency_table``) and measured again on the member that is derived. Short: ``latency_target_ms``, but for
            `sweep`, where that is a list.
        latency_table: file that ``adasearch bench`` wrote with build_lut; when absent ``search/latency.json`` of the run, measured first.
            Without a target a named table prices the random controls: they take as long as the student.
        latency_threads: threads of the runtime that the target is for.
        latency_batch_size: texts a call that the target is for. Short: ``batch_size``.
        latency_lengths: lengths in word pieces that the target is for, each as frequent as the others; the lengths of the
            task's labelled texts when absent. Short: ``lengths``.
        latency_runtime: the runtime that the target is for: onnxruntime, openvino or torch; auto takes onnxruntime where
            it is installed.
        arch_learning_rate: Adam's for the architecture.
        arch_weight_decay: pulls the architecture's logits to uniform.
        arch_warmup: share of the steps in which only the weights learn, on uniformly drawn paths.
        temperature_start: Gumbel-softmax temperature where the architecture begins to learn.
        temperature_end: and at the last (exponential between).
        valid_share: share of the labelled training texts kept from the search: to compare members on (512 at most), and in ``bilevel``
            mode (the half of it, or more) for the architecture to learn from.
        derive: evaluated (draw members from what the search learned and keep the one whose loss plus cost is least, with
            the supernet's weights, on texts that were kept from it) or argmax (the most probable of every choice, as AdaBERT).
        candidates: how many members are drawn for ``evaluated``, under a target half of them at random; trials of ``nni.random``, ``nni.grid`` and ``nni.tpe``.
        finalists: so many of the best members are trained for a short while each, and the best of these is taken, by its loss on
            texts that were kept from search and trainings (successive halving); 1 takes the best by the supernet's weights alone.
        finalist_share: of the steps of ``retrain``, for which the last two finalists are trained; earlier rounds have half as many each.
        collapse_share: alarm when operations without parameters hold more than this share of the edges.
        fair_sampling: while paths are drawn uniformly, every candidate of an edge takes its turn once in as many steps as
            there are candidates, instead of by chance.
        operation_dropout: chance of an operation without weights to be left out of a draw when the architecture begins to
            learn; falls to 0 at the last step.
        entropy_weight: weight of the gates' mean entropy in the loss at the last step; rises from 0 from the end of the warm-up.
        unroll_rate: step size of the virtual step of ``darts_second``; learning_rate when absent.
        population: members of a generation of ``one_shot``; those that ``nni.evolution`` keeps.
        generations: generations of ``one_shot`` after the first, random one; ``nni.evolution`` has as many trials.
    """

    steps: int = 500
    learning_rate: float = 2e-3
    strategy: str = "gumbel"
    mode: str = "joint"
    beta: float = 4.0
    efficiency: str = "penalty"
    target_macs: float | None = None
    target_params: float | None = None
    latency_target_ms: float | None = None
    latency_table: str | None = None
    latency_threads: int = 1
    latency_batch_size: int = 1
    latency_lengths: list[int] | None = None
    latency_runtime: str = "auto"
    arch_learning_rate: float = 2e-2
    arch_weight_decay: float = 0.0
    arch_warmup: float = 0.25
    temperature_start: float = 1.0
    temperature_end: float = 0.2
    valid_share: float = 0.2
    derive: str = "evaluated"
    candidates: int = 64
    finalists: int = 1
    finalist_share: float = 0.25
    collapse_share: float = 0.8
    fair_sampling: bool = False
    operation_dropout: float = 0.0
    entropy_weight: float = 0.0
    unroll_rate: float | None = None
    population: int = 32
    generations: int = 12

    @property
    def is_constrained(self) -> bool:
        """Whether cost is held below targets instead of being weighed."""
        return self.efficiency == "constraint" or any((self.latency_target_ms, self.target_macs, self.target_params))


def without_latency(search: SearchConfig) -> SearchConfig:
    """The same where no latency is asked for, nor what a target would be for."""
    return dataclasses.replace(search, latency_target_ms=None, latency_batch_size=SearchConfig.latency_batch_size, latency_lengths=None)


def check_search(search: SearchConfig, longest: int) -> None:
    """Check the search of a task whose texts have ``longest`` word pieces at most; raises ``ConfigError``.

    The strategy's name and what it alone needs are checked by ``strategies.find_strategy``.
    """
    for name, choices in (
        ("mode", ("joint", "bilevel")), ("efficiency", ("penalty", "constraint")), ("derive", ("evaluated", "argmax")),
        ("latency_runtime", ("auto", "onnxruntime", "openvino", "torch")),
    ):  # fmt: skip
        check_choice(f"search.{name}", getattr(search, name), choices)
    check_fit("search", search)
    for name, low, high in (
        ("beta", 0, math.inf), ("arch_warmup", 0, 1), ("valid_share", 0.01, 0.5), ("temperature_start", 1e-3, 1e3),
        ("temperature_end", 1e-3, search.temperature_start), ("candidates", 1, math.inf), ("operation_dropout", 0, 0.99),
        ("entropy_weight", 0, math.inf), ("population", 4, 1 << 16), ("generations", 0, 1 << 16), ("latency_threads", 1, 1024),
        ("latency_batch_size", 1, 1 << 20), ("finalists", 1, 1 << 10), ("finalist_share", 1e-6, 1), ("arch_learning_rate", 0, math.inf), ("arch_weight_decay", 0, math.inf),
    ):  # fmt: skip
        check_range(f"search.{name}", getattr(search, name), low, high)
    check_optional("search.unroll_rate", search.unroll_rate, 0, 10)
    for name in ("target_macs", "target_params"):
        check_optional(f"search.{name}", getattr(search, name), 1, math.inf)
    _check_latency(search, longest)
    if search.finalists > 1 and search.derive == "argmax":
        raise ConfigError(f"search.finalists: {search.finalists} need members that were compared; choices: 1, or search.derive evaluated")
    if search.efficiency == "constraint" and not (search.target_macs or search.target_params or search.latency_target_ms):
        raise ConfigError(
            "search.efficiency: 'constraint' needs a target; choices: search.latency_target_ms, search.target_macs, search.target_params"
        )


def _check_latency(search: SearchConfig, longest: int) -> None:
    check_optional("search.latency_target_ms", search.latency_target_ms, 1e-6, 1e9)
    for index, length in enumerate(search.latency_lengths or []):
        check_range(f"search.latency_lengths[{index}]", length, 1, longest)
    if search.latency_lengths == []:
        raise ConfigError("search.latency_lengths: the list is empty; choices: one or more whole numbers, or leave it out")
