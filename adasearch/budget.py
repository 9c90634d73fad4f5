"""What an encoder under gates saves, on average and when its gates are cut, and how a target is met exactly."""

from __future__ import annotations

import copy
import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor

from adasearch.encoder_latency import EncoderLatency
from adasearch.hard_concrete import StructureGates
from adasearch.structure import Axes, GateValues

CLOSE = 0.005  # a share saved as near as this to its target has met it
FURTHEST, HALVINGS = 30.0, 40  # how far gates' log alpha (at most 4.6 when clamped) is moved, and how finely


@dataclass(frozen=True)
class Budget:
    """What is saved by what is left: a share of the prunable parameters or, with ``latency``, of a call's time.

    ``target`` is the share to be saved.
    """

    axes: Axes
    target: float
    latency: EncoderLatency | None = None

    @classmethod
    def of_time(cls, axes: Axes, target_ms: float, latency: EncoderLatency) -> Budget:
        """At most ``target_ms`` a call."""
        return cls(axes, 1.0 - target_ms / float(latency.predict(axes.expected_sizes())), latency)

    def saved(self, values: GateValues) -> Tensor:
        """The share saved under probabilities, or under values of 0 and 1; differentiable, a scalar."""
        if self.latency is None:
            return self.axes.sparsity(values)
        return 1.0 - self.milliseconds(values) / self.milliseconds(GateValues())

    def milliseconds(self, values: GateValues) -> Tensor:
        """Predicted milliseconds of a call."""
        assert self.latency is not None, "this budget is of parameters"
        return self.latency.predict(self.axes.expected_sizes(values))


@torch.no_grad()
def fill_budget(gates: StructureGates, budget: Budget, target: float) -> GateValues:
    """The gates' deterministic values, changed as little as it takes for the true share saved to be the target.

    Expected and true share differ: a sublayer that is open with 0.6 counts as 0.6 on average, and is there. First the least
    certain neurons are closed or opened (``fill_neurons``). Where that misses the target by more than ``CLOSE``, the
    log alpha of all gates is moved by one number first, up or down as far as it takes for the share to cross the target.
    """

    def missed(values: GateValues) -> float:
        return abs(float(budget.saved(values.kept())) - target)

    filled = fill_neurons(gates.deterministic(), gates, budget, target)
    if missed(filled) <= CLOSE:
        return filled
    shifted = (fill_neurons(moved.deterministic(), moved, budget, target) for moved in _crossing(gates, budget, target))
    return min([filled, *shifted], key=missed)


def _crossing(gates: StructureGates, budget: Budget, target: float) -> list[StructureGates]:
    """The gates moved by the two neighbouring amounts between which the true share saved crosses the target."""

    def moved(amount: float) -> StructureGates:
        copied = copy.deepcopy(gates)
        for gate in copied.gates():
            gate.log_alpha_S += amount
        return copied

    low, high = -FURTHEST, FURTHEST  # more is saved at the lower end
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        if float(budget.saved(moved(middle).deterministic().kept())) >= target:
            low = middle
        else:
            high = middle
    return [moved(low), moved(high)]


@torch.no_grad()
def fill_neurons(values: GateValues, gates: StructureGates, budget: Budget, target: float) -> GateValues:
    """The values with as many neurons closed, or opened, as it takes to save the target, or as near to it as they can.

    Neurons are the finest of all parts. The least certain are closed until the target is reached; or, where more than that is
    saved, the most certain of the closed ones opened as long as it still is. A sublayer that is closed stays so, and one
    neuron stays in every other.
    """
    assert values.neurons is not None and gates.neurons is not None, "neurons are what is closed or opened"
    sizes = [len(item) for item in values.neurons]
    soft = [gate.soft() for gate in gates.neurons]
    may_change = [torch.full_like(gate.log_alpha_S, has) != 0 for gate, has in zip(gates.neurons, values.kept().ffn_N)]
    for gate, may in zip(gates.neurons, may_change):
        if gate.size:
            may[gate.log_alpha_S.argmax()] = False
    is_left = torch.cat([item != 0 for item in values.neurons])
    is_short = float(budget.saved(values.kept())) < target
    order = torch.cat([gate.log_alpha_S for gate in gates.neurons]).argsort(descending=not is_short, stable=True)
    order = order[torch.cat(may_change)[order] & (is_left[order] == is_short)]

    def flipped(count: int) -> GateValues:
        left = is_left.clone()
        left[order[:count]] = not is_short
        return dataclasses.replace(values, neurons=[item * left for item, left in zip(soft, left.split(sizes))])

    low, high = 0, len(order)
    while low < high:  # the fewest to close that reach the target, or the most to open that still do
        middle = (low + high + (not is_short)) // 2
        reaches = float(budget.saved(flipped(middle).kept())) >= target
        if is_short:
            low, high = (low, middle) if reaches else (middle + 1, high)
        else:
            low, high = (middle, high) if reaches else (low, middle - 1)
    return flipped(low)
