"""What members cost while NNI searches: our own profiler, with the embedding tables and in our units.

NNI's FLOPs profiler stops at a word table (no shape formula for its look-up) and counts no attention, and its penalty gives
the architecture no gradient: the probabilities that it is made of are lists of numbers. So the cost is a term of our loss,
made of the probabilities as tensors, which ``CostProfiler`` is asked for as a ``Supernet`` would be.

Dimensions: W widths, K depths, R edges of a cell, N operations.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from adasearch.cost import Cost
from adasearch.latency import LatencyModel
from adasearch.member_cost import CostTable, architecture_cost
from adasearch.nni_space import Choices, Sample, sources_of
from adasearch.supernet import Supernet


class CostProfiler:
    """Expected costs of a member, or those of one sample.

    Args:
        supernet: knows what the parts cost.
        choices: the space in NNI's words.
        probabilities: gives the probability of each value, by label of the open choices; tensors with a gradient.
        length: mean tokens of a text, for ``profile``.
    """

    def __init__(self, supernet: Supernet, choices: Choices, probabilities: Callable[[], Mapping[str, Tensor]], length: float):
        self.supernet, self.choices, self.probabilities, self.length = supernet, choices, probabilities, length

    def expected_cost(self, length: float, is_derived: bool = False) -> Cost:
        """E[parameters and MACs] for one text; differentiable. NNI's samples keep as many edges as derived members do, so that
        ``is_derived`` changes nothing."""
        return Cost(*(self._expected(self.supernet.cost_table(kind, length)) for kind in ("params", "macs")))

    def expected_latency(self, model: LatencyModel) -> Tensor:
        """E[milliseconds] of one call, as the model predicts them; differentiable."""
        return self._expected(self.supernet.latency_table(model))

    def profile(self, sample: Sample) -> float:
        """MACs of the student that a sample means: what NNI asks of a profiler, for its filters."""
        return float(architecture_cost(self.choices.architecture(sample), self.length, self.supernet.config).macs)

    def _expected(self, table: CostTable) -> Tensor:
        known = self.probabilities()
        certain = next(iter(known.values())).new_ones(1)  # of a choice with one value
        p = {label: known.get(label, certain) for label in self.choices.every}
        cells = range(1 if self.choices.space.share_cells else self.choices.space.cells[1])
        return table.expected(p["width"], p["depth"], [self._shares(p, cell) for cell in cells])

    def _shares(self, p: Mapping[str, Tensor], cell: int) -> Tensor:
        """Probability that an edge is kept and has that operation, (R, N); edges and operations in the supernet's order."""
        choices, rows = self.choices, []
        names = self.choices.space.operations
        for node, source in self.supernet.cell_gates[0].pairs:
            label = choices.edges(cell, node)
            kept = sum(chance for chance, value in zip(p[label], choices.every[label]) if source in sources_of(value))
            label = choices.operation(cell, node, source)
            place = torch.tensor([names.index(name) for name in choices.every[label]], device=p[label].device)
            rows.append(torch.zeros(len(names), dtype=p[label].dtype, device=place.device).index_copy(0, place, p[label]) * kept)
        return torch.stack(rows)
