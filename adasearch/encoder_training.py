"""How one compressed model of a run is trained: a recipe, given a place to work in, returns a model and what is known of it.

    Recipe.train(place) -> Outcome

A recipe trains by ``place.fit`` and keeps the result of a stage by ``place.stage``; both go on after a kill. Time spent on
scoring, saving and waiting does not count as training.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedModel

from adasearch.encoder import axes_of
from adasearch.encoder_config import EncoderRunConfig
from adasearch.encoder_layers import EncoderConfig, EncoderPreTrainedModel
from adasearch.encoder_problem import EncoderProblem
from adasearch.errors import ConfigError
from adasearch.export import save_student
from adasearch.files import read_json, write_folder, write_json
from adasearch.fit import Evaluate, fit
from adasearch.fit_config import FitConfig, finetuning
from adasearch.histories import read_history
from adasearch.methods.base import Method
from adasearch.methods.finetune_encoder import FinetuneEncoder
from adasearch.stopwatch import Stopwatch
from adasearch.tokens import Examples

UNDER_WAY = ("checkpoint.pt", "best.pt")  # what a stage leaves while it runs, needed until its result is kept


@dataclass
class Workplace:
    """Where one model is trained: the problem, a seed, a folder for what is under way, a watch that runs meanwhile.

    ``tick`` is called after every step, with the watch at rest: trainings that share a process take turns by it.
    """

    problem: EncoderProblem
    config: EncoderRunConfig
    seed: int
    folder: Path
    title: str
    watch: Stopwatch = field(default_factory=Stopwatch)
    tick: Callable[[], None] | None = None

    def fit(
        self, model: PreTrainedModel, method: Method, stage: str, *, after: int = 0, examples: Examples | None = None,
        evaluate: Evaluate | None = None, evaluations: int | None = None, is_mixed: bool = True,
    ) -> list[dict[str, Any]]:  # fmt: skip
        """Train ``model`` in place by ``method`` with the method's own settings, and return the history.

        Args:
            stage: name of the stage, in ``folder/<stage>/``.
            after: steps of the model's earlier stages on the same examples, whose batches are not drawn again; of stages with
                another batch size ``steps_behind``.
            examples: what is learned from; the training texts with their labels when absent.
            evaluate: metrics on the validation examples for the history; the task's metrics of the model when absent.
            evaluations: how often; ``config.evaluate`` when absent.
            is_mixed: in the run's mixed precision.

        An interrupted stage goes on from its checkpoint, which stays until ``stage`` has kept the result, as ``best.pt`` does: the
        best model of a method that looks for one.
        """
        problem, config = self.problem, self.config
        evaluate = evaluate or (lambda model: problem.scores(model, problem.validation))
        return fit(
            model, method, {"train": problem.train if examples is None else examples}, method.config, seed=self.seed,
            folder=self.folder / stage, accelerator=problem.accelerator, progress=problem.progress, title=f"{self.title}: {stage}",
            after=after, evaluate=evaluate, evaluations=config.evaluate if evaluations is None else evaluations,
            checkpoint_seconds=config.checkpoint_seconds, is_mixed=is_mixed, on_step=self._on_step, watch=self.watch,
            name=f"{self.folder.name}/{stage}",
        )  # fmt: skip

    def _on_step(self) -> None:
        if self.tick is not None:
            with self.watch.paused():
                self.tick()

    def stage(self, name: str, train: Callable[[], PreTrainedModel]) -> PreTrainedModel:
        """The model that ``train`` returns, or that it returned before a kill; kept until the whole recipe is done."""
        target = self.folder / f"{name}-model"
        if (target / "config.json").exists():
            return self.problem.load(target)
        model = train()
        with self.watch.paused():
            write_folder(target, model.save_pretrained)
            for left in UNDER_WAY:
                (self.folder / name / left).unlink(missing_ok=True)
        return model

    def note(self, **facts: Any) -> None:
        """Keep plain data of a finished stage for the time after a kill, and for the report."""
        write_json(self.folder / "facts.json", {**self.facts, **facts})

    @property
    def facts(self) -> dict[str, Any]:
        """What ``note`` kept."""
        path = self.folder / "facts.json"
        return read_json(path) if path.exists() else {}

    def fit_config(self, steps: int, settings: Any) -> FitConfig:
        """See ``finetuning``."""
        return finetuning(settings, steps, self.config.max_steps)


@dataclass(frozen=True)
class Outcome:
    """A trained model; ``stages`` are those whose histories make its own, in order; ``facts`` are plain data for the
    report; ``files`` of the work folder go with the model; ``after`` is the model it was made from, whose training counts as
    a part of its own; ``shared`` are ``train_seconds`` and ``train_cpu_seconds``, as far as they are known, of a part that
    several models share and that another of them was the first to need."""

    model: PreTrainedModel
    stages: tuple[str, ...]
    facts: dict[str, Any] = field(default_factory=dict)
    files: tuple[str, ...] = ()
    after: Compressed | None = None
    shared: Mapping[str, float] | None = None


class Form:
    """How a recipe's models are written to files, read back and run. Here: as they are, in float32."""

    precision = "fp32"  # of the graph that is to be run
    is_sparse = False  # whether it has zeros that a figure can show

    def save(self, model: PreTrainedModel, problem: EncoderProblem, folder: Path, logits: np.ndarray) -> dict[str, Any]:
        """Write the folder; what is returned joins the model's facts. ``logits`` are the model's of the held-out examples."""
        save_student(model, problem.own_tokenizer, folder)
        return {}

    def answering(self, problem: EncoderProblem, folder: Path) -> PreTrainedModel:
        """The model that says what was scored."""
        return problem.load(folder)

    def sparsity(self, problem: EncoderProblem, model: PreTrainedModel) -> float:
        """See ``sparsity_of``."""
        return sparsity_of(problem, model)

    def columns(self, facts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Further fields of ``report.System``, from the facts of all seeds."""
        return {}


@dataclass(frozen=True)
class Recipe:
    """One row of the table that is trained here.

    Args:
        kind: of ``report.KINDS``; the first recipe is of kind "student" and becomes ``student/``.
        key: of the folders ``models/<key>-<seed>``.
        name: in the table.
        train: trains one model.
        form: what becomes of it.
        seeds: those of the run when empty.
    """

    kind: str
    key: str
    name: str
    train: Callable[[Workplace], Outcome]
    form: Form = Form()
    seeds: tuple[int, ...] = ()


@dataclass(frozen=True)
class Compressed:
    """One trained model: its recipe and seed, its folder, the metrics on the held-out examples, what is known of it."""

    recipe: Recipe
    seed: int
    folder: Path
    scores: dict[str, float]
    facts: dict[str, Any]


def train_recipe(
    recipe: Recipe, problem: EncoderProblem, config: EncoderRunConfig, seed: int, tick: Callable[[], None] | None = None
) -> Compressed:
    """Train one model into ``models/<key>-<seed>``, or read it back when it is there.

    ``facts`` gain ``train_seconds`` and ``train_cpu_seconds``, those of the model it was made from and of what it shares with
    others included; they are absent where a training was interrupted.
    """
    target, work = (problem.folder / part / f"{recipe.key}-{seed}" for part in ("models", "work"))
    if not (target / "scores.json").exists():
        is_whole = not work.exists()
        work.mkdir(parents=True, exist_ok=True)
        place = Workplace(problem, config, seed, work, f"{recipe.name}, seed {seed}", tick=tick)
        with place.watch.running():
            outcome = recipe.train(place)
        took = _sum_seconds(place, outcome) if is_whole else {}
        logits = problem.logits(outcome.model.to(problem.accelerator.device), problem.held_out)
        held_out = problem.scores_of(logits, problem.held_out)
        shutil.rmtree(target, ignore_errors=True)  # a kill between saving the folder and its scores
        saved = recipe.form.save(outcome.model.cpu().eval(), problem, target, logits)
        write_json(target / "history.json", _history(work, outcome.stages))
        write_json(target / "facts.json", {**outcome.facts, **saved, **took})
        for name in outcome.files:
            shutil.copyfile(work / name, target / name)
        write_json(target / "scores.json", held_out)  # last: it says that all is there
    for left in (*work.glob("*-model"), *(path for name in UNDER_WAY for path in work.glob(f"*/{name}"))):
        shutil.rmtree(left) if left.is_dir() else left.unlink()
    return Compressed(recipe, seed, target, read_json(target / "scores.json"), read_json(target / "facts.json"))


def sparsity_of(problem: EncoderProblem, model: EncoderPreTrainedModel) -> float:
    """Share of the unpruned encoder's prunable parameters (weights and biases of its layers' linear maps) that is gone."""
    whole, left = (float(axes.expected_params(None, "prunable")) for axes in (problem.whole_axes, axes_of(model)))
    return 1 - left / whole


def is_uncut(problem: EncoderProblem, model: EncoderPreTrainedModel) -> bool:
    """Whether an encoder has all heads, neurons and hidden dimensions of the unpruned one: zeros take none away."""
    own, whole = model.config, problem.whole_config
    return is_part(problem, model) and all(getattr(own, name) == getattr(whole, name) for name in ("hidden_size", "heads", "neurons"))


def is_part(problem: EncoderProblem, model: EncoderPreTrainedModel) -> bool:
    """Whether an encoder can have been cut out of the unpruned one: as many layers, heads of one size, and nothing that is larger."""
    own, whole = model.config, problem.whole_config
    if (len(own.heads), own.head_size) != (len(whole.heads), whole.head_size) or own.hidden_size > whole.hidden_size:
        return False
    return all(left <= size for name in ("heads", "neurons") for left, size in zip(getattr(own, name), getattr(whole, name)))


def check_model(problem: EncoderProblem, config: EncoderRunConfig, setting: str, model: EncoderPreTrainedModel, may_be_cut: bool = False) -> None:
    """Raise ``ConfigError`` unless an encoder that was given by ``setting`` is as large as ``config.model``, or with ``may_be_cut`` a part of it.

    What is left of an encoder is counted, timed and drawn as a share of that one.
    """
    if is_part(problem, model) if may_be_cut else is_uncut(problem, model):
        return
    raise ConfigError(
        f"model: {config.model!r} has {_sizes(problem.whole_config)}; {setting} {getattr(config, setting)!r} has {_sizes(model.config)}, and"
        f" what is left of it is told as a share of model; choices: --model with the checkpoint that it was made of, or another {setting}"
    )


def _sizes(config: EncoderConfig) -> str:
    heads, neurons = sum(config.heads), sum(config.neurons)
    return f"{len(config.heads)} layers, {heads} heads of {config.head_size}, {neurons} neurons, {config.hidden_size} hidden dimensions"


def _sum_seconds(place: Workplace, outcome: Outcome) -> dict[str, float]:
    """What the whole way took, by each clock; that one's is left out where a part is not known."""
    took = {"train_seconds": place.watch.wall_s, "train_cpu_seconds": place.watch.cpu_s}
    parts = [part for part in (outcome.after and outcome.after.facts, outcome.shared) if part is not None]
    return {name: value + sum(part[name] for part in parts) for name, value in took.items() if all(name in part for part in parts)}


def _history(work: Path, stages: tuple[str, ...]) -> list[dict[str, Any]]:
    """The stages' histories end to end, with steps counted on and the stage named."""
    found: list[dict[str, Any]] = []
    for stage in stages:
        before = found[-1]["step"] if found else 0
        records = read_history(work / stage / "history.jsonl")
        found += [{**record, "step": before + record["step"], "stage": stage} for record in records]
    return found


def dense_recipe(config: EncoderRunConfig) -> Recipe:
    """Dense fine-tuning by the settings of ``config.finetune``, as our encoder: a baseline with a seed and a time of its own."""
    def train(place: Workplace) -> Outcome:
        problem, settings = place.problem, config.finetune
        model = problem.pretrained(place.seed)
        fit_config = place.fit_config(problem.steps(settings.epochs, settings.batch_size), settings)
        place.fit(model, FinetuneEncoder(fit_config, problem.forward, problem.loss), "finetune")
        return Outcome(model, ("finetune",))

    return Recipe("dense", "dense", "dense fine-tuning", train)
