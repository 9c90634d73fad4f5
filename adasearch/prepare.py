"""Everything before the first student: the task in numbers, the teacher, and all it has to say, computed once.

What this file makes lies in ``teacher/`` and ``cache/`` of the run's folder and serves search, retraining and controls.
"""

from __future__ import annotations

import dataclasses
import math
import time
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from adasearch.augment import Pieces, load_masked_lm, neighbours_table
from adasearch.config import FitConfig, RunConfig
from adasearch.demo_assets import fetch_demo_model
from adasearch.distributed import agree, main_first, open_group
from adasearch.encoder_config import EncoderRunConfig
from adasearch.errors import ConfigError
from adasearch.files import fingerprint, write_array, write_folder
from adasearch.fit import fit
from adasearch.methods.distill import Finetune
from adasearch.methods.reading import FinetuneReader
from adasearch.metrics import score
from adasearch.outputs import cached_outputs, outputs_of
from adasearch.progress import Progress
from adasearch.reader import Reader, score_reader
from adasearch.stopwatch import Stopwatch
from adasearch.student import AdasearchConfig
from adasearch.student_vocabulary import early_tokenizer, in_own_pieces, reduced_tokenizer
from adasearch.tasks import Task
from adasearch.teacher import HF_PROBLEM_TYPES, PROBE_EXAMPLES, Teacher, fit_probes, load_teacher, needs_finetuning, tables_of
from adasearch.texts import Split, split_sentences, tokenize
from adasearch.tokens import Examples, TokenStore
from adasearch.transfer import build_transfer
from adasearch.vocabulary import pieces_of, start_rows

BF16_GAIN = 1.3  # bf16 must multiply matrices this much faster than fp32 to be worth its rounding


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


def make_accelerator(config: RunConfig | EncoderRunConfig) -> Accelerator:
    """The device and precision of the run. ``auto`` takes bf16 on a processor where a product is really faster in it."""
    if config.threads:
        torch.set_num_threads(config.threads)
    open_group(config.cpu)
    precision = config.mixed_precision
    if precision == "auto":
        on_cpu = config.cpu or not (torch.cuda.is_available() or torch.backends.mps.is_available())
        precision = "bf16" if on_cpu and agree(_bf16_gain()) > BF16_GAIN else "no"
    return Accelerator(cpu=config.cpu, mixed_precision=precision)


def _bf16_gain() -> float:
    """How many times faster a 1024 x 384 x 1536 product is in bf16 than in fp32, here and now."""
    seconds = {}
    for dtype in (torch.float32, torch.bfloat16):
        a, b = torch.ones(1024, 384, dtype=dtype), torch.ones(384, 1536, dtype=dtype)
        times = []
        for _ in range(7):
            start = time.perf_counter()
            a @ b
            times.append(time.perf_counter() - start)
        seconds[dtype] = sorted(times)[len(times) // 2]
    return seconds[torch.float32] / seconds[torch.bfloat16]


def prepare(config: RunConfig, task: Task, folder: Path, accelerator: Accelerator, progress: Progress) -> Problem:
    """Teacher, tokens, transfer set and the teacher's word on all of it. Every piece is made once and kept."""
    config = dataclasses.replace(config, seed=config.seed_of_data)
    cache, has_teacher = folder / "cache", config.teacher != "none"
    with main_first():
        source = teacher_path(config, cache)
        is_tuned = (folder / "teacher" / "config.json").exists()
        needs = has_teacher and (is_tuned or needs_finetuning(source, config.finetune.when))
        torch.manual_seed(config.seed)  # a checkpoint without a head is given a random one
        teacher = load_teacher(
            str(folder / "teacher") if is_tuned else source,
            task,
            is_finetuned=is_tuned or (has_teacher and not needs),
            trust_remote_code=config.finetune.trust_remote_code,
        )
        notes = list(task.notes)
        tokenizer = early_tokenizer(config.vocabulary, task, teacher.tokenizer, cache, progress)
        stores: dict[str, TokenStore] = {}
        for name, split in (("train", task.train), ("validation", task.validation), ("held_out", task.held_out)):
            stores[name], cut = tokenize(split, teacher.tokenizer, config.max_seq_length, cache=cache, name=name, progress=progress)
            if cut:
                notes.append(f"{name}: {cut} of {len(split)} texts are longer than max_seq_length {config.max_seq_length} and were cut")
        pad = teacher.tokenizer.pad_token_id
        labelled = Examples(stores["train"], pad, task.train.labels)
        validation = Examples(stores["validation"], pad, task.validation.labels)
        held_out = Examples(stores["held_out"], pad, task.held_out.labels)
    if needs and not is_tuned:
        finetune(config, task, teacher, labelled, validation, folder, accelerator, progress)
    with main_first():
        teacher.model.eval().requires_grad_(False).to(accelerator.device)
        word, position = (table if table is None else table.cpu() for table in tables_of(teacher.model))
        extra = _transfer(config, task, teacher, labelled.tokens, word, cache, progress) if has_teacher else []
        known = _teach(config, task, teacher if has_teacher else None, labelled, extra, cache, accelerator, progress)
        teacher_validation, teacher_held_out = validation, held_out
        if config.vocabulary.kind == "pruned":
            tokenizer = reduced_tokenizer(config.vocabulary, teacher.tokenizer, labelled.tokens, extra)
        if tokenizer is not teacher.tokenizer:
            known, validation, held_out = in_own_pieces(
                task, teacher.tokenizer, tokenizer, config.max_seq_length, known=known, validation=validation,
                held_out=held_out, extra=extra, cache=cache, progress=progress,
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
        _student_config(task, tokenizer, config, word),
        word,
        position,
        notes,
        labelled,
    )


def lesson_rows(labelled: int, whole: int, labelled_share: float) -> np.ndarray:
    """Rows of the lesson: the ``labelled`` first ones, repeated until they make up that share, then the others."""
    again = max(1, math.ceil(labelled_share / (1 - labelled_share) * (whole - labelled) / labelled))
    return np.concatenate([np.tile(np.arange(labelled), again), np.arange(labelled, whole)])


def teacher_path(config: RunConfig, cache: Path) -> str:
    """Where the checkpoint lies that the teacher is made of, or its hub name; the demo's is fetched."""
    name = config.tokenizer if config.teacher == "none" else config.teacher
    if name != "demo":
        return name
    return str(fetch_demo_model(cache, None if config.demo_assets is None else Path(config.demo_assets)))


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
    """Fine-tune the teacher in place and leave it in ``folder/teacher``. ``watch``, if it runs, rests while it is scored."""
    settings = config.finetune
    steps = max(1, round(settings.epochs * len(labelled) / settings.batch_size))
    fit_config = FitConfig(
        steps=min(steps, config.max_steps or steps),
        batch_size=settings.batch_size,
        learning_rate=settings.learning_rate,
        warmup=settings.warmup,
        weight_decay=settings.weight_decay,
        clip_norm=1.0,  # as BERT's authors
    )

    def evaluate(_: torch.nn.Module) -> dict[str, float]:
        teacher.model.eval()
        with nullcontext() if watch is None else watch.paused():
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
    )

    def save(partial: Path) -> None:
        teacher.model.save_pretrained(partial)
        teacher.tokenizer.save_pretrained(partial)

    if accelerator.is_main_process:
        write_folder(folder / "teacher", save)
        (folder / "work" / "teacher" / "checkpoint.pt").unlink(missing_ok=True)
    accelerator.wait_for_everyone()


def _transfer(
    config: RunConfig, task: Task, teacher: Teacher, train: TokenStore, word: Tensor, cache: Path, progress: Progress
) -> list[TokenStore]:
    """Texts without labels: made from the training texts, and the user's own."""
    stores = []
    settings = config.transfer
    if settings.size:
        pieces = Pieces.from_tokenizer(teacher.tokenizer)
        table = None
        if settings.neighbours:
            table = neighbours_table(word.numpy(), settings.candidates, pieces, restrict=np.unique(train.ids))
        mlm = load_masked_lm(settings.masked_lm_model, teacher.tokenizer) if settings.masked_lm else None
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
        store, _ = tokenize(split, teacher.tokenizer, config.max_seq_length, cache=cache, name="unlabeled", progress=progress)
        stores.append(store)
    return [store for store in stores if len(store)]


def _teach(
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
    names = (f"teacher-{name}", f"probes-{name}")
    logits, probes = cached_outputs(
        teacher.outputs, everything, cache, names, accelerator, progress, f"teacher labels {len(tokens):,} texts"
    )
    if soft is not None:
        logits = np.concatenate([soft, logits[len(soft) :]])
    unknown = -100 if labelled.labels.dtype == np.int64 else np.nan
    missing = np.full((len(tokens) - len(labelled), *labelled.labels.shape[1:]), unknown, labelled.labels.dtype)
    return dataclasses.replace(
        everything, labels=np.concatenate([labelled.labels, missing]), teacher_logits=logits, probe_logits=probes
    )


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
        for name in ("probe_logits", "probe_features"):
            (cache / f"{name}.npy").unlink()
    teacher.probe_weights_PCD = torch.from_numpy(np.load(paths[0])).to(accelerator.device)
    teacher.probe_biases_PC = torch.from_numpy(np.load(paths[1])).to(accelerator.device)


def soft_label_logits(probabilities: np.ndarray, problem_type: str) -> np.ndarray:
    """Soft labels (N, C) as logits; probabilities are kept 1e-4 away from 0 and 1, which no teacher is sure of."""
    if problem_type == "regression":
        return probabilities.astype(np.float32)
    p = np.clip(probabilities, 1e-4, 1 - 1e-4)
    return (np.log(p) - (np.log1p(-p) if problem_type == "multi_label" else 0)).astype(np.float32)


def _student_config(task: Task, tokenizer: PreTrainedTokenizerBase, config: RunConfig, word: Tensor) -> AdasearchConfig:
    return AdasearchConfig(
        vocab_size=len(word),
        max_position_embeddings=config.max_seq_length,
        embedding_rank=word.shape[1],
        sep_token_id=tokenizer.sep_token_id,
        pad_token_id=tokenizer.pad_token_id,
        num_labels=task.num_labels,
        id2label=dict(enumerate(task.label_names)),
        label2id={name: index for index, name in enumerate(task.label_names)},
        problem_type=HF_PROBLEM_TYPES[task.problem_type],
    )
