"""The verbs of the command line: their settings, the public function each calls, and what it prints.

The flags of a verb are the fields of its settings. To add one: its settings, a function, a line in ``VERBS``. Functions
import what they call when they are called, so that help and errors of usage need not wait for torch.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from adasearch.config import BenchConfig, RunConfig
from adasearch.errors import ConfigError
from adasearch.progress import Progress


@dataclass
class StudentSettings:
    """A folder with a trained student.

    Args:
        student: the student's folder, ``runs/<name>/student``.
        quiet: plain log lines instead of progress bars.
    """

    student: str
    quiet: bool = False


@dataclass
class PredictSettings(StudentSettings):
    """Label a file of texts.

    Args:
        input_file: texts as csv, tsv, jsonl, parquet or txt (one a line); ``-`` reads lines from standard input.
        output_file: csv, tsv, jsonl or parquet; ``-`` writes JSON lines to standard output.
        text_column: column of the text, or of the first text of a pair.
        text_pair_column: column of the second text of a pair.
        batch_size: texts a step.
        runtime: torch or onnxruntime; auto takes onnxruntime where it is installed and the student was exported.
        threads: threads of the runtime; all cores when absent.
    """

    input_file: str = "-"
    output_file: str = "-"
    text_column: str = "text"
    text_pair_column: str | None = None
    batch_size: int = 32
    runtime: str = "auto"
    threads: int | None = None


@dataclass
class BenchSettings(BenchConfig):
    """Time models side by side, interleaved in one process.

    Args:
        models: folders of students or of any other sequence classifiers.
        json: print JSON instead of a table.
        quiet: plain log lines instead of progress bars.
    """

    models: list[str] = field(default_factory=list)
    json: bool = False
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


def _run(config: RunConfig, progress: Progress) -> str:
    from adasearch.pipeline import run

    run_dir = run(config, progress)
    report = run_dir / "report.md"
    return (report.read_text(encoding="utf-8") + "\n" if report.exists() else "") + str(run_dir)


def _search(config: RunConfig, progress: Progress) -> str:
    from adasearch.pipeline import search

    return str(search(config, progress))


def _retrain(config: RunConfig, progress: Progress) -> str:
    from adasearch.pipeline import retrain

    return str(retrain(config, progress))


def _export(settings: StudentSettings, progress: Progress) -> str:
    from adasearch.export import export_student

    return str(export_student(Path(settings.student)))


def _bench(settings: BenchSettings, progress: Progress) -> str:
    if not settings.models:
        raise ConfigError("models: no folder to time; name one or more: adasearch bench FOLDER ...")
    from adasearch.measure import bench_folders

    config = BenchConfig(**{key.name: getattr(settings, key.name) for key in dataclasses.fields(BenchConfig)})
    rows = bench_folders([Path(model) for model in settings.models], config, progress)
    return json.dumps(rows, indent=2) if settings.json else format_rows(rows)


def _inspect(settings: InspectSettings, progress: Progress) -> str:
    from adasearch.inspect_run import inspect

    return inspect(Path(settings.path), Path(settings.output_dir) if settings.output_dir else None)


def _report(settings: ReportSettings, progress: Progress) -> str:
    from adasearch.markdown import rebuild_report

    return str(rebuild_report(Path(settings.run_dir)))


def _predict(settings: PredictSettings, progress: Progress) -> str:
    from adasearch.predict import predict_file

    count = predict_file(
        Path(settings.student), Path(settings.input_file), Path(settings.output_file), settings.text_column,
        settings.text_pair_column, settings.batch_size, settings.runtime, progress,
        settings.threads,
    )  # fmt: skip
    return "" if settings.output_file == "-" else f"{count} texts -> {settings.output_file}"


def _env(settings: EnvSettings, progress: Progress) -> str:
    from adasearch.environment import environment

    facts = environment()
    if settings.json:
        return json.dumps(facts, indent=2)
    return "\n".join(f"{name:<20} {'-' if value is None else value}" for name, value in facts.items())


@dataclass(frozen=True)
class Verb:
    """One verb: what it does, the dataclass of its settings, its function, and the field of its leading arguments."""

    help: str
    settings: type
    call: Callable[[Any, Progress], str]
    positional: str | None = None
    needs_student: bool = True  # whether the student must be known to transformers


VERBS: dict[str, Verb] = {
    "run": Verb("the whole way: teacher, search, training, export, measurement, report", RunConfig, _run, "task"),
    "search": Verb("only the search: writes architecture.json", RunConfig, _search, "task"),
    "retrain": Verb("train the student of an architecture found before", RunConfig, _retrain, "task"),
    "export": Verb("write and check the ONNX model of a student", StudentSettings, _export, "student"),
    "bench": Verb("time models side by side", BenchSettings, _bench, "models"),
    "inspect": Verb("draw a search, an architecture or a student", InspectSettings, _inspect, "path"),
    "report": Verb("write a run's report again", ReportSettings, _report, "run_dir", needs_student=False),
    "predict": Verb("label a file of texts with a student", PredictSettings, _predict, "student"),
    "env": Verb("versions, processor and threads", EnvSettings, _env, needs_student=False),
}


def format_rows(rows: Sequence[dict[str, Any]]) -> str:
    """Rows as an aligned table, a column per key in order of appearance; each of a row's timings has its own line."""
    flat = [{**row, **timing} for row in rows for timing in row.get("timings", [{}])]
    keys = list(dict.fromkeys(key for row in flat for key in row if key != "timings"))
    cells = [keys, *([_format_cell(row.get(key, "")) for key in keys] for row in flat)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(keys))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in cells)


def _format_cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
