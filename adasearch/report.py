"""The report of a run as plain data with units: every system, what was run, the search, and their check.

Scores are fractions in the data and points (hundredths) on paper; squared errors stay as they are. Ratios are read as
"the student is so many times faster, smaller": above 1 is in its favour. Spreads are sample standard deviations over
seeds.
"""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from adasearch.errors import ConfigError
from adasearch.files import read_json

KINDS = {  # kind of a system -> what it is called in a sentence
    "teacher": "the teacher",
    "student": "the student",
    "student_no_kd": "the same student without a teacher",
    "random_architecture": "a random architecture of equal cost",
    "bag_of_embeddings": "a bag of embeddings",
    "tfidf": "TF-IDF + logistic regression",
    "reference": "the BERT-base shape",
    "pruned": "the model pruned to another target",
    "random_ticket": "a random ticket of the same ratios",
    "sparse": "the sparse model before int8",
    "direct": "a model pruned on this task alone",
    "dense": "the dense model fine-tuned here",
    "dense_int8": "the dense model in int8",
}
MEASUREMENTS = ("params", "params_embedding", "macs", "size_bytes", "latency_ms_p50", "latency_ms_p90", "texts_per_s",
                "task_texts_per_s", "tokenizer_texts_per_s", "sparse_bytes", "agreement")  # fmt: skip
FIGURES = {  # figure -> (what it is drawn from, any of these patterns; its caption)
    "structure": (("structure.json",), "What is left in each layer"),
    "zeros": (("zeros.json",), "Zeros in the weights of each layer, %"),
    "tickets": (("models/*/mask_distances.json",), "How much the tickets drawn in the search differ"),
    "pruning": (("models/cofi-*/history.json",), "The pruning: what was to be saved, what is open, who learned from whom"),
    "cell": (("search/architecture.json",), "The derived cell"),
    "network": (("search/architecture.json",), "The whole network"),
    "search": (("search/history.jsonl",), "The search"),
    "training": (("models/*/history.json", "work/*/history.jsonl"), "The training of student and controls"),
    "comparison": (("report.json",), "Score against latency"),
}


@dataclass(frozen=True)
class System:
    """One row of the honest table. ``scores`` are the seeds' values of the task's metric, ``metrics`` every metric's
    ``{"mean", "sd"}``; ``timings`` the same fields at every shape timed, of which the row carries the first.
    ``seq_len`` is in word pieces, 0 where a system reads raw texts. ``task_texts_per_s`` is the rate over a stream of
    texts as long as the task's own, from word pieces to logits, ``tokenizer_texts_per_s`` that of its tokenizer on one thread over such
    texts, ``streams`` the fields of ``streams.StreamTiming`` for each way of batching them;
    ``import_s`` to ``peak_rss_bytes`` are those of ``cold.ColdStart``. ``encoder_sparsity`` is the share of the dense model's
    prunable encoder parameters that is gone (where weights are 0: of its weights), ``train_seconds`` and ``train_cpu_seconds``
    the mean over the seeds of what the whole way from the pre-trained checkpoint took, scoring left out; of a searched student its
    training without the search. ``size_ratios`` are those of ``sparse_size.SparseSize``, ``sparse_bytes`` its file; ``agreement`` is the share of the held-out examples on which
    the int8 graph predicts as the model that was trained, the least of all seeds, ``graph_scores`` that graph's own metrics, the mean of the
    seeds; ``runtimes`` is like ``timings``, each row
    with its ``option``, in the runtimes that the table is not timed in. None = not known or not applicable.
    """

    name: str
    kind: str
    score_mean: float | None = None
    score_sd: float | None = None
    scores: list[float] = field(default_factory=list)
    metrics: dict[str, dict[str, float | None]] = field(default_factory=dict)
    params: int | None = None
    params_embedding: int | None = None
    macs: int | None = None
    size_bytes: int | None = None
    runtime: str | None = None
    precision: str | None = None
    threads: int | None = None
    batch_size: int | None = None
    seq_len: int | None = None
    latency_ms_p50: float | None = None
    latency_ms_p90: float | None = None
    texts_per_s: float | None = None
    timings: list[dict[str, Any]] = field(default_factory=list)
    note: str = ""
    task_texts_per_s: float | None = None
    tokenizer_texts_per_s: float | None = None
    streams: list[dict[str, Any]] = field(default_factory=list)
    import_s: float | None = None
    load_s: float | None = None
    first_inference_ms: float | None = None
    import_rss_bytes: int | None = None
    peak_rss_bytes: int | None = None
    encoder_sparsity: float | None = None
    train_seconds: float | None = None
    train_cpu_seconds: float | None = None
    size_ratios: dict[str, float] = field(default_factory=dict)
    sparse_bytes: int | None = None
    agreement: float | None = None
    graph_scores: dict[str, float] = field(default_factory=dict)
    runtimes: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class Report:
    """Everything a run measured. ``majority`` holds the constant answer's metrics and ``is_skewed``; ``search`` the
    seconds, steps, peak_rss_bytes, entropy (shares of the maximum) and operations (how many edges have each).

    What a run may lack is empty: ``confusion`` has ``labels`` and, by kind of system, counts of (gold, predicted);
    ``disagreements`` has ``count``, ``of``, ``student_right``, ``teacher_right`` and ``examples`` with their texts;
    ``cascade`` has ``temperature``, ``fitted_on`` (how many validation examples; ``is_held_out``: they are also those of
    the curve) and ``curve``, a list of threshold, share_escalated and score; ``latency`` is what
    ``latency_target.compare_run`` says; ``deployments`` is the student's deploy.json. ``price_per_hour`` is
    what one core is assumed to cost, in US dollars. ``method`` is of a compression that is no search: ``name``, ``summary``,
    ``facts``, numbers as text by what they say, and ``files``, Markdown on what lies in ``student/``. ``max_steps`` is the cap on
    the steps of every stage, where one was set. ``held_out`` is how many examples the scores are of; not ``has_gold`` their labels are
    the likeliest of the soft labels.
    """

    task: str
    metric: str
    metrics: list[str]
    majority: dict[str, Any]
    seeds: list[int]
    hardware: dict[str, Any]
    systems: list[System]
    search: dict[str, Any]
    ratios: dict[str, Any]
    command: str | None = None
    commit: str | None = None
    notes: list[str] = field(default_factory=list)
    confusion: dict[str, Any] = field(default_factory=dict)
    disagreements: dict[str, Any] = field(default_factory=dict)
    cascade: dict[str, Any] = field(default_factory=dict)
    latency: dict[str, Any] = field(default_factory=dict)
    deployments: dict[str, Any] = field(default_factory=dict)
    price_per_hour: float | None = None
    method: dict[str, Any] = field(default_factory=dict)
    max_steps: int | None = None
    held_out: int | None = None
    has_gold: bool = True

    def find(self, kind: str) -> System | None:
        """The first system of that kind."""
        return next((system for system in self.systems if system.kind == kind), None)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, the content of report.json."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any], *, where: str = "report") -> Report:
        """Inverse of ``to_dict``. Raises ``ConfigError`` naming ``where`` and what does not fit."""
        _check_keys(cls, data, where)
        if not isinstance(data["systems"], list):
            raise ConfigError(f"{where}: systems: {type(data['systems']).__name__} found, a list is expected")
        for index, system in enumerate(data["systems"]):
            _check_keys(System, system, f"{where}: systems[{index}]")
        report = cls(**{**data, "systems": [System(**system) for system in data["systems"]]})
        report.validate(where=where)
        return report

    def validate(self, *, where: str = "report") -> None:
        """Raise ``ConfigError`` when a kind is unknown, a number is not one, or the metric is not among the metrics."""
        if self.metric not in self.metrics:
            raise ConfigError(f"{where}: metric: {self.metric!r} is not measured; choices: {', '.join(self.metrics)}")
        for index, system in enumerate(self.systems):
            place = f"{where}: systems[{index}]"
            if system.kind not in KINDS:
                raise ConfigError(f"{place}.kind: {system.kind!r} is not known; choices: {', '.join(KINDS)}")
            for key in (*MEASUREMENTS, "score_mean", "score_sd"):
                value, lowest = getattr(system, key), -math.inf if key == "score_mean" else 0
                if value is None or isinstance(value, (int, float)) and math.isfinite(value) and value >= lowest:
                    continue
                allowed = "a finite number" if key == "score_mean" else "0 or more"
                raise ConfigError(f"{place}.{key}: {value!r} is no measurement; choices: {allowed}, or null")
        for key in ("confusion", "disagreements", "cascade", "latency", "deployments"):
            if not isinstance(getattr(self, key), dict):
                raise ConfigError(f"{where}: {key}: {type(getattr(self, key)).__name__} found, an object is expected")


def read_report(run: str | Path, setting: str = "run_dir") -> Report:
    """The report in a run's folder, or in a report's own file. Raises ``ConfigError``, which calls it ``setting``, where there is none."""
    run = Path(run)
    path, choices = run / "report.json" if run.is_dir() else run, "choices: the folder of a finished run, or its report.json"
    if not run.exists():
        raise ConfigError(f"{setting}: {run}: no such folder; {choices}")
    if not path.exists():
        is_begun = (run / "run.json").is_file()
        why = "the run is not finished: give the same command again" if is_begun else choices
        raise ConfigError(f"{setting}: {run}: no report.json there; {why}")
    try:
        data = read_json(path)
    except (OSError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{setting}: {path}: no report can be read ({error}); {choices}") from error
    if not isinstance(data, dict) or "systems" not in data:
        raise ConfigError(f"{setting}: {path}: has no systems to compare; choices: the command that wrote it, which writes its report again")
    return Report.from_dict(data, where=str(path))


def _check_keys(cls: type, data: Any, where: str) -> None:
    if not isinstance(data, dict):
        raise ConfigError(f"{where}: {type(data).__name__} found, an object is expected")
    fields = dataclasses.fields(cls)
    known = {f.name for f in fields}
    needed = {f.name for f in fields if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING}
    unknown, missing = sorted(set(data) - known), sorted(needed - set(data))
    if unknown or missing:
        raise ConfigError(f"{where}: unknown keys {unknown}, missing keys {missing}; known: {sorted(known)}")


def figures_of(run_dir: Path) -> list[str]:
    """The figures that ``adasearch.inspect_run.inspect`` makes of this run, whether it has been called yet or not."""
    return [name for name, (sources, _) in FIGURES.items() if any([*run_dir.glob(source)] for source in sources)]
