"""What the tests of the pictures share: the texts of a figure as they are rendered, and records to draw."""

from __future__ import annotations

import random
from itertools import combinations
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Bbox


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
