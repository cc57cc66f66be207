"""One slot of each masked run."""

from dataclasses import replace

import numpy as np
import pytest

from tests.runtime.samplers.geometries import canvases, everywhere
from tests.runtime.samplers.given import scores_of, select, state_of


def runs(confidence, positions):
    return replace(scores_of(confidence), positions=np.array(positions))


@pytest.mark.parametrize(
    ("confidence", "expected"),
    [
        ([0.5, 0.6, 0.45, 0.45, 0.3, 0.41], [11, 20, 31]),  # ties of a run go left
        ([0.5, 0.95, 0.91, 0.2, 0.3, 0.2], [11, 20]),
        ([0.3, 0.2, 0.1, 0.1, 0.3, 0.2], [10]),  # none reaches the lower one: the best, and ties go left
        ([0.3, 0.2, 0.1, 0.1, 0.39, 0.2], [30]),
    ],
)
def test_the_best_of_each_run(confidence, expected):
    scores = runs(confidence, [10, 11, 20, 21, 30, 31])
    assert [position for position, _ in select("hierarchical", scores, state_of(22))] == expected


def test_one_run_is_one_slot():
    assert select("hierarchical", scores_of([0.5, 0.6, 0.7, 0.6])) == [(12, 2)]


def test_a_lower_bound_accepts_a_superset():
    rng = np.random.default_rng(5)
    for _ in range(50):
        positions = 10 + np.sort(rng.choice(30, 12, replace=False))
        scores, kept = runs(rng.random(12), positions), set()
        for low in (1.1, 0.9, 0.6, 0.3, 0.0):
            now = set(select("hierarchical", scores, state_of(30), low=low))
            assert kept <= now
            kept = now


@everywhere
def test_no_runs_is_threshold(family, length, cache):
    found = canvases(family, length, cache, "hierarchical", threshold=0.6, low=2)
    assert found == canvases(family, length, cache, "threshold", threshold=0.6)


@everywhere
def test_nothing_sure_is_static(family, length, cache):
    found = canvases(family, length, cache, "hierarchical", threshold=2, low=2)
    assert found == canvases(family, length, cache, "static")
