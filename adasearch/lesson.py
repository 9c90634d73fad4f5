"""What students learn from: the texts without labels beside the labelled ones, and what the teacher says of all of them."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from adasearch.augment import load_masked_lm, neighbours_table
from adasearch.config import RunConfig
from adasearch.encoder_config import TaughtRunConfig
from adasearch.errors import ConfigError
from adasearch.files import fingerprint, write_array
from adasearch.metrics import with_unknown
from adasearch.outputs import cached_outputs
from adasearch.progress import Progress
from adasearch.tasks import Task
from adasearch.teacher import PROBE_EXAMPLES, Teacher, fit_probes
from adasearch.texts import Split, split_sentences, tokenize_splits
from adasearch.tokens import Examples, TokenStore
from adasearch.transfer import build_transfer
from adasearch.word_pieces import Pieces


def lesson_rows(labelled: int, whole: int, labelled_share: float) -> np.ndarray:
    """Rows of the lesson: the ``labelled`` first ones, repeated until they make up that share, then the others."""
    wanted = labelled_share / (1 - labelled_share) * (whole - labelled) / labelled
    again = max(1, math.ceil(wanted - 1e-9))  # 0.8 / (1 - 0.8) is a little more than 4
    return np.concatenate([np.tile(np.arange(labelled), again), np.arange(labelled, whole)])


def transfer_stores(
    config: RunConfig | TaughtRunConfig, task: Task, tokenizer: PreTrainedTokenizerBase, train: TokenStore, word: Tensor, *,
    device: torch.device, cache: Path, notes: list[str], progress: Progress,
) -> list[TokenStore]:  # fmt: skip
    """Texts without labels: made from the training texts, and the user's own; ``word`` is the word table that says what is near.

    ``device`` is where a masked language model proposes words, if one does. Adds to ``notes`` how many of the user's were cut.
    """
    stores = []
    settings = config.transfer
    if settings.size:
        pieces = Pieces.from_tokenizer(tokenizer)
        table = None
        if settings.neighbours:
            table = neighbours_table(word.numpy(), settings.candidates, pieces, restrict=np.unique(train.ids))
        mlm = load_masked_lm(settings.masked_lm_model, tokenizer).to(device) if settings.masked_lm else None
        stores.append(
            build_transfer(
                train, settings, pieces, table, seed=config.seed, max_length=config.max_seq_length, cache=cache, progress=progress, mlm=mlm
            )
        )
    if task.unlabeled is not None and settings.unlabeled_size:
        split = task.unlabeled
        if settings.split_sentences and not task.is_pair:
            split = Split(split_sentences(split.texts))
        if len(split) > settings.unlabeled_size:
            chosen = np.random.default_rng(config.seed).choice(len(split), settings.unlabeled_size, replace=False)
            split = split.select(np.sort(chosen))
        (examples,) = tokenize_splits({"unlabeled": split}, tokenizer, config.max_seq_length, cache=cache, notes=notes, progress=progress)
        stores.append(examples.tokens)
    return [store for store in stores if len(store)]


def teach(
    config: RunConfig,
    task: Task,
    teacher: Teacher | None,
    labelled: Examples,
    extra: list[TokenStore],
    cache: Path,
    accelerator: Accelerator,
    progress: Progress,
) -> Examples:
    """The teacher's logits, and its probes', for every text; soft labels take the logits' place where there are any."""
    soft = None if task.train.soft_labels is None else soft_label_logits(task.train.soft_labels, task.problem_type)
    if teacher is None:
        if soft is None:
            raise ConfigError("teacher: 'none' needs soft_label_columns; or name a checkpoint")
        return dataclasses.replace(labelled, teacher_logits=soft)
    _probe(config, task, teacher, labelled, cache, accelerator, progress)
    tokens = TokenStore.concatenate([labelled.tokens, *extra])
    everything = Examples(tokens, labelled.pad_token_id)
    name = fingerprint(tokens.ids, tokens.offsets)
    # not "probes-": files of that name may hold logits that were summed in bfloat16
    names = (f"teacher-{name}", f"probe_logits-{name}")
    logits, probes = cached_outputs(
        teacher.outputs, everything, cache, names, accelerator, progress, f"teacher labels {len(tokens):,} texts"
    )
    if soft is not None:
        logits = np.concatenate([soft, logits[len(soft) :]])
    return dataclasses.replace(everything, labels=with_unknown(labelled.labels, len(tokens)), teacher_logits=logits, probe_logits=probes)


def _probe(
    config: RunConfig, task: Task, teacher: Teacher, labelled: Examples, cache: Path, accelerator: Accelerator, progress: Progress
) -> None:
    """Fit the probes, or read them back."""
    paths = cache / "probe_weights.npy", cache / "probe_biases.npy"
    if not paths[1].exists():
        chosen = np.random.default_rng(config.seed).permutation(len(labelled))[:PROBE_EXAMPLES]
        known = labelled.select(np.sort(chosen))
        _, features = cached_outputs(
            teacher.logits_and_features, known, cache, ("probe_logits", "probe_features"), accelerator, progress, "teacher's levels"
        )
        weights, biases = fit_probes(features, known.labels, task.problem_type, task.num_labels, progress)
        for path, tensor in zip(paths, (weights, biases)):
            write_array(path, tensor.numpy())
    for name in ("probe_logits", "probe_features"):  # also after a kill between writing and this
        (cache / f"{name}.npy").unlink(missing_ok=True)
    teacher.probe_weights_PCD = torch.from_numpy(np.load(paths[0])).to(accelerator.device)
    teacher.probe_biases_PC = torch.from_numpy(np.load(paths[1])).to(accelerator.device)


def soft_label_logits(probabilities: np.ndarray, problem_type: str) -> np.ndarray:
    """Soft labels (N, C) as logits; probabilities are kept 1e-4 away from 0 and 1, which no teacher is sure of."""
    if problem_type == "regression":
        return probabilities.astype(np.float32)
    p = np.clip(probabilities, 1e-4, 1 - 1e-4)
    return (np.log(p) - (np.log1p(-p) if problem_type == "multi_label" else 0)).astype(np.float32)
