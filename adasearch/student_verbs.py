"""The verbs that make something else of a student: ONNX, fewer words, another precision."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from adasearch.errors import ConfigError
from adasearch.formats import align_columns
from adasearch.progress import Progress
from adasearch.quantize_config import QuantizeConfig
from adasearch.settings import part_of


@dataclass
class StudentSettings:
    """A folder with a trained student.

    Args:
        student: a run's folder, whose student is taken, or a student's.
        quiet: plain log lines instead of progress bars.
    """

    student: str
    quiet: bool = False


@dataclass
class CutSettings:
    """How small a vocabulary may be.

    Args:
        size: rows at most.
        sizes: several, of which the smallest is taken that loses no more than ``max_drop`` points; a ladder of sizes where
            neither is given and there are examples to measure on.
        min_count: pieces that occur less often in the texts go.
    """

    size: int | None = None
    sizes: list[int] | None = None
    min_count: int = 1


@dataclass
class PruneSettings:
    """Cut the word table of a finished student.

    Args:
        student: a run's folder, or a student's.
        output_dir: the new student's folder; beside the student, ``<student>_pruned``, when absent.
        vocabulary: how small it may be.
        max_drop: points (hundredths of the score) that may be lost; in regression of R² as well.
        texts_file: texts like those it will meet (txt, csv, tsv, jsonl or parquet) to count pieces in; a run's own
            training and transfer texts when absent.
        validation_file: labelled examples to measure the loss on; a run's own validation examples when absent.
        text_column: column of the text in these files.
        text_pair_column: column of the second text of a pair.
        label_column: column of the label.
        data_dir: where a run's preset lies now, if it was moved.
        refit_steps: train so many steps after each cut, on the run's lesson with its teacher's logits.
        quiet: plain log lines instead of progress bars.
    """

    student: str
    output_dir: str | None = None
    vocabulary: CutSettings = field(default_factory=CutSettings)
    max_drop: float = 0.5
    texts_file: str | None = None
    validation_file: str | None = None
    text_column: str = "text"
    text_pair_column: str | None = None
    label_column: str = "label"
    data_dir: str | None = None
    refit_steps: int = 0
    quiet: bool = False


@dataclass
class QuantizeSettings(QuantizeConfig):
    """Choose the fastest runtime and precision that keep a model's score on this machine.

    Args:
        path: a run's folder (its student is taken) or any classifier's folder.
        json: print JSON instead of a table.
        quiet: plain log lines instead of progress bars.
    """

    path: str = ""
    json: bool = False
    quiet: bool = False


def do_export(settings: StudentSettings, progress: Progress) -> str:
    """The graph's path."""
    from adasearch.qdq_export import export_folder
    from adasearch.run_files import model_in
    from adasearch.runtime_base import require_model

    folder = Path(model_in(settings.student))
    require_model(folder, "student")
    return "\n".join(map(str, export_folder(folder, progress)))


def do_prune(settings: PruneSettings, progress: Progress) -> str:
    """Sizes and scores by step, and the new student's folder."""
    from adasearch.prune_files import prune_student

    taken = {key.name: getattr(settings, key.name) for key in dataclasses.fields(settings)}
    for name in ("student", "output_dir", "vocabulary", "quiet"):
        taken.pop(name)
    cut = dataclasses.asdict(settings.vocabulary)
    found = prune_student(settings.student, settings.output_dir, **cut, **taken, progress=progress)
    lines = [{"": name, **dataclasses.asdict(cut)} for name, cut in found.lines()]
    return f"{format_rows(lines)}\n{found.folder}"


def do_quantize(settings: QuantizeSettings, progress: Progress) -> str:
    """What was tried, and what is deployed."""
    if not settings.path:
        raise ConfigError("path: no folder; choices: adasearch quantize runs/<name>, or a model's folder")
    from adasearch.quantize import format_deployment, quantize
    from adasearch.report_files import rebuild_report

    config = part_of(QuantizeConfig, settings)
    deployment = quantize(Path(settings.path), config, progress)
    if (Path(settings.path) / "report.json").is_file():  # a run's page shows what is deployed
        rebuild_report(Path(settings.path))
    return json.dumps(dataclasses.asdict(deployment), indent=2) if settings.json else format_deployment(deployment)


def format_rows(rows: Sequence[dict[str, Any]]) -> str:
    """Rows as an aligned table, a column per key in order of appearance; each of a row's timings has its own line."""
    flat = [{**row, **timing} for row in rows for timing in row.get("timings", [{}])]
    keys = list(dict.fromkeys(key for row in flat for key in row if key != "timings"))
    cells = [keys, *([_format_cell(row.get(key, "")) for key in keys] for row in flat)]
    return align_columns(cells)


def _format_cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
