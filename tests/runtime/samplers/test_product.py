"""A bound on the product of the confidences."""

import pytest

from tests.runtime.samplers.given import scores_of, select


@pytest.mark.parametrize(
    ("threshold", "expected"),
    [(1.1, [11]), (0.95, [11]), (0.9, [11, 13]), (0.8, [10, 11, 13]), (0.0, [10, 11, 12, 13])],
)
def test_the_longest_run_that_reaches_it(threshold, expected):
    scores = scores_of([0.9, 0.99, 0.2, 0.95])  # falling: 0.99, 0.9405, 0.84645, 0.16929
    assert [position for position, _ in select("product", scores, threshold=threshold)] == expected


def test_a_certain_slot_costs_nothing():
    assert len(select("product", scores_of([1.0, 1.0, 0.5]), threshold=1.0)) == 2
    assert len(select("product", scores_of([1.0, 1.0, 0.5]), threshold=1.01)) == 1
