"""Curves of the search and of the training, and the comparison of all systems: score against latency."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

from adasearch.canvas import COLOURS, FAINT, INK, KIND_COLOURS, LINE_COLOURS, by_family, dress_axes, family, tint
from adasearch.errors import ConfigError
from adasearch.formats import format_count, format_threads, metric_title, score_factor
from adasearch.histories import TERMS, column_of, kind_of, names_of, shown_terms, warm_up_end
from adasearch.label_places import LABEL_HEIGHT, LABEL_SIZE, Extent, Label, place_labels
from adasearch.report import KINDS


def _grid(panels: int, title: str) -> tuple[Figure, list[Axes]]:
    rows = (panels + 1) // 2
    figure = Figure(figsize=(11, 0.5 + 2.75 * rows), facecolor="white", layout="constrained")
    figure.get_layout_engine().set(w_pad=0.12, h_pad=0.12)
    figure.suptitle(title, size=12, weight="bold", color=INK, x=0.012, ha="left")
    axes = [figure.add_subplot(rows, 2, index + 1) for index in range(panels)]
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
        ax.tick_params(labelsize=8, colors=INK)
        ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    return figure, axes


def _dress(ax: Axes, title: str, *, legend: bool = True, ylabel: str = "") -> None:
    ax.set_title(title, size=9.5, weight="bold", loc="left", color=INK)
    ax.set_xlabel("step", size=8)
    ax.set_ylabel(ylabel, size=8)
    if legend:
        handles, labels = ax.get_legend_handles_labels()
        place = {"loc": "center left", "bbox_to_anchor": (1.0, 0.5)}
        ax.legend(handles[::-1], labels[::-1], fontsize=7.5, frameon=False, handlelength=1.4, **place)


def _stack(ax: Axes, steps: np.ndarray, parts: np.ndarray, labels: Sequence[str], colours: Sequence[Any]) -> None:
    """Shares of one, stacked from below: (parts, records)."""
    ax.stackplot(steps, parts, labels=labels, colors=colours, edgecolor="white", linewidth=0.4)
    ax.set(ylim=(0, 1), xlim=(steps[0], max(steps[-1], steps[0] + 1)))


def _shades(operations: Sequence[str]) -> dict[str, tuple[float, ...]]:
    """A colour for each operation: its family's, paler from one member of the family to the next."""
    seen: dict[str, int] = defaultdict(int)
    shades = {}
    for name in operations:
        kind = family(name)[0]
        shades[name] = tint(COLOURS[kind], (1.0, 0.65, 0.38, 0.2)[min(seen[kind], 3)])
        seen[kind] += 1
    return shades


def search_figure(history: Sequence[dict[str, Any]]) -> Figure:
    """The curves of a search. Raises ``ConfigError`` when there are no records."""
    if not history:
        raise ConfigError("history: it holds no records, so there is no curve to draw")
    steps = column_of(history, "step")
    terms = shown_terms(history)
    palette = dict(zip(names_of(history, "terms"), LINE_COLOURS * len(history)))

    def losses(ax: Axes) -> None:
        for name in terms:
            values = column_of(history, "terms", name)
            ax.plot(steps, values, color=palette[name], label=TERMS.get(name, name), linewidth=1.6)
        ax.plot(steps, column_of(history, "loss"), color=INK, label="loss", linewidth=1.2, linestyle="--")
        _dress(ax, "Loss and its weighted terms")

    def loss_shares(ax: Axes) -> None:
        parts = np.abs(np.nan_to_num(np.stack([column_of(history, "terms", name) for name in terms])))
        parts /= np.maximum(parts.sum(0), 1e-12)
        _stack(ax, steps, parts, [TERMS.get(name, name) for name in terms], [palette[name] for name in terms])
        _dress(ax, "Share of each term in the loss")

    def entropy(ax: Axes) -> None:
        for name, colour in zip(names_of(history, "entropy"), LINE_COLOURS):
            values = column_of(history, "entropy", name)
            ax.plot(steps, values, color=colour, label=f"entropy of {name}", linewidth=1.6)
        ax.plot(steps, column_of(history, "temperature"), color=INK, label="temperature", linewidth=1.2, ls="--")
        ax.set_ylim(bottom=0)
        _dress(ax, "Entropy (1 = open, 0 = decided) and temperature")

    def operations(ax: Axes) -> None:
        names = by_family(names_of(history, "operations"))
        parts = np.nan_to_num(np.stack([column_of(history, "operations", name) for name in names]))
        shades = _shades(names)
        _stack(ax, steps, parts, [family(name)[1] for name in names], [shades[name] for name in names])
        _dress(ax, "Mean probability of each operation")

    def choices(key: str, title: str) -> Callable[[Axes], None]:
        def draw(ax: Axes) -> None:
            names = sorted(names_of(history, key), key=float)
            p = np.stack([column_of(history, key, name) for name in names])
            edges = np.concatenate([[2 * steps[0] - steps[1] if len(steps) > 1 else steps[0] - 1], steps])
            image = ax.pcolormesh(edges, np.arange(len(names) + 1) - 0.5, p, cmap="cividis", vmin=0, vmax=1)
            ax.set_yticks(range(len(names)), names)
            bar = ax.figure.colorbar(image, cax=ax.inset_axes((1.03, 0, 0.03, 1)))
            bar.ax.tick_params(labelsize=7.5)
            bar.outline.set_visible(False)
            _dress(ax, title, legend=False)

        return draw

    def cost(ax: Axes) -> None:
        for key, label, colour in (("macs", "MACs", LINE_COLOURS[0]), ("params", "parameters", LINE_COLOURS[2])):
            values = column_of(history, key)
            known = values[~np.isnan(values)]
            if len(known) and known[0] > 0:
                label = f"{label}\n{format_count(known[0])} → {format_count(known[-1])}"
                ax.plot(steps, values / known[0], color=colour, linewidth=1.6, label=label)
        ax.set_ylim(bottom=0)
        _dress(ax, "Expected cost of the cells, start = 1")

    def learning_rate(ax: Axes) -> None:
        ax.plot(steps, column_of(history, "learning_rate"), color=INK, linewidth=1.4)
        ax.set_ylim(bottom=0)
        _dress(ax, "Learning rate of the weights", legend=False)

    drawers: list[Callable[[Axes], None]] = [losses] + ([loss_shares] if terms else [])
    drawers += [entropy] if names_of(history, "entropy") else []
    drawers += [operations] if names_of(history, "operations") else []
    gates = (("depth", "Probability of each depth (cells)"), ("width", "Probability of each width (channels)"))
    drawers += [choices(key, title) for key, title in gates if names_of(history, key)]
    drawers += [cost] if any(record.get("macs") for record in history) else []
    drawers += [learning_rate] if len(drawers) % 2 else []
    end = warm_up_end(history)
    note = "" if end is None else f"  (dotted line: the warm-up ends at step {end})"
    figure, axes = _grid(len(drawers), f"Search{note}")
    for ax, draw in zip(axes, drawers):
        draw(ax)
        if end is not None:
            ax.axvline(end, color=INK, linewidth=1.0, linestyle=":")
    return figure


def training_figure(histories: dict[str, list[dict[str, Any]]]) -> Figure:
    """Loss, validation metrics and learning rate of several trainings; seeds (``name-seed``) share a colour."""
    histories = {name: history for name, history in histories.items() if history}
    if not histories:
        raise ConfigError("histories: none holds records, so there is no curve to draw")
    kinds = {name: kind_of(name) for name in histories}
    others = iter(LINE_COLOURS * len(histories))
    colours: dict[str, str] = {}
    for kind in kinds.values():
        if kind not in colours:
            colours[kind] = KIND_COLOURS.get(kind) or next(others)
    metrics = list(dict.fromkeys(m for history in histories.values() for m in names_of(history, "validation")))
    figure, axes = _grid(2 + len(metrics), "Training")
    validation = [(f"Validation {metric_title(metric)}", ("validation", metric)) for metric in metrics]
    panels = [("Loss (each system's own terms)", ("loss",)), *validation, ("Learning rate", ("learning_rate",))]
    for ax, (title, keys) in zip(axes, panels):
        for name, history in histories.items():
            values, steps = column_of(history, *keys) * (score_factor(keys[1]) if len(keys) > 1 else 1.0), column_of(history, "step")
            known = ~np.isnan(values)
            marker = {"marker": "o", "markersize": 3.5} if known.sum() < 12 else {}
            ax.plot(steps[known], values[known], color=colours[kinds[name]], linewidth=1.3, alpha=0.85, **marker)
        _dress(ax, title, legend=False)
        ax.sharex(axes[0])
    handles = [Line2D([], [], color=colour, linewidth=2.5) for colour in colours.values()]
    names = [KINDS.get(kind, kind.replace("_", " ")).removeprefix("the ").removeprefix("a ") for kind in colours]
    figure.legend(handles, names, loc="outside lower left", ncols=4, fontsize=8.5, frameon=False)
    return figure


def comparison_figure(report: dict[str, Any]) -> Figure:
    """Score against latency (log) of every system of a report.json; areas grow with parameters, bars are the seeds' sd.

    Systems that are only timed are vertical lines. Raises ``ConfigError`` when no system has both numbers.
    """
    timed = [s for s in report["systems"] if s.get("latency_ms_p50")]
    systems = [s for s in timed if s.get("score_mean") is not None]
    if not systems:
        raise ConfigError("report: no system has both a score and a latency, so there is nothing to compare")
    factor = score_factor(report["metric"])
    scores = [factor * s["score_mean"] for s in systems]
    spread = [factor * (s.get("score_sd") or 0.0) for s in systems]
    figure = Figure(figsize=(9, 5.6), facecolor="white")
    axes = figure.add_axes((0.085, 0.115, 0.89, 0.79))
    times = [s["latency_ms_p50"] for s in timed]
    axes.set_xscale("log")
    axes.set_xlim(min(times) / 2.2, max(times) * 2.2)
    low, high = min(y - d for y, d in zip(scores, spread)), max(y + d for y, d in zip(scores, spread))
    pad = max(0.22 * (high - low), 0.02 * factor if high == low else 0.0)
    axes.set_ylim(low - pad, high + pad)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    dress_axes(axes, f"{report['task']}: score against latency, area by parameters")
    first = next((s for s in systems if s.get("seq_len")), systems[0])
    shape = f"batch {first.get('batch_size')}, {first.get('seq_len')} word pieces"
    where = f"{format_threads(first.get('threads'))}, {first.get('runtime')}"
    axes.set_xlabel(f"median latency in ms (log): {shape}, {where}", size=9, color=INK)
    axes.set_ylabel(metric_title(report["metric"]), size=9, color=INK)
    obstacles: list[Extent] = []
    labels: list[Label] = []
    to_points = 72 / figure.dpi  # figure points do not change with the resolution a figure is saved at

    def point(x: float, y: float) -> tuple[float, float]:
        x_pt, y_pt = axes.transData.transform((x, y)) * to_points
        return x_pt, y_pt

    for s, y, sd in zip(systems, scores, spread):
        colour, is_student = KIND_COLOURS.get(s["kind"], INK), s["kind"] == "student"
        area = 40 + 60 * math.log10(1 + (s.get("params") or 0) / 1e5) ** 1.5  # of the marker, in square points
        axes.errorbar(s["latency_ms_p50"], y, yerr=sd or None, color=colour, linewidth=1.1, capsize=3, zorder=2)
        style = {"color": colour, "edgecolor": "white", "linewidth": 1, "alpha": 0.9, "zorder": 4 if is_student else 3}
        axes.scatter(s["latency_ms_p50"], y, s=area, **style)
        (x_pt, y_pt), radius = point(s["latency_ms_p50"], y), math.sqrt(area / math.pi) + 2
        reach = max(radius, point(s["latency_ms_p50"], y + sd)[1] - y_pt + 3)
        obstacles.append((x_pt - radius, y_pt - radius, x_pt + radius, y_pt + radius))
        obstacles.append((x_pt - 4, y_pt - reach, x_pt + 4, y_pt + reach))
        text = s["name"] + ("" if s.get("params") is None else f", {format_count(s['params'])}")
        labels.append(Label(text, colour, "bold" if is_student else "normal", x_pt, y_pt, radius))
    for s in timed:
        if s.get("score_mean") is None:
            colour = KIND_COLOURS.get(s["kind"], INK)
            axes.axvline(s["latency_ms_p50"], color=colour, linewidth=1.1, linestyle="--", zorder=1)
            x_pt, y_pt = point(s["latency_ms_p50"], low - pad)
            obstacles.append((x_pt - 1, 0.0, x_pt + 1, math.inf))
            labels.append(Label(s["name"], colour, "normal", x_pt, y_pt + 12, 1.0))
    left, bottom, right, top = (value * to_points for value in axes.get_window_extent().extents)
    for label, (x, y) in zip(labels, place_labels(labels, obstacles, (left, bottom, right, top))):
        style = {"size": LABEL_SIZE, "weight": label.weight, "color": [0.72 * c for c in to_rgb(label.colour)]}
        place = {"xycoords": "figure points", "ha": "left", "va": "center_baseline", "zorder": 5}
        axes.annotate(label.text, (x + 2, y + LABEL_HEIGHT / 2), **place, **style)
        near = (min(max(label.x, x), x + label.width), min(max(label.y, y), y + LABEL_HEIGHT))
        if math.hypot(near[0] - label.x, near[1] - label.y) > label.radius + 10:  # far away: a thin line leads there
            line = {"arrowstyle": "-", "color": FAINT, "linewidth": 0.8, "shrinkA": 0, "shrinkB": label.radius}
            place = {"xycoords": "figure points", "textcoords": "figure points", "zorder": 1}
            axes.annotate("", (label.x, label.y), near, arrowprops=line, **place)
    return figure
