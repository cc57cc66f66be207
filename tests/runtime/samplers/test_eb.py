"""Bounded entropy."""

import numpy as np
import pytest

from tests.runtime.decoding import decode, prompt_of
from tests.runtime.samplers.given import scores_of, select
from tests.runtime.toy import FAMILIES, make_conventions


@pytest.mark.parametrize(
    ("gamma", "expected"),
    [(0.0, [11]), (0.0499, [11]), (0.06, [11, 13]), (0.12, [11, 13]), (0.25, [10, 11, 13]), (9.0, [10, 11, 12, 13])],
)
def test_the_sum_leaves_the_slot_itself_out(gamma, expected):
    scores = scores_of([0.5] * 4, entropy=[0.3, 0.05, 2.0, 0.1])
    assert [position for position, _ in select("eb", scores, gamma=gamma)] == expected


def test_the_fixed_rule_of_distilled_checkpoints():
    scores = scores_of([0.5] * 4, entropy=[0.3, 0.5, 2.0, 0.51])
    assert [p for p, _ in select("eb", scores, rule="each", gamma=0.5)] == [10, 11]
    assert [p for p, _ in select("eb", scores, rule="each", gamma=0.1)] == [10]


def test_equal_entropies_go_left():
    assert select("eb", scores_of([0.5] * 3, entropy=np.full(3, 1.0))) == [(10, 0)]


@pytest.mark.parametrize("rule", ["sum", "each"])
@pytest.mark.parametrize("family", FAMILIES)
def test_no_room_for_entropy_is_one_token_per_step(family, rule):
    conventions = make_conventions(family, 8)
    expected = decode(conventions, prompt_of(9), sampler="entropy")
    found = decode(conventions, prompt_of(9), sampler="eb", gamma=0.0, rule=rule)
    assert found[0] == expected[0] and found[1].steps == expected[1].steps
