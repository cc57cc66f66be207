"""The learned filter in the loop, and the end of text."""

import numpy as np
import pytest

from dlm_edge.errors import UsageProblem
from dlm_edge.runtime.samplers.learn2pd import block_confidence
from tests.runtime.decoding import decode, prompt_of
from tests.runtime.samplers.geometries import BLOCK, canvases, everywhere
from tests.runtime.samplers.given import FIRST, scores_of, select, state_of, threshold_filter
from tests.runtime.samplers.scorers import Scorer
from tests.runtime.toy import EOS, FAMILIES, make_conventions


def test_it_sees_the_whole_block():
    """1 for what is filled, the confidence of what was asked about, 0 for the rest of the masks."""
    state = state_of(6, block=(FIRST - 2, FIRST + 6))
    state.canvas.commit(np.array([FIRST + 3]), np.array([5]))
    scores = scores_of([0.2, 0.7, 0.4])
    assert block_confidence(scores, state).tolist() == [1, 1, 0.2, 0.7, 0.4, 1, 0, 0]


def test_what_the_filter_accepts_and_at_least_the_most_confident():
    state = state_of(4, filter=threshold_filter(4))
    assert select("learn2pd", scores_of([0.6, 0.2, 0.9, 0.4]), state) == [(10, 0), (12, 2)]
    assert select("learn2pd", scores_of([0.3, 0.2, 0.4, 0.4]), state) == [(12, 2)]
    assert select("learn2pd", scores_of([0.6, 0.2, 0.9, 0.4]), state, tau=1.0) == [(12, 2)]


def test_a_slot_may_depend_on_its_neighbours():
    """The sum of confidences decides, for the first slot alone."""
    known = threshold_filter(3, 1.5)
    known.hidden_weight[:, 0] = 1
    assert select("learn2pd", scores_of([0.1, 0.7, 0.9]), state_of(3, filter=known)) == [(10, 0)]


@everywhere
def test_a_filter_of_single_slots_is_a_threshold(family, length, cache):
    filled = canvases.__wrapped__  # arrays cannot be the key of a cache
    found = filled(family, length, cache, "learn2pd", tau=0.5, filter=threshold_filter(BLOCK, 0.7))
    assert found == canvases(family, length, cache, "threshold", threshold=0.7)


def commits_of(family, seed, sampler, **settings):
    """The canvases of a model that likes to end the text."""
    seen, model = [], Scorer(seed=seed, boost=3.0)
    values = {"sampler": sampler, "gen_len": 15, "on_step": lambda p: seen.append(p.canvas.ids.copy())} | settings
    tokens, _ = decode(make_conventions(family, 4), prompt_of(5, seed), model=model, **values)
    return tokens, seen


@pytest.mark.parametrize("family", FAMILIES)
def test_up_to_the_end_of_text_it_is_static(family):
    """At tau 1 both commit the same until the first stop id of a block; then only what is left of it is filled. Where nothing
    is, the texts are equal."""
    ended = equal = 0
    for seed in range(25):
        tokens, found = commits_of(family, seed, "learn2pd", tau=1.0, filter=threshold_filter(4))
        expected, plain = commits_of(family, seed, "static")
        n_before = next((i for i, ids in enumerate(found) if EOS in ids[5:]), len(found) - 1) + 1
        assert all((a == b).all() for a, b in zip(found[:n_before], plain[:n_before], strict=True))
        last = found[n_before - 1]
        if EOS not in last[5:]:
            continue
        stop = 5 + last[5:].tolist().index(EOS)
        ended += 1
        assert (found[-1][stop + 1 :] == last[stop + 1 :]).all()
        if stop < 5 + 15 and 37 not in last[5:stop]:  # the mask's id
            equal += 1
            assert tokens == expected and len(found) == n_before
    assert ended >= 5 and equal >= 2


@pytest.mark.parametrize("family", FAMILIES)
def test_it_takes_no_more_steps_than_static(family):
    for seed in range(10):
        settings = {"tau": 0.5, "filter": threshold_filter(4, 0.3)}
        assert len(commits_of(family, seed, "learn2pd", **settings)[1]) <= 15 + 4


def test_without_a_filter_it_is_refused(make_engine):
    with pytest.raises(UsageProblem, match="needs a filter") as error:
        make_engine("llada").generate("text", sampler="learn2pd")
    assert error.value.code == "E-PARAM" and "dlm-edge train-filter" in error.value.hint


def test_other_block_lengths_are_refused(make_engine):
    engine = make_engine("llada", filter=threshold_filter(8))
    assert engine.generate("text", sampler="learn2pd", max_new_tokens=9, stop_at_eos=False).new_tokens == 9
    with pytest.raises(UsageProblem, match="block_length is 16") as error:
        engine.generate("text", sampler="learn2pd", block_length=16)
    assert error.value.code == "E-PARAM"
    assert engine.generate("text", sampler="static", block_length=16, max_new_tokens=4).steps
