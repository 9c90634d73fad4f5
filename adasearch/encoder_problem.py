"""A task for transformers that are made smaller on it: tokens, the dense fine-tuned model, the pre-trained one.

What is particular to a kind of task (how a batch is fed, its loss, its scores) is in the methods of ``EncoderProblem``;
methods of compression call these and know nothing else of it.

Dimensions: N examples, B batch, L tokens, C labels.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.modeling_outputs import ModelOutput

from adasearch.demo_assets import model_path
from adasearch.encoder import from_hugging_face
from adasearch.encoder_config import EncoderRunConfig, TaughtRunConfig
from adasearch.encoder_layers import EncoderConfig, EncoderForSequenceClassification
from adasearch.errors import ConfigError, ModelError
from adasearch.files import fingerprint, read_json, write_json
from adasearch.fit_config import steps_of
from adasearch.lesson import lesson_rows, transfer_stores
from adasearch.metrics import agreement, score, with_unknown
from adasearch.model_inputs import check_positions, check_vocabulary, limited_tokenizer
from adasearch.objectives import task_loss
from adasearch.outputs import cached_outputs, outputs_of
from adasearch.progress import Progress
from adasearch.question_answering import tokenize_questions
from adasearch.reader import load_reader, needs_answers
from adasearch.runtimes import Runtime, load_classifier
from adasearch.settings import check_idle
from adasearch.stopwatch import Stopwatch
from adasearch.structure import Axes
from adasearch.task_config import QUESTION_ANSWERING
from adasearch.tasks import Task
from adasearch.teacher import Teacher, load_teacher, needs_finetuning, tables_of
from adasearch.teacher_training import finetune, warn_of_poor
from adasearch.texts import tokenize_splits
from adasearch.tokens import Examples, TokenStore

Batch = dict[str, Tensor]


@dataclass
class EncoderProblem:
    """A task ready to be learned by pre-trained transformers.

    ``train``, ``validation`` and ``held_out`` are the splits; ``teacher`` is the dense fine-tuned model, frozen, as Hugging
    Face's class; ``checkpoint`` the path or name of the pre-trained one; ``notes`` what the user should know of the data;
    ``whole_config`` has the sizes of the unpruned encoder; ``longest`` is how many word pieces an example may have. ``extra`` are the
    texts without labels on which a dense teacher teaches as well, ``labelled_share`` the share that labelled ones have beside them.
    """

    task: Task
    tokenizer: PreTrainedTokenizerBase
    teacher: Teacher
    checkpoint: str
    train: Examples
    validation: Examples
    held_out: Examples
    notes: list[str]
    folder: Path
    teacher_folder: Path
    whole_config: EncoderConfig
    longest: int
    accelerator: Accelerator
    progress: Progress
    extra: list[TokenStore] = field(default_factory=list, kw_only=True)
    labelled_share: float = field(default=0.0, kw_only=True)

    @property
    def length(self) -> float:
        """Mean word pieces of a training text."""
        return float(self.train.tokens.lengths.mean())

    @property
    def is_asked(self) -> bool:
        """Whether it is question answering, whose examples have answers instead of labels."""
        return self.task.problem_type == QUESTION_ANSWERING

    @property
    def needs_dense(self) -> bool:
        """Whether the dense model is still to be fine-tuned here: ``train_dense``."""
        return self.teacher_folder == self.folder / "teacher" and not (self.teacher_folder / "config.json").exists()

    @property
    def teacher_training(self) -> dict[str, float]:
        """``seconds`` and ``cpu_seconds`` of the dense fine-tuning, where they are known."""
        path = self.teacher_folder / "training.json"
        return read_json(path) if path.is_file() else {}

    @property
    def whole_axes(self) -> Axes:
        """The axes of the unpruned encoder's layers."""
        whole = self.whole_config
        return Axes(whole.hidden_size, whole.head_size, whole.heads, whole.neurons)

    @property
    def cache(self) -> Path:
        """Tokens, teacher's logits, graphs that are only timed."""
        return self.folder / "cache"

    @property
    def own_tokenizer(self) -> PreTrainedTokenizerBase:
        """A copy of the tokenizer for the models made here: who serves one cuts texts where it was trained and scored."""
        return limited_tokenizer(self.tokenizer, self.longest)

    def steps(self, epochs: float, batch_size: int) -> int:
        """Steps of so many epochs of the training texts."""
        return steps_of(epochs, len(self.train), batch_size)

    @cached_property
    def everything(self) -> Examples:
        """The training texts, and ``extra`` behind them, whose labels are unknown."""
        if not self.extra:
            return self.train
        tokens = TokenStore.concatenate([self.train.tokens, *self.extra])
        return Examples(tokens, self.train.pad_token_id, with_unknown(self.train.labels, len(tokens)))

    @cached_property
    def lesson(self) -> Examples:
        """What is learned from where a teacher teaches: ``everything``, the labelled texts repeated up to their share."""
        return self._repeated(self.everything) if self.extra else self.train

    def _repeated(self, everything: Examples) -> Examples:
        return everything.select(lesson_rows(len(self.train), len(everything), self.labelled_share))

    def pretrained(self, seed: int) -> EncoderForSequenceClassification:
        """The pre-trained encoder with a fresh head for the task, drawn by ``seed``."""
        torch.manual_seed(seed)
        return from_hugging_face(load_teacher(self.checkpoint, self.task, is_finetuned=False).model)

    def dense(self) -> EncoderForSequenceClassification:
        """A copy of the dense fine-tuned model as our encoder. Raises ``ModelError`` when it is of another kind."""
        return from_hugging_face(self.teacher.model).requires_grad_(True)

    def load(self, folder: Path) -> PreTrainedModel:
        """A model that was saved in ``folder``, in float32 and eval mode."""
        return load_classifier(folder)

    def forward(self, model: PreTrainedModel, batch: Batch, **inputs: Any) -> ModelOutput:
        """The model's output for a batch, segment ids of pairs included. ``inputs`` such as ``gates`` or ``output_hidden_states``."""
        ids_BL = batch["input_ids"]
        types = Teacher(model, self.tokenizer).token_types(ids_BL)
        return model(input_ids=ids_BL, attention_mask=batch["attention_mask"], **types, **inputs)

    def loss(self, output: ModelOutput, batch: Batch) -> Tensor:
        """Mean loss against gold labels, scalar."""
        return task_loss(output.logits, batch["labels"], self.task.problem_type).mean()

    def logits(self, model: PreTrainedModel, examples: Examples, is_mixed: bool = False) -> np.ndarray:
        """Logits (N, C) of all examples."""
        return self.outputs(Teacher(model.eval(), self.tokenizer).logits, examples, is_mixed)

    def graph_logits(self, runtime: Runtime, examples: Examples) -> np.ndarray:
        """The same as a runtime computes them."""
        return self.outputs(self.graph_forward(runtime), examples)

    def graph_forward(self, runtime: Runtime) -> Callable[[Tensor, Tensor], Tensor]:
        """A runtime as a function of ids and mask (B, L). It is fed segment ids, too, which it passes on to a model that has them."""

        def forward(ids_BL: Tensor, mask_BL: Tensor) -> Tensor:
            tensors = (ids_BL, mask_BL, self.teacher.segments(ids_BL))
            return torch.from_numpy(runtime(*(tensor.cpu().numpy() for tensor in tensors)))

        return forward

    def outputs(self, forward: Callable[[Tensor, Tensor], Tensor], examples: Examples, is_mixed: bool = False) -> np.ndarray:
        """Of all examples what ``forward`` says of ids and mask (B, L)."""
        return outputs_of(lambda ids, mask: (forward(ids, mask),), examples, self.accelerator, is_mixed=is_mixed)[0]

    def agreement(self, first: np.ndarray, second: np.ndarray, examples: Examples) -> float:
        """Share of the examples of which two models' logits predict the same; see ``metrics.agreement``."""
        return agreement(first, second, self.task.problem_type)

    def scores_of(self, logits: np.ndarray, examples: Examples) -> dict[str, float]:
        """The task's metrics of logits, as fractions."""
        return score(self.task.metrics, logits, examples.labels)

    def scores(self, model: PreTrainedModel, examples: Examples) -> dict[str, float]:
        """The task's metrics as fractions, in float32."""
        return self.scores_of(self.logits(model, examples), examples)

    def teacher_logits(self) -> np.ndarray:
        """The teacher's logits (N, C) of ``everything``, computed once and mapped from files."""
        everything = self.everything
        tokens = everything.tokens
        name = f"teacher-{fingerprint(tokens.ids, tokens.offsets)}"
        forward = self.teacher.logits
        title = f"teacher labels {len(tokens):,} texts"
        return cached_outputs(
            lambda ids, mask: (forward(ids, mask),), everything, self.cache, (name,), self.accelerator, self.progress, title
        )[0]

    def taught(self) -> Examples:
        """``lesson`` with the teacher's logits."""
        known = dataclasses.replace(self.everything, teacher_logits=self.teacher_logits())
        return self._repeated(known) if self.extra else known


def load_problem(
    config: EncoderRunConfig, task: Task, folder: Path, accelerator: Accelerator, progress: Progress, with_teacher: bool = True
) -> EncoderProblem:
    """Tokenise, load the pre-trained model and the dense one; nothing is trained, so what is wrong can be said first.

    Where the dense model is still to be trained (``needs_dense``), the teacher has its layers and sizes, but a fresh head. Tokens
    are made once and kept in ``cache/``. Not ``with_teacher`` the pre-trained model stands in the teacher's place, for those
    who need none.
    Raises ``ModelError`` when a model cannot be loaded, is of no kind that can be pruned or has fewer embeddings than its tokenizer
    tokens, ``ConfigError`` when teacher and model have different vocabularies, or too few positions for the settings' texts, and for a
    length that questions do not heed.
    """
    cache, is_asked = folder / "cache", task.problem_type == QUESTION_ANSWERING
    if is_asked:
        usual, read = type(config).max_seq_length, "on questions, which are read in windows"
        check_idle("max_seq_length", config.max_seq_length, usual, read, "--question.max_seq_length")
    checkpoint, given = (name and model_path(name, cache, config.demo_assets) for name in (config.model, config.teacher))
    torch.manual_seed(config.seed)
    try:
        base = load_dense(checkpoint, task, is_finetuned=False, trust_remote_code=config.finetune.trust_remote_code)
    except ModelError as error:  # loaded as teachers are, but it is the other setting that is wrong
        raise ModelError(str(error).replace("teacher:", "model:", 1)) from error
    _check_inputs(config, is_asked, "model", base)
    whole_config = from_hugging_face(base.model).config  # it can be pruned, or says why not, before anything is trained
    is_tuned = (folder / "teacher" / "config.json").exists()
    needs = is_tuned or given is None or (
        (needs_answers if is_asked else needs_finetuning)(given, config.finetune.when, config.finetune.trust_remote_code)
    )
    teacher = base
    if with_teacher and (is_tuned or given is not None):
        source = str(folder / "teacher") if is_tuned else given
        torch.manual_seed(config.seed)
        teacher = load_dense(
            source, task, is_finetuned=is_tuned or not needs, trust_remote_code=config.finetune.trust_remote_code
        )
        _check_inputs(config, is_asked, "teacher", teacher)
    if teacher.tokenizer.get_vocab() != base.tokenizer.get_vocab():
        raise ConfigError(
            f"teacher: {config.teacher!r} has another vocabulary than model {config.model!r}; choices: one of the same vocabulary, or none"
        )
    notes, tokenizer = [*task.notes, *([teacher.note] if teacher.note else [])], teacher.tokenizer
    if teacher.note:
        progress.message(teacher.note)
    if is_asked:
        train, validation, held_out = (
            tokenize_questions(split, tokenizer, config.question, cache=cache, name=name, notes=notes, progress=progress)
            for name, split in task.splits.items()
        )
        validation = validation.spread(config.question.glance)
    else:
        train, validation, held_out = tokenize_splits(
            task.splits, tokenizer, config.max_seq_length, cache=cache, notes=notes, progress=progress
        )
    extra = _extra_texts(config, task, base, tokenizer, train, cache, notes, progress) if isinstance(config, TaughtRunConfig) else []
    parts = (
        task, tokenizer, teacher, checkpoint, train, validation, held_out, notes, folder,
        Path(given) if given and not needs else folder / "teacher", whole_config,
        config.question.max_seq_length if is_asked else config.max_seq_length, accelerator, progress,
    )  # fmt: skip
    if is_asked:
        from adasearch.question_problem import QuestionProblem  # which is an EncoderProblem

        return QuestionProblem(*parts, config.question)
    return EncoderProblem(*parts, extra=extra, labelled_share=config.transfer.labelled_share if extra else 0.0)


def _extra_texts(
    config: TaughtRunConfig, task: Task, base: Teacher, tokenizer: PreTrainedTokenizerBase, train: Examples, cache: Path, notes: list[str],
    progress: Progress,
) -> list[TokenStore]:  # fmt: skip
    """What ``config.transfer`` asks for, made with the pre-trained model's word table, which a run that goes on has as well.

    Raises ``ConfigError`` where it cannot be had.
    """
    transfer = config.transfer
    if not transfer.size + transfer.unlabeled_size:
        return []
    if task.problem_type == QUESTION_ANSWERING:
        raise ConfigError("transfer: nothing is made of questions, nor read without answers; choices: transfer.size 0 and transfer.unlabeled_size 0")
    if transfer.unlabeled_size and task.unlabeled is None:
        raise ConfigError(
            f"transfer.unlabeled_size: {transfer.unlabeled_size}, but task {task.name!r} has no texts without labels;"
            " choices: --unlabeled_file FILE, DIR/<task>/unlabeled.parquet with --data_dir DIR, or 0"
        )
    word = tables_of(base.model)[0]
    extra = transfer_stores(config, task, tokenizer, train.tokens, word, device=word.device, cache=cache, notes=notes, progress=progress)
    notes.append(f"taught on {sum(map(len, extra)):,} texts beside the {len(train):,} labelled ones; what the teacher says of them is all they teach")
    return extra


def _check_inputs(config: EncoderRunConfig, is_asked: bool, setting: str, dense: Teacher) -> None:
    """Raise ``ConfigError`` or ``ModelError`` where a model, which ``setting`` chose, has too few positions or embeddings."""
    name, model_config = getattr(config, setting) or "teacher", dense.model.config
    check_vocabulary(setting, name, dense.tokenizer, model_config)
    if is_asked:
        check_positions("question.max_seq_length", config.question.max_seq_length, name, model_config)
    else:
        check_positions("max_seq_length", config.max_seq_length, name, model_config)


def train_dense(config: EncoderRunConfig, problem: EncoderProblem) -> None:
    """Fine-tune the dense model where that is still to be done, into ``teacher/``, and put it where the problem is computed.

    ``teacher/training.json`` says what its training took.
    """
    model, folder, accelerator = problem.teacher.model, problem.folder, problem.accelerator
    if problem.needs_dense:
        watch = Stopwatch()
        with watch.timing(folder / "work" / "teacher") as took:
            finetune(config, problem.task, problem.teacher, problem.train, problem.validation, folder, accelerator, problem.progress, watch)
        write_json(folder / "teacher" / "training.json", took)
    model.eval().requires_grad_(False).to(accelerator.device)
    if config.teacher and not problem.is_asked and not (folder / "models").exists():
        warn_of_poor(problem.task, problem.teacher, problem.validation, accelerator, problem.progress)


def load_dense(path: str, task: Task, **options: Any) -> Teacher:
    """A Hugging Face model with the task's kind of head and its tokenizer; ``options`` as of ``load_teacher``."""
    return load_reader(path, **options) if task.problem_type == QUESTION_ANSWERING else load_teacher(path, task, **options)
