"""The fixed quota."""

import pytest

from tests.runtime.samplers.given import scores_of, select, state_of


@pytest.mark.parametrize("n_masked", [1, 4, 7, 16])
def test_quotas_sum_to_the_masks(n_masked):
    for n_steps in range(1, n_masked + 1):
        quotas = [state_of(n_masked, step=s, n_steps=n_steps).quota for s in range(n_steps)]
        assert sum(quotas) == n_masked and max(quotas) - min(quotas) <= 1 and quotas == sorted(quotas, reverse=True)


def test_the_most_confident_first_and_ties_go_left():
    scores = scores_of([0.2, 0.9, 0.9, 0.1, 0.9])
    assert select("static", scores, state_of(5)) == [(11, 1)]
    assert select("static", scores, state_of(5, n_steps=3)) == [(11, 1), (12, 2)]
