"""What can be known of a study before any work: all that is asked of a run, and whether every value that is tried can be used.

The run as it was given must be one that ``adasearch run`` takes. A value that no trial could use is refused here, or all
of its trials would be stopped one by one after the preparation.
"""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path

from adasearch.architecture import Architecture, Space
from adasearch.config import RunConfig
from adasearch.errors import AdasearchError, ConfigError
from adasearch.inherit_layers import PREFIX, inherited_operations
from adasearch.latency import timed_shape
from adasearch.latency_target import check_table
from adasearch.pipeline import check, check_saving, check_settings
from adasearch.search_config import without_latency
from adasearch.starts import check_starts
from adasearch.strategies import find_strategy
from adasearch.tasks import Task
from adasearch.tune_config import TuneConfig
from adasearch.tune_space import Parameter, StudySpace, Values, read_space


def check_request(config: TuneConfig) -> StudySpace:
    """The part of the checks that reads no data and leaves no file; what is tried. Raises ``ConfigError``."""
    space = read_space(config)
    check_settings(_asked_alone(_shared_run(config), space))
    _check_strategies(space)
    if _reads_table(space):
        _check_timed_shape(space)
    return space


def check_data(config: TuneConfig, space: StudySpace) -> Task:
    """The part that reads data, teacher, warm start and latency table; the task. Raises ``ConfigError``, ``DataError`` or ``ModelError``."""
    run = _shared_run(config)
    cache = Path(run.output_dir) / "cache"
    untimed = dataclasses.replace(run.search, latency_table=None)  # of the table everything that is tried is asked below
    task, _ = check(_asked_alone(dataclasses.replace(run, search=untimed), space), cache)
    for parameter in space.parameters:
        if parameter.name.startswith("space.") or parameter.name == "vocabulary.kind":
            _check_starts(parameter, space, run, task, cache)
    widest = widest_space(space, is_pair=task.is_pair)
    if any(parameter.name in ("space.operations", "space.pair_operations") for parameter in space.parameters):  # else ``check`` has asked
        check_saving(widest)
    if not run.architecture:
        check_table(run.search, widest)
    return task


def widest_space(space: StudySpace, *, is_pair: bool) -> Space:
    """A space with every width, depth and operation that a trial may have; pair operations are among them for pairs."""
    operations = [*_tried(space, "operations"), *(_tried(space, "pair_operations") if is_pair else [])]
    fewest, most = zip(*_tried(space, "cells"))
    never = set.intersection(*map(set, _tried(space, "never_derived")))
    return dataclasses.replace(
        space.space,
        operations=tuple(dict.fromkeys(itertools.chain(*operations))),
        pair_operations=(),
        never_derived=tuple(sorted(never)),
        cells=(min(fewest), max(most)),
        widths=tuple(dict.fromkeys(itertools.chain(*_tried(space, "widths")))),
    )


def may_inherit(space: StudySpace) -> bool:
    """Whether a trial's search or student may have layers of the teacher."""
    if space.base.architecture:
        return any(name.startswith(PREFIX) for name in Architecture.load(Path(space.base.architecture)).operations)
    return bool(inherited_operations(widest_space(space, is_pair=True)))


def _asked_alone(run: RunConfig, space: StudySpace) -> RunConfig:
    """The run as ``check`` is asked of it: where targets in milliseconds are tried and it has none, without what they are for."""
    is_tried = any(parameter.name == "search.latency_target_ms" for parameter in space.parameters)
    return dataclasses.replace(run, search=without_latency(run.search)) if is_tried and run.search.latency_target_ms is None else run


def _shared_run(config: TuneConfig) -> RunConfig:
    """The run as it was given, with the study's preparation for its folder."""
    return dataclasses.replace(config.base(), output_dir=str(config.folder / "preparation"))


def _tried(space: StudySpace, name: str) -> list[tuple]:
    """What a field of the search space, one that is a list, is in the trials."""
    parameter = next((p for p in space.parameters if p.name == f"space.{name}"), None)
    shapes = [space.space] if parameter is None else [space.space_of({parameter.name: value}) for value in parameter.probes()]
    return [getattr(shape, name) for shape in shapes]


def _check_strategies(space: StudySpace) -> None:
    """Raise ``ConfigError`` for a value with which the search has no strategy and mode among those tried."""
    partners = [p for p in space.parameters if p.name in ("search.strategy", "search.mode")]
    for parameter in space.parameters:
        others = [[(p.name, value) for value in p.probes()] for p in partners if p is not parameter]
        for value in parameter.probes() if parameter.name.startswith("search.") else []:
            errors = [_refused(space, {parameter.name: value, **dict(chosen)}) for chosen in itertools.product(*others)]
            if all(errors):
                raise ConfigError(f"tune.{parameter.name}: {errors[0]}") from errors[0]


def _refused(space: StudySpace, values: Values) -> ConfigError | None:
    """Why a search with these values is refused; None where it is not."""
    try:
        find_strategy(space.run_of(values).search)
    except ConfigError as error:
        return error
    return None


def _reads_table(space: StudySpace) -> bool:
    """Whether a search of the study reads a latency table."""
    search, names = space.base.search, [parameter.name for parameter in space.parameters]
    is_asked = search.latency_target_ms is not None or search.latency_table is not None or "search.latency_target_ms" in names
    return is_asked and not space.base.architecture


def _check_timed_shape(space: StudySpace) -> None:
    """Raise ``ConfigError`` where trials differ in what one latency table cannot tell apart."""
    for parameter in space.parameters:
        for value in parameter.probes() if parameter.name.startswith("space.") else []:
            if timed_shape(space.space_of({parameter.name: value})) != timed_shape(space.space):
                raise ConfigError(
                    f"tune.{parameter.name}: {value!r} needs a latency table of its own, and all trials of a study read one; choices:"
                    " space.widths, space.cells, space.operations, space.macro.dropout, a study for each value (--space), or no"
                    " search.latency_target_ms and no search.latency_table"
                )


def _check_starts(parameter: Parameter, space: StudySpace, run: RunConfig, task: Task, cache: Path) -> None:
    """``check_starts`` with each of the parameter's values."""
    for value in parameter.probes():
        one = {parameter.name: value}
        shape = space.space_of(one)
        try:
            check_starts(dataclasses.replace(space.run_of(one), output_dir=run.output_dir), shape, shape.for_task(is_pair=task.is_pair), cache)
        except AdasearchError as error:
            raise type(error)(f"tune.{parameter.name}: {error}") from error
