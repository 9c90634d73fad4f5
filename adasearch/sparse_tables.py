"""What zeros and int8 bring, as tables of both reports: sizes in four ways, and every runtime's time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from adasearch.formats import format_bytes, format_ms, format_score, metric_name
from adasearch.report import Report, System
from adasearch.report_tables import Cell, Column, Row, Table, known_number, times
from adasearch.verdict import quotient

RATIOS = {  # of ``sparse_size.SparseSize`` -> its column
    "nominal": Column("nominal", "× smaller", "the encoder's linear weights, only the bits of values that are kept; as published"),
    "with_index": Column("with index", "× smaller", "the same with where the values stand, and scales"),
    "without_tables": Column("without embeddings", "× smaller", "the whole file but the embedding tables"),
    "whole": Column("whole file", "× smaller", "the file as it is"),
}
SIZES_NOTE = (
    "Zeros include what int8 has rounded to 0. Times smaller than the same model, dense in float32: nominal counts the kept values"
    " of the encoder's linear weights alone, as published ratios do; with index adds where they stand, and scales. The last two are"
    " of the file in sparse/ as written, without and with the embeddings. Of a model that heads or neurons were cut from, zeros are those of"
    " the unpruned encoder and include what was cut; times smaller is than the cut model."
)
RUNTIMES_NOTE = "Median milliseconds of one call by batch size × word pieces, and times the dense model's speed in the same runtime."
ZEROS_ALONE = {"sparse": "teacher", "student": "dense_int8"}  # kind with zeros -> the kind that differs from it by these alone
NO_SPEED = 1.1  # times as fast; measurements of one model differ by less than that
Shape = tuple[int, int]  # batch size, word pieces
Way = tuple[str, str, str]  # runtime, precision, option


def sizes_table(report: Report) -> Table | None:
    """A row a system that has a small file; None where none has."""
    sized = [s for s in report.systems if s.size_ratios]
    if not sized:
        return None
    columns = [
        Column("system", is_number=False), Column("zeros", "% of the encoder"), *RATIOS.values(),
        Column("file", "MB", "sparse/ of the model's folder, without the tokenizer"),
        Column("graph agrees", "% of examples", "held-out examples on which the int8 graph predicts as the model that was trained"),
        Column("graph's score", metric_name(report.metric), "of the int8 graph itself; the main table's is that of the model that was trained"),
    ]  # fmt: skip
    rows = []
    for s in sized:
        cells = [known_number(s.encoder_sparsity, _percent), *(known_number(s.size_ratios.get(name), _ratio) for name in RATIOS)]
        cells.append(known_number(s.sparse_bytes, lambda value: format_bytes(value).removesuffix(" MB")))
        cells.append(known_number(s.agreement, _percent))
        cells.append(known_number(s.graph_scores.get(report.metric), lambda value: format_score(value, report.metric)))
        rows.append(Row([Cell(s.name, s.name, colour=f"k-{s.kind}"), *cells], s.kind == "student"))
    return Table("The small file", columns, rows)


def runtimes_table(report: Report) -> Table | None:
    """A row a system and runtime, a column a shape; None where systems were timed in one runtime only."""
    if not any(s.runtimes for s in report.systems):
        return None
    teacher = report.find("teacher")
    dense = {way[0]: calls for way, calls in _ways(teacher) if not way[2]} if teacher else {}
    shapes = list(dict.fromkeys(shape for s in report.systems for _, calls in _ways(s) for shape in calls))
    rows = []
    for s in report.systems:
        for (runtime, precision, option), calls in _ways(s):
            how = Cell(f"{runtime} {precision}", f"{runtime} {precision}", f"option for {option}" if option else "")
            against = {} if s is teacher else dense.get(runtime, {})
            cells = [_call(calls.get(shape), against.get(shape)) for shape in shapes]
            rows.append(Row([Cell(s.name, s.name, colour=f"k-{s.kind}"), how, *cells], s.kind == "student"))
    columns = [Column("system", is_number=False), Column("runtime", is_number=False)]
    columns += [Column(f"{batch} × {length}", "ms", "and times the dense model's speed") for batch, length in shapes]
    return Table("Every runtime that reads the graphs", columns, rows)


def zeros_sentences(report: Report) -> list[str]:
    """What zeros alone did to the speed, from the numbers: only where model and model differ by them alone; and which runtime refused a graph.

    Milliseconds are those of the first shape; a gain is one only where every shape has it, else it is of the machine's other work.
    """
    found = []
    for kind, other in ZEROS_ALONE.items():
        sparse, dense = report.find(kind), report.find(other)
        if sparse is None or dense is None or not sparse.size_ratios or sparse.params != dense.params:
            continue
        plain = {way[:2]: calls for way, calls in _ways(dense) if not way[2]}
        for (runtime, precision, option), calls in _ways(sparse):
            shape = next(iter(calls), None)
            before, after = plain.get((runtime, precision), {}).get(shape), calls.get(shape)
            if before is None or after is None:
                continue
            where = f"{runtime} {precision}{f' with its option for {option}' if option else ''}"
            both = [(ms, calls[shape]) for shape, ms in plain[runtime, precision].items() if shape in calls]
            gain = min(dense_ms / sparse_ms for dense_ms, sparse_ms in both)
            says = f"make it at least {gain:.2f} times as fast" if gain >= NO_SPEED else "bring no speed"
            found.append(f"Zeros alone {says} in {where}: {format_ms(before)} ms dense, {format_ms(after)} ms sparse.")
    errors = [(s.name, row) for s in report.systems for row in s.runtimes if "error" in row]
    return found + [f"{row['runtime']} refused {name}: {row['error']}" for name, row in errors]


def _ways(system: System) -> Iterator[tuple[Way, dict[Shape, float]]]:
    """Every way in which a system was timed, with its milliseconds by shape."""
    by_way: dict[Way, dict[Shape, float]] = {}
    for timing in [*system.timings, *system.runtimes]:
        if timing.get("latency_ms_p50") and timing.get("seq_len"):
            way = timing["runtime"], timing["precision"], timing.get("option") or ""
            by_way.setdefault(way, {})[timing["batch_size"], timing["seq_len"]] = timing["latency_ms_p50"]
    yield from by_way.items()


def _call(ms: float | None, dense_ms: float | None) -> Cell:
    speed = quotient(dense_ms, ms)
    return Cell("–") if ms is None else Cell(format_ms(ms), ms, "" if speed is None else times(speed))


def _ratio(value: float) -> str:
    return f"{value:.1f}"


def _percent(value: Any) -> str:
    return f"{100 * value:.2f}"
