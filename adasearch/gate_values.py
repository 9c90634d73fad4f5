"""Values on what can be taken out of an encoder: heads, neurons, sublayers, hidden dimensions.

A value is a factor z of an element's output, a probability that the element is kept, or whether it is. What is absent is a
matter of structure, not of outputs: a sublayer is gone, its LayerNorm and biases too, when its own gate is exactly 0 or when
those of all its heads (neurons) are, even where biases would still put something out.

Dimensions: N layers, D hidden, H heads of a layer, F neurons of a layer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from adasearch.errors import ConfigError, ModelError


def is_open(*gates: Tensor | None) -> bool:
    """Whether a sublayer exists under its gates (its own, its heads' or neurons'): none has only exact zeros. None: open."""
    return all(gate is None or bool((gate != 0).any()) for gate in gates)


@dataclass
class GateValues:
    """One number on each element of each gated axis; None where a family is not gated, which counts as all 1.

    Attributes: ``mha_N`` and ``ffn_N`` of the sublayers, (N,); ``heads`` N times (H,); ``neurons`` N times (F,);
    ``hidden_D`` (D,). Layers without a sublayer have an empty tensor, and an entry in ``mha_N``/``ffn_N`` that does nothing.
    """

    mha_N: Tensor | None = None
    ffn_N: Tensor | None = None
    heads: list[Tensor] | None = None
    neurons: list[Tensor] | None = None
    hidden_D: Tensor | None = None

    def map(self, function: Callable[[Tensor], Tensor]) -> GateValues:
        """The same with a function applied to every tensor."""

        def apply(value: Tensor | list[Tensor] | None) -> Any:
            return [function(item) for item in value] if isinstance(value, list) else value if value is None else function(value)

        return GateValues(*(apply(getattr(self, field.name)) for field in fields(self)))

    def detach(self) -> GateValues:
        """The same values without their gradients' history."""
        return self.map(Tensor.detach)

    def tensors(self) -> list[Tensor]:
        """All of them, in the order of the fields."""
        return [tensor for tensors in self.families().values() for tensor in tensors]

    def families(self) -> dict[str, list[Tensor]]:
        """The tensors of each family that is gated, by field: one of all layers, or one a layer."""
        return {name: value if isinstance(value, list) else [value] for name, value in vars(self).items() if value is not None}

    def kept(self) -> GateValues:
        """What is physically left under these values, 0 or 1: heads (neurons) of a closed sublayer are gone, a sublayer
        without any is too. Families that are not gated stay None unless a sublayer's absence must be told."""
        layers = max((len(value) for value in (self.mha_N, self.ffn_N, self.heads, self.neurons) if value is not None), default=0)

        def sublayer(gate_N: Tensor | None, elements: list[Tensor] | None) -> tuple[Tensor | None, list[Tensor] | None]:
            if gate_N is None and elements is None:
                return None, None
            ones = elements[0].new_ones(layers) if gate_N is None else gate_N.detach()
            items = [None] * layers if elements is None else elements
            is_left = [is_open(gate, item) for gate, item in zip(ones, items)]
            left_N = torch.tensor(is_left, dtype=ones.dtype, device=ones.device)
            left = None if elements is None else [(item.detach() != 0).to(item.dtype) * left for item, left in zip(elements, is_left)]
            return left_N, left

        (mha_N, heads), (ffn_N, neurons) = sublayer(self.mha_N, self.heads), sublayer(self.ffn_N, self.neurons)
        hidden_D = None if self.hidden_D is None else (self.hidden_D.detach() != 0).to(self.hidden_D.dtype)
        return GateValues(mha_N, ffn_N, heads, neurons, hidden_D)

    def to_plain(self) -> dict[str, Any]:
        """Lists of numbers by field, for JSON; families that are not gated are left out."""
        plain = {field.name: getattr(self, field.name) for field in fields(self)}
        return {
            name: [item.tolist() for item in value] if isinstance(value, list) else value.tolist()
            for name, value in plain.items() if value is not None
        }  # fmt: skip

    @classmethod
    def from_plain(cls, plain: dict[str, Any]) -> GateValues:
        """Back from ``to_plain``, in float32. Raises ``ConfigError`` for unknown fields."""
        known = [field.name for field in fields(cls)]
        if unknown := sorted(set(plain) - set(known)):
            raise ConfigError(f"gate values: {unknown[0]!r} is not known; choices: {', '.join(known)}")

        def tensor(name: str, value: Any) -> Any:
            if name in ("heads", "neurons"):
                return [torch.tensor(item, dtype=torch.float32) for item in value]
            return torch.tensor(value, dtype=torch.float32)

        return cls(**{name: tensor(name, value) for name, value in plain.items()})

    def of_layer(self, layer: int) -> dict[str, Tensor | None]:
        """The gates of one layer by name: ``mha`` and ``ffn`` scalars, ``heads`` (H,), ``neurons`` (F,)."""
        found = {"mha": self.mha_N, "heads": self.heads, "ffn": self.ffn_N, "neurons": self.neurons}
        return {name: None if value is None else value[layer] for name, value in found.items()}

    def check(self, heads: Sequence[int], neurons: Sequence[int], hidden: int) -> None:
        """Raise ``ModelError``, naming the field, unless every tensor has the size of its axis."""
        sizes = {"mha_N": len(heads), "ffn_N": len(neurons), "heads": list(heads), "neurons": list(neurons), "hidden_D": hidden}
        for name, size in sizes.items():
            value = getattr(self, name)
            found = None if value is None else [len(item) for item in value] if isinstance(value, list) else len(value)
            if found is not None and found != size:
                raise ModelError(f"gates: {name} has {found} elements, the encoder {size}")
