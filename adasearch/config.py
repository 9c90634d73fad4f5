"""Every setting of a run, one field each with one meaning and its default. The command line is generated from these."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any

from adasearch.errors import ConfigError


@dataclass
class TaskConfig:
    """Where the examples come from and what their columns mean.

    Args:
        task: a preset (demo, sst2, mrpc, qqp, mnli, qnli, rte, cola, stsb), a hub data set id (``owner/name`` or
            ``owner/name:configuration``), or the name to give the files below.
        data_dir: a folder with ``<task>/{train,validation,test}.parquet`` to read a preset from instead of the hub.
        train_file: training examples, csv, tsv, jsonl or parquet.
        validation_file: held-out examples; 10% of the training file when absent.
        test_file: examples that nothing but the final score sees; the validation examples when absent.
        unlabeled_file: more texts of the same kind for the teacher to label (txt, csv, tsv, jsonl or parquet).
        text_column: column of the text, or of the first text of a pair.
        text_pair_column: column of the second text of a pair.
        label_column: column of the gold label; in multi-label tasks labels joined by ``|`` or a list.
        soft_label_columns: one column of probabilities per label, from an LLM or an older model; replaces the teacher's logits.
        problem_type: single_label, multi_label or regression; guessed from the labels when absent.
        metric: the metric that counts; the task's own when absent.
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
    max_seq_length: int = 128
    skip_bad_rows: bool = False
    demo_assets: str | None = None


@dataclass
class FinetuneConfig:
    """How a checkpoint without a classification head for the task becomes the teacher.

    Args:
        when: auto fine-tunes unless the checkpoint is already a sequence classifier; always; never.
        epochs: passes over the training examples.
        learning_rate: peak of AdamW's linear warm-up and decay.
        batch_size: examples a step.
        warmup: share of the steps in which the learning rate rises.
        weight_decay: AdamW's, not on biases and normalisation gains.
        trust_remote_code: run modelling code that comes with the checkpoint.
    """

    when: str = "auto"
    epochs: float = 2.0
    learning_rate: float = 5e-5
    batch_size: int = 32
    warmup: float = 0.06
    weight_decay: float = 0.01
    trust_remote_code: bool = False


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
        unlabeled_size: how many of the unlabelled texts are used at most.
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
class DistillConfig:
    """L = (1 - gamma) CE + gamma KD (AdaBERT, section 4.1; Hinton et al. 2015).

    Args:
        gamma: weight of the teacher against the gold labels; where an example has no gold label, 1.
        temperature: softens teacher and student in ``kl``.
        loss: kl (Kullback-Leibler divergence of the predictions) or mse (squared error of the logits).
        probe_weight: share of the KD term given to the probes of the hidden levels; 0 = final logits only.
    """

    gamma: float = 0.8
    temperature: float = 1.0
    loss: str = "kl"
    probe_weight: float = 0.5


@dataclass
class FitConfig:
    """One run of the training loop.

    Args:
        steps: optimiser steps.
        batch_size: examples a step.
        learning_rate: peak of the weights' learning rate (linear warm-up, cosine decay).
        embedding_rate: the word table's learning rate as a share of that.
        warmup: share of the steps in which the learning rate rises.
        weight_decay: AdamW's, on matrices only.
        clip_norm: largest gradient norm.
    """

    steps: int = 1_500
    batch_size: int = 128
    learning_rate: float = 2e-3
    embedding_rate: float = 0.5
    warmup: float = 0.05
    weight_decay: float = 0.01
    clip_norm: float = 5.0


@dataclass
class SearchConfig(FitConfig):
    """The differentiable search (AdaBERT, sections 3-4).

    Args:
        mode: joint (weights and architecture learn from the same batch) or bilevel (architecture from held-out examples).
        beta: weight of the efficiency term.
        efficiency: penalty adds beta times the cost; constraint finds beta itself so that ``target_macs`` or ``target_params`` is met.
        target_macs: multiply-accumulates of the searched part at the task's mean length, for ``constraint``.
        target_params: parameters of the searched part, for ``constraint``.
        arch_learning_rate: Adam's for the architecture.
        arch_weight_decay: pulls the architecture's logits to uniform.
        arch_warmup: share of the steps in which only the weights learn, on uniformly drawn paths.
        temperature_start: Gumbel-softmax temperature at the first step.
        temperature_end: and at the last (exponential between).
        valid_share: share of the training examples held out for ``bilevel``.
        derive: evaluated (draw members from what the search learned and keep the one whose loss plus cost is least, with
            the supernet's weights) or argmax (the most probable of every choice, as AdaBERT).
        candidates: how many members are drawn for ``evaluated``.
        collapse_share: alarm when operations without parameters hold more than this share of the edges.
    """

    steps: int = 500
    learning_rate: float = 2e-3
    mode: str = "joint"
    beta: float = 4.0
    efficiency: str = "penalty"
    target_macs: float | None = None
    target_params: float | None = None
    arch_learning_rate: float = 2e-2
    arch_weight_decay: float = 0.0
    arch_warmup: float = 0.25
    temperature_start: float = 1.0
    temperature_end: float = 0.2
    valid_share: float = 0.2
    derive: str = "evaluated"
    candidates: int = 64
    collapse_share: float = 0.8


@dataclass
class RetrainConfig(FitConfig):
    """Training of the derived student.

    Args:
        inherit: start from the supernet's weights of the chosen operations instead of fresh ones.
    """

    inherit: bool = True


@dataclass
class BenchConfig:
    """How speed is measured.

    Args:
        runtime: torch or onnxruntime; auto takes onnxruntime where it is installed. The same for every system.
        threads: threads of the runtime.
        batch_sizes: batch sizes timed; the first is the one in the table.
        seq_lengths: lengths in word pieces timed; the first is the one in the table.
        repeats: timed calls of each system, interleaved with the others'.
        warmup: untimed calls of each before.
        reference: also time a BERT-base shape with random weights (time only).
    """

    runtime: str = "auto"
    threads: int = 1
    batch_sizes: list[int] = field(default_factory=lambda: [1, 32])
    seq_lengths: list[int] = field(default_factory=lambda: [128, 32])
    repeats: int = 30
    warmup: int = 5
    reference: bool = True


@dataclass
class RunConfig(TaskConfig):
    """One whole run: task + teacher + space + budget -> student.

    Args:
        teacher: name or path of a checkpoint; ``demo`` is the packaged MiniLM; ``none`` with ``soft_label_columns``.
        tokenizer: with teacher ``none``: checkpoint whose tokenizer and embedding table the student starts from.
        space: name of a YAML file of ``search_spaces/`` or a path to one.
        architecture: JSON of an earlier search to retrain; the search is then left out.
        output_dir: folder of the run; ``runs/<task>`` when absent.
        seed: of everything.
        seeds: the student and its controls are trained once per seed; ``[seed]`` when absent.
        controls: systems that are trained beside the student for the honest table.
        max_steps: caps the steps of every training stage (for a quick look).
        mixed_precision: no, bf16, fp16, or auto: bf16 where the processor computes in it and it was measured faster.
        threads: threads of training; all cores when absent.
        cpu: stay on the processor even where an accelerator is present.
        checkpoint_seconds: time between checkpoints.
        evaluate: score the student on the validation examples this many times while it trains.
        quiet: plain log lines instead of progress bars.
    """

    teacher: str = "demo"
    tokenizer: str = "demo"
    space: str = "adasearch"
    architecture: str | None = None
    output_dir: str | None = None
    seed: int = 42
    seeds: list[int] | None = None
    controls: list[str] = field(
        default_factory=lambda: ["student_no_kd", "random_architecture", "bag_of_embeddings", "tfidf"]
    )
    max_steps: int | None = None
    mixed_precision: str = "auto"
    threads: int | None = None
    cpu: bool = False
    checkpoint_seconds: float = 60.0
    evaluate: int = 4
    quiet: bool = False
    finetune: FinetuneConfig = field(default_factory=FinetuneConfig)
    search: SearchConfig = field(default_factory=SearchConfig)
    transfer: TransferConfig = field(default_factory=TransferConfig)
    distill: DistillConfig = field(default_factory=DistillConfig)
    retrain: RetrainConfig = field(default_factory=RetrainConfig)
    bench: BenchConfig = field(default_factory=BenchConfig)


def check_choice(where: str, value: Any, choices: tuple[str, ...]) -> None:
    """Raise ``ConfigError`` naming place, value and choices unless ``value`` is one of them."""
    if value not in choices:
        raise ConfigError(f"{where}: {value!r} is not known; choices: {', '.join(choices)}")


def check_range(where: str, value: float, low: float, high: float) -> None:
    """Raise ``ConfigError`` unless low <= value <= high."""
    if not low <= value <= high:
        raise ConfigError(f"{where}: {value!r} is out of range; choices: {low} to {high}")


def validate(config: RunConfig) -> None:
    """Check every setting that can be wrong on its own; raises ``ConfigError`` before any work begins."""
    for where, value, choices in (
        ("problem_type", config.problem_type or "single_label", ("single_label", "multi_label", "regression")),
        ("finetune.when", config.finetune.when, ("auto", "always", "never")),
        ("search.mode", config.search.mode, ("joint", "bilevel")),
        ("search.efficiency", config.search.efficiency, ("penalty", "constraint")),
        ("search.derive", config.search.derive, ("evaluated", "argmax")),
        ("distill.loss", config.distill.loss, ("kl", "mse")),
        ("mixed_precision", config.mixed_precision, ("auto", "no", "bf16", "fp16")),
        ("bench.runtime", config.bench.runtime, ("auto", "torch", "onnxruntime")),
    ):
        check_choice(where, value, choices)
    for control in config.controls:
        check_choice("controls", control, ("student_no_kd", "random_architecture", "bag_of_embeddings", "tfidf"))
    for where, value, low, high in (
        ("distill.gamma", config.distill.gamma, 0, 1),
        ("distill.probe_weight", config.distill.probe_weight, 0, 1),
        ("distill.temperature", config.distill.temperature, 1e-3, 1e3),
        ("search.beta", config.search.beta, 0, float("inf")),
        ("search.arch_warmup", config.search.arch_warmup, 0, 1),
        ("search.valid_share", config.search.valid_share, 0.01, 0.5),
        ("finetune.epochs", config.finetune.epochs, 1e-6, 1e6),
        ("transfer.candidates", config.transfer.candidates, 1, 1e6),
        ("search.temperature_start", config.search.temperature_start, 1e-3, 1e3),
        ("search.temperature_end", config.search.temperature_end, 1e-3, config.search.temperature_start),
        ("transfer.size", config.transfer.size, 0, float("inf")),
        ("transfer.replace_probability", config.transfer.replace_probability, 0, 1),
        ("transfer.labelled_share", config.transfer.labelled_share, 0, 0.99),
        ("max_seq_length", config.max_seq_length, 4, 1 << 20),
        ("search.steps", config.search.steps, 1, float("inf")),
        ("search.candidates", config.search.candidates, 1, float("inf")),
        ("retrain.steps", config.retrain.steps, 1, float("inf")),
        ("bench.threads", config.bench.threads, 1, 1024),
        ("bench.repeats", config.bench.repeats, 1, float("inf")),
    ):
        check_range(where, value, low, high)
    for stage, settings in (("search", config.search), ("retrain", config.retrain), ("finetune", config.finetune)):
        check_range(f"{stage}.batch_size", settings.batch_size, 1, math.inf)
        check_range(f"{stage}.learning_rate", settings.learning_rate, 0, 10)
        check_range(f"{stage}.warmup", settings.warmup, 0, 1)
        check_range(f"{stage}.weight_decay", settings.weight_decay, 0, 10)
    for stage, settings in (("search", config.search), ("retrain", config.retrain)):
        check_range(f"{stage}.embedding_rate", settings.embedding_rate, 0, 100)
        check_range(f"{stage}.clip_norm", settings.clip_norm, 1e-9, math.inf)
    for name in ("neighbours", "fragments", "splices", "masked_lm"):
        check_range(f"transfer.{name}", getattr(config.transfer, name), 0, math.inf)
    for name in ("target_macs", "target_params"):
        check_range(f"search.{name}", getattr(config.search, name) or 1, 1, math.inf)
    for name in ("batch_sizes", "seq_lengths"):
        if not getattr(config.bench, name):
            raise ConfigError(f"bench.{name}: the list is empty; choices: one or more whole numbers")
        for index, size in enumerate(getattr(config.bench, name)):
            check_range(f"bench.{name}[{index}]", size, 1, 1 << 20)
    if config.seeds is not None and not config.seeds:
        raise ConfigError("seeds: the list is empty; choices: one or more whole numbers, or leave it out")
    if config.search.efficiency == "constraint" and not (config.search.target_macs or config.search.target_params):
        raise ConfigError("search.efficiency: 'constraint' needs a target; choices: search.target_macs, search.target_params")
    if config.transfer.masked_lm and not config.transfer.masked_lm_model:
        raise ConfigError("transfer.masked_lm: replacement needs transfer.masked_lm_model, a masked language model with the teacher's tokenizer")
    if config.teacher == "none" and not config.soft_label_columns:
        raise ConfigError("teacher: 'none' needs soft_label_columns; or name a checkpoint")


def to_dict(config: Any) -> dict[str, Any]:
    """A config as nested plain data, for config.yaml and fingerprints."""
    return dataclasses.asdict(config)
