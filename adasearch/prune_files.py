"""Pruning from files: which texts to count in, which examples to score on, what to train on; a run's own or the user's."""

from __future__ import annotations

import dataclasses
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

from accelerate import Accelerator
from transformers import AutoConfig, PreTrainedModel, PreTrainedTokenizerBase

import adasearch
from adasearch.calibration import calibrate, load_calibration, may_calibrate
from adasearch.classifier import check_pairs
from adasearch.errors import ConfigError
from adasearch.files import read_json
from adasearch.finished import FinishedRun, find_run
from adasearch.fit import fit
from adasearch.fit_config import DistillConfig, FitConfig
from adasearch.known_labels import Columns, labels_of, read_examples, read_texts
from adasearch.methods.distill import Distill
from adasearch.metrics import choose_metrics
from adasearch.progress import Progress
from adasearch.prune import REPORT, Pruned, Refit, load_student_and_tokenizer, logits_of, prune_vocabulary, scorer
from adasearch.runtime_base import trained_on_pairs
from adasearch.settings import part_of
from adasearch.tasks import Task
from adasearch.texts import Split
from adasearch.tokens import TokenStore
from adasearch.vocabulary import retokenise

REFIT_RATE = 0.5  # of the training's learning rate: the student is to keep what it knows


def prune_student(
    path: str | Path, output_dir: str | Path | None = None, *, size: int | None = None, sizes: Sequence[int] | None = None,
    min_count: int = 1, max_drop: float = 0.5, texts_file: str | Path | None = None,
    validation_file: str | Path | None = None, text_column: str = "text", text_pair_column: str | None = None,
    label_column: str = "label", data_dir: str | None = None, refit_steps: int = 0, seed: int = 42,
    progress: Progress | None = None,
) -> Pruned:  # fmt: skip
    """``prune_vocabulary`` of a run's student, or of a student's folder with files of the user's.

    The new one lies beside the old where no ``output_dir`` is given. Pieces are counted in ``texts_file``, else in the
    run's training, transfer and unlabelled texts. The loss is measured on ``validation_file``, else on the run's
    validation examples, in regression of R², too; without either one size is cut unseen. ``refit_steps`` trains after each cut on the run's lesson
    (SST-2, 200 steps, drop in points without and with: 6,000 rows 2.4 and 0.6, 4,000 rows 7.7 and 4.2). Raises
    ``ConfigError`` when what is needed is neither given nor found.
    """
    student_dir, run = find_run(Path(path))
    if output_dir is None:  # "." has no name of its own
        own_name = Path(os.path.abspath(student_dir)).name
        output_dir = Path(os.path.normpath(student_dir / ".." / f"{own_name}_pruned"))
    progress = progress or Progress()
    if refit_steps < 0 or (refit_steps and run is None):
        raise ConfigError(
            f"refit_steps: {refit_steps} needs the run that {student_dir} comes from; choices: 0, or a run's folder"
        )
    if run is not None and (refit_steps or texts_file is None) and (student_dir / REPORT).is_file():
        whole = read_json(student_dir / REPORT)["source"]  # its word pieces are those of the run's texts
        raise ConfigError(
            f"student: {student_dir} was cut before, the texts of its run are not in its word pieces; choices: {whole}, or --texts_file FILE"
            " without refit_steps"
        )
    if texts_file is None and run is None:
        raise ConfigError(f"texts_file: {student_dir} lies in no run's folder; choices: --texts_file FILE, or a run's folder")
    columns = Columns(text_column, text_pair_column, label_column)
    texts, labelled = _counted(run, texts_file, columns)
    needs_task = refit_steps or (validation_file is None and run is not None)
    task = run.task(data_dir, instead="--data_dir, --validation_file, or the data as they were") if needs_task else None
    split, metric = None, ""
    if validation_file is not None:
        check_pairs(trained_on_pairs(student_dir), columns.pair is not None, "text_pair_column")
        adasearch.register_student()
        kind, names = labels_of(AutoConfig.from_pretrained(student_dir, local_files_only=True))
        split = read_examples(Path(validation_file), "validation_file", kind, names, columns)
        metric = choose_metrics(kind, len(names), **({} if run is None else run.metrics_of(kind)))[0]
    elif task is not None:
        split, metric = task.validation, task.metric
    evaluate = None if split is None else scorer(split, metric)
    refit = _refit(run, task, student_dir, refit_steps, seed, progress) if refit_steps else None
    return prune_vocabulary(
        student_dir, texts, output_dir=output_dir, labelled=labelled, size=size, sizes=sizes, min_count=min_count,
        max_drop=max_drop, evaluate=evaluate, refit=refit, calibrate=lambda pruned: _calibrate(student_dir, pruned, split), progress=progress,
    )  # fmt: skip


def _calibrate(student_dir: Path, pruned: Path, split: Split | None) -> None:
    """The pruned student's temperature, by the examples it was scored on; where these are too few the one that the whole student had."""
    if split is not None and may_calibrate(split.labels):
        calibrate(logits_of(*load_student_and_tokenizer(pruned), split), split.labels, "validation").save(pruned)
    elif (before := load_calibration(student_dir)) is not None:
        before.save(pruned)


def _counted(
    run: FinishedRun | None, texts_file: str | Path | None, columns: Columns
) -> tuple[list[str] | TokenStore, TokenStore | None]:
    """All texts to count pieces in, and those of them that come first."""
    if texts_file is not None:
        split = read_texts(Path(texts_file), "texts_file", columns)
        return [*split.texts, *(split.pairs or ())], None
    train = run.stores("train")
    if not train:
        raise ConfigError(f"{run.folder}/cache: holds no training texts; choices: --texts_file FILE, or a whole run's folder")
    others = [store for kind in ("transfer", "unlabeled") for store in run.stores(kind)]
    return TokenStore.concatenate([*train, *others]), TokenStore.concatenate(train)


def _refit(run: FinishedRun, task: Task, student_dir: Path, steps: int, seed: int, progress: Progress) -> Refit:
    """Training of a student whose table was cut, on the run's lesson in its new pieces."""
    lesson = run.lesson(task)
    _, whole = load_student_and_tokenizer(student_dir)
    settings = part_of(FitConfig, run.config["retrain"], steps=steps)
    settings = dataclasses.replace(settings, learning_rate=REFIT_RATE * settings.learning_rate)
    # the probes' heads were thrown away with the training; fresh ones would disturb more than they teach
    distill = DistillConfig(**{**run.config["distill"], "probe_weight": 0.0})

    def refit(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        tokens = retokenise(lesson.tokens, whole, tokenizer, model.config.max_position_embeddings)
        examples = dataclasses.replace(lesson, tokens=tokens, pad_token_id=tokenizer.pad_token_id)
        method = Distill(settings, distill, task.problem_type, task.num_labels, model.config.hidden_size, 1)
        with tempfile.TemporaryDirectory() as folder:
            fit(
                model, method, {"train": examples}, settings, seed=seed, folder=Path(folder),
                accelerator=Accelerator(), progress=progress, title=f"refit {model.config.vocab_size:,} rows",
            )  # fmt: skip

    return refit
