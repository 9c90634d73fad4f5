"""CoFi's pruning as a picture: what was to be saved and what was, what is open, who learned from whom, the multipliers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from adasearch.canvas import INK, LINE_COLOURS, dress_axes
from adasearch.cofi_config import target_name
from adasearch.files import read_json

FAMILIES = {"mha_N": "attention sublayers", "ffn_N": "feed-forward sublayers", "heads": "heads", "neurons": "neurons", "hidden_D": "hidden"}


def read_prunings(path: Path) -> dict[str, list[dict[str, Any]]]:
    """Records of the pruning of a run's CoFi models by folder, those of each target's first seed; none where there are none."""
    found: dict[str, list[dict[str, Any]]] = {}
    seen: set[str] = set()
    for file in sorted((path / "models").glob("cofi-*/history.json"), key=lambda file: file.stat().st_mtime_ns):
        target = file.parent.name.rsplit("-", 1)[0]
        records = [record for record in read_json(file) if "expected_saved" in record]
        if target not in seen and records:
            found[file.parent.name] = records
        seen.add(target)
    return found


def prunings_figure(prunings: Mapping[str, Sequence[dict[str, Any]]]) -> Figure:
    """A row for each model, four panels over the steps: share saved, share open, matching, multipliers."""
    figure = Figure(figsize=(15, 0.3 + 2.9 * len(prunings)), facecolor="white", layout="constrained")
    rows = figure.subplots(len(prunings), 4, squeeze=False)
    for row, (folder, records) in zip(rows, prunings.items()):
        _draw_row(row, _title(folder), records)
    for ax in rows[0]:  # above the curves, which go everywhere; the rows below have the same colours
        if ax.get_legend_handles_labels()[0]:
            ax.legend(fontsize=8, frameon=False, ncol=3, loc="lower left", bbox_to_anchor=(-0.05, 1.08), columnspacing=1.0, handlelength=1.4)
    return figure


def _title(folder: str) -> str:
    """The target and seed that a model's folder is named by, in words."""
    kind, target, seed = folder.removeprefix("cofi-").split("-", 2)
    return f"{target_name(kind, float(target))}, seed {seed}"


def _draw_row(row: Sequence[Axes], title: str, records: Sequence[dict[str, Any]]) -> None:
    saved, opened, matched, multipliers = row
    steps = [record["step"] for record in records]
    for name, label, style in (("target", "target", "--"), ("expected_saved", "on average", "-"), ("saved", "as the gates would be cut", ":")):
        colour = INK if name == "target" else LINE_COLOURS[0] if name == "saved" else LINE_COLOURS[4]
        saved.plot(steps, [100 * record[name] for record in records], style, color=colour, label=label)
    _finish(saved, "saved, %", title)
    for colour, (name, label) in zip(LINE_COLOURS, FAMILIES.items()):
        shares = [record["open"].get(name) for record in records]
        if shares[0] is not None:
            opened.plot(steps, [100 * share for share in shares], color=colour, label=label)
    _finish(opened, "open on average, %")
    for colour, layer in zip(cycle(LINE_COLOURS), records[0]["match"]):  # there may be more layers than colours
        pairs = [(record["step"], record["match"].get(layer)) for record in records]
        known = [(step, student) for step, student in pairs if student is not None]
        matched.plot([step for step, _ in known], [student for _, student in known], ".", color=colour, markersize=4, label=f"teacher's {layer}")
    _finish(matched, "student's layer that learns from")
    for index, name in enumerate(("λ1", "λ2")):
        multipliers.plot(steps, [record["multipliers"][index] for record in records], color=LINE_COLOURS[index], label=name)
    _finish(multipliers, "multipliers")


def _finish(ax: Axes, label: str, title: str = "") -> None:
    dress_axes(ax, title, 10, 8.5)
    ax.set_ylabel(label, size=9, color=INK)
    ax.set_xlabel("step", size=9, color=INK)
