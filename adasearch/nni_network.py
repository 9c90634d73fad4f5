"""A supernet as an NNI model space: the same modules and weights, behind NNI's layer choices. Needs the extra ``nni``.

NNI's strategies replace the layer choices by mixtures or sampled paths of their own. All that they train are the supernet's
weights, so members are cut out of it as after any search of ours.

Dimensions: B batch, L tokens, D width, C labels, K depths.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from nni.nas.nn.pytorch import LayerChoice, ModelSpace
from torch import Tensor, nn

from adasearch.cell import edge_key
from adasearch.nni_space import Choices, sources_of
from adasearch.operations import OPERATIONS, Context, Operation
from adasearch.student import ReadOut
from adasearch.supernet import Supernet


@dataclass(frozen=True)
class NetworkOutput:
    """``levels`` K_max + 1 times (B, D), ``logits`` (B, C) and ``depth_K``, what each depth weighed in them."""

    levels: list[Tensor]
    logits: Tensor
    depth_K: Tensor


class Candidate(nn.Module):
    """An operation whose context are plain tensors: NNI's ProxylessNAS keeps every argument for its own backward pass."""

    def __init__(self, operation: Operation):
        super().__init__()
        self.operation = operation

    def forward(self, x_BDL: Tensor, mask_B1L: Tensor, second_BL: Tensor, *keep_D: Tensor) -> Tensor:
        """(B, D, L); ``keep_D`` where the width is open."""
        return self.operation(x_BDL, Context(mask_B1L, second_BL, *keep_D))


class Kept(nn.Module):
    """A node that keeps these sources: the sum of what comes from them."""

    def __init__(self, sources: Sequence[int]):
        super().__init__()
        self.sources = tuple(sources)

    def forward(self, *results_BDL: Tensor) -> Tensor:
        """(B, D, L) of all edges into the node -> (B, D, L)."""
        return sum(results_BDL[source] for source in self.sources)


class Width(nn.Module):
    """The leading channels: widths are prefixes."""

    def __init__(self, width: int, widest: int):
        super().__init__()
        self.register_buffer("alive_D", (torch.arange(widest) < width).float(), persistent=False)

    def forward(self) -> Tensor:
        """1 for each channel that lives, (D,)."""
        return self.alive_D.clone()


class Exit(nn.Module):
    """The network that stops after ``depth`` cells."""

    def __init__(self, read_out: ReadOut, depth: int, depths: Sequence[int]):
        super().__init__()
        self.read_out, self.depth, self.index = read_out, depth, depths.index(depth)
        self.register_buffer("one_K", (torch.arange(len(depths)) == self.index).float(), persistent=False)

    def forward(self, *levels_BD: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B, C), and which depth it is, (K,)."""
        return self.read_out(list(levels_BD[: self.depth + 1]), self.index), self.one_K.clone()


class SupernetSpace(ModelSpace):
    """All members of a space as NNI sees them. Its parameters are the supernet's.

    Every cell and every edge is run, whatever is chosen: a layer choice gets its inputs ready made.
    """

    def __init__(self, supernet: Supernet, choices: Choices):
        super().__init__()
        self.choices, self.trunk = choices, supernet.trunk
        space, depths = choices.space, supernet.depth_gate.choices
        widest = max(space.widths)
        self.width = self._choice("width", lambda value: Width(int(value), widest)) if "width" in choices.open else None
        self.exit = self._choice("depth", lambda value: Exit(self.trunk.read_out, int(value), depths))
        self.kept, self.edges = nn.ModuleList(), nn.ModuleList()
        for index, cell in enumerate(self.trunk.cells):
            shared = 0 if space.share_cells else index
            nodes = range(space.nodes)
            self.kept.append(
                nn.ModuleList(self._choice(choices.edges(shared, node), lambda value: Kept(sources_of(value))) for node in nodes)
            )
            edges = nn.ModuleDict()
            for node, source in supernet.cell_gates[0].pairs:
                key = edge_key(node, source)

                def candidate(name: str, made: nn.ModuleDict = cell.edges[key]) -> Candidate:  # the supernet holds no "none"
                    return Candidate(made[name] if name in made else OPERATIONS[name](widest, space.macro))

                edges[key] = self._choice(choices.operation(shared, node, source), candidate)
            self.edges.append(edges)

    def _choice(self, label: str, make: Callable[[str], nn.Module]) -> nn.Module:
        """NNI's choice between what is made of each value; of a single value what is made of it."""
        values = self.choices.every[label]
        return LayerChoice({value: make(value) for value in values}, label=label) if len(values) > 1 else make(values[0])

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> NetworkOutput:
        """Ids and mask (B, L) -> what the strategy makes of them."""
        keep_D = () if self.width is None else (self.width(),)
        first, second, context = self.trunk.inputs(input_ids, attention_mask, *keep_D)
        levels = [self.trunk.pool(0, first if first is second else (first + second) / 2, context)]
        for index in range(len(self.trunk.cells)):
            first, second = second, self._cell(index, first, second, context)
            levels.append(self.trunk.pool(index + 1, second, context))
        logits, depth_K = self.exit(*levels)
        return NetworkOutput(levels, logits, depth_K)

    def _cell(self, index: int, first: Tensor, second: Tensor, context: Context) -> Tensor:
        tensors = (context.mask_B1L, context.second_BL, *(() if context.keep_D is None else (context.keep_D,)))
        nodes = [first, second]
        for node, kept in enumerate(self.kept[index]):
            results = [self.edges[index][edge_key(node, source)](nodes[source], *tensors) for source in range(node + 2)]
            nodes.append(context.clean(kept(*results)))
        return self.trunk.cells[index].mixed(nodes[2:])
