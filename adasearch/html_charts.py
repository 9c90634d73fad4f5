"""The charts of report.html: score against latency, the cascade, the search and the training, each with its legend."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup

from adasearch.canvas import by_family, family
from adasearch.formats import format_count, format_ms, format_score, format_spread, metric_name, metric_title, score_factor
from adasearch.histories import TERMS, column_of, kind_of, names_of, shown_terms, warm_up_end
from adasearch.report import KINDS, Report, System
from adasearch.svg import Dot, Line, area_chart, line_chart, scatter_chart

SHORT_NAMES = {
    "teacher": "teacher", "student": "student", "student_no_kd": "no teacher", "random_architecture": "random architecture",
    "bag_of_embeddings": "bag of embeddings", "tfidf": "TF-IDF",
}  # fmt: skip
SHORTER_NAMES = {"random_architecture": "random", "bag_of_embeddings": "bag"}  # where there is little room
WIDE, NARROW = (960.0, 440.0), (400.0, 400.0)  # of the comparison, for screens and for phones
History = list[dict[str, Any]]
Records = Sequence[dict[str, Any]]


@dataclass(frozen=True)
class Chart:
    """A drawing, its title, and what its colours mean: (name, CSS class)."""

    title: str
    drawing: Markup
    legend: list[tuple[str, str]]


def short_name(system: System) -> str:
    """What a system is called beside its point."""
    if system.kind == "student_no_kd" and system.name.startswith("student, "):
        return system.name.removeprefix("student, ")  # no teacher, or no soft labels where there was none at all
    return SHORT_NAMES.get(system.kind) or re.sub(r"\s*\(.*\)", "", system.name).removesuffix(" shape")


def comparison_charts(report: Report) -> list[Markup]:
    """Score against latency for wide and for narrow screens; none where no system has both."""
    factor = score_factor(report.metric)
    timed = [s for s in report.systems if s.latency_ms_p50]
    scored = [s for s in timed if s.score_mean is not None]
    if not scored:
        return []
    y_label = metric_title(report.metric)
    tips = [_tip(s, report.metric) for s in scored]
    text = f"{report.task}: {metric_name(report.metric)} against median latency. {'; '.join(tips)}"

    def drawing(shorter: dict[str, str], size: tuple[float, float]) -> Markup:
        dots = [
            Dot(
                shorter.get(s.kind, short_name(s)), s.latency_ms_p50, factor * s.score_mean, f"k-{s.kind}", _radius(s),
                factor * (s.score_sd or 0.0), tip, s.kind == "student",
            )
            for s, tip in zip(scored, tips)
        ]  # fmt: skip
        levels = [Dot(short_name(s), s.latency_ms_p50, math.nan, f"k-{s.kind}") for s in timed if s.score_mean is None]
        return scatter_chart(dots, levels, "median latency in ms, logarithmic", y_label, text, size=size)

    return [drawing({}, WIDE), drawing(SHORTER_NAMES, NARROW)]


def _radius(system: System) -> float:
    """Grows with the parameters, as the area of the markers of ``curves.comparison_figure``."""
    return 4.5 + 2.2 * math.log10(1 + (system.params or 0) / 1e5)


def _tip(system: System, metric: str) -> str:
    score = f"{format_score(system.score_mean, metric)}{format_spread(system.score_sd, metric)}"
    size = "" if system.params is None else f", {format_count(system.params)} parameters"
    return f"{system.name}: {score} at {format_ms(system.latency_ms_p50)} ms{size}"


def cascade_chart(report: Report) -> Chart | None:
    """Score by the share of texts handed to the teacher, between the student's own and the teacher's."""
    curve = sorted(report.cascade.get("curve") or [], key=lambda point: point["share_escalated"])
    if len(curve) < 2:
        return None
    shares, scores = [100 * point["share_escalated"] for point in curve], [100 * point["score"] for point in curve]
    metric = metric_name(report.metric)
    lines = [
        Line("teacher alone", [shares[0], shares[-1]], [scores[-1]] * 2, "k-teacher", dashed=True),
        Line("student alone", [shares[0], shares[-1]], [scores[0]] * 2, "k-student", dashed=True),
        Line("cascade", shares, scores, "c0", dots=True),
    ]
    ends = f"{scores[0]:.1f} with none to {scores[-1]:.1f} with all"
    text = f"{metric} by the share of texts handed to the teacher: {ends}"
    drawing = line_chart(lines, "% of texts handed to the teacher", f"{metric}, points", text)
    return Chart("The cascade", drawing, [(line.name, line.colour) for line in lines])


def search_charts(history: Records) -> list[Chart]:
    """Loss and its terms, what the gates think of every choice, the expected cost."""
    if not history:
        return []
    steps = column_of(history, "step").tolist()
    end = warm_up_end(history)
    mark = None if end is None else (float(end), "warm-up ends")

    def lines(found: Sequence[tuple[str, np.ndarray, str]], title: str, y_label: str, low: float | None = 0.0) -> list[Chart]:
        drawn = [Line(name, steps, values.tolist(), colour) for name, values, colour in found if np.isfinite(values).any()]
        if not drawn:
            return []
        ends = "; ".join(f"{line.name} {_first(line.ys):.3g} to {_first(line.ys[::-1]):.3g}" for line in drawn)
        picture = line_chart(drawn, "step", y_label, f"{title}: {ends}", low=low, mark=mark)
        return [Chart(title, picture, [(line.name, line.colour) for line in drawn])]

    def shares(names: Sequence[str], key: str, title: str, labels: Sequence[str], colours: Sequence[str]) -> list[Chart]:
        if not names:
            return []
        columns = [np.nan_to_num(column_of(history, key, name)) for name in names]
        drawn = [Line(label, steps, ys.tolist(), colour) for label, ys, colour in zip(labels, columns, colours)]
        ends = ", ".join(f"{line.name} {100 * line.ys[-1]:.0f}%" for line in drawn)
        picture = area_chart(steps, drawn, "step", f"{title}; at the end {ends}", mark=mark)
        return [Chart(title, picture, [(line.name, line.colour) for line in reversed(drawn)])]

    palette = [f"c{index}" for index in range(8)]
    losses = [(TERMS.get(name, name), column_of(history, "terms", name), colour) for name, colour in zip(shown_terms(history), palette * 9)]
    entropy = [(name, column_of(history, "entropy", name), c) for name, c in zip(names_of(history, "entropy"), palette * 9)]
    costs = [
        (f"{label}, {_ends(history, key)}", _relative(column_of(history, key)), colour)
        for label, key, colour in (("MACs", "macs", "c0"), ("parameters", "params", "c2"))
    ]
    time = [("expected latency", column_of(history, "latency_ms"), "c4")]
    operations = by_family(names_of(history, "operations"))
    charts = lines([*losses, ("loss", column_of(history, "loss"), "ink")], "Loss and its weighted terms", "loss", None)
    charts += lines(entropy, "Entropy of the choices: 1 open, 0 decided", "share of the maximum")
    labels = [family(name)[1] for name in operations]
    charts += shares(operations, "operations", "Mean probability of each operation", labels, _shades(operations))
    for key, what in (("depth", "cells"), ("width", "channels")):
        names = sorted(names_of(history, key), key=float)
        charts += shares(names, key, f"Probability of each {key}", [f"{name} {what if name != '1' else what[:-1]}" for name in names], palette)
    charts += lines(costs, "Expected cost of the cells, start = 1", "relative to the start")
    return charts + lines(time, "Expected latency", "ms")


def _first(values: Sequence[float]) -> float:
    return next((value for value in values if math.isfinite(value)), math.nan)


def _relative(values: np.ndarray) -> np.ndarray:
    first = _first(values.tolist())
    return values / first if math.isfinite(first) and first > 0 else np.full(len(values), np.nan)


def _ends(history: Records, key: str) -> str:
    values = column_of(history, key).tolist()
    known = [value for value in values if math.isfinite(value)]
    return f"{format_count(known[0])} → {format_count(known[-1])}" if known else "-"


def _shades(operations: Sequence[str]) -> list[str]:
    """A family's colour, paler from one member to the next."""
    seen: dict[str, int] = defaultdict(int)
    classes = []
    for name in operations:
        kind = family(name)[0]
        classes.append(f"op-{kind} t{min(seen[kind], 3)}")
        seen[kind] += 1
    return classes


def training_charts(histories: dict[str, History], systems: Sequence[System] = ()) -> list[Chart]:
    """Validation metrics and loss of student and controls, called as in the table of ``systems``; seeds (``name-seed``) share a colour."""
    called = SHORT_NAMES | {system.kind: short_name(system) for system in systems if system.kind in SHORT_NAMES}
    histories = {name: history for name, history in sorted(histories.items()) if history}
    kinds = {name: kind_of(name) for name in histories}
    known = {kind: f"k-{kind}" for kind in KINDS}
    others = [kind for kind in dict.fromkeys(kinds.values()) if kind not in known]
    colours = known | {kind: f"c{index % 8}" for index, kind in enumerate(others)}
    metrics = list(dict.fromkeys(m for history in histories.values() for m in names_of(history, "validation")))
    panels = [(f"Validation {metric_title(metric)}", ("validation", metric)) for metric in metrics]
    charts = []
    for title, keys in [*panels, ("Loss, each system's own terms", ("loss",))]:
        drawn = []
        for name, history in histories.items():
            values = column_of(history, *keys) * (score_factor(keys[1]) if len(keys) > 1 else 1.0)
            keep = np.isfinite(values)
            if keep.any():
                xs, ys = column_of(history, "step")[keep].tolist(), values[keep].tolist()
                drawn.append(Line(name, xs, ys, colours[kinds[name]], dots=len(ys) < 12))
        if drawn:
            shown = [kind for kind in colours if any(kinds[line.name] == kind for line in drawn)]
            ends = "; ".join(f"{line.name} ends at {line.ys[-1]:.4g}" for line in drawn)
            picture = line_chart(drawn, "step", title.split(",")[0].lower(), f"{title}: {ends}")
            names = [(called.get(kind, kind.replace("_", " ")), colours[kind]) for kind in shown]
            charts.append(Chart(title, picture, names))
    return charts
