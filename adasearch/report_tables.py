"""The tables of a report as plain data: what a cell says, what it is sorted by, what its column means."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from adasearch.formats import (
    ERRORS_OF_MEASUREMENT,
    format_bytes,
    format_count,
    format_ms,
    format_score,
    format_spread,
    format_usd,
    metric_name,
)
from adasearch.report import Report, System
from adasearch.verdict import are_timed_alike, cascade_point, quotient, served_texts_per_s, tokenizer_note, usd_per_million


@dataclass(frozen=True)
class Column:
    """A heading, its unit in a second line, and what it means in a tip."""

    label: str
    unit: str = ""
    tip: str = ""
    is_number: bool = True


@dataclass(frozen=True)
class Cell:
    """``value`` is what the column is sorted by; None sorts last. ``note`` stands small below the text."""

    text: str
    value: float | str | None = None
    note: str = ""
    colour: str = ""


@dataclass(frozen=True)
class Row:
    """Cells, one a column; ``is_main`` marks the student's row, or the one that was chosen."""

    cells: list[Cell]
    is_main: bool = False


@dataclass(frozen=True)
class Table:
    """A caption, columns and rows of the same width."""

    caption: str
    columns: list[Column]
    rows: list[Row] = field(default_factory=list)


def known_number(value: float | None, text: Callable[[float], str]) -> Cell:
    """A number that sorts as what it is; a dash where it is not known."""
    return Cell("–") if value is None else Cell(text(value), value)


def honest_table(report: Report) -> Table:
    """Every system: scores, ratios to the teacher, costs. Columns of which no system knows anything are left out."""
    teacher = report.find("teacher")
    names = [report.metric, *(name for name in report.metrics if name != report.metric)]
    points = "squared units" if report.metric in ERRORS_OF_MEASUREMENT else "points"
    whole_way = "the whole way from the checkpoint, search included" if report.method else "of a student without its search"
    columns: list[tuple[Column, Callable[[System], Cell]]] = [
        (Column(metric_name(name), points, "mean ± standard deviation over the seeds, held-out examples"), _score(report, name))
        for name in names
    ]
    if teacher is not None:
        columns += [
            (Column("speed", "× teacher", "the teacher's median latency over the system's"), _ratio(teacher, "latency_ms_p50")),
            (Column("size", "× smaller", "the teacher's bytes on disk over the system's"), _ratio(teacher, "size_bytes")),
        ]
    columns += [
        (Column("encoder sparsity", "%", "share of the dense encoder's parameters that is gone"), _plain("encoder_sparsity", _percent)),
        (Column("training", "s", f"mean over the seeds, scoring left out; {whole_way}"), _plain("train_seconds", _rate)),
        (Column("latency", "p50, ms", "median of one call"), _plain("latency_ms_p50", format_ms)),
        (Column("latency", "p90, ms", "90th percentile"), _plain("latency_ms_p90", format_ms)),
        (Column("rate", "texts/s", "at the shape the latency is measured at"), _plain("texts_per_s", _rate)),
        (
            Column("own lengths", "texts/s", f"texts as long as the task's own, in the best batch size, {tokenizer_note(report)}"),
            lambda system: known_number(served_texts_per_s(system), _rate),
        ),
        (Column("cost", "USD / million", "an assumption: see below the table"), _cost(report)),
        (Column("parameters", "", "all of them"), _plain("params", format_count)),
        (Column("embeddings", "% of parameters"), _embedding),
        (Column("MACs", "a text", "multiply-accumulates of one text"), _plain("macs", format_count)),
        (Column("on disk", "MB"), _plain("size_bytes", lambda value: format_bytes(value).removesuffix(" MB"))),
    ]
    columns = [(column, cell) for column, cell in columns if any(cell(s).value is not None for s in report.systems)]
    rows = [_system_row(s, [cell(s) for _, cell in columns], s.note) for s in report.systems]
    if any(report.majority.get(name) is not None for name in names):
        constant = [known_number(report.majority.get(name), lambda value, name=name: format_score(value, name)) for name in names]
        shown = sum(column.label in map(metric_name, names) for column, _ in columns)
        unknown = [Cell("–")] * (len(columns) - shown)
        rows.append(Row([Cell("constant answer", "constant answer"), *constant[:shown], *unknown]))
    caption = "Every system on the same held-out examples, timed in turns in one process"
    return Table(caption, [Column("system", is_number=False), *(column for column, _ in columns)], rows)


def _system_row(system: System, cells: list[Cell], note: str = "") -> Row:
    return Row([Cell(system.name, system.name, note, f"k-{system.kind}"), *cells], system.kind == "student")


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"


def _rate(value: float) -> str:
    return f"{value:,.0f}"


def _plain(key: str, text: Callable[[float], str]) -> Callable[[System], Cell]:
    return lambda system: known_number(getattr(system, key), text)


def _score(report: Report, name: str) -> Callable[[System], Cell]:
    def cell(system: System) -> Cell:
        own = {"mean": system.score_mean, "sd": system.score_sd} if name == report.metric else {}
        found = system.metrics.get(name) or own
        mean, spread = found.get("mean"), format_spread(found.get("sd"), name)
        return known_number(mean, lambda value: format_score(value, name) + spread)

    return cell


def _ratio(teacher: System, key: str) -> Callable[[System], Cell]:
    """The teacher's number over the system's: above 1 is in the system's favour. Times of other shapes or runtimes are not divided."""

    def cell(system: System) -> Cell:
        is_comparable = key != "latency_ms_p50" or are_timed_alike(teacher, system)
        return known_number(quotient(getattr(teacher, key), getattr(system, key)) if is_comparable else None, times)

    return cell


def times(value: float) -> str:
    """``16×``, ``4.1×``, ``0.15×``."""
    return f"{value:.0f}×" if value >= 99.5 else f"{value:.1f}×" if value >= 0.95 else f"{value:.2f}×"


def _cost(report: Report) -> Callable[[System], Cell]:
    return lambda system: known_number(usd_per_million(system, report.price_per_hour), format_usd)


def _embedding(system: System) -> Cell:
    share = None if system.params_embedding is None else quotient(system.params_embedding, system.params)
    return known_number(share, lambda value: f"{100 * value:.0f}")


def shapes_table(report: Report) -> Table | None:
    """Median latency of every system at every shape timed; None where there is one shape only."""
    timed = [s for s in report.systems if s.timings]
    shapes = list(dict.fromkeys(shape for s in timed for t in s.timings if all(shape := (t.get("batch_size"), t.get("seq_len")))))
    if len(shapes) < 2:
        return None
    rows = []
    for s in timed:
        is_raw = not any(t.get("seq_len") for t in s.timings)  # it reads texts, not word pieces: its shapes go by place
        by_shape = dict(zip(shapes, s.timings)) if is_raw else {(t.get("batch_size"), t.get("seq_len")): t for t in s.timings}
        rows.append(_system_row(s, [_timing(by_shape.get(shape)) for shape in shapes]))
    columns = [Column(f"{batch} × {length}", "ms") for batch, length in shapes]
    return Table("Median latency by batch size × word pieces; texts a second below", [Column("system", is_number=False), *columns], rows)


def _timing(timing: dict[str, Any] | None) -> Cell:
    latency, rate = (timing or {}).get("latency_ms_p50"), (timing or {}).get("texts_per_s")
    return Cell("–") if latency is None else Cell(format_ms(latency), latency, "" if rate is None else f"{rate:,.0f}/s")


def starts_table(report: Report) -> Table | None:
    """What a fresh process needs until its first answer; None where no system's start was measured."""
    columns: list[tuple[Column, str, Callable[[float], str]]] = [
        (Column("import", "s", "the runtime's library"), "import_s", lambda value: f"{value:.2f}"),
        (Column("load", "s", "from files to a model that can be called"), "load_s", lambda value: f"{value:.2f}"),
        (Column("first call", "ms"), "first_inference_ms", format_ms),
        (Column("memory", "MB, most", "of the whole process, library included"), "peak_rss_bytes", lambda value: f"{value / 1e6:,.0f}"),
    ]  # fmt: skip
    started = [s for s in report.systems if s.load_s is not None]
    if not started:
        return None
    rows = [_system_row(s, [known_number(getattr(s, key), text) for _, key, text in columns]) for s in started]
    head = [Column("system", is_number=False), *(column for column, _, _ in columns)]
    return Table("A fresh process until its first answer; files come from the system's cache", head, rows)


def cascade_table(report: Report) -> Table | None:
    """Some points of the curve with the mean latency they cost: the student's always, the teacher's for its share."""
    curve = sorted(report.cascade.get("curve") or [], key=lambda point: point["share_escalated"])
    if len(curve) < 2:
        return None
    student, teacher = report.find("student"), report.find("teacher")
    times_ms = [s.latency_ms_p50 if s else None for s in (student, teacher)]
    wanted = (0.0, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0)
    nearest = [min(curve, key=lambda point: abs(point["share_escalated"] - share)) for share in wanted]
    nearest = sorted([*nearest, cascade_point(curve)], key=lambda point: point["share_escalated"])  # the one the text names, too
    points = [point for index, point in enumerate(nearest) if point not in nearest[:index]]
    rows = []
    for point in points:
        share = point["share_escalated"]
        known = None not in times_ms
        mean_ms = None if not known else times_ms[0] + times_ms[1] * share
        threshold = point["threshold"]
        rows.append(Row([
            Cell(f"{100 * share:.0f}%", share), known_number(threshold, lambda value: f"{value:.3f}"),
            known_number(point["score"], lambda value: format_score(value, report.metric)), known_number(mean_ms, format_ms),
        ]))  # fmt: skip
    columns = [
        Column("to the teacher", "of texts"),
        Column("threshold", "probability", "the student's calibrated probability below which the teacher is asked"),
        Column(metric_name(report.metric), "points"),
        Column("latency", "mean, ms", "computed: the student's median plus the share times the teacher's"),
    ]  # fmt: skip
    return Table("Some points of the curve", columns, rows)


def operations_table(search: dict[str, Any]) -> Table | None:
    """How many edges have each operation, the most frequent first."""
    counts = search.get("operations") or {}
    total = sum(counts.values())
    if not total:
        return None
    rows = [
        Row([Cell(name, name), Cell(f"{count}", count), Cell(f"{100 * count / total:.0f}%", count / total)])
        for name, count in sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    ]
    return Table("Operations on the edges", [Column("operation", is_number=False), Column("edges"), Column("share")], rows)


DEPLOYED = {  # key of a row of deploy.json -> its column and how its value is written
    "runtime": (Column("runtime", is_number=False), str),
    "precision": (Column("precision", is_number=False), str),
    "latency_ms_p50": (Column("latency", "p50, ms"), format_ms),
    "latency_ms_p90": (Column("latency", "p90, ms"), format_ms),
    "texts_per_s": (Column("rate", "texts/s"), _rate),
    "size_bytes": (Column("on disk", "MB"), lambda value: format_bytes(value).removesuffix(" MB")),
}


def deployments_table(report: Report) -> Table | None:
    """Every runtime and precision that was tried on this machine; the one that was kept is marked."""
    found = report.deployments
    tried: Sequence[dict[str, Any]] = found.get("tried") or []
    if not tried:
        return None
    metric = found.get("metric") or report.metric
    keys = [key for key in DEPLOYED if any(row.get(key) is not None for row in tried)]
    columns = [DEPLOYED[key][0] for key in keys]
    at = min(2, len(keys))
    columns[at:at] = [Column(metric_name(metric), "points", "on the validation examples"), Column("change", "points", "against fp32 torch")]
    rows = []
    for row in tried:
        cells = [Cell("–") if row.get(key) is None else Cell(DEPLOYED[key][1](row[key]), row[key]) for key in keys]
        score, full = row.get("score"), found.get("score_fp32")
        change = None if score is None or full is None else score - full
        cells[at:at] = [
            known_number(score, lambda value: format_score(value, metric)),
            known_number(change, lambda value: f"{100 * value:+.1f}".replace("+0.0", "0.0").replace("-0.0", "0.0").replace("-", "−")),
        ]  # fmt: skip
        cells[0] = dataclasses.replace(cells[0], note=row.get("note") or "")
        is_kept = (row.get("runtime"), row.get("precision")) == (found.get("runtime"), found.get("precision"))
        rows.append(Row(cells, is_kept))
    return Table("Every runtime and precision tried here; the one in bold is what predict and serve load", columns, rows)


@dataclass(frozen=True)
class Matrix:
    """A confusion matrix: rows of (gold label, counts with their share of the row, recall). ``is_folded``: the last row is of many labels."""

    who: str
    labels: list[str]
    rows: list[tuple[str, list[tuple[int, float]], float | None]]
    is_folded: bool = False


def confusion_tables(report: Report) -> list[Matrix]:
    """A matrix for student and teacher, as far as there are any.

    The row that stands for many labels tells how many of its texts got their own, which its counts alone do not say.
    """
    labels, others_right = report.confusion.get("labels") or [], report.confusion.get("others_right") or {}
    found = []
    for kind, who in (("student", "Student"), ("teacher", "Teacher")):
        if kind not in report.confusion or not labels:
            continue
        rows = []
        for index, counts in enumerate(report.confusion[kind]):
            total = sum(counts)
            shares = [(count, count / total if total else 0.0) for count in counts]
            is_many = kind in others_right and index == len(labels) - 1
            right = others_right[kind] if is_many else counts[index]
            rows.append((labels[index], shares, right / total if total else None))
        found.append(Matrix(who, labels, rows, kind in others_right))
    return found
