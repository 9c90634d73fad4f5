"""The student's vocabulary where it is not the teacher's, made before anything is searched: tokenizer and texts in its ids.

Row by row they stay the texts that the teacher has labelled in its own ids.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from adasearch.files import fingerprint, write_folder
from adasearch.progress import Progress
from adasearch.task_config import VocabularyConfig
from adasearch.tasks import Task
from adasearch.texts import tokenize_splits
from adasearch.tokens import Examples, TokenStore
from adasearch.vocabulary import (
    check_size,
    choose_pieces,
    count_pieces,
    reduce_tokenizer,
    retokenise,
    rules_of,
    train_tokenizer,
)


def early_tokenizer(
    settings: VocabularyConfig, task: Task, teacher: PreTrainedTokenizerBase, cache: Path, progress: Progress
) -> PreTrainedTokenizerBase:
    """The student's tokenizer as far as it can be known before the transfer set is: its own, else the teacher's.

    Raises ``ConfigError`` and ``ModelError`` for a vocabulary that cannot be had.
    """
    if settings.kind == "pruned":
        check_size(teacher, settings.size)
    if settings.kind != "own":
        return teacher
    splits = [split for split in (task.train, task.unlabeled) if split is not None]
    texts = [text for split in splits for text in (*split.texts, *(split.pairs or ()))]
    return cached_tokenizer(teacher, texts, settings.size, cache=cache, progress=progress)


def reduced_tokenizer(
    settings: VocabularyConfig, teacher: PreTrainedTokenizerBase, labelled: TokenStore, extra: list[TokenStore]
) -> PreTrainedTokenizerBase:
    """The teacher's tokenizer with those of its pieces that the student's texts use."""
    labelled_V = count_pieces([labelled], teacher)
    counts_V = labelled_V + count_pieces(extra, teacher)
    kept = choose_pieces(teacher, counts_V, labelled_V=labelled_V, size=settings.size, min_count=settings.min_count)
    return reduce_tokenizer(teacher, kept)


def in_own_pieces(
    task: Task, teacher: PreTrainedTokenizerBase, student: PreTrainedTokenizerBase, max_length: int, *, known: Examples,
    validation: Examples, held_out: Examples, extra: list[TokenStore], cache: Path, notes: list[str], progress: Progress,
) -> tuple[Examples, Examples, Examples]:  # fmt: skip
    """``known`` (the training texts, then ``extra``), ``validation`` and ``held_out`` in the student's ids.

    Labelled texts are tokenised from the start. Others exist, or were cut, as the teacher's ids: they are split again.
    Adds to ``notes`` how many labelled texts were cut, which have more pieces than the teacher's.
    """
    splits = {f"student_{name}": split for name, split in task.splits.items()}
    train, *others = (one.tokens for one in tokenize_splits(splits, student, max_length, cache=cache, notes=notes, progress=progress))
    again = [
        cached_retokenise(store, teacher, student, max_length, cache=cache, name="student_transfer", progress=progress)
        for store in extra
    ]
    pad, lesson = student.pad_token_id, TokenStore.concatenate([train, *again])
    return (
        dataclasses.replace(known, tokens=lesson, pad_token_id=pad),
        *(dataclasses.replace(examples, tokens=tokens, pad_token_id=pad) for examples, tokens in zip((validation, held_out), others)),
    )


def cached_retokenise(
    store: TokenStore, old: PreTrainedTokenizerBase, new: PreTrainedTokenizerBase, max_length: int, *,
    cache: Path, name: str, progress: Progress,
) -> TokenStore:  # fmt: skip
    """``retokenise`` once, mapped from ``cache``: the files' name holds a fingerprint of texts and both tokenizers."""
    name = f"{name}-{fingerprint(np.asarray(store.ids), store.offsets, rules_of(old), rules_of(new), max_length)}"
    if (made := TokenStore.load(cache, name)) is not None:
        return made
    progress.stage(f"split {len(store):,} texts again")
    retokenise(store, old, new, max_length).save(cache, name)
    return TokenStore.load(cache, name)


def cached_tokenizer(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], size: int, *, cache: Path, progress: Progress
) -> PreTrainedTokenizerBase:
    """``train_tokenizer`` once, read back from ``cache`` afterwards."""
    folder = cache / f"student_tokenizer-{fingerprint(list(texts), rules_of(tokenizer), size)}"
    if not folder.exists():
        progress.stage(f"learn a vocabulary of {size:,} pieces")
        write_folder(folder, lambda partial: train_tokenizer(tokenizer, texts, size).save_pretrained(partial))
    return AutoTokenizer.from_pretrained(folder, local_files_only=True)
