"""Every setting of a study: those of a run, and how their best values are looked for."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from adasearch.config import RunConfig, validate
from adasearch.errors import ConfigError
from adasearch.settings import check_choice, check_optional, check_range, cores_here, part_of, to_dict
from adasearch.task_config import folder_name

OBJECTIVES = ("score", "latency_ms", "macs", "params")
LIMITS = {"latency_ms": "latency_limit_ms", "macs": "macs_limit", "params": "params_limit"}  # cost -> the setting that bounds it
# may differ when a study goes on: how far and how fast it goes, not what a trial is
FREE = (
    "n_trials", "workers", "storage", "study_name", "quiet", "threads", "output_dir", "data_dir", "demo_assets", "report_to",
    "report_examples", "controls", "checkpoint_seconds", "keep_models",
)  # fmt: skip


@dataclass
class TuneConfig(RunConfig):
    """A study: trials of runs that differ in a few settings, each trial chosen from what the earlier ones found.

    Args:
        tune: which settings are tried, by their dotted names: a mapping with low and high (and log or step), or a list of
            values; space.widths, space.cells and other fields of the search space are among them. A useful set when empty.
        n_trials: trials in all, those of earlier calls and of other machines included.
        objectives: score (of the validation examples), and any of latency_ms (measured), macs, params. With score alone
            there is one best trial, with more a Pareto front.
        latency_limit_ms: trials slower than this are stopped before their student is trained.
        macs_limit: the same for multiply-accumulates at the task's mean length.
        params_limit: the same for parameters.
        storage: URL of a database that several machines share (postgresql://user@host/name); a journal file in the
            study's folder when absent.
        study_name: the study's name in the storage; the name of its folder when absent.
        sampler: tpe, nsgaii (generations of 10 trials) or random: how the next trial is chosen.
        pruner: auto, median, halving, dominated or none: how hopeless trials are stopped while they train. auto is median
            with one objective and dominated with several.
        prune_margin: with dominated: so much better must a score be at the same step, at no more cost, to stop a trial.
        prune_warmup: share of the training in which nothing is stopped.
        evaluations: validation scores while a student trains, on which trials are stopped.
        workers: processes on this machine; each trains with ``threads`` threads, together no more than there are cores.
        retries: so often a trial is tried again whose worker was killed.
        keep_models: keep the students of all trials.
    """

    tune: dict[str, Any] = field(default_factory=dict)
    n_trials: int = 40
    objectives: list[str] = field(default_factory=lambda: ["score", "latency_ms"])
    latency_limit_ms: float | None = None
    macs_limit: float | None = None
    params_limit: float | None = None
    storage: str | None = None
    study_name: str | None = None
    sampler: str = "tpe"
    pruner: str = "auto"
    prune_margin: float = 0.02
    prune_warmup: float = 0.25
    evaluations: int = 8
    workers: int = 1
    retries: int = 2
    keep_models: bool = False

    @property
    def folder(self) -> Path:
        """Where the study lies: ``output_dir``, or ``studies/<task>``."""
        return Path(self.output_dir or Path("studies") / folder_name(self.task))

    @property
    def name(self) -> str:
        """The study's name in its storage."""
        return self.study_name or self.folder.resolve().name

    @property
    def has_one_objective(self) -> bool:
        """Whether there is one best trial rather than a front."""
        return len(self.objectives) == 1

    @property
    def needs_latency(self) -> bool:
        """Whether every trial's student is exported and timed."""
        return "latency_ms" in self.objectives or self.latency_limit_ms is not None

    @property
    def trial_seeds(self) -> list[int]:
        """The seeds whose mean score is a trial's."""
        return self.seeds or [self.seed]

    def base(self) -> RunConfig:
        """The run that trials differ from, as plain settings."""
        return part_of(RunConfig, self)

    def lasting(self) -> dict[str, Any]:
        """The settings that make the study what it is: it goes on with these or not at all."""
        return {key: value for key, value in to_dict(self).items() if key not in FREE}


def check_study(config: TuneConfig) -> None:
    """Check every setting that can be wrong on its own; raises ``ConfigError``. The space is checked by ``read_space``."""
    validate(config)
    check_range("n_trials", config.n_trials, 1, float("inf"))
    check_range("workers", config.workers, 1, 1 << 16)
    check_range("retries", config.retries, 0, 1_000)
    check_range("evaluations", config.evaluations, 1, 10_000)
    check_range("prune_margin", config.prune_margin, 0, float("inf"))
    check_range("prune_warmup", config.prune_warmup, 0, 1)
    check_choice("sampler", config.sampler, ("tpe", "nsgaii", "random"))
    check_choice("pruner", config.pruner, ("auto", "median", "halving", "dominated", "none"))
    for index, name in enumerate(config.objectives):
        check_choice(f"objectives[{index}]", name, OBJECTIVES)
        if name in config.objectives[:index]:
            raise ConfigError(f"objectives[{index}]: {name!r} is there already; name every objective once")
    if "score" not in config.objectives:
        raise ConfigError(f"objectives: {config.objectives} without score would find the smallest network; choices: score and any of {', '.join(LIMITS)}")
    if config.has_one_objective and config.pruner == "dominated":
        raise ConfigError("pruner: 'dominated' compares scores at equal cost and needs a cost among the objectives; choices: median, halving, none")
    if not config.has_one_objective and config.pruner in ("median", "halving"):
        raise ConfigError(f"pruner: {config.pruner!r} needs a single objective (Optuna reports one value a step); choices: dominated, none")
    for setting in LIMITS.values():
        check_optional(setting, getattr(config, setting), 1e-9, float("inf"))
    if config.needs_latency and config.bench.runtime == "torch_compile":
        raise ConfigError("bench.runtime: 'torch_compile' takes minutes a network to get ready; choices: auto, onnxruntime, openvino, torch")
    _check_cores(config)


def _check_cores(config: TuneConfig) -> None:
    """Workers that take turns on a core are slower than fewer of them, and spoil each other's timings."""
    cores = cores_here()
    threads = config.threads or (1 if config.workers > 1 else cores)
    if config.workers > 1 and config.workers * threads > cores:
        raise ConfigError(
            f"workers: {config.workers} workers of {threads} thread(s) need {config.workers * threads} cores, this machine lends {cores};"
            f" choices: --workers {max(1, cores // threads)}, or --workers {cores} --threads 1"
        )
