"""The verbs that use a student: texts in, labels out, from files or over HTTP; and what its answers are worth."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path

from adasearch.progress import Progress
from adasearch.student_verbs import StudentSettings


@dataclass
class PredictSettings(StudentSettings):
    """Label a file of texts; with a question-answering model's folder, answer a file of questions on contexts.

    Args:
        input_file: texts as csv, tsv, jsonl, parquet or txt (one a line); ``-`` reads lines from standard input and
            answers them in parts of 8,192.
        output_file: csv, tsv, jsonl or parquet; ``-`` writes JSON lines to standard output.
        overwrite: write over a file that is there already and that the same command did not make.
        text_column: column of the text, or of the first text of a pair.
        text_pair_column: column of the second text of a pair.
        batch_size: texts a step.
        runtime: torch, torch_compile, onnxruntime, openvino or one of yours; auto takes what was saved with the student,
            else onnxruntime where it is installed and the student was exported.
        precision: of the weights in that runtime; what was saved with the student, else fp32, when absent.
        threads: threads of the runtime, up to the cores; what was saved with the student, else all cores, when absent.
        skip_bad_rows: leave out rows that cannot be used, and count them, instead of refusing the file.
        calibrated: divide the logits by the temperature saved with the student; it moves no prediction.
        cascade_teacher: folder of a model of the same labels that answers where the student is unsure.
        cascade_threshold: confidence of the student below which the teacher is asked.
        cascade_share: share of the texts, the least sure of every 8,192 rows, that the teacher is asked.
    """

    input_file: str = "-"
    output_file: str = "-"
    overwrite: bool = False
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
class ScoreSettings:
    """Score models on labelled examples, as they are served.

    Args:
        models: folders of runs, whose students are taken, or of any classifiers; the first is compared with the others.
        input_file: labelled examples as csv, tsv, jsonl or parquet; those that the first model's run was scored on, when absent.
        text_column: column of the text, or of the first text of a pair.
        text_pair_column: column of the second text of a pair.
        label_column: column of the label: the model's label names, or their numbers.
        data_dir: where a run's preset lies now, if it was moved.
        metric: the metric that counts; the task's own when absent, of a file the usual one of its kind.
        batch_size: texts a step.
        runtime: of all models, as in predict.
        precision: of all models, as in predict.
        threads: as in predict.
        json: print JSON instead of tables.
        quiet: plain log lines instead of progress bars.
    """

    models: list[str] = field(default_factory=list)
    input_file: str | None = None
    text_column: str = "text"
    text_pair_column: str | None = None
    label_column: str = "label"
    data_dir: str | None = None
    metric: str | None = None
    batch_size: int = 32
    runtime: str = "auto"
    precision: str | None = None
    threads: int | None = None
    json: bool = False
    quiet: bool = False


@dataclass
class ServeSettings(StudentSettings):
    """Answer over HTTP: POST /predict, GET /health, GET / (a page to try it).

    Args:
        host: address to listen on; 0.0.0.0 lets other machines in.
        port: port to listen on; 0 takes a free one.
        threads: threads of the runtime; when absent those that `quantize` chose it for, else one.
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
    threads: int | None = None
    batch_size: int = 32
    runtime: str = "auto"
    precision: str | None = None
    max_texts: int = 256
    max_characters: int = 20_000
    calibrated: bool = True
    cascade_teacher: str | None = None
    cascade_threshold: float | None = None


def do_predict(settings: PredictSettings, progress: Progress) -> str:
    """How many texts went where; nothing where they went to standard output."""
    from adasearch.predict import predict_file
    from adasearch.run_files import model_in

    count = predict_file(
        Path(model_in(settings.student)), Path(settings.input_file), Path(settings.output_file), settings.text_column,
        settings.text_pair_column, settings.batch_size, settings.runtime, progress,
        settings.threads, precision=settings.precision, skip_bad_rows=settings.skip_bad_rows, calibrated=settings.calibrated,
        cascade_teacher=Path(settings.cascade_teacher) if settings.cascade_teacher else None,
        cascade_threshold=settings.cascade_threshold, cascade_share=settings.cascade_share,
        overwrite=settings.overwrite,
    )  # fmt: skip
    return "" if settings.output_file == "-" else f"{count} texts -> {settings.output_file}"


def do_score(settings: ScoreSettings, progress: Progress) -> str:
    """The scoreboard."""
    from adasearch.score_models import format_evaluation, score_models

    keys = {key.name: getattr(settings, key.name) for key in dataclasses.fields(settings) if key.name not in ("json", "quiet")}
    found = score_models(**keys, progress=progress)
    return json.dumps(found.to_dict(), indent=2) if settings.json else format_evaluation(found)


def do_serve(settings: ServeSettings, progress: Progress) -> str:
    """Nothing, when it is stopped."""
    from adasearch.run_files import model_in
    from adasearch.serve import serve

    keys = {key.name: getattr(settings, key.name) for key in dataclasses.fields(settings)}
    student, teacher = Path(model_in(keys.pop("student"))), keys.pop("cascade_teacher")
    del keys["quiet"]
    serve(student, **keys, cascade_teacher=Path(teacher) if teacher else None, progress=progress)
    return ""
