"""Pictures of what was found and how: the derived cell, the network, the curves of search and training, the table.

Figures are matplotlib objects made without pyplot, so nothing global is touched; each is written as SVG (with real
text) and PNG. Diagrams are laid out in inches on one axes that covers the figure: what is a box here is a box there.
"""

from __future__ import annotations

import json
import math
import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.lines import Line2D
from matplotlib.patches import Circle, FancyBboxPatch, PathPatch, Rectangle
from matplotlib.path import Path as Curve
from matplotlib.textpath import text_to_path
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

from adasearch.architecture import Architecture, CellChoice, Edge
from adasearch.errors import ConfigError
from adasearch.files import read_json, write_atomically
from adasearch.report import ERRORS_OF_MEASUREMENT, FIGURES, KINDS, format_count, format_threads, metric_name

# Okabe and Ito's palette: told apart by every common kind of colour vision; names in the boxes serve grey print.
COLOURS = {
    "convolution": "#0072B2", "separable": "#56B4E9", "dilated": "#E69F00", "gated": "#D55E00", "pool": "#009E73",
    "attention": "#CC79A7", "skip": "#7F7F7F", "other": "#B8A800",
}  # fmt: skip
OPERATION_NAMES = {  # name without its kernel -> (family, readable name)
    "conv": ("convolution", "conv"), "sep_conv": ("separable", "separable conv"), "gated_conv": ("gated", "gated conv"),
    "dilated_conv": ("dilated", "dilated conv"), "dilated_sep_conv": ("dilated", "dilated sep. conv"),
    "max_pool": ("pool", "max pool"), "avg_pool": ("pool", "average pool"), "skip": ("skip", "skip"),
    "none": ("skip", "none"), "self_attention": ("attention", "self-attention"),
    "soft_alignment": ("attention", "soft alignment"),
}  # fmt: skip
KIND_COLOURS = dict(zip(KINDS, ("#000000", "#D55E00", "#E69F00", "#0072B2", "#009E73", "#CC79A7", "#7F7F7F")))
INK, FAINT, WIRE = "#222222", "#A8A8A8", "#555555"
PNG_DPI = 150  # 8-point text is 17 pixels high
ROW, BOX_HEIGHT, GAP, NODE_RADIUS, MARGIN = 0.78, 0.58, 0.62, 0.19, 0.3  # inches
DIRECTIONS = [  # in which a label may lie from its point, best first
    (1.0, 0.0), (-1.0, 0.0), (0.0, 1.0), (0.0, -1.0),
    *((dx, dy) for dy in (0.7, -0.7, 0.94, -0.94) for dx in (0.7, -0.7, 0.35, -0.35)),
]  # fmt: skip
LINE_COLOURS = ("#0072B2", "#56B4E9", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#7F7F7F")
LABEL_SIZE, LABEL_HEIGHT = 8.5, 14.0  # points
Extent = tuple[float, float, float, float]  # left, bottom, right, top
Costs = dict[str, tuple[int, int]]  # operation -> (parameters, MACs per token)


def family(operation: str) -> tuple[str, str]:
    """Family and readable name; the family of an operation that is not ours is "other"."""
    base = operation.rstrip("0123456789")
    kind, words = OPERATION_NAMES.get(base, ("other", base.replace("_", " ").strip()))
    return kind, f"{words} {operation[len(base):]}".strip()


def _tint(colour: str, share: float = 0.22) -> tuple[float, ...]:
    """The colour on white: pale enough for black text."""
    return tuple(share * channel + 1 - share for channel in to_rgb(colour))


def _save(figure: Figure, path: Path) -> list[Path]:
    """Write ``path`` with .svg and .png; the same figure gives the same bytes."""
    written = [path.with_name(f"{path.name}.{kind}") for kind in ("svg", "png")]
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "adasearch"}):
        for target, kind in zip(written, ("svg", "png")):
            metadata = {"Date": None} if kind == "svg" else {"Software": None}
            settings = {"format": kind, "dpi": PNG_DPI, "metadata": metadata}
            write_atomically(target, lambda partial: figure.savefig(partial, **settings))
    return written


# --- diagrams ------------------------------------------------------------------------------------------------------


def _text_width(text: str, size: float, weight: str = "normal") -> float:
    """Inches that a line of text takes."""
    font = FontProperties(size=size, weight=weight)
    return text_to_path.get_text_width_height_descent(text, font, ismath=False)[0] / 72


Line = tuple[str, float, str]  # text, points, weight


def _head(text: str) -> Line:
    return text, 8.5, "bold"


def _small(text: str) -> Line:
    return text, 7.5, "normal"


def _widest(lines: Sequence[Line]) -> float:
    """Inches that the widest line takes."""
    return max((_text_width(*line) for line in lines), default=0.0)


def _canvas(width: float, height: float) -> tuple[Figure, Axes]:
    """A white figure whose one axes counts inches from the lower left corner."""
    figure = Figure(figsize=(width, height), facecolor="white")
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, width), ylim=(0, height))
    axes.axis("off")
    return figure, axes


def _lines(axes: Axes, x: float, y: float, lines: Sequence[Line], colour: str = INK) -> None:
    """Centred lines of (text, points, weight) around (x, y), at 1.45 line height."""
    heights = [1.45 * size / 72 for _, size, _ in lines]
    top = y + sum(heights) / 2
    for (text, size, weight), height in zip(lines, heights):
        axes.text(x, top - height / 2, text, size=size, weight=weight, color=colour, ha="center", va="center_baseline")
        top -= height


def _box(
    axes: Axes, x: float, y: float, width: float, height: float, colour: str, *, dashed: bool = False,
    gid: str | None = None,
) -> None:  # fmt: skip
    """A rounded box with its left edge at x and centred on y."""
    face = "white" if dashed else _tint(colour, 0.06 if colour == INK else 0.22)
    axes.add_patch(FancyBboxPatch(
        (x, y - height / 2), width, height, boxstyle="round,pad=0,rounding_size=0.07", linewidth=1.1, edgecolor=colour,
        facecolor=face, linestyle="--" if dashed else "-", zorder=3, gid=gid,
    ))  # fmt: skip


def _wire(
    axes: Axes, points: Sequence[tuple[float, float]], *, colour: str = WIRE, dashed: bool = False, arrow: bool = False
) -> None:
    """A line through the points: straight where two share x or y, else an S-curve; an arrow head at its end."""
    vertices, codes = [points[0]], [Curve.MOVETO]
    for (x0, y0), (x1, y1) in zip(points, points[1:]):
        if y0 == y1 or x0 == x1:
            vertices.append((x1, y1))
            codes.append(Curve.LINETO)
        else:
            bend = 0.55 * (x1 - x0)
            vertices += [(x0 + bend, y0), (x1 - bend, y1), (x1, y1)]
            codes += [Curve.CURVE4] * 3
    style = "--" if dashed else "-"
    line = Curve(vertices, codes)
    axes.add_patch(PathPatch(line, facecolor="none", edgecolor=colour, linewidth=1.2, linestyle=style, zorder=1))
    if arrow:
        (x0, y0), (x, y) = points[-2:]
        along = np.array((0, np.sign(y - y0)) if x0 == x else (1, 0))
        back, across = (x, y) - 0.09 * along, 0.042 * along[::-1]
        tip = Curve([(x, y), back - across, back + across])
        axes.add_patch(PathPatch(tip, facecolor=colour, edgecolor=colour, linewidth=0.4, zorder=2))


@dataclass(frozen=True)
class Placed:
    """An edge of a cell in its place: ``row`` above (positive) or below the line of the inner nodes, in which it runs
    from its source to the column of boxes left of node ``target`` (numbered as in the Architecture: 2 and up)."""

    edge: Edge
    target: int
    row: int


def place_edges(cell: CellChoice) -> list[Placed]:
    """Give every edge a row in which its box meets no other wire and its wire no other box or node.

    Edge s -> t takes its row from column(s) to column(t); two edges may share one where these spans do not overlap.
    Row 0 is the nodes' own: only edges between neighbours may run in it. Short edges choose first, so they stay near.
    """
    edges = [(edge, node + 2) for node, entries in enumerate(cell) for edge in entries]

    def order(item: tuple[Edge, int]) -> tuple[int, int, int]:
        edge, target = item
        return _column(target) - _column(edge.source), target, -edge.source

    taken: dict[int, list[tuple[int, int]]] = defaultdict(list)
    placed = []
    for edge, target in sorted(edges, key=order):
        start, end = _column(edge.source), _column(target)
        preferred = {0: -1, 1: 1}.get(edge.source, 0)  # the inputs fan out to their own side
        rows = sorted(range(-len(edges), len(edges) + 1), key=lambda row: (abs(row - preferred), -row))
        row = next(
            row for row in rows
            if (row != 0 or end - start == 1) and all(end <= low or high <= start for low, high in taken[row])
        )  # fmt: skip
        taken[row].append((start, end))
        placed.append(Placed(edge, target, row))
    return sorted(placed, key=lambda p: (p.target, -p.row))


def _column(node: int) -> int:
    """Inputs stand in column 0, inner nodes in columns of their own."""
    return max(0, node - 1)


def cell_groups(architecture: Architecture) -> list[tuple[CellChoice, list[int]]]:
    """The distinct cells, each with the numbers (from 1) of the cells of that shape."""
    groups: dict[CellChoice, list[int]] = defaultdict(list)
    for number, cell in enumerate(architecture.cells, start=1):
        groups[cell].append(number)
    return list(groups.items())


def _ranges(numbers: Sequence[int], noun: str = "cell") -> str:
    """``cell 1``, ``cells 1–3, 5``."""
    runs = [[n for _, n in run] for _, run in groupby(enumerate(numbers), key=lambda item: item[1] - item[0])]
    text = ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}–{run[-1]}" for run in runs)
    return f"{noun}{'s' * (len(numbers) > 1)} {text}"


def _input_lines(node: int, numbers: Sequence[int], inputs: str) -> list[str]:
    """What input node 0 or 1 is, for a group of cells: its role, then what stands there where there is no such cell."""
    starts = ("sentence 1", "sentence 2") if inputs == "two" else ("embeddings", "embeddings")
    usual = ("cell before that", "previous cell")[node]
    special = {1: starts[node], **({2: starts[1]} if node == 0 else {})}
    exceptions: dict[str, list[int]] = defaultdict(list)
    for number in numbers:
        if number in special:
            exceptions[special[number]].append(number)
    if sum(map(len, exceptions.values())) == len(numbers) and len(exceptions) == 1:
        return [*exceptions]
    lines = [] if sum(map(len, exceptions.values())) == len(numbers) else [usual]
    return lines + [f"{_ranges(where)}: {what}" for what, where in exceptions.items()]


def _edge_lines(edge: Edge, width: int, costs: Costs | None) -> list[Line]:
    name = _head(family(edge.operation)[1])
    if costs is None or edge.operation not in costs:
        return [name, _small(f"width {width}")]
    params, macs = costs[edge.operation]
    if not params and not macs:
        return [name, _small(f"width {width}"), _small("no cost")]
    return [name, _small(f"width {width} · {format_count(params)} params"), _small(f"{format_count(macs)} MACs/token")]


@dataclass
class _Panel:
    """One distinct cell measured and ready to be drawn."""

    title: str
    cell: CellChoice
    placed: list[Placed]
    inputs: list[list[str]]
    architecture: Architecture
    costs: Costs | None

    def __post_init__(self) -> None:
        self.edge_lines = [_edge_lines(p.edge, self.architecture.width, self.costs) for p in self.placed]
        self.input_width = max(_text_width(line, 8.5, "bold") for lines in self.inputs for line in lines) + 0.24
        self.box_widths = [0.8] * len(self.cell)
        for p, lines in zip(self.placed, self.edge_lines):
            column = _column(p.target) - 1
            self.box_widths[column] = max(self.box_widths[column], _widest(lines) + 0.22)
        rows = [p.row for p in self.placed]
        self.top, self.bottom = max([1, *rows]), min([-1, *rows])
        self.output_width = _text_width("attentive sum", 8.5) + 0.24
        self.nodes_x = []  # centres of the inner nodes
        x = self.input_width
        for width in self.box_widths:
            x += GAP + width + GAP + NODE_RADIUS
            self.nodes_x.append(x)
            x += NODE_RADIUS
        self.width = x + GAP + self.output_width
        self.height = (self.top - self.bottom + 1) * ROW + 0.5  # the panel's heading above, the outputs' wire below

    def draw(self, axes: Axes, left: float, top: float) -> None:
        """Draw with the upper left corner at (left, top)."""
        axes.text(left, top - 0.12, self.title, size=10, weight="bold", color=INK, ha="left", va="center_baseline")
        middle = top - 0.34 - (self.top + 0.5) * ROW
        used = {p.edge.source for p in self.placed}
        inputs_y = self._inputs_y(middle)
        for node in (0, 1):
            is_used = node in used
            role, *exceptions = self.inputs[node]
            lines = [_head(role), *map(_small, exceptions), *([] if is_used else [_small("not used")])]
            height = 0.2 + sum(1.45 * size / 72 for _, size, _ in lines)
            _box(axes, left, inputs_y[node], self.input_width, height, INK if is_used else FAINT, dashed=not is_used)
            _lines(axes, left + self.input_width / 2, inputs_y[node], lines, INK if is_used else "#767676")
        for p, lines in zip(self.placed, self.edge_lines):
            self._draw_edge(axes, p, lines, left, middle, inputs_y)
        self._draw_output(axes, left, middle)

    def _inputs_y(self, middle: float) -> list[float]:
        """Heights of the input nodes: amid their wires, the previous cell above the one before it, never touching."""
        wanted = []
        for node in (0, 1):
            rows = [p.row for p in self.placed if p.edge.source == node]
            wanted.append(middle + ROW * (sum(rows) / len(rows) if rows else (-1, 1)[node]))
        apart = 0.2 + max(0.34 + 0.16 * len(lines) for lines in self.inputs)
        if (short := apart - (wanted[1] - wanted[0])) > 0:
            wanted = [wanted[0] - short / 2, wanted[1] + short / 2]
        low, high = middle + (self.bottom - 0.1) * ROW, middle + (self.top + 0.1) * ROW
        shift = max(0.0, low - wanted[0]) - max(0.0, wanted[1] - high)
        return [min(max(y + (shift if high - low > wanted[1] - wanted[0] else 0), low), high) for y in wanted]

    def _draw_edge(
        self, axes: Axes, p: Placed, lines: Sequence[Line], left: float, middle: float, inputs_y: Sequence[float]
    ) -> None:
        column, source = _column(p.target) - 1, p.edge.source
        y, width = middle + p.row * ROW, self.box_widths[column]
        node_x = left + self.nodes_x[column]
        box_x = node_x - NODE_RADIUS - GAP - width
        if source < 2:
            start = (left + self.input_width, inputs_y[source])
        else:
            start = (left + self.nodes_x[source - 2] + NODE_RADIUS, middle)
        lane = (start[0] + GAP, y)  # from here on the wire keeps to its row
        _wire(axes, [start, lane, (box_x, y)] if lane[0] < box_x - 1e-6 else [start, (box_x, y)])
        _wire(axes, [(box_x + width, y), (node_x - NODE_RADIUS, middle)], arrow=True)
        gid = f"edge-{self.title.replace(' ', '-')}-{source}-{p.target}-{p.edge.operation}"
        _box(axes, box_x, y, width, BOX_HEIGHT, COLOURS[family(p.edge.operation)[0]], gid=gid)
        _lines(axes, box_x + width / 2, y, lines)

    def _draw_output(self, axes: Axes, left: float, middle: float) -> None:
        bus = middle + (self.bottom - 0.5) * ROW - 0.12
        output_x = left + self.width - self.output_width
        for number, node_x in enumerate(self.nodes_x):
            x = left + node_x
            axes.add_patch(Circle((x, middle), NODE_RADIUS, facecolor="white", edgecolor=INK, linewidth=1.2, zorder=3))
            _lines(axes, x, middle, [(str(number + 2), 9, "bold")])
            _wire(axes, [(x, middle - NODE_RADIUS), (x, bus)], colour=FAINT, dashed=True)
        end = (output_x + self.output_width / 2, middle - 0.24)
        _wire(axes, [(left + self.nodes_x[0], bus), (end[0], bus)], colour=FAINT, dashed=True)
        _wire(axes, [(end[0], bus), end], colour=FAINT, dashed=True, arrow=True)
        _box(axes, output_x, middle, self.output_width, 0.48, INK)
        how = {"attentive": "attentive sum", "sum": "sum", "mean": "mean"}.get(self.architecture.macro.cell_output, "")
        _lines(axes, output_x + self.output_width / 2, middle, [_head("output"), _small(how)])


def cell_figure(architecture: Architecture, costs: Costs | None) -> Figure:
    """The derived cell, one panel for each distinct one. Raises ``ConfigError`` when there are no cells."""
    if not architecture.cells:
        raise ConfigError(f"architecture {architecture.space}: it has no cells, so there is none to draw")
    panels = []
    for cell, numbers in cell_groups(architecture):
        inputs = [_input_lines(node, numbers, architecture.macro.inputs) for node in (0, 1)]
        panels.append(_Panel(_ranges(numbers), cell, place_edges(cell), inputs, architecture, costs))
    families = [name for name in COLOURS if name in {family(operation)[0] for operation in architecture.operations}]
    entries = [0.36 + _text_width(name, 8.5) + 0.25 for name in families]
    plural = "s" * (architecture.depth != 1)
    title = f"{architecture.space}: {architecture.depth} cell{plural} of width {architecture.width}"
    if costs is not None:
        total = sum(cell_params(cell, costs) or 0 for cell in architecture.cells)
        title += f", {format_count(total)} parameters on their edges"
    width = max([panel.width for panel in panels] + [sum(entries), _text_width(title, 12, "bold")]) + 2 * MARGIN
    height = 2 * MARGIN + 0.4 + sum(panel.height + 0.3 for panel in panels) + 0.25
    figure, axes = _canvas(width, height)
    top = height - MARGIN
    axes.text(MARGIN, top - 0.1, title, size=12, weight="bold", color=INK, ha="left", va="center_baseline")
    top -= 0.45
    for panel in panels:
        panel.draw(axes, MARGIN, top)
        top -= panel.height + 0.3
    x = MARGIN
    for name, entry in zip(families, entries):
        _box(axes, x, MARGIN, 0.26, 0.17, COLOURS[name])
        axes.text(x + 0.36, MARGIN, name, size=8.5, color=INK, ha="left", va="center_baseline")
        x += entry
    return figure


def draw_cell(architecture: Architecture, path: Path, costs: Costs | None) -> list[Path]:
    """Write the derived cell(s) as ``path``.svg and .png: nodes, operations, widths and the cost of every edge."""
    return _save(cell_figure(architecture, costs), Path(path))


def cell_params(cell: CellChoice, costs: Costs) -> int | None:
    """Parameters of a cell's operations, None where one's cost is unknown. Twin edges (same ends, same operation)
    share one operation."""
    distinct = {(node, edge) for node, entries in enumerate(cell) for edge in entries}
    names = [edge.operation for _, edge in distinct]
    return sum(costs[name][0] for name in names) if all(name in costs for name in names) else None


@dataclass(frozen=True)
class Details:
    """Parameters of a student's parts; None where vocabulary and labels are not known (an architecture by itself)."""

    cells: tuple[int, ...]
    embeddings: int | None = None
    read_out: int | None = None
    vocab_size: int | None = None
    labels: int | None = None


def network_figure(architecture: Architecture, details: Details) -> Figure:
    """Embeddings, cells, the read-out over all levels; parameters of each and its share of the whole."""
    macro, width = architecture.macro, architecture.width
    known = [value for value in (details.embeddings, *details.cells, details.read_out) if value is not None]
    total = sum(known) if details.embeddings is not None and details.read_out is not None else None

    def cost(params: int | None) -> Line:
        share = "" if total is None or params is None else f" · {_percent(params / total)}"
        return _small("parameters unknown" if params is None else f"{format_count(params)} params{share}")

    size = macro.embedding_size or width
    table = f"{details.vocab_size:,} × {size}" if details.vocab_size else f"vocabulary × {size}"
    table = f"{table} → {width}" if size != width else table
    both = [_small("each sentence by itself")] if macro.inputs == "two" else []
    boxes = [([_head("embeddings"), _small(table), *both, cost(details.embeddings)], COLOURS["skip"])]
    for number, (cell, params) in enumerate(zip(architecture.cells, details.cells), start=1):
        shape = _small(f"{len(cell)} nodes · {sum(map(len, cell))} edges")
        boxes.append(([_head(f"cell {number}"), shape, cost(params)], COLOURS["convolution"]))
    read_out = [_head("read-out"), _small("weighted sum of the levels, tanh"),
                _small(f"linear {width} → {details.labels or 'labels'}"), cost(details.read_out)]  # fmt: skip
    widths = [_widest(lines) + 0.24 for lines, _ in boxes]
    in_cells = sum(details.cells)
    counted = f"{format_count(in_cells if total is None else total)} parameters{' in the cells' * (total is None)}"
    title = f"{architecture.space}: {counted}"
    parts = [("embeddings", details.embeddings, COLOURS["skip"]), ("cells", in_cells, COLOURS["convolution"]),
             ("read-out", details.read_out, COLOURS["gated"])]  # fmt: skip
    shares = [(f"{name} {_percent(n / total)}", n / total, colour) for name, n, colour in parts if n] if total else []
    legend = [0.22 + _text_width(text, 8) + 0.3 for text, _, _ in shares]
    boxes_width = sum(widths) + 0.5 * (len(widths) - 1)
    row = max(boxes_width, _widest(read_out) + 0.3, sum(legend), _text_width(title, 12, "bold"))
    arcs, bars = (0.55 if architecture.depth > 1 else 0.0), (0.62 if total else 0.0)
    height = 3.5 + arcs + bars
    figure, axes = _canvas(row + 2 * MARGIN, height)
    axes.text(MARGIN, height - MARGIN - 0.05, title, size=12, weight="bold", color=INK, ha="left", va="center_baseline")
    middle = height - 1.1 - arcs
    bar = middle - 1.7
    x, spans = MARGIN + (row - boxes_width) / 2, []
    for (lines, colour), box_width in zip(boxes, widths):
        _box(axes, x, middle, box_width, 0.82, colour)
        _lines(axes, x + box_width / 2, middle, lines)
        spans.append((x, x + box_width))
        x += box_width + 0.5
    for index, (start, end) in enumerate(zip(spans, spans[1:])):
        _wire(axes, [(start[1], middle), (end[0], middle)], arrow=True)
        if index:  # a cell's second input is the output of the cell before the previous one
            _arc(axes, spans[index - 1], end, middle + 0.41)
    pool_y = (middle - 0.41 + bar + 0.45) / 2
    for start, end in spans:
        centre = (start + end) / 2
        _wire(axes, [(centre, middle - 0.41), (centre, bar + 0.45)], arrow=True)
        label = f"{macro.pooling} pooling"
        pill = _text_width(label, 7.5) + 0.16
        gap = Rectangle((centre - pill / 2, pool_y - 0.1), pill, 0.2, facecolor="white", linewidth=0, zorder=2)
        axes.add_patch(gap)
        axes.text(centre, pool_y, label, size=7.5, color=INK, ha="center", va="center_baseline", zorder=4)
    _box(axes, MARGIN, bar, row, 0.9, COLOURS["gated"])
    _lines(axes, MARGIN + row / 2, bar, read_out)
    x = legend_x = MARGIN
    for (text, share, colour), entry in zip(shares, legend):  # every part's share of the parameters, as one bar
        axes.add_patch(Rectangle((x, MARGIN + 0.23), row * share, 0.18, facecolor=colour, edgecolor="white"))
        axes.add_patch(Rectangle((legend_x, MARGIN - 0.02), 0.14, 0.14, facecolor=colour))
        axes.text(legend_x + 0.22, MARGIN + 0.05, text, size=8, color=INK, ha="left", va="center_baseline")
        x, legend_x = x + row * share, legend_x + entry
    return figure


def _arc(axes: Axes, start: tuple[float, float], end: tuple[float, float], y: float) -> None:
    """From the top of one box over the next to the top of the one after, landing left of where its own arc leaves."""
    x0, x1 = start[0] + 0.66 * (start[1] - start[0]), end[0] + 0.34 * (end[1] - end[0])
    curve = Curve([(x0, y), (x0, y + 0.55), (x1, y + 0.55), (x1, y)], [Curve.MOVETO, *[Curve.CURVE4] * 3])
    axes.add_patch(PathPatch(curve, facecolor="none", edgecolor=FAINT, linewidth=1.2, zorder=1))
    _wire(axes, [(x1, y + 0.05), (x1, y)], colour=FAINT, arrow=True)


def _percent(share: float) -> str:
    return "<0.1%" if 0 < share < 0.001 else f"{100 * share:.1f}%" if share < 0.1 else f"{100 * share:.0f}%"


def draw_network(architecture: Architecture, path: Path, details: Details) -> list[Path]:
    """Write the whole network as ``path``.svg and .png."""
    return _save(network_figure(architecture, details), Path(path))


# --- curves --------------------------------------------------------------------------------------------------------


def _grid(panels: int, title: str) -> tuple[Figure, list[Axes]]:
    rows = (panels + 1) // 2
    figure = Figure(figsize=(11, 0.5 + 2.75 * rows), facecolor="white", layout="constrained")
    figure.get_layout_engine().set(w_pad=0.12, h_pad=0.12)
    figure.suptitle(title, size=12, weight="bold", color=INK, x=0.012, ha="left")
    axes = [figure.add_subplot(rows, 2, index + 1) for index in range(panels)]
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
        ax.tick_params(labelsize=8, colors=INK)
        ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    return figure, axes


def _dress(ax: Axes, title: str, *, legend: bool = True, ylabel: str = "") -> None:
    ax.set_title(title, size=9.5, weight="bold", loc="left", color=INK)
    ax.set_xlabel("step", size=8)
    ax.set_ylabel(ylabel, size=8)
    if legend:
        handles, labels = ax.get_legend_handles_labels()
        place = {"loc": "center left", "bbox_to_anchor": (1.0, 0.5)}
        ax.legend(handles[::-1], labels[::-1], fontsize=7.5, frameon=False, handlelength=1.4, **place)


def _stack(ax: Axes, steps: np.ndarray, parts: np.ndarray, labels: Sequence[str], colours: Sequence[Any]) -> None:
    """Shares of one, stacked from below: (parts, records)."""
    ax.stackplot(steps, parts, labels=labels, colors=colours, edgecolor="white", linewidth=0.4)
    ax.set(ylim=(0, 1), xlim=(steps[0], max(steps[-1], steps[0] + 1)))


def _column_of(history: Sequence[dict[str, Any]], *keys: str) -> np.ndarray:
    """One number a record, NaN where a record has none: (records,)."""
    values = []
    for record in history:
        value: Any = record
        for key in keys:
            value = value.get(key) if isinstance(value, dict) else None
        values.append(math.nan if value is None else float(value))
    return np.array(values)


def _names(history: Sequence[dict[str, Any]], key: str) -> list[str]:
    return list(dict.fromkeys(name for record in history for name in record.get(key) or {}))


def _shades(operations: Sequence[str]) -> dict[str, tuple[float, ...]]:
    """A colour for each operation: its family's, paler from one member of the family to the next."""
    seen: dict[str, int] = defaultdict(int)
    shades = {}
    for name in operations:
        kind = family(name)[0]
        shades[name] = _tint(COLOURS[kind], (1.0, 0.65, 0.38, 0.2)[min(seen[kind], 3)])
        seen[kind] += 1
    return shades


def search_figure(history: Sequence[dict[str, Any]]) -> Figure:
    """The curves of a search. Raises ``ConfigError`` when there are no records."""
    if not history:
        raise ConfigError("history: it holds no records, so there is no curve to draw")
    steps = _column_of(history, "step")
    terms = [name for name in _names(history, "terms") if np.nanmax(np.abs(_column_of(history, "terms", name))) > 1e-9]
    palette = dict(zip(_names(history, "terms"), LINE_COLOURS * len(history)))
    words = {"ce": "gold labels", "kd": "teacher's logits", "probes": "teacher's probes", "efficiency": "efficiency"}

    def losses(ax: Axes) -> None:
        for name in terms:
            values = _column_of(history, "terms", name)
            ax.plot(steps, values, color=palette[name], label=words.get(name, name), linewidth=1.6)
        ax.plot(steps, _column_of(history, "loss"), color=INK, label="loss", linewidth=1.2, linestyle="--")
        _dress(ax, "Loss and its weighted terms")

    def loss_shares(ax: Axes) -> None:
        parts = np.abs(np.nan_to_num(np.stack([_column_of(history, "terms", name) for name in terms])))
        parts /= np.maximum(parts.sum(0), 1e-12)
        _stack(ax, steps, parts, [words.get(name, name) for name in terms], [palette[name] for name in terms])
        _dress(ax, "Share of each term in the loss")

    def entropy(ax: Axes) -> None:
        for name, colour in zip(_names(history, "entropy"), LINE_COLOURS):
            values = _column_of(history, "entropy", name)
            ax.plot(steps, values, color=colour, label=f"entropy of {name}", linewidth=1.6)
        ax.plot(steps, _column_of(history, "temperature"), color=INK, label="temperature", linewidth=1.2, ls="--")
        ax.set_ylim(bottom=0)
        _dress(ax, "Entropy (1 = open, 0 = decided) and temperature")

    def operations(ax: Axes) -> None:
        names = sorted(_names(history, "operations"), key=lambda name: list(COLOURS).index(family(name)[0]))
        parts = np.nan_to_num(np.stack([_column_of(history, "operations", name) for name in names]))
        shades = _shades(names)
        _stack(ax, steps, parts, [family(name)[1] for name in names], [shades[name] for name in names])
        _dress(ax, "Mean probability of each operation")

    def choices(key: str, title: str) -> Callable[[Axes], None]:
        def draw(ax: Axes) -> None:
            names = sorted(_names(history, key), key=float)
            p = np.stack([_column_of(history, key, name) for name in names])
            edges = np.concatenate([[2 * steps[0] - steps[1] if len(steps) > 1 else steps[0] - 1], steps])
            image = ax.pcolormesh(edges, np.arange(len(names) + 1) - 0.5, p, cmap="cividis", vmin=0, vmax=1)
            ax.set_yticks(range(len(names)), names)
            bar = ax.figure.colorbar(image, cax=ax.inset_axes((1.03, 0, 0.03, 1)))
            bar.ax.tick_params(labelsize=7.5)
            bar.outline.set_visible(False)
            _dress(ax, title, legend=False)

        return draw

    def cost(ax: Axes) -> None:
        for key, label, colour in (("macs", "MACs", "#0072B2"), ("params", "parameters", "#E69F00")):
            values = _column_of(history, key)
            known = values[~np.isnan(values)]
            if len(known) and known[0] > 0:
                label = f"{label}\n{format_count(known[0])} → {format_count(known[-1])}"
                ax.plot(steps, values / known[0], color=colour, linewidth=1.6, label=label)
        ax.set_ylim(bottom=0)
        _dress(ax, "Expected cost of the cells, start = 1")

    def learning_rate(ax: Axes) -> None:
        ax.plot(steps, _column_of(history, "learning_rate"), color=INK, linewidth=1.4)
        ax.set_ylim(bottom=0)
        _dress(ax, "Learning rate of the weights", legend=False)

    drawers: list[Callable[[Axes], None]] = [losses] + ([loss_shares] if terms else [])
    drawers += [entropy] if _names(history, "entropy") else []
    drawers += [operations] if _names(history, "operations") else []
    gates = (("depth", "Probability of each depth (cells)"), ("width", "Probability of each width (channels)"))
    drawers += [choices(key, title) for key, title in gates if _names(history, key)]
    drawers += [cost] if any(record.get("macs") for record in history) else []
    drawers += [learning_rate] if len(drawers) % 2 else []
    warm = [record["step"] for record in history if record.get("phase") == "warmup"]
    ends = 0 < len(warm) < len(history)
    note = f"  (dotted line: the warm-up ends at step {warm[-1]})" if ends else ""
    figure, axes = _grid(len(drawers), f"Search{note}")
    for ax, draw in zip(axes, drawers):
        draw(ax)
        if ends:
            ax.axvline(warm[-1], color=INK, linewidth=1.0, linestyle=":")
    return figure


def draw_search(history: Sequence[dict[str, Any]], path: Path) -> list[Path]:
    """Write the curves of a search (records of search/history.jsonl) as ``path``.svg and .png."""
    return _save(search_figure(history), Path(path))


def training_figure(histories: dict[str, list[dict[str, Any]]]) -> Figure:
    """Loss, validation metrics and learning rate of several trainings; seeds (``name-seed``) share a colour."""
    histories = {name: history for name, history in histories.items() if history}
    if not histories:
        raise ConfigError("histories: none holds records, so there is no curve to draw")
    kinds = {name: re.sub(r"-\d+$", "", name) for name in histories}
    others = iter(LINE_COLOURS * len(histories))
    colours: dict[str, str] = {}
    for kind in kinds.values():
        if kind not in colours:
            colours[kind] = KIND_COLOURS.get(kind) or next(others)
    metrics = list(dict.fromkeys(m for history in histories.values() for m in _names(history, "validation")))
    figure, axes = _grid(2 + len(metrics), "Training")
    validation = [(f"Validation {metric_name(metric)}", ("validation", metric)) for metric in metrics]
    panels = [("Loss (each system's own terms)", ("loss",)), *validation, ("Learning rate", ("learning_rate",))]
    for ax, (title, keys) in zip(axes, panels):
        for name, history in histories.items():
            values, steps = _column_of(history, *keys), _column_of(history, "step")
            known = ~np.isnan(values)
            colour = INK if keys == ("learning_rate",) else colours[kinds[name]]  # the same for all, as a rule
            marker = {"marker": "o", "markersize": 3.5} if known.sum() < 12 else {}
            ax.plot(steps[known], values[known], color=colour, linewidth=1.3, alpha=0.85, **marker)
        _dress(ax, title, legend=False)
        ax.sharex(axes[0])
    handles = [Line2D([], [], color=colour, linewidth=2.5) for colour in colours.values()]
    names = [KINDS.get(kind, kind.replace("_", " ")).removeprefix("the ").removeprefix("a ") for kind in colours]
    figure.legend(handles, names, loc="outside lower left", ncols=4, fontsize=8.5, frameon=False)
    return figure


def draw_training(histories: dict[str, list[dict[str, Any]]], path: Path) -> list[Path]:
    """Write the curves of several trainings as ``path``.svg and .png."""
    return _save(training_figure(histories), Path(path))


def comparison_figure(report: dict[str, Any]) -> Figure:
    """Score against latency (log) of every system of a report.json; areas grow with parameters, bars are the seeds' sd.

    Systems that are only timed are vertical lines. Raises ``ConfigError`` when no system has both numbers.
    """
    timed = [s for s in report["systems"] if s.get("latency_ms_p50")]
    systems = [s for s in timed if s.get("score_mean") is not None]
    if not systems:
        raise ConfigError("report: no system has both a score and a latency, so there is nothing to compare")
    factor = 1.0 if report["metric"] in ERRORS_OF_MEASUREMENT else 100.0
    scores = [factor * s["score_mean"] for s in systems]
    spread = [factor * (s.get("score_sd") or 0.0) for s in systems]
    figure = Figure(figsize=(9, 5.6), facecolor="white")
    axes = figure.add_axes((0.085, 0.115, 0.89, 0.79))
    times = [s["latency_ms_p50"] for s in timed]
    axes.set_xscale("log")
    axes.set_xlim(min(times) / 2.2, max(times) * 2.2)
    low, high = min(y - d for y, d in zip(scores, spread)), max(y + d for y, d in zip(scores, spread))
    pad = max(0.22 * (high - low), 0.02 * factor if high == low else 0.0)
    axes.set_ylim(low - pad, high + pad)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.grid(True, which="major", color="#E4E4E4", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=9, colors=INK)
    first = next((s for s in systems if s.get("seq_len")), systems[0])
    shape = f"batch {first.get('batch_size')}, {first.get('seq_len')} word pieces"
    where = f"{format_threads(first.get('threads'))}, {first.get('runtime')}"
    axes.set_xlabel(f"median latency in ms (log): {shape}, {where}", size=9, color=INK)
    axes.set_ylabel(metric_name(report["metric"]) + (", points" if factor == 100 else ""), size=9, color=INK)
    title = f"{report['task']}: score against latency, area by parameters"
    axes.set_title(title, size=12, weight="bold", loc="left", color=INK)
    obstacles: list[Extent] = []
    labels: list[_Label] = []
    to_points = 72 / figure.dpi  # figure points do not change with the resolution a figure is saved at

    def point(x: float, y: float) -> tuple[float, float]:
        x_pt, y_pt = axes.transData.transform((x, y)) * to_points
        return x_pt, y_pt

    for s, y, sd in zip(systems, scores, spread):
        colour, is_student = KIND_COLOURS.get(s["kind"], INK), s["kind"] == "student"
        area = 40 + 60 * math.log10(1 + (s.get("params") or 0) / 1e5) ** 1.5  # of the marker, in square points
        axes.errorbar(s["latency_ms_p50"], y, yerr=sd or None, color=colour, linewidth=1.1, capsize=3, zorder=2)
        style = {"color": colour, "edgecolor": "white", "linewidth": 1, "alpha": 0.9, "zorder": 4 if is_student else 3}
        axes.scatter(s["latency_ms_p50"], y, s=area, **style)
        (x_pt, y_pt), radius = point(s["latency_ms_p50"], y), math.sqrt(area / math.pi) + 2
        reach = max(radius, point(s["latency_ms_p50"], y + sd)[1] - y_pt + 3)
        obstacles.append((x_pt - radius, y_pt - radius, x_pt + radius, y_pt + radius))
        obstacles.append((x_pt - 4, y_pt - reach, x_pt + 4, y_pt + reach))
        text = s["name"] + ("" if s.get("params") is None else f", {format_count(s['params'])}")
        labels.append(_Label(text, colour, "bold" if is_student else "normal", x_pt, y_pt, radius))
    for s in timed:
        if s.get("score_mean") is None:
            colour = KIND_COLOURS.get(s["kind"], INK)
            axes.axvline(s["latency_ms_p50"], color=colour, linewidth=1.1, linestyle="--", zorder=1)
            x_pt, y_pt = point(s["latency_ms_p50"], low - pad)
            obstacles.append((x_pt - 1, 0.0, x_pt + 1, math.inf))
            labels.append(_Label(s["name"], colour, "normal", x_pt, y_pt + 12, 1.0))
    left, bottom, right, top = (value * to_points for value in axes.get_window_extent().extents)
    for label, (x, y) in zip(labels, _place_labels(labels, obstacles, (left, bottom, right, top))):
        style = {"size": LABEL_SIZE, "weight": label.weight, "color": [0.72 * c for c in to_rgb(label.colour)]}
        place = {"xycoords": "figure points", "ha": "left", "va": "center_baseline", "zorder": 5}
        axes.annotate(label.text, (x + 2, y + LABEL_HEIGHT / 2), **place, **style)
        near = (min(max(label.x, x), x + label.width), min(max(label.y, y), y + LABEL_HEIGHT))
        if math.hypot(near[0] - label.x, near[1] - label.y) > label.radius + 10:  # far away: a thin line leads there
            line = {"arrowstyle": "-", "color": FAINT, "linewidth": 0.8, "shrinkA": 0, "shrinkB": label.radius}
            place = {"xycoords": "figure points", "textcoords": "figure points", "zorder": 1}
            axes.annotate("", (label.x, label.y), near, arrowprops=line, **place)
    return figure


@dataclass(frozen=True)
class _Label:
    """A text that wants to stand beside the marker of ``radius`` at (x, y); all in points."""

    text: str
    colour: str
    weight: str
    x: float
    y: float
    radius: float

    @property
    def width(self) -> float:
        return 72 * _text_width(self.text, LABEL_SIZE, self.weight) + 4


def _place_labels(labels: Sequence[_Label], obstacles: Sequence[Extent], frame: Extent) -> list[tuple[float, float]]:
    """Lower left corner of each label: the nearest place in the frame that meets no marker and no other label."""
    taken, corners = list(obstacles), []

    def fits(box: Extent) -> bool:
        return frame[0] < box[0] and box[2] < frame[2] and frame[1] < box[1] and box[3] < frame[3]

    def is_free(box: Extent) -> bool:
        return not any(box[0] < b[2] and b[0] < box[2] and box[1] < b[3] and b[1] < box[3] for b in taken)

    for label in labels:
        width, height = label.width, LABEL_HEIGHT
        boxes = []
        for reach in np.arange(label.radius + 3, label.radius + 300, 5):
            for dx, dy in DIRECTIONS:
                x = label.x + dx * reach - (0 if dx > 0.5 else width if dx < -0.5 else width / 2)
                y = label.y + dy * reach - (0 if dy > 0.3 else height if dy < -0.3 else height / 2)
                boxes.append((x, y, x + width, y + height))
        inside = [box for box in boxes if fits(box)]
        taken.append(next(filter(is_free, inside), (inside or boxes)[0]))
        corners.append(taken[-1][:2])
    return corners


def draw_comparison(report: dict[str, Any], path: Path) -> list[Path]:
    """Write score against latency of a report.json's systems as ``path``.svg and .png."""
    return _save(comparison_figure(report), Path(path))


# --- text, and everything at once ----------------------------------------------------------------------------------


def describe(architecture: Architecture, costs: Costs | None) -> str:
    """The architecture for a terminal: every node's edges, operations and costs, and the totals."""
    macro, plural = architecture.macro, "s" * (architecture.depth != 1)
    lines = [
        f"{architecture.space} ({architecture.space_digest}): {architecture.depth} cell{plural}"
        f" of width {architecture.width},"
        f" {macro.inputs} input{'s' * (macro.inputs == 'two')}, {macro.cell_output} cell output,"
        f" {macro.pooling} pooling, seed {architecture.seed}"
    ]
    known = costs or {}
    for cell, numbers in cell_groups(architecture):
        rows = [("node", "from", "operation", "params", "MACs/token")]
        for node, entries in enumerate(cell):
            for edge in entries:
                source = str(edge.source)
                if edge.source < 2:
                    source += f": {'; '.join(_input_lines(edge.source, numbers, macro.inputs))}"
                params, macs = known.get(edge.operation, (None, None))
                rows.append((str(node + 2), source, edge.operation, format_count(params), format_count(macs)))
        widths = [max(len(row[column]) for row in rows) for column in range(5)]
        lines += ["", _ranges(numbers)]
        for row in rows:
            aligned = [c.ljust(w) if i < 3 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths))]
            lines.append("  " + "  ".join(aligned))
    if costs is not None and architecture.cells:
        params = sum(cell_params(cell, costs) or 0 for cell in architecture.cells)
        macs = sum(known.get(name, (0, 0))[1] for name in architecture.operations)
        lines += ["", f"all cells: {format_count(params)} parameters, {format_count(macs)} MACs/token on their edges"]
    return "\n".join(lines)


def inspect(path: Path, output_dir: Path | None) -> str:
    """Draw everything that can be drawn of a run's folder, an architecture.json or a student's folder.

    Figures go to ``output_dir``, else to figures/ beside what was read. Returns the text of ``describe`` and the files.
    Raises ``ConfigError`` when ``path`` is none of these or a file in it cannot be read.
    """
    path = Path(path)
    architecture, config = _find(path)
    folder = Path(output_dir) if output_dir else (path.parent if path.is_file() else path) / "figures"
    text, written = [], []
    if architecture is not None:
        costs, details = _costs_of(architecture, config, where=path)
        text.append(describe(architecture, costs))
        if architecture.cells:
            written += draw_cell(architecture, folder / "cell", costs)
        written += draw_network(architecture, folder / "network", details)
    if path.is_dir():
        if (path / "search" / "history.jsonl").is_file():
            written += draw_search(_read_history(path / "search" / "history.jsonl"), folder / "search")
        histories = {}
        for pattern in FIGURES["training"][0]:
            for file in sorted(path.glob(pattern)):
                histories.setdefault(file.parent.name, _read_history(file))
        if any(histories.values()):
            written += draw_training(histories, folder / "training")
        if (path / "report.json").is_file():
            report = _read_json(path / "report.json")
            if any(s.get("score_mean") is not None and s.get("latency_ms_p50") for s in report.get("systems", [])):
                written += draw_comparison(report, folder / "comparison")
    return "\n\n".join([*text, "\n".join(map(str, written))])


DRAWABLE = (
    "a run's folder (search/architecture.json, search/history.jsonl, report.json), an architecture.json,"
    " a student's folder (config.json with 'architecture')"
)


def _find(path: Path) -> tuple[Architecture | None, dict[str, Any] | None]:
    """The architecture at ``path`` and the student's configuration, as far as they are there."""
    if path.is_file():
        return Architecture.load(path), None
    found, config = path / "search" / "architecture.json", None
    for candidate in (path / "config.json", path / "student" / "config.json"):
        if candidate.is_file():
            config = _read_json(candidate)
            if isinstance(config.get("architecture"), dict):
                break
            raise ConfigError(f"{candidate}: no key 'architecture'; choices: {DRAWABLE}")
    if config is not None:
        return Architecture.from_dict(config["architecture"], where=f"{path}: architecture"), config
    if found.is_file():
        return Architecture.load(found), None
    if (path / "search" / "history.jsonl").is_file() or (path / "report.json").is_file():
        return None, None
    raise ConfigError(f"{path}: nothing to draw is there; choices: {DRAWABLE}")


def _costs_of(architecture: Architecture, config: dict[str, Any] | None, *, where: Path) -> tuple[Costs, Details]:
    """Costs of the operations, per token at the usual length, and parameters of the parts; nothing is allocated."""
    import torch

    from adasearch.operations import OPERATIONS
    from adasearch.student import AdasearchConfig, AdasearchForSequenceClassification
    from adasearch.supernet import operation_costs

    for name in architecture.operations:
        if name not in OPERATIONS:
            known = ", ".join(sorted(OPERATIONS))
            raise ConfigError(f"{where}: unknown operation {name!r} (yours? --import its module); known: {known}")
    length = 128  # tokens; only attention's MACs per token depend on it
    costs = operation_costs(architecture.operations, architecture.width, architecture.macro, length)
    settings = config or {"architecture": architecture.to_dict(), "vocab_size": 8, "sep_token_id": 2}
    with torch.device("meta"):
        student = AdasearchForSequenceClassification(AdasearchConfig.from_dict(settings))

    def count(module: torch.nn.Module) -> int:
        return sum(parameter.numel() for parameter in module.parameters())

    trunk = student.trunk
    details = Details(tuple(count(cell) for cell in trunk.cells))
    if config is not None:
        parts = count(trunk.embeddings), count(trunk.read_out)
        details = Details(details.cells, *parts, student.config.vocab_size, student.config.num_labels)
    per_token = {name: (round(float(cost.params)), round(float(cost.macs) / length)) for name, cost in costs.items()}
    return per_token, details


def _read_json(path: Path) -> Any:
    try:
        return read_json(path)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: it cannot be read ({error}); choices: JSON as adasearch writes it") from error


def _read_history(path: Path) -> list[dict[str, Any]]:
    """Records of a history, one a line or one JSON list."""
    if path.suffix == ".json":
        return _read_json(path)
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: it cannot be read ({error}); choices: one JSON record a line") from error
