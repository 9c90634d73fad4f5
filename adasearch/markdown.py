"""The report as Markdown: the honest table, the search, what was run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from adasearch.formats import (
    format_bytes,
    format_count,
    format_ms,
    format_score,
    format_spread,
    format_threads,
    format_usd,
    markdown_table,
    metric_name,
)
from adasearch.report import FIGURES, Report, System
from adasearch.report_tables import Table
from adasearch.sparse_tables import RUNTIMES_NOTE, SIZES_NOTE, runtimes_table, sizes_table, zeros_sentences
from adasearch.verdict import (
    cascade_sentence,
    disagreement_sentence,
    latency_sentence,
    quotient,
    served_model,
    served_texts_per_s,
    tokenizer_note,
    usd_per_million,
    verdict,
    warnings,
)


def markdown(report: Report, figures: Sequence[str] = ()) -> str:
    """The whole report as Markdown; figures are linked relative to the run's folder."""
    about = report.method["name"] if report.method else f"{'teacher, ' if report.find('teacher') else ''}student and controls"
    parts = [f"# {report.task}: {about}", verdict(report)]
    if found := warnings(report):
        parts.append("\n".join(f"> **Warning.** {text}  " for text in found))
    parts += ["## Scores and costs", scores_table(report), how_measured(report)]
    if price := price_note(report):
        parts.append(price)
    if latency := latency_sentence(report):
        parts.append(latency)
    runtimes = runtimes_table(report)  # which has all shapes
    if not runtimes and (shapes := shapes_table(report)):
        parts += ["## Other shapes", "Batch size x word pieces: median latency, texts a second.", shapes]
    if sizes := sizes_table(report):
        parts += ["## Size", SIZES_NOTE, plain_table(sizes)]
    if runtimes:
        said = "\n".join(f"- {sentence}" for sentence in zeros_sentences(report))
        parts += ["## Every runtime", RUNTIMES_NOTE, plain_table(runtimes), *([said] if said else [])]
    if examples := [text for text in (disagreement_sentence(report), cascade_sentence(report)) if text]:
        parts += ["## Student and teacher", *examples, *filter(None, [served_model(report).strip()])]
    if report.method:
        parts += [f"## {report.method['name']}", _method_text(report.method)]
    if report.search:
        parts += ["## Search", _search_text(report.search)]
    if figures:
        parts += ["## Figures", "\n\n".join(f"![{FIGURES[name][1]}](figures/{name}.svg)" for name in figures)]
    parts += ["## What was run", _provenance(report)]
    if report.notes:
        parts += ["## Notes", "\n".join(f"- {note}" for note in report.notes)]
    return "\n\n".join(parts) + "\n"


def how_measured(report: Report) -> str:
    """What the table's scores and latencies are, in sentences."""
    count = len(report.seeds)
    text = f"Scores on the {'' if report.held_out is None else f'{report.held_out:,} '}held-out examples: {'of one seed' if count == 1 else f'mean ± standard deviation over {count} seeds'}."
    first = next((s for s in report.systems if s.seq_len), None)
    if first is not None:
        shape = f"batch {first.batch_size}, {first.seq_len} word pieces, {format_threads(first.threads)}"
        others = [s for s in report.systems if s.runtime == first.runtime and s.precision not in (first.precision, None)]
        named = "; ".join(f"{s.name} in {s.precision}" for s in others)
        how = f"{first.runtime} {first.precision or ''}".rstrip() + (f" ({named})" if named else "")
        text += f" Latency at {shape}, {how}, all systems interleaved; from word pieces to logits, without the tokenizer."
    if rates := sorted({round(s.tokenizer_texts_per_s) for s in report.systems if s.tokenizer_texts_per_s}):
        text += f" Rates at the task's own lengths have it in them: one thread of it reads {' to '.join(f'{rate:,}' for rate in (rates[0], rates[-1])[: len(rates)])} texts a second."
    if raw := [s.name for s in report.systems if s.latency_ms_p50 is not None and not s.seq_len]:
        text += f" {', '.join(raw)}: from raw texts of their own lengths to the score, whatever a column says; such times compare with no other's."
    if report.majority.get("is_skewed"):
        text += "\n\nOne class is much more frequent than the others: read every metric against the constant answer."
    return text


def search_facts(search: dict[str, Any]) -> list[tuple[str, str]]:
    """Names and values of what is known of a search, but for its operations."""
    gigabytes = quotient(search.get("peak_rss_bytes"), 1e9)
    facts = [
        ("space", search.get("space"), "{}"), ("cells", search.get("depth"), "{}"),
        ("width", search.get("width"), "{}"), ("steps", search.get("steps"), "{:,}"),
        ("finalists trained", search.get("finalists"), "{}"), ("time", search.get("seconds"), "{:,.0f} s"), ("peak memory", gigabytes, "{:.2f} GB"),
    ]  # fmt: skip
    found = [(name, form.format(value)) for name, value, form in facts if value is not None]
    if search.get("entropy"):
        shares = ", ".join(f"{name} {100 * share:.0f}%" for name, share in search["entropy"].items())
        found.append(("entropy at the end, of the maximum", shares))
    return found


def _search_text(search: dict[str, Any]) -> str:
    text = "\n".join(f"- {name}: {value}" for name, value in search_facts(search))
    counts = search.get("operations") or {}
    if counts:
        total = sum(counts.values())
        ordered = sorted(counts.items(), key=lambda item: -item[1])
        rows = [[f"`{name}`", str(count), f"{100 * count / total:.0f}%"] for name, count in ordered]
        text += "\n\n" + markdown_table(["operation", "edges", "share"], rows)
    return text


def _method_text(method: dict[str, Any]) -> str:
    facts = "\n".join(f"- {name}: {value}" for name, value in (method.get("facts") or {}).items())
    return "\n\n".join(part for part in (method.get("summary"), facts, method.get("files")) if part)


def _provenance(report: Report) -> str:
    known = {key.replace("_", " "): value for key, value in report.hardware.items() if value is not None}
    machine = ", ".join(f"{key} {value}" for key, value in known.items())
    facts = [("command", report.command and f"`{report.command}`"), ("commit", report.commit),
             ("seeds", ", ".join(map(str, report.seeds))), ("hardware and versions", machine)]  # fmt: skip
    return "\n".join(f"- {name}: {value or '-'}" for name, value in facts)


def plain_table(table: Table) -> str:
    """A table of the page in Markdown: units behind the headings, notes in parentheses."""
    header = [f"{column.label}, {column.unit}" if column.unit else column.label for column in table.columns]
    rows = [[cell.text.replace("–", "-") + (f" ({cell.note})" if cell.note else "") for cell in row.cells] for row in table.rows]
    return markdown_table(header, rows)


def price_note(report: Report) -> str:
    """What the cost per million texts rests on; "" where none is shown."""
    if not any(usd_per_million(s, report.price_per_hour) is not None for s in report.systems):
        return ""
    return (
        f"Cost per million texts assumes {format_usd(report.price_per_hour)} for one core and hour (`bench.price_per_hour`),"
        f" fully busy with texts of the task's own lengths, {tokenizer_note(report)}; set it to what yours costs."
    )


def scores_table(report: Report) -> str:
    """The honest table in Markdown: a row a system, then the constant answer."""
    names = [report.metric, *(name for name in report.metrics if name != report.metric)]
    costs = ["parameters", "in embeddings", "MACs", "on disk", "p50 ms", "p90 ms", "texts/s"]
    own = [s.task_texts_per_s is not None for s in report.systems]
    gone, trained = ([getattr(s, name) is not None for s in report.systems] for name in ("encoder_sparsity", "train_seconds"))
    costs += ["texts/s, own lengths"] * any(own) + ["USD per million"] * (any(own) and report.price_per_hour is not None)
    pruning = ["encoder sparsity"] * any(gone) + ["training s"] * any(trained)
    rows = []
    for s in report.systems:
        served = served_texts_per_s(s)
        extra = ["-" if served is None else f"{served:,.0f}", format_usd(usd_per_million(s, report.price_per_hour))]
        sparsity = "-" if s.encoder_sparsity is None else f"{100 * s.encoder_sparsity:.1f}%"
        pruned = [sparsity] * any(gone) + ["-" if s.train_seconds is None else f"{s.train_seconds:,.0f}"] * any(trained)
        share = None if s.params_embedding is None else quotient(s.params_embedding, s.params)
        rate = "-" if s.texts_per_s is None else f"{s.texts_per_s:,.0f}"
        label = f"**{s.name}**" if s.kind == "student" else s.name
        rows.append([
            f"{label} ({s.note})" if s.note else label, *(_score_cell(s, name, report.metric) for name in names),
            format_count(s.params), "-" if share is None else f"{100 * share:.0f}%", format_count(s.macs),
            format_bytes(s.size_bytes), format_ms(s.latency_ms_p50), format_ms(s.latency_ms_p90), rate,
            *extra[: len(costs) - 7], *pruned,
        ])  # fmt: skip
    if any(report.majority.get(name) is not None for name in names):
        constant = [format_score(report.majority.get(name), name) for name in names]
        rows.append(["constant answer", *constant, *["-"] * (len(costs) + len(pruning))])
    return markdown_table(["system", *map(metric_name, names), *costs, *pruning], rows)


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
    return markdown_table(["system", *(f"{batch} x {length}" for batch, length in shapes)], rows)


def _shape(timing: dict[str, Any]) -> tuple[int | None, int | None]:
    """Batch size and word pieces."""
    return timing.get("batch_size"), timing.get("seq_len")


def _timing_cell(timing: dict[str, Any] | None) -> str:
    """Median latency and rate, as far as they are known."""
    latency, rate = (timing or {}).get("latency_ms_p50"), (timing or {}).get("texts_per_s")
    known = [f"{format_ms(latency)} ms"] * (latency is not None) + ([] if rate is None else [f"{rate:,.0f}/s"])
    return ", ".join(known) or "-"
