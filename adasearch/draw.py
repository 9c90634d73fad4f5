"""Pictures of what was found: the derived cell and the whole network, as figures and as text."""

from __future__ import annotations

from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import PathPatch, Rectangle
from matplotlib.path import Path as Curve

from adasearch.architecture import Architecture
from adasearch.canvas import COLOURS, FAINT, INK, Line, family, head, new_canvas, put_box, put_lines, put_wire
from adasearch.canvas import small, text_width, widest
from adasearch.cell_panel import CellPanel
from adasearch.errors import ConfigError
from adasearch.formats import format_count
from adasearch.layout import Costs, cell_groups, cell_params, input_lines, name_ranges, place_edges

MARGIN = 0.3  # inches


def cell_figure(architecture: Architecture, costs: Costs | None) -> Figure:
    """The derived cell, one panel for each distinct one. Raises ``ConfigError`` when there are no cells."""
    if not architecture.cells:
        raise ConfigError(f"architecture {architecture.space}: it has no cells, so there is none to draw")
    panels = []
    for cell, numbers in cell_groups(architecture):
        inputs = [input_lines(node, numbers, architecture.macro.inputs) for node in (0, 1)]
        panels.append(CellPanel(name_ranges(numbers), cell, place_edges(cell), inputs, architecture, costs))
    families = [name for name in COLOURS if name in {family(operation)[0] for operation in architecture.operations}]
    entries = [0.36 + text_width(name, 8.5) + 0.25 for name in families]
    plural = "s" * (architecture.depth != 1)
    title = f"{architecture.space}: {architecture.depth} cell{plural} of width {architecture.width}"
    if costs is not None:
        total = sum(cell_params(cell, costs) or 0 for cell in architecture.cells)
        title += f", {format_count(total)} parameters on their edges"
    width = max([panel.width for panel in panels] + [sum(entries), text_width(title, 12, "bold")]) + 2 * MARGIN
    height = 2 * MARGIN + 0.4 + sum(panel.height + 0.3 for panel in panels) + 0.25
    figure, axes = new_canvas(width, height)
    top = height - MARGIN
    axes.text(MARGIN, top - 0.1, title, size=12, weight="bold", color=INK, ha="left", va="center_baseline")
    top -= 0.45
    for panel in panels:
        panel.draw(axes, MARGIN, top)
        top -= panel.height + 0.3
    x = MARGIN
    for name, entry in zip(families, entries):
        put_box(axes, x, MARGIN, 0.26, 0.17, COLOURS[name])
        axes.text(x + 0.36, MARGIN, name, size=8.5, color=INK, ha="left", va="center_baseline")
        x += entry
    return figure


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
        return small("parameters unknown" if params is None else f"{format_count(params)} params{share}")

    size = macro.embedding_size or width
    table = f"{details.vocab_size:,} × {size}" if details.vocab_size else f"vocabulary × {size}"
    table = f"{table} → {width}" if size != width else table
    both = [small("each sentence by itself")] if macro.inputs == "two" else []
    boxes = [([head("embeddings"), small(table), *both, cost(details.embeddings)], COLOURS["skip"])]
    for number, (cell, params) in enumerate(zip(architecture.cells, details.cells), start=1):
        shape = small(f"{len(cell)} nodes · {sum(map(len, cell))} edges")
        boxes.append(([head(f"cell {number}"), shape, cost(params)], COLOURS["convolution"]))
    read_out = [head("read-out"), small("weighted sum of the levels, tanh"),
                small(f"linear {width} → {details.labels or 'labels'}"), cost(details.read_out)]  # fmt: skip
    widths = [widest(lines) + 0.24 for lines, _ in boxes]
    in_cells = sum(details.cells)
    counted = f"{format_count(in_cells if total is None else total)} parameters{' in the cells' * (total is None)}"
    title = f"{architecture.space}: {counted}"
    parts = [("embeddings", details.embeddings, COLOURS["skip"]), ("cells", in_cells, COLOURS["convolution"]),
             ("read-out", details.read_out, COLOURS["gated"])]  # fmt: skip
    shares = [(f"{name} {_percent(n / total)}", n / total, colour) for name, n, colour in parts if n] if total else []
    legend = [0.22 + text_width(text, 8) + 0.3 for text, _, _ in shares]
    boxes_width = sum(widths) + 0.5 * (len(widths) - 1)
    row = max(boxes_width, widest(read_out) + 0.3, sum(legend), text_width(title, 12, "bold"))
    arcs, bars = (0.55 if architecture.depth > 1 else 0.0), (0.62 if total else 0.0)
    height = 3.5 + arcs + bars
    figure, axes = new_canvas(row + 2 * MARGIN, height)
    axes.text(MARGIN, height - MARGIN - 0.05, title, size=12, weight="bold", color=INK, ha="left", va="center_baseline")
    middle = height - 1.1 - arcs
    bar = middle - 1.7
    x, spans = MARGIN + (row - boxes_width) / 2, []
    for (lines, colour), box_width in zip(boxes, widths):
        put_box(axes, x, middle, box_width, 0.82, colour)
        put_lines(axes, x + box_width / 2, middle, lines)
        spans.append((x, x + box_width))
        x += box_width + 0.5
    for index, (start, end) in enumerate(zip(spans, spans[1:])):
        put_wire(axes, [(start[1], middle), (end[0], middle)], arrow=True)
        if index:  # a cell's second input is the output of the cell before the previous one
            _arc(axes, spans[index - 1], end, middle + 0.41)
    pool_y = (middle - 0.41 + bar + 0.45) / 2
    for start, end in spans:
        centre = (start + end) / 2
        put_wire(axes, [(centre, middle - 0.41), (centre, bar + 0.45)], arrow=True)
        label = f"{macro.pooling} pooling"
        pill = text_width(label, 7.5) + 0.16
        gap = Rectangle((centre - pill / 2, pool_y - 0.1), pill, 0.2, facecolor="white", linewidth=0, zorder=2)
        axes.add_patch(gap)
        axes.text(centre, pool_y, label, size=7.5, color=INK, ha="center", va="center_baseline", zorder=4)
    put_box(axes, MARGIN, bar, row, 0.9, COLOURS["gated"])
    put_lines(axes, MARGIN + row / 2, bar, read_out)
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
    put_wire(axes, [(x1, y + 0.05), (x1, y)], colour=FAINT, arrow=True)


def _percent(share: float) -> str:
    return "<0.1%" if 0 < share < 0.001 else f"{100 * share:.1f}%" if share < 0.1 else f"{100 * share:.0f}%"


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
                    source += f": {'; '.join(input_lines(edge.source, numbers, macro.inputs))}"
                params, macs = known.get(edge.operation, (None, None))
                rows.append((str(node + 2), source, edge.operation, format_count(params), format_count(macs)))
        widths = [max(len(row[column]) for row in rows) for column in range(5)]
        lines += ["", name_ranges(numbers)]
        for row in rows:
            aligned = [c.ljust(w) if i < 3 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths))]
            lines.append("  " + "  ".join(aligned))
    if costs is not None and architecture.cells:
        params = sum(cell_params(cell, costs) or 0 for cell in architecture.cells)
        macs = sum(known.get(name, (0, 0))[1] for name in architecture.operations)
        lines += ["", f"all cells: {format_count(params)} parameters, {format_count(macs)} MACs/token on their edges"]
    return "\n".join(lines)
