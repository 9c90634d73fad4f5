"""Hard-concrete gates: numbers in [0, 1] that are exactly 0 or 1 with some probability, and differentiable all the same.

Louizos et al. 2018, as CoFi (Xia et al. 2022) releases it. ``StructureGates`` puts them on the axes of an encoder.

Dimensions: S elements of a gate, N layers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from adasearch.errors import ConfigError
from adasearch.gates import Gate
from adasearch.structure import FAMILIES, Axes, GateValues, check_families


# CoFi's, but for the last
TEMPERATURE = 2 / 3  # beta of the concrete distribution
LOW, HIGH = -0.1, 1.1  # the interval that it is stretched to before it is clipped to [0, 1]
EPSILON = 1e-6  # how far uniform numbers and probabilities keep from 0 and 1
INIT_STD = 0.01  # of the initial log alpha around its mean
LEAST, MOST = 0.01, 100.0  # alpha is clamped between them after each step, so that no gate is ever lost (P(open) 0.047 to 0.998)
LEAST_OPEN = 1 / (1 + (-LOW / HIGH) ** TEMPERATURE / LEAST)  # P(open) at the lower clamp, 0.047: no gate is ever surer to be closed
SHARPNESS = 0.8  # of the deterministic values, sigmoid(SHARPNESS * log alpha / beta). From FLOP (Wang et al. 2020)
OPEN_MEAN = 10.0  # initial log alpha of heads, sublayers and hidden dimensions: as good as open
NEURON_DROP = 0.5  # initial drop rate of neurons as released, ln((1 - p) / p) = 0; "mostly a typo, harmless" (its author)


class HardConcrete(Gate):
    """A gate on each of ``size`` elements of ``axis``.

    Args:
        axis: what it stands on, for logs.
        size: S.
        init_mean: mean of the initial log alpha.
        is_each: whether each element is decided for itself (open when P >= 0.5: sublayers), instead of the expected number
            of them together.
        fewest: elements that are never closed by the deterministic values, where ``is_each`` is not.
    """

    def __init__(self, axis: str, size: int, *, init_mean: float = OPEN_MEAN, is_each: bool = False, fewest: int = 0):
        super().__init__(axis)
        self.size, self.is_each, self.fewest = size, is_each, fewest
        self.temperature.fill_(TEMPERATURE)
        self.log_alpha_S = nn.Parameter(init_mean + INIT_STD * torch.randn(size))

    def forward(self) -> Tensor:
        """A sample while training, the deterministic values in eval, ones while frozen; (S,) in [0, 1].

        A sample, differentiable in log alpha: z = clip(s (high - low) + low, 0, 1) with
        s = sigmoid((ln u - ln(1 - u) + log alpha) / beta). Louizos et al. 2018, eq. 10-11.
        """
        if self.is_frozen:
            return torch.ones_like(self.log_alpha_S)
        if not self.training:
            return self.deterministic()
        u_S = torch.empty_like(self.log_alpha_S).uniform_(EPSILON, 1 - EPSILON)
        s_S = ((u_S.log() - (1 - u_S).log() + self.log_alpha_S) / self.temperature).sigmoid()
        return (s_S * (HIGH - LOW) + LOW).clamp(0, 1)

    def open_probability(self) -> Tensor:
        """P(z > 0) = sigmoid(log alpha - beta ln(-low / high)), (S,), differentiable. Louizos et al. 2018, eq. 12."""
        p_S = (self.log_alpha_S - self.temperature * math.log(-LOW / HIGH)).sigmoid()
        return p_S.clamp(EPSILON, 1 - EPSILON)

    def expected(self) -> Tensor:
        """The same, under the name that all gates have."""
        return self.open_probability()

    @torch.no_grad()
    def deterministic(self) -> Tensor:
        """The values without chance, (S,): the expected number of zeros is where the smallest values are.

        round(S - sum P) elements are 0, but for the ``fewest`` (``is_each``: those of P < 0.5), the others keep
        sigmoid(sharpness log alpha / beta): never quite 1, which is why they are folded into weights.
        """
        p_S = self.open_probability()
        value_S = self.soft()
        kept_S = torch.ones_like(value_S)
        if self.is_each:
            kept_S[p_S < 0.5] = 0
        else:
            zeros = round(self.size - float(p_S.cpu().double().sum()))
            kept_S[value_S.argsort(stable=True)[: min(zeros, self.size - self.fewest)]] = 0
        return value_S * kept_S

    def soft(self) -> Tensor:
        """The values without chance and without zeros, (S,): sigmoid(sharpness log alpha / beta)."""
        return (SHARPNESS * self.log_alpha_S / self.temperature).sigmoid()

    def decide(self) -> list[int]:
        """Indices of the elements that are kept."""
        return self.deterministic().nonzero().flatten().tolist()

    def entropy(self) -> Tensor:
        """Mean entropy of open or closed as a share of ln 2; 0 for a gate of no elements."""
        if not self.size:
            return self.log_alpha_S.new_zeros(())
        p_S = self.open_probability()
        return -(p_S * p_S.log() + (1 - p_S) * (1 - p_S).log()).mean() / math.log(2)

    @torch.no_grad()
    def clamp_(self) -> None:
        """Edit in place, after each optimiser step: alpha back between ``LEAST`` and ``MOST``."""
        self.log_alpha_S.clamp_(math.log(LEAST), math.log(MOST))


class StructureGates(nn.Module):
    """One hard-concrete gate on each axis of an encoder, for the chosen families.

    Args:
        axes: of the encoder.
        families: of ``FAMILIES``: "heads", "neurons", "layers" (both kinds of sublayers), "hidden".
        neuron_drop: initial drop rate of neurons.

    Raises ``ConfigError``.
    """

    def __init__(self, axes: Axes, families: Sequence[str] = FAMILIES, *, neuron_drop: float = NEURON_DROP):
        super().__init__()
        check_families(families)
        if not 0 < neuron_drop < 1:
            raise ConfigError(f"neuron_drop: {neuron_drop} is out of range; choices: between 0 and 1")
        self.families = tuple(name for name in FAMILIES if name in families)
        neuron_mean = math.log((1 - neuron_drop) / neuron_drop)

        def each_layer(name: str, sizes: list[int], mean: float) -> nn.ModuleList:
            return nn.ModuleList(HardConcrete(f"{n}.{name}", size, init_mean=mean) for n, size in enumerate(sizes))

        has = set(families)
        self.heads = each_layer("heads", axes.heads, OPEN_MEAN) if "heads" in has else None
        self.neurons = each_layer("neurons", axes.neurons, neuron_mean) if "neurons" in has else None
        self.mha, self.ffn = (
            HardConcrete(name, axes.layers, is_each=True) if "layers" in has else None for name in ("mha", "ffn")
        )
        self.hidden = HardConcrete("hidden", axes.hidden, fewest=1) if "hidden" in has else None  # without a dimension there is no encoder

    def gates(self) -> list[HardConcrete]:
        """All of them."""
        return [module for module in self.modules() if isinstance(module, HardConcrete)]

    def _values(self, ask: Callable[[HardConcrete], Tensor]) -> GateValues:
        def one(gate: HardConcrete | None) -> Tensor | None:
            return None if gate is None else ask(gate)

        def each(gates: nn.ModuleList | None) -> list[Tensor] | None:
            return None if gates is None else [ask(gate) for gate in gates]

        return GateValues(one(self.mha), one(self.ffn), each(self.heads), each(self.neurons), one(self.hidden))

    def forward(self) -> GateValues:
        """A sample while training, the deterministic values in eval; one draw serves a whole batch."""
        return self._values(lambda gate: gate())

    def open_probability(self) -> GateValues:
        """P(z > 0) of every element: what ``Axes.expected_params`` takes."""
        return self._values(HardConcrete.open_probability)

    def deterministic(self) -> GateValues:
        """The values without chance: what ``shrink_encoder`` takes."""
        return self._values(HardConcrete.deterministic)

    def soft(self) -> GateValues:
        """The values without chance and without zeros."""
        return self._values(HardConcrete.soft)

    def log_alpha(self) -> GateValues:
        """How certain it is that an element is kept: log alpha, the larger the more."""
        return self._values(lambda gate: gate.log_alpha_S)

    def clamp_(self) -> None:
        """Edit in place: every gate's ``clamp_``."""
        for gate in self.gates():
            gate.clamp_()
