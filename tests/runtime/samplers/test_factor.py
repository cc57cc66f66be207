"""As many as their number makes safe."""

import pytest

from tests.runtime.samplers.given import scores_of, select


@pytest.mark.parametrize(
    ("confidence", "n"),
    [
        ([0.99, 0.95, 0.9, 0.85], 4),  # (n + 1) (1 - c): 0.02, 0.15, 0.4, 0.75
        ([0.99, 0.95, 0.9, 0.79], 3),  # the last one: 5 * 0.21 = 1.05, which the published scan lets through
        ([0.99, 0.6, 0.6, 0.6], 1),
        ([0.4, 0.3, 0.2], 1),  # the first one fails as well
        ([0.1], 1),
    ],
)
def test_the_weakest_one_decides(confidence, n):
    assert [position for position, _ in select("factor", scores_of(confidence))] == list(range(10, 10 + n))


def test_the_bound_itself_is_not_enough():
    assert len(select("factor", scores_of([0.75, 0.75, 0.75]), factor=1.0)) == 2  # 3 * 0.25 < 1, 4 * 0.25 = 1


def test_nothing_is_certain_enough_for_no_factor():
    assert select("factor", scores_of([1.0, 1.0]), factor=0.0) == [(10, 0)]
