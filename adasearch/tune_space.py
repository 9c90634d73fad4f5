"""What a study tries: settings by their dotted names, each with a range or a list of values, as Optuna's distributions.

``space.*`` names fields of the search space, every other name a field of the run. Names are checked, and the ends of
every range and every value are tried on the checks of run and space, before anything is trained.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import Trial

from adasearch.architecture import Macro, Space
from adasearch.arguments import settings_fields
from adasearch.config import RunConfig, validate
from adasearch.errors import ConfigError
from adasearch.space import load_space, space_from_dict
from adasearch.strategies import find_strategy
from adasearch.tune_config import TuneConfig

GROUPS = ("search", "distill", "retrain", "transfer", "vocabulary")  # of a run's settings; all others are the study's own
SIZES = {"widths": 1, "cells": 2}  # lists in the space that may be written as one number, and how often it stands in them
RANGE_KEYS = ("low", "high", "log", "step")
Values = dict[str, Any]  # dotted name -> value


@dataclass(frozen=True)
class Parameter:
    """One setting that is tried. ``choices`` says what a label of a categorical distribution stands for."""

    name: str
    distribution: BaseDistribution
    choices: dict[Any, Any] | None = None

    def suggest(self, trial: Trial) -> Any:
        """The trial's value."""
        d = self.distribution
        if isinstance(d, CategoricalDistribution):
            return self.value_of(trial.suggest_categorical(self.name, d.choices))
        draw = trial.suggest_int if isinstance(d, IntDistribution) else trial.suggest_float
        return draw(self.name, d.low, d.high, step=d.step, log=d.log)

    def value_of(self, label: Any) -> Any:
        """The value that Optuna knows by this label."""
        return label if self.choices is None else self.choices[label]

    def labels_of(self, value: Any) -> list[Any]:
        """The label of a value, which may be None itself; empty where the value is not among those tried."""
        if self.choices is not None:
            value = _size(self.name, value)
            return [label for label, choice in self.choices.items() if (known := _size(self.name, choice)) == value and type(known) is type(value)]
        d = self.distribution
        is_within = isinstance(value, (int, float)) and not isinstance(value, bool) and d.low <= value <= d.high
        is_on_grid = is_within and (d.step is None or math.isclose((value - d.low) / d.step, round((value - d.low) / d.step)))
        return [value] if is_on_grid else []

    def probes(self) -> list[Any]:
        """Values by which its checks are tried: all choices, all sizes of a range in the space, both ends of any other range."""
        d = self.distribution
        if self.choices is not None:
            return list(self.choices.values())
        is_size = self.name.startswith("space.") and isinstance(d, IntDistribution)
        return list(range(d.low, d.high + 1, d.step)) if is_size else [d.low, d.high]


@dataclass(frozen=True)
class StudySpace:
    """All parameters of a study, and what a trial's run is with their values."""

    parameters: tuple[Parameter, ...]
    base: RunConfig
    space: Space

    def suggest(self, trial: Trial) -> Values:
        """A value for every parameter."""
        return {parameter.name: parameter.suggest(trial) for parameter in self.parameters}

    def values_of(self, params: dict[str, Any]) -> Values:
        """The values behind Optuna's labels."""
        return {parameter.name: parameter.value_of(params[parameter.name]) for parameter in self.parameters}

    def first(self) -> dict[str, Any]:
        """Labels of the run as it was given, so far as it lies among what is tried: a trial to be compared with."""
        known = {**dict(_leaves(self.base)), **{f"space.{key}": _plain(value) for key, value in _leaves(self.space)}}
        return {parameter.name: label for parameter in self.parameters for label in parameter.labels_of(known[parameter.name])[:1]}

    def run_of(self, values: Values) -> RunConfig:
        """The run with these values. Raises ``ConfigError`` where they do not go together."""
        config = self.base
        for name, value in values.items():
            if not name.startswith("space."):
                config = _with(config, name, value)
        if any(values.get(name) for name in ("search.target_macs", "search.target_params")):
            config = _with(config, "search.efficiency", "constraint")  # a target of MACs or parameters means nothing without
        validate(config)
        return config

    def space_of(self, values: Values) -> Space:
        """The search space with these values. Raises ``ConfigError`` where they do not go together."""
        changes = {name.removeprefix("space."): value for name, value in values.items() if name.startswith("space.")}
        return changed_space(self.space, changes) if changes else self.space


def read_space(config: TuneConfig) -> StudySpace:
    """The study's space. Raises ``ConfigError`` naming the parameter, what is wrong with it and the choices."""
    space = load_space(config.space)
    asked = dict(_flat(config.tune)) or default_space(config, space)
    if config.warm_start is not None and (name := next((name for name in asked if name.startswith("space.")), None)):
        raise ConfigError(
            f"tune.{name}: warm_start {config.warm_start} is of one space, trials of others cannot start from it;"
            " choices: no tune.space.*, or no warm_start"
        )
    kinds = tunable(config)
    found = StudySpace(tuple(_parameter(name, spec, kinds) for name, spec in asked.items()), config.base(), space)
    for parameter in found.parameters:
        for value in parameter.probes():
            try:
                (found.space_of if parameter.name.startswith("space.") else found.run_of)({parameter.name: value})
            except ConfigError as error:
                raise ConfigError(f"tune.{parameter.name}: {error}") from error
    return found


def default_space(config: TuneConfig, space: Space) -> dict[str, Any]:
    """What is tried where nothing is said: the usual levers, as far as they have an effect in this run."""
    asked: dict[str, Any] = {
        "distill.gamma": {"low": 0.3, "high": 1.0},
        "retrain.learning_rate": {"low": 5e-4, "high": 8e-3, "log": True},
    }
    if config.distill.loss == "kl":  # the temperature is of softened probabilities
        asked["distill.temperature"] = {"low": 1.0, "high": 8.0, "log": True}
    if config.architecture:
        return asked
    asked["search.learning_rate"] = {"low": 5e-4, "high": 8e-3, "log": True}
    if not config.search.is_constrained and find_strategy(config.search).weighs_cost:
        asked["search.beta"] = {"low": 0.5, "high": 32.0, "log": True}
    if config.warm_start is not None:  # it is of one space
        return asked
    if len(space.widths) > 1:
        asked["space.widths"] = [list(space.widths), *([width] for width in space.widths)]
    if space.cells[0] < space.cells[1]:
        asked["space.cells"] = [list(space.cells), *([n, n] for n in range(space.cells[0], space.cells[1] + 1))]
    return asked


def tunable(config: TuneConfig) -> dict[str, Any]:
    """Dotted name -> type of every setting that may differ between trials."""
    kinds = {
        name: kind for name, kind in settings_fields(RunConfig)
        if name.partition(".")[0] in GROUPS and "." in name
        and not (name.startswith("search.latency_") and name != "search.latency_target_ms")
    }  # fmt: skip
    for prefix, cls in (("space.", Space), ("space.macro.", Macro)):
        kinds |= {f"{prefix}{name}": kind for name, kind in typing.get_type_hints(cls).items() if name not in ("name", "macro")}
    if config.architecture:
        kinds = {name: kind for name, kind in kinds.items() if not name.startswith(("search.", "space."))}
    return kinds


def changed_space(space: Space, changes: Values) -> Space:
    """The space with fields, and ``macro.*`` fields, changed; checked as one from a file."""
    data = space_data(space)
    for name, value in changes.items():
        place = data["macro"] if name.startswith("macro.") else data
        place[name.removeprefix("macro.")] = _size(f"space.{name}", value)
    return space_from_dict(data, where=f"space {space.name}")


def _size(name: str, value: Any) -> Any:
    """A value as the space has it: a size that is written as one number as the list that it means."""
    times = SIZES.get(name.removeprefix("space.")) if name.startswith("space.") else None
    return [value] * times if times and type(value) is int else value


def space_data(space: Space) -> dict[str, Any]:
    """A space as its YAML file would hold it."""
    return {name: _plain(value) for name, value in dataclasses.asdict(space).items() if value != ()}


def run_data(config: RunConfig) -> dict[str, Any]:
    """A run as its YAML file would hold it: absent settings are left out."""

    def known(part: dict[str, Any]) -> dict[str, Any]:
        return {key: known(value) if isinstance(value, dict) else value for key, value in part.items() if value is not None}

    return known(dataclasses.asdict(config))


def _parameter(name: str, spec: Any, kinds: dict[str, Any]) -> Parameter:
    where = f"tune.{name}"
    if name not in kinds:
        raise _unknown(name, kinds)
    plain = [part for part in (kinds[name], *typing.get_args(kinds[name])) if isinstance(part, type)]
    is_size = name.removeprefix("space.") in SIZES
    if isinstance(spec, dict):
        if not is_size and not {int, float} & set(plain):
            raise ConfigError(f"{where}: {spec} is a range, this setting is no number; choices: a list of values")
        return Parameter(name, _range(where, spec, is_int=is_size or float not in plain))
    if not isinstance(spec, list) or not spec:
        raise ConfigError(f"{where}: {spec!r} is neither a range nor a list; choices: {{low: 0.5, high: 16, log: true}} or [0.5, 0.8, 0.9]")
    for value in spec:
        if not _fits(value, kinds[name], plain) and not (is_size and type(value) is int):
            raise ConfigError(f"{where}: {value!r} does not fit; expected {_in_words(kinds[name])}")
    values = [float(value) if float in plain and type(value) is int else value for value in spec]
    labels = [json.dumps(value) if isinstance(value, (list, dict)) else value for value in values]
    if len(set(map(repr, labels))) < len(labels):
        raise ConfigError(f"{where}: {spec} names a value twice")
    return Parameter(name, CategoricalDistribution(labels), dict(zip(labels, values)))


def _range(where: str, spec: dict[str, Any], *, is_int: bool) -> BaseDistribution:
    """A range as a distribution; raises ``ConfigError`` for what is none."""
    unknown = [key for key in spec if key not in RANGE_KEYS]
    if unknown or not {"low", "high"} <= set(spec):
        what = f"unknown key {unknown[0]!r}" if unknown else f"{spec} has no {'low' if 'low' not in spec else 'high'}"
        raise ConfigError(f"{where}: {what}; choices: low, high, and log or step")
    for key in ("low", "high", "step"):
        value = spec.get(key, 1)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) or (is_int and value != int(value)):
            raise ConfigError(f"{where}.{key}: {value!r} is no {'whole ' if is_int else ''}number (YAML reads 1e-3 as text, 1.0e-3 as a number)")
    low, high, step, log = spec["low"], spec["high"], spec.get("step"), spec.get("log", False)
    if not isinstance(log, bool):
        raise ConfigError(f"{where}.log: {log!r} does not fit; expected true or false")
    if low > high:
        raise ConfigError(f"{where}: low {low} is above high {high}")
    if log and low <= 0:
        raise ConfigError(f"{where}: low {low} has no logarithm; choices: a low above 0, or log: false")
    if log and step is not None:
        raise ConfigError(f"{where}: log and step do not go together; choices: one of the two")
    if step is not None and step <= 0:
        raise ConfigError(f"{where}.step: {step} is out of range; choices: above 0")
    if step is not None and not math.isclose((high - low) / step, round((high - low) / step), abs_tol=1e-9):
        last = low + math.floor((high - low) / step) * step
        raise ConfigError(f"{where}: steps of {step} from low {low} do not meet high {high}; choices: high {last:g} or {last + step:g}, another step")
    if is_int:
        return IntDistribution(int(low), int(high), log=log, step=1 if step is None else int(step))
    return FloatDistribution(float(low), float(high), log=log, step=step)


def _unknown(name: str, kinds: dict[str, Any]) -> ConfigError:
    every = [key for key, _ in settings_fields(RunConfig)]
    if name in every:
        groups = ", ".join(dict.fromkeys(key.partition(".")[0] for key in kinds))
        return ConfigError(f"tune.{name}: is the same for all trials of this study; choices: settings of {groups}, or a study for each value")
    near = difflib.get_close_matches(name, kinds, 3)
    group = [key for key in kinds if key.startswith(f"{name.partition('.')[0]}.")]
    hint = f" (did you mean {' or '.join(map(repr, near))}?)" if near else ""
    return ConfigError(f"tune.{name}: unknown setting{hint}; choices: {', '.join(group or sorted({key.partition('.')[0] + '.*' for key in kinds}))}")


def _fits(value: Any, kind: Any, plain: list[type]) -> bool:
    """Whether a value is of a field's type; whole numbers are numbers, truth values are not."""
    sequences = [part for part in (kind, *typing.get_args(kind)) if typing.get_origin(part) in (list, tuple)]
    if isinstance(value, list):
        elements = {typing.get_args(part)[0] for part in sequences}
        return any(all(type(one) is element for one in value) for element in elements)
    return type(value) in plain or (type(value) is int and float in plain)


def _in_words(kind: Any) -> str:
    names = {list: "a list", tuple: "a list", type(None): "null", bool: "true or false"}
    return " or ".join(names.get(typing.get_origin(part) or part, getattr(part, "__name__", str(part))) for part in _parts(kind))


def _parts(kind: Any) -> tuple[Any, ...]:
    is_union = typing.get_args(kind) and typing.get_origin(kind) not in (list, tuple)
    return typing.get_args(kind) if is_union else (kind,)


def _flat(part: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted names: ``search: {beta: ...}`` says the same as ``search.beta: ...``."""
    for key, value in part.items():
        if isinstance(value, dict) and value and not set(value) & set(RANGE_KEYS):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _leaves(settings: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key in dataclasses.fields(settings):
        value = getattr(settings, key.name)
        if dataclasses.is_dataclass(value):
            yield from _leaves(value, f"{prefix}{key.name}.")
        else:
            yield f"{prefix}{key.name}", value


def _with(settings: Any, name: str, value: Any) -> Any:
    """A copy with one field, named by its path, changed."""
    head, _, rest = name.partition(".")
    return dataclasses.replace(settings, **{head: _with(getattr(settings, head), rest, value) if rest else value})


def _plain(value: Any) -> Any:
    """Tuples as lists, all the way down."""
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    return [_plain(part) for part in value] if isinstance(value, (list, tuple)) else value
