"""The bytes that a request is said to take are those of the arrays that it reserves."""

from __future__ import annotations

import pytest

from dlm_edge.errors import ResourceError, UsageProblem
from dlm_edge.runtime.attention import AttentionSettings
from dlm_edge.runtime.budget import attention_bytes, cache_bytes, parse_bytes
from dlm_edge.runtime.engine import Engine
from dlm_edge.runtime.pattern_memory import PatternMemory
from dlm_edge.runtime.sequence_memory import SequenceMemory
from tests.tiny import make_spec

GROUP, POSITIONS, ROWS = 32, 700, 16


@pytest.mark.parametrize("layout", ["kv-fp32", "kv-fp16", "kv-int8", "kv-int4", "x-int4", "x-cl3"])
def test_caches(layout):
    spec = make_spec("sdar")
    memory = SequenceMemory(spec, layout, GROUP)
    memory.reserve(POSITIONS, AttentionSettings(), ROWS)
    layers = range(spec.n_layers)
    held = sum(array.nbytes for i in layers for array in memory.layout.buffers(i).values())
    assert cache_bytes(spec, layout, GROUP, POSITIONS) == held


@pytest.mark.parametrize("policy", ["dense", "quest", "losa", "flashblock", "mage"])
@pytest.mark.parametrize("selector", ["first", "bounds"])
def test_state_of_sparse_attention(policy, selector):
    """Arrays that are bound and never touched take no memory: of one row, of one page, or bounds that nobody reads."""
    spec, attention = make_spec("sdar"), AttentionSettings(policy=policy, selector=selector)
    memory = SequenceMemory(spec, "kv-fp32", GROUP)
    memory.reserve(POSITIONS, attention, ROWS)
    held = sum(array.nbytes for array in memory.state.values())
    if attention.needs_bounds:
        layers = range(spec.n_layers)
        held += memory.bounds.fixed_bytes
        held += sum(array.nbytes for i in layers for array in memory.bounds.buffers(i).values())
    slack = 4 * spec.n_layers * spec.n_kv_heads  # masses of one page
    assert held - slack <= attention_bytes(spec, "kv-fp32", attention, POSITIONS, ROWS) <= held


def test_the_pattern_of_a_whole_sequence():
    spec = make_spec("llada")
    for attention in (AttentionSettings(), AttentionSettings(policy="sparsed", page_size=16)):
        memory = PatternMemory(spec, "none", GROUP)
        memory.reserve(POSITIONS, attention, ROWS)
        held = sum(array.nbytes for array in memory.state.values())
        assert attention_bytes(spec, "none", attention, POSITIONS, ROWS) == held


def test_the_budget_counts_what_the_attention_keeps(make_engine):
    spec, request = make_spec("sdar"), {"max_new_tokens": 8, "sampler": "static"}
    rows = spec.conventions.block_length
    kept = attention_bytes(spec, "kv-fp32", AttentionSettings(policy="flashblock"), 40, rows)
    without = cache_bytes(spec, "kv-fp32", 128, 40) + 4 * spec.conventions.sub_block_length * spec.vocab_size
    engine = make_engine(memory_budget=without + kept - 1)
    engine.generate([5, 6, 7], **request)
    with pytest.raises(ResourceError, match="exceed the budget"):
        engine.generate([5, 6, 7], attention="flashblock", **request)


def test_memory_budget():
    assert [parse_bytes(v) for v in (None, 5, "6GiB", "1.5 GB", "100", "2k")] == [
        None, 5, 6 << 30, 1_500_000_000, 100, 2000,
    ]  # fmt: skip
    for bad in (0, -1, "", "x", "1 TB", True, 1.5, "0"):
        with pytest.raises(UsageProblem):
            parse_bytes(bad)


def test_budget_below_the_weights_is_refused(bundles):
    with pytest.raises(ResourceError) as error:
        Engine.open(bundles["sdar"][1], memory_budget="10k")
    assert error.value.code == "E-MEM" and "10000" in error.value.message
