"""Pictures of a search: the Pareto front that one training gave, and what a diagnosis found."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from adasearch.canvas import FAINT, INK, plot_axes
from adasearch.formats import format_count

FRONT, SEARCHED, CONTROL, BASE = "#D55E00", "#0072B2", "#7F7F7F", "#CC79A7"
COST_NAMES = {"latency_ms": "predicted milliseconds a call", "macs": "multiply-accumulates a text", "params": "parameters"}
SYSTEM_NAMES = {"searched": "searched", "random": "random cells", "conv3_stack": "conv3 stack", "bag_of_embeddings": "bag of embeddings"}


def front_figure(front: dict[str, Any]) -> Figure:
    """Loss against cost of every member that was weighed; the front as steps, the chosen one marked."""
    cost = front["objectives"][1]
    figure, axes = plot_axes(f"{front['evaluated']} members of one supernet: loss against cost")
    losses, costs = zip(*front["others"])
    points = [(point[cost], point["loss"]) for point in front["front"]]
    axes.scatter(costs, losses, s=16, color=FAINT, alpha=0.7, label="weighed", zorder=2)
    axes.step(*zip(*points), where="post", color=FRONT, linewidth=1.4, zorder=3)
    axes.scatter(*zip(*points), s=36, color=FRONT, edgecolor="white", label="front", zorder=4)
    chosen = front["chosen"]
    axes.scatter([chosen[cost]], [chosen["loss"]], s=130, facecolor="none", edgecolor=INK, linewidth=1.6, label="chosen", zorder=5)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}" if cost == "latency_ms" else format_count(value)))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel(COST_NAMES[cost], size=9, color=INK)
    axes.set_ylabel("loss with the supernet's weights", size=9, color=INK)
    axes.legend(fontsize=8, frameon=False, loc="upper right")
    return figure


def ranking_figure(members: Sequence[dict[str, Any]], correlation: dict[str, Any], metric: str) -> Figure:
    """Each member's score with the supernet's weights against its score after retraining; both in points."""
    figure, axes = plot_axes(f"{len(members)} members: Spearman {format_rank(correlation)}", (6.2, 5.2))
    sizes = [member["macs"] for member in members]
    axes.scatter(
        [100 * member["supernet_score"] for member in members], [100 * member["retrained_score"] for member in members],
        s=[20 + 90 * size / max(sizes) for size in sizes], color=SEARCHED, alpha=0.75, edgecolor="white", zorder=3,
    )  # fmt: skip
    axes.set_xlabel(f"{metric} with the supernet's weights, points (area: multiply-accumulates)", size=9, color=INK)
    axes.set_ylabel(f"{metric} after retraining, points", size=9, color=INK)
    return figure


def retrained_front_figure(points: Sequence[dict[str, Any]], correlation: dict[str, Any], metric: str) -> Figure:
    """Points of one training's front by cost: what they score with the supernet's weights, and after each was trained."""
    cost = "latency_ms" if all("latency_ms" in point for point in points) else "macs"
    ordered = sorted(points, key=lambda point: point[cost])
    figure, axes = plot_axes(f"{len(points)} points of one front: Spearman {format_rank(correlation)}", (7.2, 4.8))
    for name, label, colour in (
        ("retrained_score", "after retraining", FRONT), ("supernet_score", "with the supernet's weights, validation texts", CONTROL),
    ):  # fmt: skip
        scores = [100 * point[name] for point in ordered]
        axes.plot([point[cost] for point in ordered], scores, color=colour, linewidth=1.4, marker="o", markersize=6, label=label, zorder=3)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}" if cost == "latency_ms" else format_count(value)))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel(COST_NAMES[cost], size=9, color=INK)
    axes.set_ylabel(f"{metric}, points", size=9, color=INK)
    axes.legend(fontsize=8, frameon=False, loc="lower right")
    return figure


def format_rank(correlation: dict[str, Any]) -> str:
    """Spearman's rho and its interval, as "0.81 [0.60, 0.92]"; "none" where one side does not vary."""
    rank = correlation["spearman"]
    return "none" if rank["value"] is None else f"{rank['value']:.2f} [{rank['low']:.2f}, {rank['high']:.2f}]"


def controls_figure(groups: dict[str, list[float]], metric: str) -> Figure:
    """Searched students against their controls after equal retraining: means, standard deviations, every score."""
    known = {name: scores for name, scores in groups.items() if scores}
    figure, axes = plot_axes("Equal cost, equal retraining", (6.6, 4.6))
    points = {name: [100 * score for score in scores] for name, scores in known.items()}
    every = [score for scores in points.values() for score in scores]
    for place, (name, scores) in enumerate(points.items()):
        mean = sum(scores) / len(scores)
        spread = (sum((score - mean) ** 2 for score in scores) / max(1, len(scores) - 1)) ** 0.5
        colour = {"searched": SEARCHED, "bag_of_embeddings": BASE}.get(name, CONTROL)
        error = {"ecolor": INK, "elinewidth": 1.2}
        axes.bar(place, mean, width=0.6, color=colour, alpha=0.55, yerr=spread or None, capsize=5, error_kw=error)
        beside = np.linspace(-0.2, 0.2, len(scores)) if len(scores) > 1 else [0.0]  # equal scores do not hide each other
        axes.scatter([place + shift for shift in beside], scores, s=14, color=INK, zorder=4)
    low, high = min(every), max(every)
    pad = max(0.5, 0.35 * (high - low))
    axes.set_ylim(low - pad if low < 0 else max(0.0, low - pad), high + pad)  # correlations may be below 0
    axes.set_xticks(range(len(known)), [f"{SYSTEM_NAMES.get(name, name)}\n(n = {len(scores)})" for name, scores in known.items()])
    axes.set_ylabel(f"{metric}, points (axis does not begin at 0)", size=9, color=INK)
    axes.grid(False, axis="x")
    return figure
