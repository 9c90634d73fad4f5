"""Hard-concrete gates: numbers in [0, 1] that are exactly 0 or 1 with some probability, and differentiable all the same.

Louizos et al. 2018, as CoFi (Xia et al. 2022) releases it. ``StructureGates`` puts them on the axes of an encoder.

Dimensions: S elements of a gate, N layers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from adasearch.errors import ConfigError
from adasearch.gates import Gate
from adasearch.structure import FAMILIES, Axes, GateValues, check_families


@dataclass(frozen=True)
class HardConcreteSettings:
    """The constants of the distribution; the defaults are CoFi's.

    Attributes:
        temperature: beta of the concrete distribution.
        low, high: ends of the interval it is stretched to before it is clipped to [0, 1].
        epsilon: how far uniform numbers and probabilities keep from 0 and 1.
        init_std: spread of the initial log alpha around its mean.
        least, most: alpha is clamped between them after each step, so that no gate is ever lost (P(open) 0.047 to 0.998).
        sharpness: of the deterministic values, sigmoid(sharpness * log alpha / beta). From FLOP (Wang et al. 2020).
    """

    temperature: float = 2 / 3
    low: float = -0.1
    high: float = 1.1
    epsilon: float = 1e-6
    init_std: float = 0.01
    least: float = 0.01
    most: float = 100.0
    sharpness: float = 0.8

    def __post_init__(self) -> None:
        wrong = {
            "temperature": self.temperature > 0, "low": self.low < 0, "high": self.high > 1, "epsilon": 0 < self.epsilon < 0.5,
            "init_std": self.init_std >= 0, "least": 0 < self.least < self.most, "sharpness": self.sharpness > 0,
        }  # fmt: skip
        for name, is_right in wrong.items():
            if not is_right:
                raise ConfigError(f"hard concrete: {name}: {getattr(self, name)} is out of range")


SETTINGS = HardConcreteSettings()
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
        settings: the constants.
    """

    def __init__(
        self, axis: str, size: int, *, init_mean: float = OPEN_MEAN, is_each: bool = False,
        settings: HardConcreteSettings = SETTINGS,
    ):  # fmt: skip
        super().__init__(axis)
        self.size, self.is_each, self.settings = size, is_each, settings
        self.temperature.fill_(settings.temperature)
        self.log_alpha_S = nn.Parameter(init_mean + settings.init_std * torch.randn(size))

    def forward(self) -> Tensor:
        """A sample while training, the deterministic values in eval, ones while frozen; (S,) in [0, 1]."""
        if self.is_frozen:
            return torch.ones_like(self.log_alpha_S)
        return self._draw() if self.training else self.deterministic()

    def sample(self) -> Tensor:
        """One draw z of every element, (S,) in [0, 1], differentiable in log alpha. Louizos et al. 2018, eq. 10-11.

        z = clip(s (high - low) + low, 0, 1) with s = sigmoid((ln u - ln(1 - u) + log alpha) / beta).
        """
        return self._draw()

    def _draw(self) -> Tensor:
        settings = self.settings
        u_S = torch.empty_like(self.log_alpha_S).uniform_(settings.epsilon, 1 - settings.epsilon)
        s_S = ((u_S.log() - (1 - u_S).log() + self.log_alpha_S) / self.temperature).sigmoid()
        return (s_S * (settings.high - settings.low) + settings.low).clamp(0, 1)

    def open_probability(self) -> Tensor:
        """P(z > 0) = sigmoid(log alpha - beta ln(-low / high)), (S,), differentiable. Louizos et al. 2018, eq. 12."""
        settings = self.settings
        p_S = (self.log_alpha_S - self.temperature * math.log(-settings.low / settings.high)).sigmoid()
        return p_S.clamp(settings.epsilon, 1 - settings.epsilon)

    def expected(self) -> Tensor:
        """The same, under the name that all gates have."""
        return self.open_probability()

    @torch.no_grad()
    def deterministic(self, *, is_hard: bool = False) -> Tensor:
        """The values without chance, (S,): the expected number of zeros is where the smallest values are.

        round(S - sum P) elements are 0 (``is_each``: those of P < 0.5), the others keep sigmoid(sharpness log alpha / beta):
        never quite 1, which is why they are folded into weights. ``is_hard``: they become 1.
        """
        p_S = self.open_probability()
        value_S = (self.settings.sharpness * self.log_alpha_S / self.temperature).sigmoid()
        kept_S = torch.ones_like(value_S)
        if self.is_each:
            kept_S[p_S < 0.5] = 0
        else:
            zeros = round(self.size - float(p_S.cpu().double().sum()))
            kept_S[value_S.argsort(stable=True)[:zeros]] = 0
        return kept_S if is_hard else value_S * kept_S

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
        """Edit in place, after each optimiser step: alpha back between ``least`` and ``most``."""
        self.log_alpha_S.clamp_(math.log(self.settings.least), math.log(self.settings.most))


class StructureGates(nn.Module):
    """One hard-concrete gate on each axis of an encoder, for the chosen families.

    Args:
        axes: of the encoder.
        families: of ``FAMILIES``: "heads", "neurons", "layers" (both kinds of sublayers), "hidden".
        neuron_drop: initial drop rate of neurons.
        settings: the constants of all of them.

    Raises ``ConfigError``.
    """

    def __init__(
        self, axes: Axes, families: Sequence[str] = FAMILIES, *, neuron_drop: float = NEURON_DROP,
        settings: HardConcreteSettings = SETTINGS,
    ):  # fmt: skip
        super().__init__()
        check_families(families)
        if not 0 < neuron_drop < 1:
            raise ConfigError(f"neuron_drop: {neuron_drop} is out of range; choices: between 0 and 1")
        self.families = tuple(name for name in FAMILIES if name in families)
        neuron_mean = math.log((1 - neuron_drop) / neuron_drop)

        def each_layer(name: str, sizes: list[int], mean: float) -> nn.ModuleList:
            return nn.ModuleList(
                HardConcrete(f"{n}.{name}", size, init_mean=mean, settings=settings) for n, size in enumerate(sizes)
            )

        has = set(families)
        self.heads = each_layer("heads", axes.heads, OPEN_MEAN) if "heads" in has else None
        self.neurons = each_layer("neurons", axes.neurons, neuron_mean) if "neurons" in has else None
        self.mha, self.ffn = (
            HardConcrete(name, axes.layers, is_each=True, settings=settings) if "layers" in has else None for name in ("mha", "ffn")
        )
        self.hidden = HardConcrete("hidden", axes.hidden, settings=settings) if "hidden" in has else None

    def gates(self) -> list[HardConcrete]:
        """All of them."""
        return [module for module in self.modules() if isinstance(module, HardConcrete)]

    def _values(self, question: str) -> GateValues:
        def ask(gate: HardConcrete | None) -> Tensor | None:
            return None if gate is None else getattr(gate, question)() if question else gate()

        def ask_all(gates: nn.ModuleList | None) -> list[Tensor] | None:
            return None if gates is None else [ask(gate) for gate in gates]

        return GateValues(ask(self.mha), ask(self.ffn), ask_all(self.heads), ask_all(self.neurons), ask(self.hidden))

    def forward(self) -> GateValues:
        """A sample while training, the deterministic values in eval; one draw serves a whole batch.

        Training calls this, not ``sample``: several processes draw alike by hooks on the gates' calls (``distributed``).
        """
        return self._values("")

    def sample(self) -> GateValues:
        """A sample of every gate, in eval too."""
        return self._values("sample")

    def open_probability(self) -> GateValues:
        """P(z > 0) of every element: what ``Axes.expected_params`` takes."""
        return self._values("open_probability")

    def deterministic(self) -> GateValues:
        """The values without chance: what ``shrink_encoder`` takes."""
        return self._values("deterministic")

    def clamp_(self) -> None:
        """Edit in place: every gate's ``clamp_``."""
        for gate in self.gates():
            gate.clamp_()

    def entropy(self) -> Tensor:
        """Mean entropy of all elements as a share of ln 2, 0 (decided) to 1 (open)."""
        sizes = [gate.size for gate in self.gates()]
        return sum(gate.entropy() * gate.size for gate in self.gates()) / max(sum(sizes), 1)
