"""Questions and contexts as windows of word pieces: cut once, mapped from files, drawn in batches like any examples.

A context that does not fit is read in overlapping windows, each with the whole question before it. Every distinct context
is split into pieces once, however many questions and windows it serves.
Dimensions: N questions, W windows, T tokens of all windows, C contexts, P pieces of all contexts, B batch, L tokens of the
longest window in a batch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from adasearch.errors import ConfigError, ModelError
from adasearch.files import fingerprint, read_json, write_array, write_json
from adasearch.progress import Progress
from adasearch.question_config import QuestionConfig, check_questions
from adasearch.questions import Questions
from adasearch.texts import CHUNK_TEXTS, tokenizer_rules
from adasearch.tokens import TokenStore

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

QUESTION, CONTEXT, FIRST, PIECES, PLACE = range(5)  # columns of ``QuestionExamples.windows_W5``
NO_ANSWER = 0  # the first token, [CLS]: where a window points that does not hold the answer (Devlin et al. 2019)


@dataclass(frozen=True)
class QuestionExamples:
    """Windows with what is known of each; has all that ``fit`` and ``outputs`` want of ``tokens.Examples``.

    ``windows_W5``: a window's question, its context, the first of the context's pieces in it, how many follow, and the
    token of the window at which they begin. ``pieces_P2``: first character and the one after the last of every piece,
    context after context, ``contexts_C1`` says where. ``labels_W2``: tokens of the answer's first and last piece.
    ``teacher_logits_T2``: another reader's start and end logits, token by token. ``questions``: where all of it comes from.
    ``cut_questions``: how many of them were longer than is read of one.
    """

    tokens: TokenStore
    pad_token_id: int
    questions: Questions
    windows_W5: np.ndarray  # int32
    pieces_P2: np.ndarray  # int32
    contexts_C1: np.ndarray  # (C + 1,) int64
    labels_W2: np.ndarray | None = None  # int64
    teacher_logits_T2: np.ndarray | None = None  # float32
    cut_questions: int = 0

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def labels(self) -> np.ndarray | None:
        """As ``tokens.Examples`` calls them, (W, 2)."""
        return self.labels_W2

    def collate(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """``input_ids``, ``attention_mask`` (B, L) and, where known, ``labels`` (B, 2), ``teacher_logits`` (B, 2, L)."""
        ids_BL, mask_BL = self.tokens.pad(indices, self.pad_token_id)
        batch = {"input_ids": ids_BL, "attention_mask": mask_BL}
        if self.labels_W2 is not None:
            batch["labels"] = torch.from_numpy(np.ascontiguousarray(self.labels_W2[np.asarray(indices)]))
        if self.teacher_logits_T2 is not None:
            logits_BL2 = np.zeros((*ids_BL.shape, 2), np.float32)
            for row, index in enumerate(indices):
                logits_L2 = self.of_window(self.teacher_logits_T2, index)
                logits_BL2[row, : len(logits_L2)] = logits_L2
            batch["teacher_logits"] = torch.from_numpy(logits_BL2).mT
        return batch

    def of_window(self, values_T2: np.ndarray, index: int) -> np.ndarray:
        """One window's rows of an array that has a row a token, (L, 2)."""
        return values_T2[self.tokens.offsets[index] : self.tokens.offsets[index + 1]]

    def characters(self, index: int) -> np.ndarray:
        """First character and the one after the last of every piece of the context in a window, (pieces, 2)."""
        _, context, first, pieces, _ = self.windows_W5[index]
        begin = self.contexts_C1[context] + first
        return self.pieces_P2[begin : begin + pieces]

    def in_order(self, batch_size: int) -> Iterator[tuple[np.ndarray, dict[str, Tensor]]]:
        """Every window once as (indices, batch), longest first."""
        return ((indices, self.collate(indices)) for indices in self.tokens.longest_first(batch_size))

    def select(self, indices: np.ndarray) -> QuestionExamples:
        """The named windows, in that order; the questions stay and keep their numbers."""
        indices = np.asarray(indices)
        teacher = self.teacher_logits_T2
        if teacher is not None:
            teacher = np.concatenate([self.of_window(teacher, index) for index in indices] or [np.zeros((0, 2), np.float32)])
        labels = None if self.labels_W2 is None else self.labels_W2[indices]
        return dataclasses.replace(
            self, tokens=self.tokens.select(indices), windows_W5=self.windows_W5[indices], labels_W2=labels, teacher_logits_T2=teacher
        )

    def spread(self, count: int) -> QuestionExamples:
        """So many questions, evenly spread over all, with their windows: enough for a glance while a model trains.

        SQuAD's questions stand article by article, so the first ones would say little of the others.
        """
        if count >= len(self.questions):
            return self
        chosen = np.unique(np.linspace(0, len(self.questions) - 1, count).astype(np.int64))
        part = self.select(np.flatnonzero(np.isin(self.windows_W5[:, QUESTION], chosen)))
        windows_W5 = np.array(part.windows_W5)
        windows_W5[:, QUESTION] = np.searchsorted(chosen, windows_W5[:, QUESTION])
        return dataclasses.replace(part, windows_W5=windows_W5, questions=self.questions.select(chosen))


@dataclass(frozen=True)
class Frame:
    """The special tokens around a question and a context, as a tokenizer puts them: before, between, after."""

    before: list[int]
    between: list[int]
    after: list[int]

    @property
    def size(self) -> int:
        """Tokens in all."""
        return len(self.before) + len(self.between) + len(self.after)

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> Frame:
        """Read off an encoded pair. Raises ``ModelError`` for a tokenizer that begins and parts pairs with no token."""
        encoded = tokenizer("a", "a")
        whose, ids = encoded.sequence_ids(), encoded["input_ids"]
        if 0 not in whose or 1 not in whose or whose[0] is not None:
            raise ModelError(
                f"tokenizer {tokenizer.name_or_path!r}: a pair does not begin with a special token, which stands for 'no answer here'"
            )
        first, second = [[i for i, side in enumerate(whose) if side == number] for number in (0, 1)]
        frame = cls(ids[: first[0]], ids[first[-1] + 1 : second[0]], ids[second[-1] + 1 :])
        if not frame.between:
            raise ModelError(f"tokenizer {tokenizer.name_or_path!r}: no token parts a question from its context")
        return frame


def tokenize_questions(
    questions: Questions, tokenizer: PreTrainedTokenizerBase, config: QuestionConfig, *,
    cache: Path, name: str, notes: list[str] | None = None, progress: Progress | None = None,
) -> QuestionExamples:
    """All questions as windows, mapped from ``cache``. Done once: the files' name holds a fingerprint of what they are made of.

    Adds to ``notes`` how many questions of the split ``name`` were cut. Raises ``ModelError`` for a tokenizer without a fast version or
    without special tokens around a pair, ``ConfigError`` when the settings leave a window no room.
    """
    rules = tokenizer_rules(tokenizer, questions.texts, questions.contexts)
    _check_room(config, tokenizer, Frame.of(tokenizer))
    sizes = (config.max_seq_length, config.doc_stride, config.max_question_length)
    stem = f"{name}-{fingerprint(questions.texts, questions.contexts, questions.answers, questions.starts, rules, sizes)}"
    facts = cache / f"{stem}.json"  # windows of an older version lack it and are cut again
    if TokenStore.load(cache, stem) is None or not facts.exists():
        examples = cut_windows(questions, tokenizer, config, progress=progress)
        for part in ("windows_W5", "pieces_P2", "contexts_C1", "labels_W2"):
            if getattr(examples, part) is not None:
                write_array(cache / f"{stem}.{part}.npy", getattr(examples, part))
        write_json(facts, {"questions": len(questions), "cut": examples.cut_questions, "max_question_length": config.max_question_length})
        examples.tokens.save(cache, stem)  # last: its presence says that all is there
    store, cut = TokenStore.load(cache, stem), read_json(facts)["cut"]
    assert store is not None
    if cut and notes is not None:
        notes.append(
            f"{name}: {cut} of {len(questions)} questions are longer than question.max_question_length {config.max_question_length} and were cut"
        )
    paths = {part: cache / f"{stem}.{part}.npy" for part in ("windows_W5", "pieces_P2", "contexts_C1", "labels_W2")}
    arrays = {part: np.load(path, mmap_mode="r") for part, path in paths.items() if path.exists()}
    return QuestionExamples(store, tokenizer.pad_token_id, questions, **arrays, cut_questions=cut)


def cut_windows(
    questions: Questions, tokenizer: PreTrainedTokenizerBase, config: QuestionConfig, *, progress: Progress | None = None
) -> QuestionExamples:
    """The same in memory. Labels are known when every question's answer has a place in its context."""
    frame = Frame.of(tokenizer)
    numbers = {context: number for number, context in enumerate(dict.fromkeys(questions.contexts))}
    progress = progress or Progress()
    progress.stage("tokenize contexts", len(numbers))
    encodings = _encode(list(numbers), tokenizer, progress)
    contexts = TokenStore.from_lists(encoding.ids for encoding in encodings)
    pieces_P2 = np.array([span for encoding in encodings for span in encoding.offsets], dtype=np.int32).reshape(-1, 2)
    has_labels = bool(questions.starts) and min(questions.starts) >= 0
    sequences: list[np.ndarray] = []
    windows: list[tuple[int, int, int, int, int]] = []
    labels: list[tuple[int, int]] = []
    cut = 0
    progress.stage("cut windows", len(questions))
    # leading blanks are in the data and mean nothing, but a byte-level tokenizer would count them
    for number, encoding in enumerate(_encode([text.strip() for text in questions.texts], tokenizer, progress)):
        asked = encoding.ids[: config.max_question_length]
        cut += len(encoding.ids) > len(asked)
        context = numbers[questions.contexts[number]]
        ids = contexts[context]
        before = np.array([*frame.before, *asked, *frame.between], dtype=np.int32)
        room = config.max_seq_length - len(before) - len(frame.after)
        answer = None
        if has_labels:
            spans = pieces_P2[contexts.offsets[context] : contexts.offsets[context + 1]]
            answer = pieces_of_span(spans, questions.starts[number], len(questions.answers[number][0]))
        for first in window_starts(len(ids), room, config.doc_stride):
            inside = ids[first : first + room]
            sequences.append(np.concatenate([before, inside, np.array(frame.after, dtype=np.int32)]))
            windows.append((number, context, first, len(inside), len(before)))
            if has_labels:
                labels.append(_positions(answer, first, len(inside), len(before)))
    return QuestionExamples(
        TokenStore.from_lists(sequences), tokenizer.pad_token_id, questions, np.array(windows, dtype=np.int32).reshape(-1, 5),
        pieces_P2, contexts.offsets, np.array(labels, dtype=np.int64).reshape(-1, 2) if has_labels else None,
        cut_questions=cut,
    )  # fmt: skip


def window_starts(pieces: int, room: int, stride: int) -> range:
    """First pieces of the windows over a context: each shares ``stride`` pieces with the one before, the last ends it."""
    return range(0, max(1, pieces - stride), room - stride) if pieces > room else range(1)


def pieces_of_span(spans_P2: np.ndarray, start: int, length: int) -> tuple[int, int] | None:
    """First and last piece that touch the characters from ``start``; None when there is none (white space only).

    A piece may hold part of a character (byte-level tokenizers): then several pieces have the same characters.
    """
    first = int(np.searchsorted(spans_P2[:, 1], start, side="right"))
    last = int(np.searchsorted(spans_P2[:, 0], start + length, side="left")) - 1
    return (first, last) if first <= last else None


def _positions(answer: tuple[int, int] | None, first: int, pieces: int, place: int) -> tuple[int, int]:
    """The answer's tokens in a window, or ``NO_ANSWER`` twice when it does not hold all of it."""
    if answer is None or answer[0] < first or answer[1] >= first + pieces:
        return NO_ANSWER, NO_ANSWER
    return answer[0] - first + place, answer[1] - first + place


def _encode(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, progress: Progress) -> list[Any]:
    """Encodings (ids and character offsets) without special tokens."""
    encodings: list[Any] = []
    for start in range(0, len(texts), CHUNK_TEXTS):
        chunk = list(texts[start : start + CHUNK_TEXTS])
        encodings += tokenizer(chunk, add_special_tokens=False, return_offsets_mapping=True, truncation=False, verbose=False).encodings
        progress.step(len(encodings))
    return encodings


def _check_room(config: QuestionConfig, tokenizer: PreTrainedTokenizerBase, frame: Frame) -> None:
    """Settings are named as a run has them: its own ``max_seq_length`` is for other tasks."""
    check_questions(config, "question.")
    if config.max_seq_length > (most := tokenizer.model_max_length):
        raise ConfigError(
            f"question.max_seq_length: {config.max_seq_length} is too long: tokenizer {tokenizer.name_or_path!r} takes up to {most}; choices: up to that"
        )
    room = config.max_seq_length - config.max_question_length - frame.size
    if room <= config.doc_stride:
        raise ConfigError(
            f"question.max_seq_length: {config.max_seq_length} leaves {room} pieces for the context beside a question of"
            f" question.max_question_length {config.max_question_length} and {frame.size} special tokens; expected: more than"
            f" question.doc_stride {config.doc_stride}"
        )
