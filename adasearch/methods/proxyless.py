"""Two sampled paths with binary gates. ProxylessNAS, Cai, Zhu & Han 2019, section 3.2 and its appendix on two paths.

While the architecture learns, each choice is between two candidates, drawn without replacement from p; one of the two,
drawn from their own softmax, counts 1, the other 0. Both are run, so that the gradient of binary gates,

    dL/da_i = sum over both j of dL/dg_j p_j (delta_ij - p_i),        p over the two, dL/dg_j = <dL/dy, o_j(x)>,

compares the two with each other. Only these two logits take the step, and both are then shifted alike so that their sum
of exponentials, and with it every other candidate's probability, stays what it was. Adam's momentum is off for the
architecture: it would move the others. While the weights learn, one path is drawn from p.

The width and the depth are chosen in the same way; of the depth, dL/dg_j is the loss of exit j. Edges, which
ProxylessNAS does not have, are drawn as in AdaBERT. The published architecture learns from held-out texts (``bilevel``).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from adasearch.cell import CellPath
from adasearch.gates import ChoiceGate, gumbel_noise, straight_through
from adasearch.methods.base import BatchOf
from adasearch.search_method import STRATEGIES, SearchMethod
from adasearch.supernet import CellGates, Draw, Supernet

Moved = tuple[ChoiceGate, Tensor, Tensor]  # a gate, the indices of its two candidates (R, 2), all its logits before the step (R, N)


@STRATEGIES.register("proxyless")
class Proxyless(SearchMethod):
    """Binary gates on two paths."""

    published_mode = "bilevel"
    arch_betas = (0.0, 0.999)  # as its code: without momentum what is not sampled stays

    def attach(self, student: Supernet) -> None:
        super().attach(student)
        self._moved: list[Moved] = []  # what this step's two paths move, to be shifted back as a whole

    def before_loss(self, student: Supernet, learners: Sequence[str], batch_of: BatchOf) -> None:
        super().before_loss(student, learners, batch_of)
        if self.is_learning:
            self._moved = []

    def draw(self, student: Supernet) -> Draw:
        if not self.is_warm:
            return student.draw()
        if not self.is_learning:
            with torch.no_grad():
                return student.draw()
        depth_K = self._weights(student.depth_gate)[0]
        width_W = None if student.width_gate is None else self._weights(student.width_gate)[0]
        paths = [self._path(gates) for gates in student.cell_gates]
        keep_D = None if width_W is None else student.channels(width_W)
        return Draw(int(depth_K.detach().argmax()), depth_K, keep_D, paths, True)

    def two_paths(self, gate: ChoiceGate) -> tuple[Tensor, Tensor]:
        """The two candidates of each row, (R, 2), and their binary gates (R, 2): 0 and 1, with the gradient above."""
        logits_RN = gate.open_logits()
        noisy_RN = logits_RN.detach().log_softmax(-1) + gumbel_noise(gate.logits)
        two_R2 = noisy_RN.topk(min(2, logits_RN.shape[1]), dim=1).indices  # the largest of noisy logits: without replacement
        p_R2 = logits_RN.gather(1, two_R2).softmax(-1)
        active_R = (p_R2.detach().log() + gumbel_noise(p_R2.detach())).argmax(1)
        hard_R2 = torch.nn.functional.one_hot(active_R, p_R2.shape[1]).to(p_R2.dtype)
        self._moved.append((gate, two_R2, gate.logits.detach().clone()))
        return two_R2, straight_through(hard_R2, p_R2)

    def _weights(self, gate: ChoiceGate) -> Tensor:
        two_R2, binary_R2 = gate(self.two_paths)
        return torch.zeros_like(gate.logits).scatter(1, two_R2, binary_R2)

    def _path(self, gates: CellGates) -> CellPath:
        two_R2, binary_R2 = gates.operations(self.two_paths)
        kept = None if gates.edges is None else [gate() for gate in gates.edges]
        steps = []
        for row, (node, source) in enumerate(gates.pairs):
            if kept is None or source in kept[node][0]:
                edge = 1.0 if kept is None else kept[node][1][source]
                steps += [(row, choice, weight * edge) for choice, weight in zip(two_R2[row].tolist(), binary_R2[row].unbind())]
        return gates.path(steps)

    def after_backward(self, student: Supernet, learners: Sequence[str], batch_of: BatchOf) -> None:
        if self.is_learning:
            for gate, two_R2, _ in self._moved:
                if gate.logits.grad is not None:
                    gate.logits.grad *= torch.zeros_like(gate.logits).scatter(1, two_R2, 1.0)

    @torch.no_grad()
    def after_step(self, student: Supernet, step: int) -> bool:
        for gate, two_R2, before_RN in self._moved:
            after_R2 = gate.logits.gather(1, two_R2)
            shift_R1 = before_RN.gather(1, two_R2).logsumexp(1, keepdim=True) - after_R2.logsumexp(1, keepdim=True)
            gate.logits.copy_(before_RN.scatter(1, two_R2, after_R2 + shift_R1))  # weight decay has moved the others too
        self._moved = []
        return super().after_step(student, step)
