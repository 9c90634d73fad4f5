"""CoFi on a task: the dense model distilled, pruned under a constraint, cut and distilled again; one model for each target.

    pretrained -> prefinetune -> prune -> shrink -> finetune

Each phase is one call of ``fit`` with optimisers of its own and leaves its result, so a run goes on after a kill. All
targets of a seed share one prefinetune, which lies in the run's ``cache/``. With ``successive`` they share one pruning as well,
whose target rises from one to the next.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from adasearch.budget import CLOSE, Budget
from adasearch.cofi_budget import budget_for, open_table
from adasearch.cofi_checks import check_chain, check_models, is_begun, model_key, state_file, targets_before, teacher_layers
from adasearch.cofi_config import CofiConfig, target_name
from adasearch.encoder import axes_of
from adasearch.encoder_latency_bench import compare_encoder
from adasearch.encoder_layers import EncoderPreTrainedModel
from adasearch.encoder_problem import EncoderProblem
from adasearch.encoder_run import About, begin_encoders, run_recipes
from adasearch.encoder_training import Compressed, Outcome, Recipe, Workplace
from adasearch.files import write_atomically
from adasearch.layer_matching import LayerDistillation
from adasearch.methods.cofi import CofiDistill, CofiPrune, Guide
from adasearch.metrics import METRICS
from adasearch.progress import Progress
from adasearch.shrink_encoder import shrink_encoder
from adasearch.structure import GateValues

GATED = {"layers": "attention and feed-forward sublayers", "heads": "heads", "neurons": "neurons", "hidden": "hidden dimensions"}  # by family
CHOSEN_BY_SCORE = (
    "there are no labelled test examples: the evaluation of a CoFi model that was kept was chosen by the examples it is scored on, which"
    " flatters it a little"
)


def compress_cofi(config: CofiConfig, progress: Progress | None = None) -> Path:
    """CoFi on one task, a model for each target and seed; returns the run's folder.

    A finished run may be given more targets; its first stays the first, whose model is ``student/``. Raises
    ``ConfigError``, ``DataError`` or ``ModelError`` before any training when request, data or models are wrong.
    """
    about = dataclasses.replace(ABOUT, summary=summary_of(config))
    run, problem = begin_encoders(config, about, progress, ("target_sparsity", "target_latency_ms"))
    check_chain(config, problem.folder)
    check_models(config, problem)
    if problem.task.test is None and config.evaluations > 1:
        problem.notes.append(CHOSEN_BY_SCORE)
    if larger := _other_sizes(config, problem):
        problem.notes.append(larger)
        problem.progress.message(larger)
    return run_recipes(run, problem, cofi_recipes(config))


def _other_sizes(config: CofiConfig, problem: EncoderProblem) -> str:
    """A word on which network is cut, where the teacher's layers are others; "" where they are alike."""
    theirs, whole = problem.teacher.model.config, problem.whole_config
    if (theirs.num_hidden_layers, theirs.hidden_size) == (len(whole.heads), whole.hidden_size):
        return ""
    return (
        f"what is cut is model {config.model!r}, of {len(whole.heads)} layers and {whole.hidden_size} hidden dimensions; the teacher, of"
        f" {theirs.num_hidden_layers} and {theirs.hidden_size}, teaches it and stays as it is"
    )


def cofi_recipes(config: CofiConfig) -> list[Recipe]:
    """One recipe for each target; the first one's model becomes the run's ``student/``."""
    return [
        Recipe(
            "pruned" if index else "student", model_key(kind, target), target_name(kind, target), partial(train_cofi, config, kind, target)
        )
        for index, (kind, target) in enumerate(config.targets)
    ]


def train_cofi(config: CofiConfig, kind: str, target: float, place: Workplace) -> Outcome:
    """The three phases for one target and seed; ``facts`` say what was asked for, reached and chosen."""
    problem = place.problem
    steps, guide = config.steps(len(problem.lesson)), Guide(problem.teacher.model, problem.forward, problem.loss)
    with place.watch.paused():
        table, lengths = open_table(config, problem) if kind == "latency" else (None, {})
    shared = dataclasses.replace(place, folder=problem.cache / f"cofi-prefinetune-{place.seed}", title=f"CoFi, seed {place.seed}")
    is_shared = steps["prefinetune"] > 0 and (shared.folder / "prefinetune-model").exists()  # another target's training has made it
    student = _prefinetune(config, shared, guide, steps["prefinetune"])
    budget = budget_for(config, axes_of(student), target, table, lengths)
    begun, ended = _chain(config, place, kind, target)
    # one stream of batches for each model, from its first phase to its last
    before = config.targets.index((kind, target)) if config.successive else 0
    first = steps["prefinetune"] + before * steps["prune"]
    if config.successive and not is_begun(place.folder):
        with place.watch.paused():
            place.note(pruned_after=targets_before(config, kind, target))  # before the first step: ``check_chain`` asks for it
    pruned = place.stage("prune", lambda: _prune(config, place, shared, guide, student, budget, steps, first, begun, ended))
    if begun is not None:
        begun.unlink(missing_ok=True)
    if table is not None and "latency" not in place.facts:
        with place.watch.paused():
            place.note(latency=compare_encoder(table, pruned, lengths, problem.progress, target))
    final = pruned
    if steps["finetune"]:
        final = place.stage("finetune", lambda: _finetune(config, place, guide, pruned, steps["finetune"], first + steps["prune"]))
    stages = [name for name in ("prune", "finetune") if steps[name]]
    facts = {"method": "cofi", "target": {kind: target}, "steps": steps, "is_successive": begun is not None, **shared.facts, **place.facts}
    took = {f"train_{name}": facts[f"prefinetune_{name}"] for name in ("seconds", "cpu_seconds") if f"prefinetune_{name}" in facts}
    return Outcome(final, tuple(stages), facts, shared=took if is_shared else None)


def _chain(config: CofiConfig, place: Workplace, kind: str, target: float) -> tuple[Path | None, Path | None]:
    """Files of the state that pruning begins from, and of the one it leaves for the next target; None where there is none."""
    if not config.successive:
        return None, None
    files = {one: state_file(place.problem.cache, kind, one, place.seed) for _, one in config.targets}
    index = list(files).index(target)
    return (list(files.values())[index - 1] if index else None), files[target]


def _prefinetune(config: CofiConfig, place: Workplace, guide: Guide, steps: int) -> EncoderPreTrainedModel:
    """The dense student, distilled from its teacher without gates; also ``layers.pt``, the map between their layers."""
    problem = place.problem

    def train() -> EncoderPreTrainedModel:
        with place.watch.timing(place.folder / "prefinetune") as took:
            model = problem.pretrained(place.seed) if config.start == "pretrained" else problem.dense()
            layers = _new_layers(config, model, guide)
            if steps:
                method = CofiDistill(
                    config, config.fit_config("prefinetune", steps), config.schedule("prefinetune"), problem.task.problem_type, guide, layers
                )
                place.fit(model, method, "prefinetune", examples=problem.lesson)
        if steps and took:
            place.note(**{f"prefinetune_{name}": value for name, value in took.items()})
        _save(place.folder / "layers.pt", layers.state_dict())
        return model

    return place.stage("prefinetune", train)


def _new_layers(config: CofiConfig, student: EncoderPreTrainedModel, guide: Guide) -> LayerDistillation:
    theirs, depth = guide.model.config, guide.model.config.num_hidden_layers
    chosen = teacher_layers(config, depth)
    ours = student.config
    return LayerDistillation(ours.hidden_size, theirs.hidden_size, ours.num_hidden_layers, depth, chosen, config.matching)


def _prune(
    config: CofiConfig, place: Workplace, shared: Workplace, guide: Guide, student: EncoderPreTrainedModel, budget: Budget,
    steps: dict[str, int], after: int, begun: Path | None, ended: Path | None,
) -> EncoderPreTrainedModel:
    """The student under gates until the target is met; the best of the models that meet it, cut to what is left of it.

    ``after`` so many steps of other phases; ``begun`` holds student, gates and multipliers of the pruning that this one goes on
    with; ``ended`` receives its own.
    """
    problem = place.problem
    layers = _new_layers(config, student, guide)
    layers.load_state_dict(_load(shared.folder / "layers.pt"))
    before = None if begun is None else _load(begun)
    method = CofiPrune(
        config, config.fit_config("prune", steps["prune"]), config.schedule("prune"), problem.task.problem_type, guide, layers, budget,
        steps["warmup"], None if config.successive else 0.0, before and before["method"],
    )  # fmt: skip
    if before is not None:
        student.load_state_dict(before["student"])
    best = Best(place, "prune")

    def evaluate(model: EncoderPreTrainedModel) -> dict[str, float]:
        values = method.decide()
        scores = problem.scores(shrink_encoder(model, values), problem.validation)
        expected = method.expected_saved()
        over = expected - budget.target
        if method.target == budget.target and over >= -config.sparsity_epsilon:
            is_near = over <= config.sparsity_epsilon
            best.offer(scores, model, is_near=is_near, layers=layers.state_dict(), values=values.to_plain(), expected_saved=expected)
        return {**scores, "saved": float(budget.saved(values.kept()))}

    place.fit(student, method, "prune", after=after, examples=problem.lesson, evaluate=evaluate, evaluations=config.evaluations)
    with place.watch.paused():
        if ended is not None:
            _save(ended, {"student": student.state_dict(), "method": method.state_dict()})
        found = best.take()
        is_met = found is not None
        if found is None:
            longer = "a larger max_steps" if steps["prune"] == config.max_steps else "more prune_epochs or min_prune_steps"
            problem.progress.warning(
                f"{place.title}: the target was not met: {budget.describe(method.expected_saved())} is saved on average,"
                f" {budget.describe(budget.target)} asked for; choices: {longer}, a larger gate_learning_rate, a milder target"
            )
            found = {"values": method.decide().to_plain(), "expected_saved": method.expected_saved(), "validation": None}
        else:
            student.load_state_dict(found.pop("model"))
            layers.load_state_dict(found.pop("layers"))
    values = GateValues.from_plain(found["values"]).map(lambda tensor: tensor.to(student.device))
    pruned, saved = shrink_encoder(student, values), float(budget.saved(values.kept()))
    with place.watch.paused():
        if abs(saved - budget.target) > max(config.sparsity_epsilon, CLOSE):
            why = "nothing nearer could be cut" if config.exact_target else "with exact_target false gates are cut as they stand"
            problem.progress.warning(f"{place.title}: {budget.describe(saved)} is saved, {budget.describe(budget.target)} was asked for; {why}")
        kept_D = torch.arange(len(layers.projection.weight[0])) if values.hidden_D is None else values.hidden_D.nonzero().flatten().cpu()
        _save(place.folder / "layers.pt", layers.narrowed(kept_D.tolist()).state_dict())
        config_left = pruned.config
        place.note(
            expected_saved=found["expected_saved"], met_by_gates=is_met, saved=saved, asked_for=budget.target,
            sparsity=float(budget.axes.sparsity(values.kept())), validation_after_prune=found["validation"],
            left={"hidden": config_left.hidden_size, "heads": list(config_left.heads), "neurons": list(config_left.neurons)},
        )  # fmt: skip
    return pruned


def _finetune(
    config: CofiConfig, place: Workplace, guide: Guide, pruned: EncoderPreTrainedModel, steps: int, after: int
) -> EncoderPreTrainedModel:
    """The physically smaller model, distilled again without gates, ``after`` so many steps of other phases."""
    problem, state = place.problem, _load(place.folder / "layers.pt")
    whole, theirs = problem.teacher.model.config.num_hidden_layers, guide.model.config.hidden_size
    depth = pruned.config.num_hidden_layers
    layers = LayerDistillation(pruned.config.hidden_size, theirs, depth, whole, teacher_layers(config, whole), config.matching)
    layers.load_state_dict(state)
    method = CofiDistill(config, config.fit_config("finetune", steps), config.schedule("finetune"), problem.task.problem_type, guide, layers)
    best = Best(place, "finetune")

    def evaluate(model: EncoderPreTrainedModel) -> dict[str, float]:
        scores = problem.scores(model, problem.validation)
        if config.keep_best:
            best.offer(scores, model)
        return scores

    place.fit(
        pruned, method, "finetune", after=after, examples=problem.lesson, evaluate=evaluate,
        evaluations=config.evaluations if config.keep_best else None,
    )  # fmt: skip
    with place.watch.paused():
        found = best.take()
        if found is not None:
            pruned.load_state_dict(found["model"])
            place.note(validation=found["validation"])
    return pruned


class Best:
    """The best model of a phase by the task's metric on the validation examples, in ``<phase>/best.pt`` until the phase's is kept.

    A phase that goes on after a kill evaluates the same models again, so what was kept before it stays right.
    """

    def __init__(self, place: Workplace, phase: str):
        self.path, self.metric = place.folder / phase / "best.pt", place.problem.task.metric
        self.rank: tuple[bool, float] | None = None  # of the one kept; where another process has kept it, the file tells

    def offer(self, scores: dict[str, float], model: nn.Module, *, is_near: bool = True, **facts: Any) -> None:
        """Keep this one, with what is known of it, if it is better than the one kept.

        One that ``is_near``, whose gates save what was asked for, comes before all whose gates save more: those were scored
        with parts opened again that they had learned to be without.
        """
        higher = METRICS[self.metric].higher_is_better if self.metric in METRICS else True
        score = scores[self.metric] if higher else -scores[self.metric]
        if self.rank is None and (kept := self.take()) is not None:
            self.rank = kept["is_near"], kept["score"]
        if self.rank is None or (is_near, score) > self.rank:
            _save(self.path, {"is_near": is_near, "score": score, "validation": scores, "model": model.state_dict(), **facts})
            self.rank = is_near, score

    def take(self) -> dict[str, Any] | None:
        """The one kept; None where there is none."""
        return _load(self.path) if self.path.exists() else None


def _save(path: Path, state: dict[str, Any]) -> None:
    write_atomically(path, lambda partial: torch.save(state, partial))


def _load(path: Path) -> dict[str, Any]:
    return torch.load(path, weights_only=True, map_location="cpu")  # weights_only: tensors and plain data, never code


def _facts(trained: Sequence[Compressed]) -> dict[str, str]:
    """Asked for and reached, of every target; a latency's prediction beside its measurement."""
    found: dict[str, str] = {}
    for name in dict.fromkeys(item.recipe.name for item in trained):
        facts = [item.facts for item in trained if item.recipe.name == name]
        reached = ", ".join(f"{100 * one['sparsity']:.1f}%" for one in facts)
        found[f"{name}: encoder parameters gone"] = reached
        if any(one.get("is_successive") for one in facts):
            found[f"{name}: training"] = "goes on where the target above it ended pruning; the time of that pruning is not in its own"
        times = [one["latency"] for one in facts if "latency" in one]
        if times:
            found[f"{name}: predicted, measured"] = ", ".join(f"{one['predicted_ms']:.3g}, {one['measured_ms']:.3g} ms" for one in times)
    return found


def met_by_gates(facts: Mapping[str, Any]) -> bool:
    """Whether a model's gates saved what was asked for by themselves, in any evaluation; of older models the score of that one tells."""
    return facts.get("met_by_gates", facts.get("validation_after_prune") is not None)


def _notes(trained: Sequence[Compressed]) -> list[str]:
    """A sentence on each target that gates have missed: what was cut off after pruning had not learned to be gone."""
    found = []
    for name in dict.fromkeys(item.recipe.name for item in trained):
        facts = [item.facts for item in trained if item.recipe.name == name]
        short = [one for one in facts if not met_by_gates(one)]
        if not short:
            continue
        gates, asked, cut = (float(np.mean([one[key] for one in short])) for key in ("expected_saved", "asked_for", "saved"))
        what = " of a call's time" if "latency" in short[0]["target"] else ""
        rest = "the rest was cut off after pruning" if cut > asked - CLOSE else f"{cut:.1%} was cut off"
        found.append(
            f"{name}: the gates of {len(short)} of {len(facts)} seeds saved {gates:.1%}{what} by themselves on average, {asked:.1%} was asked"
            f" for; {rest}"
        )
    return found


def summary_of(config: CofiConfig) -> str:
    """What a run with these settings does."""
    *others, last = [words for family, words in GATED.items() if family in config.families]
    gated = f"{', '.join(others)} and {last}" if others else last
    weights = {"predictions": config.prediction_weight, "layers": config.layer_weight}
    lessons = [f"the dense model's {' and '.join(name for name, weight in weights.items() if weight)}"] if config.is_taught else []
    lessons += ["gold labels"] if config.gold_weight else []
    again = f" and {'distilled' if config.is_taught else 'trained'} once more" if config.finetune_epochs else ""
    return (
        f"{gated[0].upper()}{gated[1:]} are gated; the gates learn, under a constraint on what they keep, beside the weights, which learn"
        f" {', and '.join(lessons)}. What is left is cut out{again}."
    )


ABOUT = About(  # its summary is that of a run with default settings
    "CoFi", "cofi", "[Xia et al. 2022](https://arxiv.org/abs/2204.00408)", summary_of(CofiConfig()), _facts, notes=_notes,
)  # fmt: skip
