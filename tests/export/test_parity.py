"""The exported graph against the torch module: every family, whole sequences and cached blocks, with and without the kernel."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dlm_edge import kernels
from dlm_edge.checkpoint import open_checkpoint
from dlm_edge.errors import JobError
from dlm_edge.export import export, pipeline
from dlm_edge.export.verify import empty_caches, last_block, make_prompts, open_session, run, verify, whole
from dlm_edge.models import load_model
from tests.tiny import FAMILY_NAMES, make_checkpoint

TOLERANCE = 1e-4  # of the largest logit; measured over these checkpoints: 1e-6 to 4e-6

VARIANTS = [
    pytest.param({}, id="plain"),
    pytest.param({"tied": True}, id="tied"),
    pytest.param({"tied": False, "padded_rows": 7}, id="untied-padded"),
    pytest.param({"tied": True, "padded_rows": 7, "shards": 3}, id="tied-padded-sharded"),
]


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_logits_equal_the_torch_module(family, variant, tmp_path):
    source = make_checkpoint(tmp_path / "source", family, **variant)
    export(source, tmp_path / "bundle")
    model, spec = load_model(source), open_checkpoint(source).spec
    ids = np.random.default_rng(1).integers(0, spec.vocab_size, 29)
    with torch.no_grad():
        expected = model(torch.from_numpy(ids)[None])[0, :, : spec.vocab_size].numpy()
    for native in (False, True) if kernels.library_path() else (False,):
        session = open_session(tmp_path / "bundle" / "model.onnx", native)
        for rows, actual in (whole(session, spec, ids), last_block(session, spec, ids)):
            assert actual.shape == expected[rows].shape
            assert np.abs(actual - expected[rows]).max() <= TOLERANCE * np.abs(expected).max()


def test_only_the_rows_asked_for_are_projected(tmp_path):
    source = make_checkpoint(tmp_path / "source", "sdar")
    export(source, tmp_path / "bundle")
    spec = open_checkpoint(source).spec
    session = open_session(tmp_path / "bundle" / "model.onnx", native=False)
    ids = np.arange(24)
    everything, _ = run(session, spec, ids, 0, 0, np.arange(24), empty_caches(session, 24))
    some, _ = run(session, spec, ids, 0, 0, np.array([20, 3]), empty_caches(session, 24))
    np.testing.assert_array_equal(some, everything[[20, 3]])
    none, _ = run(session, spec, ids, 0, 0, np.arange(0), empty_caches(session, 24))
    assert none.shape == (0, spec.vocab_size)


def test_a_wrong_graph_is_refused_and_leaves_nothing(tmp_path, monkeypatch):
    source = make_checkpoint(tmp_path / "source", "sdar")
    other = make_checkpoint(tmp_path / "other", "sdar", seed=1)
    right = pipeline.write_graph

    def write_other(_, path, precision, layout):
        return right(open_checkpoint(other), path, precision, layout)

    monkeypatch.setattr(pipeline, "write_graph", write_other)
    with pytest.raises(JobError) as caught:
        export(source, tmp_path / "bundle")
    assert caught.value.code == "E-PARITY"
    assert not (tmp_path / "bundle").exists()


def test_one_changed_weight_is_noticed(tmp_path):
    """The check itself: a single sign flipped in one projection must not pass."""
    source = make_checkpoint(tmp_path / "source", "sdar")
    export(source, tmp_path / "bundle")
    data = bytearray((tmp_path / "bundle" / "model.onnx.data").read_bytes())
    weights = np.frombuffer(data, np.float32)
    weights[np.abs(weights).argmax()] *= -1
    (tmp_path / "bundle" / "model.onnx.data").write_bytes(data)
    with pytest.raises(JobError, match="differs"):
        graph, checkpoint = tmp_path / "bundle" / "model.onnx", open_checkpoint(source)
        verify(graph, checkpoint, make_prompts(checkpoint), body="float32", int8_activations=False, native=False)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("family", ["llada", "fast_dllm_v2"])  # untied with a separate head, and tied with biases
def test_packed_checkpoints(family, bits, tmp_path):
    """Packed weights give what the dequantized ones give in torch; int8 activations are reported beside that."""
    source = make_checkpoint(tmp_path / "source", family, padded_rows=5)
    from dlm_edge.quant import quantize

    quantize(source, tmp_path / "packed", method="rtn", bits=bits, group_size=32)
    exact = export(tmp_path / "packed", tmp_path / "exact", profile="w8" if bits == 8 else "w4")
    assert exact.parity["max_rel_error"] <= TOLERANCE
    assert {node["accuracy_level"] for node in exact.nodes} == {0}
    blocks = "w8a8" if bits == 8 else "w4a8-blocks"  # groups are no rows, so 8 bits run in blocks too
    fast = export(tmp_path / "packed", tmp_path / "fast", profile=blocks)
    assert fast.parity["exact_max_rel_error"] <= TOLERANCE
    levels = {node["name"]: node["accuracy_level"] for node in fast.nodes}
    assert levels["layers.0.q.weight"] == 4
    assert levels["layers.0.down.weight"] == (4 if bits == 8 else 0)
    assert not list((tmp_path / "fast").glob("exact-*"))


def test_the_cuda_target_is_float16_and_runs_on_its_function_body(tmp_path):
    source = make_checkpoint(tmp_path / "source", "sdar")
    report = export(source, tmp_path / "bundle", target="cuda")
    assert 1e-6 < report.parity["max_rel_error"] <= 2e-2  # float16 it is, and within its rounding
