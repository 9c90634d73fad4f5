"""Gates: learnable choices over the elements of one named axis of a model.

A gate answers four questions: ``forward()`` acts (relaxed while training, hard in eval), ``expected()`` is what is
kept on average (differentiable, the input of every cost), ``decide()`` the discrete choice as plain data; the fourth,
shrinking the model to that data, is the model's own affair.

Dimensions: R rows (independent choices), N choices, S of them drawn, O orders of drawing.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

INIT_STD = 1e-3  # AdaBERT's own code: logits start as good as equal


def straight_through(hard: Tensor, soft: Tensor) -> Tensor:
    """The value of ``hard`` (exactly) with the gradient of ``soft``. Bengio et al. 2013."""
    return hard + (soft - soft.detach())


def gumbel_noise(like: Tensor) -> Tensor:
    """Independent standard Gumbel noise, shaped like the argument, from torch's one seeded generator."""
    return -torch.empty_like(like).exponential_().log()


class Gate(nn.Module):
    """A learnable choice on ``axis``. ``temperature`` and ``is_frozen`` are set by the method's schedule.

    While frozen the choices are drawn uniformly and no gradient reaches the logits: the weights warm up.

    ``forward(act)`` acts in another way than the gate's own: ``act(gate)`` is returned. A strategy of search draws so, and
    not from the logits by itself, because whatever draws inside ``forward`` draws alike in all processes.
    """

    def __init__(self, axis: str):
        super().__init__()
        self.axis = axis
        self.is_frozen = False
        self.turn: tuple[int, int, int] | None = None  # (seed, the gate's number, step) where frozen choices take turns
        self.register_buffer("temperature", torch.ones(()))

    def expected(self) -> Tensor:
        """What is kept on average, differentiable."""
        raise NotImplementedError

    def decide(self) -> Any:
        """The discrete choice, as plain data."""
        raise NotImplementedError

    @property
    def has_choice(self) -> bool:
        """Whether there is more than one way to decide; else its entropy is 0 by construction."""
        raise NotImplementedError

    def entropy(self) -> Tensor:
        """Mean entropy of the choices as a share of its maximum, 0 (decided) to 1 (open)."""
        raise NotImplementedError


class ChoiceGate(Gate):
    """R independent picks of one element in N, by Gumbel-softmax. Jang et al. 2017; AdaBERT, section 3.3.

    Args:
        axis: what is chosen, for logs.
        choices: the N elements.
        rows: R, the number of independent choices.
    """

    def __init__(self, axis: str, choices: Sequence[Any], rows: int = 1):
        super().__init__(axis)
        self.choices = list(choices)
        self.drop_N: Tensor | None = None  # chance of each choice to be left out of a draw while the gate learns
        self.logits = nn.Parameter(torch.randn(rows, len(self.choices)) * INIT_STD)

    def forward(self, act: Callable[[ChoiceGate], Any] | None = None) -> Any:
        """Draw every row: (the picked index of each row, one-hot weights (R, N)); or ``act`` in its own way.

        The weights are exactly 0 and 1; their gradient is that of softmax((log p + Gumbel noise) / temperature).
        In eval the most probable element is picked, without noise. Picking by Gumbel noise is sampling from p,
        whatever the temperature (Maddison et al. 2017).
        """
        if act is not None:
            return act(self)
        if not self.training:
            return self._hard(self.logits.detach())
        if self.is_frozen:
            return self.uniform()
        noisy = self.open_logits().log_softmax(-1) + gumbel_noise(self.logits)
        picked, hard = self._hard(noisy.detach())
        return picked, straight_through(hard, (noisy / self.temperature).softmax(-1))

    def uniform(self) -> tuple[list[int], Tensor]:
        """Every row drawn uniformly. Where choices take turns, each row has every choice once in N consecutive steps.

        That is FairNAS's strict fairness (Chu et al. 2021, section 3.1), over steps instead of within one.
        """
        if self.turn is None:
            return self._hard(gumbel_noise(self.logits))
        seed, index, step = self.turn
        rows, count = self.logits.shape
        order_RN = np.random.default_rng((0xFA1E, seed, index, step // count)).permuted(np.tile(np.arange(count), (rows, 1)), axis=1)
        return self._hard(torch.from_numpy(order_RN == step % count).to(self.logits))

    def open_logits(self) -> Tensor:
        """The logits, (R, N), of which some choices are left out (minus infinity) with the chances of ``drop_N``.

        Operation-level dropout against skips and pools, which learn faster than what has weights (P-DARTS, Chen et al.
        2019, section 3.3, drops their outputs). A row keeps all its choices where it would lose all.
        """
        if self.drop_N is None:
            return self.logits
        left_out_RN = torch.rand_like(self.logits) < self.drop_N.to(self.logits.device)
        return self.logits.masked_fill(left_out_RN & ~left_out_RN.all(-1, keepdim=True), -torch.inf)

    @staticmethod
    def _hard(scores: Tensor) -> tuple[list[int], Tensor]:
        indices = scores.argmax(-1)
        return indices.tolist(), nn.functional.one_hot(indices, scores.shape[-1]).to(scores.dtype)

    def expected(self) -> Tensor:
        """Probability of each choice, (R, N), differentiable."""
        return self.logits.softmax(-1)

    @property
    def has_choice(self) -> bool:
        """Whether N is more than 1."""
        return len(self.choices) > 1

    def entropy(self) -> Tensor:
        """Mean entropy of the rows as a share of log N."""
        if not self.has_choice:
            return self.logits.new_zeros(())
        log_p = self.logits.log_softmax(-1)
        return -(log_p.exp() * log_p).sum(-1).mean() / torch.log(torch.tensor(float(len(self.choices))))

    def decide(self) -> list[Any]:
        """The most probable element of each row."""
        return [self.choices[i] for i in self.logits.detach().argmax(-1).tolist()]

    def moment(self, power: int) -> Tensor:
        """E[size^power] of a one-row gate over sizes: what cost needs of an axis."""
        sizes = torch.tensor([float(choice) for choice in self.choices], device=self.logits.device)
        return (self.expected()[0] * sizes**power).sum()


@functools.lru_cache(maxsize=64)
def drawing_orders(count: int, size: int) -> Tensor:
    """The ways to draw ``size`` of ``count`` elements one after the other, (count! / (count - size)!, size)."""
    return torch.tensor(list(itertools.permutations(range(count), size)))


def inclusion(scores_N: Tensor, size: int) -> Tensor:
    """Probability that each element is among ``size`` drawn without replacement from softmax(scores), (N,); differentiable.

    The exact sum over all orders of drawing. In logarithms, renormalising over what is left at each draw: 1 - p loses all its
    digits once a gate is sure.
    """
    if size >= len(scores_N):
        return torch.ones_like(scores_N)
    orders_OS = drawing_orders(len(scores_N), size).to(scores_N.device)
    taken_OSN = nn.functional.one_hot(orders_OS, len(scores_N)).cumsum(1).roll(1, 1).bool()
    taken_OSN[:, 0] = False
    left_OS = scores_N.expand(taken_OSN.shape).masked_fill(taken_OSN, -torch.inf).logsumexp(-1)
    p_O = (scores_N[orders_OS] - left_OS).sum(1).exp()
    return torch.zeros_like(scores_N).index_add(0, orders_OS.flatten(), p_O.repeat_interleave(size))


class SubsetGate(Gate):
    """One pick of ``size`` elements out of N without replacement, by Gumbel top-k. Kool et al. 2019.

    Picking the ``size`` largest of log p + Gumbel noise is drawing without replacement from p.
    """

    def __init__(self, axis: str, count: int, size: int):
        super().__init__(axis)
        self.size = min(size, count)
        self.logits = nn.Parameter(torch.randn(count) * INIT_STD)

    def forward(self, act: Callable[[SubsetGate], Any] | None = None) -> Any:
        """Draw: (sorted indices of the picked, weights (N,) of exactly 0 and 1 with relaxed gradient); or ``act``."""
        if act is not None:
            return act(self)
        if self.training and not self.is_frozen:
            noisy = self.logits.log_softmax(-1) + gumbel_noise(self.logits)
            soft = inclusion(noisy / self.temperature, self.size)
        else:
            noisy = gumbel_noise(self.logits) if self.training else self.logits.detach()
            soft = None
        picked = noisy.detach().topk(self.size).indices
        hard = torch.zeros_like(self.logits.detach()).index_fill(0, picked, 1.0)
        return sorted(picked.tolist()), hard if soft is None else straight_through(hard, soft)

    def expected(self) -> Tensor:
        """Probability that each element is drawn, (N,), summing to ``size``; differentiable."""
        return inclusion(self.logits, self.size)

    @property
    def has_choice(self) -> bool:
        """Whether fewer than N are drawn."""
        return self.size < len(self.logits)

    def entropy(self) -> Tensor:
        """Entropy of the underlying distribution as a share of log N; 0 where there is nothing to choose."""
        if not self.has_choice:
            return self.logits.new_zeros(())
        log_p = self.logits.log_softmax(-1)
        return -(log_p.exp() * log_p).sum() / torch.log(torch.tensor(float(len(self.logits))))

    def decide(self) -> list[int]:
        """The ``size`` most probable elements, sorted."""
        return sorted(self.logits.detach().topk(self.size).indices.tolist())


def gates_of(model: nn.Module) -> list[Gate]:
    """All gates of a model, in order."""
    return [module for module in model.modules() if isinstance(module, Gate)]
