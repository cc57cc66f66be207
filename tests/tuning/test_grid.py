"""Every setting of the grid is one that its sampler takes."""

from __future__ import annotations

import pytest

from dlm_edge.errors import UsageProblem
from dlm_edge.runtime.samplers import SAMPLERS
from dlm_edge.tuning.grid import GRID, LEFT_OUT, Candidate, candidates


def test_every_setting_is_taken_by_its_sampler():
    assert set(GRID) | set(LEFT_OUT) <= set(SAMPLERS)
    for candidate in candidates(list(SAMPLERS)):
        given = candidate.settings["sampler_options"]
        assert candidate.options.items() <= given.items()


def test_all_samplers_are_tried_and_static_is_first():
    tried = candidates()
    assert tried[0] == Candidate("static") and [each.sampler for each in tried].count("static") == 1
    assert {each.sampler for each in tried} == set(SAMPLERS) - set(LEFT_OUT)
    assert len({each.label for each in tried}) == len(tried)


def test_those_named_are_tried_even_if_left_out_otherwise():
    assert [each.sampler for each in candidates(["origin", "static"])] == ["static", "origin"]
    with pytest.raises(UsageProblem, match="treshold") as error:
        candidates(["treshold"])
    assert error.value.code == "E-PARAM" and "threshold" in error.value.hint


@pytest.mark.parametrize(
    ("candidate", "label"),
    [
        (Candidate("static"), "static"),
        (Candidate("threshold", {"threshold": 0.9}), "threshold 0.9"),
        (Candidate("eb", {"gamma": 0.5, "rule": "each"}), "eb gamma=0.5 rule=each"),
    ],
)
def test_labels(candidate, label):
    assert candidate.label == label
