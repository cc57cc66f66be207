"""Dream's timetable, and the four samplers that follow it."""

import numpy as np
import pytest

from dlm_edge.runtime.samplers.timetable import next_transfer, share
from dlm_edge.runtime.scores import Sampling
from tests.runtime.decoding import decode, prompt_of
from tests.runtime.samplers.given import FIRST, scores_of, select, state_of
from tests.runtime.toy import FAMILIES, make_conventions

RANKED = ("maskgit_plus", "topk_margin", "entropy")


@pytest.mark.parametrize("n_steps", [1, 2, 5, 64])
def test_shares_are_those_of_evenly_falling_times(n_steps):
    times = np.linspace(1, 1e-3, n_steps + 1)
    expected = [1 - s / t for t, s in zip(times[:-1], times[1:], strict=True)][:-1] + [1.0]
    np.testing.assert_allclose([share(i, n_steps, 1e-3) for i in range(n_steps)], expected, rtol=1e-12)


@pytest.mark.parametrize("n_masked", [1, 2, 7, 32])
@pytest.mark.parametrize("n_steps", [1, 2, 5, 32, 100])
def test_everything_is_transferred_in_the_end(n_masked, n_steps):
    left, step, counts = n_masked, 0, []
    while left:
        step, n = next_transfer(left, step, n_steps, 1e-3)
        left, step = left - n, step + 1
        counts.append(n)
    assert step <= n_steps and sum(counts) == n_masked and min(counts) >= 1


def test_steps_without_a_transfer_are_passed_over():
    assert next_transfer(8, 0, 8, 1e-3) == (1, 1)  # 8 * 0.1249 is less than one token
    assert next_transfer(2, 0, 8, 1e-3) == (7, 2)


@pytest.mark.parametrize(
    ("sampler", "first"), [("maskgit_plus", 11), ("topk_margin", 12), ("entropy", 13), ("static", 11)]
)
def test_what_each_ranks_by(sampler, first):
    scores = scores_of([0.5, 0.6, 0.5, 0.5], top2_prob=[0.3, 0.4, 0.1, 0.3], entropy=[1.0, 0.9, 0.8, 0.7])
    assert [position for position, _ in select(sampler, scores)] == [first]


@pytest.mark.parametrize("sampler", RANKED)
def test_the_plan_is_followed(sampler):
    state = state_of(8, n_steps=2)
    assert len(select(sampler, scores_of(np.linspace(0.1, 0.9, 8)), state, steps=2)) == 3  # int(8 * 0.4995)
    last = state_of(8, n_steps=2, step=1, memory=1)
    assert len(select(sampler, scores_of([0.5] * 5), last, steps=2)) == 5


@pytest.mark.parametrize("sampler", RANKED)
def test_each_sub_block_has_a_timetable_of_its_own(sampler):
    """What the sub-block before it left in the memory does not count."""
    state = state_of(8, n_steps=2, memory=2)
    assert len(select(sampler, scores_of([0.5] * 8), state, steps=2)) == 3


@pytest.mark.parametrize("sampler", ["origin", *RANKED])
@pytest.mark.parametrize("family", FAMILIES)
def test_no_pass_for_a_step_without_a_transfer(family, sampler):
    """Every selection commits, so there are no more of them than masks, and the model runs no more often."""
    tokens, stats = decode(
        make_conventions(family, 8), prompt_of(9), sampler=sampler, gen_len=23, steps=500, cache="none", stop_ids=()
    )
    n_masks = 24 if "full" in family else 23
    assert len(tokens) == 23 and stats.forward_passes == stats.steps < n_masks


def test_drawn_slots_follow_the_softmax_of_the_measure():
    confidence, counts = np.array([0.9, 0.5, 0.1]), np.zeros(3)
    for number in range(4000):
        state = state_of(3, number=number, sampling=Sampling(seed=5))
        ((position, _),) = select("maskgit_plus", scores_of(confidence), state, alg_temp=0.5)
        counts[position - FIRST] += 1
    weights = np.exp(confidence / 0.5)
    np.testing.assert_allclose(counts / 4000, weights / weights.sum(), atol=0.024)  # three standard deviations


def test_drawn_slots_are_distinct_and_depend_on_their_key_only():
    scores, taken = scores_of(np.linspace(0.1, 0.9, 8)), set()
    for seed in range(20):
        state = state_of(8, n_steps=2, sampling=Sampling(seed=seed))
        chosen = select("entropy", scores, state, steps=2, alg_temp=1.0)
        assert chosen == select("entropy", scores, state, steps=2, alg_temp=1.0)
        assert len(dict(chosen)) == 3
        taken.add(tuple(chosen))
    assert len(taken) > 10


def test_origin_transfers_at_the_rate_of_the_timetable():
    counts = []
    for number in range(600):
        state = state_of(16, n_steps=4, number=number, sampling=Sampling(seed=1))
        counts.append(len(select("origin", scores_of([0.5] * 16), state, steps=4)))
    assert abs(np.mean(counts) - 16 * share(0, 4, 1e-3)) < 0.22  # three standard deviations; a step without any is rare
