"""The verbs that measure and show."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from adasearch.bench_config import REFERENCE_SHAPES, BenchConfig, check_bench
from adasearch.errors import ConfigError
from adasearch.progress import Progress
from adasearch.settings import check_range, check_threads, part_of


@dataclass
class BenchSettings(BenchConfig):
    """Time models side by side, interleaved in one process.

    Args:
        models: folders of runs, whose students are taken, of students or of any other sequence classifiers.
        lengths_from: whose lengths the throughput at the task's own lengths is measured at: a run's folder, or a .txt file
            with a number of tokens a line; the run around the first model when absent.
        build_lut: instead of models, time the operations of a space: the latency table that a search with
            ``search.latency_target_ms`` reads. ``threads`` and ``runtime`` apply.
        space: with build_lut: name of a YAML file of ``search_spaces/`` or a path to one.
        lengths: with build_lut: lengths in word pieces to measure at.
        batch_size: with build_lut: texts a call.
        output: with build_lut: the table's file; ``latency-SPACE-RUNTIME.json`` when absent.
        json: print JSON instead of a table.
        quiet: plain log lines instead of progress bars.
    """

    models: list[str] = field(default_factory=list)
    lengths_from: str | None = None
    references: list[str] = field(default_factory=lambda: [*REFERENCE_SHAPES])
    cold_starts: int = 3
    build_lut: bool = False
    space: str = "adasearch"
    lengths: list[int] = field(default_factory=lambda: [16, 32, 64, 128])
    batch_size: int = 1
    output: str | None = None
    json: bool = False
    quiet: bool = False


@dataclass
class TableSettings:
    """Speed tables of finished runs, beside published rows.

    Args:
        runs: folders of runs, or their report.json.
        output_dir: folder of the tables.
        formats: md, csv, latex, png.
        published: also show what was published on the same tasks; it was not measured here, and is marked so.
        quiet: plain log lines instead of progress bars.
    """

    runs: list[str] = field(default_factory=list)
    output_dir: str = "results/tables"
    formats: list[str] = field(default_factory=lambda: ["md", "csv", "latex", "png"])
    published: bool = True
    quiet: bool = False


@dataclass
class InspectSettings:
    """Draw what a search found.

    Args:
        path: a run's folder, an ``architecture.json`` or a student's folder.
        output_dir: folder of the figures; beside ``path`` when absent.
        quiet: plain log lines instead of progress bars.
    """

    path: str
    output_dir: str | None = None
    quiet: bool = False


@dataclass
class ReportSettings:
    """Write a run's report again from what was measured.

    Args:
        run_dir: the run's folder.
        quiet: plain log lines instead of progress bars.
    """

    run_dir: str
    quiet: bool = False


@dataclass
class EnvSettings:
    """What this machine and environment offer.

    Args:
        json: print JSON instead of lines.
        quiet: plain log lines instead of progress bars.
    """

    json: bool = False
    quiet: bool = False


# what the other half of `bench` calls the same
BENCH_TWINS = {
    "batch_size": "--batch_sizes", "lengths": "--seq_lengths", "batch_sizes": "--batch_size", "seq_lengths": "--lengths", "runtimes": "--runtime",
    "output": "--json true > FILE",
}  # fmt: skip


def do_bench(settings: BenchSettings, progress: Progress) -> str:
    """A row a system, or the latency table."""
    if settings.build_lut:
        return _build_lut(settings, progress)
    _refuse_idle(settings, ("space", "lengths", "batch_size", "output"), "without --build_lut")
    if not settings.reference:
        _refuse_idle(settings, ("references",), "with --reference false")
    if not settings.models:
        raise ConfigError("models: no folder to time; name one or more: adasearch bench FOLDER ...")
    config = part_of(BenchConfig, settings)
    check_bench(config)
    check_threads(config.threads)
    from adasearch.bench import bench_folders
    from adasearch.bench_ratios import format_bench
    from adasearch.run_files import model_in
    from adasearch.runtime_base import require_model
    from adasearch.streams import lengths_of_task, own_lengths

    models = [Path(model_in(model)) for model in settings.models]
    for model in models:
        require_model(model, "models")  # before the lengths of its task are looked for
    lengths = lengths_of_task(models[0], settings.lengths_from, progress)
    own = {} if settings.lengths_from else {model: found for model in models if (found := own_lengths(model)) is not None}
    rows = bench_folders(models, config, progress, lengths, own)
    return json.dumps(rows, indent=2) if settings.json else format_bench(rows)


def _refuse_idle(settings: BenchSettings, names: Sequence[str], where: str) -> None:
    """Raise ``ConfigError`` for settings that nothing would read."""
    default = BenchSettings()
    for name in names:
        if getattr(settings, name) != getattr(default, name):
            raise ConfigError(f"{name}: it is not read {where}; choices: {BENCH_TWINS.get(name, 'leave it out')}")


def _build_lut(settings: BenchSettings, progress: Progress) -> str:
    if settings.models:
        raise ConfigError(f"models: {' '.join(settings.models)}: --build_lut times a space and takes no models; choices: one of the two")
    idle = [key.name for key in dataclasses.fields(BenchConfig) if key.name not in ("threads", "runtime")]
    _refuse_idle(settings, (*idle, "lengths_from", "json"), "with --build_lut")
    check_threads(settings.threads)
    check_range("batch_size", settings.batch_size, 1, 1 << 20)
    from adasearch.latency_bench import build_table, deployment_here, format_table
    from adasearch.space import load_space

    space, here = load_space(settings.space), deployment_here(settings.runtime, settings.threads, settings.batch_size)
    output = Path(settings.output or f"latency-{space.name}-{here.runtime}.json")
    table = build_table(space, settings.lengths, output=output, deployment=here, progress=progress)
    return json.dumps(table.to_dict(), indent=2) if settings.json else f"{format_table(table)}\n{output}"


def do_table(settings: TableSettings, progress: Progress) -> str:
    """The tables, and their files."""
    from adasearch.speed_table import speed_tables

    text, written = speed_tables(settings.runs, settings.output_dir, settings.formats, settings.published)
    return "\n".join([text, *map(str, written)])


def do_inspect(settings: InspectSettings, progress: Progress) -> str:
    """What there is, as text, and the figures' paths."""
    from adasearch.inspect_run import inspect

    return inspect(Path(settings.path), Path(settings.output_dir) if settings.output_dir else None)


def do_report(settings: ReportSettings, progress: Progress) -> str:
    """The page's path."""
    from adasearch.report_files import rebuild_report

    return str(rebuild_report(Path(settings.run_dir)))


def do_env(settings: EnvSettings, progress: Progress) -> str:
    """A line a fact."""
    from adasearch.environment import environment

    facts = environment()
    if settings.json:
        return json.dumps(facts, indent=2)
    return "\n".join(f"{name:<20} {_as_text(value)}" for name, value in facts.items())


def _as_text(value: Any) -> str:
    """A fact as a person reads it; what is not known or not there is a dash."""
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "-"
    return "-" if value is None else str(value)
