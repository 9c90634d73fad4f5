"""The table of a sweep: a row a task, teacher, budget, variant and system, over the seeds; every number is of the runs' reports.

A variant is what else differs between runs of one task, teacher and budget, such as the search's strategy: only runs that differ
in nothing but their seeds are averaged.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean, median, stdev
from typing import Any

from adasearch.formats import format_count, format_ms, format_score, format_spread, metric_name
from adasearch.pipeline import FREE
from adasearch.report import System, read_report
from adasearch.settings import to_dict
from adasearch.speed_table import MEASURED, SpeedRow, measured_rows
from adasearch.sweep_config import AFTER_PREPARATION, SweepRun
from adasearch.table_files import Table, write_tables

WITHOUT_BUDGET = ("teacher", "reference", "tfidf")  # kinds of systems that no search has touched,
UNSEEN = (*AFTER_PREPARATION, "transfer", "vocabulary")  # and what they do not depend on


@dataclass(frozen=True)
class SweepRow:
    """One system of one task, teacher and budget. Scores are fractions; latencies and quotients are medians over the seeds."""

    task: str
    teacher: str
    budget: str
    variant: str
    system: str
    seeds: int
    metric: str
    score: float | None
    score_sd: float | None
    teacher_share: float | None
    params: float | None
    macs: float | None
    latency_ms: float | None
    faster_than_teacher: float | None
    cells: str


def sweep_rows(runs: Sequence[SweepRun]) -> list[SweepRow]:
    """The rows of finished runs, task by task. Raises ``ConfigError`` for a report that cannot be read."""
    found: dict[tuple[str, ...], list[tuple[SpeedRow, System]]] = {}
    variant_of, teacher_of = variants(runs), variants(runs, UNSEEN)
    for run in runs:
        report = read_report(Path(run.config.output_dir))
        systems = {system.name: system for system in report.systems}
        for row in measured_rows(report, run.config.task):
            kind = systems[row.system].kind
            teacher = "-" if kind in ("reference", "tfidf") else run.config.teacher
            variant = "" if kind == "reference" else (teacher_of if kind in WITHOUT_BUDGET else variant_of)[run.name]
            key = (run.config.task, teacher, "-" if kind in WITHOUT_BUDGET else run.budget, variant, row.system)
            found.setdefault(key, []).append((row, systems[row.system]))
    order = list(dict.fromkeys(task for task, *_ in found))
    return [_row(*key, found[key]) for key in sorted(found, key=lambda key: order.index(key[0]))]


def variants(runs: Sequence[SweepRun], unseen: Sequence[str] = ()) -> dict[str, str]:
    """By run what sets it apart from others of its task, teacher and budget, seeds apart: settings and values; "" where nothing does.

    With ``unseen`` settings it is what sets apart a system that does not depend on these, nor on the budget.
    """
    groups: dict[tuple[str, ...], dict[str, dict[str, Any]]] = {}
    for run in runs:
        settings = {key: value for key, value in to_dict(run.config).items() if key not in (*FREE, *unseen, "seed")}
        groups.setdefault((run.config.task, run.config.teacher, "" if unseen else run.budget), {})[run.name] = dict(_flat(settings))
    found = {}
    for members in groups.values():
        first = next(iter(members.values()))
        telling = [key for key in first if any(member[key] != first[key] for member in members.values())]
        found.update({name: ", ".join(f"{key} {member[key]}" for key in telling) for name, member in members.items()})
    return found


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested settings under names with dots."""
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _row(task: str, teacher: str, budget: str, variant: str, system: str, seen: list[tuple[SpeedRow, System]]) -> SweepRow:
    if budget == "-":  # the same model in every run, but timed in each
        seen = seen[:1]
    rows, seeds = [row for row, _ in seen], sum(max(1, len(system.scores)) for _, system in seen)
    scores = [score for row, (_, system) in zip(rows, seen) for score in (system.scores if len(system.scores) > 1 else [row.score]) if score is not None]
    cells = sorted({row.cells for row in rows if row.cells is not None})
    return SweepRow(
        task, teacher, budget, variant, system, seeds, rows[0].metric, score=fmean(scores) if scores else None,
        score_sd=stdev(scores) if len(scores) > 1 else rows[0].score_sd, teacher_share=_middle(rows, "teacher_share", fmean),
        params=_middle(rows, "params", fmean), macs=_middle([system for _, system in seen], "macs", fmean),
        latency_ms=_middle([row for row, _ in seen], "latency_ms"), faster_than_teacher=_middle(rows, "faster_than_teacher"),
        cells=" to ".join(str(n) for n in dict.fromkeys((cells[0], cells[-1]))) if cells else "",
    )  # fmt: skip


def _middle(rows: Sequence[SpeedRow | System], name: str, how: Any = median) -> float | None:
    """Mean or median of what is known; None where nothing is."""
    known = [getattr(row, name) for row in rows if getattr(row, name) is not None]
    return how(known) if known else None


def sweep_table(rows: Sequence[SweepRow]) -> Table:
    """The rows as text."""
    header = (
        "task", "teacher", "budget", "variant", "system", "seeds", "score", "% of teacher", "parameters", "MACs", "latency ms",
        "x faster than teacher", "K",
    )  # fmt: skip
    lines = [
        (
            row.task, Path(row.teacher).name, row.budget, row.variant or "-", row.system, str(row.seeds),
            format_score(row.score, row.metric) + format_spread(row.score_sd, row.metric),
            "-" if row.teacher_share is None else f"{100 * row.teacher_share:.1f}", format_count(row.params), format_count(row.macs),
            format_ms(row.latency_ms), "-" if row.faster_than_teacher is None else f"{row.faster_than_teacher:.1f}", row.cells or "-",
        )
        for row in rows
    ]  # fmt: skip
    notes = (
        "Scores on the held-out examples, mean ± standard deviation over the seeds, each a run with a search of its own (those of one run's `seeds` share it);"
        " latency and quotients of time are medians over the runs, each timed in one process with nothing of the sweep beside it.",
    )
    groups = tuple(f"{row.task}, {metric_name(row.metric)}: {MEASURED}" for row in rows)
    return Table("Sweep", header, tuple(lines), groups, notes, text_columns=(0, 1, 2, 3, 4))


def write_sweep_table(runs: Sequence[SweepRun], folder: Path, formats: Sequence[str]) -> tuple[str, list[Path]]:
    """``sweep_table.*`` in the sweep's folder; the table as Markdown, and the files. Nothing of no finished run."""
    rows = sweep_rows(runs)
    if not rows:
        return "", []
    return write_tables([sweep_table(rows)], [asdict(row) for row in rows], folder, formats, stem="sweep_table")
