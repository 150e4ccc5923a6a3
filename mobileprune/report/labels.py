"""Where the names of points go, so that no name covers a point, another name or a line to one."""

import dataclasses
import math
from collections.abc import Iterator, Sequence

Point = tuple[float, float]
# How far a name may be from its point, and how many directions are tried.
_DISTANCES = (3.0, 6.0, 10.0, 16.0, 24.0, 34.0, 46.0, 60.0, 76.0, 94.0)
_DIRECTIONS = 24
# From here on a line leads from the point to its name.
_LEADER_FROM = 5.0


@dataclasses.dataclass(frozen=True)
class Box:
    """A rectangle: its lower left and its upper right corner."""

    left: float
    low: float
    right: float
    high: float

    def overlaps(self, other: "Box") -> bool:
        return self.left < other.right and other.left < self.right and self.low < other.high and other.low < self.high

    def holds(self, other: "Box") -> bool:
        return (
            self.left <= other.left and other.right <= self.right and self.low <= other.low and other.high <= self.high
        )

    def nearest(self, point: Point) -> Point:
        """The place in the box that is nearest to a point."""
        return (min(max(point[0], self.left), self.right), min(max(point[1], self.low), self.high))

    def crossed_by(self, start: Point, end: Point) -> bool:
        """Whether a straight line passes through the box (Liang and Barsky, 1984)."""
        first, last = 0.0, 1.0
        for at, low, high in ((0, self.left, self.right), (1, self.low, self.high)):
            step = end[at] - start[at]
            if step == 0:
                if not low < start[at] < high:
                    return False
                continue
            one, two = sorted(((low - start[at]) / step, (high - start[at]) / step))
            first, last = max(first, one), min(last, two)
        return first < last


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a name goes; `leader` is where a line from its point ends, None where it stands close by."""

    box: Box
    leader: Point | None


def place_labels(
    points: Sequence[Point],
    sizes: Sequence[Point],
    bounds: Box,
    obstacles: Sequence[Box],
    reach: Sequence[float] | None = None,
    lines: Sequence[tuple[Point, Point]] = (),
) -> list[Place | None]:
    """A place for each name, the first ones first; None where there is none without an overlap.

    Lines from points to their names pass no other name and no other point's mark, either.

    Args:
        points: what the names belong to, the most important first; any unit of length, the same everywhere.
        sizes: width and height of each name.
        bounds: what no name may leave.
        obstacles: what no name may cover: the marks of all points, those without a name included.
        reach: how far each name may be from its point; as far as it gets by default.
        lines: straight ones that no name may cover, by their ends.

    Example:
        >>> place_labels([(50, 50)], [(30, 10)], Box(0, 0, 100, 100), [Box(47, 47, 53, 53)])[0].leader is None
        True
    """
    placed: list[Place | None] = []
    boxes: list[Box] = []
    drawn = list(lines)
    for at, (point, size) in enumerate(zip(points, sizes, strict=True)):
        found = None
        strangers = [mark for mark in obstacles if mark.nearest(point) != point]
        for distance, box in _candidates(point, size, math.inf if reach is None else reach[at]):
            end = box.nearest(point)
            if not bounds.holds(box) or any(box.overlaps(other) for other in (*boxes, *obstacles)):
                continue
            if any(box.crossed_by(*line) for line in drawn):
                continue
            if distance < _LEADER_FROM:
                found = Place(box, None)
            elif not any(other.crossed_by(point, end) for other in (*boxes, *strangers)):
                found = Place(box, end)
                drawn.append((point, end))
            if found:
                boxes.append(box)
                break
        placed.append(found)
    return placed


def _candidates(point: Point, size: Point, reach: float) -> Iterator[tuple[float, Box]]:
    """Boxes around a point, the nearest first: to the right, above, to the left, below, and in between."""
    width, height = size
    for distance in _DISTANCES:
        if distance > reach:
            return
        gap = distance + 4.0  # the mark itself
        for step in range(_DIRECTIONS):
            turn = 2 * math.pi * step / _DIRECTIONS
            across, up = math.cos(turn), math.sin(turn)
            middle = (point[0] + across * (gap + width / 2), point[1] + up * (gap + height / 2))
            yield (
                distance,
                Box(middle[0] - width / 2, middle[1] - height / 2, middle[0] + width / 2, middle[1] + height / 2),
            )
