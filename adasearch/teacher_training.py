"""A checkpoint without a head for the task becomes the teacher, or the dense model that is pruned."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator

from adasearch.config import RunConfig
from adasearch.encoder_config import EncoderRunConfig
from adasearch.files import write_folder
from adasearch.fit import fit
from adasearch.fit_config import finetuning, steps_of
from adasearch.methods.distill import Finetune
from adasearch.methods.reading import FinetuneReader
from adasearch.metrics import is_known, majority_baseline, score
from adasearch.model_inputs import limited_tokenizer
from adasearch.outputs import outputs_of
from adasearch.progress import Progress
from adasearch.reader import Reader, score_reader
from adasearch.stopwatch import Stopwatch
from adasearch.tasks import Task
from adasearch.teacher import Teacher
from adasearch.tokens import Examples

LOOKED_AT = 1_000  # validation examples, to see whether a teacher knows its task


def finetune(
    config: RunConfig | EncoderRunConfig,
    task: Task,
    teacher: Teacher,
    labelled: Examples,
    validation: Examples,
    folder: Path,
    accelerator: Accelerator,
    progress: Progress,
    watch: Stopwatch | None = None,
) -> None:
    """Fine-tune the teacher in place and leave it in ``folder/teacher``.

    ``watch``, if it runs, rests while the teacher is scored, at checkpoints, and while the result is saved.
    """
    settings, resting = config.finetune, nullcontext if watch is None else watch.paused
    fit_config = finetuning(settings, steps_of(settings.epochs, len(labelled), settings.batch_size), config.max_steps)

    def evaluate(_: torch.nn.Module) -> dict[str, float]:
        teacher.model.eval()
        if isinstance(teacher, Reader):
            return score_reader(teacher.spans, validation, config.question, accelerator, is_mixed=True)
        (logits,) = outputs_of(lambda ids, mask: (teacher.logits(ids, mask),), validation, accelerator, is_mixed=True)
        return score(task.metrics, logits, validation.labels)

    is_reader = isinstance(teacher, Reader)
    fit(
        teacher.model,
        FinetuneReader(fit_config, teacher.spans) if is_reader else Finetune(fit_config, task.problem_type, teacher.logits),
        {"train": labelled},
        fit_config,
        seed=config.seed,
        folder=folder / "work" / "teacher",
        accelerator=accelerator,
        progress=progress,
        title="fine-tune the teacher",
        evaluate=evaluate,
        evaluations=config.evaluate,
        checkpoint_seconds=config.checkpoint_seconds,
        is_mixed=True,
        watch=watch,
    )

    longest = config.question.max_seq_length if is_reader else config.max_seq_length

    def save(partial: Path) -> None:
        teacher.model.save_pretrained(partial)
        served = limited_tokenizer(teacher.tokenizer, longest)  # at the length it is scored at
        served.padding_side = "right"  # as it learned and was scored, whatever side its checkpoint pads
        served.save_pretrained(partial)

    if accelerator.is_main_process:
        with resting():
            write_folder(folder / "teacher", save)
        (folder / "work" / "teacher" / "checkpoint.pt").unlink(missing_ok=True)
    accelerator.wait_for_everyone()


def warn_of_poor(task: Task, teacher: Teacher, validation: Examples, accelerator: Accelerator, progress: Progress) -> None:
    """Say that a teacher is no better than the constant answer before it labels all texts: its outputs may stand in another order."""
    some = validation.select(np.flatnonzero(is_known(validation.labels))[:LOOKED_AT])
    if not len(some):
        return
    (logits_NC,) = outputs_of(lambda ids, mask: (teacher.logits(ids, mask),), some, accelerator)
    reached = score([task.metric], logits_NC, some.labels)[task.metric]
    constant = majority_baseline(task.train.labels, some.labels, [task.metric])[task.metric]
    if reached <= constant:
        progress.warning(
            f"the teacher is no better than the constant answer on {len(some)} validation examples (100 x {task.metric}: {100 * reached:.1f},"
            f" {100 * constant:.1f}); are its outputs in the order {', '.join(task.label_names[:10])}? Students will learn what it says"
        )
