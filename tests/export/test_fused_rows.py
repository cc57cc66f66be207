"""Latents in a float16 bundle: rows and their projection are one node, which gives what two nodes give."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from dlm_edge.export import export
from dlm_edge.export.cache_nodes.stored_latent import StoredLatent
from dlm_edge.runtime import Engine
from tests.tiny import make_checkpoint


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    """cpu; cuda; and "two", for cuda with the nodes of the CPU."""
    folder = tmp_path_factory.mktemp("fused")
    source = make_checkpoint(folder / "source", "sdar", n_layers=2)
    for target in ("cpu", "cuda"):
        export(source, folder / target, target=target, cache="x-int8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StoredLatent, "is_fused", property(lambda _: False, lambda _, value: None), raising=False)
        export(source, folder / "two", target="cuda", cache="x-int8")
    return folder


def rows_of(bundle):
    (path,) = bundle.glob("*.onnx")
    model = onnx.load(path, load_external_data=False)
    names = ("DequantizeRows", "RematerialiseRows")
    called = [(node.op_type, node.overload) for node in model.graph.node if node.op_type in names]
    return called, {(made.name, made.overload) for made in model.functions if made.name in names}


@pytest.mark.parametrize(
    ("name", "operator"), [("cpu", "DequantizeRows"), ("cuda", "RematerialiseRows"), ("two", "DequantizeRows")]
)
def test_each_target_has_its_operator(bundles, name, operator):
    called, carried = rows_of(bundles / name)
    assert set(called) == carried == {(operator, "channel_8"), (operator, "token_8")}


def logits_over_a_prefix(bundle):
    """Of one block of 8 over 160 stored positions."""
    ids = np.random.default_rng(0).integers(0, 250, 168)
    with Engine.open(bundle, device="cpu") as engine:
        assert engine.parts.cache_layout == "x-latent-int8"
        model = engine.parts.model
        model.reset(len(ids))
        model.run(ids[:160], 0, 0, 8, np.arange(0), stored_rows=160)
        model.store(0, 160)
        return model.run(ids[160:], 160, 160, 8, np.arange(8)).copy()


def test_both_give_the_same_logits(bundles):
    one, two = (logits_over_a_prefix(bundles / name) for name in ("cuda", "two"))
    assert np.isfinite(one).all() and np.abs(one).max() > 1
    np.testing.assert_array_equal(one, two)
