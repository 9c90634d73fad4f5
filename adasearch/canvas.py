"""What all pictures share: colours, the names of operations, boxes, wires and lines of text, and the writing of files.

Figures are matplotlib objects made without pyplot, so nothing global is touched; each is written as SVG (with real
text) and PNG. Diagrams are laid out in inches on one axes that covers the figure: what is a box here is a box there.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.patches import FancyBboxPatch, PathPatch
from matplotlib.path import Path as Curve
from matplotlib.textpath import text_to_path

from adasearch.files import write_atomically
from adasearch.report import KINDS

# Okabe and Ito's palette: told apart by every common kind of colour vision; names in the boxes serve grey print.
COLOURS = {
    "convolution": "#0072B2", "separable": "#56B4E9", "dilated": "#E69F00", "gated": "#D55E00", "pool": "#009E73",
    "attention": "#CC79A7", "pair": "#882255", "inherited": "#332288", "skip": "#7F7F7F", "other": "#B8A800",
}  # fmt: skip
OPERATION_NAMES = {  # name without its kernel -> (family, readable name)
    "conv": ("convolution", "conv"), "sep_conv": ("separable", "separable conv"), "gated_conv": ("gated", "gated conv"),
    "dilated_conv": ("dilated", "dilated conv"), "dilated_sep_conv": ("dilated", "dilated sep. conv"),
    "max_pool": ("pool", "max pool"), "avg_pool": ("pool", "average pool"), "skip": ("skip", "skip"),
    "none": ("skip", "none"), "self_attention": ("attention", "self-attention"),
    "soft_alignment": ("attention", "soft alignment"), "cross_attention": ("attention", "cross-attention"),
    "inherited_": ("inherited", "teacher layer"), "pair_compare": ("pair", "pair compare"), "max_matching": ("pair", "max matching"),
}  # fmt: skip
KIND_COLOURS = dict(zip(KINDS, ("#000000", "#D55E00", "#E69F00", "#0072B2", "#009E73", "#CC79A7", "#7F7F7F", "#56B4E9", "#B8A800",
                               "#E69F00", "#009E73", "#56B4E9", "#CC79A7")))  # kinds of one method share no colour
INK, FAINT, WIRE = "#222222", "#A8A8A8", "#555555"
PNG_DPI = 150  # 8-point text is 17 pixels high
LINE_COLOURS = ("#0072B2", "#56B4E9", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#7F7F7F")
Line = tuple[str, float, str]  # text, points, weight


def family(operation: str) -> tuple[str, str]:
    """Family and readable name; the family of an operation that is not ours is "other"."""
    base = operation.rstrip("0123456789")
    kind, words = OPERATION_NAMES.get(base, ("other", base.replace("_", " ").strip()))
    return kind, f"{words} {operation[len(base):]}".strip()


def by_family(operations: Iterable[str]) -> list[str]:
    """Operations in the order of their families."""
    return sorted(operations, key=lambda name: list(COLOURS).index(family(name)[0]))


def tint(colour: str, share: float = 0.22) -> tuple[float, ...]:
    """The colour on white: pale enough for black text."""
    return tuple(share * channel + 1 - share for channel in to_rgb(colour))


def save_figure(figure: Figure, path: Path) -> list[Path]:
    """Write ``path`` with .svg and .png; the same figure gives the same bytes."""
    written = [path.with_name(f"{path.name}.{kind}") for kind in ("svg", "png")]
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "adasearch"}):
        for target, kind in zip(written, ("svg", "png")):
            metadata = {"Date": None} if kind == "svg" else {"Software": None}
            settings = {"format": kind, "dpi": PNG_DPI, "metadata": metadata}
            write_atomically(target, lambda partial: figure.savefig(partial, **settings))
    return written


def text_width(text: str, size: float, weight: str = "normal") -> float:
    """Inches that a line of text takes."""
    font = FontProperties(size=size, weight=weight)
    return text_to_path.get_text_width_height_descent(text, font, ismath=False)[0] / 72


def head(text: str) -> Line:
    """The name of a box."""
    return text, 8.5, "bold"


def small(text: str) -> Line:
    """A detail below the name."""
    return text, 7.5, "normal"


def widest(lines: Sequence[Line]) -> float:
    """Inches that the widest line takes."""
    return max((text_width(*line) for line in lines), default=0.0)


def new_canvas(width: float, height: float) -> tuple[Figure, Axes]:
    """A white figure whose one axes counts inches from the lower left corner."""
    figure = Figure(figsize=(width, height), facecolor="white")
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, width), ylim=(0, height))
    axes.axis("off")
    return figure, axes


def dress_axes(axes: Axes, title: str, title_size: float = 12, tick_size: float = 9) -> None:
    """A plot's title, grid, ticks, and two of its four sides; sizes in points, smaller ones for one of many panels."""
    axes.set_title(title, size=title_size, weight="bold", loc="left", color=INK)
    axes.grid(True, which="major", color="#E4E4E4", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=tick_size, colors=INK)


def plot_axes(title: str, size: tuple[float, float] = (8.4, 4.8)) -> tuple[Figure, Axes]:
    """A white figure of ``size`` inches with one dressed axes."""
    figure = Figure(figsize=size, facecolor="white", layout="constrained")
    axes = figure.add_subplot()
    dress_axes(axes, title)
    return figure, axes


def put_lines(axes: Axes, x: float, y: float, lines: Sequence[Line], colour: str = INK) -> None:
    """Centred lines of (text, points, weight) around (x, y), at 1.45 line height."""
    heights = [1.45 * size / 72 for _, size, _ in lines]
    top = y + sum(heights) / 2
    for (text, size, weight), height in zip(lines, heights):
        axes.text(x, top - height / 2, text, size=size, weight=weight, color=colour, ha="center", va="center_baseline")
        top -= height


def put_box(
    axes: Axes, x: float, y: float, width: float, height: float, colour: str, *, dashed: bool = False,
    gid: str | None = None,
) -> None:  # fmt: skip
    """A rounded box with its left edge at x and centred on y."""
    face = "white" if dashed else tint(colour, 0.06 if colour == INK else 0.22)
    axes.add_patch(FancyBboxPatch(
        (x, y - height / 2), width, height, boxstyle="round,pad=0,rounding_size=0.07", linewidth=1.1, edgecolor=colour,
        facecolor=face, linestyle="--" if dashed else "-", zorder=3, gid=gid,
    ))  # fmt: skip


def put_wire(
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
