"""Laws of the pictures: no text meets another or leaves its box, no wire crosses a box, what is drawn is the data."""

from __future__ import annotations

import json
import random
import re
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyBboxPatch, PathPatch
from matplotlib.text import Text
from matplotlib.transforms import Bbox
from tiny import tiny_architecture, tiny_config

from adasearch import draw
from adasearch.architecture import Architecture, Edge, Macro
from adasearch.errors import ConfigError
from adasearch.files import write_json
from adasearch.operations import OPERATIONS
from adasearch.report import figures_of
from adasearch.student import AdasearchForSequenceClassification

NAMES = "conv3 dilated_sep_conv7 sep_conv5 gated_conv3 soft_alignment avg_pool3 skip my_own_long_operation9".split()
COSTS = {name: (0, 0) if name == "skip" else (12_345 + 99_000 * i, 11_111 + 98_000 * i) for i, name in enumerate(NAMES)}


def random_architecture(seed: int) -> Architecture:
    """Up to four inner nodes, any number of edges (twins and unused inputs too), equal or different cells."""
    rng = random.Random(seed)
    nodes, per_node = rng.choice([(1, 2), (2, 2), (3, 2), (3, 4), (4, 2), (4, 5)])

    def cell() -> tuple[tuple[Edge, ...], ...]:
        counts = [(node, min(per_node, node + 2)) for node in range(nodes)]
        return tuple(tuple(Edge(rng.randrange(n + 2), rng.choice(NAMES)) for _ in range(count)) for n, count in counts)

    depth = rng.randint(1, 3)
    cells = (cell(),) * depth if rng.random() < 0.6 else tuple(cell() for _ in range(depth))
    return Architecture("random", "0" * 16, cells, rng.choice([128, 1024]), Macro(inputs=rng.choice(["joint", "two"])))


def rendered(figure: Figure) -> list[tuple[str, Bbox]]:
    """Every visible text and its extent in pixels, axes' ticks and titles included."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    renderer = canvas.get_renderer()
    hidden = set()  # labels of ticks beyond the axes' limits
    for axis in [axis for ax in figure.axes for axis in (ax.xaxis, ax.yaxis)]:
        low, high = sorted(axis.get_view_interval())
        ticks = [*axis.get_major_ticks(), *axis.get_minor_ticks()]
        hidden |= {tick.label1 for tick in ticks if not low <= tick.get_loc() <= high or not axis.axes.axison}
    texts = [t for t in figure.findobj(Text) if t.get_visible() and t.get_text().strip() and t not in hidden]
    return [(text.get_text(), text.get_window_extent(renderer)) for text in texts]


def overlaps(first: Bbox, second: Bbox) -> bool:
    """More than a pixel's edge in common."""
    common = Bbox.intersection(first, second)
    return common is not None and common.width > 1 and common.height > 1


def assert_disjoint(texts: list[tuple[str, Bbox]]) -> None:
    for (a, first), (b, second) in combinations(texts, 2):
        assert not overlaps(first, second), f"{a!r} and {b!r} overlap"


def assert_inside(texts: list[tuple[str, Bbox]], figure: Figure) -> None:
    width, height = FigureCanvasAgg(figure).get_width_height()
    for text, box in texts:
        assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= width and box.y1 <= height, f"{text!r} leaves the figure"


@pytest.mark.parametrize("seed", range(10))
def test_nothing_in_a_cell_overlaps(seed: int) -> None:
    figure = draw.cell_figure(random_architecture(seed), COSTS)
    texts = rendered(figure)
    assert_disjoint(texts)
    assert_inside(texts, figure)
    axes = figure.axes[0]
    boxes = [patch.get_window_extent() for patch in axes.patches if isinstance(patch, FancyBboxPatch)]
    circles = [patch.get_window_extent() for patch in axes.patches if isinstance(patch, Circle)]
    for first, second in combinations(boxes + circles, 2):
        assert not overlaps(first, second), "two boxes overlap"
    for text, extent in texts:  # a text is wholly in one box, or in none
        met = [box for box in boxes if overlaps(box, extent)]
        assert all(np.allclose(Bbox.union([box, extent]).extents, box.extents) for box in met), text
        assert len(met) <= 1, text
    inner = [box.padded(-2) for box in boxes + circles]  # wires end on the edge of what they join
    for patch in axes.patches:
        if type(patch) is not PathPatch:
            continue
        line = patch.get_path().interpolated(1).to_polygons(closed_only=False)[0]
        dense = np.concatenate([np.linspace(a, b, 20) for a, b in zip(line, line[1:])])
        points = axes.transData.transform(dense)
        for box in inner:
            inside = (points > (box.x0, box.y0)).all(1) & (points < (box.x1, box.y1)).all(1)
            assert not inside.any(), "a wire runs through a box or a node"


@pytest.mark.parametrize("seed", range(30))
def test_edges_in_one_row_never_meet(seed: int) -> None:
    """The rule of the layout, checked column by column: an edge s -> t fills columns s..t of its row."""
    for cell in random_architecture(seed).cells:
        placed = draw.place_edges(cell)
        assert sorted((p.edge.source, p.target, p.edge.operation) for p in placed) == sorted(
            (edge.source, node + 2, edge.operation) for node, entries in enumerate(cell) for edge in entries
        )
        filled = [(p.row, column) for p in placed for column in range(max(0, p.edge.source - 1), p.target - 1)]
        assert len(filled) == len(set(filled))
        crossed = [p for p in placed if p.row == 0 and max(0, p.edge.source - 1) != p.target - 2]
        assert not crossed, "an edge runs through an inner node"


def test_svg_holds_every_edge_with_name_width_and_cost(tmp_path: Path) -> None:
    edges = [Edge(1, "conv3"), Edge(1, "conv3"), Edge(1, "soft_alignment"), Edge(2, "skip")]
    architecture = Architecture("mine", "0" * 16, ((tuple(edges[:2]), tuple(edges[2:])),) * 3, 192, Macro(inputs="two"))
    costs = {"conv3": (49_280, 49_152), "soft_alignment": (1_250_000, 999), "skip": (0, 0)}
    svg, png = draw.draw_cell(architecture, tmp_path / "v1.2", costs)
    assert (svg.name, png.name) == ("v1.2.svg", "v1.2.png") and png.read_bytes()[:4] == b"\x89PNG"
    text = svg.read_text(encoding="utf-8")
    words = re.findall(r"<text[^>]*>([^<]*)</text>", text)
    assert [words.count(text) for text in ("conv 3", "width 192 · 49.3k params", "49.2k MACs/token")] == [2, 2, 2]
    assert {"soft alignment", "width 192 · 1.25M params", "999 MACs/token", "skip", "no cost"} <= set(words)
    assert {"cells 1–3", "attentive sum", "cell before that", "not used", "previous cell"} <= set(words)
    assert {"cell 1: sentence 1", "cell 2: sentence 2", "cell 1: sentence 2"} <= set(words)
    assert len(re.findall(r'id="edge-cells-1–3-\d-\d-', text)) == 4
    assert {"convolution", "attention"} <= set(words) and "pool" not in words  # the legend holds what is there
    again, _ = draw.draw_cell(architecture, tmp_path / "again", costs)
    assert again.read_text(encoding="utf-8") == text, "the same figure must give the same file"


def test_twin_edges_share_their_parameters_as_the_student_does() -> None:
    cell = ((Edge(1, "conv3"), Edge(1, "conv3")), (Edge(1, "conv3"), Edge(0, "conv3")))
    assert draw.cell_params(cell, {"conv3": (10, 7)}) == 30
    assert draw.cell_params(cell, {}) is None


@pytest.mark.parametrize(
    ("node", "numbers", "inputs", "lines"),
    [
        (0, [1], "joint", ["embeddings"]),
        (1, [1], "two", ["sentence 2"]),
        (0, [1], "two", ["sentence 1"]),
        (0, [2], "two", ["sentence 2"]),
        (1, [2], "two", ["previous cell"]),
        (0, [1, 2], "joint", ["embeddings"]),
        (0, [1, 3, 4], "two", ["cell before that", "cell 1: sentence 1"]),
        (0, [2, 3], "joint", ["cell before that", "cell 2: embeddings"]),
        (1, [3, 5, 6], "joint", ["previous cell"]),
    ],
)
def test_inputs_are_named_by_what_stands_there(node: int, numbers: list[int], inputs: str, lines: list[str]) -> None:
    """By hand from the stacking: cell 1 reads (first, second), cell 2 (second, cell 1), cell k (cell k-2, cell k-1)."""
    assert draw._input_lines(node, numbers, inputs) == lines


@pytest.mark.parametrize("name", OPERATIONS)
def test_every_registered_operation_has_a_family(name: str) -> None:
    kind, words = draw.family(name)
    assert kind in draw.COLOURS and (kind != "other" or not OPERATIONS[name].__module__.startswith("adasearch"))
    assert len(words) <= 20


@pytest.mark.parametrize(("depth", "is_known"), [(0, True), (0, False), (1, False), (2, True), (8, True)])
def test_nothing_in_the_network_overlaps(depth: int, is_known: bool) -> None:
    architecture = tiny_architecture(cells=depth, inputs="two", pooling="attention", embedding_size=4)
    cells = tuple(range(1_000, 1_000 + depth))
    details = draw.Details(cells, 3_906_816, 514, 30_522, 2) if is_known else draw.Details(cells)
    figure = draw.network_figure(architecture, details)
    texts = rendered(figure)
    assert_disjoint(texts)
    assert_inside(texts, figure)
    words = [text for text, _ in texts]
    assert f"{'30,522' if is_known else 'vocabulary'} × 4 → 8" in words
    assert words.count("attention pooling") == depth + 1


def test_network_shares_are_of_the_whole() -> None:
    figure = draw.network_figure(tiny_architecture(cells=2), draw.Details((150, 50), 700, 100, 35, 3))
    words = {text for text, _ in rendered(figure)}
    assert {"700 params · 70%", "150 params · 15%", "50 params · 5.0%", "100 params · 10%"} <= words
    assert {"embeddings 70%", "cells 20%", "read-out 10%", "tiny: 1k parameters"} <= words


def history(steps: int = 40, warm: int = 10) -> list[dict[str, Any]]:
    """A search's records, with what the first ones lack left out."""
    records = []
    for step in range(1, steps + 1):
        terms = {"ce": 0.2, "kd": 0.5 / step, "depth": 0.0}
        if step > warm:
            terms["efficiency"] = 0.3
        p = min(1.0, 0.5 + 0.5 * step / steps)
        records.append({
            "step": step, "loss": sum(terms.values()), "terms": terms, "learning_rate": 1e-3, "temperature": 1 / step,
            "phase": "warmup" if step <= warm else "search", "entropy": {"operations": 1 - step / steps, "depth": 0.5},
            "operations": {"conv3": p, "skip": 1 - p}, "depth": {"1": 0.25, "2": 0.75},
            "params": 1e6 / step, "macs": 4e6 / step,
        })  # fmt: skip
    return records


def test_search_curves_show_the_records() -> None:
    records = history()
    figure = draw.search_figure(records)
    panels = {ax.get_title(loc="left"): ax for ax in figure.axes}
    loss = {line.get_label(): line.get_ydata() for line in panels["Loss and its weighted terms"].lines}
    np.testing.assert_allclose(loss["loss"], [r["loss"] for r in records])
    np.testing.assert_allclose(loss["teacher's logits"], [r["terms"]["kd"] for r in records])
    assert np.isnan(loss["efficiency"][:10]).all() and "depth" not in loss, "absent or always zero: not drawn"
    shares = panels["Share of each term in the loss"].collections
    assert len(shares) == 3
    assert max(path.vertices[:, 1].max() for path in shares[-1].get_paths()) == pytest.approx(1.0)
    assert "Probability of each depth (cells)" in panels and "Probability of each width (channels)" not in panels
    heat = panels["Probability of each depth (cells)"].collections[0].get_array()
    np.testing.assert_allclose(np.asarray(heat).reshape(2, -1)[:, 0], [0.25, 0.75])
    curves = panels["Expected cost of the cells, start = 1"].lines[:2]
    cost = {line.get_label(): line.get_ydata()[-1] for line in curves}
    assert cost == {"MACs\n4M → 100k": pytest.approx(1 / 40), "parameters\n1M → 25k": pytest.approx(1 / 40)}
    assert "warm-up ends at step 10" in figure.get_suptitle()


@pytest.mark.parametrize("records", [history(1, 0), history(5, 5), [{"step": 3, "loss": 1.0, "terms": {}}]])
def test_short_and_sparse_histories_can_be_drawn(records: list[dict[str, Any]], tmp_path: Path) -> None:
    assert all(path.stat().st_size > 1_000 for path in draw.draw_search(records, tmp_path / "search"))


def test_texts_of_the_curves_do_not_overlap() -> None:
    assert_disjoint(rendered(draw.search_figure(history())))
    validated = [{"step": step, "loss": 1 / step, "terms": {}, "learning_rate": 1e-3} for step in range(1, 21)]
    for record in validated[4::5]:
        record["validation"] = {"accuracy": 0.8, "f1": 0.7}
    names = [f"{kind}-{seed}" for kind in ("student", "student_no_kd", "mine") for seed in (1, 2)]
    figure = draw.training_figure(dict.fromkeys(names, validated))
    texts = rendered(figure)
    assert_disjoint(texts)
    words = {text for text, _ in texts}
    assert {"student", "same student without a teacher", "mine", "Validation accuracy", "Validation F1"} <= words
    colours = [line.get_color() for line in figure.axes[1].lines]
    assert len(colours) == 6 and len(set(colours)) == 3, "seeds of one system share a colour"
    assert list(figure.axes[1].lines[0].get_xdata()) == [5, 10, 15, 20]


def random_report(seed: int) -> dict[str, Any]:
    """Systems that crowd: nearly equal latencies and scores."""
    rng = random.Random(seed)
    kinds = ["teacher", "student", "student_no_kd", "random_architecture", "bag_of_embeddings", "tfidf"]
    same = {"batch_size": 1, "seq_len": 128, "threads": 1, "runtime": "torch"}
    systems = []
    for kind in kinds:
        score = {"score_mean": 0.8 + rng.choice([0, 0.001, 0.05]) * rng.random(), "score_sd": rng.choice([None, 0.002])}
        cost = {"latency_ms_p50": rng.choice([1.0, 1.01, 30.0]) * (1 + 0.05 * rng.random())}
        cost["params"] = rng.choice([None, 50_000, 22_000_000])
        systems.append({"name": f"a system of kind {kind}", "kind": kind, **score, **cost, **same})
    timed = {"name": "BERT-base shape (random weights, time only)", "kind": "reference", "latency_ms_p50": 160.0}
    systems.append({**timed, "score_mean": None})
    return {"task": "sst2", "metric": "accuracy", "systems": systems}


@pytest.mark.parametrize("seed", range(6))
def test_labels_of_the_comparison_meet_neither_each_other_nor_a_marker(seed: int) -> None:
    report = random_report(seed)
    figure = draw.comparison_figure(report)
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


def test_describe_gives_every_edge_and_the_totals() -> None:
    architecture = tiny_architecture(cells=3)
    costs = {"conv3": (192, 192), "self_attention": (272, 2_304), "max_pool3": (16, 0), "gated_conv3": (400, 384)}
    lines = draw.describe(architecture, costs).splitlines()
    assert "3 cells of width 8" in lines[0]
    rows = [line.split() for line in lines]
    assert ["2", "1:", "previous", "cell;", "cell", "1:", "embeddings", "self_attention", "272", "2.3k"] in rows
    assert ["3", "2", "gated_conv3", "400", "384"] in rows
    # 3 (192 + 272 + 16 + 400) parameters, 3 (192 + 2304 + 0 + 384) MACs
    assert lines[-1] == "all cells: 2.6k parameters, 8.6k MACs/token on their edges"
    uncosted = [line.split() for line in draw.describe(architecture, None).splitlines()]
    assert "2 0: cell before that; cells 1–2: embeddings conv3 - -".split() in uncosted


def test_inspect_draws_all_that_a_run_holds(tmp_path: Path) -> None:
    architecture = tiny_architecture()
    model = AdasearchForSequenceClassification(tiny_config(architecture))
    write_json(tmp_path / "search" / "architecture.json", architecture.to_dict())
    model.config.save_pretrained(tmp_path / "student")
    (tmp_path / "search" / "history.jsonl").write_text("".join(json.dumps(r) + "\n" for r in history(6, 2)))
    write_json(tmp_path / "models" / "student-1" / "history.json", history(3, 0))
    write_json(tmp_path / "report.json", random_report(0))
    text = draw.inspect(tmp_path, None)
    expected = ["cell", "network", "search", "training", "comparison"]
    assert figures_of(tmp_path) == expected
    files = {path.name for path in (tmp_path / "figures").iterdir()}
    assert files == {f"{name}.{kind}" for name in expected for kind in ("svg", "png")}
    assert all(f"{name}.svg" in text for name in expected) and "self_attention" in text
    total = sum(p.numel() for p in model.parameters())
    network = (tmp_path / "figures" / "network.svg").read_text(encoding="utf-8")
    assert f"tiny: {draw.format_count(total)} parameters" in network


def test_costs_and_parts_are_those_of_the_model() -> None:
    """Against the built student: its parts' parameters, and the weights of each of its operations."""
    architecture = tiny_architecture()
    model = AdasearchForSequenceClassification(tiny_config(architecture))
    costs, details = draw._costs_of(architecture, model.config.to_dict(), where=Path("here"))
    assert details.embeddings + sum(details.cells) + details.read_out == sum(p.numel() for p in model.parameters())
    for name, operation in model.trunk.cells[0].edges["0_to_2"].items():
        assert costs[name][0] == sum(p.numel() for p in operation.parameters())
        assert costs[name][1] == sum(p.numel() for p in operation.parameters() if p.dim() > 1)
    assert torch.is_tensor(next(model.parameters())) and details.vocab_size == 30 and details.labels == 3


def test_inspect_of_an_architecture_and_of_a_student(tmp_path: Path) -> None:
    path = tmp_path / "architecture.json"
    write_json(path, tiny_architecture().to_dict())
    draw.inspect(path, tmp_path / "there")
    drawn = sorted(path.name for path in (tmp_path / "there").iterdir())
    assert drawn == ["cell.png", "cell.svg", "network.png", "network.svg"]
    bag = tiny_architecture(cells=0)
    tiny_config(bag).save_pretrained(tmp_path / "bag")
    assert "0 cells" in draw.inspect(tmp_path / "bag", None)
    assert sorted(p.name for p in (tmp_path / "bag" / "figures").iterdir()) == ["network.png", "network.svg"]


def test_what_cannot_be_drawn_is_refused_in_one_line(tmp_path: Path) -> None:
    unknown = tiny_architecture().to_dict()
    unknown["cells"][0][0][0][1] = "conv99"
    write_json(tmp_path / "unknown.json", unknown)
    (tmp_path / "empty").mkdir()
    write_json(tmp_path / "other" / "config.json", {"model_type": "bert"})
    (tmp_path / "broken" / "search").mkdir(parents=True)
    (tmp_path / "broken" / "search" / "history.jsonl").write_text("{", encoding="utf-8")
    cases = {"unknown.json": "unknown operation 'conv99'.*known:.*conv3", "empty": "nothing to draw.*choices",
             "nowhere": "nothing to draw", "other": "no key 'architecture'", "broken": "cannot be read"}  # fmt: skip
    for name, says in cases.items():
        with pytest.raises(ConfigError, match=says) as caught:
            draw.inspect(tmp_path / name, tmp_path / "out")
        assert "\n" not in str(caught.value) and name in str(caught.value)
    with pytest.raises(ConfigError, match="no records"):
        draw.search_figure([])
    with pytest.raises(ConfigError, match="none holds records"):
        draw.training_figure({"a": []})
    with pytest.raises(ConfigError, match="nothing to compare"):
        draw.comparison_figure({"systems": []})
    with pytest.raises(ConfigError, match="no cells"):
        draw.cell_figure(tiny_architecture(cells=0), None)
