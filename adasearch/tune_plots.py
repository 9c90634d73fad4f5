"""Pictures of a study: score against cost with its front, score over trials, what mattered."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import optuna
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter
from optuna.trial import FrozenTrial, TrialState

from adasearch.canvas import FAINT, INK, LINE_COLOURS, plot_axes
from adasearch.formats import ERRORS_OF_MEASUREMENT, format_count, metric_name, score_factor
from adasearch.tune_config import TuneConfig

FEWEST = 4  # finished trials; with fewer the shares of variance say nothing
COST_NAMES = {"latency_ms": "latency in ms (log)", "macs": "multiply-accumulates (log)", "params": "parameters (log)"}
FRONT, OTHERS, STOPPED = LINE_COLOURS[4], LINE_COLOURS[0], FAINT


def importances(found: optuna.Study, config: TuneConfig) -> dict[str, dict[str, float]]:
    """Objective -> setting -> share of its variance (fANOVA, Hutter et al. 2014), the largest first; {} of few trials."""
    done = found.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    names = [name for name, d in (done[0].distributions.items() if done else ()) if not d.single()]
    if len(done) < FEWEST or not names:
        return {}
    shares = {}
    for index, objective in enumerate(config.objectives):
        if len({trial.values[index] for trial in done}) < 2:
            continue  # nothing varies
        evaluator = optuna.importance.FanovaImportanceEvaluator(seed=config.seed)
        shares[objective] = optuna.importance.get_param_importances(
            found, evaluator=evaluator, params=names, target=lambda trial, index=index: trial.values[index]
        )
    return shares


def front_figure(trials: Sequence[FrozenTrial], best: Sequence[FrozenTrial], cost: str, metric: str) -> Figure:
    """Score against a cost: finished trials as dots, the front as steps with the trials' numbers, stopped ones as ticks."""
    done = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    stopped = [trial for trial in trials if trial.state == TrialState.PRUNED and cost in trial.user_attrs]
    factor = score_factor(metric)
    figure, axes = plot_axes(f"{len(done)} trials: score against {cost.replace('_ms', '')}")
    axes.set_xscale("log")
    front = sorted((trial.user_attrs[cost], factor * trial.user_attrs["score"], trial.number) for trial in best)
    numbers = {number for *_, number in front}
    others = [trial for trial in done if trial.number not in numbers]
    axes.scatter([t.user_attrs[cost] for t in others], [factor * t.user_attrs["score"] for t in others], s=26, color=OTHERS, alpha=0.7, label="finished", zorder=2)
    axes.step([x for x, *_ in front], [y for _, y, _ in front], where="post", color=FRONT, linewidth=1.4, zorder=3)
    axes.scatter([x for x, *_ in front], [y for _, y, _ in front], s=44, color=FRONT, edgecolor="white", label="front", zorder=4)
    for x, y, number in front:
        axes.annotate(str(number), (x, y), xytext=(-3, 5), textcoords="offset points", ha="right", size=8, color=INK)
    for trial in stopped:
        axes.axvline(trial.user_attrs[cost], ymax=0.03, color=STOPPED, linewidth=1.2, zorder=1)
    if stopped:
        axes.plot([], [], color=STOPPED, linewidth=1.2, label=f"stopped ({len(stopped)}): cost alone is known")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}" if cost == "latency_ms" else format_count(value)))
    axes.xaxis.set_minor_formatter(NullFormatter())
    costs = [trial.user_attrs[cost] for trial in [*done, *stopped]]
    if max(costs) < 10 * min(costs):  # less than a decade: a logarithmic axis would show one number or none
        axes.set_xticks([float(f"{value:.3g}") for value in np.geomspace(min(costs), max(costs), 5)])
    axes.set_xlabel(COST_NAMES[cost], size=9, color=INK)
    axes.set_ylabel(_score_name(metric), size=9, color=INK)
    axes.legend(fontsize=8, frameon=False, loc="lower right")
    return figure


def history_figure(trials: Sequence[FrozenTrial], metric: str, sign: float) -> Figure:
    """Score of every finished trial in order, and the best so far."""
    done = sorted((trial for trial in trials if trial.state == TrialState.COMPLETE), key=lambda trial: trial.number)
    numbers, scores = [t.number for t in done], score_factor(metric) * np.array([t.user_attrs["score"] for t in done])
    figure, axes = plot_axes(f"{len(done)} finished trials of {len(trials)}")
    axes.scatter(numbers, scores, s=30, color=OTHERS, label="a trial", zorder=3)
    axes.step(numbers, sign * np.maximum.accumulate(sign * scores), where="post", color=FRONT, linewidth=1.6, label="the best so far", zorder=2)
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    axes.set_xlabel("trial", size=9, color=INK)
    axes.set_ylabel(_score_name(metric), size=9, color=INK)
    axes.legend(fontsize=8, frameon=False, loc="lower right")
    return figure


def importance_figure(weights: dict[str, dict[str, float]]) -> Figure:
    """Bars: a setting a row, an objective a colour."""
    names = sorted({name for shares in weights.values() for name in shares}, key=lambda name: max(s.get(name, 0.0) for s in weights.values()))
    figure, axes = plot_axes("What mattered: share of the variance", (8.4, 1.3 + 0.42 * len(names) * max(1, 0.55 * len(weights))))
    thickness = 0.8 / len(weights)
    for turn, (objective, shares) in enumerate(weights.items()):
        places = [row + 0.4 - (turn + 0.5) * thickness for row in range(len(names))]
        bars = axes.barh(places, [100 * shares.get(name, 0.0) for name in names], 0.9 * thickness, color=LINE_COLOURS[turn], label=objective)
        axes.bar_label(bars, fmt="%.0f%%", padding=3, size=8, color=INK)
    axes.set_yticks(range(len(names)), names)
    axes.set_xlim(0, 112)
    axes.set_xticks([])
    axes.spines["bottom"].set_visible(False)
    axes.grid(False)
    if len(weights) > 1:
        axes.legend(fontsize=8, frameon=False, loc="lower right")
    return figure


def _score_name(metric: str) -> str:
    return f"{metric_name(metric)} of the validation examples" + ("" if metric in ERRORS_OF_MEASUREMENT else ", points")
