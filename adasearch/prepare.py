"""Everything before the first student: the task in numbers, the teacher, and all it has to say, computed once.

What this file makes lies in ``teacher/`` and ``cache/`` of the run's folder and serves search, retraining and controls.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from adasearch.augment import load_masked_lm
from adasearch.comparison import TEXTS
from adasearch.config import RunConfig
from adasearch.demo_assets import model_path
from adasearch.distributed import main_first
from adasearch.errors import ConfigError
from adasearch.files import read_json, write_json
from adasearch.fit_config import capped_steps, steps_of
from adasearch.lesson import lesson_rows, teach, transfer_stores
from adasearch.known_labels import label_settings
from adasearch.model_inputs import check_positions, check_separator, check_vocabulary
from adasearch.near_copies import near_copies
from adasearch.progress import Progress
from adasearch.run_files import check_same, differences, digests
from adasearch.student import AdasearchConfig
from adasearch.student_vocabulary import early_tokenizer, in_own_pieces, reduced_tokenizer
from adasearch.tasks import Task
from adasearch.teacher import Teacher, load_teacher, needs_finetuning, tables_of
from adasearch.teacher_training import finetune, warn_of_poor
from adasearch.texts import tokenize_splits
from adasearch.tokens import Examples, TokenStore
from adasearch.vocabulary import start_rows
from adasearch.word_pieces import pieces_of

SOURCE = "source.json"  # in the cache
MOST_COPIES = 0.25  # of the texts that are taken for near copies of the compared ones; more where these are many themselves


@dataclass
class Problem:
    """A task ready to be learned: tokenised examples, each with what the teacher says of it.

    ``lesson`` is what students learn from (the labelled texts, repeated, then the transfer set), ``labelled`` the
    training texts alone, ``held_out`` those the scores are taken on. ``made`` is the size of the
    transfer set. ``position`` is the teacher's table; ``word`` is what the student's starts from, the teacher's or, with
    another vocabulary, rows made of it. Tokenizer and examples are the student's; ``teacher_validation``,
    ``teacher_held_out`` and ``teacher_labelled`` are the same texts in the teacher's ids, for the teacher alone.
    """

    task: Task
    tokenizer: PreTrainedTokenizerBase
    teacher: Teacher | None
    labelled: Examples
    lesson: Examples
    made: int
    validation: Examples
    held_out: Examples
    teacher_validation: Examples
    teacher_held_out: Examples
    student_config: AdasearchConfig
    word: Tensor
    position: Tensor | None
    notes: list[str]
    teacher_labelled: Examples

    @property
    def length(self) -> float:
        """Mean word pieces of a labelled text: the length at which MACs are counted."""
        return float(self.labelled.tokens.lengths.mean())

    @property
    def different(self) -> TokenStore:
        """The texts of the lesson without its repeats: the labelled ones, then the made ones."""
        made = np.arange(len(self.lesson) - self.made, len(self.lesson))
        return self.lesson.tokens.select(np.concatenate([np.arange(len(self.labelled)), made]))

    def search_splits(self, share: float, seed: int, is_bilevel: bool = False) -> SearchSplits:
        """The lesson in parts. A share of the labelled texts, at most ``TEXTS`` of them, is for comparing members.

        In bilevel mode the rest of that share, half of it at least, is for the architecture; what augmentation made of it stays with
        the weights. Near copies of the compared texts, labelled or made, are left out: what has been seen in other words would be
        compared by heart.
        """
        count = len(self.labelled)
        held = np.random.default_rng(seed).permutation(count)[: max(2 if is_bilevel else 1, round(share * count))]
        to_compare = min(TEXTS, len(held) // 2 if is_bilevel else len(held))
        compared, valid = np.sort(held[:to_compare]), np.sort(held[to_compare:] if is_bilevel else held[:0])
        most_copies = max(MOST_COPIES, 1.5 * len(compared) / count)
        copies = near_copies(self.labelled.tokens.select(compared), self.different, most_copies, self.tokenizer.all_special_ids)
        apart = np.setdiff1d(valid, copies)
        valid = apart if len(apart) else valid
        repeats = len(self.lesson) - self.made  # the lesson's rows are the labelled texts again and again, then the made ones
        text_of_row = np.concatenate([np.arange(repeats) % count, count + np.arange(self.made)])  # numbered as in ``different``
        is_known = ~np.isin(text_of_row, np.concatenate([compared, copies]))
        is_train = is_known & ~np.isin(text_of_row, valid)
        train, known = (self.lesson.select(np.flatnonzero(rows)) for rows in (is_train, is_known))
        return SearchSplits(train, self.lesson.select(valid), known, self.lesson.select(compared))


@dataclass(frozen=True)
class SearchSplits:
    """What a search learns from and what it is judged by.

    ``train`` is for the weights, ``valid`` for the architecture in bilevel mode (else empty), ``known`` both together with all
    repeats, ``compared`` unknown to all of them: on these members are compared.
    """

    train: Examples
    valid: Examples
    known: Examples
    compared: Examples


@dataclass
class Start:
    """Where a problem begins: the teacher as it was found and the task in its word pieces. Nothing has been learned yet.

    ``tokenizer`` is the student's, as far as it is known now; ``needs``: the teacher is to be fine-tuned, and is not yet.
    """

    teacher: Teacher
    tokenizer: PreTrainedTokenizerBase
    labelled: Examples
    validation: Examples
    held_out: Examples
    notes: list[str]
    needs: bool


def prepare(
    config: RunConfig, task: Task, folder: Path, accelerator: Accelerator, progress: Progress,
    begin: Callable[[Start], None] = lambda start: None,
) -> Problem:  # fmt: skip
    """Teacher, tokens, transfer set and the teacher's word on all of it. Every piece is made once and kept.

    ``begin`` is called before anything is learned, when nothing is left to refuse here: it may refuse more, and note the settings.
    Raises ``ModelError`` or ``ConfigError``, before anything is trained, when teacher, tokenizer and settings do not fit each other, or
    the folder holds what another teacher or other data left.
    """
    config = dataclasses.replace(config, seed=config.seed_of_data)
    start = _start(config, task, folder, progress)
    cap = _teacher_cap(config, folder, start)
    _check_source(config, task, folder, cap)
    begin(start)
    with main_first():
        _note_source(config, task, folder, cap)
    return _learn(config, task, start, folder, accelerator, progress)


def _start(config: RunConfig, task: Task, folder: Path, progress: Progress) -> Start:
    """The teacher, fine-tuned where that is done, and the labelled texts as its word pieces."""
    cache, has_teacher = folder / "cache", config.teacher != "none"
    with main_first():
        source = teacher_path(config, cache)
        is_tuned = (folder / "teacher" / "config.json").exists()
        needs = has_teacher and (is_tuned or needs_finetuning(source, config.finetune.when, config.finetune.trust_remote_code))
        torch.manual_seed(config.seed)  # a checkpoint without a head is given a random one
        teacher = load_teacher(
            str(folder / "teacher") if is_tuned else source,
            task,
            is_finetuned=is_tuned or (has_teacher and not needs),
            trust_remote_code=config.finetune.trust_remote_code,
        )
        check_vocabulary("teacher" if has_teacher else "tokenizer", source, teacher.tokenizer, teacher.model.config)
        if task.is_pair:
            check_separator("teacher" if has_teacher else "tokenizer", source, teacher.tokenizer, f"task {task.name!r}")
        if has_teacher:  # else its word table alone is taken
            check_positions("max_seq_length", config.max_seq_length, source, teacher.model.config)
        notes = [*task.notes, *([teacher.note] if teacher.note else [])]
        if teacher.note:
            progress.message(teacher.note)
        tokenizer = early_tokenizer(config.vocabulary, task, teacher.tokenizer, cache, progress)
        labelled, validation, held_out = tokenize_splits(
            task.splits, teacher.tokenizer, config.max_seq_length, cache=cache, notes=notes, progress=progress
        )
        needs = needs and not is_tuned
        if needs and config.transfer.size and config.transfer.masked_lm:  # asked before the teacher learns, not after
            load_masked_lm(config.transfer.masked_lm_model, teacher.tokenizer)
    return Start(teacher, tokenizer, labelled, validation, held_out, notes, needs)


def _teacher_cap(config: RunConfig, folder: Path, start: Start) -> int | None:
    """``max_steps`` where it cuts the teacher's own training short; None where that is whole, or there is none."""
    steps = steps_of(config.finetune.epochs, len(start.labelled), config.finetune.batch_size)
    is_tuned_here = start.needs or (folder / "teacher" / "config.json").exists()
    return config.max_steps if is_tuned_here and capped_steps(steps, config.max_steps) < steps else None


def _source(config: RunConfig, cap: int | None) -> dict[str, Any]:
    """Whose word the cache holds: studies and diagnoses have no run.json that would keep another's out. ``cap`` as of ``_teacher_cap``."""
    settings = {"finetune": dataclasses.asdict(config.finetune), "max_seq_length": config.max_seq_length, "seed": config.seed}
    return {"teacher": config.teacher, **settings, "max_steps": cap}


def _check_source(config: RunConfig, task: Task, folder: Path, cap: int | None) -> None:
    """Raise ``ConfigError`` where the cache was begun with another teacher or other data; of an older version's the cap is not known."""
    path = folder / "cache" / SOURCE
    check_same(path, task.data, {"teacher": Path(config.teacher)})
    before = read_json(path) if path.exists() else {}
    if before and (what := differences(before, _source(config, cap), () if "max_steps" in before else ("max_steps",))):
        raise ConfigError(f"output_dir: {folder} holds the word of another teacher ({what}); choices: another --output_dir, or delete it")


def _note_source(config: RunConfig, task: Task, folder: Path, cap: int | None) -> None:
    """Before the cache holds any word."""
    path = folder / "cache" / SOURCE
    if not path.exists():
        write_json(path, {**_source(config, cap), "data": task.data, "inputs": digests({"teacher": Path(config.teacher)})})


def _learn(config: RunConfig, task: Task, start: Start, folder: Path, accelerator: Accelerator, progress: Progress) -> Problem:
    """The teacher fine-tuned where it needs it, and its word on all texts."""
    cache, has_teacher, teacher, notes = folder / "cache", config.teacher != "none", start.teacher, start.notes
    tokenizer, labelled, validation, held_out = start.tokenizer, start.labelled, start.validation, start.held_out
    if start.needs:
        finetune(config, task, teacher, labelled, validation, folder, accelerator, progress)
    with main_first():
        teacher.model.eval().requires_grad_(False).to(accelerator.device)
        word, position = (table if table is None else table.cpu() for table in tables_of(teacher.model))
        if has_teacher and not any(cache.glob("teacher-*.npy")):  # it has said nothing yet
            warn_of_poor(task, teacher, validation, accelerator, progress)
        extra = []
        if has_teacher:
            extra = transfer_stores(
                config, task, teacher.tokenizer, labelled.tokens, word, device=accelerator.device, cache=cache, notes=notes, progress=progress
            )
        known = teach(config, task, teacher if has_teacher else None, labelled, extra, cache, accelerator, progress)
        teacher_validation, teacher_held_out = validation, held_out
        if config.vocabulary.kind == "pruned":
            tokenizer = reduced_tokenizer(config.vocabulary, teacher.tokenizer, labelled.tokens, extra)
        if tokenizer is not teacher.tokenizer:
            known, validation, held_out = in_own_pieces(
                task, teacher.tokenizer, tokenizer, config.max_seq_length, known=known, validation=validation,
                held_out=held_out, extra=extra, cache=cache, notes=notes, progress=progress,
            )  # fmt: skip
            word = start_rows(word, teacher.tokenizer, tokenizer)
            notes.append(f"vocabulary: {len(word):,} rows ({config.vocabulary.kind}) of the teacher's {len(pieces_of(teacher.tokenizer)):,}")
    own, made = known.select(np.arange(len(labelled))), len(known) - len(labelled)
    lesson = known.select(lesson_rows(len(labelled), len(known), config.transfer.labelled_share))
    return Problem(
        task,
        tokenizer,
        teacher if has_teacher else None,
        own,
        lesson,
        made,
        validation,
        held_out,
        teacher_validation,
        teacher_held_out,
        student_config(task, tokenizer, config, word),
        word,
        position,
        notes,
        labelled,
    )


def teacher_path(config: RunConfig, cache: Path) -> str:
    """Where the checkpoint lies that the teacher is made of, or its hub name; the demo's is fetched."""
    return model_path(config.tokenizer if config.teacher == "none" else config.teacher, cache, config.demo_assets)


def student_config(task: Task, tokenizer: PreTrainedTokenizerBase, config: RunConfig, word: Tensor) -> AdasearchConfig:
    """What is known of students before their shape, with ``word`` as the table that they start from."""
    return AdasearchConfig(
        vocab_size=len(word),
        max_position_embeddings=config.max_seq_length,
        embedding_rank=word.shape[1],
        sep_token_id=tokenizer.sep_token_id,
        pad_token_id=tokenizer.pad_token_id,
        is_pair=task.is_pair,
        **label_settings(task),
    )
