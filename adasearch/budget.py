"""What an encoder under gates saves, on average and when its gates are cut, and how a target is met exactly."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor

from adasearch.encoder_latency import EncoderLatency
from adasearch.hard_concrete import StructureGates
from adasearch.structure import Axes, GateValues

CLOSE = 0.005  # a share saved as near as this to its target has met it
FINEST_FIRST = ("neurons", "hidden_D", "heads", "mha_N", "ffn_N")  # families of parts, those that save least first


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

    def describe(self, share: float) -> str:
        """A share that is saved, in words: percent and, of a call's time, the milliseconds that are left of it."""
        if self.latency is None:
            return f"{share:.1%}"
        return f"{share:.1%} of a call's time ({(1 - share) * float(self.milliseconds(GateValues())):.3g} ms left)"

    def milliseconds(self, values: GateValues) -> Tensor:
        """Predicted milliseconds of a call."""
        assert self.latency is not None, "this budget is of parameters"
        return self.latency.predict(self.axes.expected_sizes(values))


@torch.no_grad()
def fill_budget(gates: StructureGates, budget: Budget, target: float, importance: list[Tensor] | None = None) -> GateValues:
    """The gates' deterministic values, changed as little as it takes for the true share saved to be the target.

    Expected and true share differ: a sublayer that is open with 0.6 counts as 0.6 on average, and is there. Where too little
    is saved, the least certain of the open parts are closed, of whatever family; where too much, the most certain of the
    closed neurons are opened, or parts of every family where neurons alone cannot reach the target within ``CLOSE``. Neurons,
    the finest of all, do the rest (``fill_neurons``). Whatever stays open keeps the value that it was trained with. Gates at a
    clamp are equally certain: of those the finest parts go first, the least important neurons before others (``_closing_order``).

    Args:
        gates: of the encoder; they stay as they are.
        importance: of each layer's neurons, (F,): which of equally certain ones are closed last and opened first.
    """
    values = gates.deterministic()

    def missed(found: GateValues) -> float:
        return abs(float(budget.saved(found.kept())) - target)

    def filled(changed: GateValues) -> GateValues:
        return fill_neurons(changed, gates, budget, target, importance)

    is_short = float(budget.saved(values.kept())) < target
    alone = filled(values)
    if not is_short and missed(alone) <= CLOSE:
        return alone
    candidates = [filled(changed) for changed in _by_certainty(values, gates, budget, target, is_short, importance)]
    met = [found for found in candidates if missed(found) <= CLOSE]
    if not met:
        return min([alone, *candidates], key=missed)
    return min(met, key=lambda found: _most_certain_closed(values, found, gates))


def _flat(values: GateValues) -> Tensor:
    """All of them in a row, in the order of the fields."""
    return torch.cat(values.tensors())


def _unflat(flat: Tensor, like: GateValues) -> GateValues:
    """The row in the shapes of ``like``."""
    parts = iter(flat.split([len(tensor) for tensor in like.tensors()]))
    return like.map(lambda tensor: next(parts))


def _opened(gates: StructureGates) -> GateValues:
    """What parts are worth when they are opened: their own value, or 1 where they were closed more often than not.

    A value near 0 would be folded into weights that fine-tuning cannot bring back: a part that takes room and does nothing.
    """
    open_share = _flat(gates.open_probability())
    soft = _flat(gates.soft())
    return _unflat(torch.where(open_share < 0.5, torch.ones_like(soft), soft), gates.open_probability())


def _closing_order(log_alpha: GateValues, importance: list[Tensor] | None) -> Tensor:
    """Places in the row of these parts, the first to be closed first: the least certain.

    Of equally certain ones the finest go first, and of those the least important neurons: by their places alone all sublayers would
    go before the first neuron, and all neurons of one layer before those of the next.
    """
    named = ((name, tensor) for name, tensors in log_alpha.families().items() for tensor in tensors)
    coarse = torch.cat([torch.full_like(tensor, FINEST_FIRST.index(name)) for name, tensor in named])
    weight = log_alpha.map(torch.zeros_like)
    if importance is not None:
        weight.neurons = importance
    order = _flat(weight).argsort(stable=True)
    for key in (coarse, _flat(log_alpha)):  # stable: the last key counts most
        order = order[key[order].argsort(stable=True)]
    return order


def _without_last(order: Tensor, like: GateValues) -> Tensor:
    """The order without each layer's last neuron and the last hidden dimension in it, which stay.

    Neurons alone take no sublayer away, and without a dimension there is no encoder.
    """
    none = like.map(lambda tensor: torch.full_like(tensor, -1))
    groups = [torch.full_like(neurons, n) for n, neurons in enumerate(like.neurons)]
    hidden_D = None if like.hidden_D is None else torch.full_like(like.hidden_D, len(groups))
    group = _flat(dataclasses.replace(none, neurons=groups, hidden_D=hidden_D))
    may = torch.ones_like(order, dtype=torch.bool)
    for n in range(len(groups) + 1):
        may[(group[order] == n).nonzero().flatten()[-1:]] = False
    return order[may]


def _by_certainty(
    values: GateValues, gates: StructureGates, budget: Budget, target: float, is_short: bool, importance: list[Tensor] | None
) -> list[GateValues]:
    """The values with as many parts closed (opened), the least (most) certain first, as it takes to cross the target, and one fewer."""
    now, opened, order = _flat(values), _flat(_opened(gates)), _closing_order(gates.log_alpha(), importance)
    order = order[(now[order] != 0) == is_short]
    order = _without_last(order, values) if is_short else order.flip(0)

    def changed(count: int) -> GateValues:
        flat = now.clone()
        flat[order[:count]] = 0.0 if is_short else opened[order[:count]]
        return _unflat(flat, values)

    low, high = 0, len(order)
    while low < high:  # the fewest changes after which the share is on the other side
        middle = (low + high) // 2
        if (float(budget.saved(changed(middle).kept())) >= target) == is_short:
            high = middle
        else:
            low = middle + 1
    return [changed(count) for count in sorted({max(low - 1, 0), low})]


def _most_certain_closed(before: GateValues, after: GateValues, gates: StructureGates) -> float:
    """The largest log alpha of what is open in ``before`` and closed in ``after``; -inf where nothing is."""
    closed = (_flat(before) != 0) & (_flat(after) == 0)
    return float(_flat(gates.log_alpha()).masked_fill(~closed, -torch.inf).max())


@torch.no_grad()
def fill_neurons(
    values: GateValues, gates: StructureGates, budget: Budget, target: float, importance: list[Tensor] | None = None
) -> GateValues:
    """The values with as many neurons closed, or opened, as it takes to save the target, or as near to it as they can.

    The least certain are closed until the target is reached, the least important of equally certain ones first; or, where more
    than that is saved, the most certain of the closed ones opened as long as it still is, the most important first. A sublayer
    that is closed stays so, and one neuron stays in every other.
    """
    assert values.neurons is not None and gates.neurons is not None, "neurons are what is closed or opened"
    sizes = [len(item) for item in values.neurons]
    opened, now = torch.cat(_opened(gates).neurons), torch.cat(values.neurons)
    may_change = torch.cat([torch.full_like(item, has) != 0 for item, has in zip(values.neurons, values.kept().ffn_N)])
    is_short = float(budget.saved(values.kept())) < target
    order = _closing_order(GateValues(neurons=gates.log_alpha().neurons), importance)
    order = order[may_change[order] & ((now[order] != 0) == is_short)]
    order = _without_last(order, GateValues(neurons=values.neurons)) if is_short else order.flip(0)

    def flipped(count: int) -> GateValues:
        chosen = order[:count]
        flat = now.index_fill(0, chosen, 0.0) if is_short else now.index_copy(0, chosen, opened[chosen])
        return dataclasses.replace(values, neurons=list(flat.split(sizes)))

    low, high = 0, len(order)
    while low < high:  # the fewest to close that reach the target, or the most to open that still do
        middle = (low + high + (not is_short)) // 2
        reaches = float(budget.saved(flipped(middle).kept())) >= target
        if is_short:
            low, high = (low, middle) if reaches else (middle + 1, high)
        else:
            low, high = (middle, high) if reaches else (low, middle - 1)
    return flipped(low)
