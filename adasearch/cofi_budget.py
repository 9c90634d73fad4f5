"""CoFi's targets: a share of the parameters, or milliseconds on this machine by a table that is measured first."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import torch

from adasearch.budget import Budget
from adasearch.cofi_config import CofiConfig
from adasearch.encoder_latency import EncoderLatencyTable
from adasearch.encoder_latency_bench import build_encoder_table, shape_of
from adasearch.encoder_parts import EncoderConfig
from adasearch.encoder_problem import EncoderProblem
from adasearch.errors import ConfigError
from adasearch.hard_concrete import LEAST_OPEN
from adasearch.latency import Deployment, Lengths, knots_for, length_histogram
from adasearch.latency_bench import deployment_here
from adasearch.structure import Axes, GateValues


def open_table(config: CofiConfig, problem: EncoderProblem) -> tuple[EncoderLatencyTable, Lengths]:
    """The latency table of the unpruned encoder, read or measured first, and the lengths that the target is for.

    Raises ``ConfigError`` for a table of another machine, runtime or encoder, or one that ends before the texts, and for lengths that
    no example has.
    """
    asked = config.latency
    asked.check(problem.longest)
    lengths = length_histogram(asked.lengths or problem.train.tokens.lengths)
    here = deployment_here(asked.runtime, asked.threads, asked.batch_size)
    unpruned = problem.whole_config
    if asked.table:
        return _read_table(Path(asked.table), here, unpruned, lengths), lengths
    path = problem.cache / "encoder-latency.json"
    if path.exists():
        with suppress(ConfigError):  # left by an earlier start of other settings, which was refused for something else
            return _read_table(path, here, unpruned, lengths), lengths
    return build_encoder_table(unpruned, knots_for(lengths), output=path, deployment=here, networks=asked.networks, progress=problem.progress), lengths


def _read_table(path: Path, here: Deployment, unpruned: EncoderConfig, lengths: Lengths) -> EncoderLatencyTable:
    """A table that was measured so, of such an encoder, at such lengths. Raises ``ConfigError`` for any other."""
    table = EncoderLatencyTable.load(path)
    table.check(here, shape_of(unpruned), str(path))
    table.at(lengths)
    return table


def check_budgets(config: CofiConfig, problem: EncoderProblem, targets: Sequence[tuple[str, float]]) -> None:
    """Raise ``ConfigError`` for any of these targets that cannot be met; a latency table that is missing is measured here."""
    for kind, target in targets:
        table, lengths = open_table(config, problem) if kind == "latency" else (None, {})
        budget_for(config, problem.whole_axes, target, table, lengths)


def budget_for(config: CofiConfig, axes: Axes, target: float, table: EncoderLatencyTable | None, lengths: Lengths) -> Budget:
    """What is to be saved of an encoder. Raises ``ConfigError`` for what cannot be reached, and for milliseconds that need no pruning.

    Reached is what gates save by themselves, on average and ``sparsity_epsilon`` short of it at most, and what can be cut.
    """
    least, closed = _least(config, axes), _closed(config, axes)
    if table is None:
        budget = Budget(axes, target)
        most = min(float(budget.saved(least)), float(budget.saved(closed)) + config.sparsity_epsilon)
        if target > most:
            raise ConfigError(
                f"target_sparsity: {target:g}: of families {', '.join(config.families)} no more than {math.floor(1e3 * most) / 1e3:.3f} of the"
                f" encoder's parameters can be saved (every gate stays open with a probability of {LEAST_OPEN:.3f}); choices: a smaller target, or"
                " more families"
            )
        return budget
    latency = table.at(lengths)
    budget = Budget.of_time(axes, target, latency)
    whole_ms, least_ms, closed_ms = (float(budget.milliseconds(values)) for values in (GateValues(), least, closed))
    if not (least_ms := max(least_ms, closed_ms - config.sparsity_epsilon * whole_ms)) < target < whole_ms:
        raise ConfigError(
            f"target_latency_ms: {target:g}: the dense encoder takes {whole_ms:.4g} ms a call, and nearly nothing of it"
            f" {least_ms:.4g} ms ({table.deployment.describe()}); choices: between the two"
        )
    return budget


def _least(config: CofiConfig, axes: Axes) -> GateValues:
    """What stays whatever the gates say: a hidden dimension, and a neuron a layer where sublayers have no gate of their own (``fill_budget``)."""
    least = axes.ones(config.families).map(torch.zeros_like)
    if least.hidden_D is not None:
        least.hidden_D[0] = 1.0
    if least.ffn_N is None:
        for neurons in least.neurons or []:
            neurons[:1] = 1.0
    return least


def _closed(config: CofiConfig, axes: Axes) -> GateValues:
    """The probabilities of gates that are as closed as they can be: none is ever surer (``HardConcrete.clamp_``)."""
    return axes.ones(config.families).map(lambda tensor: torch.full_like(tensor, LEAST_OPEN))
