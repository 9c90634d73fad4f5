"""Laws of the curves: what is drawn is the records, labels meet neither each other nor a marker."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pictures import assert_disjoint, assert_inside, history, random_report, rendered

from adasearch import curves
from adasearch.canvas import save_figure
from adasearch.errors import ConfigError


def test_search_curves_show_the_records() -> None:
    records = history()
    figure = curves.search_figure(records)
    panels = {ax.get_title(loc="left"): ax for ax in figure.axes}
    loss = {line.get_label(): line.get_ydata() for line in panels["Loss and its weighted terms"].lines}
    np.testing.assert_allclose(loss["loss"], [r["loss"] for r in records])
    np.testing.assert_allclose(loss["soft targets"], [r["terms"]["kd"] for r in records])
    assert np.isnan(loss["efficiency"][:10]).all() and "depth" not in loss, "absent or always zero: not drawn"
    shares = panels["Share of each term in the loss"].collections
    assert len(shares) == 3
    assert max(path.vertices[:, 1].max() for path in shares[-1].get_paths()) == pytest.approx(1.0)
    assert "Probability of each depth (cells)" in panels and "Probability of each width (channels)" not in panels
    heat = panels["Probability of each depth (cells)"].collections[0].get_array()
    np.testing.assert_allclose(np.asarray(heat).reshape(2, -1)[:, 0], [0.25, 0.75])
    ratios = panels["Expected cost of the cells, start = 1"].lines[:2]
    cost = {line.get_label(): line.get_ydata()[-1] for line in ratios}
    assert cost == {"MACs\n4M → 100k": pytest.approx(1 / 40), "parameters\n1M → 25k": pytest.approx(1 / 40)}
    assert "warm-up ends at step 10" in figure.get_suptitle()


@pytest.mark.parametrize("records", [history(1, 0), history(5, 5), [{"step": 3, "loss": 1.0, "terms": {}}]])
def test_short_and_sparse_histories_can_be_drawn(records: list[dict[str, Any]], tmp_path: Path) -> None:
    assert all(path.stat().st_size > 1_000 for path in save_figure(curves.search_figure(records), tmp_path / "search"))


@pytest.mark.parametrize("steps", [2, 40])
def test_a_fixed_shape_and_a_gain_in_efficiency_can_be_drawn(steps: int) -> None:
    """One depth and one width: no record of their gates. Below the target, a constraint's term is less than 0."""
    records = history(steps, 0)
    for record in records:
        del record["depth"]
        record["terms"]["efficiency"] = -0.3
    panels = {ax.get_title(loc="left"): ax for ax in curves.search_figure(records).axes}
    assert not {"Probability of each depth (cells)", "Probability of each width (channels)"} & set(panels)
    losses, shares = panels["Loss and its weighted terms"], panels["Share of each term in the loss"]
    drawn = {line.get_label(): line.get_ydata() for line in losses.lines}
    np.testing.assert_allclose(drawn["efficiency"], -0.3)
    assert losses.get_ylim()[0] < -0.3, "the curve leaves its panel"
    heights = np.concatenate([path.vertices[:, 1] for area in shares.collections for path in area.get_paths()])
    assert heights.min() >= 0 and heights.max() == pytest.approx(1.0), "shares are of the terms' absolute values"


def test_texts_of_the_curves_do_not_overlap() -> None:
    assert_disjoint(rendered(curves.search_figure(history())))
    validated = [{"step": step, "loss": 1 / step, "terms": {}, "learning_rate": 1e-3} for step in range(1, 21)]
    for record in validated[4::5]:
        record["validation"] = {"accuracy": 0.8, "f1": 0.7}
    names = [f"{kind}-{seed}" for kind in ("student", "student_no_kd", "mine") for seed in (1, 2)]
    figure = curves.training_figure(dict.fromkeys(names, validated))
    texts = rendered(figure)
    assert_disjoint(texts)
    words = {text for text, _ in texts}
    assert {"student", "same student without a teacher", "mine", "Validation accuracy, points", "Validation F1, points"} <= words
    colours = [line.get_color() for line in figure.axes[1].lines]
    assert len(colours) == 6 and len(set(colours)) == 3, "seeds of one system share a colour"
    assert [line.get_color() for line in figure.axes[-1].lines] == colours, "in every panel, the learning rate's too"
    assert list(figure.axes[1].lines[0].get_xdata()) == [5, 10, 15, 20] and list(figure.axes[1].lines[0].get_ydata()) == pytest.approx([80.0] * 4)


@pytest.mark.parametrize("seed", range(6))
def test_labels_of_the_comparison_meet_neither_each_other_nor_a_marker(seed: int) -> None:
    report = random_report(seed)
    figure = curves.comparison_figure(report)
    texts = rendered(figure)
    assert_disjoint(texts)
    assert_inside(texts, figure)
    names = {s["name"] for s in report["systems"]}
    labels = [(text, box) for text, box in texts if any(text.startswith(name) for name in names)]
    assert len(labels) == len(names)
    axes = figure.axes[0]
    points = [(s["latency_ms_p50"], 100 * s["score_mean"]) for s in report["systems"] if s["score_mean"]]
    centres = axes.transData.transform(points)
    for text, box in labels:
        assert not any(box.contains(*centre) for centre in centres), text


def test_nothing_to_draw_is_refused() -> None:
    with pytest.raises(ConfigError, match="no records"):
        curves.search_figure([])
    with pytest.raises(ConfigError, match="none holds records"):
        curves.training_figure({"a": []})
    with pytest.raises(ConfigError, match="nothing to compare"):
        curves.comparison_figure({"systems": []})
