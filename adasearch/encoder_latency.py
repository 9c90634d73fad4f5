"""How long an encoder takes by what is left of it, on one machine: a measured table as plain data, and its predictions.

The time of a call is a sum over parts: the call itself, so much for each sublayer that exists, each head and each neuron;
each of these has a fixed share and one that grows with the hidden dimensions left. All of it is linear in the parts'
numbers, so that expected numbers give an expected time, and the same formula serves numbers and tensors.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from adasearch.errors import ConfigError
from adasearch.latency import Deployment, Lengths, differing, interpolation_within, load_table

TABLE_VERSION = 1
UNITS = ("call", "attention", "head", "ffn", "neuron")
PARTS = tuple(name for unit in UNITS for name in (unit, f"{unit} x hidden"))  # milliseconds of each in the table
Number = Any  # a float, or a torch tensor, which this floor does not know


@dataclass(frozen=True)
class EncoderShape:
    """The unpruned encoder that a table is of: what its times depend on."""

    hidden: int
    head_size: int
    heads: tuple[int, ...]
    neurons: tuple[int, ...]


def part_counts(sizes: Mapping[str, Number], shape: EncoderShape) -> list[Number]:
    """How often each of ``PARTS`` occurs, given the (expected) sizes of the axes by name: see ``structure.Axes``."""
    share = sizes["hidden"] / shape.hidden
    layers = range(len(shape.heads))
    numbers = [1.0, *(sum(sizes[f"{n}.{axis}"] for n in layers) for axis in ("mha", "heads", "ffn", "neurons"))]
    return [count for number in numbers for count in (number, number * share)]


@dataclass(frozen=True)
class EncoderLatency:
    """A table read at one distribution of lengths: milliseconds of each of ``PARTS``."""

    shape: EncoderShape
    part_ms: tuple[float, ...]

    def predict(self, sizes: Mapping[str, Number]) -> Number:
        """Milliseconds of one call; differentiable in the sizes."""
        return sum(count * ms for count, ms in zip(part_counts(sizes, self.shape), self.part_ms))


@dataclass(frozen=True)
class EncoderLatencyTable:
    """Measured milliseconds of the parts of one kind of encoder: ``part_ms[part][i]`` at ``lengths[i]``.

    ``fit`` says from how many encoders they come and how far predictions of encoders left out of the fit were off.
    """

    deployment: Deployment
    shape: EncoderShape
    lengths: tuple[int, ...]
    part_ms: dict[str, list[float]]
    fit: dict[str, Any] = field(default_factory=dict)
    version: int = TABLE_VERSION

    def at(self, lengths: Lengths) -> EncoderLatency:
        """The table at a distribution of lengths. Raises ``ConfigError`` for lengths beyond it."""
        weights = interpolation_within(self.lengths, lengths, "latency.table", "another table (without --latency.table it is measured)")
        return EncoderLatency(self.shape, tuple(max(0.0, sum(w * ms for w, ms in zip(weights, self.part_ms[part]))) for part in PARTS))

    def check(self, here: Deployment, shape: EncoderShape, where: str) -> None:
        """Raise ``ConfigError`` naming what differs unless the table was measured here, so, and of such an encoder."""
        theirs = {**dataclasses.asdict(self.deployment), **dataclasses.asdict(self.shape)}
        ours = {**dataclasses.asdict(here), **dataclasses.asdict(shape)}
        if different := differing(theirs, ours):
            raise ConfigError(f"{where}: a latency table of something else ({different}); choices: leave --latency.table out to measure one")

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: Any, *, where: str) -> EncoderLatencyTable:
        """Inverse of ``to_dict``. Raises ``ConfigError`` naming ``where`` and what does not fit."""
        if not isinstance(data, dict) or data.get("version") != TABLE_VERSION:
            found = data.get("version") if isinstance(data, dict) else type(data).__name__
            raise ConfigError(f"{where}: no encoder latency table of version {TABLE_VERSION} (found {found!r}); leave it out to measure one")
        try:
            shape = EncoderShape(**{key: tuple(value) if isinstance(value, list) else value for key, value in data["shape"].items()})
            part_ms = {part: [float(ms) for ms in data["part_ms"][part]] for part in PARTS}
            lengths = tuple(int(length) for length in data["lengths"])
            table = cls(Deployment(**data["deployment"]), shape, lengths, part_ms, data["fit"])
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            raise ConfigError(f"{where}: the latency table cannot be read ({type(error).__name__}: {error})") from error
        wrong = [part for part, row in part_ms.items() if len(row) != len(lengths) or min(row, default=0.0) < 0]
        if wrong or not lengths:
            raise ConfigError(f"{where}: {wrong or 'no lengths'}: no times at {list(lengths)} word pieces")
        return table

    @classmethod
    def load(cls, path: Path) -> EncoderLatencyTable:
        """Read from JSON. Raises ``ConfigError`` when the file is absent, is no JSON or does not fit."""
        return cls.from_dict(load_table(path, "leave --latency.table out to measure one"), where=str(path))
