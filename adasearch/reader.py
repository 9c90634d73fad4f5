"""The reader: any extractive question-answering model, and what it says of every token of every window.

Dimensions: W windows, T tokens of all windows, B batch, L tokens of the longest window in a batch.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor
from transformers import AutoModelForQuestionAnswering, AutoTokenizer

from adasearch.answers import score_answers
from adasearch.errors import ModelError, loading
from adasearch.model_inputs import read_literally
from adasearch.outputs import autocast, cached_in_chunks
from adasearch.progress import Progress
from adasearch.question_answering import QuestionExamples
from adasearch.question_config import QuestionConfig
from adasearch.teacher import Teacher, needs_finetuning

SpanForward = Callable[[Tensor, Tensor], Tensor]  # (input_ids, attention_mask), both (B, L) -> start and end logits (B, 2, L)


class Reader(Teacher):
    """A question-answering model with its tokenizer: frozen it teaches, else it is fine-tuned."""

    def spans(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Start and end logits of every token, (B, 2, L); those of padding mean nothing."""
        output = self.model(input_ids=input_ids, attention_mask=attention_mask, **self.token_types(input_ids))
        return torch.stack([output.start_logits, output.end_logits], 1)


def needs_answers(path: str, when: str, trust_remote_code: bool = False) -> bool:
    """Whether a checkpoint is to be fine-tuned: ``auto`` says no to those saved as question-answering models."""
    return needs_finetuning(path, when, trust_remote_code, "ForQuestionAnswering")


def load_reader(path: str, *, is_finetuned: bool, trust_remote_code: bool = False) -> Reader:
    """Load checkpoint and tokenizer. Raises ``ModelError`` when that cannot be done.

    One that ``is_finetuned`` must have been saved as a question-answering model; any other is given a fresh head, whatever the
    number of labels that it was saved with.
    """
    if is_finetuned and needs_answers(path, "auto", trust_remote_code):
        raise ModelError(f"teacher: {path!r} has no head for question answering; choices: another teacher, or --finetune.when always")
    with loading(f"teacher: {path!r} cannot be loaded as a question-answering model"):
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code)
        model = AutoModelForQuestionAnswering.from_pretrained(
            path, trust_remote_code=trust_remote_code, num_labels=2, ignore_mismatched_sizes=not is_finetuned  # a start and an end
        )
    model.config.is_pair = True  # questions and contexts, whatever the checkpoint was trained on
    read_literally(tokenizer)
    return Reader(model.float(), tokenizer)


@torch.inference_mode()
def spans_of(
    forward: SpanForward, examples: QuestionExamples, accelerator: Accelerator, *, batch_size: int = 32, is_mixed: bool = False
) -> np.ndarray:
    """Start and end logits of all windows' tokens, (T, 2) float32, window after window without padding."""
    offsets = examples.tokens.offsets
    logits_T2 = np.empty((int(offsets[-1]), 2), np.float32)
    for indices, batch in examples.in_order(batch_size):
        with autocast(accelerator, is_mixed):
            logits_B2L = forward(batch["input_ids"].to(accelerator.device), batch["attention_mask"].to(accelerator.device))
        logits_BL2 = logits_B2L.mT.float().cpu().numpy()
        for row, index in enumerate(indices):
            logits_T2[offsets[index] : offsets[index + 1]] = logits_BL2[row, : offsets[index + 1] - offsets[index]]
    return logits_T2


def cached_spans(
    forward: SpanForward, examples: QuestionExamples, folder: Path, name: str, accelerator: Accelerator, progress: Progress,
    title: str, *, is_mixed: bool = True,
) -> np.ndarray:  # fmt: skip
    """The same from the memory-mapped file ``folder/<name>.npy``, made when it is absent; see ``outputs.cached_in_chunks``."""

    def compute(chunk: np.ndarray) -> list[np.ndarray]:
        return [spans_of(forward, examples.select(chunk), accelerator, is_mixed=is_mixed)]

    return cached_in_chunks(compute, len(examples), folder, (name,), progress, title)[0]


def score_reader(
    forward: SpanForward, examples: QuestionExamples, config: QuestionConfig, accelerator: Accelerator, *, is_mixed: bool = False
) -> dict[str, float]:
    """F1 and exact match of a model on questions, shares."""
    return score_answers(spans_of(forward, examples, accelerator, is_mixed=is_mixed), examples, config)
