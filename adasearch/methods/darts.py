"""DARTS: every candidate is run and their results are mixed by the gates' probabilities. Liu, Simonyan & Yang 2019.

The relaxation is deterministic: no noise, the whole gradient of every choice, and N times the work of a sampled path. All
gates are soft: an edge's candidates (DARTS, eq. 2), the kept edges by their chances to be kept, the widths as a mask of
channels (FBNetV2, Wan et al. 2020), the depth as the mean loss of all exits. No member of the space is a mixture, which is
the gap that ``adasearch.diagnosis`` measures. The warm-up runs the mixture too, with the architecture held still.

Second order (DARTS, eq. 6-8) takes the architecture's gradient not at the weights w but at w' = w - xi dL_train/dw, one
virtual step of plain gradient descent ahead, and with it the term - xi d2L_train/(da dw) dL_valid/dw', by a difference of
two gradients at w +- epsilon dL_valid/dw', epsilon = 0.01 / norm (section 2.3). The weights really learn by AdamW; the virtual
step is smaller than theirs and points elsewhere, as in every descendant that keeps eq. 6 with an adaptive optimiser.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from adasearch.cell import CellPath
from adasearch.fit import learning_rate_factor, restore_rng, rng_state
from adasearch.gates import ChoiceGate, SubsetGate, gates_of
from adasearch.methods.base import Batch, BatchOf
from adasearch.search_method import STRATEGIES, SearchMethod
from adasearch.supernet import CellGates, Draw, Supernet, SupernetOutput

DISTANCE = 0.01  # between w and w +- epsilon v, DARTS section 2.3


@STRATEGIES.register("darts")
class Darts(SearchMethod):
    """First order: the architecture's gradient at the weights as they are."""

    published_mode = "bilevel"
    ignores = (*SearchMethod.ignores, "temperature_start", "temperature_end", "fair_sampling")  # a mixture draws nothing

    def draw(self, student: Supernet) -> Draw:
        """Everything at once, each by its probability; without gradient to the gates in the weights' phase."""

        def weigh(gate: ChoiceGate | SubsetGate) -> Tensor:
            weights = gate.open_logits().softmax(-1) if isinstance(gate, ChoiceGate) else gate.expected()
            return weights if self.is_learning else weights.detach()

        depth_K = student.depth_gate(weigh)[0]
        keep_D = None if student.width_gate is None else student.channels(student.width_gate(weigh)[0])
        paths = [self._path(gates, gates.operations(weigh), [edge(weigh) for edge in gates.edges or []]) for gates in student.cell_gates]
        return Draw(len(depth_K) - 1, depth_K, keep_D, paths, True)

    @staticmethod
    def _path(gates: CellGates, weights_RN: Tensor, kept: list[Tensor]) -> CellPath:
        steps = []
        for row, (node, source) in enumerate(gates.pairs):
            weights_N = weights_RN[row] * kept[node][source] if kept else weights_RN[row]
            steps += [(row, choice, weight) for choice, weight in enumerate(weights_N.unbind())]
        return gates.path(steps)

    def mix(self, exits: list[dict[str, Tensor]], output: SupernetOutput) -> dict[str, Tensor]:
        """The mean over the depths, which do not hear of their probes (``worth_of``)."""
        names = dict.fromkeys(name for terms in exits for name in terms)
        deaf_K = output.depth_weights.detach()
        weighed = {name: list(zip((deaf_K if name == "probes" else output.depth_weights).unbind(), exits)) for name in names}
        return {name: sum(weight * terms[name] for weight, terms in pairs if name in terms) for name, pairs in weighed.items()}

    def predict(self, student: Supernet, batch: Batch) -> Tensor:
        output = student(batch["input_ids"], batch["attention_mask"], self.draw(student))
        return sum(weight * logits for weight, logits in zip(output.depth_weights.unbind(), output.logits))


@STRATEGIES.register("darts_second")
class DartsSecond(Darts):
    """Second order. Four more passes a step than the weights need: on the training batch at w, at w + and w -, on the other at w'."""

    modes = ("bilevel",)
    ignores = tuple(setting for setting in Darts.ignores if setting != "unroll_rate")
    one_process = True  # its extra gradients are of one process's batch

    def begin_step(self, student: Supernet, step: int, steps: int) -> None:
        super().begin_step(student, step, steps)
        rate = self.config.learning_rate if self.config.unroll_rate is None else self.config.unroll_rate
        self.rate = rate * learning_rate_factor(step, steps, self.config.warmup, self.schedule)

    def before_loss(self, student: Supernet, learners: Sequence[str], batch_of: BatchOf) -> None:
        super().before_loss(student, learners, batch_of)
        if not self.is_learning:
            return
        gates = {id(gate.logits) for gate in gates_of(student)} | {id(self.multiplier)}
        weights = [p for module in (student, self) for p in module.parameters() if p.requires_grad and id(p) not in gates]
        self._random = _random_numbers(student)
        gradients = self._gradients(student, batch_of("train"), weights)
        self._weights = [(weight, weight.detach().clone()) for weight in weights]
        with torch.no_grad():
            for weight, gradient in zip(weights, gradients):
                if gradient is not None:
                    weight.add_(gradient, alpha=-self.rate)

    def after_backward(self, student: Supernet, learners: Sequence[str], batch_of: BatchOf) -> None:
        if not self.is_learning:
            return
        directions = [weight.grad for weight, _ in self._weights]
        norm = torch.stack([_norm(v) for v in directions if v is not None]).norm()
        logits = [gate.logits for gate in gates_of(student)]
        sides, after = [], _random_numbers(student)
        for sign in (1.0, -1.0):
            self._restore()
            with torch.no_grad():
                for (weight, _), v in zip(self._weights, directions):
                    if v is not None and norm > 0:
                        weight.add_(v, alpha=sign * DISTANCE / float(norm))
            # the same dropout on both sides: a difference of masks over epsilon would be all one sees
            restore_rng(self._random)
            sides.append(self._gradients(student, batch_of("train"), logits))
        self._restore()
        restore_rng(after)
        for tensor, plus, minus in zip(logits, *sides):
            if tensor.grad is not None and plus is not None and minus is not None:
                tensor.grad -= self.rate * (plus - minus) * (float(norm) / (2 * DISTANCE))

    def _gradients(self, student: Supernet, batch: Batch, of: Sequence[Tensor]) -> tuple[Tensor | None, ...]:
        return torch.autograd.grad(sum(self.loss(student, batch).values()), list(of), allow_unused=True)

    @torch.no_grad()
    def _restore(self) -> None:
        for weight, kept in self._weights:
            weight.copy_(kept)


def _norm(gradient: Tensor) -> Tensor:
    return gradient.coalesce().values().norm() if gradient.is_sparse else gradient.norm()


def _random_numbers(model: nn.Module) -> dict[str, Tensor]:
    """The processor's and, where the model lies on one, the accelerator's."""
    return rng_state(next(model.parameters()).device)
