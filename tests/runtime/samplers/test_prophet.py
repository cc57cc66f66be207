"""Everything at once, when the model is sure of the answer."""

import numpy as np
import pytest

from dlm_edge.runtime.blocks import Canvas
from dlm_edge.runtime.samplers.prophet import MAX_GAP, Options, gaps
from dlm_edge.runtime.scores import Sampling, ScoreReducer
from tests.runtime.decoding import decode, prompt_of
from tests.runtime.samplers.geometries import BLOCK, canvases, everywhere, sharp_model
from tests.runtime.samplers.given import FIRST, scores_of, select, state_of
from tests.runtime.toy import MASK, make_conventions

NO_EVENT = {"gap_early": 1e6, "gap_middle": 1e6, "gap_late": 1e6}


def with_gaps(*gap):
    """Rows whose two best logits differ by so much; the first is the most confident."""
    top1 = np.linspace(0.6, 0.5, len(gap))
    return scores_of(top1, top2_prob=top1 * np.exp(-np.array(gap, float)))


def n_chosen(scores, **changes):
    options = changes.pop("options", {})
    return len(select("prophet", scores, state_of(len(scores.positions), **changes), **options))


def test_the_gap_is_the_difference_of_the_logits():
    rows = np.random.default_rng(0).normal(size=(20, 40)).astype(np.float32) * 3
    scores = ScoreReducer(39, Sampling()).reduce(rows, np.arange(20), 0)
    best = np.sort(rows[:, :39], axis=1)[:, ::-1]
    np.testing.assert_allclose(gaps(scores), best[:, 0] - best[:, 1], rtol=0, atol=2e-6)  # of float32 logits near 10
    certain = scores_of([1.0], top2_prob=[0.0])
    assert gaps(certain)[0] == MAX_GAP and n_chosen(certain, options={"gap_early": MAX_GAP + 1e-6}) == 1


@pytest.mark.parametrize(
    ("progress", "wanted"), [(0.0, 7.5), (0.33, 7.5), (0.34, 5.0), (0.66, 5.0), (0.67, 2.5), (0.99, 2.5)]
)
def test_the_bar_falls_with_progress(progress, wanted):
    assert n_chosen(with_gaps(*[wanted + 0.001] * 4), progress=progress) == 4
    assert n_chosen(with_gaps(*[wanted - 0.001] * 4), progress=progress) == 1


def test_the_mean_over_the_region_counts():
    scores = with_gaps(1, 20, 1, 1)
    assert n_chosen(scores, options={"gap_early": 5.75}) == 4
    assert n_chosen(scores, options={"gap_early": 5.76}) == 1
    assert n_chosen(scores, options={"gap_early": 20, "region_start": 1, "region_length": 1}) == 4
    assert n_chosen(scores, options={"gap_early": 1.01, "region_start": 2}) == 1
    assert n_chosen(scores, options={"gap_early": 0, "region_start": 4}) == 1  # beyond what is in reach


def test_what_follows_the_end_of_the_text_is_no_answer():
    scores = with_gaps(2, 4, 20, 20)  # ids 0, 1, 2, 3
    assert n_chosen(scores, stop_ids=()) == 4
    assert n_chosen(scores, stop_ids=(1,)) == 1
    assert n_chosen(scores, stop_ids=(1,), options={"gap_early": 3}) == 4  # and then all of it is committed
    assert n_chosen(scores, stop_ids=(1,), options={"region_length": 4}) == 4


def test_the_rounding_of_the_canvas_is_no_answer():
    canvas = Canvas(range(FIRST), 2, FIRST + 4, mask_id=99)
    assert n_chosen(with_gaps(2, 2, 20, 20), canvas=canvas) == 1
    assert n_chosen(with_gaps(8, 8, 0, 0), canvas=canvas) == 4


def test_without_an_event_only_the_span_counts():
    scores = scores_of([0.5, 0.4, 0.9, 0.8], top2_prob=[0.4] * 4)
    assert select("prophet", scores, state_of(2)) == [(10, 0)]
    assert select("prophet", scores, state_of(2, n_steps=1)) == [(10, 0), (11, 1)]


@everywhere
@pytest.mark.parametrize("steps", [None, 9])
def test_no_event_is_static(family, length, cache, steps):
    found = canvases(family, length, cache, "prophet", **NO_EVENT, steps=steps)
    assert found == canvases(family, length, cache, "static", steps=steps)


def new_per_step(seen):
    left = [canvas.count(MASK) for canvas in seen]
    return [before - after for before, after in zip(left, left[1:], strict=False)]


@everywhere
@pytest.mark.parametrize("bar", [0.5, 3.0, 6.0])
def test_one_event_ends_what_is_in_reach(family, length, cache, bar):
    """The text with a cache that reaches all of it, otherwise the block. Before it, one token per step."""
    bars = dict.fromkeys(NO_EVENT, bar)
    _, seen = canvases(family, length, cache, "prophet", **bars)
    sees_all = family.startswith("full") and cache != "dual"
    start, end = (0, len(seen[0])) if sees_all else (len(prompt_of(length)) // BLOCK * BLOCK, len(seen[0]))
    for edge in [0] if sees_all else range(length if "full" in family else start, end, BLOCK):
        part = slice(0, end) if sees_all else slice(edge, edge + BLOCK)
        new = [n for n in new_per_step([canvas[part] for canvas in seen]) if n]
        assert sum(n > 1 for n in new) <= 1 and all(n == 1 for n in new[:-1])


@pytest.mark.parametrize("cache", ["none", "prefix"])
def test_an_event_at_once_is_one_selection(cache):
    conventions = make_conventions("full", BLOCK, 4)
    tokens, stats = decode(conventions, prompt_of(5), model=sharp_model(), cache=cache, sampler="prophet", gap_early=0)
    assert len(tokens) == 19 and stats.steps == 1 and stats.blocks == 1 and stats.forward_passes == 1


def test_its_bars_are_the_published_ones():
    assert (Options().gap_early, Options().gap_middle, Options().gap_late) == (7.5, 5.0, 2.5)
