"""Codes in two planes: how many of them each run reads, and what both of them are the same as."""

import numpy as np
import pytest

from dlm_edge.errors import UsageProblem
from dlm_edge.kernels.quantized_pages.planes import BOTH, UPPER
from dlm_edge.runtime.attention import POLICIES, AttentionPlan, AttentionSettings
from dlm_edge.runtime.resolving import resolve
from dlm_edge.runtime.settings import GenerateSettings
from dlm_edge.runtime.step_model import FULL_ATTENTION
from tests.runtime.test_attention import NATIVE, prompt_of
from tests.runtime.toy import make_conventions

STATIC = {"sampler": "static", "max_new_tokens": 24, "stop_at_eos": False}


@pytest.mark.parametrize("policy", [name for name in POLICIES if name != "sparsed"])
def test_both_planes_in_the_first_step_of_each_block(policy):
    first, always = (AttentionPlan(AttentionSettings(policy=policy, planes=name)) for name in ("first", "both"))
    for _ in range(2):
        found = []
        for plan in (first, always):
            plan.restart()
        for _ in range(3):
            found.append((first.planes, always.planes))
            for plan in (first, always):
                plan.of_step(16)
                plan.filled(1)
        assert found == [(BOTH, BOTH), (UPPER, BOTH), (UPPER, BOTH)]


@pytest.mark.parametrize(("family", "cache"), [("sdar", "block"), ("llada", "prefix"), ("dream", "dual")])
def test_runs_that_store_read_both(open_with, monkeypatch, family, cache):
    engine, runs = open_with(family, "kv-int4x2"), []
    model = engine.parts.model
    engine._worker.call(model.discard)
    run = model.run

    def record(*args, planes, stored_rows, **options):
        runs.append((planes, bool(stored_rows)))
        return run(*args, planes=planes, stored_rows=stored_rows, **options)

    monkeypatch.setattr(model, "run", record)
    result = engine.generate(prompt_of(96), cache=cache, **STATIC)
    assert len(runs) == result.forward_passes and {planes for planes, storing in runs if storing} == {BOTH}
    steps = [planes for planes, storing in runs if not storing]
    # One token a step. A refresh of full attention gives the first token of a block itself.
    in_block = 8 if family == "sdar" else 7
    assert steps == [BOTH, *[UPPER] * (in_block - 1)] * 3


@pytest.mark.parametrize("native", NATIVE)
@pytest.mark.parametrize(("family", "cache"), [("sdar", "block"), ("fast_dllm_v2", "block"), ("llada", "prefix")])
def test_both_planes_are_bytes(open_with, family, cache, native):
    planes, whole = (open_with(family, layout, native) for layout in ("kv-int4x2", "kv-int8"))
    for attention in ({}, {"attention": "losa", "budget": 24}, {"attention": "quest", "budget": 24}):
        for engine in (planes, whole):
            engine.forget_prompt()
        found = planes.generate(prompt_of(150), cache=cache, planes="both", **attention, **STATIC)
        expected = whole.generate(prompt_of(150), cache=cache, **attention, **STATIC)
        assert found.token_ids == expected.token_ids
        assert (found.density, found.active_rows) == (expected.density, expected.active_rows)


@pytest.mark.parametrize("native", NATIVE)
@pytest.mark.parametrize("family", ["sdar", "llada"])
def test_logits_over_one_plane_and_over_both(open_with, family, native):
    ids, block, prefix = np.array(prompt_of(176)), FULL_ATTENTION if family == "llada" else 8, 168

    def logits(layout, planes=BOTH):
        model = open_with(family, layout, native).parts.model
        model.discard()
        model.reset(len(ids))
        model.run(ids[:prefix], 0, 0, block, np.arange(0), stored_rows=prefix)
        model.store(0, prefix)
        return model.run(ids[prefix:], prefix, prefix, block, np.arange(8), planes=planes).copy()

    exact, eight = logits("kv-fp32"), logits("kv-int8")
    np.testing.assert_array_equal(logits("kv-int4x2"), eight)
    upper, four = (np.square(found - exact).mean() for found in (logits("kv-int4x2", UPPER), logits("kv-int4")))
    assert 10 * np.square(eight - exact).mean() < upper < 2 * four  # of errors 17 times as large as of 8 bits


@pytest.mark.parametrize("layout", ["kv-fp32", "kv-int8", "kv-int4", "x-int4"])
def test_other_layouts_have_no_planes(layout):
    with pytest.raises(UsageProblem, match=f"the cache layout {layout} has no planes") as error:
        resolve(GenerateSettings(planes="both"), make_conventions("block", 8), room=100, layout=layout)
    assert error.value.code == "E-PARAM"


def test_what_steps_read_is_a_setting():
    conventions = make_conventions("block", 8)
    for given in (None, "first", "both"):
        settings = resolve(GenerateSettings(planes=given), conventions, room=100, layout="kv-int4x2")
        assert settings.attention.planes == (given or "first")
    with pytest.raises(UsageProblem, match="planes 'upper' is not known"):
        GenerateSettings.of({"planes": "upper"})
