"""The models of Prune Once for All on a task as recipes: sparse int8, which is the student, and those it is held against.

    models/sparse_int8-<seed>/   the sparse one after quantisation-aware training
    models/sparse-<seed>/        fine-tuned with its pattern locked
    models/direct-<seed>/        the dense model, pruned to the same sparsity on this task alone, gradually
    models/dense-<seed>/         the dense model, fine-tuned without a teacher
    models/dense_int8-<seed>/    the task's dense model in int8, ranges of some training texts, not trained

Order: mask, then quantise; the pattern is checked after every stage.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from adasearch.encoder_layers import EncoderPreTrainedModel
from adasearch.encoder_problem import EncoderProblem
from adasearch.encoder_training import Outcome, Recipe, Workplace, dense_recipe, train_recipe
from adasearch.errors import ModelError
from adasearch.fit_config import steps_behind, steps_of
from adasearch.gradual_pruning import GradualPruning
from adasearch.masked_model import set_dropout
from adasearch.methods.locked import GradualFinetuning, LockedFinetuning
from adasearch.methods.qat import QuantizeAware
from adasearch.prune_ofa_config import PruneOfaTaskConfig
from adasearch.prune_ofa_forms import Int8Form, SparseForm
from adasearch.prune_ofa_source import Source
from adasearch.quantize_aware import attach_int8, stacked_layers
from adasearch.sparse_model import broken_zeros, lock_pattern, mean_sparsity, pattern_of
from adasearch.sparse_pattern import Pattern
from adasearch.sparsity_schedule import SparsitySchedule
from adasearch.tokens import Examples

CALIBRATION_BATCHES, CALIBRATION_BATCH = 16, 32  # of training texts, for ranges that are not trained
CALIBRATION_MOMENTUM = 0.1  # of so few batches each counts more than in a training


def prune_ofa_recipes(config: PruneOfaTaskConfig, source: Source) -> list[Recipe]:
    """The student, the sparse model it is made of, and the baselines that were asked for."""
    sparse = Recipe("sparse", "sparse", "sparse", partial(train_sparse, config, source), SparseForm(config))
    recipes = [Recipe("student", "sparse_int8", "sparse int8", partial(train_int8, config, sparse), Int8Form(config)), sparse]
    if config.direct:
        train = partial(train_direct, config, source)
        recipes.append(Recipe("direct", "direct", "pruned on this task alone", train, SparseForm(config)))
    if config.dense:
        recipes.append(dataclasses.replace(dense_recipe(config), name="dense, fine-tuned here"))
    if config.baselines:
        form = Int8Form(config, is_sparse=False)
        recipes.append(Recipe("dense_int8", "dense_int8", "dense int8, calibrated", partial(calibrate_dense, config), form, (config.seed,)))
    return recipes


def train_sparse(config: PruneOfaTaskConfig, source: Source, place: Workplace) -> Outcome:
    """Fine-tuned from the sparse model, with its zeros locked."""
    model, names = source.start(place.seed)
    _set_dropout(model, config)
    pattern = pattern_of(model, names)
    fit_config = place.fit_config(_steps(place, config.lock), config.lock)
    method = LockedFinetuning(fit_config, *_task(place), **_teaching(config, place), names=names)
    place.fit(model, method, "lock", examples=_taught(config, place), is_mixed=_is_encoder(model))
    _check_pattern(model, pattern, "lock")
    facts = {"sparsity": mean_sparsity(model, names), "pretraining_seconds": source.pretraining_seconds}
    return Outcome(model, ("lock",), {"method": "locked", **facts})


def train_int8(config: PruneOfaTaskConfig, sparse: Recipe, place: Workplace) -> Outcome:
    """The sparse model of this seed, trained on with int8 weights and activations, masks and teacher still on."""
    with place.watch.paused():
        before = train_recipe(sparse, place.problem, config, place.seed)
    model = place.problem.load(before.folder)
    _set_dropout(model, config)
    names = stacked_layers(model)
    pattern = pattern_of(model, names)
    lock_pattern(model, names)
    fit_config = place.fit_config(_steps(place, config.int8), config.int8)
    method = QuantizeAware(fit_config, *_task(place), **_teaching(config, place), int8=config.int8)
    learned = place.fit_config(_steps(place, config.lock), config.lock).steps
    after = steps_behind(learned, len(place.problem.lesson), config.lock.batch_size, config.int8.batch_size)
    place.fit(model, method, "int8", after=after, examples=_taught(config, place), is_mixed=_is_encoder(model))
    _check_pattern(model, pattern, "int8")
    facts = {"sparsity": before.facts["sparsity"], "sparsity_rounded": mean_sparsity(model, names)}
    return Outcome(model, ("int8",), {"method": "quantisation-aware", **facts}, after=before)


def train_direct(config: PruneOfaTaskConfig, source: Source, place: Workplace) -> Outcome:
    """``config.model``, dense and pre-trained, pruned by magnitude while it learns this task: what one sparse model saves."""
    model = place.problem.dense() if config.teach.start == "teacher" else place.problem.pretrained(place.seed)
    _set_dropout(model, config)
    settings = config.lock
    steps = _steps(place, settings, config.direct_epochs) + config.direct_more_steps
    fit_config = place.fit_config(steps, settings)
    schedule = SparsitySchedule.of_shares(fit_config.steps, source.direct_sparsity)
    pruning = GradualPruning(schedule, Pattern.parse(source.pattern), source.scope)
    method = GradualFinetuning(fit_config, *_task(place), **_teaching(config, place), pruning=pruning)
    place.fit(model, method, "direct", examples=_taught(config, place))
    return Outcome(model, ("direct",), {"method": "gradual magnitude pruning", "sparsity": mean_sparsity(model, stacked_layers(model))})


def calibrate_dense(config: PruneOfaTaskConfig, place: Workplace) -> Outcome:
    """The dense model in int8 by calibration: what int8 alone gives, in score and in speed."""
    model, settings = place.problem.dense().cpu(), config.int8
    attach_int8(
        model, per=settings.per, outputs=settings.outputs, exclude=settings.exclude, embeddings=settings.embeddings,
        momentum=CALIBRATION_MOMENTUM,
    )  # fmt: skip
    texts = calibrate_ranges(model, place.problem)
    return Outcome(model, (), {"method": "calibrated int8", "calibrated_texts": texts})


@torch.no_grad()
def calibrate_ranges(model: PreTrainedModel, problem: EncoderProblem) -> int:
    """Let the activations' ranges follow some training texts, and return how many; weights and dropout rest."""
    quantizers = [module for module in model.eval().modules() if hasattr(module, "is_observing")]
    order = np.random.default_rng(0).permutation(len(problem.train))[: CALIBRATION_BATCHES * CALIBRATION_BATCH]
    for quantizer in quantizers:
        quantizer.train()
    for start in range(0, len(order), CALIBRATION_BATCH):
        problem.forward(model, problem.train.collate(order[start : start + CALIBRATION_BATCH]))
    model.eval()
    return len(order)


def _task(place: Workplace) -> tuple[str, Any]:
    """Kind of the task and how a batch is fed, as the methods take them."""
    return place.problem.task.problem_type, place.problem.forward


def _teaching(config: PruneOfaTaskConfig, place: Workplace) -> dict[str, Any]:
    teach = config.teach
    guide = place.problem.dense().eval().requires_grad_(False) if teach.layer_weight else None
    return {
        "task_weight": teach.gold_weight, "kd_weight": teach.teacher_weight, "temperature": teach.temperature,
        "layer_weight": teach.layer_weight, "guide": guide,
    }  # fmt: skip


def _set_dropout(model: PreTrainedModel, config: PruneOfaTaskConfig) -> None:
    if config.teach.dropout is not None:
        set_dropout(model, config.teach.dropout)


def _is_encoder(model: PreTrainedModel) -> bool:
    """Whether it trains in mixed precision: searched students do not, they gain nothing by it."""
    return isinstance(model, EncoderPreTrainedModel)


def _taught(config: PruneOfaTaskConfig, place: Workplace) -> Examples:
    """The training texts, where they are learned from with the teacher's logits, whose making is not counted: all systems share them."""
    if not config.teach.teacher_weight:
        return place.problem.lesson
    with place.watch.paused():
        return place.problem.taught()


def _steps(place: Workplace, settings: Any, epochs: float | None = None) -> int:
    """Of so many passes over what is learned from, those of ``settings`` when absent."""
    return steps_of(epochs or settings.epochs, len(place.problem.lesson), settings.batch_size)


def _check_pattern(model: PreTrainedModel, pattern: dict[str, Tensor], stage: str) -> None:
    """Raise ``ModelError`` where a zero of the pattern is none any more."""
    broken = broken_zeros(model.cpu(), pattern)
    if broken:
        name, count = next(iter(broken.items()))
        raise ModelError(f"{stage}: {sum(broken.values())} zeros of the locked pattern are gone, {count} of them in {name}; this is a bug")
