"""Sub-blocks by threshold."""

import pytest

from dlm_edge.runtime.samplers import SAMPLERS
from tests.runtime.decoding import decode, prompt_of
from tests.runtime.samplers.given import scores_of, select, state_of
from tests.runtime.toy import FAMILIES, make_conventions


def test_above_the_threshold_and_the_best_one():
    assert select("fast-dllm-v2", scores_of([0.9, 0.95, 0.5]), threshold=0.9) == [(11, 1)]
    assert select("fast-dllm-v2", scores_of([1.0, 1.0])) == [(10, 0)]


def test_sub_blocks_tile_the_block():
    chosen = SAMPLERS["fast-dllm-v2"]
    state = state_of(20)
    assert chosen.spans(state, chosen.options()) == [(10, 18), (18, 26), (26, 30)]
    assert chosen.spans(state, chosen.options(sub_block=100)) == [(10, 30)]


@pytest.mark.parametrize("length", [1, 7, 8, 9, 28])
@pytest.mark.parametrize("family", FAMILIES)
def test_sub_blocks_of_one_go_left_to_right(family, length):
    in_order = decode(make_conventions(family, 8, 1), prompt_of(length))
    found = decode(make_conventions(family, 8), prompt_of(length), sampler="fast-dllm-v2", sub_block=1)
    assert found[0] == in_order[0] and found[1].steps == in_order[1].steps
