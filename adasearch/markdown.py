"""report.md: the honest table, the search, what was run; and the writing of both files of a report."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from adasearch.errors import ConfigError
from adasearch.files import read_json, write_json, write_text
from adasearch.formats import (
    format_bytes,
    format_count,
    format_ms,
    format_score,
    format_spread,
    format_threads,
    metric_name,
)
from adasearch.report import FIGURES, Report, System, figures_of
from adasearch.verdict import quotient, verdict, warnings


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
    if report.search.get("depth") == 0:
        figures = [name for name in figures if name != "cell"]  # a bag of embeddings has none
    write_text(run_dir / "report.md", markdown(report, figures=figures))
    return run_dir / "report.md"


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
    gigabytes = quotient(search.get("peak_rss_bytes"), 1e9)
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
        share = None if s.params_embedding is None else quotient(s.params_embedding, s.params)
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
    return "-" if mean is None else format_score(mean, name) + format_spread(found.get("sd"), name)


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
