"""Labels that keep off each other, off markers and off error bars."""

import random

from mlaan.compare.labels import Box, place

FRAME = Box(0, 0, 800, 500)


def marker(x, y):
    return Box(x - 5, y - 5, x + 5, y + 5)


def test_a_lone_label_is_beside_its_marker():
    (box,) = place([marker(100, 100)], [(30, 12)], [], FRAME)
    assert box.left - 105 < 5
    assert box.bottom < 100 < box.top


def test_labels_of_a_crowd_cover_nothing():
    drawn = random.Random(3)
    markers = [marker(400 + drawn.uniform(-60, 60), 250 + drawn.uniform(-60, 60)) for _ in range(12)]
    bars = [Box(one.centre[0] - 1, one.centre[1] - 25, one.centre[0] + 1, one.centre[1] + 25) for one in markers]
    boxes = place(markers, [(16, 12)] * len(markers), bars, FRAME)
    for i, box in enumerate(boxes):
        others = [*boxes[:i], *boxes[i + 1 :], *markers, *bars]
        assert sum(map(box.overlap, others)) == 0
        assert box.overlap(FRAME) == 16 * 12


def test_labels_stay_inside_the_frame():
    for x, y in ((797, 250), (3, 250), (400, 497), (400, 3), (797, 497)):
        (box,) = place([marker(x, y)], [(60, 12)], [], FRAME)
        assert round(box.overlap(FRAME)) == 60 * 12
