"""The policy sparsed over bundles without a cache: its steps, its limits, what it reads, and what it refuses."""

import numpy as np
import pytest

from dlm_edge.errors import DlmEdgeError, UsageProblem
from dlm_edge.kernels import library_path
from dlm_edge.kernels.select_pages.reference import DENSE, DENSE_KEEP, REUSE_PAGES
from dlm_edge.runtime.attention import AttentionPlan, AttentionSettings, kept_blocks
from dlm_edge.runtime.resolving import resolve
from dlm_edge.runtime.settings import GenerateSettings
from tests.runtime.toy import make_conventions
from tests.tiny import make_checkpoint

NATIVE = [pytest.param(True, marks=pytest.mark.skipif(library_path() is None, reason="not built")), False]
STATIC = {"sampler": "static", "max_new_tokens": 24}
SPARSED = {"attention": "sparsed", "page_size": 8}


def prompt_of(length, seed=0):
    return np.random.default_rng(seed).integers(0, 250, length).tolist()


def modes(settings, filled_by_step, n_to_fill=10):
    plan, found = AttentionPlan(AttentionSettings(policy="sparsed", **settings), 100, n_to_fill), []
    for n_filled in filled_by_step:
        found.append(plan.of_step(110).mode)
        plan.filled(n_filled)
    return found


@pytest.mark.parametrize(
    ("skip", "filled_by_step", "expected"),
    [
        (0.2, [1] * 5, [DENSE, DENSE, DENSE_KEEP, REUSE_PAGES, REUSE_PAGES]),
        (0.2, [5, 4, 1], [DENSE, DENSE_KEEP, REUSE_PAGES]),  # by confidence: half of it after one step
        (0.0, [1, 1], [DENSE_KEEP, REUSE_PAGES]),
        (1, [9, 1, 1], [DENSE, DENSE_KEEP, REUSE_PAGES]),
        (3, [1] * 5, [DENSE, DENSE, DENSE, DENSE_KEEP, REUSE_PAGES]),
    ],
)
def test_the_pattern_is_chosen_once(skip, filled_by_step, expected):
    assert modes({"skip": skip}, filled_by_step) == expected


def test_a_block_across_the_border_counts_as_generation():
    plan = AttentionPlan(AttentionSettings(policy="sparsed", page_size=32, keep=0.4), 100, 50)
    policy = plan.of_step(150)  # blocks 0, 1, 2 of the prompt, then 3 (positions 96 to 127) and 4
    assert (policy.sink, policy.n_pages, policy.n_active, policy.page_size) == (3, 2, 1, 32)


@pytest.mark.parametrize(
    ("share", "n_blocks", "expected"),
    [(0.3, 10, 4), (0.29, 100, 30), (0.3, 11, 4), (0.01, 5, 1), (0.5, 2, 2), (0.5, 0, 0), (1, 7, 7)],
)
def test_shares_keep_their_whole_part_and_one(share, n_blocks, expected):
    assert kept_blocks(share, n_blocks) == expected


@pytest.mark.parametrize("native", NATIVE)
@pytest.mark.parametrize("family", ["llada", "dream"])
def test_everything_kept_gives_the_tokens_of_dense(open_with, family, native):
    """In a bundle without a cache, as in one that has one and does not use it."""
    wanted = open_with(family).generate(prompt_of(101), cache="none", **STATIC)
    engine = open_with(family, "none", native)
    dense = engine.generate(prompt_of(101), **STATIC)
    kept = engine.generate(prompt_of(101), **SPARSED, keep=1.0, skip=0, **STATIC)
    assert wanted.token_ids == dense.token_ids == kept.token_ids
    assert wanted.density == dense.density == kept.density == 1.0


@pytest.mark.parametrize("native", NATIVE)
def test_density_counts_pairs_of_blocks_and_the_dense_steps(open_with, native):
    """101 + 24 positions are 16 blocks of 8, of which 12 lie in the prompt; half of 12 and of 4 are 7 and 3 kept."""
    found = open_with("llada", "none", native).generate(prompt_of(101), **SPARSED, skip=5, **STATIC)
    assert found.density == pytest.approx((6 + 18 * (7 + 3) / 16) / 24)
    third = open_with("llada", "none", native).generate(prompt_of(101), **SPARSED, skip=5, keep=0.3, **STATIC)
    assert third.density == pytest.approx((6 + 18 * (4 + 2) / 16) / 24)


@pytest.mark.skipif(library_path() is None, reason="not built")
@pytest.mark.parametrize("family", ["llada", "dream"])
def test_library_and_function_body_agree(open_with, family):
    one, other = (
        open_with(family, "none", native).generate(prompt_of(150), **SPARSED, keep=0.3, **STATIC)
        for native in (True, False)
    )
    assert one.token_ids == other.token_ids and one.density == other.density < 0.6


def test_requests_do_not_see_the_pattern_of_another(open_with):
    engine = open_with("llada", "none")
    alone = engine.generate(prompt_of(90), **SPARSED, **STATIC)
    engine.generate(prompt_of(300, seed=1), **SPARSED, keep=0.2, **STATIC)  # other shapes
    engine.generate(prompt_of(90, seed=2), attention="sparsed", page_size=64, **STATIC)
    again = engine.generate(prompt_of(90), **SPARSED, **STATIC)
    assert again.token_ids == alone.token_ids and again.density == alone.density


def test_decoding_by_confidence_goes_through_all_modes(open_with):
    found = open_with("dream", "none").generate(prompt_of(90), **SPARSED, threshold=0.1, max_new_tokens=24)
    assert found.steps < 24 and 0.5 <= found.density < 1.0


REFUSED = [
    ({"keep": 0.0}, "none"),
    ({"keep": 1.1}, "none"),
    ({"skip": -1.0}, "none"),
    ({"skip": 2.5}, "none"),
    ({"budget": 64}, "none"),
    ({}, "kv-fp32"),
    ({}, "x-int8"),
    ({"cache": "prefix"}, "none"),
    ({"attention": "dense", "keep": 0.5}, "none"),
    ({"attention": "quest"}, "none"),
    ({"attention": "mage"}, "none"),
]


@pytest.mark.parametrize(("settings", "layout"), REFUSED)
def test_refused(settings, layout):
    with pytest.raises(UsageProblem) as error:
        asked = GenerateSettings.of({"attention": "sparsed"} | settings)
        resolve(asked, make_conventions("full"), room=64, layout=layout)
    assert error.value.code == "E-PARAM"


def test_accepted_and_its_defaults():
    asked = GenerateSettings.of({"attention": "sparsed"})
    found = resolve(asked, make_conventions("full"), room=64, layout="none")
    assert (found.cache, found.attention) == (
        "none",
        AttentionSettings(policy="sparsed", page_size=32, keep=0.5, skip=0.2),
    )


@pytest.mark.parametrize(("family", "cache"), [("sdar", "none"), ("llada", "none,group=64")])
def test_exports_that_make_no_sense_are_refused(tmp_path, open_with, family, cache):
    from dlm_edge.export import export

    with pytest.raises(DlmEdgeError) as error:
        export(make_checkpoint(tmp_path / "source", family), tmp_path / "bundle", cache=cache)
    assert error.value.code == "E-PARAM" and not (tmp_path / "bundle").exists()
