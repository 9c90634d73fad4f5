"""Numbers as text: counts, scores, milliseconds, bytes; a missing one is "-". What Markdown files share: tables, front matter."""

from __future__ import annotations

import math
from collections.abc import Container, Mapping, Sequence
from typing import Any

import yaml

ERRORS_OF_MEASUREMENT = ("mse",)  # metrics that are no share of anything: printed as they are, lower is better


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


def score_factor(metric: str) -> float:
    """What a metric is multiplied by where it is drawn: shares are shown in points."""
    return 1.0 if metric in ERRORS_OF_MEASUREMENT else 100.0


def format_score(value: float | None, metric: str) -> str:
    """Points with one decimal; squared errors as they are."""
    return "-" if value is None else f"{value:.3f}" if metric in ERRORS_OF_MEASUREMENT else f"{score_factor(metric) * value:.1f}"


def format_ms(value: float | None) -> str:
    """Milliseconds, three digits."""
    if value is None:
        return "-"
    return f"{value:.0f}" if value >= 99.5 else f"{value:.1f}" if value >= 9.95 else f"{value:.2f}"


def format_bytes(value: float | None) -> str:
    """Decimal megabytes."""
    return "-" if value is None else f"{value / 1e6:.1f} MB"


def format_usd(value: float | None) -> str:
    """US dollars, two digits that mean something: ``$0.013``, ``$1.4``, ``$120``."""
    if value is None:
        return "-"
    digits = 0 if value >= 9.95 or value <= 0 else max(0, 1 - math.floor(math.log10(value)))
    return f"${value:,.{digits}f}"


def format_spread(sd: float | None, metric: str) -> str:
    """`` ± 0.4``; nothing where it is not known."""
    return "" if sd is None else f" ± {format_score(sd, metric)}"


def format_threads(count: int | None) -> str:
    """``one thread``, ``2 threads``."""
    return "threads unknown" if count is None else "one thread" if count == 1 else f"{count} threads"


def align_columns(lines: Sequence[Sequence[str]]) -> str:
    """Lines of cells, all of the same number, as text: columns flush left, two spaces between them."""
    widths = [max(map(len, column)) for column in zip(*lines)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in lines)


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]], text_columns: Container[int] = (0,)) -> str:
    """A Markdown table; ``text_columns`` are set flush left, the others are numbers. No bar in a cell ends it."""
    rule = ["---" if column in text_columns else "---:" for column in range(len(header))]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in (header, rule, *rows))


def front_matter(front: Mapping[str, Any]) -> str:
    """What a model card begins with, as the Hugging Face hub reads it."""
    return f"---\n{yaml.safe_dump(front, sort_keys=False).strip()}\n---"


def origin_lines(report: Mapping[str, Any]) -> str:
    """Where a report's numbers are from, as items of a Markdown list: command, commit, hardware."""
    machine = report["hardware"]
    return f"""- command: `{report["command"]}`
- commit: {report["commit"] or "-"}
- hardware: {machine["cpu"]}, {machine["torch_threads"]} threads, torch {machine["torch"]}, transformers {machine["transformers"]}"""


def metric_title(name: str) -> str:
    """A metric as a drawing's title, with the unit it is drawn in."""
    return metric_name(name) + ("" if name in ERRORS_OF_MEASUREMENT else ", points")


def metric_name(name: str) -> str:
    """A metric as one writes it."""
    known = {"f1": "F1", "f1_macro": "macro F1", "f1_micro": "micro F1", "mse": "squared error"}
    return known.get(name, name.replace("_", " "))
