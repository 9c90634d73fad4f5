"""The targets of a search: the latency table they need, whether they can be reached, and whether they were met.

Folders named ``search_folder`` are ``search/`` of a run.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from adasearch.architecture import Architecture, Space
from adasearch.errors import ConfigError, ModelError
from adasearch.files import read_json
from adasearch.latency import MISS, LatencyModel, LatencyTable, Lengths, interpolation, knots_for, length_histogram
from adasearch.latency_bench import build_table, deployment_here, time_runtimes
from adasearch.member_cost import cheapest_cost
from adasearch.progress import Progress
from adasearch.runtimes import load_runtime
from adasearch.search_config import SearchConfig
from adasearch.shrink import fastest_member
from adasearch.student import AdasearchConfig
from adasearch.tokens import Examples

TOLERANCE = 0.05  # two measurements of one network differ by a few hundredths


def target_lengths(settings: SearchConfig, labelled: Examples) -> dict[int, float]:
    """The lengths that the latency target is for: the setting's, else those of the task's labelled texts."""
    return length_histogram(settings.latency_lengths or labelled.tokens.lengths)


def table_path(settings: SearchConfig, search_folder: Path) -> Path:
    """Where a run's latency table lies."""
    return Path(settings.latency_table) if settings.latency_table else search_folder / "latency.json"


def open_table(
    settings: SearchConfig, space: Space, lengths: Lengths, search_folder: Path, progress: Progress
) -> LatencyTable | None:
    """The table that is named, or the one of a search with a latency target, measured first where it is not there; else None.

    Raises ``ConfigError`` for a table of another deployment or space, or one that ends before the task's texts.
    """
    if settings.latency_target_ms is None and settings.latency_table is None:
        return None
    path = table_path(settings, search_folder)
    here = deployment_here(settings.latency_runtime, settings.latency_threads, settings.latency_batch_size)
    if settings.latency_table is None and not path.exists():
        return build_table(space, knots_for(lengths), output=path, deployment=here, progress=progress)
    table = LatencyTable.load(path)
    table.check_deployment(here, str(path))
    table.check_space(space, str(path))
    table.knot_weights(lengths)
    return table


def check_table(settings: SearchConfig, space: Space, priced: Architecture | None = None) -> None:
    """Raise ``ConfigError`` for a latency table that cannot be used, as far as it can be known without the task's texts.

    ``priced`` is an architecture whose latency will be asked for, of this space or another.
    """
    if settings.latency_target_ms is None and settings.latency_table is None:
        return
    here = deployment_here(settings.latency_runtime, settings.latency_threads, settings.latency_batch_size)
    if settings.latency_table is not None:
        table = LatencyTable.load(Path(settings.latency_table))
        table.check_deployment(here, settings.latency_table)
        table.check_space(space, settings.latency_table)
        if priced is not None:
            table.predict(priced, table.lengths[0])


def known_latency(settings: SearchConfig, labelled: Examples, run_folder: Path) -> LatencyModel | None:
    """What a run's search read its latency target from, or a table that was named without one; else None."""
    path = table_path(settings, run_folder / "search")
    if (settings.latency_target_ms is None and settings.latency_table is None) or not path.exists():
        return None
    return LatencyTable.load(path).at(target_lengths(settings, labelled))


def compare_prediction(
    table: LatencyTable, model_dir: Path, lengths: int | Lengths, progress: Progress | None = None
) -> dict[str, Any]:
    """Predicted and measured milliseconds of a saved student in the table's runtime, for texts of those lengths.

    Keys: predicted_ms, measured_ms, error (predicted / measured - 1), is_miss (beyond ``MISS``, also told as a
    warning), warning (that text, or None) and the deployment's. Raises ``ConfigError`` where the table is of another
    deployment, ``ModelError`` where the folder holds no student or no graph.
    """
    progress = progress or Progress()
    lengths = {lengths: 1.0} if isinstance(lengths, int) else lengths
    where = table.deployment
    table.check_deployment(deployment_here(where.runtime, where.threads, where.batch_size), "latency table")
    found = read_json(Path(model_dir) / "config.json") if (Path(model_dir) / "config.json").is_file() else {}
    if found.get("model_type") != AdasearchConfig.model_type:
        raise ModelError(f"{model_dir}: holds no student of ours, so that nothing is predicted for it")
    architecture = Architecture.from_dict(found["architecture"], where=f"{model_dir}/config.json")
    predicted = table.predict(architecture, lengths)
    knots = knots_for(lengths)
    systems = {"student": load_runtime(where.runtime, Path(model_dir), where.threads)}
    times = time_runtimes(systems, knots, where, progress, "compare the predicted latency")
    measured = float(np.dot(interpolation(knots, lengths), times["student"]))
    error, warning = predicted / measured - 1, miss(table, predicted, measured)
    if warning is not None:
        progress.warning(warning)
    shares = {"shortest": min(lengths), "mean": sum(n * share for n, share in lengths.items()), "longest": max(lengths)}
    return {
        "predicted_ms": predicted, "measured_ms": measured, "error": error, "is_miss": warning is not None, "warning": warning,
        **dataclasses.asdict(where), "lengths": shares,
    }  # fmt: skip


def miss(table: LatencyTable, predicted_ms: float, measured_ms: float) -> str | None:
    """What is to be said of a prediction further off than ``MISS``; None of any other."""
    error = predicted_ms / measured_ms - 1
    if abs(error) <= MISS:
        return None
    return (
        f"latency: predicted {predicted_ms:.3g} ms, measured {measured_ms:.3g} ms ({table.deployment.describe()}): {error:+.0%} off,"
        f" more than {MISS:.0%}; the machine may not be as it was when the table was measured: {table.rebuild}"
    )


def compare_run(settings: SearchConfig, labelled: Examples, run_folder: Path, progress: Progress) -> dict[str, Any] | None:
    """``compare_prediction`` of a run's exported student, and ``target_ms``, for the report; ``warning`` is to be shown.

    A student slower than its target by more than ``TOLERANCE`` is a warning too. None for a run without a latency target
    and, with a warning, where the machine or the runtime is no longer the one that the table was measured on.
    """
    path = table_path(settings, run_folder / "search")
    target = settings.latency_target_ms
    if target is None or not path.exists():
        return None
    table = LatencyTable.load(path)
    here = deployment_here(settings.latency_runtime, settings.latency_threads, settings.latency_batch_size)
    try:
        table.check_deployment(here, str(path))
    except ConfigError as error:  # the search is done: this is no reason to lose its report
        progress.warning(f"the predicted latency is not compared with the student's: {error}")
        return None
    facts = compare_prediction(table, run_folder / "student", target_lengths(settings, labelled), progress)
    if facts["measured_ms"] > (1 + TOLERANCE) * target:
        slow = f"latency: the student takes {facts['measured_ms']:.3g} ms, its target is {target:.3g} ms"
        progress.warning(slow)
        facts["warning"] = "; ".join(filter(None, (slow, facts["warning"])))
    return {"target_ms": target, **facts}


def check_targets(
    settings: SearchConfig, space: Space, length: float, student: AdasearchConfig, latency: LatencyModel | None
) -> None:
    """Raise ``ConfigError`` for a target below what any member of the space costs; of milliseconds where ``latency`` tells them."""
    if not settings.is_constrained:
        return
    if settings.latency_target_ms is not None and latency is not None:
        fastest = fastest_member(space, latency)
        least = latency.predict(fastest)
        if settings.latency_target_ms < least:
            cell = ", ".join(f"{edge.source}:{edge.operation}" for node in fastest.cells[0] for edge in node)
            raise ConfigError(
                f"search.latency_target_ms: {settings.latency_target_ms:g} ms cannot be reached in space {space.name!r}; its fastest"
                f" member takes {least:.4g} ms ({fastest.depth} cell(s) of width {fastest.width}: {cell});"
                f" choices: {least:.4g} or more, or another space"
            )
    cheapest = cheapest_cost(space, length, student)
    for kind, target in (("macs", settings.target_macs), ("params", settings.target_params)):
        if target and target < getattr(cheapest, kind):
            raise ConfigError(
                f"search.target_{kind}: {target:,.0f} cannot be reached in space {space.name!r} at {length:.1f} tokens a text;"
                f" choices: {getattr(cheapest, kind):,.0f} or more, or another space"
            )
