"""The report as Markdown: the honest table, the search, what was run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from adasearch.formats import format_threads, format_usd, markdown_table
from adasearch.report import FIGURES, Report
from adasearch.report_tables import Cell, Table, honest_table, shapes_table
from adasearch.sparse_tables import RUNTIMES_NOTE, SIZES_NOTE, runtimes_table, sizes_table, zeros_sentences
from adasearch.verdict import (
    cascade_sentence,
    disagreement_sentence,
    latency_sentence,
    quotient,
    served_model,
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
    parts += ["## Scores and costs", plain_table(honest_table(report)), how_measured(report)]
    if price := price_note(report):
        parts.append(price)
    if latency := latency_sentence(report):
        parts.append(latency)
    runtimes = runtimes_table(report)  # which has all shapes
    if not runtimes and (shapes := shapes_table(report)):
        parts += ["## Other shapes", "Median latency by batch size × word pieces; texts a second in parentheses.", plain_table(shapes)]
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
    """A table of the page in Markdown: units behind the headings, notes in parentheses, the main row in bold."""
    header = [f"{column.label}, {column.unit}" if column.unit else column.label for column in table.columns]
    rows = [[_plain_cell(cell, row.is_main and place == 0) for place, cell in enumerate(row.cells)] for row in table.rows]
    return markdown_table(header, rows)


def _plain_cell(cell: Cell, is_bold: bool) -> str:
    text = cell.text.replace("–", "-")
    return (f"**{text}**" if is_bold else text) + (f" ({cell.note})" if cell.note else "")


def price_note(report: Report) -> str:
    """What the cost per million texts rests on; "" where none is shown."""
    if not any(usd_per_million(s, report.price_per_hour) is not None for s in report.systems):
        return ""
    return (
        f"Cost per million texts assumes {format_usd(report.price_per_hour)} for one core and hour (`bench.price_per_hour`),"
        f" fully busy with texts of the task's own lengths, {tokenizer_note(report)}; set it to what yours costs."
    )
