"""The measurement of cache memory, on a model small enough for a test."""

from __future__ import annotations

import pytest

from benchmarks import cache_memory
from dlm_edge.export import export
from dlm_edge.memory import rss_bytes
from dlm_edge.runtime import Engine
from tests.tiny import make_checkpoint


@pytest.mark.skipif(not rss_bytes(), reason="the system does not tell the size of a process")
def test_caches_take_what_their_layout_says(tmp_path):
    source = make_checkpoint(
        tmp_path / "source", "sdar", max_positions=4096, hidden_size=256, head_dim=64, n_kv_heads=4
    )
    export(source, tmp_path / "bundle", cache="kv-fp16")
    found = cache_memory.measure(tmp_path / "bundle", (512, 2048))
    with Engine.open(tmp_path / "bundle", threads=1) as engine:
        assert found["arithmetic"] == engine.parts.cache_bytes_per_position == 3 * 2 * 256 * 2
    assert found["held"] == pytest.approx(found["arithmetic"], rel=0.05)
    assert all(run["released"] < run["filled"] <= run["peak"] for run in found["runs"])
    results = {"models": {"tiny": {"kv-fp16": found}}}
    assert "| kv-fp16 | 3072 |" in cache_memory.table(results)
