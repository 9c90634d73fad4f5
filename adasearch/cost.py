"""What a network costs: sums over its weights of products of their axes' sizes.

Every weight says on which axis each of its dimensions lies: ``("width", "width", 3)`` is a convolution of kernel 3 from
the width axis to itself. Its parameters are E[product of the sizes], its multiply-accumulates (MACs) the same once a
token. An axis is a number of certain size or a gate; both answer ``moment(n)``, E[size^n], so expectations stay exact
where one axis occurs twice in a weight. Counted: matrix products, convolutions and attention. Not counted:
normalisation, activations, pooling and look-ups, as in torch's FlopCounterMode, whose half is the reference in the tests.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

Number = float | Tensor
AxisName = str | int  # a named axis, or a fixed number of elements
Axes = tuple[AxisName, ...]


class Axis(Protocol):
    """Anything with an expected size."""

    def moment(self, power: int) -> Number:
        """E[size^power]."""


@dataclass(frozen=True)
class FixedAxis:
    """An axis of certain size."""

    size: int

    def moment(self, power: int) -> Number:
        """size^power."""
        return float(self.size**power)


@dataclass(frozen=True)
class Cost:
    """Parameters and multiply-accumulates of one text; numbers, or tensors while a search is deciding."""

    params: Number = 0.0
    macs: Number = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.params + other.params, self.macs + other.macs)

    def __mul__(self, factor: Number) -> Cost:
        return Cost(self.params * factor, self.macs * factor)

    __rmul__ = __mul__


def expected_product(axes: Sequence[AxisName], sizes: Mapping[str, Axis]) -> Number:
    """E of the product of the axes' sizes; different axes are independent, equal ones are not."""
    product: Number = 1.0
    for axis, count in Counter(axes).items():
        product = product * (axis**count if isinstance(axis, int) else sizes[axis].moment(count))
    return product


def weights_cost(weights: Mapping[str, Axes], sizes: Mapping[str, Axis], length: float) -> Cost:
    """Cost of weights applied once to each of ``length`` tokens; vectors (biases, gains) cost parameters only."""
    total = Cost()
    for axes in weights.values():
        elements = expected_product(axes, sizes)
        total = total + Cost(elements, elements * length if len(axes) > 1 else 0.0)
    return total
