"""Where the labels of a scatter plot go, so that none covers another, a marker or an error bar."""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

_DIRECTIONS = (0, 180, 90, 270, 45, 135, 315, 225, 22, 68, 112, 158, 202, 248, 292, 338)
"""In degrees, the preferred first."""
_GAPS = (3.0, 9.0, 16.0, 25.0, 36.0, 50.0)
"""Pixels between a marker and its label, times the scale."""


class Box(NamedTuple):
    """An upright rectangle in pixels."""

    left: float
    bottom: float
    right: float
    top: float

    def overlap(self, other: "Box") -> float:
        """The area that both cover."""
        width = min(self.right, other.right) - max(self.left, other.left)
        height = min(self.top, other.top) - max(self.bottom, other.bottom)
        return width * height if width > 0 and height > 0 else 0.0

    @property
    def centre(self) -> tuple[float, float]:
        return (self.left + self.right) / 2, (self.bottom + self.top) / 2


def place(
    markers: Sequence[Box], sizes: Sequence[tuple[float, float]], obstacles: Sequence[Box], frame: Box, scale: float = 1
) -> list[Box]:
    """A box for each label, near its marker.

    Those with the most neighbours choose first. A place that covers nothing is taken, the nearest of them; where there
    is none, the one that covers least.

    Args:
        markers: what is labelled; all of them are kept free.
        sizes: (width, height) of each label.
        obstacles: what else should stay visible, such as error bars.
        frame: no label leaves it, if that can be had.
        scale: pixels per unit of the distances between a marker and its label.
    """
    crowd = [sum(math.dist(one.centre, other.centre) < 60 * scale for other in markers) for one in markers]
    found: dict[int, Box] = {}
    for i in sorted(range(len(markers)), key=lambda i: -crowd[i]):
        taken = [*markers, *obstacles]

        def cost(box: Box, taken: Sequence[Box] = taken) -> float:
            area = (box.right - box.left) * (box.top - box.bottom)
            outside = area - box.overlap(frame)
            return 4 * outside + sum(box.overlap(other) for other in taken) + 4 * sum(map(box.overlap, found.values()))

        found[i] = min(_places(markers[i], sizes[i], scale), key=cost)  # of equals the first: the nearest
    return [found[i] for i in range(len(markers))]


def _places(marker: Box, size: tuple[float, float], scale: float) -> Iterator[Box]:
    """The nearest first."""
    x, y = marker.centre
    width, height = size
    for gap in _GAPS:
        for degrees in _DIRECTIONS:
            across, up = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
            # the label's centre lies so far out that its box clears the marker's by the gap
            reach_x = (marker.right - marker.left + width) / 2 + gap * scale
            reach_y = (marker.top - marker.bottom + height) / 2 + gap * scale
            out = min(
                reach_x / abs(across) if abs(across) > 1e-9 else math.inf,
                reach_y / abs(up) if abs(up) > 1e-9 else math.inf,
            )
            centre_x, centre_y = x + across * out, y + up * out
            yield Box(centre_x - width / 2, centre_y - height / 2, centre_x + width / 2, centre_y + height / 2)
