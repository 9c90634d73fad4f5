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

from adasearch.config import REFERENCE_SHAPES, BenchConfig, QuantizeConfig, RunConfig, check_bench, check_range
from adasearch.cofi_config import CofiConfig
from adasearch.encoder_config import EarlyBertConfig
from adasearch.errors import ConfigError, TrainingError
from adasearch.progress import Progress
from adasearch.prune_ofa_task_config import PruneOfaTaskConfig
from adasearch.tune_config import TuneConfig
from adasearch.prune_ofa_config import SparsePretrainingConfig
from adasearch.quantgpt_config import QuantGptConfig
from adasearch.sweep_config import SweepConfig
from adasearch.warm_config import WarmConfig


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
    """Label a file of texts; with a question-answering model's folder, answer a file of questions on contexts.

    Args:
        input_file: texts as csv, tsv, jsonl, parquet or txt (one a line); ``-`` reads lines from standard input.
        output_file: csv, tsv, jsonl or parquet; ``-`` writes JSON lines to standard output.
        text_column: column of the text, or of the first text of a pair.
        text_pair_column: column of the second text of a pair.
        batch_size: texts a step.
        runtime: torch, onnxruntime or another that `adasearch env` lists; auto takes what was saved with the student,
            else onnxruntime where it is installed and the student was exported.
        precision: of the weights in that runtime; what was saved with the student, else fp32, when absent.
        threads: threads of the runtime; what was saved with the student, else all cores, when absent.
        skip_bad_rows: leave out rows that cannot be used, and count them, instead of refusing the file.
        calibrated: divide the logits by the temperature saved with the student; it moves no prediction.
        cascade_teacher: folder of a model of the same labels that answers where the student is unsure.
        cascade_threshold: confidence of the student below which the teacher is asked.
        cascade_share: share of the texts, the least sure of every 8,192 rows, that the teacher is asked.
    """

    input_file: str = "-"
    output_file: str = "-"
    text_column: str = "text"
    text_pair_column: str | None = None
    batch_size: int = 32
    runtime: str = "auto"
    precision: str | None = None
    threads: int | None = None
    skip_bad_rows: bool = False
    calibrated: bool = True
    cascade_teacher: str | None = None
    cascade_threshold: float | None = None
    cascade_share: float | None = None


@dataclass
class ServeSettings(StudentSettings):
    """Answer over HTTP: POST /predict, GET /health, GET / (a page to try it).

    Args:
        host: address to listen on; 0.0.0.0 lets other machines in.
        port: port to listen on; 0 takes a free one.
        threads: threads of the runtime.
        batch_size: texts a step.
        runtime: as in predict.
        precision: as in predict.
        max_texts: most texts in a request.
        max_characters: most characters in a text.
        calibrated: divide the logits by the temperature saved with the student; it moves no prediction.
        cascade_teacher: folder of a model of the same labels that answers where the student is unsure.
        cascade_threshold: confidence of the student below which the teacher is asked.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    threads: int = 1
    batch_size: int = 32
    runtime: str = "auto"
    precision: str | None = None
    max_texts: int = 256
    max_characters: int = 20_000
    calibrated: bool = True
    cascade_teacher: str | None = None
    cascade_threshold: float | None = None


@dataclass
class BenchSettings(BenchConfig):
    """Time models side by side, interleaved in one process.

    Args:
        models: folders of students or of any other sequence classifiers.
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
        max_drop: points (hundredths of the score) that may be lost.
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


def _sweep(config: SweepConfig, progress: Progress) -> str:
    from adasearch.sweep import sweep

    swept = sweep(config, progress)
    text = f"{swept.table}\n{swept.folder}"
    if swept.failed:
        print(text)
        raise TrainingError(
            f"{len(swept.failed)} of the sweep's runs failed: {', '.join(swept.failed)}; the same command tries them again,"
            f" logs are in {swept.folder / 'logs'}"
        )
    return text


def _warm(config: WarmConfig, progress: Progress) -> str:
    from adasearch.warm_run import warm

    return str(warm(config, progress))


def _export(settings: StudentSettings, progress: Progress) -> str:
    from adasearch.export import export_student

    return str(export_student(Path(settings.student)))


def _tune(config: TuneConfig, progress: Progress) -> str:
    from adasearch.tune_study import tune

    return (tune(config, progress) / "tune.md").read_text(encoding="utf-8") + f"\n{config.folder}"


def _bench(settings: BenchSettings, progress: Progress) -> str:
    if settings.build_lut:
        return _build_lut(settings, progress)
    if not settings.models:
        raise ConfigError("models: no folder to time; name one or more: adasearch bench FOLDER ...")
    config = BenchConfig(**{key.name: getattr(settings, key.name) for key in dataclasses.fields(BenchConfig)})
    check_bench(config)
    from adasearch.bench import bench_folders
    from adasearch.bench_ratios import format_bench
    from adasearch.streams import lengths_of_task

    models = [Path(model) for model in settings.models]
    lengths = lengths_of_task(models[0], settings.lengths_from, progress)
    rows = bench_folders(models, config, progress, lengths)
    return json.dumps(rows, indent=2) if settings.json else format_bench(rows)


def _build_lut(settings: BenchSettings, progress: Progress) -> str:
    if settings.models:
        raise ConfigError(f"models: {' '.join(settings.models)}: --build_lut times a space and takes no models; choices: one of the two")
    for name in ("threads", "batch_size"):
        check_range(name, getattr(settings, name), 1, 1 << 20)
    from adasearch.latency_bench import build_table, deployment_here, format_table
    from adasearch.space import load_space

    space, here = load_space(settings.space), deployment_here(settings.runtime, settings.threads, settings.batch_size)
    output = Path(settings.output or f"latency-{space.name}-{here.runtime}.json")
    table = build_table(space, settings.lengths, output=output, deployment=here, progress=progress)
    return json.dumps(table.to_dict(), indent=2) if settings.json else f"{format_table(table)}\n{output}"


def _table(settings: TableSettings, progress: Progress) -> str:
    from adasearch.speed_table import speed_tables

    text, written = speed_tables(settings.runs, settings.output_dir, settings.formats, settings.published)
    return "\n".join([text, *map(str, written)])


def _prune(settings: PruneSettings, progress: Progress) -> str:
    from adasearch.prune_files import prune_student

    taken = {key.name: getattr(settings, key.name) for key in dataclasses.fields(settings)}
    for name in ("student", "output_dir", "vocabulary", "quiet"):
        taken.pop(name)
    cut = dataclasses.asdict(settings.vocabulary)
    found = prune_student(settings.student, settings.output_dir, **cut, **taken, progress=progress)
    lines = [{"": name, **dataclasses.asdict(cut)} for name, cut in found.lines()]
    return f"{format_rows(lines)}\n{found.folder}"


def _quantize(settings: QuantizeSettings, progress: Progress) -> str:
    if not settings.path:
        raise ConfigError("path: no folder; choices: adasearch quantize runs/<name>, or a model's folder")
    from adasearch.quantize import format_deployment, quantize
    from adasearch.report_files import rebuild_report

    config = QuantizeConfig(**{key.name: getattr(settings, key.name) for key in dataclasses.fields(QuantizeConfig)})
    deployment = quantize(Path(settings.path), config, progress)
    if (Path(settings.path) / "report.json").is_file():  # a run's page shows what is deployed
        rebuild_report(Path(settings.path))
    return json.dumps(dataclasses.asdict(deployment), indent=2) if settings.json else format_deployment(deployment)


def _inspect(settings: InspectSettings, progress: Progress) -> str:
    from adasearch.inspect_run import inspect

    return inspect(Path(settings.path), Path(settings.output_dir) if settings.output_dir else None)


def _report(settings: ReportSettings, progress: Progress) -> str:
    from adasearch.report_files import rebuild_report

    return str(rebuild_report(Path(settings.run_dir)))


def _predict(settings: PredictSettings, progress: Progress) -> str:
    from adasearch.predict import predict_file

    count = predict_file(
        Path(settings.student), Path(settings.input_file), Path(settings.output_file), settings.text_column,
        settings.text_pair_column, settings.batch_size, settings.runtime, progress,
        settings.threads, precision=settings.precision, skip_bad_rows=settings.skip_bad_rows, calibrated=settings.calibrated,
        cascade_teacher=Path(settings.cascade_teacher) if settings.cascade_teacher else None,
        cascade_threshold=settings.cascade_threshold, cascade_share=settings.cascade_share,
    )  # fmt: skip
    return "" if settings.output_file == "-" else f"{count} texts -> {settings.output_file}"


def _serve(settings: ServeSettings, progress: Progress) -> str:
    from adasearch.serve import serve

    keys = {key.name: getattr(settings, key.name) for key in dataclasses.fields(settings)}
    student, teacher = Path(keys.pop("student")), keys.pop("cascade_teacher")
    del keys["quiet"]
    serve(student, **keys, cascade_teacher=Path(teacher) if teacher else None, progress=progress)
    return ""


def _env(settings: EnvSettings, progress: Progress) -> str:
    from adasearch.environment import environment

    facts = environment()
    if settings.json:
        return json.dumps(facts, indent=2)
    return "\n".join(f"{name:<20} {'-' if value is None else value}" for name, value in facts.items())


def _prune_ofa_pretrain(config: SparsePretrainingConfig, progress: Progress) -> str:
    from adasearch.sparse_pretraining_report import scores_table
    from adasearch.sparse_pretraining_run import pretrain_sparse, run_folder

    report = pretrain_sparse(config, progress)
    return f"{Path(config.model).name}, {100 * report['sparsity']:.2f}% sparse\n\n{scores_table(report)}\n\n{run_folder(config)}"


def _quantgpt(config: QuantGptConfig, progress: Progress) -> str:
    from adasearch.quantgpt_report import scores_table
    from adasearch.quantgpt_run import quantize_language_model, run_folder

    report = quantize_language_model(config, progress)
    return f"{Path(config.model).name} at {config.bits}, {report['split']} split\n\n{scores_table(report)}\n\n{run_folder(config)}"


def _earlybert(config: EarlyBertConfig, progress: Progress) -> str:
    from adasearch.earlybert_run import compress_earlybert

    return _told(compress_earlybert(config, progress))


def _cofi(config: CofiConfig, progress: Progress) -> str:
    from adasearch.cofi_run import compress_cofi

    return _told(compress_cofi(config, progress))


def _told(run_dir: Path) -> str:
    """A run's report, and where it lies."""
    return f"{(run_dir / 'report.md').read_text(encoding='utf-8')}\n{run_dir}"


def _prune_ofa(config: PruneOfaTaskConfig, progress: Progress) -> str:
    from adasearch.prune_ofa_report import report_text
    from adasearch.prune_ofa_run import prune_once_for_all, run_folder

    return f"{report_text(prune_once_for_all(config, progress))}\n{run_folder(config)}"


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
    "tune": Verb("look for the best settings of a run by many trials", TuneConfig, _tune, "task"),
    "sweep": Verb("tasks x teachers x budgets x seeds, and one table", SweepConfig, _sweep, "tasks"),
    "warm": Verb("teach a space's supernet on unlabelled texts once, for searches to start from", WarmConfig, _warm),
    "export": Verb("write and check the ONNX model of a student", StudentSettings, _export, "student"),
    "bench": Verb("time models side by side", BenchSettings, _bench, "models"),
    "prune": Verb("cut a student's vocabulary to what its task needs", PruneSettings, _prune, "student"),
    "table": Verb("speed tables of runs beside published rows", TableSettings, _table, "runs", needs_student=False),
    "quantize": Verb("choose the fastest runtime and precision that keep the score", QuantizeSettings, _quantize, "path"),
    "inspect": Verb("draw a search, an architecture or a student", InspectSettings, _inspect, "path"),
    "report": Verb("write a run's report again", ReportSettings, _report, "run_dir", needs_student=False),
    "predict": Verb("label a file of texts with a student", PredictSettings, _predict, "student"),
    "serve": Verb("answer over HTTP with a student", ServeSettings, _serve, "student"),
    "env": Verb("versions, processor and threads", EnvSettings, _env, needs_student=False),
}

METHODS: dict[str, Verb] = {  # of ``adasearch compress METHOD``: published methods other than the search
    "cofi": Verb("structured pruning of a transformer on a task: layers, heads, neurons, hidden dimensions", CofiConfig, _cofi, "task"),
    "earlybert": Verb("an early-bird ticket: heads and neurons cut early in training, a smaller network trained", EarlyBertConfig, _earlybert, "task"),
    "quantgpt": Verb("a GPT-2 or BART with weights of 2, 4 or 8 bits", QuantGptConfig, _quantgpt, needs_student=False),
    "prune-ofa-pretrain": Verb("a masked language model made sparse once, for all tasks", SparsePretrainingConfig, _prune_ofa_pretrain, needs_student=False),
    "prune-ofa": Verb("a sparse model on a task: fine-tuned under lock, then int8", PruneOfaTaskConfig, _prune_ofa, "task"),
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
