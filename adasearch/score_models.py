"""``adasearch score``: models as they are served, on labelled examples: a run's own held-out ones, or a file's.

Nothing is trained and nothing written; what is made of the answers is ``scoring``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from transformers import AutoConfig

import adasearch
from adasearch.accelerator import keeping_threads
from adasearch.answers_file import QuestionAnswerer, is_reader, question_columns
from adasearch.chunks import CHUNK_ROWS
from adasearch.classifier import Tell, TextClassifier, check_pairs, check_settings
from adasearch.errors import ConfigError
from adasearch.finished import find_run
from adasearch.formats import align_columns, format_score, metric_name
from adasearch.known_labels import Columns, labels_of, places_of, read_examples
from adasearch.metrics import choose_metrics, is_skewed
from adasearch.progress import Progress
from adasearch.questions import COLUMNS, Questions, question_metrics, read_question_table, read_rows
from adasearch.run_files import model_in
from adasearch.runtime_base import trained_on_pairs
from adasearch.scoring import COUNTED, LEVEL, Difference, Interval, Judged, ModelScore, Scoreboard, judge
from adasearch.squad_metrics import squad_points
from adasearch.task_config import QUESTION_ANSWERING
from adasearch.texts import Split

MOST_LABELS = 20  # printed; JSON has all


@dataclass(frozen=True)
class Served:
    """How a model was served when it answered, and how many of the texts were longer than it reads."""

    runtime: str
    precision: str
    cut: int


@dataclass(frozen=True)
class Evaluation:
    """What ``score_models`` found: ``source`` of the examples, the ``board``, and how each model was served, in its order."""

    source: str
    board: Scoreboard
    served: tuple[Served, ...]

    def to_dict(self) -> dict[str, Any]:
        """All of it for JSON: scores are shares."""
        whole = {"source": self.source, **dataclasses.asdict(self.board)}
        whole["models"] = [{**model, **dataclasses.asdict(how)} for model, how in zip(whole["models"], self.served)]
        return whole


@keeping_threads()
def score_models(
    models: Sequence[str | Path], input_file: str | Path | None = None, *, text_column: str = "text", text_pair_column: str | None = None,
    label_column: str = "label", data_dir: str | None = None, metric: str | None = None, runtime: str = "auto",
    precision: str | None = None, threads: int | None = None, batch_size: int = 32, progress: Progress | None = None,
) -> Evaluation:  # fmt: skip
    """Score classifiers or readers on the same labelled examples; the first is compared with each of the others.

    ``models`` are folders of runs (their students) or of models. Without ``input_file`` the examples are those that the first
    model's run was scored on, its test examples or, where it had none, its validation examples (``data_dir``: where a preset
    lies now). A file's labels are the model's label names, or their numbers. Runtime, precision and threads are those
    saved with each model, unless given for all. Raises ``ConfigError``, ``DataError`` and ``ModelError``.
    """
    progress = progress or Progress()
    if not models:
        raise ConfigError("models: none to score; choices: runs/<name>, a model's folder, several of them")
    folders = [Path(model_in(model)) for model in models]
    for folder in folders:
        check_settings(folder, runtime, batch_size, "models", threads=threads)
    kinds = [is_reader(folder) for folder in folders]
    if len(set(kinds)) > 1:
        raise ConfigError(f"models: {models[kinds.index(True)]} answers questions, {models[kinds.index(False)]} has labels; choices: models of one kind")
    columns = Columns(text_column, text_pair_column, label_column)
    source, examples, metrics, known = _examples(Path(models[0]), folders[0], input_file, columns, data_dir, metric)
    settings = {"runtime": runtime, "precision": precision, "threads": threads, "batch_size": batch_size, "progress": progress}
    names: tuple[str, ...] = ()
    if not isinstance(examples, Questions):
        (kind, names), whose = known, "the first" if input_file is not None else "the run's task"
        orders = [_order(folder, kind, names, whose) for folder in folders]
        for folder in folders:
            check_pairs(trained_on_pairs(folder), examples.pairs is not None, "text_pair_column")
    judged, served = [], []
    for number, (model, folder) in enumerate(zip(models, folders)):
        if isinstance(examples, Questions):
            reader = QuestionAnswerer(folder, **settings)
            progress.stage(f"score {model}", total=len(examples))
            spans = [reader.answer(*texts, tell) for texts, tell in _chunks(examples, progress)]
            points = squad_points([answer.text for part in spans for answer in part.answers], examples.answers)
            judged.append(Judged(str(model), points={name: np.array(values) for name, values in points.items()}))
            served.append(Served(reader.runtime.name, reader.runtime.precision, sum(part.cut for part in spans)))
            continue
        classifier = TextClassifier(folder, **settings)
        progress.stage(f"score {model}", total=len(examples))
        parts = [classifier.answer(*texts, tell) for texts, tell in _chunks(examples, progress)]
        logits_NC = np.concatenate([part.logits_NC for part in parts])[:, orders[number]]
        shares_NC = np.concatenate([part.probabilities_NC for part in parts])[:, orders[number]] if classifier.labels else None
        judged.append(Judged(str(model), logits_NC, shares_NC))
        served.append(Served(classifier.runtime.name, classifier.runtime.precision, sum(part.cut for part in parts)))
    return Evaluation(source, judge(judged, metrics, examples.labels, names, progress=progress), tuple(served))


def _chunks(examples: Split, progress: Progress) -> Iterator[tuple[tuple[list[str], list[str] | None], Tell]]:
    """Texts, and pairs, of as many examples as are tokenised at once, and whom to tell how many of them are done."""
    for start in range(0, len(examples), CHUNK_ROWS):
        rows = slice(start, start + CHUNK_ROWS)
        pairs = None if examples.pairs is None else examples.pairs[rows]
        yield (examples.texts[rows], pairs), lambda done, start=start: progress.step(start + done)


def _known(folder: Path) -> tuple[str, tuple[str, ...]]:
    """Problem type and label names of a classifier."""
    adasearch.register_student()
    return labels_of(AutoConfig.from_pretrained(folder, local_files_only=True))


def _order(folder: Path, kind: str, names: tuple[str, ...], whose: str) -> list[int]:
    """Which of a model's outputs stands for each of the examples' label ``names``, which ``whose`` says the origin of.

    Raises ``ConfigError`` for a model of another kind or of other labels.
    """
    own_kind, own = _known(folder)
    if own_kind == kind == "regression":
        return [0]
    if own_kind == kind and (places := places_of(names, own)) is not None:
        return places
    raise ConfigError(f"models: {folder} is {own_kind} of {', '.join(own)}, {whose} {kind} of {', '.join(names)}; choices: models of one task")


def _examples(
    model: Path, folder: Path, input_file: str | Path | None, columns: Columns, data_dir: str | None, metric: str | None
) -> tuple[str, Split, tuple[str, ...], tuple[str, tuple[str, ...]]]:
    """Where the examples come from, they themselves, the metrics, of which the first counts, problem type and names of their labels.

    A run's examples bear its task's labels, whatever its model calls them, a file's those of the model.
    """
    if input_file is None:
        if named := [name for name, value in vars(columns).items() if value != getattr(Columns, name)]:
            raise ConfigError(f"input_file: none given, so there is no column {getattr(columns, named[0])!r} to read; choices: a file of labelled examples")
        _, run = find_run(model)
        if run is None:
            raise ConfigError(f"input_file: none given, and {model} lies in no run's folder; choices: a file of labelled examples")
        task = run.task(data_dir, instead="--input_file, --data_dir, or the data as they were")
        source = f"the {'validation' if task.test is None else 'test'} examples of {run.folder}"
        if isinstance(task.held_out, Questions):
            return source, task.held_out, question_metrics(metric), (task.problem_type, ())
        metrics = choose_metrics(task.problem_type, task.num_labels, own=task.metrics, asked=metric)
        return source, task.held_out, metrics, (task.problem_type, task.label_names)
    if data_dir is not None:
        raise ConfigError("data_dir: says where a run's own examples lie, and an input_file is given; choices: one of the two")
    path = Path(input_file)
    if is_reader(folder):
        question, context = question_columns(columns.text, columns.pair)
        answers = COLUMNS["label_column"] if columns.label == Columns.label else columns.label
        named = dict(zip(COLUMNS, (question, context, answers)))
        table = read_question_table(path, "input_file")
        return str(path), read_rows(table, named, needs_starts=False, skip_bad_rows=False, notes=[]), question_metrics(metric), (QUESTION_ANSWERING, ())
    kind, names = _known(folder)
    check_pairs(trained_on_pairs(folder), columns.pair is not None, "text_pair_column")
    examples = read_examples(path, "input_file", kind, names, columns)
    return str(path), examples, choose_metrics(kind, len(names), asked=metric, skewed=is_skewed(examples.labels)), (kind, names)


def format_evaluation(found: Evaluation) -> str:
    """The scoreboard as text: a line a model, a sentence a difference, the first model's labels and confusions."""
    board, first = found.board, found.board.models[0]
    header = ["", "runtime", *map(metric_name, first.scores), *(["calibration error"] if first.calibration_error is not None else [])]
    lines = [header]
    for model, how in zip(board.models, found.served):
        cells = [_interval(score, name) for name, score in model.scores.items()]
        error = [] if model.calibration_error is None else [f"{100 * model.calibration_error:.1f}"]
        lines.append([model.name, f"{how.runtime} {how.precision}", *cells, *error])
    parts = [f"{board.examples:,} examples: {found.source}; in brackets what other examples of their kind may give (95%)", align_columns(lines)]
    parts += [_sentence(first, difference, board.metric) for difference in board.differences]
    cut = [f"longer than {model.name} reads: {how.cut} texts" for model, how in zip(board.models, found.served) if how.cut]
    parts += ["; ".join(cut)] if cut else []
    if first.labels:
        parts += _label_table(first)
    if first.confusions:
        parts.append("most often taken for another: " + "; ".join(f"{c.gold} for {c.predicted} ({c.count})" for c in first.confusions))
    return "\n\n".join(parts)


def _label_table(model: ModelScore) -> list[str]:
    """Every label that has an example, or the worst of many, and how many have none."""
    there = [label for label in model.labels if label.examples]
    worst = sorted(there, key=lambda label: label.f1)[:MOST_LABELS]
    shown = [label for label in there if label in worst]
    rows = [
        [label.label, f"{label.examples:,}", *("-" if share is None else f"{100 * share:.1f}" for share in (label.precision, label.recall, label.f1))]
        for label in shown
    ]
    title = model.name if len(shown) == len(there) else f"{model.name}, the {len(shown)} labels of {len(there)} with the lowest F1"
    table = align_columns([[title, "examples", "precision", "recall", "F1"], *rows])
    absent = len(model.labels) - len(there)
    return [table, *([f"without an example: {absent} of {len(model.labels)} labels"] if absent else [])]


def _interval(score: Interval, metric: str) -> str:
    value, low, high = (format_score(number, metric) for number in (score.value, score.low, score.high))
    return f"{value} ({low} to {high})"


def _sentence(first: ModelScore, difference: Difference, metric: str) -> str:
    """Who is ahead, by how much, and whether that may be chance."""
    low, high = difference.score.low, difference.score.high
    amount = f"{100 * abs(difference.score.value):.1f} points"  # the metric that counts is a share
    side = "ahead of" if difference.score.value > 0 else "behind"
    text = f"{first.name} is {amount} of {metric_name(metric)} {side} {difference.other}" if difference.score.value else (
        f"{first.name} and {difference.other} have the same {metric_name(metric)}"
    )  # fmt: skip
    bounds = f"{format_score(low, metric)} to {format_score(high, metric)}"
    # where the score counts right answers the exact test decides: of few examples that part two models the bootstrap is too sure
    is_exact = difference.p_value is not None and metric in COUNTED
    is_sure = difference.p_value < 1 - LEVEL if is_exact else low > 0 or high < 0
    text += f" ({bounds}): " + ("more than chance explains" if is_sure else "chance alone may do that")
    if difference.only_first is not None:
        text += f"; {difference.only_first} examples are right in the first alone, {difference.only_other} in the other alone"
    if difference.p_value is not None:
        text += f" (McNemar: p = {difference.p_value:.2g})"
    return text
