"""Settings of training: the one loop, the teacher's fine-tuning, the student's training, distillation."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, TypeVar

from adasearch.settings import check_choice, check_range, part_of

CLIP_NORM = 1.0  # of a transformer's gradient, as BERT's authors


@dataclass
class FitConfig:
    """One run of the training loop.

    Args:
        steps: optimiser steps.
        batch_size: examples a step.
        learning_rate: peak of the weights' learning rate (linear warm-up, cosine decay).
        embedding_rate: the word table's learning rate as a share of that.
        inherited_rate: the learning rate of layers inherited from the teacher, as a share of that.
        warmup: share of the steps in which the learning rate rises.
        weight_decay: AdamW's, on matrices only.
        clip_norm: largest gradient norm.
    """

    steps: int = 1_500
    batch_size: int = 128
    learning_rate: float = 2e-3
    embedding_rate: float = 0.5
    inherited_rate: float = 0.05
    warmup: float = 0.05
    weight_decay: float = 0.01
    clip_norm: float = 5.0


def steps_of(epochs: float, examples: int, batch_size: int) -> int:
    """Steps of so many epochs, as ``tokens.BatchSampler`` counts them: the last, short batch of an epoch is left out; 1 at least."""
    return max(1, round(epochs * _batches(examples, batch_size)))


def steps_behind(steps: int, examples: int, batch_size: int, next_size: int) -> int:
    """``fit``'s ``after`` of a stage with batches of ``next_size`` behind ``steps`` with batches of ``batch_size``.

    Batches of another size are another plan of the same examples: such a stage begins with a whole pass over them.
    """
    if batch_size == next_size:
        return steps
    return math.ceil(steps / _batches(examples, batch_size)) * _batches(examples, next_size)


def _batches(examples: int, batch_size: int) -> int:
    return examples // min(batch_size, examples)


Settings = TypeVar("Settings", bound=FitConfig)


def capped_steps(steps: int, max_steps: int | None) -> int:
    """Steps of a stage under ``max_steps``."""
    return steps if max_steps is None else min(steps, max_steps)


def capped(settings: Settings, max_steps: int | None) -> Settings:
    """The settings with that many steps at most."""
    return dataclasses.replace(settings, steps=capped_steps(settings.steps, max_steps))


def finetuning(settings: Any, steps: int, max_steps: int | None) -> FitConfig:
    """A transformer's training of so many steps (under ``max_steps``) with batch size, rates and decay of ``settings``."""
    return part_of(FitConfig, settings, steps=capped_steps(steps, max_steps), clip_norm=CLIP_NORM)


@dataclass
class RetrainConfig(FitConfig):
    """Training of the derived student.

    Args:
        inherit: start from the supernet's weights of the chosen operations instead of fresh ones. Where labels are few these know them
            by heart: on MRPC students that inherited lost 1.8 points, on RTE 1.5.
    """

    inherit: bool = False


@dataclass
class FinetuneConfig:
    """How a checkpoint without a classification head for the task becomes the teacher.

    Args:
        when: auto fine-tunes unless the checkpoint is already a sequence classifier; always; never.
        epochs: passes over the training examples.
        learning_rate: peak of AdamW's linear warm-up and decay.
        batch_size: examples a step.
        warmup: share of the steps in which the learning rate rises.
        weight_decay: AdamW's, not on biases and normalisation gains.
        trust_remote_code: run modelling code that comes with the checkpoint.
    """

    when: str = "auto"
    epochs: float = 2.0
    learning_rate: float = 5e-5
    batch_size: int = 32
    warmup: float = 0.06
    weight_decay: float = 0.01
    trust_remote_code: bool = False


@dataclass
class DistillConfig:
    """L = (1 - gamma) CE + gamma KD (AdaBERT, section 4.1; Hinton et al. 2015).

    Args:
        gamma: weight of the teacher against the gold labels; where an example has no gold label, 1.
        temperature: softens teacher and student in ``kl``.
        loss: kl (Kullback-Leibler divergence of the predictions) or mse (squared error of the logits).
        probe_weight: share of the KD term given to the probes of the hidden levels; 0 = final logits only.
    """

    gamma: float = 0.8
    temperature: float = 1.0
    loss: str = "kl"
    probe_weight: float = 0.5


def check_fit(where: str, settings: FitConfig | FinetuneConfig) -> None:
    """Check the numbers of one stage of training; raises ``ConfigError``. ``where`` stands before their names."""
    numbers = [("batch_size", 1, math.inf), ("learning_rate", 0, 10), ("warmup", 0, 1), ("weight_decay", 0, 10)]
    if isinstance(settings, FitConfig):
        numbers += [("steps", 1, math.inf), ("embedding_rate", 0, 100), ("inherited_rate", 0, 100), ("clip_norm", 1e-9, math.inf)]
    for name, low, high in numbers:
        check_range(f"{where}.{name}", getattr(settings, name), low, high)


def check_finetune(finetune: FinetuneConfig) -> None:
    """Check the teacher's fine-tuning; raises ``ConfigError``."""
    check_choice("finetune.when", finetune.when, ("auto", "always", "never"))
    check_range("finetune.epochs", finetune.epochs, 1e-6, 1e6)
    check_fit("finetune", finetune)


def check_distill(distill: DistillConfig) -> None:
    """Check the loss of distillation; raises ``ConfigError``."""
    check_choice("distill.loss", distill.loss, ("kl", "mse"))
    for name, low, high in (("gamma", 0, 1), ("probe_weight", 0, 1), ("temperature", 1e-3, 1e3)):
        check_range(f"distill.{name}", getattr(distill, name), low, high)
