"""Operations and bytes of a pass against numbers worked out by hand: tiny models of 3 layers, 64 wide, 4 heads of 16."""

from __future__ import annotations

import pytest

from dlm_edge.roofline.work import ModelWork, Pass
from tests.roofline.conftest import FLOAT_FORMS, FORMS, manifest_of
from tests.tiny import FAMILY_NAMES, make_spec

# One row through q (64), k, v (64 in llada, 32 in all others), o (64), gate, up (128) and down, twice for each weight:
#   llada    2 * 3 * (4 * 64 * 64 + 3 * 64 * 128)                     = 245760
#   others   2 * 3 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 128)       = 221184
A_ROW = {"llada": 245760, "dream": 221184, "sdar": 221184, "fast_dllm_v2": 221184}
STEP = Pass(rows=8, start=64, cache_len=64, attn_block=8, logit_rows=8)


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_operations_of_a_step_are_those_worked_out_by_hand(family):
    found = ModelWork.of(manifest_of(make_spec(family))).of_pass(STEP)
    assert found["linear"].operations == 8 * A_ROW[family]
    assert found["attention"].operations == 442368  # scores and values: 3 layers * 4 * 64 * 8 rows * 72 keys
    assert found["head"].operations == 306176  # 2 * 8 rows * 64 * 299 ids
    assert all(work.integer == 0 for work in found.values())


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_bytes_of_a_step_are_those_worked_out_by_hand(family):
    found = ModelWork.of(manifest_of(make_spec(family))).of_pass(STEP)
    # Rows in and out of the seven products: 2 * 64 + ... = 1152 numbers of a row in llada, 1088 - 64 in the others.
    moved = {"llada": 128 * 4 + 192 * 3}.get(family, 128 * 2 + 96 * 2 + 192 * 3)
    assert found["linear"].bytes == A_ROW[family] / 2 * 4 + 3 * 8 * moved * 4
    kv_width = 64 if family == "llada" else 32
    stored = 64 * 3 * 2 * kv_width * 4  # keys and values of the prefix
    assert found["attention"].bytes == stored + 3 * 8 * (2 * 64 + 2 * kv_width) * 4
    assert found["head"].bytes == 4 * (299 * 64 + 8 * (299 + 64))


def test_a_row_sees_its_block_and_what_is_before_it():
    """Two blocks of 8 behind 8 stored positions: 8 * (8 + 8) + 8 * (8 + 16) pairs."""
    assert Pass(rows=16, start=8, cache_len=8, attn_block=8, stored=16).pairs == 320
    assert Pass(rows=1, start=9, cache_len=9, attn_block=1).pairs == 10
    assert Pass(rows=72).pairs == 72 * 72  # the whole sequence, without a cache


def test_a_window_over_stored_keys_of_its_own_reads_them_once():
    at = Pass(rows=8, start=64, cache_len=80)
    assert at.prefix == 72 and at.pairs == 8 * 80


def test_a_pass_without_logits_has_no_head():
    head = ModelWork.of(manifest_of(make_spec("sdar"))).of_pass(Pass(rows=8, stored=8))["head"]
    assert (head.operations, head.bytes) == (0, 0)


def test_stored_inputs_go_through_their_projections_again():
    """64 rows of the prefix through k and v of 3 layers."""
    exact = ModelWork.of(manifest_of(make_spec("llada"))).of_pass(STEP)
    again = ModelWork.of(manifest_of(make_spec("llada"), "x-int4", 64)).of_pass(STEP)
    assert again["linear"].operations - exact["linear"].operations == 2 * 3 * 64 * (2 * 64 * 64)
    assert again["attention"].operations == exact["attention"].operations


def test_latents_are_made_into_keys_and_values():
    exact = ModelWork.of(manifest_of(make_spec("sdar"))).of_pass(STEP)
    again = ModelWork.of(manifest_of(make_spec("sdar"), "x-latent-int4", 32)).of_pass(STEP)
    assert again["attention"].operations - exact["attention"].operations == 2 * 3 * 64 * (2 * 32 * 32)
    assert again["linear"] == exact["linear"]


@pytest.mark.parametrize("layout", ["kv-fp16", "kv-int8", "kv-int4"])
def test_fewer_bits_of_the_cache_are_fewer_bytes(layout):
    exact = ModelWork.of(manifest_of(make_spec("sdar"))).of_pass(STEP)
    found = ModelWork.of(manifest_of(make_spec("sdar"), layout, 64)).of_pass(STEP)
    assert found["attention"].bytes < exact["attention"].bytes
    assert found["attention"].operations == exact["attention"].operations


@pytest.mark.parametrize("form", FORMS)
def test_weights_have_the_bytes_that_the_graph_holds(bundle_of, form):
    import onnx

    bundle = bundle_of("fast_dllm_v2", "kv-fp32", form)
    graph = onnx.load(str(bundle.graph_path), load_external_data=False).graph
    work = ModelWork.of(bundle.manifest)
    for role, weight in work.layers[0].items():
        name = f"layers.0.{role}.weight"
        held = [i for i in graph.initializer if i.name == name or i.name.startswith(name + ".")]
        sizes = {i.name.removeprefix(name): length_of(i) for i in held}
        # Indices of columns, and what turns a float zero into a product of its own: the size of its zeros, counted once.
        counted = [size for key, size in sizes.items() if key not in (".order", ".outlier_columns")]
        assert weight.stored_bytes == pytest.approx(sum(counted), rel=0.01), (role, sizes)
        in_int8 = form not in FLOAT_FORMS if form != "w4a8" else False
        assert weight.is_integer == (in_int8 or rounds_inside(bundle.manifest, name))


def rounds_inside(manifest, name):
    return next(node for node in manifest.nodes if node["name"] == name)["accuracy_level"] == 4


def length_of(initializer):
    entries = {entry.key: entry.value for entry in initializer.external_data}
    return int(entries["length"]) if entries else len(initializer.raw_data)
