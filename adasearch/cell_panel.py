"""One cell as a part of a picture: its nodes, its operations in rows, the wires between them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.patches import Circle

from adasearch.architecture import Architecture, CellChoice, Edge
from adasearch.canvas import COLOURS, FAINT, INK, Line, family, head, put_box, put_lines, put_wire, small, text_width, widest
from adasearch.formats import format_count
from adasearch.layout import Costs, Placed, column_of

ROW, BOX_HEIGHT, GAP, NODE_RADIUS = 0.78, 0.58, 0.62, 0.19  # inches


@dataclass
class CellPanel:
    """One distinct cell measured and ready to be drawn."""

    title: str
    cell: CellChoice
    placed: list[Placed]
    inputs: list[list[str]]
    architecture: Architecture
    costs: Costs | None

    def __post_init__(self) -> None:
        self.edge_lines = [_edge_lines(p.edge, self.architecture.width, self.costs) for p in self.placed]
        self.input_width = max(text_width(line, 8.5, "bold") for lines in self.inputs for line in lines) + 0.24
        self.box_widths = [0.8] * len(self.cell)
        for p, lines in zip(self.placed, self.edge_lines):
            column = column_of(p.target) - 1
            self.box_widths[column] = max(self.box_widths[column], widest(lines) + 0.22)
        rows = [p.row for p in self.placed]
        self.top, self.bottom = max([1, *rows]), min([-1, *rows])
        self.output_width = text_width("attentive sum", 8.5) + 0.24
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
            lines = [head(role), *map(small, exceptions), *([] if is_used else [small("not used")])]
            height = 0.2 + sum(1.45 * size / 72 for _, size, _ in lines)
            put_box(axes, left, inputs_y[node], self.input_width, height, INK if is_used else FAINT, dashed=not is_used)
            put_lines(axes, left + self.input_width / 2, inputs_y[node], lines, INK if is_used else "#767676")
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
        column, source = column_of(p.target) - 1, p.edge.source
        y, width = middle + p.row * ROW, self.box_widths[column]
        node_x = left + self.nodes_x[column]
        box_x = node_x - NODE_RADIUS - GAP - width
        if source < 2:
            start = (left + self.input_width, inputs_y[source])
        else:
            start = (left + self.nodes_x[source - 2] + NODE_RADIUS, middle)
        lane = (start[0] + GAP, y)  # from here on the wire keeps to its row
        put_wire(axes, [start, lane, (box_x, y)] if lane[0] < box_x - 1e-6 else [start, (box_x, y)])
        put_wire(axes, [(box_x + width, y), (node_x - NODE_RADIUS, middle)], arrow=True)
        gid = f"edge-{self.title.replace(' ', '-')}-{source}-{p.target}-{p.edge.operation}"
        put_box(axes, box_x, y, width, BOX_HEIGHT, COLOURS[family(p.edge.operation)[0]], gid=gid)
        put_lines(axes, box_x + width / 2, y, lines)

    def _draw_output(self, axes: Axes, left: float, middle: float) -> None:
        bus = middle + (self.bottom - 0.5) * ROW - 0.12
        output_x = left + self.width - self.output_width
        for number, node_x in enumerate(self.nodes_x):
            x = left + node_x
            axes.add_patch(Circle((x, middle), NODE_RADIUS, facecolor="white", edgecolor=INK, linewidth=1.2, zorder=3))
            put_lines(axes, x, middle, [(str(number + 2), 9, "bold")])
            put_wire(axes, [(x, middle - NODE_RADIUS), (x, bus)], colour=FAINT, dashed=True)
        end = (output_x + self.output_width / 2, middle - 0.24)
        put_wire(axes, [(left + self.nodes_x[0], bus), (end[0], bus)], colour=FAINT, dashed=True)
        put_wire(axes, [(end[0], bus), end], colour=FAINT, dashed=True, arrow=True)
        put_box(axes, output_x, middle, self.output_width, 0.48, INK)
        how = {"attentive": "attentive sum", "sum": "sum", "mean": "mean"}.get(self.architecture.macro.cell_output, "")
        put_lines(axes, output_x + self.output_width / 2, middle, [head("output"), small(how)])


def _edge_lines(edge: Edge, width: int, costs: Costs | None) -> list[Line]:
    name = head(family(edge.operation)[1])
    if costs is None or edge.operation not in costs:
        return [name, small(f"width {width}")]
    params, macs = costs[edge.operation]
    if not params and not macs:
        return [name, small(f"width {width}"), small("no cost")]
    return [name, small(f"width {width} · {format_count(params)} params"), small(f"{format_count(macs)} MACs/token")]
