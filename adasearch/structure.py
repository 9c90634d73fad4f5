"""The structure of an encoder as plain axes: what can be taken out of it, and what it costs with what is left.

An encoder's matrices lie on few axes: ``hidden``, which all layers share, and in each layer n ``n.heads`` (inside the
sublayer ``n.mha``) and ``n.neurons`` (inside ``n.ffn``). ``Axes`` turns the probabilities of their elements
(``GateValues``) into expected parameters, as sums over matrices of E|out| E|in|, whichever method the values are of.

Dimensions: A axes, T terms of a cost.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from adasearch.errors import ConfigError
from adasearch.gate_values import GateValues, is_open

__all__ = ["FAMILIES", "SCOPES", "Axes", "Axis", "GateValues", "Matrix", "check_families", "is_open"]

FAMILIES = ("heads", "neurons", "layers", "hidden")  # CoFi's choice of what is gated; "layers": both kinds of sublayers
SCOPES = {  # which parameters count
    "prunable": ("linear",),  # CoFi's: weights and biases of the layers' linear maps; 85,017,600 of BERT-base
    "encoder": ("linear", "norm"),  # and the layers' LayerNorms
    "all": ("linear", "norm", "embedding", "head"),  # everything there is
}


@dataclass(frozen=True)
class Axis:
    """A named axis: ``size`` elements, all inside the one element of ``parent`` (None: they stand for themselves)."""

    name: str
    size: int
    parent: str | None = None


@dataclass(frozen=True)
class Matrix:
    """A weight, bias or gain: its output and input axes, and how often an element of each occurs.

    A dimension is (axis or None, factor): ``("3.heads", 64)`` has 64 rows for each head, ``(None, 2)`` two rows whatever
    is gated. ``kind`` is "linear", "norm", "embedding" or "head".
    """

    name: str
    out: tuple[str | None, int]
    into: tuple[str | None, int] = (None, 1)
    kind: str = "linear"


class Axes:
    """The axes of an encoder, its matrices on them, and their expected cost.

    Args:
        hidden: D.
        head_size: K, the width of a head.
        heads: H of each layer. neurons: F of each layer. 0: the sublayer is absent.
        tables: rows of each embedding table. pooler: rows of the head's dense layer, 0: it has none.
        labels: outputs of the last layer.
    """

    def __init__(
        self, hidden: int, head_size: int, heads: Sequence[int], neurons: Sequence[int], *, tables: Sequence[int] = (),
        pooler: int = 0, labels: int = 0,
    ):  # fmt: skip
        self.hidden, self.head_size, self.heads, self.neurons = hidden, head_size, list(heads), list(neurons)
        self.axes: dict[str, Axis] = {"hidden": Axis("hidden", hidden)}
        for n, (head_count, neuron_count) in enumerate(zip(self.heads, self.neurons, strict=True)):
            for parent, child, size in (("mha", "heads", head_count), ("ffn", "neurons", neuron_count)):
                self.axes[f"{n}.{parent}"] = Axis(f"{n}.{parent}", int(size > 0))
                self.axes[f"{n}.{child}"] = Axis(f"{n}.{child}", size, parent=f"{n}.{parent}")
        self.matrices = [*self._embeddings(tables), *self._layers(), *self._head(pooler, labels)]
        self._index = {name: position for position, name in enumerate([None, *self.axes])}
        self._terms: dict[str, tuple[Tensor, Tensor, Tensor]] = {}

    @property
    def layers(self) -> int:
        """N."""
        return len(self.heads)

    def _embeddings(self, tables: Sequence[int]) -> list[Matrix]:
        hidden = ("hidden", 1)
        found = [Matrix(f"embeddings.{n}", (None, rows), hidden, "embedding") for n, rows in enumerate(tables)]
        return [*found, Matrix("embeddings.norm", hidden, (None, 2), "embedding")]

    def _layers(self) -> list[Matrix]:
        found, hidden = [], ("hidden", 1)
        for n in range(len(self.heads)):
            heads, mha, ffn = (f"{n}.heads", self.head_size), (f"{n}.mha", 1), (f"{n}.ffn", 1)
            neurons = (f"{n}.neurons", 1)
            for name in ("query", "key", "value"):
                found.append(Matrix(f"{n}.{name}", heads, hidden))
                found.append(Matrix(f"{n}.{name}.bias", heads))
            found.append(Matrix(f"{n}.attention_output", hidden, heads))
            found.append(Matrix(f"{n}.ffn_input", neurons, hidden))
            found.append(Matrix(f"{n}.ffn_input.bias", neurons))
            found.append(Matrix(f"{n}.ffn_output", hidden, neurons))
            for sublayer, name in ((mha, "attention"), (ffn, "ffn")):  # as long as the sublayer exists
                found.append(Matrix(f"{n}.{name}_output.bias", hidden, sublayer))
                found.append(Matrix(f"{n}.{name}_norm.weight", hidden, sublayer, "norm"))
                found.append(Matrix(f"{n}.{name}_norm.bias", hidden, sublayer, "norm"))
        return found

    def _head(self, pooler: int, labels: int) -> list[Matrix]:
        found = []
        if pooler:
            found.append(Matrix("pooler", (None, pooler), ("hidden", 1), "head"))
            found.append(Matrix("pooler.bias", (None, pooler), kind="head"))
        if labels:
            found.append(Matrix("classifier", (None, labels), (None, pooler) if pooler else ("hidden", 1), "head"))
            found.append(Matrix("classifier.bias", (None, labels), kind="head"))
        return found

    def ones(self, families: Sequence[str] = FAMILIES) -> GateValues:
        """Values of 1 on the families' axes. Raises ``ConfigError`` for an unknown family."""
        check_families(families)
        has_layers = "layers" in families
        return GateValues(
            torch.ones(self.layers) if has_layers else None, torch.ones(self.layers) if has_layers else None,
            [torch.ones(size) for size in self.heads] if "heads" in families else None,
            [torch.ones(size) for size in self.neurons] if "neurons" in families else None,
            torch.ones(self.hidden) if "hidden" in families else None,
        )  # fmt: skip

    def expected_sizes(self, values: GateValues | None = None) -> dict[str, Tensor]:
        """E|axis| of every axis when each element is independently kept with its value; differentiable scalars.

        A child's elements need their parent's gate open too. A sublayer exists if its gate and any of its children are open:
        E|n.mha| = p_mha (1 - prod(1 - p_head)).
        """
        values = values or GateValues()
        values.check(self.heads, self.neurons, self.hidden)
        like = next(iter(values.tensors()), torch.ones(()))
        constant = like.new_tensor
        sizes = {"hidden": constant(float(self.hidden)) if values.hidden_D is None else values.hidden_D.sum()}
        for n in range(self.layers):
            gates = values.of_layer(n)
            for parent, child, size in (("mha", "heads", self.heads[n]), ("ffn", "neurons", self.neurons[n])):
                own, elements = gates[parent], gates[child]
                some, count = (1.0 - (1.0 - elements).prod(), elements.sum()) if elements is not None else (float(size > 0), float(size))
                own = constant(1.0) if own is None else own
                sizes[f"{n}.{parent}"], sizes[f"{n}.{child}"] = own * some, own * count
        return sizes

    def expected_params(self, values: GateValues | None = None, scope: str = "prunable") -> Tensor:
        """Expected parameters under probabilities ``values``; the true count where they are 0 and 1. ``scope``: see ``SCOPES``.

        Different axes are independent, and no matrix lies on one twice, so products of expectations are exact. CoFi's
        own formula leaves out the FFN's biases in this sum but not in its total; here they count in both.
        """
        if scope not in SCOPES:
            raise ConfigError(f"scope: {scope!r} is not known; choices: {', '.join(SCOPES)}")
        if scope not in self._terms:  # matrices on the same axes are one term, found once
            counts: Counter[tuple[int, int]] = Counter()
            for matrix in self.matrices:
                if matrix.kind in SCOPES[scope]:
                    (out, rows), (into, columns) = matrix.out, matrix.into
                    counts[self._index[out], self._index[into]] += rows * columns
            outs, intos = zip(*counts)
            self._terms[scope] = torch.tensor(outs), torch.tensor(intos), torch.tensor(list(counts.values()), dtype=torch.float64)
        sizes = self.expected_sizes(values)
        sizes_A = torch.stack([torch.ones_like(sizes["hidden"]), *(sizes[name] for name in self.axes)])
        sizes_A = sizes_A if sizes_A.device.type == "mps" else sizes_A.double()  # which has no float64
        out_T, into_T, weight_T = self._terms[scope]
        out_T, into_T, weight_T = (term.to(sizes_A.device) for term in (out_T, into_T, weight_T.to(sizes_A.dtype)))
        return (weight_T * sizes_A[out_T] * sizes_A[into_T]).sum()  # float64: 10^8 parameters exceed float32's integers

    def sparsity(self, values: GateValues | None, scope: str = "prunable") -> Tensor:
        """1 - expected parameters / parameters of everything open, differentiable. CoFi, section 3.1."""
        return 1.0 - self.expected_params(values, scope) / self.expected_params(None, scope)


def check_families(families: Sequence[str]) -> None:
    """Raise ``ConfigError`` for an unknown family or none at all."""
    if unknown := [name for name in families if name not in FAMILIES]:
        raise ConfigError(f"families: {unknown[0]!r} is not known; choices: {', '.join(FAMILIES)}")
    if not families:
        raise ConfigError(f"families: none is named; choices: {', '.join(FAMILIES)}")
