"""Charts as inline SVG for report.html: no colours and no fonts of their own, the page's style sheet gives both.

A colour is a CSS class: ``k-<kind>`` of a system or ``c0`` to ``c7``. Sizes are in units of the drawing, which the page
scales; its texts are 13 units high, so that a drawing of 400 units stays legible on a phone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

FONT = 13.0
LETTER = 0.62 * FONT  # mean width of a letter in the usual sans-serif fonts; what is placed by it has slack
MOST_POINTS = 240  # of a line: more than the drawing can show apart
LEFT, RIGHT, TOP, BOTTOM = 50.0, 14.0, 22.0, 44.0  # margins around the plot: tick labels, axis titles
Box = tuple[float, float, float, float]  # left, top, right, bottom; y grows downwards


@dataclass(frozen=True)
class Line:
    """Points joined by a line. Values that are not finite break it."""

    name: str
    xs: Sequence[float]
    ys: Sequence[float]
    colour: str
    dashed: bool = False
    dots: bool = False


@dataclass(frozen=True)
class Dot:
    """A labelled point of a scatter plot; ``spread`` is half of its error bar, ``radius`` in units of the drawing."""

    name: str
    x: float
    y: float
    colour: str
    radius: float = 6.0
    spread: float = 0.0
    tip: str = ""
    is_main: bool = False


def nice_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About ``count`` round numbers (1, 2, 2.5 or 5 times a power of ten apart) from ``low`` to ``high``."""
    if not high > low:
        return [low]
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten between the two; powers of ten alone where that would be more than eight."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1, 2, 5), (1,)):
        ticks = [factor * 10.0**power for power in powers for factor in factors if low <= factor * 10.0**power <= high]
        if len(ticks) <= 8:
            return ticks
    return ticks


def number(value: float) -> str:
    """A tick's label: ``0.25``, ``150``, ``20k``."""
    return f"{value / 1000:g}k" if abs(value) >= 10_000 else f"{value:g}"


class Plot:
    """A frame with axes and grid that drawings are added to. ``text`` says what is seen, for those who do not see it."""

    def __init__(
        self, xs: tuple[float, float], ys: tuple[float, float], x_label: str, y_label: str, text: str, *,
        size: tuple[float, float] = (440.0, 266.0), log_x: bool = False,
        x_ticks: Sequence[float] | None = None, y_ticks: Sequence[float] | None = None,
    ):  # fmt: skip
        self.xs, self.ys, self.text, self.log_x = xs, ys, text, log_x
        self.width, self.height = size
        self.right, self.floor = self.width - RIGHT, self.height - BOTTOM
        self.parts: list[Markup] = []
        across, up = max(3, round(self.width / 90)), max(3, round(self.height / 60))
        for tick in y_ticks if y_ticks is not None else nice_ticks(*ys, up):
            y = self.y(tick)
            self.add('<line class="grid" x1="{}" x2="{}" y1="{}" y2="{}"/>', LEFT, self.right, y, y)
            self.add('<text class="tick end" x="{}" y="{}">{}</text>', LEFT - 7, y + 4, number(tick))
        for tick in x_ticks if x_ticks is not None else log_ticks(*xs) if log_x else nice_ticks(*xs, across):
            x = self.x(tick)
            if log_x:
                self.add('<line class="grid" x1="{}" x2="{}" y1="{}" y2="{}"/>', x, x, TOP, self.floor)
            self.add('<text class="tick middle" x="{}" y="{}">{}</text>', x, self.floor + 18, number(tick))
        self.add('<line class="axis" x1="{}" x2="{}" y1="{}" y2="{}"/>', LEFT, self.right, self.floor, self.floor)
        self.add('<text class="axis-title middle" x="{}" y="{}">{}</text>', (LEFT + self.right) / 2, self.height - 6, x_label)
        middle = (TOP + self.floor) / 2
        self.add('<text class="axis-title middle" transform="translate(12 {}) rotate(-90)">{}</text>', middle, y_label)

    def x(self, value: float) -> float:
        """Where a value stands across."""
        low, high = self.xs
        share = math.log(value / low) / math.log(high / low) if self.log_x else (value - low) / (high - low)
        return LEFT + share * (self.right - LEFT)

    def y(self, value: float) -> float:
        """Where a value stands from the top."""
        low, high = self.ys
        return self.floor - (value - low) / (high - low) * (self.floor - TOP)

    def add(self, template: str, *values: object) -> None:
        """Append an element; numbers are rounded, texts escaped."""
        short = (f"{value:.1f}".removesuffix(".0") if isinstance(value, float) else value for value in values)
        self.parts.append(Markup(template).format(*short))

    def line(self, line: Line) -> None:
        """A line, thinned to what can be told apart, and its dots."""
        points = [(x, y) for x, y in zip(line.xs, line.ys)]
        if len(points) > MOST_POINTS:
            points = points[:: math.ceil(len(points) / MOST_POINTS)] + [points[-1]]
        path, pen = [], "M"
        for x, y in points:
            if not (math.isfinite(x) and math.isfinite(y)):
                pen = "M"
                continue
            path.append(f"{pen}{self.x(x):.1f} {self.y(y):.1f}")
            pen = "L"
        dashed = " dashed" if line.dashed else ""
        self.add('<path class="line {}{}" d="{}"><title>{}</title></path>', line.colour, dashed, "".join(path), line.name)
        if line.dots:
            for x, y in points:
                if math.isfinite(y):
                    self.add('<circle class="dot {}" cx="{}" cy="{}" r="3"/>', line.colour, self.x(x), self.y(y))

    def level(self, y: float, colour: str, label: str, *, below: bool = False) -> None:
        """A dashed line across at a height, named at its right end."""
        at = self.y(y)
        self.add('<line class="line dashed {}" x1="{}" x2="{}" y1="{}" y2="{}"/>', colour, LEFT, self.right, at, at)
        self.add('<text class="label end" x="{}" y="{}">{}</text>', self.right, at + (16 if below else -6), label)

    def mark(self, x: float, label: str) -> None:
        """A dotted line from top to bottom, named at the top."""
        at = self.x(x)
        self.add('<line class="mark" x1="{}" x2="{}" y1="{}" y2="{}"/>', at, at, TOP, self.floor)
        self.add('<text class="tick middle" x="{}" y="{}">{}</text>', at, TOP - 7, label)

    def render(self) -> Markup:
        """The element."""
        head = Markup('<svg class="chart" viewBox="0 0 {} {}" role="img" aria-label="{}">')
        head = head.format(round(self.width), round(self.height), self.text)
        return head + Markup("").join(self.parts) + Markup("</svg>")


def line_chart(
    lines: Sequence[Line], x_label: str, y_label: str, text: str, *, low: float | None = None, high: float | None = None,
    mark: tuple[float, str] | None = None, integer_x: bool = True,
) -> Markup:  # fmt: skip
    """Lines over a common axis. ``low`` and ``high`` bound the y axis, which else holds all values."""
    xs = [x for line in lines for x in line.xs]
    ys = [y for line in lines for y in line.ys if math.isfinite(y)]
    if not xs or not ys:
        return Markup("")
    bottom, top = min(ys) if low is None else low, max(ys) if high is None else high
    pad = 0.06 * (top - bottom) or max(abs(top), 1.0) * 0.05
    bottom, top = bottom - pad * (low is None), top + pad * (high is None)
    left, right = min(xs), max(xs)
    right = right if right > left else left + 1
    ticks = [tick for tick in nice_ticks(left, right) if not integer_x or tick == round(tick)]
    plot = Plot((left, right), (bottom, top), x_label, y_label, text, x_ticks=ticks)
    for line in lines:
        plot.line(line)
    if mark:
        plot.mark(*mark)
    return plot.render()


def area_chart(
    xs: Sequence[float], shares: Sequence[Line], x_label: str, text: str, *, mark: tuple[float, str] | None = None
) -> Markup:
    """Shares of one (the ``ys`` of ``shares``), stacked from below in their order."""
    keep = range(0, len(xs), math.ceil(len(xs) / MOST_POINTS))
    right = xs[-1] if xs[-1] > xs[0] else xs[0] + 1
    ticks = [tick for tick in nice_ticks(xs[0], right) if tick == round(tick)]
    plot = Plot((xs[0], right), (0.0, 1.0), x_label, "share", text, x_ticks=ticks)
    below = [0.0] * len(xs)
    for share in shares:
        above = [under + (y if math.isfinite(y) else 0.0) for under, y in zip(below, share.ys)]
        forth = [f"{plot.x(xs[i]):.1f} {plot.y(min(above[i], 1)):.1f}" for i in keep]
        back = [f"{plot.x(xs[i]):.1f} {plot.y(min(below[i], 1)):.1f}" for i in reversed(keep)]
        plot.add('<path class="area {}" d="M{}Z"><title>{}</title></path>', share.colour, "L".join(forth + back), share.name)
        below = above
    if mark:
        plot.mark(*mark)
    return plot.render()


def scatter_chart(
    dots: Sequence[Dot], levels: Sequence[Dot], x_label: str, y_label: str, text: str, *, size: tuple[float, float],
    frontier: bool = True,
) -> Markup:  # fmt: skip
    """Labelled points over a logarithmic axis, the frontier of those that none beats in both, and ``levels``: points
    of which only x is known, drawn as lines from top to bottom."""
    times = [dot.x for dot in (*dots, *levels)]
    low, high = min(dot.y - dot.spread for dot in dots), max(dot.y + dot.spread for dot in dots)
    pad = 0.16 * (high - low) or max(0.02 * abs(high), 1e-3)
    plot = Plot((min(times) / 1.9, max(times) * 1.9), (low - pad, high + pad), x_label, y_label, text, size=size, log_x=True)
    if frontier and (best := pareto(dots)):
        steps = [(best[0].x, best[0].y)]
        for before, after in zip(best, best[1:]):
            steps += [(after.x, before.y), (after.x, after.y)]
        path = "L".join(f"{plot.x(x):.1f} {plot.y(y):.1f}" for x, y in steps)
        plot.add('<path class="frontier" d="M{}"><title>nothing here is both faster and better</title></path>', path)
    taken: list[Box] = []
    for dot in levels:
        at = plot.x(dot.x)
        plot.add('<line class="line dashed {}" x1="{}" x2="{}" y1="{}" y2="{}"/>', dot.colour, at, at, TOP, plot.floor)
        taken.append((at - 1, TOP, at + 1, plot.floor))
    for dot in sorted(dots, key=lambda dot: dot.is_main):  # the main one on top
        x, y, r = plot.x(dot.x), plot.y(dot.y), dot.radius
        reach = abs(plot.y(dot.y + dot.spread) - y)
        if dot.spread:
            plot.add('<path class="line {}" d="M{} {}V{}"/>', dot.colour, x, y - reach, y + reach)
        plot.add('<circle class="dot {}" cx="{}" cy="{}" r="{}"><title>{}</title></circle>', dot.colour, x, y, r, dot.tip or dot.name)
        taken += [(x - r, y - r, x + r, y + r), (x - 2, y - reach, x + 2, y + reach)]
    frame = (LEFT, TOP, plot.right, plot.floor)
    for dot in sorted(dots, key=lambda dot: not dot.is_main):
        left, base = _place(dot.name, plot.x(dot.x), plot.y(dot.y), dot.radius, taken, frame)
        plot.add('<text class="label{}" x="{}" y="{}">{}</text>', " main" if dot.is_main else "", left, base, dot.name)
    for dot in levels:
        left, base = _place(dot.name, plot.x(dot.x), plot.floor - 14, 1.0, taken, frame)
        plot.add('<text class="label" x="{}" y="{}">{}</text>', left, base, dot.name)
    return plot.render()


def pareto(dots: Sequence[Dot]) -> list[Dot]:
    """The points that no other is left of and above, from left to right."""
    best: list[Dot] = []
    for dot in sorted(dots, key=lambda dot: (dot.x, -dot.y)):
        if not best or dot.y > best[-1].y:
            best.append(dot)
    return best


def _place(name: str, x: float, y: float, radius: float, taken: list[Box], frame: Box) -> tuple[float, float]:
    """Left end and base line of a label near (x, y): the nearest place that meets nothing; its box joins ``taken``."""
    width, height = LETTER * len(name) + 4, FONT + 3
    for reach in (radius + 4.0 + 6.0 * step for step in range(16)):
        for dx, dy in ((1, 0), (-1, 0), (0, -1), (0, 1), (0.7, -0.7), (0.7, 0.7), (-0.7, -0.7), (-0.7, 0.7)):
            left = x + dx * reach - (0 if dx > 0 else width if dx < 0 else width / 2)
            top = y + dy * reach - (height / 2 if not dy else height if dy < 0 else 0)
            box = (left, top, left + width, top + height)
            inside = frame[0] < box[0] and box[2] < frame[2] and frame[1] <= box[1] and box[3] < frame[3]
            free = not any(box[0] < b[2] and b[0] < box[2] and box[1] < b[3] and b[1] < box[3] for b in taken)
            if inside and free:
                taken.append(box)
                return left + 2, top + FONT - 1
    left = min(max(x + radius + 4, frame[0]), frame[2] - width)  # crowded: over others rather than nowhere
    taken.append((left, y - height / 2, left + width, y + height / 2))
    return left + 2, y - height / 2 + FONT - 1
