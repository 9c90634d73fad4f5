"""The relaxed student: every candidate of a space in one network, of which each step runs one drawn member.

Dimensions: B batch, L tokens, D width, C labels, K depth; of costs W widths, R edges, N operations.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from adasearch.architecture import Architecture, CellChoice, Edge, Space
from adasearch.cell import Cell, CellPath, Step, edge_key
from adasearch.cost import Cost, FixedAxis
from adasearch.gates import ChoiceGate, SubsetGate, inclusion
from adasearch.latency import LatencyModel
from adasearch.member_cost import CostTable, frame_cost, learned_operations, with_learned
from adasearch.operations import WIDTH
from adasearch.student import AdasearchConfig, Trunk


@dataclass(frozen=True)
class SupernetOutput:
    """One drawn member of the space at work.

    ``levels[k]`` (B, D) are the pooled levels, ``logits[k]`` (B, C) those of the network that stops at
    ``depths[k]`` cells, ``drawn`` which of these depths was drawn, ``depth_weights`` its one-hot with gradient.
    Exits beyond the drawn one are computed without gradient; while the architecture is frozen they are left out.
    """

    levels: list[Tensor]
    logits: list[Tensor]
    depths: list[int]
    drawn: int
    depth_weights: Tensor


@dataclass(frozen=True)
class Draw:
    """What one forward pass runs. A strategy of search makes it; ``Supernet.draw`` is the default's.

    ``depth`` is the index of the depth drawn, ``depth_weights`` (K,) what each depth weighs, ``keep_D`` the weight of each
    channel (None: all), ``paths`` one for every cell's gates. A path may hold several weighted candidates an edge.
    ``every_exit`` runs the cells beyond the drawn depth too, without gradient.
    """

    depth: int
    depth_weights: Tensor
    keep_D: Tensor | None
    paths: list[CellPath]
    every_exit: bool


class CellGates(nn.Module):
    """The choices inside one cell: an operation for every edge and, where edges are drawn, the edges of every node."""

    def __init__(self, space: Space):
        super().__init__()
        self.space = space
        self.pairs = [(node, source) for node in range(space.nodes) for source in range(node + 2)]
        self.operations = ChoiceGate("operations", space.operations, rows=len(self.pairs))
        subsets = [SubsetGate("edges", node + 2, space.edges_per_node) for node in range(space.nodes)]
        self.edges = nn.ModuleList(subsets) if space.sample_edges else None
        self.learns = torch.tensor([name in learned_operations(space) for name in space.operations])
        banned = [index for index, name in enumerate(space.operations) if name in space.never_derived]
        self._banned = torch.tensor(banned, dtype=torch.long)

    def draw(self) -> CellPath:
        """One member's path. Operations are picked on all edges, then only kept edges are run."""
        picked, weights = self.operations()
        kept = None if self.edges is None else [gate() for gate in self.edges]
        steps = []
        for row, (node, source) in enumerate(self.pairs):
            if kept is not None and source not in kept[node][0]:
                continue
            scale = None
            if weights.requires_grad:
                scale = weights[row, picked[row]]
                scale = scale if kept is None else scale * kept[node][1][source]
            steps.append((row, picked[row], scale))
        return self.path(steps)

    def path(self, steps: Iterable[tuple[int, int, Tensor | None]]) -> CellPath:
        """A path of (row of ``pairs``, index of the operation, weight or None for 1); "none" adds nothing and is left out."""
        path: list[list[Step]] = [[] for _ in range(self.space.nodes)]
        for row, choice, scale in steps:
            node, source = self.pairs[row]
            if self.space.operations[choice] != "none":
                path[node].append(Step(source, self.space.operations[choice], scale))
        return path

    def expected_share(self, is_derived: bool = False) -> Tensor:
        """Probability that each operation runs on each edge, (R, N), differentiable.

        ``is_derived``: in a member that ``sample`` derives, which keeps ``edges_per_node`` edges a node and has no operation of
        ``never_derived``, instead of in a step of the search. (Operations that ``learned_per_node`` puts in another's place are
        not foreseen.)
        """
        if is_derived:  # in logarithms: where what is never derived is sure of itself the others' probabilities have no digits left
            logits_RN = self.operations.logits
            log_p_RN = logits_RN.log_softmax(-1).index_fill(1, self._banned.to(logits_RN.device), -torch.inf)
            p_RN, strength_R = log_p_RN.softmax(-1), log_p_RN.amax(1)  # the strengths as logarithms
        else:
            p_RN, strength_R = self.operations.expected(), None
        if self.edges is not None:
            kept = [gate.expected() for gate in self.edges]
        elif strength_R is not None:
            scores = strength_R.split([node + 2 for node in range(self.space.nodes)])
            kept = [inclusion(of_node, self.space.edges_per_node) for of_node in scores]
        else:
            return p_RN
        return p_RN * torch.cat(kept)[:, None]  # nodes in order, sources in order: as ``pairs``

    def decide(self) -> CellChoice:
        """The derived cell: each node's strongest edges, and the best allowed operation on each.

        Where edges were not drawn, an edge is as strong as the probability of its best allowed operation (DARTS, section 2.3), all
        operations counted: an edge that has learned to be absent is weak.
        """
        p_RN = self._allowed()
        nodes = []
        for node in range(self.space.nodes):
            rows = [row for row, pair in enumerate(self.pairs) if pair[0] == node]
            if self.edges is not None:
                kept = [rows[source] for source in self.edges[node].decide()]
            else:
                kept = sorted(sorted(rows, key=lambda row: -p_RN[row].max().item())[: self.space.edges_per_node])
            picked = {row: int(p_RN[row].argmax()) for row in kept}
            nodes.append(self._node(self._with_weights(picked, p_RN)))
        return tuple(nodes)

    def sample(self, generator: np.random.Generator) -> CellChoice:
        """A derived cell drawn from what the gates have learned, instead of their best."""
        p_RN = self._allowed()
        strength_R = p_RN.amax(1)  # as in ``decide``, before what is never derived hands its share to the others
        p_RN = p_RN / p_RN.sum(1, keepdim=True)
        nodes = []
        for node in range(self.space.nodes):
            rows = [row for row, pair in enumerate(self.pairs) if pair[0] == node]
            strength = strength_R[rows] if self.edges is None else self.edges[node].logits.detach().softmax(-1)
            noisy = strength.double().log().numpy() + generator.gumbel(size=len(rows))  # top-k: without replacement
            kept = [rows[i] for i in np.sort(np.argsort(-noisy)[: self.space.edges_per_node])]
            log_p = p_RN[kept].double().log().numpy()
            drawn = (log_p + generator.gumbel(size=log_p.shape)).argmax(1)
            nodes.append(self._node(self._with_weights(dict(zip(kept, drawn.tolist())), p_RN)))
        return tuple(nodes)

    def _allowed(self) -> Tensor:
        """Probability of each operation on each edge, (R, N), 0 for what is never derived; on the processor."""
        return self.operations.logits.detach().cpu().double().softmax(-1).index_fill(1, self._banned, 0.0)

    def _node(self, picked: dict[int, int]) -> tuple[Edge, ...]:
        return tuple(Edge(self.pairs[row][1], self.space.operations[choice]) for row, choice in sorted(picked.items()))

    def _with_weights(self, picked: dict[int, int], p_RN: Tensor) -> dict[int, int]:
        """The same with operations that learn on as many of a node's edges as the space asks."""
        learned = self.learns.nonzero().flatten().tolist()
        return with_learned(picked, learned, self.space.learned_per_node, lambda row, choice: float(p_RN[row, choice]))


class Supernet(nn.Module):
    """All members of ``space`` at once, sharing weights. AdaBERT, section 3; sampled-path execution after GDAS."""

    def __init__(self, space: Space, config: AdasearchConfig):
        super().__init__()
        self.space, self.config = space, config
        width, deepest = max(space.widths), space.cells[1]
        candidates = [
            [(source, name) for source in range(node + 2) for name in space.operations if name != "none"]
            for node in range(space.nodes)
        ]
        cells: list[nn.Module] = [Cell(candidates, width, space.macro) for _ in range(deepest)]
        self.cell_gates = nn.ModuleList(CellGates(space) for _ in range(1 if space.share_cells else deepest))
        self.depth_gate = ChoiceGate("depth", range(space.cells[0], deepest + 1))
        self.width_gate = ChoiceGate("width", space.widths) if len(space.widths) > 1 else None
        self.trunk = Trunk(config, cells, width, space.macro, len(self.depth_gate.choices), config.num_labels)
        self.trunk.embeddings.apply(self._init_embedding)
        self._cost_tables: dict[tuple[str, float], CostTable] = {}

    @staticmethod
    def _init_embedding(module: nn.Module) -> None:
        if isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=0.05)

    def draw(self) -> Draw:
        """Draw a member; in eval the likeliest of every choice, on every edge where edges are not drawn (``decide`` derives, this does not)."""
        (drawn,), depth_weights = self.depth_gate()
        keep_D = None if self.width_gate is None else self.channels(self.width_gate()[1][0])
        paths = [gates.draw() for gates in self.cell_gates]
        return Draw(drawn, depth_weights[0], keep_D, paths, depth_weights.requires_grad)

    def channels(self, weights_W: Tensor) -> Tensor:
        """The weight of each channel, (D,), where each width weighs so much: widths are prefixes."""
        sizes = torch.tensor(self.space.widths, device=weights_W.device)
        alive_WD = torch.arange(max(self.space.widths), device=weights_W.device) < sizes[:, None]
        return weights_W @ alive_WD.to(weights_W.dtype)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, draw: Draw | None = None) -> SupernetOutput:
        """Run what is drawn; without ``draw`` what ``draw()`` gives."""
        draw = self.draw() if draw is None else draw
        depths, drawn, paths = self.depth_gate.choices, draw.depth, draw.paths
        first, second, context = self.trunk.inputs(input_ids, attention_mask, draw.keep_D)
        levels = [self.trunk.pool(0, first if first is second else (first + second) / 2, context)]
        logits = []
        run = len(self.trunk.cells) if draw.every_exit else depths[drawn]
        for k in range(1, run + 1):
            with torch.set_grad_enabled(torch.is_grad_enabled() and k <= depths[drawn]):
                path = paths[0 if len(paths) == 1 else k - 1]
                first, second = second, self.trunk.cells[k - 1](first, second, context, path)
                levels.append(self.trunk.pool(k, second, context))
                if k >= depths[0]:
                    logits.append(self.trunk.read_out(levels, exit_index=k - depths[0]))
        return SupernetOutput(levels, logits, depths[: len(logits)], drawn, draw.depth_weights)

    def expected_cost(self, length: float, is_derived: bool = False) -> Cost:
        """E[cost] of a drawn member, its folded embedding table and read-out included, for one text; differentiable.

        ``is_derived``: of a derived one, as ``sample`` gives it. Where a step runs every edge of a cell (``sample_edges`` false)
        that is less.
        """
        return Cost(*(self._expected(self.cost_table(kind, length), is_derived) for kind in ("params", "macs")))

    def expected_latency(self, model: LatencyModel) -> Tensor:
        """E[milliseconds] of one call of a derived member, as the model predicts each; differentiable."""
        return self._expected(self.latency_table(model), is_derived=True)

    def _expected(self, table: CostTable, is_derived: bool) -> Tensor:
        p_W = self.depth_gate.logits.new_ones(1) if self.width_gate is None else self.width_gate.expected()[0]
        shares = [gates.expected_share(is_derived) for gates in self.cell_gates]
        return table.expected(p_W, self.depth_gate.expected()[0], shares)

    def full_cost(self, length: float) -> Cost:
        """Cost of everything at once: all cells, edges and candidates at the largest width; the unit of efficiency."""
        widest, cells = self.space.widths.index(max(self.space.widths)), len(self.trunk.cells)

        def total(kind: str) -> float:
            table = self.cost_table(kind, length)
            return float(table.frame_W[widest]) + cells * float(table.cell_W[widest] + table.edges_WRN[widest].sum())

        return Cost(total("params"), total("macs"))

    def cost_table(self, kind: str, length: float) -> CostTable:
        """What the parts of a member cost in "params" or "macs"."""
        if (kind, length) not in self._cost_tables:
            self._cost_tables[kind, length] = self._count(kind, length)
        return self._cost_tables[kind, length]

    def latency_table(self, model: LatencyModel) -> CostTable:
        """What they take in milliseconds; an operation takes the same on every edge."""
        names, widths = self.space.operations, self.space.widths
        zeros = dict.fromkeys(widths, 0.0)  # what is never derived was not measured: it is there for the search only
        frame_W, cell_W = (torch.tensor([times[width] for width in widths]) for times in (model.frame_ms, model.cell_ms))
        edges_WN = torch.tensor([[model.operation_ms.get(name, zeros)[width] for name in names] for width in widths])
        return CostTable(frame_W, cell_W, edges_WN[:, None], self.space.cells)

    def _count(self, kind: str, length: float) -> CostTable:
        edges = self.trunk.cells[0].edges
        frame, cell, run = [], [], []
        for width in self.space.widths:
            parts = frame_cost(self.config, self.space.macro, self.space.nodes, width, length)
            frame.append(float(getattr(parts[0], kind)))
            cell.append(float(getattr(parts[1], kind)))
            sizes = {WIDTH: FixedAxis(width)}
            run.append(
                [
                    [
                        0.0 if name == "none" else float(getattr(edges[edge_key(*pair)][name].cost(sizes, length), kind))
                        for name in self.space.operations
                    ]
                    for pair in self.cell_gates[0].pairs
                ]
            )
        return CostTable(torch.tensor(frame), torch.tensor(cell), torch.tensor(run), self.space.cells)

    def decide(self, seed: int = 0) -> Architecture:
        """The decided member as plain data."""
        depth = self.depth_gate.decide()[0]
        width = max(self.space.widths) if self.width_gate is None else self.width_gate.decide()[0]
        return self._member([gates.decide() for gates in self.cell_gates], depth, width, seed)

    def sample(self, generator: np.random.Generator, seed: int = 0) -> Architecture:
        """A member drawn from what the gates have learned."""

        def draw(gate: ChoiceGate) -> int:
            p_N = gate.expected()[0].detach().double().cpu().numpy()
            return gate.choices[generator.choice(len(p_N), p=p_N / p_N.sum())]

        depth = draw(self.depth_gate)
        width = max(self.space.widths) if self.width_gate is None else draw(self.width_gate)
        return self._member([gates.sample(generator) for gates in self.cell_gates], depth, width, seed)

    def _member(self, cells: list[CellChoice], depth: int, width: int, seed: int) -> Architecture:
        cells = cells * depth if len(cells) == 1 else cells[:depth]
        return Architecture(self.space.name, self.space.digest, tuple(cells), width, self.space.macro, seed)
