"""NNI's multi-trial strategies over the members of a trained supernet, in its sequential engine. Needs the extra ``nni``.

A trial is a member weighed with the supernet's weights, as NNI proposes for one-shot networks. A sample that is no member
(``learned_per_node``) gets the worst metric there is and costs no budget; neither does one that means a member known already.
"""

from __future__ import annotations

from collections.abc import Callable

import nni
from nni.nas.evaluator import Evaluator
from nni.nas.execution import SequentialExecutionEngine
from nni.nas.space import ExecutableModelSpace, SimplifiedModelSpace
from nni.nas.strategy import TPE, GridSearch, Random, RegularizedEvolution
from nni.nas.strategy.base import Strategy

from adasearch.architecture import Architecture
from adasearch.errors import TrainingError
from adasearch.nni_network import SupernetSpace
from adasearch.nni_space import Choices
from adasearch.progress import Progress
from adasearch.search_config import SearchConfig
from adasearch.supernet import Supernet

WORST = -1e9  # a metric; finite, since TPE reckons with it
SAMPLES = 20  # proposed at most for each that is weighed: a small space may have no more
GRID_SAMPLES = 2_000  # the grid's neighbours differ in edges that no member keeps: a hundred and more samples mean one member, or none


class Trials(Evaluator):
    """Weighs members and remembers what it found. ``weigh`` gives what is to be as small as possible."""

    def __init__(self, choices: Choices, weigh: Callable[[Architecture], float], seed: int, progress: Progress):
        self.choices, self.weigh, self.seed, self.progress = choices, weigh, seed, progress
        self.found: dict[Architecture, float] = {}

    def _execute(self, model: ExecutableModelSpace) -> None:
        """In the place of NNI's own, which would build the model."""
        if not self.choices.is_member(model.sample):
            nni.report_final_result(WORST)
            return
        member = self.choices.architecture(model.sample, self.seed)
        if member not in self.found:
            self.found[member] = float(self.weigh(member))
            self.progress.step(len(self.found), loss=self.found[member], best=min(self.found.values()))
        nni.report_final_result(-self.found[member])


class Engine(SequentialExecutionEngine):
    """NNI's engine, whose budget is a number of members."""

    def __init__(self, trials: Trials, budget: int, samples: int):
        super().__init__(max_model_count=samples * budget)
        self.trials, self.budget = trials, budget

    def budget_available(self) -> bool:
        """Whether another member may be weighed."""
        return super().budget_available() and len(self.trials.found) < self.budget


class PromptTPE(TPE):
    """TPE without the second that NNI sleeps after every trial."""

    def _run(self) -> None:
        self.tuner.update_search_space({label: choice.as_legacy_dict() for label, choice in self.model_space.simplify().items()})
        while self.engine.budget_available():
            try:
                sample = self.tuner.generate_parameters(self._model_count)
            except nni.NoMoreTrialError:
                return
            model = self.model_space.freeze(sample)
            self._model_to_id[model] = self._model_count
            self._model_count += 1
            self.engine.submit_models(model)


def trial_strategy(name: str, config: SearchConfig, seed: int) -> Strategy:
    """NNI's strategy "random", "evolution", "grid" or "tpe" with the settings of a search."""
    if name == "evolution":
        tournament = max(2, config.population // 4)  # NNI's own share: 25 of 100
        return RegularizedEvolution(population_size=config.population, sample_size=tournament, seed=seed)
    if name == "tpe":
        return PromptTPE(optimize_mode="maximize", seed=seed)
    return {"random": Random, "grid": GridSearch}[name](seed=seed)


def run_trials(
    name: str, student: Supernet, weigh: Callable[[Architecture], float], budget: int, config: SearchConfig, seed: int, progress: Progress
) -> dict[Architecture, float]:
    """Let NNI's strategy ``name`` choose ``budget`` members; what each weighs, in order. A pure function of weights and seed.

    Warns where it proposed fewer in all its samples, and raises ``TrainingError`` where it proposed none.
    """
    choices = Choices(student.space)
    trials = Trials(choices, weigh, seed, progress)
    progress.stage("weigh members", budget)
    space = SimplifiedModelSpace.from_model(SupernetSpace(student, choices), trials)
    samples = GRID_SAMPLES if name == "grid" else SAMPLES
    trial_strategy(name, config, seed)(space, Engine(trials, budget, samples))
    if not trials.found:
        raise TrainingError(
            f"search.strategy: nni.{name} proposed no member of space {student.space.name!r} in {samples * budget:,} samples; choices: another"
            " strategy, or a space with a smaller learned_per_node"
        )
    if len(trials.found) < budget:
        progress.warning(f"nni.{name} proposed {len(trials.found)} members of the {budget} that were to be weighed")
    return trials.found
