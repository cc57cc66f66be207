"""Anchors, and what is near them."""

import numpy as np
import pytest

from dlm_edge.runtime.samplers.localleap import FAR, distance_to_nearest
from tests.runtime.samplers.geometries import canvases, everywhere
from tests.runtime.samplers.given import scores_of, select


def test_less_is_asked_near_an_anchor():
    scores = scores_of([0.8, 0.7, 0.8, 0.95, 0.74, 0.75, 0.8])
    assert [position for position, _ in select("localleap", scores, radius=2)] == [12, 13, 15]
    assert [position for position, _ in select("localleap", scores, radius=3)] == [10, 12, 13, 15, 16]


def test_without_an_anchor_the_best_one():
    assert select("localleap", scores_of([0.8, 0.89, 0.89])) == [(11, 1)]


def test_distances():
    positions, anchors = np.array([3, 4, 9, 20]), np.array([4, 12])
    assert distance_to_nearest(positions, anchors).tolist() == [1, 0, 3, 8]
    assert (distance_to_nearest(positions, anchors[:0]) >= FAR - 20).all()


@everywhere
@pytest.mark.parametrize("options", [{"radius": 0}, {"relaxed": 0.6}], ids=str)
def test_no_leap_is_threshold(family, length, cache, options):
    found = canvases(family, length, cache, "localleap", threshold=0.6, **options)
    assert found == canvases(family, length, cache, "threshold", threshold=0.6)


@everywhere
def test_no_anchor_is_static(family, length, cache):
    assert canvases(family, length, cache, "localleap", threshold=1.5) == canvases(family, length, cache, "static")
