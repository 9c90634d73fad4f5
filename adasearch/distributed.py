"""Training on several processes at once: the same arithmetic as one process with the same global batch.

Every process takes its share of each batch. What a single process would have summed over the whole batch is summed over
the processes: the gradients, the loss that is shown, the statistics of batch normalisation. Where a single process would
have drawn once, all draw alike: the gates' choices. Dropout differs from process to process. So the weights stay equal
everywhere, and the loss curve is that of one process, but for the order of sums and for which random numbers are drawn.

Gradients are summed by hand after the backward pass, not by torch's DistributedDataParallel: that wants every parameter
in every step, where a search runs one drawn member, and does not know the word table's sparse gradient.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from datetime import timedelta

import numpy as np
import torch
import torch.distributed as dist
from accelerate import Accelerator, PartialState
from torch import Tensor, nn

from adasearch.errors import ConfigError
from adasearch.gates import gates_of
from adasearch.masked_norm import MaskedBatchNorm

PATIENCE = timedelta(days=7)  # the others wait while the main process measures; torch's 30 minutes would end the run


def open_group(cpu: bool) -> PartialState:
    """Meet the other processes that torchrun has started; alone where there are none. Called before any Accelerator."""
    return PartialState(cpu=cpu, timeout=PATIENCE)


def close_group() -> None:
    """Part from the others, where there are any."""
    if dist.is_initialized():
        dist.destroy_process_group()


def main_first() -> AbstractContextManager[None]:
    """The main process goes through the block before the others, who then find its results in their files."""
    return PartialState().main_process_first()


def agree(value: float) -> float:
    """The main process's value, in all processes: for what is measured and might differ."""
    if PartialState().num_processes == 1:
        return value
    held = torch.tensor([value], dtype=torch.float64, device=_device())
    dist.broadcast(held, 0)
    return float(held)


def _device() -> torch.device:
    """Where a tensor must lie for the group to see it."""
    return PartialState().device


class _Sum(torch.autograd.Function):
    """The sum of a tensor over all processes. Its gradient is the sum of theirs: each process's loss depends on it."""

    @staticmethod
    def forward(ctx: object, tensor: Tensor) -> Tensor:
        return _sum(tensor.clone())

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        return _sum(gradient.clone())


def _sum(tensor: Tensor) -> Tensor:
    """Sum over all processes, in place."""
    tensor = tensor.contiguous()
    dist.all_reduce(tensor)
    return tensor


class SharedDraws:
    """Lets the gates of a model draw the same numbers in every process, whatever else is drawn there.

    Draw number n of step s depends on (seed, s, n) alone, so that a resumed run draws the same.
    """

    def __init__(self, seed: int):
        self.seed, self.step, self.count = seed, 0, 0
        self._handles: list[torch.utils.hooks.RemovableHandle] = []
        self._kept: list[list[Tensor]] = []

    def attach(self, model: nn.Module) -> None:
        """Put hooks on the gates of ``model``."""
        for gate in gates_of(model):
            self._handles.append(gate.register_forward_pre_hook(self._before))
            self._handles.append(gate.register_forward_hook(self._after, always_call=True))

    def detach(self) -> None:
        """Take the hooks off."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def begin_step(self, step: int) -> None:
        """Count from the first draw of ``step``."""
        self.step, self.count = step, 0

    def _before(self, gate: nn.Module, inputs: object) -> None:
        self._kept.append(_random_states())
        torch.manual_seed(mixed_seed(self.seed, self.step, 0, self.count))
        self.count += 1

    def _after(self, gate: nn.Module, inputs: object, output: object) -> None:
        _set_random_states(self._kept.pop())


def _random_states() -> list[Tensor]:
    """Of the processor and, where there is one in use, of this process's accelerator."""
    return [torch.get_rng_state()] + ([torch.cuda.get_rng_state()] if torch.cuda.is_initialized() else [])


def _set_random_states(states: list[Tensor]) -> None:
    torch.set_rng_state(states[0])
    if len(states) > 1:
        torch.cuda.set_rng_state(states[1])


def mixed_seed(*parts: int) -> int:
    """One seed made of several numbers, 0 or more each."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0])


class Processes:
    """The processes that train one model together, seen from one of them. Alone it leaves everything as it is."""

    def __init__(self, accelerator: Accelerator, seed: int):
        self.rank, self.count, self.seed = accelerator.process_index, accelerator.num_processes, seed
        self.is_main, self.is_alone = accelerator.is_main_process, accelerator.num_processes == 1
        self.draws = SharedDraws(seed)
        self._norms: list[MaskedBatchNorm] = []

    def check(self, batch_size: int, where: str) -> None:
        """Raise ``ConfigError`` unless every process gets an example of every batch."""
        if batch_size < self.count:
            raise ConfigError(
                f"{where}: batch_size: a batch of {batch_size} examples cannot be shared by {self.count} processes;"
                f" choices: {self.count} or more, or fewer processes"
            )

    def join(self, model: nn.Module, method: nn.Module) -> None:
        """Start from the main process's weights, with common draws and common statistics. Edits both in place."""
        if self.is_alone:
            return
        for module in (model, method):
            for tensor in [*module.parameters(), *module.buffers()]:
                dist.broadcast(tensor.data, 0)
            self.draws.attach(module)
            self._norms += [norm for norm in module.modules() if isinstance(norm, MaskedBatchNorm)]
        self._norms = [*dict.fromkeys(self._norms)]
        for norm in self._norms:
            norm.total = _Sum.apply

    def leave(self) -> None:
        """Take out of the model what ``join`` put in."""
        self.draws.detach()
        for norm in self._norms:
            del norm.total
        self._norms = []

    def begin_step(self, step: int) -> None:
        """Numbers for dropout that are this process's own, and for the gates that are everyone's."""
        if not self.is_alone:
            self.draws.begin_step(step)
            torch.manual_seed(mixed_seed(self.seed, step, self.rank + 1))

    def own(self, indices: np.ndarray) -> np.ndarray:
        """This process's share of a batch: a batch is sorted by length, so every so manyth is of all lengths."""
        return indices if self.is_alone else indices[self.rank :: self.count]

    def weigh(self, terms: Mapping[str, Tensor], weight: float) -> dict[str, Tensor]:
        """The terms times this process's share of the batch, so that their sum over the processes is the batch's mean.

        ``weight`` is what the terms are means over (examples, say) and is counted over all processes here. A term that
        no example enters, such as a cost, is the same everywhere: shares that sum to 1 leave it what it is.
        """
        if self.is_alone:
            return dict(terms)
        total = _sum(torch.tensor([weight], dtype=torch.float64, device=_device()))
        share = weight / float(total)
        return {name: share * term for name, term in terms.items()}

    def whole(self, terms: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The weighed terms summed over the processes, without gradient: what one process would have seen."""
        if self.is_alone:
            return {name: term.detach() for name, term in terms.items()}
        sums = _sum(torch.stack([term.detach() for term in terms.values()]))
        return dict(zip(terms, sums.unbind()))

    def sum_gradients(self, tensors: Iterable[Tensor]) -> None:
        """Replace the gradients by their sums over the processes. Edits in place.

        All processes have run the same member, so the same parameters have a gradient everywhere.
        """
        if self.is_alone:
            return
        learned = [tensor for tensor in tensors if tensor.grad is not None]
        for tensor in learned:
            if tensor.grad.is_sparse:
                tensor.grad = self._sum_sparse(tensor.grad)
        dense = [tensor.grad for tensor in learned if not tensor.grad.is_sparse]
        for dtype in dict.fromkeys(gradient.dtype for gradient in dense):
            same = [gradient for gradient in dense if gradient.dtype == dtype]
            flat = _sum(torch.cat([gradient.flatten() for gradient in same]))  # one message instead of hundreds
            for gradient, part in zip(same, flat.split([gradient.numel() for gradient in same])):
                gradient.copy_(part.view_as(gradient))

    def _sum_sparse(self, gradient: Tensor) -> Tensor:
        """The sum of gradients that touch different rows: all rows of all processes, padded to the longest list.

        Not ``all_reduce``, which takes sparse tensors in gloo only.
        """
        gradient = gradient.coalesce()
        rows, values = gradient.indices()[0], gradient.values()
        counts = torch.zeros(self.count, dtype=torch.int64, device=rows.device)
        counts[self.rank] = len(rows)
        sizes = _sum(counts).tolist()
        padded = rows.new_zeros(max(sizes)), values.new_zeros(max(sizes), *values.shape[1:])
        gathered = []
        for own, parts in zip((rows, values), padded):
            parts[: len(own)] = own
            everyone = [torch.empty_like(parts) for _ in sizes]
            dist.all_gather(everyone, parts)
            gathered.append(torch.cat([part[:size] for part, size in zip(everyone, sizes)]))
        return torch.sparse_coo_tensor(gathered[0][None], gathered[1], gradient.shape, check_invariants=False).coalesce()
