"""Laws of the pictures: no text meets another or leaves its box, no wire crosses a box, what is drawn is the data."""

from __future__ import annotations

import random
import re
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from matplotlib.patches import Circle, FancyBboxPatch, PathPatch
from matplotlib.transforms import Bbox
from pictures import assert_disjoint, assert_inside, overlaps, rendered
from tiny import tiny_architecture

from adasearch import draw
from adasearch.architecture import Architecture, Edge, Macro
from adasearch.canvas import COLOURS, family, save_figure
from adasearch.errors import ConfigError
from adasearch.layout import cell_params, input_lines, place_edges
from adasearch.operations import OPERATIONS

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
        placed = place_edges(cell)
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
    svg, png = save_figure(draw.cell_figure(architecture, costs), tmp_path / "v1.2")
    assert (svg.name, png.name) == ("v1.2.svg", "v1.2.png") and png.read_bytes()[:4] == b"\x89PNG"
    text = svg.read_text(encoding="utf-8")
    words = re.findall(r"<text[^>]*>([^<]*)</text>", text)
    assert [words.count(text) for text in ("conv 3", "width 192 · 49.3k params", "49.2k MACs/token")] == [2, 2, 2]
    assert {"soft alignment", "width 192 · 1.25M params", "999 MACs/token", "skip", "no cost"} <= set(words)
    assert {"cells 1–3", "attentive sum", "cell before that", "not used", "previous cell"} <= set(words)
    assert {"cell 1: sentence 1", "cell 2: sentence 2", "cell 1: sentence 2"} <= set(words)
    assert len(re.findall(r'id="edge-cells-1–3-\d-\d-', text)) == 4
    assert {"convolution", "attention"} <= set(words) and "pool" not in words  # the legend holds what is there
    again, _ = save_figure(draw.cell_figure(architecture, costs), tmp_path / "again")
    assert again.read_text(encoding="utf-8") == text, "the same figure must give the same file"


def test_twin_edges_share_their_parameters_as_the_student_does() -> None:
    cell = ((Edge(1, "conv3"), Edge(1, "conv3")), (Edge(1, "conv3"), Edge(0, "conv3")))
    assert cell_params(cell, {"conv3": (10, 7)}) == 30
    assert cell_params(cell, {}) is None


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
    assert input_lines(node, numbers, inputs) == lines


@pytest.mark.parametrize("name", OPERATIONS)
def test_every_registered_operation_has_a_family(name: str) -> None:
    kind, words = family(name)
    assert kind in COLOURS and (kind != "other" or not OPERATIONS[name].__module__.startswith("adasearch"))
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


def test_no_cells_are_refused() -> None:
    with pytest.raises(ConfigError, match="no cells"):
        draw.cell_figure(tiny_architecture(cells=0), None)
