"""Settings of the problem: where the examples come from, the texts beyond them, the student's vocabulary."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from adasearch.errors import ConfigError
from adasearch.settings import check_choice, check_idle, check_optional, check_range

PROBLEM_TYPES = ("single_label", "multi_label", "regression")  # of texts that are classified
QUESTION_ANSWERING = "question_answering"  # the problem type that is another: spans are read
SUFFIXES = (".csv", ".tsv", ".jsonl", ".parquet")  # of files of examples
QUESTION_SUFFIXES = (*SUFFIXES, ".json")  # of questions: as SQuAD is published, too


def folder_name(task: str) -> str:
    """A task's name as that of a folder: a hub's id without its slash and colon, a file's name without its suffix."""
    if Path(task).suffix.lower() in QUESTION_SUFFIXES:
        return Path(task).stem
    return task.replace("/", "--").replace(":", "-")


@dataclass
class TaskConfig:
    """Where the examples come from and what their columns mean.

    Args:
        task: a preset (demo, sst2, mrpc, qqp, mnli, qnli, rte, cola, stsb, snli, imdb, rotten_tomatoes, ag_news, squad), a hub data
            set id (``owner/name`` or ``owner/name:configuration``), a file of training examples, or the name to give the files
            below. squad is for `compress` alone.
        data_dir: a folder with ``<task>/{train,validation,test}.parquet`` to read a preset from instead of the hub;
            ``unlabeled.parquet`` beside them is learned from where no ``unlabeled_file`` is named.
        train_file: training examples, csv, tsv, jsonl or parquet.
        validation_file: held-out examples; 10% of the training file when absent.
        test_file: examples that nothing but the final score sees; the validation examples when absent.
        unlabeled_file: more texts of the same kind for the teacher to label (txt, csv, tsv, jsonl or parquet).
        text_column: column of the text, or of the first text of a pair.
        text_pair_column: column of the second text of a pair.
        label_column: column of the gold label; in multi-label tasks labels joined by ``|`` or a list.
        soft_label_columns: one column of probabilities per label, from an LLM or an older model; replaces the teacher's logits.
        problem_type: single_label, multi_label or regression; guessed from the labels when absent. question_answering for files
            of questions, contexts and answers as SQuAD has them.
        metric: the metric that counts; the task's own when absent.
        max_train_examples: learn from so many of the training examples, drawn by the seed, of each class its share; all when absent.
            Validation and test examples stay whole, and a smaller draw is part of a larger one.
        max_seq_length: texts longer than this many word pieces are cut, and counted.
        skip_bad_rows: leave out rows that cannot be read instead of refusing the file.
        demo_assets: folder with the demo's two pinned archives, for machines without a package index.
    """

    task: str = "custom"
    data_dir: str | None = None
    train_file: str | None = None
    validation_file: str | None = None
    test_file: str | None = None
    unlabeled_file: str | None = None
    text_column: str = "text"
    text_pair_column: str | None = None
    label_column: str = "label"
    soft_label_columns: list[str] | None = None
    problem_type: str | None = None
    metric: str | None = None
    max_train_examples: int | None = None
    max_seq_length: int = 128
    skip_bad_rows: bool = False
    demo_assets: str | None = None


@dataclass
class TransferConfig:
    """The texts beyond the labelled ones on which the teacher teaches.

    Args:
        size: how many texts are made from the training texts, in all; 0 = none.
        neighbours: share of them that are copies with word pieces replaced by near ones in the teacher's embedding table.
        fragments: share that are random fragments of sentences.
        splices: share that join the first part of one text to the last part of another.
        masked_lm: share with words replaced by what a masked language model (``masked_lm_model``) proposes.
        masked_lm_model: checkpoint of that model.
        replace_probability: share of the word pieces replaced by ``neighbours`` and ``masked_lm``.
        candidates: how many nearest pieces (or proposals) a replacement is drawn from.
        labelled_share: labelled texts are repeated until they make up this share of what a student sees: the texts that
            are made are many, and further from the task.
        unlabeled_size: how many of the unlabelled texts are used at most; of their sentences where these are cut.
        split_sentences: cut unlabelled texts into sentences first.
    """

    size: int = 50_000
    neighbours: float = 0.5
    fragments: float = 0.3
    splices: float = 0.2
    masked_lm: float = 0.0
    masked_lm_model: str | None = None
    replace_probability: float = 0.3
    candidates: int = 15
    labelled_share: float = 0.3
    unlabeled_size: int = 200_000
    split_sentences: bool = True


@dataclass
class VocabularyConfig:
    """The student's vocabulary and with it the rows of its word table.

    Args:
        kind: teacher (the teacher's); pruned (the teacher's pieces that the training and the transfer texts use, with
            their rows); own (a WordPiece trained on the task's texts, whose rows start from the teacher's).
        size: rows at most; with pruned the most frequent ones, no limit when absent.
        min_count: with pruned: pieces that occur less often in all those texts go.
    """

    kind: str = "teacher"
    size: int | None = None
    min_count: int = 1


def check_transfer(transfer: TransferConfig, unlabeled_file: str | None) -> None:
    """Check the numbers of the transfer set, and that a file of texts without labels would be read; raises ``ConfigError``."""
    for name, low, high in (
        ("candidates", 1, 1e6), ("size", 0, math.inf), ("unlabeled_size", 0, math.inf), ("replace_probability", 0, 1), ("labelled_share", 0, 0.99),
        ("neighbours", 0, math.inf), ("fragments", 0, math.inf), ("splices", 0, math.inf), ("masked_lm", 0, math.inf),
    ):  # fmt: skip
        check_range(f"transfer.{name}", getattr(transfer, name), low, high)
    if transfer.masked_lm and not transfer.masked_lm_model:
        raise ConfigError(
            "transfer.masked_lm: replacement needs transfer.masked_lm_model, a masked language model with the teacher's tokenizer"
        )
    if not transfer.masked_lm:
        check_idle("transfer.masked_lm_model", transfer.masked_lm_model, None, "where transfer.masked_lm is 0", "a share, such as 0.2")
    if unlabeled_file and not transfer.unlabeled_size:
        raise ConfigError(
            f"unlabeled_file: {unlabeled_file} would not be read, transfer.unlabeled_size is 0; choices: --transfer.unlabeled_size 200000,"
            " or leave it out"
        )


def check_vocabulary(vocabulary: VocabularyConfig) -> None:
    """Check kind and size of the vocabulary; raises ``ConfigError``."""
    check_choice("vocabulary.kind", vocabulary.kind, ("teacher", "pruned", "own"))
    check_optional("vocabulary.size", vocabulary.size, 1, 1 << 24)
    check_range("vocabulary.min_count", vocabulary.min_count, 0, math.inf)
    if vocabulary.kind == "own" and vocabulary.size is None:
        raise ConfigError("vocabulary.size: kind 'own' needs a size; choices: a number of rows, such as 8000")
    if vocabulary.kind != "pruned":
        of_kind = f"on vocabulary.kind {vocabulary.kind}"
        check_idle("vocabulary.min_count", vocabulary.min_count, VocabularyConfig.min_count, of_kind, "--vocabulary.kind pruned")
    if vocabulary.kind == "teacher":
        check_idle("vocabulary.size", vocabulary.size, None, "on the teacher's vocabulary", "--vocabulary.kind pruned or own")
