"""What supernets and students start from: the teacher's tables, its layers, a warm supernet."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModel, AutoTokenizer

from adasearch.architecture import Architecture, Space
from adasearch.config import RunConfig
from adasearch.errors import ConfigError, ModelError, one_line
from adasearch.files import fingerprint, write_atomically
from adasearch.inherit_layers import PREFIX, Importance, check_inherited, importance, inherit_layers, inherited_operations
from adasearch.inherited import Inherited
from adasearch.prepare import Problem, teacher_path
from adasearch.progress import Progress
from adasearch.shrink import build_student, inherit_embeddings, shrink
from adasearch.space import load_space
from adasearch.student import AdasearchForSequenceClassification, Trunk
from adasearch.supernet import Supernet
from adasearch.teacher import tables_of
from adasearch.warm_start import check_architecture, check_warm_start, read_warm_start, warm_student, warm_supernet

WORTH_EXAMPLES, WORTH_BATCH = 1_024, 32  # labelled texts on which heads and neurons are weighed (Michel et al. 2019 find few enough)


def check_starts(config: RunConfig, whole_space: Space, space: Space, cache: Path) -> None:
    """Raise what is wrong with a warm start or inherited layers before any work; ``space`` is as the task sees it.

    The teacher's settings and, for a warm start, its tokenizer and word table are read.
    """
    warm = None if config.warm_start is None else read_warm_start(config.warm_start, whole_space)
    if warm is not None and config.vocabulary.kind != "teacher":
        kind = config.vocabulary.kind
        raise ConfigError(f"warm_start: {warm.folder} has the teacher's vocabulary, vocabulary.kind is {kind!r}; choices: teacher")
    if warm is not None and config.architecture:
        check_architecture(warm, Architecture.load(Path(config.architecture)), space, config.architecture)
    if config.architecture and config.teacher == "none":
        layers = [name for name in Architecture.load(Path(config.architecture)).operations if name.startswith(PREFIX)]
        if layers:
            raise ConfigError(f"architecture: {config.architecture} has {layers[0]!r}, which needs a teacher; choices: --teacher, another one")
    spaces = [space]
    if config.architecture:  # whose layers are the teacher's whatever the space is
        chosen = Architecture.load(Path(config.architecture))
        own = {"operations": tuple(chosen.operations), "pair_operations": (), "never_derived": (), "cells": (1, max(1, chosen.depth))}
        spaces.append(dataclasses.replace(space, name=config.architecture, macro=chosen.macro, **own))
    if warm is None and not any(map(inherited_operations, spaces)):
        return
    if config.teacher == "none":
        check_inherited(space, None, "teacher")
    path = teacher_path(config, cache)
    remote = config.finetune.trust_remote_code
    try:
        theirs = AutoConfig.from_pretrained(path, trust_remote_code=remote)
        for one in spaces:
            check_inherited(one, theirs, f"teacher {config.teacher}")
        if warm is not None:
            word, _ = tables_of(AutoModel.from_pretrained(path, trust_remote_code=remote))
            check_warm_start(warm, AutoTokenizer.from_pretrained(path, trust_remote_code=remote), word, config.max_seq_length)
    except (OSError, ValueError) as error:
        raise ModelError(f"teacher: {config.teacher!r} cannot be loaded ({one_line(error, 300)})") from error


def start_supernet(supernet: Supernet, config: RunConfig, problem: Problem, cache: Path, progress: Progress) -> None:
    """Edit in place: what a search starts from. The gates stay as they are."""
    start_trunk(supernet.trunk, problem, cache, progress)
    if config.warm_start is not None:
        fresh = warm_supernet(supernet, read_warm_start(config.warm_start, load_space(config.space)))
        if fresh:
            progress.message(f"warm_start: {', '.join(fresh)} start afresh: the warm supernet was taught without pairs")


def new_student(
    architecture: Architecture, config: RunConfig, problem: Problem, space: Space, supernet: Supernet | None, cache: Path,
    progress: Progress, with_teacher: bool = True,
) -> AdasearchForSequenceClassification:  # fmt: skip
    """What a training starts from: the supernet's weights where they are to be inherited, else the teacher's tables."""
    if supernet is not None and config.retrain.inherit and with_teacher and architecture.cells:
        return shrink(supernet, architecture)
    return start_student(architecture, space, config, problem, cache, progress, is_warm=with_teacher)


def start_student(
    architecture: Architecture, space: Space, config: RunConfig, problem: Problem, cache: Path, progress: Progress, *, is_warm: bool = True
) -> AdasearchForSequenceClassification:
    """A student that no search has trained; ``is_warm`` False leaves out all but the word table (for a control without a teacher)."""
    student = build_student(architecture, problem.student_config)
    start_trunk(student.trunk, problem, cache, progress, with_layers=is_warm)
    if config.warm_start is not None and is_warm:
        warm_student(student, read_warm_start(config.warm_start, load_space(config.space)), space)
    return student


def start_trunk(trunk: Trunk, problem: Problem, cache: Path, progress: Progress, *, with_layers: bool = True) -> None:
    """Edit in place: the teacher's tables and, where there are operations for them, its layers."""
    inherit_embeddings(trunk, problem.word, problem.position)
    if with_layers and problem.teacher is not None and any(isinstance(module, Inherited) for module in trunk.modules()):
        inherit_layers(trunk, problem.teacher.model, teacher_worth(problem, cache, progress))


def teacher_worth(problem: Problem, cache: Path, progress: Progress) -> Importance:
    """How much the teacher's heads and neurons are worth on the task's labelled texts, computed once."""
    teacher, examples = problem.teacher, problem.teacher_labelled
    assert teacher is not None, "without a teacher nothing is inherited"
    table, _ = tables_of(teacher.model)
    path = cache / f"worth-{fingerprint(table.float().cpu().numpy(), examples.tokens.ids, examples.tokens.offsets)}.pt"
    if not path.exists():
        known = np.random.default_rng(0).permutation(len(examples))[:WORTH_EXAMPLES]
        device = next(teacher.model.parameters()).device
        starts = range(0, len(known), WORTH_BATCH)
        progress.stage("worth of heads and neurons", len(known))

        def batches() -> Iterator[dict[str, Tensor]]:
            for start in starts:
                yield {name: tensor.to(device) for name, tensor in examples.collate(known[start : start + WORTH_BATCH]).items()}
                progress.step(min(start + WORTH_BATCH, len(known)))

        worth = importance(teacher.model, teacher.logits, batches(), problem.task.problem_type)
        write_atomically(path, lambda partial: torch.save({"heads": worth.heads_NH, "neurons": worth.neurons_NF}, partial))
    held = torch.load(path, weights_only=True)
    return Importance(held["heads"], held["neurons"])
