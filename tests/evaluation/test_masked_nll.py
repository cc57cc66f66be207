"""Masked NLL against models whose answer is known."""

from __future__ import annotations

import math

import numpy as np
import pytest

from dlm_edge.evaluation.masked_nll import masked_nll, standard_error
from dlm_edge.export import export
from dlm_edge.runtime import Engine
from tests.tiny import FAMILY_NAMES, make_checkpoint, make_spec

WINDOWS = np.random.default_rng(0).integers(0, 290, (4, 64))


class Oracle:
    """Knows the window; gives the right token `odds` times the weight of any other, at the shifted row."""

    def __init__(self, spec, odds, truth):
        self.spec, self.odds, self.truth = spec, odds, truth
        self.seen = []

    def reset(self, capacity):
        assert capacity == len(self.truth)

    def store(self, start, end):
        pass

    def run(self, ids, start, cache_len, attn_block, rows, stored_rows=0):
        self.seen.append((start, ids.copy()))
        predicted = start + rows + self.spec.conventions.logit_shift
        logits = np.zeros((len(rows), self.spec.vocab_size), np.float32)
        known = predicted < len(self.truth)  # a shifted model's last row speaks of the token after the window
        logits[np.flatnonzero(known), self.truth[predicted[known]]] = math.log(self.odds)
        return logits


@pytest.mark.parametrize("family", FAMILY_NAMES)
@pytest.mark.parametrize("odds", [1, 50])
def test_known_probability(family, odds):
    """Every hidden token has probability odds / (odds + V - 2): the mask token counts as impossible."""
    spec = make_spec(family)
    expected = math.log((odds + spec.vocab_size - 2) / odds)
    for window in WINDOWS:
        result = masked_nll(Oracle(spec, odds, window), spec, window[None], seed=0)
        for bucket in result.by_bucket():
            assert bucket["tokens"] == 0 or bucket["nll"] == pytest.approx(expected, rel=1e-5)
        # Nothing predicts the first token of a shifted family: when it is the only one hidden, its block is left out.
        blocks = WINDOWS.shape[1] // spec.conventions.block_length
        left_out = spec.conventions.attention != "full" and result.bound[0] < 0.99 * expected
        assert not left_out or spec.conventions.logit_shift
        assert result.bound[0] == pytest.approx(expected * (1 - left_out / blocks), rel=1e-5)


def test_every_bucket_is_met_and_only_the_block_is_hidden():
    spec = make_spec("sdar")
    model = Oracle(spec, 2, WINDOWS[0])
    result = masked_nll(model, spec, WINDOWS[:1], seed=0)
    assert all(bucket["tokens"] > 0 for bucket in result.by_bucket())
    length = spec.conventions.block_length
    noisy = [(s, ids) for s, ids in model.seen if (ids == spec.conventions.mask_id).any()]
    assert len(noisy) == WINDOWS.shape[1] // length
    assert all(len(ids) == length and start % length == 0 for start, ids in noisy)


def test_states_follow_from_the_seed():
    spec = make_spec("sdar")
    first, second = (masked_nll(Oracle(spec, 9, WINDOWS[0]), spec, WINDOWS[:1], seed=3) for _ in range(2))
    np.testing.assert_array_equal(first.tokens, second.tokens)
    np.testing.assert_array_equal(first.bound, second.bound)


def test_standard_error():
    assert standard_error(np.array([1.0, 3.0])) == pytest.approx(1.0)
    assert standard_error(np.array([1.0])) == math.inf


@pytest.mark.parametrize("family", ["sdar", "fast_dllm_v2"])
def test_a_layout_that_stores_codes_is_scored_behind_its_own_prefix(tmp_path, family):
    """Once nothing was stored between the blocks, and every quantized cache looked as if it had forgotten the text."""
    make_checkpoint(tmp_path / family, family)
    scores = {}
    for layout in ("kv-fp32", "kv-int8", "kv-int4"):
        export(tmp_path / family, tmp_path / layout, cache=layout, profile="fp32")
        with Engine.open(tmp_path / layout, threads=1) as engine:
            ids = np.random.default_rng(0).integers(5, 200, (3, 96))
            scores[layout] = masked_nll(engine.parts.model, engine.spec, ids, 0).bound
    exact = scores["kv-fp32"]
    assert np.abs(scores["kv-int8"] - exact).max() < 0.002 * exact.min()
    assert 0 < np.abs(scores["kv-int4"] - exact).max() < 0.02 * exact.min()
