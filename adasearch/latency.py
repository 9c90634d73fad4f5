"""How long an architecture takes on one machine: a measured table as plain data, and what it predicts.

The time of a whole network is a sum: the frame (embeddings, read-out, the call itself), so much for every cell, so much
for the operation on every edge, each at the network's width. The parts are fitted to times of whole exported networks
(``latency_bench.py``): isolated kernels mislead, since runtimes fuse, cache and have a price per call. Between two
lengths of the table times are interpolated linearly.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from adasearch.architecture import Architecture, Macro, Space
from adasearch.errors import ConfigError

TABLE_VERSION = 1
MISS = 0.15  # a prediction further off than this is said aloud (the project's promise)

Lengths = Mapping[int, float]  # length in word pieces -> share of the texts; the shares sum to 1


@dataclass(frozen=True)
class Deployment:
    """What a latency hangs on besides the network: processor, runtime and its version, threads, texts a call, precision."""

    cpu: str
    runtime: str
    runtime_version: str
    threads: int
    batch_size: int
    precision: str = "fp32"

    def describe(self) -> str:
        """In words, for messages."""
        return f"{self.runtime} {self.runtime_version}, {self.threads} thread(s), batch {self.batch_size}, {self.precision}"


def length_histogram(lengths: Iterable[int]) -> dict[int, float]:
    """Shares of the lengths of texts, shortest first."""
    found, counts = np.unique(np.fromiter(lengths, dtype=np.int64), return_counts=True)
    return {int(length): float(count) / float(counts.sum()) for length, count in zip(found, counts)}


def knots_for(lengths: Lengths) -> tuple[int, ...]:
    """Lengths to measure at so that interpolation serves the given ones: powers of two, and the longest text's own."""
    if len(lengths) == 1:
        return tuple(lengths)
    longest, total, short = max(lengths), 0.0, min(lengths)
    for length in sorted(lengths):
        short, total = length, total + lengths[length]
        if total >= 0.05:  # shorter texts are extrapolated to
            break
    powers = [2**n for n in range(2, 24) if 2 ** (n + 1) > short and 2**n < longest]
    return tuple(dict.fromkeys([*(powers or [min(lengths)]), longest]))  # one knot alone serves its own length only


def interpolation(knots: Sequence[int], lengths: Lengths) -> list[float]:
    """Weights of the (ascending) knots such that the weighted times are the mean over ``lengths``; they sum to 1.

    Between knots times run along straight lines; outside of them the nearest line is continued.
    """
    if len(knots) == 1:
        return [1.0]
    known, weights = np.array(knots, dtype=float), np.zeros(len(knots))
    for length, share in lengths.items():
        left = min(max(int(np.searchsorted(known, length)) - 1, 0), len(known) - 2)
        right_share = (length - known[left]) / (known[left + 1] - known[left])
        weights[left] += share * (1 - right_share)
        weights[left + 1] += share * right_share
    return weights.tolist()


def interpolation_within(knots: Sequence[int], lengths: Lengths, where: str, otherwise: str) -> list[float]:
    """``interpolation``, which raises ``ConfigError`` beyond the longest knot, where attention would grow faster than any
    line, and where there is no line. The error begins with ``where`` and ends with ``otherwise``."""
    if max(lengths) > knots[-1] or (len(knots) == 1 and set(lengths) != set(knots)):
        raise ConfigError(
            f"{where}: measured at {list(knots)} word pieces, asked for {min(lengths)} to {max(lengths)};"
            f" choices: lengths within, or {otherwise}"
        )
    return interpolation(knots, lengths)


@dataclass(frozen=True)
class LatencyModel:
    """A table read at one distribution of lengths: milliseconds a call of every part, by width."""

    frame_ms: dict[int, float]
    cell_ms: dict[int, float]
    operation_ms: dict[str, dict[int, float]]

    def predict(self, architecture: Architecture) -> float:
        """Milliseconds of one call. Raises ``ConfigError`` for a width or an operation that was not measured."""
        width = architecture.width
        if width not in self.frame_ms:
            raise ConfigError(f"latency table: width {width} was not measured; measured: {sorted(self.frame_ms)}")
        unknown = sorted(set(architecture.operations) - set(self.operation_ms))
        if unknown:
            raise ConfigError(f"latency table: {unknown} were not measured; measured: {', '.join(sorted(self.operation_ms))}")
        edges = sum(self.operation_ms[name][width] for name in architecture.operations)
        return self.frame_ms[width] + architecture.depth * self.cell_ms[width] + edges


@dataclass(frozen=True)
class LatencyTable:
    """Measured milliseconds of the parts of a space's networks: ``frame_ms[width][i]`` and so on at ``lengths[i]``.

    ``fit`` says from how many networks they come and how far predictions of networks left out of the fit were off.
    """

    deployment: Deployment
    space: str
    macro: Macro
    nodes: int
    edges_per_node: int
    lengths: tuple[int, ...]
    frame_ms: dict[int, list[float]]
    cell_ms: dict[int, list[float]]
    operation_ms: dict[str, dict[int, list[float]]]
    fit: dict[str, Any] = field(default_factory=dict)
    version: int = TABLE_VERSION

    @property
    def rebuild(self) -> str:
        """The command that measures such a table; where a space's file lies no table knows."""
        lengths, where = " ".join(map(str, self.lengths)), self.deployment
        return (
            f"adasearch bench --build_lut --space {self.space} --lengths {lengths} --batch_size {where.batch_size}"
            f" --threads {where.threads} --runtime {where.runtime} --output FILE"
            " (a space of your own: --space its YAML file)"
        )

    def knot_weights(self, lengths: Lengths) -> list[float]:
        """``interpolation_within`` the table's lengths."""
        return interpolation_within(self.lengths, lengths, "latency table", f"rebuild: {self.rebuild}")

    def at(self, lengths: Lengths) -> LatencyModel:
        """The table at a distribution of lengths; no part takes less than nothing."""
        weights = np.array(self.knot_weights(lengths))

        def mean(times: Mapping[int, Sequence[float]]) -> dict[int, float]:
            return {width: max(0.0, float(weights @ np.array(row))) for width, row in times.items()}

        operations = {name: mean(times) for name, times in self.operation_ms.items()}
        return LatencyModel(mean(self.frame_ms), mean(self.cell_ms), operations)

    def predict(self, architecture: Architecture, lengths: int | Lengths) -> float:
        """Milliseconds of one call of texts of a length, or on average over a distribution of lengths."""
        return self.at({lengths: 1.0} if isinstance(lengths, int) else lengths).predict(architecture)

    def check_deployment(self, here: Deployment, where: str) -> None:
        """Raise ``ConfigError`` naming what differs and how to rebuild, unless the table was measured as ``here`` says."""
        if different := differing(dataclasses.asdict(self.deployment), dataclasses.asdict(here)):
            table = dataclasses.replace(self, deployment=here)
            raise ConfigError(f"{where}: a latency table of another deployment ({different}); rebuild: {table.rebuild}")

    def check_space(self, space: Space, where: str) -> None:
        """Raise ``ConfigError`` unless every member of the space can be predicted."""
        missing = sorted(set(derivable(space)) - set(self.operation_ms)) + sorted(set(space.widths) - set(self.frame_ms))
        if timed_shape(space) != timed_shape(self) or missing:
            what = f"lacks {missing}" if missing else "has cells or a macro shape of another kind"
            table = dataclasses.replace(self, space=space.name)
            raise ConfigError(f"{where}: the latency table of space {self.space!r} {what}; rebuild: {table.rebuild}")

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; widths become strings."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: Any, *, where: str) -> LatencyTable:
        """Inverse of ``to_dict``. Raises ``ConfigError`` naming ``where`` and what does not fit."""
        if not isinstance(data, dict) or data.get("version") != TABLE_VERSION:
            found = data.get("version") if isinstance(data, dict) else type(data).__name__
            raise ConfigError(f"{where}: no latency table of version {TABLE_VERSION} (found {found!r}); rebuild it: adasearch bench --build_lut")
        try:
            table = cls(
                **{
                    **data,
                    "deployment": Deployment(**data["deployment"]),
                    "macro": Macro(**data["macro"]),
                    "lengths": tuple(int(length) for length in data["lengths"]),
                    **{key: _by_width(data[key]) for key in ("frame_ms", "cell_ms")},
                    "operation_ms": {name: _by_width(times) for name, times in data["operation_ms"].items()},
                }
            )
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            raise ConfigError(f"{where}: the latency table cannot be read ({type(error).__name__}: {error})") from error
        for times in (table.frame_ms, table.cell_ms, *table.operation_ms.values()):
            for width, row in times.items():
                if len(row) != len(table.lengths) or set(times) != set(table.frame_ms) or not np.all(np.array(row) >= 0):
                    raise ConfigError(f"{where}: width {width}: {row} are no times at {list(table.lengths)} word pieces")
        return table

    @classmethod
    def load(cls, path: Path) -> LatencyTable:
        """Read from JSON. Raises ``ConfigError`` when the file is absent, is no JSON or does not fit."""
        return cls.from_dict(load_table(path, "choices: a file of adasearch bench --build_lut"), where=str(path))


def load_table(path: Path, advice: str) -> Any:
    """The JSON of a latency table. Raises ``ConfigError`` that ends with ``advice`` when the file is absent or no JSON."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ConfigError(f"{path}: no latency table can be read ({error}); {advice}") from error


def differing(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> str:
    """What is otherwise here (``ours``) than where a table was measured, in words; "" where nothing is."""
    return "; ".join(f"{key} {theirs[key]!r} there, {ours[key]!r} here" for key in ours if theirs[key] != ours[key])


def timed_shape(part: Space | LatencyTable) -> tuple[Macro, int, int]:
    """What all networks of one table have in common; dropout takes no time, since nothing is dropped in use."""
    return dataclasses.replace(part.macro, dropout=0.0), part.nodes, part.edges_per_node


def derivable(space: Space) -> list[str]:
    """The operations that a member of the space may have, those for pairs included."""
    return [name for name in (*space.operations, *space.pair_operations) if name not in space.never_derived]


def _by_width(times: Mapping[str, Sequence[float]]) -> dict[int, list[float]]:
    return {int(width): [float(ms) for ms in row] for width, row in times.items()}
