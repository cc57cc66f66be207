"""All that reach a fixed confidence."""

import numpy as np

from tests.runtime.samplers.given import scores_of, select


def test_all_that_reach_it_and_at_least_one():
    assert select("threshold", scores_of([0.9, 0.5, 0.95])) == [(10, 0), (12, 2)]
    assert select("threshold", scores_of([0.3, 0.5, 0.5])) == [(11, 1)]


def test_a_lower_one_accepts_a_superset():
    rng = np.random.default_rng(3)
    for _ in range(50):
        scores, kept = scores_of(rng.random(12)), set()
        for threshold in (1.1, 0.9, 0.7, 0.5, 0.2, 0.0):
            now = set(select("threshold", scores, threshold=threshold))
            assert kept <= now
            kept = now
        assert len(kept) == 12
