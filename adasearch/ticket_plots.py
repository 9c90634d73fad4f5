"""How much the tickets of a search differ from each other, as a picture: when it has settled, it is dark around the end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from adasearch.canvas import INK
from adasearch.files import read_json

FILE = "mask_distances.json"  # beside a model: ``check_every`` and, for heads and neurons, a distance for each pair of checks


def read_distances(path: Path) -> dict[str, dict[str, Any]]:
    """Those of a run's models by folder, in the order in which they were made; of one model's folder; none where there are none."""
    found = [path / FILE] if (path / FILE).is_file() else sorted((path / "models").glob(f"*/{FILE}"), key=lambda file: file.stat().st_mtime_ns)
    return {file.parent.name: read_json(file) for file in found}


def distances_figure(name: str, distances: dict[str, Any]) -> Figure:
    """A square for heads and one for neurons: share of elements in which the tickets of two checks differ."""
    families = [family for family in ("heads", "neurons") if family in distances]
    figure = Figure(figsize=(4.3 * len(families), 3.9), facecolor="white", layout="constrained")
    figure.suptitle(f"{name}: share of elements in which two tickets differ", fontsize=10, fontweight="bold", color=INK, x=0.01, ha="left")
    every = distances["check_every"]
    for axes, family in zip(np.atleast_1d(figure.subplots(1, len(families))), families):
        values_TT = np.array(distances[family])
        end = every * (len(values_TT) + 0.5)
        image = axes.imshow(values_TT, cmap="cividis", vmin=0, origin="lower", extent=(every / 2, end, every / 2, end))
        axes.set_title(family, fontsize=9, loc="left", color=INK)
        axes.set_xlabel("drawn after this step", fontsize=8)
        axes.tick_params(labelsize=8)
        bar = figure.colorbar(image, ax=axes, shrink=0.85)
        bar.ax.tick_params(labelsize=7.5)
        bar.outline.set_visible(False)
    return figure
