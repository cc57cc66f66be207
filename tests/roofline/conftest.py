"""Tiny graphs of every form and layout, written without the comparison with their source."""

from __future__ import annotations

import msgspec
import pytest

import dlm_edge
from dlm_edge.bundle import Manifest, open_bundle
from dlm_edge.checkpoint import open_checkpoint
from tests.packed_folder import pack_linears, random_codebook, random_tensor
from tests.tiny import make_checkpoint

LAYERS = 3  # the layouts of differences have a base and layers above it
FLOAT_FORMS = {
    "2 bits": lambda s, n: random_tensor(s, 2, 32, seed=n),
    "2 bits, float zero": lambda s, n: random_tensor(s, 2, 64, "float", seed=n),
    "3 bits, integer zero": lambda s, n: random_tensor(s, 3, 32, "integer", seed=n),
    "4 bits, float zero": lambda s, n: random_tensor(s, 4, 32, "float", seed=n),
    "4 bits, reordered": lambda s, n: random_tensor(s, 4, 32, reordered=True, seed=n),
    "4 bits, outliers": lambda s, n: random_tensor(s, 4, 32, outliers=3, seed=n),
    "8 bits, per channel": lambda s, n: random_tensor(s, 8, s[1], "integer", seed=n),
    "groups of 8": lambda s, n: random_tensor(s, 4, 8, seed=n),
    "nf4": lambda s, n: random_codebook(s, "nf4", seed=n),
}
INT8_FORMS = {
    "w8a8": lambda s, n: random_tensor(s, 8, s[1], seed=n),
    "w8a8, all at once": lambda s, n: random_tensor(s, 8, s[1], "integer", outliers=3, reordered=True, seed=n),
    "w4a8": lambda s, n: random_tensor(s, 4, 32, seed=n),
}
FORMS = {**FLOAT_FORMS, **INT8_FORMS}


@pytest.fixture(scope="session")
def bundle_of(tmp_path_factory):
    """bundle_of(family, layout, form): each is made once."""
    pytest.importorskip("onnx")
    from dlm_edge.cache_choice import BODY
    from dlm_edge.export.measured_profile import Choice
    from dlm_edge.export.pipeline import GRAPH_NAME, copy_texts, write_graph, write_manifest
    from dlm_edge.export.profiles import Precision
    from dlm_edge.runtime.layouts import default_group

    root = tmp_path_factory.mktemp("roofline")

    def find(family="sdar", layout="kv-fp32", form=None):
        folder = root / f"{family}-{layout}-{form}"
        if not folder.exists():
            folder.mkdir()
            source = make_checkpoint(root / f"source-{folder.name}", family, n_layers=LAYERS)
            if form is not None:
                seeds = iter(range(100))
                activations = "int8" if form in INT8_FORMS else "float"
                pack_linears(source, lambda shape: FORMS[form](shape, next(seeds)), activations=activations)
            checkpoint = open_checkpoint(source)
            nodes, _ = write_graph(checkpoint, folder / GRAPH_NAME, Precision(BODY["cpu"], "blocks"), layout)
            copy_texts(source, folder)
            chosen = Choice("w4a8-blocks", "blocks")
            write_manifest(folder, checkpoint, "cpu", (layout, default_group(layout)), chosen, nodes, {})
        return open_bundle(folder)

    return find


def manifest_of(spec, layout="kv-fp32", group=64, nodes=(), **changes) -> Manifest:
    """As of a bundle that does not exist."""
    values = {
        "schema": 3, "tool_version": dlm_edge.__version__, "target": "cpu", "model": spec, "operator_version": 1,
        "opset": 24, "cache_layout": layout, "cache_group": group, "profile": "fp32", "quantization": None, "nodes": tuple(nodes),
        "sampler_defaults": {}, "parity": {}, "measured": {}, "files": (),
    }  # fmt: skip
    return msgspec.convert(values | changes, Manifest)
