"""The report of a run: plain data with units, a table that hides nothing, a verdict computed from the numbers.

Scores are fractions in the data and points (hundredths) on paper; squared errors stay as they are. Ratios are read as
"the student is so many times faster, smaller": above 1 is in its favour. Spreads are sample standard deviations over
seeds.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from adasearch.errors import ConfigError
from adasearch.files import read_json, write_json, write_text

KINDS = {  # kind of a system -> what it is called in a sentence
    "teacher": "the teacher",
    "student": "the student",
    "student_no_kd": "the same student without a teacher",
    "random_architecture": "a random architecture of equal cost",
    "bag_of_embeddings": "a bag of embeddings",
    "tfidf": "TF-IDF + logistic regression",
    "reference": "the BERT-base shape",
}
ERRORS_OF_MEASUREMENT = ("mse",)  # metrics that are no share of anything: printed as they are, lower is better
PARAMETER_FREE = ("skip", "none", "max_pool", "avg_pool")  # an operation's name without its kernel
COLLAPSE_SHARE = 0.8  # of the edges; the default of search.collapse_share
UNDECIDED_ENTROPY = 0.95  # share of the maximum above which the choice of operations is as good as open
MEASUREMENTS = ("params", "params_embedding", "macs", "size_bytes", "latency_ms_p50", "latency_ms_p90", "texts_per_s")
NOISE_ERRORS = 2.0  # fewer standard errors than this are noise: 95% level of many seeds, 88% of three against three
FIGURES = {  # figure -> (what it is drawn from, any of these patterns; its caption)
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
    ``seq_len`` is in word pieces, 0 where a system reads raw texts. None = not known or not applicable.
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


@dataclass(frozen=True)
class Report:
    """Everything a run measured. ``majority`` holds the constant answer's metrics and ``is_skewed``; ``search`` the
    seconds, steps, peak_rss_bytes, entropy (shares of the maximum) and operations (how many edges have each)."""

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


def _check_keys(cls: type, data: Any, where: str) -> None:
    if not isinstance(data, dict):
        raise ConfigError(f"{where}: {type(data).__name__} found, an object is expected")
    fields = dataclasses.fields(cls)
    known = {f.name for f in fields}
    needed = {f.name for f in fields if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING}
    unknown, missing = sorted(set(data) - known), sorted(needed - set(data))
    if unknown or missing:
        raise ConfigError(f"{where}: unknown keys {unknown}, missing keys {missing}; known: {sorted(known)}")


# --- what the numbers say ------------------------------------------------------------------------------------------


def compute_ratios(systems: Sequence[System]) -> dict[str, dict[str, float | None] | None]:
    """The student against every other kind, as ``student_vs_<kind>``; None where student or other is missing.

    ``speed``, ``size`` and ``params`` are the other's value over the student's, ``score`` the student's over the
    other's, ``score_difference`` theirs subtracted, ``pooled_sd`` the seeds' pooled standard deviation and
    ``standard_error`` that of the difference of the two means; None where a number is missing.
    """
    by_kind: dict[str, System] = {}
    for system in systems:
        by_kind.setdefault(system.kind, system)
    student = by_kind.get("student")
    return {
        f"student_vs_{kind}": None if student is None or kind not in by_kind else _compare(student, by_kind[kind])
        for kind in KINDS if kind != "student"
    }  # fmt: skip


def _compare(student: System, other: System) -> dict[str, float | None]:
    pooled, error = _pool(student.scores, other.scores)
    have_scores = student.score_mean is not None and other.score_mean is not None
    return {
        "speed": _over(other.latency_ms_p50, student.latency_ms_p50),
        "size": _over(other.size_bytes, student.size_bytes),
        "params": _over(other.params, student.params),
        "score": _over(student.score_mean, other.score_mean),
        "score_difference": student.score_mean - other.score_mean if have_scores else None,
        "pooled_sd": pooled,
        "standard_error": error,
    }


def _over(numerator: float | None, denominator: float | None) -> float | None:
    """The quotient; None where a part is missing or the quotient means nothing."""
    return None if numerator is None or denominator is None or denominator <= 0 else numerator / denominator


def _pool(first: Sequence[float], second: Sequence[float]) -> tuple[float | None, float | None]:
    """Pooled sample standard deviation and the standard error of the difference of the means (Student's two-sample)."""
    freedom = len(first) + len(second) - 2
    if not first or not second or freedom < 1:
        return None, None
    squares = sum((x - sum(values) / len(values)) ** 2 for values in (first, second) for x in values)
    pooled = math.sqrt(squares / freedom)
    return pooled, pooled * math.sqrt(1 / len(first) + 1 / len(second))


def verdict(report: Report) -> str:
    """One sentence on the student: score and speed against the teacher, size, and what stands beside it."""
    student, metric = report.find("student"), metric_name(report.metric)
    if student is None or student.score_mean is None:
        return "No student was scored."
    scored = f"{format_score(student.score_mean, report.metric)}{_spread(student.score_sd, report.metric)}"
    ratio = report.ratios.get("student_vs_teacher") or {}
    threads = format_threads(student.threads)
    how = f"batch {student.batch_size}, {student.seq_len} word pieces, {threads}, {student.runtime}"
    teacher = report.find("teacher")
    if ratio.get("score") is not None and teacher is not None:
        against = format_score(teacher.score_mean, report.metric)
        sentence = f"The student keeps {100 * ratio['score']:.1f}% of the teacher's {metric} ({scored} of {against})"
        if ratio.get("speed") is not None:
            sentence += f" at {ratio['speed']:.1f}x its speed ({how})"
    else:
        sentence = f"The student reaches {scored} {metric}"
        if student.latency_ms_p50 is not None:
            sentence += f" in {format_ms(student.latency_ms_p50)} ms ({how})"
    if student.params is not None:
        sentence += f" with {format_count(student.params)} parameters"
    beside = [text for kind in ("tfidf", "random_architecture") if (text := _beside(report, kind))]
    return f"{sentence}{'; it is ' if beside else ''}{' and '.join(beside)}."


def _beside(report: Report, kind: str) -> str | None:
    ratio = report.ratios.get(f"student_vs_{kind}") or {}
    difference = ratio.get("score_difference")
    if difference is None:
        return None
    spread = _spread(ratio.get("pooled_sd"), report.metric) if kind == "random_architecture" else ""
    side = "below" if difference < 0 else "above"
    return f"{format_score(abs(difference), report.metric)}{spread} points {side} {KINDS[kind]}"


def warnings(report: Report) -> list[str]:
    """What speaks against the student or against trusting the numbers, in plain words."""
    student = report.find("student")
    found = []
    if student is not None and student.score_mean is not None:
        found += [text for kind in KINDS if (text := _not_better(report, student, kind))]
        majority = report.majority.get(report.metric)
        if majority is not None and student.score_mean <= majority:
            constant = format_score(majority, report.metric)
            found.append(f"The student is not better than always answering the most frequent class ({constant}).")
        if len(student.scores) == 1:
            found.append("One seed: how much the scores vary from run to run is not known.")
    setups = {(s.runtime, s.threads, s.batch_size) for s in report.systems if s.kind not in ("tfidf",) and s.runtime}
    if len(setups) > 1:
        found.append("The systems differ in runtime, threads or batch size: their latencies do not compare.")
    return found + _search_warnings(report.search)


def _not_better(report: Report, student: System, kind: str) -> str | None:
    other, ratio = report.find(kind), report.ratios.get(f"student_vs_{kind}") or {}
    difference, error = ratio.get("score_difference"), ratio.get("standard_error")
    if other is None:
        return None
    if kind == "teacher":
        speed = ratio.get("speed")
        return None if speed is None or speed > 1 else f"The student is not faster than its teacher ({speed:.2f}x)."
    if difference is None:
        return None
    own, others = (format_score(system.score_mean, report.metric) for system in (student, other))
    pair = f"({own} against {others})"
    if difference <= 0:
        ends = {
            "tfidf": "the plain baseline is the better choice here",
            "random_architecture": "the search gained nothing",
            "student_no_kd": "the teacher gained nothing",
            "bag_of_embeddings": "the cells gained nothing",
        }
        return f"The student is not better than {KINDS[kind]} {pair}: {ends[kind]}."
    if error is not None and difference < NOISE_ERRORS * error:
        return (
            f"The student is not better than {KINDS[kind]} within noise {pair}:"
            f" the difference is less than {NOISE_ERRORS:.0f} standard errors."
        )
    return None


def _search_warnings(search: dict[str, Any]) -> list[str]:
    found = []
    counts = search.get("operations") or {}
    free = sum(count for name, count in counts.items() if name.rstrip("0123456789") in PARAMETER_FREE)
    total = sum(counts.values())
    if total and free / total > search.get("collapse_share", COLLAPSE_SHARE):
        found.append(
            f"Collapse: {free} of {total} edges have an operation without parameters; a smaller search.beta or a longer"
            " search.arch_warmup may help."
        )
    open_share = (search.get("entropy") or {}).get("operations")
    if open_share is not None and open_share > UNDECIDED_ENTROPY:
        found.append(
            f"The search ended undecided: the entropy of its operations is {100 * open_share:.0f}% of the maximum;"
            " more search.steps or a larger search.arch_learning_rate may help."
        )
    return found


# --- numbers as text; a missing one is "-" -------------------------------------------------------------------------


def format_count(value: float | None) -> str:
    """``512``, ``1.3k``, ``33k``, ``3.97M``, ``1.2G``: three digits at most."""
    if value is None:
        return "-"
    for factor, unit in ((1, ""), (1e3, "k"), (1e6, "M"), (1e9, "G"), (1e12, "T")):
        scaled = value / factor
        if scaled < 999.5:
            break
    digits = 0 if factor == 1 or scaled >= 99.95 else (1 if scaled >= 9.995 or factor == 1e3 else 2)
    text = f"{scaled:.{digits}f}"
    return (text.rstrip("0").rstrip(".") if "." in text else text) + unit


def format_score(value: float | None, metric: str) -> str:
    """Points with one decimal; squared errors as they are."""
    return "-" if value is None else f"{value:.3f}" if metric in ERRORS_OF_MEASUREMENT else f"{100 * value:.1f}"


def format_ms(value: float | None) -> str:
    """Milliseconds, three digits."""
    if value is None:
        return "-"
    return f"{value:.0f}" if value >= 99.5 else f"{value:.1f}" if value >= 9.95 else f"{value:.2f}"


def format_bytes(value: float | None) -> str:
    """Decimal megabytes."""
    return "-" if value is None else f"{value / 1e6:.1f} MB"


def _spread(sd: float | None, metric: str) -> str:
    return "" if sd is None else f" ± {format_score(sd, metric)}"


def format_threads(count: int | None) -> str:
    """``one thread``, ``2 threads``."""
    return "threads unknown" if count is None else "one thread" if count == 1 else f"{count} threads"


def metric_name(name: str) -> str:
    """A metric as one writes it."""
    known = {"f1": "F1", "f1_macro": "macro F1", "f1_micro": "micro F1", "mse": "squared error"}
    return known.get(name, name.replace("_", " "))


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; the first column is text, the others are numbers."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def scores_table(report: Report) -> str:
    """The honest table in Markdown: a row a system, then the constant answer."""
    names = [report.metric, *(name for name in report.metrics if name != report.metric)]
    costs = ["parameters", "in embeddings", "MACs", "on disk", "p50 ms", "p90 ms", "texts/s"]
    rows = []
    for s in report.systems:
        share = None if s.params_embedding is None else _over(s.params_embedding, s.params)
        rate = "-" if s.texts_per_s is None else f"{s.texts_per_s:,.0f}"
        label = f"**{s.name}**" if s.kind == "student" else s.name
        rows.append([
            f"{label} ({s.note})" if s.note else label, *(_score_cell(s, name, report.metric) for name in names),
            format_count(s.params), "-" if share is None else f"{100 * share:.0f}%", format_count(s.macs),
            format_bytes(s.size_bytes), format_ms(s.latency_ms_p50), format_ms(s.latency_ms_p90), rate,
        ])  # fmt: skip
    if any(report.majority.get(name) is not None for name in names):
        constant = [format_score(report.majority.get(name), name) for name in names]
        rows.append(["constant answer", *constant, *["-"] * len(costs)])
    return _table(["system", *map(metric_name, names), *costs], rows)


def _score_cell(system: System, name: str, main: str) -> str:
    """Mean and spread of one metric."""
    fallback = {"mean": system.score_mean, "sd": system.score_sd} if name == main else {}
    found = system.metrics.get(name) or fallback
    mean = found.get("mean")
    return "-" if mean is None else format_score(mean, name) + _spread(found.get("sd"), name)


def shapes_table(report: Report) -> str:
    """Every shape timed, a column each: median milliseconds and texts a second; "" where only one was.

    A shape that a system was not timed at is "-". Systems that read raw texts name no length: theirs go by their place.
    """
    timed = [s for s in report.systems if s.timings]
    shapes = list(dict.fromkeys(_shape(t) for s in timed for t in s.timings if all(_shape(t))))
    if len(shapes) < 2:
        return ""
    rows = []
    for s in timed:
        is_raw = not any(t.get("seq_len") for t in s.timings)
        by_shape = dict(zip(shapes, s.timings)) if is_raw else {_shape(t): t for t in s.timings}
        rows.append([s.name, *(_timing_cell(by_shape.get(shape)) for shape in shapes)])
    return _table(["system", *(f"{batch} x {length}" for batch, length in shapes)], rows)


def _shape(timing: dict[str, Any]) -> tuple[int | None, int | None]:
    """Batch size and word pieces."""
    return timing.get("batch_size"), timing.get("seq_len")


def _timing_cell(timing: dict[str, Any] | None) -> str:
    """Median latency and rate, as far as they are known."""
    latency, rate = (timing or {}).get("latency_ms_p50"), (timing or {}).get("texts_per_s")
    known = [f"{format_ms(latency)} ms"] * (latency is not None) + ([] if rate is None else [f"{rate:,.0f}/s"])
    return ", ".join(known) or "-"


# --- files ---------------------------------------------------------------------------------------------------------


def write_report(run_dir: Path, report: Report) -> Path:
    """Write report.json, then report.md beside it; returns the latter. Raises ``ConfigError`` when it is not valid."""
    report.validate()
    write_json(Path(run_dir) / "report.json", report.to_dict())
    return _write_markdown(Path(run_dir), report)


def rebuild_report(run_dir: Path) -> Path:
    """Write report.md again from report.json. Raises ``ConfigError`` when that is absent or cannot be read."""
    path = Path(run_dir) / "report.json"
    try:
        data = read_json(path)
    except (OSError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: no report can be read ({error}); choices: the folder of a finished run") from error
    return _write_markdown(Path(run_dir), Report.from_dict(data, where=str(path)))


def _write_markdown(run_dir: Path, report: Report) -> Path:
    figures = figures_of(run_dir)
    if not any(s.score_mean is not None and s.latency_ms_p50 for s in report.systems):
        figures = [name for name in figures if name != "comparison"]  # there is no point to draw in it
    write_text(run_dir / "report.md", markdown(report, figures=figures))
    return run_dir / "report.md"


def figures_of(run_dir: Path) -> list[str]:
    """The figures that ``adasearch.draw.inspect`` makes of this run, whether it has been called yet or not."""
    return [name for name, (sources, _) in FIGURES.items() if any([*run_dir.glob(source)] for source in sources)]


def markdown(report: Report, figures: Sequence[str] = ()) -> str:
    """The whole report as Markdown; figures are linked relative to the run's folder."""
    first, how = next((s for s in report.systems if s.seq_len), None), ""
    if first is not None:
        shape = f"batch {first.batch_size}, {first.seq_len} word pieces, {format_threads(first.threads)}"
        how = f" Latency at {shape}, {first.runtime} {first.precision or ''}".rstrip() + ", all systems interleaved."
    seeds = f"{len(report.seeds)} seed{'s' * (len(report.seeds) != 1)}"
    parts = [f"# {report.task}: teacher, student and controls", verdict(report)]
    if found := warnings(report):
        parts.append("\n".join(f"> **Warning.** {text}  " for text in found))
    spread = f"Scores on the held-out examples: mean ± standard deviation over {seeds}."
    parts += ["## Scores and costs", scores_table(report), spread + how]
    if report.majority.get("is_skewed"):
        parts.append("One class is much more frequent than the others: read every metric against the constant answer.")
    if shapes := shapes_table(report):
        parts += ["## Other shapes", "Batch size x word pieces: median latency, texts a second.", shapes]
    if report.search:
        parts += ["## Search", _search_text(report.search)]
    if figures:
        parts += ["## Figures", "\n\n".join(f"![{FIGURES[name][1]}](figures/{name}.svg)" for name in figures)]
    parts += ["## What was run", _provenance(report)]
    if report.notes:
        parts += ["## Notes", "\n".join(f"- {note}" for note in report.notes)]
    return "\n\n".join(parts) + "\n"


def _search_text(search: dict[str, Any]) -> str:
    gigabytes = _over(search.get("peak_rss_bytes"), 1e9)
    facts = [
        ("space", search.get("space"), "{}"), ("cells", search.get("depth"), "{}"),
        ("width", search.get("width"), "{}"), ("steps", search.get("steps"), "{:,}"),
        ("time", search.get("seconds"), "{:,.0f} s"), ("peak memory", gigabytes, "{:.2f} GB"),
    ]  # fmt: skip
    lines = [f"- {name}: {form.format(value)}" for name, value, form in facts if value is not None]
    if search.get("entropy"):
        shares = ", ".join(f"{name} {100 * share:.0f}%" for name, share in search["entropy"].items())
        lines.append(f"- entropy at the end, of the maximum: {shares}")
    text = "\n".join(lines)
    counts = search.get("operations") or {}
    if counts:
        total = sum(counts.values())
        ordered = sorted(counts.items(), key=lambda item: -item[1])
        rows = [[f"`{name}`", str(count), f"{100 * count / total:.0f}%"] for name, count in ordered]
        text += "\n\n" + _table(["operation", "edges", "share"], rows)
    return text


def _provenance(report: Report) -> str:
    known = {key.replace("_", " "): value for key, value in report.hardware.items() if value is not None}
    machine = ", ".join(f"{key} {value}" for key, value in known.items())
    facts = [("command", report.command and f"`{report.command}`"), ("commit", report.commit),
             ("seeds", ", ".join(map(str, report.seeds))), ("hardware and versions", machine)]  # fmt: skip
    return "\n".join(f"- {name}: {value or '-'}" for name, value in facts)


def model_card(report: Report, student_name: str, license: str = "other") -> str:
    """README.md of the student's folder for the Hugging Face hub: front matter, use, scores, limits."""
    student = report.find("student")
    front: dict[str, Any] = {
        "library_name": "transformers", "pipeline_tag": "text-classification", "license": license,
        "tags": ["adasearch", "neural-architecture-search", "knowledge-distillation", "text-classification"],
        "metrics": list(report.metrics),
    }  # fmt: skip
    limits = [
        f"It knows one task, {report.task}, and texts like those it was trained on; elsewhere do not trust it.",
        "What the teacher gets wrong or is biased in, the student has learned.",
        "The licences of the teacher and of the data apply; they are not known here.",
        *warnings(report),
    ]
    precision = "" if student is None or student.precision is None else f" ({student.precision})"
    return f"""---
{yaml.safe_dump(front, sort_keys=False).strip()}
---

# {student_name}

A small, fast text classifier for {report.task}, found by architecture search and taught by a transformer
([AdaBERT](https://arxiv.org/abs/2001.04246)) with `adasearch`. {verdict(report)}

## Use

```python
import adasearch  # makes the model known to transformers
from transformers import pipeline

classify = pipeline("text-classification", "path/to/student")
print(classify("..."))  # of a pair: classify({{"text": "...", "text_pair": "..."}})
```

Without `adasearch` installed, the modelling file that lies in this folder is used; read it first:

```python
from transformers import pipeline

classify = pipeline("text-classification", "path/to/student", trust_remote_code=True)
```

With onnxruntime alone, where `onnx/` is present:

```python
import numpy as np
import onnxruntime
from tokenizers import Tokenizer

session = onnxruntime.InferenceSession("path/to/student/onnx/model.onnx")
encoded = Tokenizer.from_file("path/to/student/tokenizer.json").encode("...")
inputs = {{"input_ids": np.array([encoded.ids]), "attention_mask": np.array([encoded.attention_mask])}}
(logits,) = session.run(None, inputs)
```

## Scores

{scores_table(report)}

Mean ± standard deviation over the seeds {', '.join(map(str, report.seeds))}; latencies as measured{precision}.

## Limits

{chr(10).join(f"- {text}" for text in limits)}
"""
