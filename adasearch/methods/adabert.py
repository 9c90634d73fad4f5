"""AdaBERT: the search by sampled paths. Chen et al., IJCAI 2020 (arXiv 2001.04246), with the cures later work found.

``gumbel``, the default: every edge runs the one operation that Gumbel noise picks, its weight is exactly 1 and has the
gradient of the relaxation. The operations that were not picked are not run, so that nothing is learned of what they would
have given. ``gumbel_all`` is the paper's own form: every candidate is run, those not picked times 0, and tell by the
gradient of that 0 what they would have changed. A step costs as much more as there are candidates.
"""

from __future__ import annotations

from adasearch.cell import CellPath
from adasearch.search_method import STRATEGIES, SearchMethod
from adasearch.supernet import CellGates, Draw, Supernet


@STRATEGIES.register("gumbel")
class AdaBert(SearchMethod):
    """Gumbel-softmax with straight-through gradients on sampled paths."""

    trains_depths_evenly = True


@STRATEGIES.register("gumbel_all")
class AdaBertAll(SearchMethod):
    """The same draws, with every candidate of the kept edges run while the architecture learns."""

    published_mode = "joint"
    trains_depths_evenly = True

    def draw(self, student: Supernet) -> Draw:
        if not self.is_learning:
            return student.draw()
        (drawn,), depth_weights = student.depth_gate()
        keep_D = None if student.width_gate is None else student.channels(student.width_gate()[1][0])
        return Draw(drawn, depth_weights[0], keep_D, [self._path(gates) for gates in student.cell_gates], True)

    @staticmethod
    def _path(gates: CellGates) -> CellPath:
        _, weights_RN = gates.operations()
        kept = None if gates.edges is None else [gate() for gate in gates.edges]
        steps = []
        for row, (node, source) in enumerate(gates.pairs):
            if kept is not None and source not in kept[node][0]:
                continue
            edge = 1.0 if kept is None else kept[node][1][source]
            steps += [(row, choice, weight * edge) for choice, weight in enumerate(weights_RN[row].unbind())]
        return gates.path(steps)
