"""Zeros in the layers of sparse models, as text and as a picture. A run keeps them in ``zeros.json``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from adasearch.canvas import INK, LINE_COLOURS, new_canvas, save_figure, text_width, tint
from adasearch.files import read_json, write_json
from adasearch.formats import align_columns

FILE = "zeros.json"
CELL, HEAD = (0.58, 0.21), 0.6  # inches of a matrix's cell, and above a system's first row
DARK = 0.55  # share of zeros from which a cell is too dark for dark text
Shares = Mapping[str, float]  # share of zeros by layer, in the model's order


def write_zeros(folder: Path, systems: Mapping[str, Shares]) -> None:
    """Write ``zeros.json``: the shares by system."""
    write_json(folder / FILE, {"systems": systems})


def read_zeros(path: Path) -> dict[str, dict[str, float]]:
    """Those of a run's folder; none where there are none."""
    return read_json(path / FILE)["systems"] if (path / FILE).is_file() else {}


def describe_zeros(systems: Mapping[str, Shares]) -> str:
    """A line a system: the least and the greatest share of a layer."""
    lines = [["system", "layers", "zeros in a layer"]]
    for name, shares in systems.items():
        lines.append([name, str(len(shares)), f"{100 * min(shares.values()):.2f}% to {100 * max(shares.values()):.2f}%"])
    return align_columns(lines)


def zeros_figure(systems: Mapping[str, Shares]) -> Figure:
    """A panel a system: its layers from left to right, their matrices from top to bottom, the percentage of zeros in each."""
    grids = {name: _grid(shares) for name, shares in systems.items()}
    heights = [HEAD + CELL[1] * len(parts) for parts, _, _ in grids.values()]
    names = max(text_width(part, 7.5) for parts, _, _ in grids.values() for part in parts)
    width = max(5.5, names + 0.5 + CELL[0] * max(len(layers) for _, layers, _ in grids.values()))
    figure, axes = new_canvas(width, sum(heights) + 0.1)
    top = sum(heights)
    for (name, (parts, layers, shares)), height in zip(grids.items(), heights):
        axes.text(0.1, top - 0.12, name, size=9, weight="bold", color=INK, va="center")
        for column, layer in enumerate(layers):
            axes.text(names + 0.3 + CELL[0] * (column + 0.5), top - 0.32, f"layer {layer}", size=6.5, color=INK, ha="center", va="center")
        for row, part in enumerate(parts):
            y = top - HEAD - CELL[1] * (row + 1) + 0.14
            axes.text(names + 0.2, y + CELL[1] / 2, part, size=7.5, color=INK, ha="right", va="center")
            for column, layer in enumerate(layers):
                if (part, layer) in shares:
                    _put_share(axes, names + 0.3 + CELL[0] * column, y, shares[part, layer])
        top -= height
    return figure


def _grid(shares: Shares) -> tuple[list[str], list[int], dict[tuple[str, int], float]]:
    """Matrices, layers, and the share of each pair that there is; a name's first number is its layer's."""
    found = {}
    for name, share in shares.items():
        match = re.fullmatch(r".*?\b(\d+)\.(.+)", name)
        found[(match[2], int(match[1])) if match else (name, 0)] = share
    return list(dict.fromkeys(part for part, _ in found)), sorted({layer for _, layer in found}), found


def _put_share(axes: Axes, x: float, y: float, share: float) -> None:
    """A cell, darker with more zeros."""
    face = tint(LINE_COLOURS[0], 0.9 * share)
    axes.add_patch(Rectangle((x, y), 0.94 * CELL[0], 0.88 * CELL[1], facecolor=face, edgecolor="none"))
    colour = "white" if share > DARK else INK
    axes.text(x + 0.47 * CELL[0], y + 0.44 * CELL[1], f"{100 * share:.1f}", size=6.5, color=colour, ha="center", va="center")


def draw_zeros(systems: Mapping[str, Shares], path: Path) -> list[Path]:
    """Write the picture as ``path``.svg and .png."""
    return save_figure(zeros_figure(systems), Path(path))
