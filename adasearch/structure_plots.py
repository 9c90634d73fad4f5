"""What is left of an encoder's layers, as text and as a picture: heads, neurons, hidden dimensions, of how many.

A run keeps it in ``structure.json``; a model's folder says it in its config.json.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from adasearch.canvas import COLOURS, FAINT, INK, new_canvas, put_lines, small, text_width, tint
from adasearch.files import read_json, write_json
from adasearch.formats import format_count

MODEL_TYPE = "adasearch-encoder"
CELL_WIDTH, HEADS_HEIGHT, NEURONS_HEIGHT, GAP = 0.78, 0.44, 0.34, 0.1  # inches, of one layer in the picture
NAME_WIDTH, MARGIN, TITLE_HEIGHT = 2.15, 0.2, 0.42
PER_ROW = 6  # heads side by side


@dataclass(frozen=True)
class Structure:
    """The sizes of one model, and the ``full`` sizes of what it was cut from; ``sparsity`` of its encoder where known.

    Where not ``is_full_known`` the full sizes are only those that it is drawn against: of its own largest layer.
    """

    name: str
    kind: str
    hidden: int
    heads: list[int]
    neurons: list[int]
    full_hidden: int
    full_heads: list[int]
    full_neurons: list[int]
    sparsity: float | None = None
    is_full_known: bool = True


def write_structures(folder: Path, structures: Sequence[Structure]) -> None:
    """Write ``structure.json``."""
    write_json(folder / "structure.json", {"systems": [asdict(structure) for structure in structures]})


def read_structures(path: Path) -> list[Structure]:
    """Those of a run's folder, or the one of an encoder's folder; none where it is neither."""
    if (path / "structure.json").is_file():
        return [Structure(**entry) for entry in read_json(path / "structure.json")["systems"]]
    config = read_json(path / "config.json") if (path / "config.json").is_file() else {}
    if config.get("model_type") != MODEL_TYPE:
        return []
    hidden, heads, neurons = config["hidden_size"], config["heads"], config["neurons"]
    # what it was cut from is not in its folder: the largest layer stands for it
    full = hidden, [max(heads, default=0)] * len(heads), [max(neurons, default=0)] * len(neurons)
    return [Structure(path.name, "student", hidden, heads, neurons, *full, is_full_known=False)]


def describe_structures(structures: Sequence[Structure]) -> str:
    """A table a model, a line a layer."""
    return "\n\n".join(map(_describe, structures))


def _describe(structure: Structure) -> str:
    lines = [f"{_title(structure)}: {_of(structure, structure.hidden, structure.full_hidden)} hidden dimensions"]
    rows = [["layer", "heads", "neurons"]]
    layers = zip(structure.heads, structure.full_heads, structure.neurons, structure.full_neurons, strict=True)
    rows += [[str(n), _of(structure, *sizes[:2]), _of(structure, *sizes[2:])] for n, sizes in enumerate(layers)]
    sums = [sum(sizes) for sizes in (structure.heads, structure.full_heads, structure.neurons, structure.full_neurons)]
    rows.append(["all", _of(structure, *sums[:2]), _of(structure, *sums[2:])])
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    return "\n".join(lines + ["  " + "  ".join(cell.rjust(width) for cell, width in zip(row, widths)) for row in rows])


def _title(structure: Structure) -> str:
    gone = "" if structure.sparsity is None else f", {100 * structure.sparsity:.1f}% of the encoder is gone"
    return f"{structure.name}{gone}"


def _of(structure: Structure, left: int, full: int) -> str:
    """How many are left, and of how many where that is known."""
    count = f"{left:,}" if left else "none"
    return f"{count} of {full:,}" if structure.is_full_known else count


def structure_figure(structures: Sequence[Structure]) -> Figure:
    """A band a model, a column a layer: a square a head, a bar of neurons; what is gone is an outline."""
    layers = max(len(structure.heads) for structure in structures)
    name_width = max(NAME_WIDTH, *(text_width(structure.name, 9, "bold") + 0.3 for structure in structures))
    band = HEADS_HEIGHT + NEURONS_HEIGHT + 3.2 * GAP
    width, height = 2 * MARGIN + name_width + layers * CELL_WIDTH, 2 * MARGIN + TITLE_HEIGHT + band * len(structures)
    figure, axes = new_canvas(width, height)
    left = MARGIN + name_width
    for layer in range(layers):
        put_lines(axes, left + (layer + 0.5) * CELL_WIDTH, height - MARGIN - 0.12, [small(f"layer {layer}")])
    for row, structure in enumerate(structures):
        top = height - MARGIN - TITLE_HEIGHT - row * band
        _put_name(axes, structure, MARGIN, top, name_width)
        for layer in range(len(structure.heads)):
            x = left + layer * CELL_WIDTH + GAP / 2
            _put_heads(axes, x, top, structure.heads[layer], structure.full_heads[layer])
            _put_neurons(axes, x, top - HEADS_HEIGHT - GAP, structure.neurons[layer], structure.full_neurons[layer])
    return figure


def _put_name(axes: Axes, structure: Structure, x: float, top: float, width: float) -> None:
    """Name, sparsity and a bar of hidden dimensions."""
    axes.text(x, top - 0.1, structure.name, size=9, weight="bold", color=INK, va="center")
    gone = "" if structure.sparsity is None else f"{100 * structure.sparsity:.1f}% of the encoder gone"
    axes.text(x, top - 0.3, gone, size=7.5, color=INK, va="center")
    y, height, full = top - HEADS_HEIGHT - GAP - NEURONS_HEIGHT, 0.13, width - 0.3
    _put_bar(axes, x, y, full, height, structure.hidden / max(1, structure.full_hidden), COLOURS["convolution"])
    axes.text(x, y + height + 0.1, f"hidden {_of(structure, structure.hidden, structure.full_hidden)}", size=7.5, color=INK, va="center")


def _put_heads(axes: Axes, x: float, top: float, left: int, full: int) -> None:
    """Squares in rows of ``PER_ROW``; of many heads as many squares as there is room for are drawn smaller."""
    per_row = max(PER_ROW, -(-full // 3))
    size = (CELL_WIDTH - GAP) / per_row
    for head in range(full):
        row, column = divmod(head, per_row)
        corner = x + column * size, top - (row + 1) * size
        is_left = head < left
        axes.add_patch(Rectangle(
            corner, 0.82 * size, 0.82 * size, facecolor=tint(COLOURS["attention"], 0.75) if is_left else "white",
            edgecolor=COLOURS["attention"] if is_left else FAINT, linewidth=0.7,
        ))  # fmt: skip
    text = f"{left} heads" if left != 1 else "1 head"
    _put_text(axes, x, top - HEADS_HEIGHT + 0.04, text if left else "no attention")


def _put_neurons(axes: Axes, x: float, top: float, left: int, full: int) -> None:
    """A bar, full where all neurons are left."""
    _put_bar(axes, x, top - 0.16, CELL_WIDTH - GAP, 0.16, left / max(1, full), COLOURS["pool"])
    text = f"{format_count(left)} neurons" if left else "no feed-forward"
    _put_text(axes, x, top - 0.26, text)


def _put_text(axes: Axes, x: float, y: float, text: str) -> None:
    """A line below the middle of a layer's squares or bar."""
    axes.text(x + (CELL_WIDTH - GAP) / 2, y, text, size=6.5, color=INK, ha="center", va="center")


def _put_bar(axes: Axes, x: float, y: float, width: float, height: float, share: float, colour: str) -> None:
    axes.add_patch(Rectangle((x, y), width, height, facecolor="white", edgecolor=FAINT, linewidth=0.7))
    axes.add_patch(Rectangle((x, y), share * width, height, facecolor=tint(colour, 0.75), edgecolor=colour, linewidth=0.7 * (share > 0)))


def structure_of(name: str, kind: str, config: Any, full: Any, sparsity: float | None = None) -> Structure:
    """From the configurations of an encoder and of the one it was cut from."""
    own, whole = ((sizes.hidden_size, list(sizes.heads), list(sizes.neurons)) for sizes in (config, full))
    return Structure(name, kind, *own, *whole, sparsity)
