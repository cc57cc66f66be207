"""Copies of a window in one run of the graph: weights of every form, none of which may let one copy show in another."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from dlm_edge import kernels
from dlm_edge.bundle import open_bundle
from dlm_edge.export import export
from dlm_edge.runtime.layouts import LAYOUTS
from dlm_edge.runtime.ort_step_model import OrtStepModel
from dlm_edge.runtime.session import open_session
from tests.export.test_packed_parity import FORMS, INT8_FORMS, packed_checkpoint
from tests.tiny import make_checkpoint

ROWS = np.array([0, 3, 15, 16, 17, 40, 47])  # of three copies of 16
ALL_FORMS = {f"{name}, float": (make, "float") for name, make in FORMS.items()}
ALL_FORMS |= {name: (make, "int8") for name, make in INT8_FORMS.items()}


def first_dimension(bundle):
    graph = onnx.load(bundle / "model.onnx", load_external_data=False).graph
    dimension = next(i for i in graph.input if i.name == "input_ids").type.tensor_type.shape.dim[0]
    return dimension.dim_param or dimension.dim_value


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name != "none"])
def test_graphs_that_store_keys_take_copies(layout, tmp_path):
    export(make_checkpoint(tmp_path / "source", "llada", n_layers=1), tmp_path / "bundle", cache=layout)
    assert first_dimension(tmp_path / "bundle") == ("copies" if layout.startswith("kv-") else 1)


def test_graphs_of_the_cuda_target_and_without_a_cache_take_one(tmp_path):
    source = make_checkpoint(tmp_path / "source", "llada", n_layers=1)
    export(source, tmp_path / "cuda", target="cuda")
    export(source, tmp_path / "none", cache="none")
    assert [first_dimension(tmp_path / name) for name in ("cuda", "none")] == [1, 1]


@pytest.mark.skipif(kernels.library_path() is None, reason="the native library is not built")
@pytest.mark.parametrize("form", ALL_FORMS)
def test_copies_have_the_bits_of_runs_of_their_own(form, tmp_path):
    make, activations = ALL_FORMS[form]
    export(packed_checkpoint(tmp_path / "source", make, activations=activations), tmp_path / "bundle")
    bundle = open_bundle(tmp_path / "bundle")
    manifest = bundle.manifest
    model = OrtStepModel(
        open_session(bundle.graph_path, threads=1), manifest.model, manifest.cache_layout, manifest.cache_group
    )
    assert model.batches_copies
    rng = np.random.default_rng(0)
    model.reset(40)
    model.run(rng.integers(0, 250, 24), 0, 0, 8, ROWS[:0], stored_rows=24)
    model.store(0, 24)
    copies = rng.integers(0, 250, (3, 16))
    together = model.run_copies(copies, 24, 24, 8, ROWS).copy()
    apart = [model.run(ids, 24, 24, 8, ROWS[ROWS // 16 == i] % 16).copy() for i, ids in enumerate(copies)]
    np.testing.assert_array_equal(together, np.concatenate(apart))
