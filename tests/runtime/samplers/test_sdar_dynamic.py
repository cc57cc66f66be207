"""A threshold with a quota under it."""

import pytest

from tests.runtime.samplers.given import scores_of, select, state_of


def test_all_above_the_threshold():
    assert select("sdar-dynamic", scores_of([0.9, 0.85, 0.86])) == [(10, 0), (12, 2)]


def test_the_quota_where_fewer_are():
    state = state_of(6, n_steps=2)
    assert select("sdar-dynamic", scores_of([0.1, 0.9, 0.5, 0.2, 0.4, 0.3]), state) == [(11, 1), (12, 2), (14, 4)]


@pytest.mark.parametrize(("remain", "step", "quota"), [(7, 0, 3), (4, 1, 2), (2, 2, 2), (3, 1, 2), (1, 1, 1)])
def test_the_quota_shares_what_remains(remain, step, quota):
    state = state_of(7, n_steps=3, step=step)
    assert len(select("sdar-dynamic", scores_of([0.2] * remain), state)) == quota


@pytest.mark.parametrize("n_masked", range(1, 17))
def test_nothing_sure_makes_the_quotas_of_static(n_masked):
    for n_steps in range(1, n_masked + 1):
        left = n_masked
        for step in range(n_steps):
            state = state_of(n_masked, n_steps=n_steps, step=step)
            n = len(select("sdar-dynamic", scores_of([0.2] * left), state))
            assert n == state.quota
            left -= n
