"""Measuring how long an encoder takes by what is left of it: whole encoders of random structure, exported and timed.

Protocol: that of ``latency_bench``: never isolated kernels, all encoders of a group in turns, the least of several medians.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from adasearch.encoder import axes_of
from adasearch.encoder_latency import PARTS, EncoderLatencyTable, EncoderShape, part_counts
from adasearch.encoder_layers import EncoderConfig, EncoderForSequenceClassification, EncoderPreTrainedModel
from adasearch.errors import ConfigError
from adasearch.files import fingerprint, read_json, write_json
from adasearch.latency import MISS, Deployment, Lengths, interpolation, knots_for
from adasearch.latency_bench import VOCABULARY, fit_facts, fit_parts, time_models
from adasearch.model_inputs import positions_of
from adasearch.progress import Progress

GROUP = 12  # encoders that are timed in turns, and saved together
FIRST = 4  # of them are no random ones: everything, attention alone, feed-forward alone, hardly anything
DESIGN = 2  # to be raised when the encoders or the protocol change: what was measured otherwise is not kept


def shape_of(config: EncoderConfig) -> EncoderShape:
    """What the times of an encoder's remains depend on."""
    return EncoderShape(config.hidden_size, config.head_size, tuple(config.heads), tuple(config.neurons))


def random_structures(shape: EncoderShape, count: int, seed: int = 0) -> list[dict[str, Any]]:
    """``hidden_size``, ``heads`` and ``neurons`` of encoders that might be left of ``shape``, from all to nearly nothing.

    How much of the layers, heads, neurons and hidden dimensions is left is drawn once an encoder for each kind, and within
    an encoder each layer varies around it. The first few are fixed: the ends of what there is.
    """
    random, layers = np.random.default_rng(seed), range(len(shape.heads))
    nothing, one = [0] * len(shape.heads), [1, *[0] * (len(shape.heads) - 1)]
    fixed = [
        (shape.hidden, list(shape.heads), list(shape.neurons)), (shape.hidden, list(shape.heads), nothing),
        (shape.hidden, nothing, list(shape.neurons)), (max(1, shape.hidden // 8), one, one),
    ]  # fmt: skip
    found = [{"hidden_size": hidden, "heads": heads, "neurons": neurons} for hidden, heads, neurons in fixed]
    while len(found) < count:
        layers_left, heads_left, neurons_left = random.uniform(0.2, 1), random.uniform(0.1, 1), np.exp(random.uniform(np.log(0.01), 0))
        hidden = max(1, round(shape.hidden * random.uniform(0.2, 1)))

        def drawn(sizes: Sequence[int], left: float) -> list[int]:
            shares = np.clip(left * random.uniform(0.5, 1.5, len(sizes)), 0, 1)
            return [max(1, round(size * share)) if size and random.random() < layers_left else 0 for size, share in zip(sizes, shares)]

        heads, neurons = drawn(shape.heads, heads_left), drawn(shape.neurons, neurons_left)
        if any(heads[n] or neurons[n] for n in layers):
            found.append({"hidden_size": hidden, "heads": heads, "neurons": neurons})
    return found[:count]


def build_encoder_table(
    config: EncoderConfig, lengths: Sequence[int], *, output: Path, deployment: Deployment, networks: int = 36,
    progress: Progress | None = None,
) -> EncoderLatencyTable:  # fmt: skip
    """Measure the table of an unpruned encoder's kind and write it to ``output``; groups measured before (a kill) are kept.

    The single encoders' times lie beside it in ``<output>.measured.json``. Raises ``ConfigError`` for lengths that are none.
    """
    progress = progress or Progress()
    knots, most = tuple(sorted(set(lengths))), positions_of(config)
    if not knots or not 1 <= knots[0] <= knots[-1] <= most:
        raise ConfigError(f"latency.lengths: {list(lengths)}; choices: from 1 to {most} word pieces")
    shape, beside = shape_of(config), Path(output).with_suffix(".measured.json")
    structures = random_structures(shape, networks)
    key = fingerprint(dataclasses.asdict(deployment), dataclasses.asdict(shape), knots, DESIGN, structures)
    measured: list[list[float]] = read_json(beside)["ms"] if beside.exists() and read_json(beside).get("key") == key else []
    groups = range(len(measured), networks, GROUP)
    for start in groups:
        group = structures[start : start + GROUP]
        title = f"latency table, {start + 1} to {start + len(group)} of {networks}"
        if not start:
            measured += time_structures(config, group, knots, deployment, progress, title)
        else:  # the whole encoder is timed in every group: by it a machine that has become slower or faster is told
            anchor, *times = time_structures(config, [structures[0], *group], knots, deployment, progress, title)
            drift = np.array(anchor) / np.array(measured[0])
            measured += (np.array(times) / drift).tolist()
        write_json(beside, {"key": key, "structures": structures[: len(measured)], "ms": measured})
    table = fit_table(config, knots, deployment, structures, measured)
    write_json(Path(output), table.to_dict())
    return table


def time_structures(
    config: EncoderConfig, structures: Sequence[Mapping[str, Any]], lengths: Sequence[int], deployment: Deployment, progress: Progress,
    title: str,
) -> list[list[float]]:  # fmt: skip
    """Milliseconds of one call of encoders of random weights, for each at each length; they are timed in turns."""
    return time_models([partial(_encoder, config, structure) for structure in structures], lengths, deployment, progress, title)


def _encoder(config: EncoderConfig, structure: Mapping[str, Any]) -> EncoderForSequenceClassification:
    """An encoder of random weights; its word table is small, since looking up a row takes the same in a large one."""
    small = copy.deepcopy(config)
    small.vocab_size = min(config.vocab_size, VOCABULARY)
    for name, value in structure.items():
        setattr(small, name, value)
    return EncoderForSequenceClassification(small)


def fit_table(
    config: EncoderConfig, lengths: Sequence[int], deployment: Deployment, structures: Sequence[Mapping[str, Any]], measured: Sequence[Sequence[float]]
) -> EncoderLatencyTable:
    """The parts' times from encoders' times, each length by itself; ``fit`` from leaving out one random encoder at a time."""
    shape = shape_of(config)
    counts = np.array([_counts(structure, shape) for structure in structures], dtype=float)
    parts, errors = fit_parts(counts, np.array(measured), range(FIRST, len(structures)))
    return EncoderLatencyTable(deployment, shape, tuple(lengths), dict(zip(PARTS, parts.tolist())), fit_facts(len(structures), errors))


def _counts(structure: Mapping[str, Any], shape: EncoderShape) -> list[float]:
    sizes: dict[str, float] = {"hidden": float(structure["hidden_size"])}
    for n, (heads, neurons) in enumerate(zip(structure["heads"], structure["neurons"])):
        sizes |= {f"{n}.mha": float(heads > 0), f"{n}.heads": float(heads), f"{n}.ffn": float(neurons > 0), f"{n}.neurons": float(neurons)}
    return part_counts(sizes, shape)


def compare_encoder(
    table: EncoderLatencyTable, model: EncoderPreTrainedModel, lengths: Lengths, progress: Progress, target_ms: float | None = None
) -> dict[str, Any]:
    """Predicted and measured milliseconds of a real encoder of that structure, and whether it is a miss (beyond ``MISS``).

    What is timed has random weights: times do not depend on them. A miss, or a model slower than its target by more than
    that, is told as a warning.
    """
    config, knots = model.config, knots_for(lengths)
    structure = {"hidden_size": config.hidden_size, "heads": list(config.heads), "neurons": list(config.neurons)}
    predicted = float(table.at(lengths).predict(_sizes(model)))
    (times,) = time_structures(config, [structure], knots, table.deployment, progress, "measure the pruned encoder")
    measured = float(np.dot(interpolation(knots, lengths), times))
    error, warnings = predicted / measured - 1, []
    if abs(error) > MISS:
        warnings.append(
            f"latency: predicted {predicted:.3g} ms, measured {measured:.3g} ms ({table.deployment.describe()}): {error:+.0%} off, more than"
            f" {MISS:.0%}; the machine may not be as it was when the table was measured"
        )
    if target_ms is not None and measured > (1 + MISS) * target_ms:
        warnings.append(f"latency: the pruned encoder takes {measured:.3g} ms, its target is {target_ms:.3g} ms")
    for warning in warnings:
        progress.warning(warning)
    return {
        "target_ms": target_ms, "predicted_ms": predicted, "measured_ms": measured, "error": error, "is_miss": abs(error) > MISS,
        "warning": "; ".join(warnings) or None, **dataclasses.asdict(table.deployment),
    }  # fmt: skip


def _sizes(model: EncoderPreTrainedModel) -> dict[str, float]:
    return {name: float(size) for name, size in axes_of(model).expected_sizes().items()}
