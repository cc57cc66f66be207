"""What GPTQ promises, measured on the trained reference model as it runs: against full precision and against RTN."""

from __future__ import annotations

import math

import numpy as np
import pytest

from dlm_edge.evaluation.evaluate import evaluate, score_text
from dlm_edge.export import export
from dlm_edge.quant import quantize

WINDOWS = 64
GROUP = 64


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    folder = tmp_path_factory.mktemp("quality")
    export("reference", folder / "full")
    for method in ("rtn", "gptq"):
        for bits in (4, 3):
            name = f"{method}{bits}"
            quantize("reference", folder / f"{name}-checkpoint", method=method, bits=bits, group_size=GROUP)
            export(folder / f"{name}-checkpoint", folder / name)
    return folder


@pytest.fixture(scope="module")
def nll(bundles):
    names = ("full", "rtn4", "gptq4", "rtn3", "gptq3")
    return {name: score_text(bundles / name, WINDOWS, 0, None)[0] for name in names}


def test_four_bits_cost_less_than_half_a_percent(nll):
    full, gptq = nll["full"].bound.mean(), nll["gptq4"].bound.mean()
    assert gptq <= 1.005 * full


def test_gptq_is_better_than_rtn_at_four_bits(nll):
    assert nll["gptq4"].bound.mean() < nll["rtn4"].bound.mean()


def test_gptq_is_better_than_rtn_at_three_bits_in_every_bucket(nll):
    for gptq, rtn in zip(nll["gptq3"].by_bucket(), nll["rtn3"].by_bucket(), strict=True):
        assert gptq["tokens"] > 100 and gptq["nll"] < rtn["nll"], gptq["low"]


def test_fewer_bits_cost_more(nll):
    """The measure itself: it must see the difference between 3 and 4 bits, window by window."""
    difference = nll["rtn3"].bound - nll["rtn4"].bound
    assert difference.mean() > 3 * difference.std(ddof=1) / math.sqrt(WINDOWS)
    assert np.isfinite(nll["rtn3"].bound).all()


def test_exact_match_at_four_bits_is_within_the_standard_error(bundles):
    tasks = ["copy", "reverse", "sort", "json"]
    full, small = (evaluate(bundles / name, tasks=tasks, samples=25, seed=5) for name in ("full", "gptq4"))
    error = math.hypot(full.exact_match_se, small.exact_match_se)
    assert abs(full.exact_match - small.exact_match) <= error
