"""Agreement of texts, on texts whose share can be counted by hand."""

from __future__ import annotations

import pytest

from dlm_edge.tuning.agreement import Agreement


def of(*pairs):
    found = Agreement()
    for reference, tokens in pairs:
        found.add(reference, tokens)
    return found


@pytest.mark.parametrize(
    ("pairs", "share", "identical"),
    [
        ([([1, 2, 3], [1, 2, 3])], 1.0, 1.0),
        ([([1, 2, 3], [1, 9, 3])], 2 / 3, 0.0),
        ([([1, 2, 3], [1, 2])], 2 / 3, 0.0),  # what one has beyond the other's end agrees with nothing
        ([([1, 2], [1, 2, 3, 4])], 0.5, 0.0),
        ([([1, 2], [])], 0.0, 0.0),
        ([([], [])], 1.0, 1.0),
        ([([1], [1]), ([1, 2, 3], [4, 5, 6])], 0.25, 0.5),  # longer texts count more
    ],
)
def test_counted_by_hand(pairs, share, identical):
    found = of(*pairs)
    assert found.share == pytest.approx(share) and found.identical == identical


def test_the_bound_is_what_a_perfect_rest_gives():
    found = of(([1, 2, 3, 4], [1, 9, 3, 4, 5]), ([1], [1]))
    rest = [[5] * n for n in (3, 0, 7)]
    bound = found.best_possible([len(each) for each in rest])
    for each in rest:
        found.add(each, each)
    assert found.share == bound == pytest.approx((3 + 1 + 10) / (5 + 1 + 10))


def test_the_standard_error_is_of_a_ratio_over_prompts():
    assert of(([1, 2], [1, 2])).standard_error == 0.0
    equal = of(*[([1, 2], [1, 9])] * 5)
    assert equal.standard_error == pytest.approx(0.0)  # every prompt says the same
    halves = of(([1, 2], [1, 2]), ([1, 2], [8, 9]))
    assert halves.standard_error == pytest.approx(0.5)  # of the mean of 1 and 0
