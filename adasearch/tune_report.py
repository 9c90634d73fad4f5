"""What a study leaves behind: trials.csv, the best runs as YAML, figures, tune.md. All of it is made again at every end."""

from __future__ import annotations

import csv
import dataclasses
import io
import shutil
from collections import Counter
from collections.abc import Sequence
from typing import Any

import optuna
import yaml
from optuna.trial import FrozenTrial, TrialState

from adasearch.canvas import save_figure
from adasearch.console import format_seconds
from adasearch.files import write_text
from adasearch.formats import format_count, format_ms, format_score, markdown_table, metric_name
from adasearch.measure import hardware
from adasearch.tune_config import LIMITS, TuneConfig
from adasearch.tune_plots import front_figure, history_figure, importance_figure, importances
from adasearch.tune_space import run_data, space_data
from adasearch.tune_storage import counted
from adasearch.tune_trial import Study

FACTS = ("score", "latency_ms", "macs", "params", "shape", "seconds", "reason", "tries", "retry_of")


def describe(trial: FrozenTrial, config: TuneConfig) -> str:
    """A finished trial in one line."""
    known = {name: trial.user_attrs[name] for name in ("score", "latency_ms", "macs", "params") if name in trial.user_attrs}
    facts = [f"{name} {value:.4g}" for name, value in known.items() if name in config.objectives or name == "score"]
    reason = [str(trial.user_attrs["reason"])] if "reason" in trial.user_attrs else []
    settings = [f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in trial.params.items()]
    return f"trial {trial.number}: {trial.state.name.lower()}: {', '.join(facts + reason)} ({', '.join(settings)})"


def best_trials(found: optuna.Study) -> list[FrozenTrial]:
    """The best trial, or the front from the cheapest on; none while no trial has come to its end."""
    if not found.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
        return []
    if len(found.directions) == 1:
        return [found.best_trial]
    return sorted(found.best_trials, key=lambda trial: next((trial.user_attrs[name] for name in LIMITS if name in trial.user_attrs), 0.0))


def write_outputs(study: Study, found: optuna.Study) -> None:
    """Write everything that a study leaves behind into its folder."""
    folder, config = study.config.folder, study.config
    trials = found.get_trials(deepcopy=False)
    write_text(folder / "config.yaml", yaml.safe_dump(_settings(config), sort_keys=False))
    write_text(folder / "trials.csv", to_csv(trials, config))
    best = best_trials(found)
    commands = _write_best(study, best)
    figures = []
    done = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    weights = importances(found, config)
    if done:
        cost = next((name for name in config.objectives if name != "score"), None)
        if cost is None:
            save_figure(history_figure(trials, study.task.metric, study.sign), folder / "figures" / "history")
            figures.append(("history", "The score of every trial, and the best so far"))
        else:
            save_figure(front_figure(trials, best, cost, study.task.metric), folder / "figures" / "pareto")
            figures.append(("pareto", f"Score against {cost} of every trial, and the front"))
    if weights:
        save_figure(importance_figure(weights), folder / "figures" / "importance")
        figures.append(("importance", "Share of each objective's variance that a setting explains (fANOVA)"))
    write_text(folder / "tune.md", _markdown(study, trials, best, weights, commands, figures))


def to_csv(trials: Sequence[FrozenTrial], config: TuneConfig) -> str:
    """A line for each trial: number, state, what was found, its settings."""
    names = list(dict.fromkeys(name for trial in trials for name in trial.params))
    lines = io.StringIO()
    writer = csv.writer(lines, lineterminator="\n")
    writer.writerow(["number", "state", *FACTS, *names])
    for trial in trials:
        facts = [trial.user_attrs.get(name, "") for name in FACTS]
        writer.writerow([trial.number, trial.state.name.lower(), *facts, *(trial.params.get(name, "") for name in names)])
    return lines.getvalue()


def _settings(config: TuneConfig) -> dict[str, Any]:
    """The study's settings as YAML holds them; a password in a URL stays out of files."""
    data = run_data(config)
    if config.storage is not None:
        from sqlalchemy.engine import make_url

        data["storage"] = make_url(config.storage).render_as_string(hide_password=True)
    return data


def _write_best(study: Study, best: Sequence[FrozenTrial]) -> dict[int, str]:
    """The runs of the best trials, as settings of ``adasearch run``; number -> command."""
    folder = study.config.folder
    is_one = study.config.has_one_objective
    shutil.rmtree(folder / "front", ignore_errors=True)
    commands = {}
    for trial in best:
        path = folder / "best.yaml" if is_one else folder / "front" / f"{trial.number:04d}.yaml"
        values = study.space.values_of(trial.params)
        config, space = study.space.run_of(values), study.space.space_of(values)
        if space != study.space.space:
            beside = path.with_name(f"{path.stem}-space.yaml")
            write_text(beside, yaml.safe_dump(space_data(space), sort_keys=False))
            config = dataclasses.replace(config, space=str(beside))
        config = dataclasses.replace(config, threads=study.config.threads, output_dir=str(folder / "runs" / f"{trial.number:04d}"))  # another best: another folder
        write_text(path, yaml.safe_dump(run_data(config), sort_keys=False))
        commands[trial.number] = f"adasearch run --config {path}"
    return commands


def _markdown(
    study: Study, trials: Sequence[FrozenTrial], best: Sequence[FrozenTrial], weights: dict[str, dict[str, float]],
    commands: dict[int, str], figures: Sequence[tuple[str, str]],
) -> str:  # fmt: skip
    config, task = study.config, study.task
    states = Counter(trial.state.name.lower() for trial in trials)
    seconds = sum(trial.user_attrs.get("seconds", 0.0) for trial in trials)
    here = hardware()
    seeds = "one seed" if len(config.trial_seeds) == 1 else f"the mean of {len(config.trial_seeds)} seeds"
    parts = [
        f"# {task.name}: a study of {len(counted(trials))} trials",
        f"{', '.join(f'{count} {state}' for state, count in sorted(states.items()))}; {format_seconds(seconds)} of work. "
        f"Objectives: {', '.join(config.objectives)}. Score: {metric_name(task.metric)} of {len(task.validation)} examples, {seeds}. "
        f"No example of the final score was looked at. Machine: {here['cpu']}, {here['cores_usable']} cores.",
        "## " + ("The best trial" if config.has_one_objective else "The front"),
        _table(best, config, task.metric) if best else "No trial came to its end.",
    ]
    if config.needs_latency and best:
        bench = config.bench
        length = min(bench.seq_lengths[0], config.max_seq_length)
        parts.append(f"Latency: the exported student of that shape, batch {bench.batch_sizes[0]}, {length} word pieces, {bench.threads} thread(s).")
    if commands:
        parts += [
            "A score that was chosen as the best of many is too high. These commands train on all training examples and score"
            " on examples that the study has not seen:",
            "```sh\n" + "\n".join(commands.values()) + "\n```",
        ]
    parts += [f"![{caption}](figures/{name}.svg)\n\n{caption}." for name, caption in figures]
    if weights:
        names = list(dict.fromkeys(name for shares in weights.values() for name in shares))
        header, rows = ["setting", *weights], [[name, *(f"{shares.get(name, 0.0):.0%}" for shares in weights.values())] for name in names]
        parts += ["## What mattered", markdown_table(header, rows, range(len(header)))]
    if reasons := [trial for trial in trials if "reason" in trial.user_attrs]:
        parts += ["## Not finished", "\n".join(f"- trial {t.number}, {t.state.name.lower()}: {t.user_attrs['reason']}" for t in reasons)]
    if task.notes:
        parts += ["## Notes", "\n".join(f"- {note}" for note in task.notes)]
    return "\n\n".join(parts) + "\n"


def _table(best: Sequence[FrozenTrial], config: TuneConfig, metric: str) -> str:
    shown = {"latency_ms": ("ms", format_ms), "macs": ("MACs", format_count), "params": ("parameters", format_count)}
    costs = [name for name in shown if all(name in trial.user_attrs for trial in best)]
    names = list(dict.fromkeys(name for trial in best for name in trial.params))
    head = ["trial", metric_name(metric), *(shown[name][0] for name in costs), "cells x width", *names]
    rows = [
        [
            str(trial.number), format_score(trial.user_attrs["score"], metric), *(shown[name][1](trial.user_attrs[name]) for name in costs),
            str(trial.user_attrs["shape"]), *(_value(trial.params.get(name, "")) for name in names),
        ]
        for trial in best
    ]  # fmt: skip
    return markdown_table(head, rows, range(len(head)))


def _value(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
