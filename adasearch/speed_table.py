"""Speed tables: runs in the shape of AdaBERT's main tables, beside published rows that were not measured here.

Two tables. *By task*: a row a system, with its score, the teacher's share of it, size, latency and how many times
smaller and faster it is. *Overview*: a row a system, a column a task. What is measured comes from the runs' report.json,
what is published from ``published.json``, in which every number names its source.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from adasearch.errors import ConfigError
from adasearch.files import read_json
from adasearch.formats import (
    ERRORS_OF_MEASUREMENT,
    format_count,
    format_ms,
    format_score,
    format_spread,
    format_threads,
    metric_name,
)
from adasearch.report import Report, System, read_report
from adasearch.table_files import Table, write_tables
from adasearch.verdict import are_timed_alike, quotient

PUBLISHED_FILE = Path(__file__).with_name("published.json")
MEASURED, PUBLISHED = "measured here", "published, not measured here"
UNVERIFIED = "†"  # stands behind a number that nobody checked against a source
KIND_ORDER = ("reference", "teacher", "student")  # of the rows of a task; the controls follow


@dataclass(frozen=True)
class SpeedRow:
    """One system on one task. Scores are fractions, ``teacher_share`` too; ``smaller_*`` and ``faster_*`` are quotients
    against BERT-base and the teacher, 1 and more in this system's favour; ``cells`` is K. None = not known or not
    comparable. ``unverified`` names the fields whose published number was checked against no source."""

    task: str
    system: str
    source: str
    metric: str
    score: float | None = None
    score_sd: float | None = None
    teacher_share: float | None = None
    params: int | None = None
    smaller_than_bert: float | None = None
    smaller_than_teacher: float | None = None
    latency_ms: float | None = None
    faster_than_bert: float | None = None
    faster_than_teacher: float | None = None
    cells: int | None = None
    cell: str = ""
    how: str = ""
    seeds: int | None = None
    unverified: tuple[str, ...] = ()


def measured_rows(report: Report, task: str | None = None, metric: str | None = None) -> list[SpeedRow]:
    """The systems of a run: references, teacher, student, controls. ``task`` is the name in the table, ``metric`` the one that is shown;
    the run's own when absent."""
    bert = next((s for s in report.systems if s.kind == "reference" and s.name.startswith("BERT-base")), None)
    teacher = report.find("teacher")
    place = {kind: index for index, kind in enumerate(KIND_ORDER)}
    ordered = sorted(report.systems, key=lambda system: place.get(system.kind, len(place)))
    return [_measured_row(report, system, bert, teacher, task or report.task, metric or report.metric) for system in ordered]


def _metric_shown(report: Report) -> str:
    """The metric of the published rows, where the run has it for every system that is scored: others could not be set beside them."""
    published = read_json(PUBLISHED_FILE)["metrics"].get(report.task)
    is_known = published is not None and all(published in system.metrics for system in report.systems if system.score_mean is not None)
    return published if is_known else report.metric


def _measured_row(report: Report, system: System, bert: System | None, teacher: System | None, task: str, metric: str) -> SpeedRow:
    is_student = system.kind == "student"
    operations = report.search.get("operations") or {}
    shape = f"{system.batch_size} x {system.seq_len}" if system.seq_len else f"{system.batch_size} text, raw"
    timed = f"{system.runtime} {system.precision}, {shape}, {format_threads(system.threads)}"
    # a share of a squared error says nothing: less is better
    compares = teacher is not None and metric not in ERRORS_OF_MEASUREMENT
    score, score_sd = _score(system, report, metric)
    return SpeedRow(
        task=task, system=system.name, source=MEASURED, metric=metric, score=score, score_sd=score_sd,
        teacher_share=quotient(score, _score(teacher, report, metric)[0]) if compares else None,
        params=system.params, smaller_than_bert=_times(bert, system, "params"),
        smaller_than_teacher=_times(teacher, system, "params"), latency_ms=system.latency_ms_p50,
        faster_than_bert=_times(bert, system, "latency_ms_p50"),
        faster_than_teacher=_times(teacher, system, "latency_ms_p50"),
        cells=report.search.get("depth") if is_student else None,
        cell=", ".join(f"{count} {name}" for name, count in operations.items()) if is_student else "",
        how=timed if system.latency_ms_p50 else "", seeds=len(system.scores) or None,
    )  # fmt: skip


def _score(system: System, report: Report, metric: str) -> tuple[float | None, float | None]:
    """Mean and standard deviation over the seeds."""
    if metric == report.metric:
        return system.score_mean, system.score_sd
    found = system.metrics.get(metric, {})
    return found.get("mean"), found.get("sd")


def _times(other: System | None, system: System, name: str) -> float | None:
    """The other's value over the system's; times only where both were taken at one shape, in one runtime.

    Precision may differ: int8 is what a method made of the model, and stands in ``how``.
    """
    if other is None:
        return None
    if name == "latency_ms_p50" and not are_timed_alike(other, system):
        return None
    return quotient(getattr(other, name), getattr(system, name))


def published_rows(tasks: Sequence[str]) -> list[SpeedRow]:
    """What others published on those tasks; nothing for a task of which nothing is known."""
    data = read_json(PUBLISHED_FILE)
    rows = []
    for task in dict.fromkeys(tasks):
        if task not in data["metrics"]:
            continue
        bert = data["rows"][0]
        for entry in data["rows"]:
            if task not in entry["scores"]:
                continue
            own = {**entry, **entry.get("by_task", {}).get(task, {})}
            numbers = {"score": own["scores"][task], "params": own["params"], "faster_than_bert": own["faster"]}
            numbers |= {"cells": own["cells"]} if "cells" in own else {}
            unknown = {name for name, (_, source) in numbers.items() if not data["sources"][source]["is_verified"]}
            smaller = bert["params"][0] / own["params"][0]
            rows.append(
                SpeedRow(
                    task=task, system=f"{entry['system']} ({entry['citation']})", source=PUBLISHED,
                    metric=data["metrics"][task], teacher_share=own["scores"][task][0] / bert["scores"][task][0],
                    smaller_than_bert=smaller, **{name: value for name, (value, _) in numbers.items()},
                    unverified=tuple(sorted(unknown | ({"smaller_than_bert"} if "params" in unknown else set()))),
                )  # fmt: skip
            )
    return rows


def collect_rows(runs: Sequence[Path], published: bool = True) -> list[SpeedRow]:
    """The rows of every run, task by task, each followed by what is published on it. Raises ``ConfigError``.

    Two runs of one task are told apart by the names of their folders, and of those above where they are alike; one that is named twice counts once.
    """
    if not runs:
        raise ConfigError("runs: no run to put into a table; name one or more: adasearch table runs/demo ...")
    files = [Path(run) / "report.json" if Path(run).is_dir() else Path(run) for run in runs]
    reports = [(path, read_report(run, "runs")) for path, run in {path.resolve(): run for path, run in zip(files, runs)}.items()]
    rows = []
    for task in dict.fromkeys(report.task for _, report in reports):
        own = [(path, report) for path, report in reports if report.task == task]
        for name, (_, report) in zip(_names([path for path, _ in own]), own):
            is_plain = len(own) == 1 or name == task
            rows += measured_rows(report, task if is_plain else f"{task} ({name})", _metric_shown(report) if published else None)
        rows += published_rows([task]) if published else []
    return rows


def _names(files: Sequence[Path]) -> list[str]:
    """Of each run the end of its folder's path, as short as tells it from the others."""
    places = [(file.parent if file.name == "report.json" else file.with_suffix("")).parts for file in files]
    for length in range(1, max(map(len, places)) + 1):
        names = ["/".join(place[-length:]) for place in places]
        if len(set(names)) == len(names):
            return names
    return list(map(str, files))


def _numbers(row: SpeedRow) -> dict[str, str]:
    """The cells of a row as text, an unverified number with its mark."""

    def times(value: float | None) -> str:
        return "-" if value is None else f"{value:.0f}" if value >= 99.5 else f"{value:.1f}"

    def marked(name: str, text: str) -> str:
        return text + UNVERIFIED if name in row.unverified else text

    share = "-" if row.teacher_share is None else f"{100 * row.teacher_share:.1f}"
    score = format_score(row.score, row.metric) + format_spread(row.score_sd, row.metric)
    return {
        "score": marked("score", score), "teacher_share": share, "params": marked("params", format_count(row.params)),
        "smaller_than_bert": marked("smaller_than_bert", times(row.smaller_than_bert)),
        "smaller_than_teacher": times(row.smaller_than_teacher), "latency_ms": format_ms(row.latency_ms),
        "faster_than_bert": marked("faster_than_bert", times(row.faster_than_bert)),
        "faster_than_teacher": times(row.faster_than_teacher),
        "cells": marked("cells", "-" if row.cells is None else str(row.cells)),
    }  # fmt: skip


def task_table(rows: Sequence[SpeedRow]) -> Table:
    """A row a system and task."""
    header = (
        "task", "system", "score", "% of teacher", "parameters", "x smaller than BERT-base", "x smaller than teacher",
        "latency ms", "x faster than BERT-base", "x faster than teacher", "K", "cell",
    )  # fmt: skip
    lines, groups = [], []
    for row in rows:
        groups.append(f"{row.task}, {metric_name(row.metric)}: {row.source}")
        lines.append((row.task, row.system, *_numbers(row).values(), row.cell or "-"))
    return Table("By task", header, tuple(lines), tuple(groups), _notes(rows), text_columns=(0, 1, len(header) - 1))


def overview_table(rows: Sequence[SpeedRow]) -> Table:
    """A row a system, a column a task: what differs from task to task is a range."""
    tasks = list(dict.fromkeys(row.task for row in rows))
    columns = [f"{task} {metric_name(row.metric)}" for task in tasks for row in [next(r for r in rows if r.task == task)]]
    lines, groups = [], []
    for source in (MEASURED, PUBLISHED):
        for system in dict.fromkeys(row.system for row in rows if row.source == source):
            own = {row.task: row for row in rows if row.system == system and row.source == source}
            cells = {task: _numbers(row) for task, row in own.items()}
            spans = [_span(own, cells, name) for name in ("params", "faster_than_bert", "faster_than_teacher")]
            lines.append((system, *spans, *(_score_in(own.get(task), rows, task) for task in tasks)))
            groups.append(source)
    header = ("system", "parameters", "x faster than BERT-base", "x faster than teacher", *columns)
    return Table("Overview", header, tuple(lines), tuple(groups), _notes(rows), text_columns=(0,))


def _span(own: dict[str, SpeedRow], cells: dict[str, dict[str, str]], name: str) -> str:
    """The least and the greatest of a system's numbers over its tasks, as text."""
    known = [(getattr(row, name), cells[task][name]) for task, row in own.items() if getattr(row, name) is not None]
    if not known:
        return "-"
    low, high = min(known)[1], max(known)[1]
    return low if low == high else f"{low} to {high}"


def _score_in(row: SpeedRow | None, rows: Sequence[SpeedRow], task: str) -> str:
    """A score in the column of its task: with its metric's name where that is not the column's."""
    if row is None or row.score is None:
        return "-"
    column = next(other.metric for other in rows if other.task == task)
    return _numbers(row)["score"] + ("" if row.metric == column else f" {metric_name(row.metric)}")


def _notes(rows: Sequence[SpeedRow]) -> tuple[str, ...]:
    """What must be known to read the tables."""
    ways = dict.fromkeys(row.how for row in rows if row.how)
    counts = sorted({row.seeds for row in rows if row.source == MEASURED and row.seeds})
    spread = "of one seed" if counts == [1] else f"mean ± standard deviation over {' or '.join(map(str, counts)) or 'no'} seeds"
    notes = [
        f"Measured here: scores on the held-out examples ({spread}); latency is the median of one call: {'; '.join(ways) or 'none was timed'}. "
        "Quotients of time are given only within one run, one runtime and one shape.",
    ]
    if any("random weights" in row.system for row in rows):
        notes.append("Random weights, time only: a reference shape without a score.")
    if any(row.source == PUBLISHED for row in rows):
        sources = read_json(PUBLISHED_FILE)["sources"].values()
        known = "; ".join(source["text"] for source in sources if source["is_verified"])
        notes.append(
            "Published, not measured here: scores on the GLUE test sets, ours are on the runs' held-out examples, so a "
            "difference of a point means nothing; speed is relative to BERT-base on the publications' own machines; "
            "% of teacher is of the published BERT-base."
        )
        notes.append(f"Sources: {known}. {UNVERIFIED} recalled, read in no source: not verified.")
    return tuple(notes)


def build_tables(runs: Sequence[Path], published: bool = True) -> tuple[list[SpeedRow], list[Table]]:
    """All rows, and the two tables made of them. Raises ``ConfigError``."""
    rows = collect_rows(runs, published)
    return rows, [overview_table(rows), task_table(rows)]


def speed_tables(
    runs: Sequence[str | Path], output_dir: str | Path = "results/tables",
    formats: Sequence[str] = ("md", "csv", "latex", "png"), published: bool = True,
) -> tuple[str, list[Path]]:  # fmt: skip
    """Write the tables of the runs; returns them as Markdown, and the files written.

    ``speed_table.md`` and ``.tex`` hold both, ``speed_table.csv`` every row with every number in full,
    ``speed_table_overview.png`` and ``speed_table_by_task.png`` one each. Raises ``ConfigError`` before any is written.
    """
    rows, tables = build_tables([Path(run) for run in runs], published)
    return write_tables(tables, [_plain(row) for row in rows], Path(output_dir), formats)


def _plain(row: SpeedRow) -> dict[str, Any]:
    """A row as a line of a CSV file: numbers in full, nothing where nothing is known."""
    values = {field.name: getattr(row, field.name) for field in fields(row)}
    return {**values, "unverified": " ".join(row.unverified)}
