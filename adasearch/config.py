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
        task: a preset (demo, sst2, mrpc, qqp, mnli, qnli, rte, cola, stsb, squad), a hub data set id (``owner/name`` or
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
        problem_type: single_label, multi_label or regression; guessed from the labels when absent. question_answering for files
            of questions, contexts and answers as SQuAD has them.
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
        inherited_rate: the learning rate of layers inherited from the teacher, as a share of that.
        warmup: share of the steps in which the learning rate rises.
        weight_decay: AdamW's, on matrices only.
        clip_norm: largest gradient norm.
    """

    steps: int = 1_500
    batch_size: int = 128
    learning_rate: float = 2e-3
    embedding_rate: float = 0.5
    inherited_rate: float = 0.05
    warmup: float = 0.05
    weight_decay: float = 0.01
    clip_norm: float = 5.0


@dataclass
class SearchConfig(FitConfig):
    """The differentiable search (AdaBERT, sections 3-4).

    Args:
        strategy: how architectures are searched: gumbel (AdaBERT on sampled paths), gumbel_all (AdaBERT, every candidate
            run), darts, darts_second, gdas, proxyless, one_shot (uniform paths, then evolution: a whole Pareto front),
            random (uniform paths, then random members), or one registered from outside.
        mode: joint (weights and architecture learn from the same batch) or bilevel (architecture from held-out examples).
        beta: weight of the efficiency term.
        efficiency: penalty adds beta times the cost; constraint finds beta itself so that the targets below are met. With a
            latency target it is always a constraint.
        target_macs: multiply-accumulates of the student at the task's mean length, for ``constraint``.
        target_params: parameters of the student, its embedding table included, for ``constraint``.
        latency_target_ms: milliseconds that one call of the student may take, as predicted from a table measured on this
            machine (``latency_table``) and measured again on the member that is derived.
        latency_table: file that ``adasearch bench`` wrote with build_lut; when absent ``search/latency.json`` of the run, measured first.
        latency_threads: threads of the runtime that the target is for.
        latency_batch_size: texts a call that the target is for.
        latency_lengths: lengths in word pieces that the target is for, each as frequent as the others; the lengths of the
            task's labelled texts when absent.
        latency_runtime: the runtime that the target is for: onnxruntime, openvino or torch; auto takes onnxruntime where
            it is installed.
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
        fair_sampling: while paths are drawn uniformly, every candidate of an edge takes its turn once in as many steps as
            there are candidates, instead of by chance.
        operation_dropout: chance of an operation without weights to be left out of a draw when the architecture begins to
            learn; falls to 0 at the last step.
        entropy_weight: weight of the gates' mean entropy in the loss at the last step; rises from 0 from the end of the warm-up.
        unroll_rate: step size of the virtual step of ``darts_second``; learning_rate when absent.
        population: members of a generation of ``one_shot``.
        generations: generations of ``one_shot`` after the first, random one.
    """

    steps: int = 500
    learning_rate: float = 2e-3
    strategy: str = "gumbel"
    mode: str = "joint"
    beta: float = 4.0
    efficiency: str = "penalty"
    target_macs: float | None = None
    target_params: float | None = None
    latency_target_ms: float | None = None
    latency_table: str | None = None
    latency_threads: int = 1
    latency_batch_size: int = 1
    latency_lengths: list[int] | None = None
    latency_runtime: str = "auto"
    arch_learning_rate: float = 2e-2
    arch_weight_decay: float = 0.0
    arch_warmup: float = 0.25
    temperature_start: float = 1.0
    temperature_end: float = 0.2
    valid_share: float = 0.2
    derive: str = "evaluated"
    candidates: int = 64
    collapse_share: float = 0.8
    fair_sampling: bool = False
    operation_dropout: float = 0.0
    entropy_weight: float = 0.0
    unroll_rate: float | None = None
    population: int = 32
    generations: int = 12

    @property
    def is_constrained(self) -> bool:
        """Whether cost is held below targets instead of being weighed."""
        return self.efficiency == "constraint" or self.latency_target_ms is not None


@dataclass
class RetrainConfig(FitConfig):
    """Training of the derived student.

    Args:
        inherit: start from the supernet's weights of the chosen operations instead of fresh ones.
    """

    inherit: bool = True


REFERENCE_SHAPES = ("bert_base", "distilbert", "tinybert4", "minilm6", "static_embeddings")  # built by references.py


@dataclass
class BenchConfig:
    """How speed is measured.

    Args:
        runtime: torch or onnxruntime; auto takes onnxruntime where it is installed. The same for every system.
        runtimes: several runtimes, each system timed in every one of them; ``runtime`` alone when empty.
        precisions: fp32, bf16, int8, int8_embedding: each is timed in those runtimes that offer it.
        threads: threads of the runtime.
        batch_sizes: batch sizes timed; the first is the one in the table.
        seq_lengths: lengths in word pieces timed; the first is the one in the table.
        repeats: timed calls of each system, interleaved with the others'.
        warmup: untimed calls of each before.
        reference: also time reference shapes with random weights (time only).
        references: which: bert_base, distilbert, tinybert4, minilm6, static_embeddings.
        stream_texts: texts a second are also measured on so many texts as long as the task's own; 0: not.
        cold_starts: fresh processes a system that load it and answer once, for start-up time and memory; 0: none.
        price_per_hour: US dollars that one core costs for an hour, to turn texts a second into cost per million texts. An
            assumption of the report, not a measurement; the default is about what a virtual core is rented for.
    """

    runtime: str = "auto"
    runtimes: list[str] = field(default_factory=list)
    precisions: list[str] = field(default_factory=lambda: ["fp32"])
    threads: int = 1
    batch_sizes: list[int] = field(default_factory=lambda: [1, 32])
    seq_lengths: list[int] = field(default_factory=lambda: [128, 32])
    repeats: int = 30
    warmup: int = 5
    reference: bool = True
    references: list[str] = field(default_factory=lambda: ["bert_base"])
    stream_texts: int = 128
    cold_starts: int = 1
    price_per_hour: float = 0.04


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


@dataclass
class QuantizeConfig:
    """How a model's runtime and precision are chosen: everything this machine offers is tried, scored and timed.

    Args:
        calibration_file: texts whose activations set the int8 ranges (txt, csv, tsv, jsonl, parquet); the run's training
            texts when absent.
        validation_file: labelled texts on which the scores are compared; the run's validation examples when absent.
        text_column: column of the text, or of the first text of a pair, in both files.
        text_pair_column: column of the second text of a pair.
        label_column: column of the gold label.
        calibration: minmax, percentile or entropy: how ranges follow from activations.
        calibration_texts: so many texts are drawn at most.
        validation_texts: so many examples are scored at most.
        max_drop: points (hundredths of the metric) that may be lost against torch in fp32.
        runtimes: those to try; all that are here when empty.
        precisions: those to try; all that the runtimes offer here when empty.
        threads: threads of every runtime.
        batch_size: texts a timed call.
        seq_length: word pieces of a text timed; the first of the run's bench.seq_lengths when absent, else 128.
        max_seq_length: texts are cut to so many word pieces; the run's when absent, else as many as the model takes.
        repeats: timed calls of each, interleaved with the others'.
        warmup: untimed calls of each before.
        seed: draws the texts.
    """

    calibration_file: str | None = None
    validation_file: str | None = None
    text_column: str = "text"
    text_pair_column: str | None = None
    label_column: str = "label"
    calibration: str = "minmax"
    calibration_texts: int = 512
    validation_texts: int = 5_000
    max_drop: float = 0.5
    runtimes: list[str] = field(default_factory=list)
    precisions: list[str] = field(default_factory=list)
    threads: int = 1
    batch_size: int = 1
    seq_length: int | None = None
    max_seq_length: int | None = None
    repeats: int = 30
    warmup: int = 5
    seed: int = 42


@dataclass
class RunConfig(TaskConfig):
    """One whole run: task + teacher + space + budget -> student.

    Args:
        teacher: name or path of a checkpoint; ``demo`` is the packaged MiniLM; ``none`` with ``soft_label_columns``.
        tokenizer: with teacher ``none``: checkpoint whose tokenizer and embedding table the student starts from.
        space: name of a YAML file of ``search_spaces/`` or a path to one.
        architecture: JSON of an earlier search to retrain; the search is then left out.
        warm_start: folder of `adasearch warm`: search, student and controls (but for student_no_kd) start from its weights.
        output_dir: folder of the run; ``runs/<task>`` when absent.
        seed: of everything.
        data_seed: of what comes before the search (held-out examples, the teacher's fine-tuning, the transfer set, probes);
            ``seed`` when absent. Runs that differ in ``seed`` alone can then share all of it.
        seeds: the student and its controls are trained once per seed; ``[seed]`` when absent.
        controls: systems that are trained beside the student for the honest table.
        max_steps: caps the steps of every training stage (for a quick look).
        mixed_precision: no, bf16, fp16, or auto: bf16 where the processor computes in it and it was measured faster.
        threads: threads of training; all cores when absent.
        cpu: stay on the processor even where an accelerator is present.
        checkpoint_seconds: time between checkpoints.
        evaluate: score the student on the validation examples this many times while it trains.
        report_to: where the curves of search and training go as well: none, or any of tensorboard, trackio, wandb. All of it is
            kept in ``tracking/`` of the run's folder.
        report_examples: held-out texts shown in the report where student and teacher disagree; 0 keeps texts out of it.
        quiet: plain log lines instead of progress bars.
    """

    teacher: str = "demo"
    tokenizer: str = "demo"
    space: str = "adasearch"
    architecture: str | None = None
    warm_start: str | None = None
    output_dir: str | None = None
    seed: int = 42
    data_seed: int | None = None
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
    report_to: str | list[str] = "none"
    report_examples: int = 50
    quiet: bool = False
    finetune: FinetuneConfig = field(default_factory=FinetuneConfig)
    vocabulary: VocabularyConfig = field(default_factory=VocabularyConfig)
    search: SearchConfig = field(default_factory=SearchConfig)
    transfer: TransferConfig = field(default_factory=TransferConfig)
    distill: DistillConfig = field(default_factory=DistillConfig)
    retrain: RetrainConfig = field(default_factory=RetrainConfig)
    bench: BenchConfig = field(default_factory=BenchConfig)

    @property
    def trackers(self) -> list[str]:
        """Names of the trackers reported to."""
        names = [self.report_to] if isinstance(self.report_to, str) else self.report_to
        return [] if names == ["none"] else list(dict.fromkeys(names))

    @property
    def seed_of_data(self) -> int:
        """The seed of what comes before the search."""
        return self.seed if self.data_seed is None else self.data_seed


def check_choice(where: str, value: Any, choices: tuple[str, ...]) -> None:
    """Raise ``ConfigError`` naming place, value and choices unless ``value`` is one of them."""
    if value not in choices:
        raise ConfigError(f"{where}: {value!r} is not known; choices: {', '.join(choices)}")


def check_range(where: str, value: float, low: float, high: float) -> None:
    """Raise ``ConfigError`` unless low <= value <= high."""
    if not low <= value <= high:
        raise ConfigError(f"{where}: {value!r} is out of range; choices: {low} to {high}")


def check_bench(bench: BenchConfig, where: str = "") -> None:
    """Check the numbers that say how speed is measured; raises ``ConfigError``. ``where`` stands before their names."""
    for name, low, high in (
        ("threads", 1, 1024), ("repeats", 1, math.inf), ("warmup", 0, math.inf), ("stream_texts", 0, 1 << 20),
        ("cold_starts", 0, 100), ("price_per_hour", 0, math.inf),
    ):  # fmt: skip
        check_range(f"{where}{name}", getattr(bench, name), low, high)
    for name in ("batch_sizes", "seq_lengths"):
        if not getattr(bench, name):
            raise ConfigError(f"{where}{name}: the list is empty; choices: one or more whole numbers")
        for index, size in enumerate(getattr(bench, name)):
            check_range(f"{where}{name}[{index}]", size, 1, 1 << 20)
    for index, name in enumerate(bench.references):
        check_choice(f"{where}references[{index}]", name, REFERENCE_SHAPES)
        if name in bench.references[:index]:
            raise ConfigError(f"{where}references[{index}]: {name!r} is there already; name every shape once")


def validate(config: RunConfig) -> None:
    """Check every setting that can be wrong on its own; raises ``ConfigError`` before any work begins."""
    for where, value, choices in (
        ("problem_type", config.problem_type or "single_label", ("single_label", "multi_label", "regression")),
        ("finetune.when", config.finetune.when, ("auto", "always", "never")),
        ("vocabulary.kind", config.vocabulary.kind, ("teacher", "pruned", "own")),
        ("search.mode", config.search.mode, ("joint", "bilevel")),
        ("search.efficiency", config.search.efficiency, ("penalty", "constraint")),
        ("search.derive", config.search.derive, ("evaluated", "argmax")),
        ("search.latency_runtime", config.search.latency_runtime, ("auto", "onnxruntime", "openvino", "torch")),
        ("distill.loss", config.distill.loss, ("kl", "mse")),
        ("mixed_precision", config.mixed_precision, ("auto", "no", "bf16", "fp16")),
        ("bench.runtime", config.bench.runtime, ("auto", "torch", "torch_compile", "onnxruntime", "openvino")),
    ):
        check_choice(where, value, choices)
    for name in config.trackers:
        check_choice("report_to", name, ("tensorboard", "trackio", "wandb", *(("none",) if not config.trackers[1:] else ())))
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
        ("vocabulary.size", 1 if config.vocabulary.size is None else config.vocabulary.size, 1, 1 << 24),
        ("vocabulary.min_count", config.vocabulary.min_count, 0, float("inf")),
        ("search.steps", config.search.steps, 1, float("inf")),
        ("search.candidates", config.search.candidates, 1, float("inf")),
        ("search.operation_dropout", config.search.operation_dropout, 0, 0.99),
        ("search.entropy_weight", config.search.entropy_weight, 0, float("inf")),
        ("search.unroll_rate", config.search.unroll_rate or 0, 0, 10),
        ("search.population", config.search.population, 4, 1 << 16),
        ("search.generations", config.search.generations, 0, 1 << 16),
        ("search.latency_threads", config.search.latency_threads, 1, 1024),
        ("search.latency_batch_size", config.search.latency_batch_size, 1, 1 << 20),
        ("retrain.steps", config.retrain.steps, 1, float("inf")),
        ("report_examples", config.report_examples, 0, 50),
    ):
        check_range(where, value, low, high)
    for stage, settings in (("search", config.search), ("retrain", config.retrain), ("finetune", config.finetune)):
        check_range(f"{stage}.batch_size", settings.batch_size, 1, math.inf)
        check_range(f"{stage}.learning_rate", settings.learning_rate, 0, 10)
        check_range(f"{stage}.warmup", settings.warmup, 0, 1)
        check_range(f"{stage}.weight_decay", settings.weight_decay, 0, 10)
    for stage, settings in (("search", config.search), ("retrain", config.retrain)):
        check_range(f"{stage}.embedding_rate", settings.embedding_rate, 0, 100)
        check_range(f"{stage}.inherited_rate", settings.inherited_rate, 0, 100)
        check_range(f"{stage}.clip_norm", settings.clip_norm, 1e-9, math.inf)
    for name in ("neighbours", "fragments", "splices", "masked_lm"):
        check_range(f"transfer.{name}", getattr(config.transfer, name), 0, math.inf)
    for name in ("target_macs", "target_params"):
        check_range(f"search.{name}", getattr(config.search, name) or 1, 1, math.inf)
    check_bench(config.bench, "bench.")
    if config.bench.runtimes or config.bench.precisions != ["fp32"]:
        raise ConfigError(
            "bench.runtimes, bench.precisions: a run times its systems in one runtime at fp32; choices: bench.runtime here, "
            "these lists in `adasearch bench` and `adasearch quantize`"
        )
    if config.seeds is not None and not config.seeds:
        raise ConfigError("seeds: the list is empty; choices: one or more whole numbers, or leave it out")
    search = config.search
    if search.latency_target_ms is not None:
        check_range("search.latency_target_ms", search.latency_target_ms, 1e-6, 1e9)
    for index, length in enumerate(search.latency_lengths or []):
        check_range(f"search.latency_lengths[{index}]", length, 1, config.max_seq_length)
    if search.latency_lengths == []:
        raise ConfigError("search.latency_lengths: the list is empty; choices: one or more whole numbers, or leave it out")
    if search.efficiency == "constraint" and not (search.target_macs or search.target_params or search.latency_target_ms):
        raise ConfigError(
            "search.efficiency: 'constraint' needs a target; choices: search.latency_target_ms, search.target_macs, search.target_params"
        )
    if config.transfer.masked_lm and not config.transfer.masked_lm_model:
        raise ConfigError("transfer.masked_lm: replacement needs transfer.masked_lm_model, a masked language model with the teacher's tokenizer")
    if config.vocabulary.kind == "own" and config.vocabulary.size is None:
        raise ConfigError("vocabulary.size: kind 'own' needs a size; choices: a number of rows, such as 8000")
    if config.vocabulary.kind == "teacher" and config.vocabulary.size is not None:
        raise ConfigError(
            f"vocabulary.size: {config.vocabulary.size} has no effect on the teacher's vocabulary;"
            " choices: --vocabulary.kind pruned or own"
        )
    if config.teacher == "none" and not config.soft_label_columns:
        raise ConfigError("teacher: 'none' needs soft_label_columns; or name a checkpoint")


def to_dict(config: Any) -> dict[str, Any]:
    """A config as nested plain data, for config.yaml and fingerprints."""
    return dataclasses.asdict(config)
