"""Where the labels of a scatter plot stand, so that none covers a marker or another label; in points."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from adasearch.canvas import text_width

DIRECTIONS = [  # in which a label may lie from its point, best first
    (1.0, 0.0), (-1.0, 0.0), (0.0, 1.0), (0.0, -1.0),
    *((dx, dy) for dy in (0.7, -0.7, 0.94, -0.94) for dx in (0.7, -0.7, 0.35, -0.35)),
]  # fmt: skip
LABEL_SIZE, LABEL_HEIGHT = 8.5, 14.0  # points
Extent = tuple[float, float, float, float]  # left, bottom, right, top


@dataclass(frozen=True)
class Label:
    """A text that wants to stand beside the marker of ``radius`` at (x, y); all in points."""

    text: str
    colour: str
    weight: str
    x: float
    y: float
    radius: float

    @property
    def width(self) -> float:
        """Of the text, with a little room."""
        return 72 * text_width(self.text, LABEL_SIZE, self.weight) + 4


def place_labels(labels: Sequence[Label], obstacles: Sequence[Extent], frame: Extent) -> list[tuple[float, float]]:
    """Lower left corner of each label: the nearest place in the frame that meets no marker and no other label."""
    taken, corners = list(obstacles), []

    def fits(box: Extent) -> bool:
        return frame[0] < box[0] and box[2] < frame[2] and frame[1] < box[1] and box[3] < frame[3]

    def is_free(box: Extent) -> bool:
        return not any(box[0] < b[2] and b[0] < box[2] and box[1] < b[3] and b[1] < box[3] for b in taken)

    for label in labels:
        width, height = label.width, LABEL_HEIGHT
        boxes = []
        for reach in np.arange(label.radius + 3, label.radius + 300, 5):
            for dx, dy in DIRECTIONS:
                x = label.x + dx * reach - (0 if dx > 0.5 else width if dx < -0.5 else width / 2)
                y = label.y + dy * reach - (0 if dy > 0.3 else height if dy < -0.3 else height / 2)
                boxes.append((x, y, x + width, y + height))
        inside = [box for box in boxes if fits(box)]
        taken.append(next(filter(is_free, inside), (inside or boxes)[0]))
        corners.append(taken[-1][:2])
    return corners
