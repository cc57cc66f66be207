"""A threshold that follows what the block has accepted."""

import numpy as np
import pytest

from dlm_edge.errors import UsageProblem
from dlm_edge.runtime.sampler_options import sampler_options
from dlm_edge.runtime.samplers import SAMPLERS, bacd
from dlm_edge.runtime.samplers.bacd import History
from tests.runtime.decoding import decode, prompt_of
from tests.runtime.samplers.geometries import BLOCK, canvases, everywhere, sharp_model
from tests.runtime.samplers.given import scores_of, select, state_of
from tests.runtime.toy import FAMILIES, make_conventions


def test_the_first_selection_asks_for_the_highest():
    assert [p for p, _ in select("bacd", scores_of([0.7, 0.8, 0.8, 0.75]))] == [11, 12]
    assert [p for p, _ in select("bacd", scores_of([0.99, 0.92, 0.89]))] == [10, 11]  # bounded from above
    assert [p for p, _ in select("bacd", scores_of([0.3, 0.4]))] == [11]  # and from below: nothing passes


@pytest.mark.parametrize(
    ("accepted", "expected"), [([0.9, 0.5], [10, 11]), ([0.99, 0.99], [10]), ([0.2], [10, 11, 12]), ([0.85], [10])]
)
def test_later_ones_ask_for_the_mean(accepted, expected):
    state = state_of(3, step=1, memory=History(sum(accepted), len(accepted)))
    assert [position for position, _ in select("bacd", scores_of([0.95, 0.72, 0.6]), state)] == expected


def test_the_history_is_what_was_accepted():
    options = bacd.Options()
    first = bacd.select(scores_of([0.7, 0.8, 0.75]), state_of(3), options)
    assert first.memory == History(0.8, 1)
    second = bacd.select(scores_of([0.85, 0.5]), state_of(2, step=1, memory=first.memory), options)
    assert second.positions.tolist() == [10] and second.memory == History(pytest.approx(1.65), 2)


def test_bounds_out_of_order_are_refused():
    with pytest.raises(UsageProblem, match="above upper") as error:
        sampler_options(SAMPLERS["bacd"], {"lower": 0.8, "upper": 0.7})
    assert error.value.code == "E-PARAM"


@pytest.mark.parametrize("family", FAMILIES)
def test_the_history_begins_empty_in_every_block_and_stays_bounded(family, monkeypatch):
    seen, real = [], bacd.select

    def watched(scores, state, options):
        commits = real(scores, state, options)
        seen.append((state.block, state.memory, commits.memory))
        return commits

    monkeypatch.setitem(SAMPLERS, "bacd", bacd.Sampler(name="bacd", select=watched, options=bacd.Options))
    decode(make_conventions(family, BLOCK, 4), prompt_of(5), model=sharp_model(), sampler="bacd", gen_len=30)
    for (block, before, after), previous in zip(seen, [None, *seen[:-1]], strict=True):
        is_first = previous is None or previous[0] != block
        assert (before is None) == is_first and (is_first or before == previous[2])
        assert after.count <= BLOCK and 0 <= after.total <= after.count
    assert len({block for block, _, _ in seen}) >= 3


@everywhere
@pytest.mark.parametrize("bound", [0.6, 0.9])
def test_equal_bounds_are_threshold(family, length, cache, bound):
    found = canvases(family, length, cache, "bacd", lower=bound, upper=bound)
    assert found == canvases(family, length, cache, "threshold", threshold=bound)


@everywhere
def test_bounds_above_one_are_static(family, length, cache):
    assert canvases(family, length, cache, "bacd", lower=2, upper=2) == canvases(family, length, cache, "static")


def test_a_random_history_never_leaves_the_bounds():
    rng = np.random.default_rng(0)
    for _ in range(100):
        scores, count = scores_of(rng.random(9)), int(rng.integers(1, 9))
        state = state_of(9, step=1, memory=History(float(rng.random(count).sum()), count))
        chosen = {position - 10 for position, _ in select("bacd", scores, state)}
        sure = set(np.flatnonzero(scores.confidence >= 0.9).tolist())
        assert sure <= chosen
        assert chosen <= set(np.flatnonzero(scores.confidence >= 0.6).tolist()) or len(chosen) == 1
