"""Every node that runs belongs to a part of a step: every form of weights, every cache, with and without our library."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from dlm_edge.roofline.node_kinds import ROLES, ROUNDING, NodeKind, kind_of
from dlm_edge.roofline.profile import Event, end_profile, profiles
from dlm_edge.runtime.ort_step_model import OrtStepModel
from dlm_edge.runtime.session import open_session
from dlm_edge.runtime.step_model import FULL_ATTENTION
from tests.roofline.conftest import FORMS

ROWS = 8  # of a window
CASES = [("fast_dllm_v2", "kv-fp32", form) for form in FORMS]
CASES += [(family, "kv-fp32", None) for family in ("llada", "dream", "sdar")]
CASES += [(f, layout, None) for f in ("llada", "sdar") for layout in ("kv-fp16", "kv-int4x2", "kv-int4", "x-cl4")]
CASES += [("llada", "none", None), ("llada", "x-int4", None), ("sdar", "x-latent-int4", None)]
CASES += [("dream", "x-latent-int4", None)]
CASES_OF_FUNCTIONS = [("sdar", layout, None) for layout in ("kv-fp32", "kv-fp16", "kv-int4", "x-latent-int4", "x-cl4")]
CASES_OF_FUNCTIONS += [("llada", "none", None), ("fast_dllm_v2", "kv-fp32", "w8a8, all at once")]


def profile_passes(bundle, folder):
    """Of a pass that stores and of a step; the session says whether our operators are native."""
    manifest = bundle.manifest
    opened = open_session(bundle.graph_path, threads=1, profile=folder / "profile")
    model = OrtStepModel(opened, manifest.model, manifest.cache_layout, manifest.cache_group)
    model.reset(256)
    ids, rows = np.arange(64 + ROWS), np.arange(ROWS)
    block = FULL_ATTENTION if manifest.model.conventions.attention == "full" else ROWS
    if manifest.cache_layout == "none":
        model.run(ids, 0, 0, block, rows)
    else:
        model.run(ids[:64], 0, 0, block, rows[:0], stored_rows=64)
        model.store(0, 64)
        model.run(ids[64:], 64, 64, block, rows)
    return end_profile(opened.session, native_operators=opened.native_operators), opened


@pytest.mark.parametrize(("family", "layout", "form"), CASES)
def test_every_node_that_runs_is_known(bundle_of, tmp_path, family, layout, form):
    runs, opened = profile_passes(bundle_of(family, layout, form), tmp_path)
    if not opened.native_operators:
        pytest.skip("the native operators are not built here")
    check_runs(runs)
    assert not list(tmp_path.iterdir())  # the profile is gone


@pytest.mark.parametrize(("family", "layout", "form"), CASES_OF_FUNCTIONS)
def test_every_node_of_the_functions_is_known(bundle_of, tmp_path, monkeypatch, family, layout, form):
    monkeypatch.setattr("dlm_edge.kernels.register", lambda options: False)
    check_runs(profile_passes(bundle_of(family, layout, form), tmp_path)[0])


def check_runs(runs):
    for run in runs:
        assert not run.unknown
        assert {"linear", "attention", "head", "glue"} <= set(run.kinds)
        assert set(ROLES) <= set(run.roles)
        assert sum(run.roles.values()) == pytest.approx(run.kinds["linear"])
        assert 0 < run.node_seconds <= run.seconds


@pytest.mark.parametrize(("family", "layout", "form"), CASES)
def test_every_node_that_is_exported_is_known(bundle_of, family, layout, form):
    import onnx

    graph = onnx.load(str(bundle_of(family, layout, form).graph_path), load_external_data=False).graph
    kinds = Counter(kind_of(node.name, node.op_type).kind for node in graph.node)
    unknown = [node.name for node in graph.node if kind_of(node.name, node.op_type).kind == "other"]
    assert not unknown and min(kinds[kind] for kind in ("linear", "attention", "head", "glue")) > 0


@pytest.mark.parametrize(
    ("name", "op_type", "kind"),
    [
        ("layers.11.gate", "MatMulNBits", NodeKind("linear", "gate")),
        ("layers.0.q_biased", "Add", NodeKind("linear", "q")),
        ("layers.0.down_zero_product", "MatMul", NodeKind("linear", "down")),
        ("layers.2.mlp_norm_u8", "Cast", NodeKind("linear", ROUNDING)),
        ("layers.2.mlp_norm", "RMSNormalization", NodeKind("glue")),
        ("layers.0.gate_silu/QuickGeluFusion/", "QuickGelu", NodeKind("glue")),
        ("layers.0.k_rope", "RotaryEmbedding", NodeKind("attention")),
        ("k_cache_out.3", "TensorScatter", NodeKind("attention")),
        ("logits_body", "Gemm", NodeKind("head")),
        ("logits_body_sum0", "Add", NodeKind("head")),
        ("Squeeze_token_2", "Squeeze", NodeKind("glue")),
        ("layers.0.a_new_kind_of_node", "MatMul", NodeKind("other")),
    ],
)
def test_kinds_by_name(name, op_type, kind):
    assert kind_of(name, op_type) == kind


def test_nodes_of_function_bodies_are_attention_only_without_the_library():
    assert kind_of("ReduceSum_243", "ReduceSum", native_operators=False).kind == "attention"
    assert kind_of("ReduceSum_243", "ReduceSum").kind == "other"


def test_nodes_go_to_the_run_that_they_lie_in():
    def node(name, op_type, ts, dur):
        return Event(f"{name}_kernel_time", ts, dur, {"op_name": op_type})

    events = [
        node("embed", "Gather", 1, 4),  # while the session is opened
        Event("model_run", 10, 30),
        node("layers.0.q", "MatMul", 11, 5),
        node("layers.1.q", "MatMul", 17, 6),
        node("logits", "Cast", 25, 2),
        Event("model_run", 50, 20),
        node("layers.0.what", "MatMul", 51, 7),
    ]
    first, second = profiles(events, native_operators=True)
    assert first.kinds == pytest.approx({"linear": 11e-6, "head": 2e-6}) and first.roles == pytest.approx({"q": 11e-6})
    assert first.seconds == pytest.approx(30e-6) and not first.unknown
    assert second.unknown == {"layers.0.what"} and second.kinds == pytest.approx({"other": 7e-6})
