import itertools
import math

import numpy as np
import pytest

from mobileprune.report.labels import Box, Place, place_labels

FRAME = Box(0, 0, 360, 300)


def mark(point, half=4.5):
    return Box(point[0] - half, point[1] - half, point[0] + half, point[1] + half)


def faults(points, places, bounds, obstacles, lines=()):
    """Everything that a name covers or that leaves the bounds."""
    found = [(point, place) for point, place in zip(points, places, strict=True) if place]
    wrong = [f"{place.box} leaves the plot" for _, place in found if not bounds.holds(place.box)]
    for (_, one), (_, other) in itertools.combinations(found, 2):
        wrong += [f"{one.box} covers {other.box}"] if one.box.overlaps(other.box) else []
    for _, place in found:
        wrong += [f"{place.box} covers the mark {each}" for each in obstacles if place.box.overlaps(each)]
        wrong += [f"{place.box} covers the line {line}" for line in lines if place.box.crossed_by(*line)]
    for point, place in found:
        if place.leader:
            others = [each for _, each in found if each is not place]
            marks = [each for each in obstacles if each.nearest(point) != point]
            wrong += [
                f"a leader crosses {each}"
                for each in (*(each.box for each in others), *marks)
                if each.crossed_by(point, place.leader)
            ]
    return wrong


@pytest.mark.parametrize("seed", range(8))
def test_names_of_crowded_points_cover_nothing(seed):
    generator = np.random.default_rng(seed)
    points = [tuple(each) for each in generator.normal((180, 150), (70, 25), (25, 2))]
    points = [point for point in points if FRAME.holds(mark(point))]
    sizes = [(float(width), 11.0) for width in generator.uniform(30, 120, len(points))]
    obstacles = [mark(point) for point in points]
    lines = list(itertools.pairwise(points[:4]))
    places = place_labels(points, sizes, FRAME, obstacles, lines=lines)
    assert faults(points, places, FRAME, obstacles, lines) == []
    assert sum(place is not None for place in places) >= 0.6 * len(points)
    assert places[0] is not None


def test_planted_faults_are_noticed():
    points = [(50.0, 50.0), (60.0, 50.0)]
    place = place_labels(points[:1], [(40, 11)], FRAME, [])[0]
    assert any("covers Box" in fault for fault in faults(points, [place, place], FRAME, []))
    assert any("covers the mark" in fault for fault in faults(points[:1], [place], FRAME, [place.box]))
    assert any("leaves" in fault for fault in faults(points[:1], [place], Box(0, 0, 51, 51), []))
    across = ((place.box.left - 1, place.box.low - 1), (place.box.right + 1, place.box.high + 1))
    far = Place(Box(100, 45, 140, 55), (100, 50))
    assert any("a leader crosses" in fault for fault in faults(points[:1], [far], FRAME, [mark((70, 50))]))
    assert any("covers the line" in fault for fault in faults(points[:1], [place], FRAME, [], [across]))


def test_a_lonely_point_has_its_name_beside_it_without_a_line():
    place = place_labels([(100, 100)], [(40, 11)], FRAME, [mark((100, 100))])[0]
    assert place.leader is None
    assert math.dist(place.box.nearest((100, 100)), (100, 100)) < 12


def test_a_name_without_room_is_left_out_and_the_first_one_wins():
    places = place_labels([(15, 10), (15, 10)], [(30, 11), (30, 11)], Box(0, 0, 30, 20), [mark((15, 10))])
    assert [place is None for place in places] == [True, True]
    places = place_labels([(10, 10), (10, 10)], [(30, 11), (30, 11)], Box(0, 0, 60, 22), [mark((10, 10))])
    assert [place is None for place in places] == [False, True]


def test_far_names_have_lines_and_reach_forbids_them():
    wall = [Box(60, 60, 140, 140)]
    far = place_labels([(100, 100)], [(20, 10)], FRAME, wall)[0]
    assert far.leader == far.box.nearest((100, 100))
    assert place_labels([(100, 100)], [(20, 10)], FRAME, wall, reach=[10.0]) == [None]


@pytest.mark.parametrize(
    ("start", "end", "crosses"),
    [
        ((0, 5), (20, 5), True),
        ((5, -5), (5, 20), True),
        ((-5, -5), (20, 20), True),
        ((0, 11), (20, 11), False),
        ((-5, 5), (-1, 5), False),
        ((0, 21), (21, 0), False),
        ((4, 4), (6, 6), True),
    ],
)
def test_lines_cross_boxes_where_they_do(start, end, crosses):
    assert Box(0, 0, 10, 10).crossed_by(start, end) is crosses
    assert Box(0, 0, 10, 10).crossed_by(end, start) is crosses
