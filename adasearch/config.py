"""Every setting of a run, one field each with one meaning and its default. The command line is generated from these.

The sections of ``RunConfig`` have modules of their own; users import them from here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from adasearch.bench_config import BenchConfig, check_run_bench
from adasearch.errors import ConfigError
from adasearch.fit_config import DistillConfig, FinetuneConfig, FitConfig, RetrainConfig, check_distill, check_finetune, check_fit
from adasearch.search_config import SearchConfig, check_search
from adasearch.settings import PRECISIONS, check_choice, check_optional, check_range, check_report_to, check_seeds, to_dict
from adasearch.task_config import PROBLEM_TYPES, TaskConfig, TransferConfig, VocabularyConfig, check_transfer, check_vocabulary

__all__ = [
    "BenchConfig", "DistillConfig", "FinetuneConfig", "FitConfig", "RetrainConfig", "RunConfig", "SearchConfig", "TaskConfig",
    "TransferConfig", "VocabularyConfig", "to_dict", "validate",
]  # fmt: skip


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
        max_steps: caps the steps of every training stage (for a quick look). Not the transfer set, of which every batch is drawn as a
            whole: for a quick look ``transfer.size`` may be small, too.
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
    def seed_of_data(self) -> int:
        """The seed of what comes before the search."""
        return self.seed if self.data_seed is None else self.data_seed


def check_shared(config: TaskConfig, problem_types: tuple[str, ...]) -> None:
    """Check what settings of a search and of a pruned transformer (``EncoderRunConfig``) both have; raises ``ConfigError``."""
    check_choice("problem_type", config.problem_type or problem_types[0], problem_types)
    check_choice("mixed_precision", config.mixed_precision, ("auto", *PRECISIONS))
    check_range("max_seq_length", config.max_seq_length, 4, 1 << 20)
    check_range("report_examples", config.report_examples, 0, 50)
    for name in ("max_steps", "max_train_examples"):
        check_optional(name, getattr(config, name), 1, math.inf)
    check_range("checkpoint_seconds", config.checkpoint_seconds, 0, 1e9)
    for name, seeds in (("seed", [config.seed]), ("seeds", config.seeds)):
        check_seeds(name, seeds)
    check_report_to(config.report_to)
    check_finetune(config.finetune)
    check_run_bench(config.bench)


def validate(config: RunConfig) -> None:
    """Check every setting that can be wrong on its own; raises ``ConfigError`` before any work begins."""
    check_shared(config, PROBLEM_TYPES)
    for control in config.controls:
        check_choice("controls", control, ("student_no_kd", "random_architecture", "bag_of_embeddings", "tfidf"))
        if config.controls.count(control) > 1:  # its scores would count twice
            raise ConfigError(f"controls: {control!r} is named twice; choices: each once")
    check_range("evaluate", config.evaluate, 0, 1 << 20)
    check_seeds("data_seed", [config.seed_of_data])
    check_vocabulary(config.vocabulary)
    check_search(config.search, config.max_seq_length)
    check_transfer(config.transfer, config.unlabeled_file)
    check_distill(config.distill)
    check_fit("retrain", config.retrain)
    if config.teacher == "none" and config.unlabeled_file:
        raise ConfigError(
            f"unlabeled_file: {config.unlabeled_file} has nobody to label it with teacher 'none'; choices: a teacher, or leave it out"
        )
    if config.teacher != "none" and config.tokenizer != RunConfig.tokenizer:
        raise ConfigError(f"tokenizer: {config.tokenizer!r} is not read beside teacher {config.teacher!r}, whose own it is; choices: --teacher none")
    if config.teacher == "none" and not config.soft_label_columns:
        raise ConfigError("teacher: 'none' needs soft_label_columns; or name a checkpoint")
