"""Attention policies: which mode each step of a block has, what is counted, and the limits in which all are dense."""

import numpy as np
import pytest

from dlm_edge.errors import UsageProblem
from dlm_edge.kernels import library_path
from dlm_edge.kernels.select_pages.reference import DENSE, DENSE_KEEP, REUSE_PAGES, REUSE_ROWS, SELECT, SELECT_ROWS
from dlm_edge.runtime.attention import ALL_ROWS, POLICIES, AttentionPlan, AttentionSettings, Density, as_matrix
from dlm_edge.runtime.resolving import resolve
from dlm_edge.runtime.settings import PAGE_SIZES, GenerateSettings
from tests.runtime.toy import make_conventions

WHOLE = 512  # tokens; the tiny models have no longer context
LIMITS = [
    {"attention": "quest", "budget": WHOLE},
    {"attention": "losa", "budget": WHOLE, "active": 1.0, "selector": "first"},
    {"attention": "losa", "budget": WHOLE, "active": 1.0, "selector": "bounds"},
    {"attention": "mage", "budget": WHOLE},
    {"attention": "flashblock", "changed": 1},  # every step fills a position, so every step reads the prefix
    {"attention": "losa", "budget": 1, "active": 0.0, "dense_layers": 4},  # all layers that there are
]
CASES = [("sdar", "block"), ("fast_dllm_v2", "block"), ("llada", "prefix"), ("dream", "prefix"), ("llada", "dual")]
CASES.append(("dream", "dual"))
NATIVE = [pytest.param(True, marks=pytest.mark.skipif(library_path() is None, reason="not built")), False]


def prompt_of(length, seed=0):
    return np.random.default_rng(seed).integers(0, 250, length).tolist()


@pytest.mark.parametrize(
    ("policy", "modes"),
    [
        ("dense", [DENSE] * 6),
        ("quest", [SELECT] * 6),
        ("losa", [DENSE_KEEP] + [SELECT_ROWS] * 5),
        ("flashblock", [DENSE, REUSE_ROWS, REUSE_ROWS, DENSE, REUSE_ROWS, REUSE_ROWS]),
        ("mage", [DENSE_KEEP] + [REUSE_PAGES] * 5),
    ],
)
def test_modes_over_two_blocks(policy, modes):
    """One position is filled in every step; what happened in one block is forgotten in the next."""
    plan = AttentionPlan(AttentionSettings(policy=policy, changed=3))
    for _ in range(2):
        plan.restart()
        found = []
        for _ in modes:
            found.append(plan.of_step(16).mode)
            plan.filled(1)
        assert found == modes
    assert plan.of_exact_pass().mode == DENSE


def test_flashblock_counts_positions_and_not_steps():
    plan = AttentionPlan(AttentionSettings(policy="flashblock", changed=4))
    found = []
    for n_filled in (1, 2, 1, 7, 3, 1):
        found.append(plan.of_step(16).mode)
        plan.filled(n_filled)
    assert found == [DENSE, REUSE_ROWS, REUSE_ROWS, DENSE, DENSE, REUSE_ROWS]


@pytest.mark.parametrize(("share", "n_rows", "expected"), [(0.3125, 16, 5), (0.0, 16, 1), (1.0, 7, 7), (0.5, 1, 1)])
def test_active_rows_follow_the_window(share, n_rows, expected):
    for selector, modes in (("bounds", [DENSE, SELECT]), ("first", [DENSE_KEEP, SELECT_ROWS])):
        plan = AttentionPlan(AttentionSettings(policy="losa", active=share, selector=selector))
        steps = [plan.of_step(n_rows), plan.of_step(n_rows)]
        assert [step.mode for step in steps] == modes and steps[1].n_active == expected


def test_budget_is_rounded_up_to_pages():
    settings = AttentionSettings(policy="quest", budget=33, page_size=16, sink_pages=1, recent_pages=1)
    matrix = as_matrix(AttentionPlan(settings).of_step(8), 3, 1)
    chosen = [SELECT, 3, ALL_ROWS, 1, 1, 0, 0, 0, 16]
    assert matrix.dtype == np.int64 and matrix.tolist() == [[DENSE, *chosen[1:]], chosen, chosen]
    assert AttentionSettings(budget=1, page_size=128).numbers(SELECT).n_pages == 1


def test_density_counts_bounds_and_leaves_out_steps_without_a_prefix():
    density = Density()
    assert density.share == density.active_share == 1.0
    density.add(np.array([[8, 0, 0, 0], [8, 0, 0, 0]], np.float32), 8)
    assert density.share == density.active_share == 1.0
    density.add(np.array([[2, 3, 12, 1], [4, 6, 12, 2]], np.float32), 8)
    assert density.share == pytest.approx((4 / 12 + 8 / 12) / 2)
    assert density.active_share == pytest.approx((2 + 4) / 16)


@pytest.mark.parametrize("native", NATIVE)
@pytest.mark.parametrize(("family", "cache"), CASES)
def test_limits_are_dense(open_with, family, cache, native):
    engine = open_with(family, native=native)
    assert engine.parts.native_operators == native
    options = {"cache": cache, "sampler": "static", "max_new_tokens": 20}
    dense = engine.generate(prompt_of(100), **options)
    assert dense.density == dense.active_rows == 1.0
    for limit in LIMITS:
        engine.forget_prompt()
        found = engine.generate(prompt_of(100), **limit, **options)
        assert found.token_ids == dense.token_ids, limit
        assert found.density >= 1.0 and found.active_rows == 1.0, limit


@pytest.mark.parametrize("layout", ["kv-fp16", "kv-int8", "kv-int4", "kv-int4x2", "x-latent-int4", "x-cl3"])
def test_limits_are_dense_over_every_form_of_cache(open_with, layout):
    engine = open_with("sdar", layout)
    options = {"sampler": "static", "max_new_tokens": 20}
    dense = engine.generate(prompt_of(100), **options).token_ids
    for limit in LIMITS:
        if layout.startswith("kv") or not (limit["attention"] == "mage" or limit.get("selector") == "first"):
            engine.forget_prompt()
            assert engine.generate(prompt_of(100), **limit, **options).token_ids == dense, limit


@pytest.mark.parametrize("policy", ["quest", "losa", "losa bounds", "mage", "flashblock"])
@pytest.mark.parametrize(("family", "cache"), CASES)
def test_less_is_read(open_with, family, cache, policy):
    """And the result depends on the settings only: not on what ran before."""
    policy, *selector = policy.split()
    small = {"budget": 16, "page_size": 8} if "budget" in POLICIES[policy].options else {}
    small |= {"selector": selector[0]} if selector else {}
    options = {"cache": cache, "sampler": "static", "max_new_tokens": 20, "attention": policy, **small}
    engine = open_with(family)
    first = engine.generate(prompt_of(100), **options)
    assert 0 < first.density < 1 and (first.active_rows < 1) == (policy in ("losa", "flashblock"))
    engine.generate(prompt_of(60, seed=5), cache=cache, max_new_tokens=9)
    engine.generate(prompt_of(60, seed=6), cache=cache, max_new_tokens=9, attention="quest", page_size=16)
    engine.forget_prompt()
    assert engine.generate(prompt_of(100), **options).token_ids == first.token_ids


@pytest.mark.skipif(library_path() is None, reason="not built")
@pytest.mark.parametrize("layout", ["kv-fp32", "kv-int4", "kv-int4x2", "x-latent-int4", "x-cl3"])
def test_native_operators_and_function_bodies_give_the_same(open_with, layout):
    options = {"sampler": "static", "max_new_tokens": 20, "budget": 16, "page_size": 8}
    for policy in ("quest", "losa") if layout.startswith("x") else ("quest", "losa", "mage"):
        found = []
        for native in (True, False):
            result = open_with("sdar", layout, native).generate(prompt_of(100), attention=policy, **options)
            found.append(result)
        assert found[0].token_ids == found[1].token_ids, policy
        assert found[0].active_rows == pytest.approx(found[1].active_rows), policy
        # Layers before sum in another order, so that of two pages with nearly the same score either may be chosen, and
        # the union of a head has one page more: a thousandth. The operators alone are compared exactly elsewhere.
        assert found[0].density == pytest.approx(found[1].density, abs=3e-3), policy


def test_bounds_of_another_prompt_are_not_used(open_with):
    """Mage stores keys without bounds; Quest after it may not find those of the prompt before."""
    engine, options = open_with("sdar"), {"sampler": "static", "max_new_tokens": 12, "page_size": 8, "budget": 16}
    expected = engine.generate(prompt_of(100, 2), attention="quest", **options)
    engine.forget_prompt()
    engine.generate(prompt_of(100, 1), attention="quest", **options)
    engine.generate(prompt_of(100, 2), attention="mage", **options)
    found = engine.generate(prompt_of(100, 2), attention="quest", **options)
    assert (found.token_ids, found.density) == (expected.token_ids, expected.density)


def test_drift_of_zero_renews_every_row_that_moved(open_with):
    """Then losa is exact. In the first of the four layers rows of unchanged tokens do not move."""
    engine, options = open_with("sdar"), {"sampler": "static", "max_new_tokens": 12}
    dense = engine.generate(prompt_of(100), **options).token_ids
    losa = {"attention": "losa", "selector": "bounds", "budget": WHOLE, "active": 0.0}
    assert engine.generate(prompt_of(100), **losa, **options).active_rows < 0.4
    found = engine.generate(prompt_of(100), drift=0.0, **losa, **options)
    assert found.token_ids == dense and 0.75 < found.active_rows < 1


@pytest.mark.parametrize(
    "values",
    [
        {"attention": "dense", "budget": 64},
        {"attention": "quest", "active": 0.5},
        {"attention": "quest", "changed": 2},
        {"attention": "mage", "drift": 0.1},
        {"attention": "flashblock", "page_size": 16},
        {"attention": "losa", "changed": 2},
        {"attention": "losa", "cache": "none"},
        {"attention": "flashblock", "cache": "none"},
        {"attention": "quest", "page_size": 24},
        {"attention": "quest", "budget": 0},
        {"attention": "losa", "active": 1.5},
        {"attention": "losa", "drift": float("nan")},
        {"attention": "quest", "sink_pages": -1},
        {"attention": "lose"},
        {"attention": "losa", "selector": "second"},
        {"attention": "quest", "selector": "first"},
        {"attention": "dense", "dense_layers": 1},
    ],
    ids=str,
)
def test_settings_that_do_not_fit_are_refused(values):
    with pytest.raises(UsageProblem) as error:
        resolve(GenerateSettings.of(values), make_conventions("block", 8), room=100)
    assert error.value.code == "E-PARAM"
    assert any(str(part) in error.value.message for part in (*values, *values.values()))


@pytest.mark.parametrize("values", [{"attention": "mage"}, {"attention": "losa", "selector": "first"}], ids=str)
@pytest.mark.parametrize("layout", ["x-latent-int4", "x-cl3"])
def test_without_keys_nothing_can_be_measured(open_with, layout, values):
    with pytest.raises(UsageProblem) as error:
        open_with("sdar", layout).submit("text", **values)
    assert error.value.code == "E-PARAM" and layout in error.value.message


@pytest.mark.parametrize(("layout", "selector"), [("kv-int4", "first"), ("x-int4", "bounds"), ("x-cl3", "bounds")])
def test_losa_chooses_by_what_the_cache_holds(layout, selector):
    settings = GenerateSettings.of({"attention": "losa"})
    assert resolve(settings, make_conventions("block", 8), room=9, layout=layout).attention.selector == selector


def test_page_sizes_divide_the_capacity():
    from dlm_edge.runtime.sequence_memory import CAPACITY_STEP

    assert all(CAPACITY_STEP % size == 0 for size in PAGE_SIZES)
