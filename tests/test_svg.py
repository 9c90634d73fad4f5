"""Charts: ticks are round, what is drawn stands where its value is, labels meet nothing, texts are escaped."""

from __future__ import annotations

import math
import random
import re
import xml.etree.ElementTree as ET
from itertools import combinations

import pytest

from adasearch.svg import FONT, LETTER, Dot, Line, Plot, area_chart, line_chart, log_ticks, nice_ticks, number, pareto, scatter_chart

SIZE = (400.0, 400.0)


def elements(drawing: str, tag: str, kind: str = "") -> list[ET.Element]:
    """Elements of a drawing, which must be well-formed, by tag and the first of their classes."""
    return [e for e in ET.fromstring(drawing).iter(tag) if not kind or kind in e.get("class", "").split()]


def floats(element: ET.Element, *names: str) -> list[float]:
    return [float(element.get(name)) for name in names]


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]), (5, 500, [100, 200, 300, 400, 500]), (0.78, 0.9, [0.8, 0.825, 0.85, 0.875, 0.9]), (3, 3, [3])],
)
def test_ticks_are_the_round_numbers_between(low: float, high: float, expected: list[float]) -> None:
    assert nice_ticks(low, high) == pytest.approx(expected)


@pytest.mark.parametrize("seed", range(20))
def test_ticks_lie_inside_evenly_and_are_few(seed: int) -> None:
    rng = random.Random(seed)
    low = rng.uniform(-1, 1) * 10 ** rng.randint(-4, 6)
    high = low + rng.uniform(0.1, 1) * 10 ** rng.randint(-3, 6)
    ticks = nice_ticks(low, high)
    assert 2 <= len(ticks) <= 7 and all(low - 1e-9 * abs(low) <= t <= high + 1e-9 * abs(high) for t in ticks)
    gaps = [b - a for a, b in zip(ticks, ticks[1:])]
    assert gaps == pytest.approx([gaps[0]] * len(gaps), rel=1e-4)


def test_logarithmic_ticks() -> None:
    assert log_ticks(0.4, 30) == pytest.approx([0.5, 1, 2, 5, 10, 20])
    assert log_ticks(0.01, 1000) == pytest.approx([0.01, 0.1, 1, 10, 100, 1000])  # 1, 2, 5 would be sixteen
    assert [number(value) for value in (0.25, 150, 20_000)] == ["0.25", "150", "20k"]


def test_points_stand_where_their_values_are() -> None:
    plot = Plot((1.0, 100.0), (0.0, 1.0), "x", "y", "t", log_x=True)
    left, right = plot.x(1.0), plot.x(100.0)
    assert plot.x(10.0) == pytest.approx((left + right) / 2)  # a power of ten is half of two
    assert plot.y(0.5) == pytest.approx((plot.y(0.0) + plot.y(1.0)) / 2) and plot.y(1.0) < plot.y(0.0)


def test_a_line_breaks_where_a_value_is_missing_and_keeps_its_last_point() -> None:
    chart = line_chart([Line("a", [0, 1, 2, 3], [0.0, 1.0, math.nan, 1.0], "c0")], "step", "loss", "t")
    (path,) = elements(chart, "path", "line")
    assert path.get("d").count("M") == 2 and "nan" not in path.get("d")
    long = line_chart([Line("a", list(range(5000)), [float(i) for i in range(5000)], "c0")], "step", "loss", "t")
    points = re.findall(r"[ML]([\d.]+) ([\d.]+)", elements(long, "path", "line")[0].get("d"))
    assert len(points) < 300 and float(points[-1][0]) == pytest.approx(440 - 14)  # the right margin
    assert line_chart([Line("a", [], [], "c0")], "x", "y", "t") == ""


def test_areas_stack_to_one() -> None:
    xs = [1.0, 2.0, 3.0]
    shares = [Line("a", xs, [0.2, 0.5, 0.1], "c0"), Line("b", xs, [0.8, 0.5, 0.9], "c1")]
    first, second = (elements(area_chart(xs, shares, "step", "t"), "path", "area")[i].get("d") for i in (0, 1))
    tops = [[float(y) for _, y in re.findall(r"([\d.]+) ([\d.]+)", d)] for d in (first, second)]
    plot = Plot((1.0, 3.0), (0.0, 1.0), "step", "share", "t")
    assert tops[0] == pytest.approx([plot.y(v) for v in (0.2, 0.5, 0.1)] + [plot.y(0)] * 3, abs=0.06)
    assert tops[1][:3] == pytest.approx([plot.y(1)] * 3, abs=0.06) and tops[1][3:] == pytest.approx(tops[0][2::-1], abs=0.06)


@pytest.mark.parametrize("seed", range(20))
def test_the_frontier_is_what_no_other_beats_in_both(seed: int) -> None:
    rng = random.Random(seed)
    dots = [Dot(str(i), rng.randint(1, 9), rng.randint(1, 9), "c0") for i in range(12)]

    def is_beaten(dot: Dot) -> bool:
        return any(o.x <= dot.x and o.y >= dot.y and (o.x, o.y) != (dot.x, dot.y) for o in dots)

    assert {(d.x, d.y) for d in pareto(dots)} == {(d.x, d.y) for d in dots if not is_beaten(d)}


@pytest.mark.parametrize("seed", range(10))
def test_labels_meet_no_marker_and_no_other_label(seed: int) -> None:
    rng = random.Random(seed)
    names = ["teacher", "student", "no teacher", "random", "bag", "TF-IDF"]
    dots = [Dot(n, rng.choice([1.0, 1.02, 30.0]) * rng.uniform(1, 1.1), rng.choice([80, 80.1, 85.0]), "c0", 6.0, is_main=n == "student") for n in names]
    chart = scatter_chart(dots, [Dot("BERT-base", 160.0, math.nan, "c1")], "ms", "points", "t", size=SIZE)
    boxes = []
    for text in elements(chart, "text", "label"):
        x, y = floats(text, "x", "y")
        boxes.append((text.text, x, y - FONT + 1, x + LETTER * len(text.text), y + 4))
    assert {box[0] for box in boxes} == {*names, "BERT-base"}
    for (a, *first), (b, *second) in combinations(boxes, 2):
        assert first[0] >= second[2] or second[0] >= first[2] or first[1] >= second[3] or second[1] >= first[3], f"{a} meets {b}"
    for name, left, top, right, bottom in boxes:
        assert 0 <= left and right <= SIZE[0] and 0 <= top and bottom <= SIZE[1], name
        for circle in elements(chart, "circle", "dot"):
            x, y, r = floats(circle, "cx", "cy", "r")
            assert math.hypot(x - min(max(x, left), right), y - min(max(y, top), bottom)) >= r - 0.1, name


def test_texts_are_escaped() -> None:
    bad = '<script>"&'
    chart = scatter_chart([Dot(bad, 1.0, 2.0, "c0", tip=bad)], [], bad, bad, bad, size=SIZE)
    assert ET.fromstring(chart).get("aria-label") == bad and "<script" not in chart
    assert [t.text for t in elements(chart, "text", "label")] == [bad]
