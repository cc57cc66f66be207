"""Whole packed checkpoints of every form: exported, checked against torch, and what the check itself notices."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest

from dlm_edge.checkpoint import open_checkpoint
from dlm_edge.errors import JobError
from dlm_edge.export import export
from dlm_edge.export.profiles import INT8_KERNELS, that_fit, widths_of
from dlm_edge.export.verify import make_prompts, verify
from tests.packed_folder import pack_folder, pack_linears, random_codebook, random_tensor
from tests.tiny import make_checkpoint

TOLERANCE = 1e-5  # float32 against torch; 5e-7 to 2e-6 measured over all forms
# Both sides round activations to int8 alike, but where their last bits differ a code may differ: 6e-7 without such a
# flip and up to 4e-3 with some, over these models.
FLIPS = 2e-2


def packed_checkpoint(folder, make, family="fast_dllm_v2", activations="float"):
    """Every linear of two layers from `make(shape, seed)`."""
    seeds = iter(range(100))
    make_checkpoint(folder, family, n_layers=2, seed=1)
    return pack_linears(folder, lambda shape: make(shape, next(seeds)), activations=activations)


FORMS = {
    "2 bits": lambda s, n: random_tensor(s, 2, 32, seed=n),
    "2 bits, float zero": lambda s, n: random_tensor(s, 2, 64, "float", seed=n),
    "3 bits": lambda s, n: random_tensor(s, 3, 16, seed=n),
    "3 bits, integer zero": lambda s, n: random_tensor(s, 3, 32, "integer", seed=n),
    "4 bits, float zero": lambda s, n: random_tensor(s, 4, 32, "float", seed=n),
    "8 bits, integer zero, per channel": lambda s, n: random_tensor(s, 8, s[1], "integer", seed=n),
    "4 bits, reordered": lambda s, n: random_tensor(s, 4, 32, reordered=True, seed=n),
    "4 bits, outliers": lambda s, n: random_tensor(s, 4, 32, outliers=3, seed=n),
    "groups of 8": lambda s, n: random_tensor(s, 4, 8, seed=n),
    "nf4": lambda s, n: random_codebook(s, "nf4", seed=n),
    "fp4": lambda s, n: random_codebook(s, "fp4", seed=n),
}


@pytest.mark.parametrize("make", FORMS.values(), ids=FORMS)
def test_every_form_runs_exactly_under_every_profile(make, tmp_path):
    source = packed_checkpoint(tmp_path / "source", make)
    for profile in that_fit(widths_of(open_checkpoint(source))):
        report = export(source, tmp_path / profile.name, profile=profile.name)
        assert report.parity.get("exact_max_rel_error", report.parity["max_rel_error"]) <= TOLERANCE
        assert report.profile == profile.name and len(report.nodes) == 2 * 7
        rounded = any(node["accuracy_level"] or node["activations"] == "int8" for node in report.nodes)
        assert rounded == ("exact_max_rel_error" in report.parity)
        assert profile.kernel in INT8_KERNELS or not rounded


INT8_FORMS = {
    "w8a8": lambda s, n: random_tensor(s, 8, s[1], seed=n),
    "w8a8, integer zero": lambda s, n: random_tensor(s, 8, s[1], "integer", seed=n),
    "w8a8, outliers": lambda s, n: random_tensor(s, 8, s[1], outliers=3, seed=n),
    "w8a8, reordered": lambda s, n: random_tensor(s, 8, s[1], reordered=True, outliers=2, seed=n),
    "w4a8": lambda s, n: random_tensor(s, 4, 32, seed=n),
}


@pytest.mark.parametrize("native", [False, True])
@pytest.mark.parametrize("name", INT8_FORMS)
def test_int8_activations_are_those_of_the_torch_layers(name, native, tmp_path):
    source = packed_checkpoint(tmp_path / "source", INT8_FORMS[name], activations="int8")
    profiles = ("w4a8-blocks", "w4a8") if name == "w4a8" else ("w8a8", "w8a8-qlinear")
    report = export(source, tmp_path / "bundle", profile=profiles[native])
    assert {node["activations"] for node in report.nodes} == {"int8"}
    assert report.parity["exact_max_rel_error"] <= TOLERANCE
    assert report.parity["max_rel_error"] <= FLIPS


@pytest.mark.parametrize("make", [FORMS["2 bits, float zero"], FORMS["4 bits, outliers"], FORMS["nf4"]])
def test_the_cuda_target(make, tmp_path):
    report = export(packed_checkpoint(tmp_path / "source", make), tmp_path / "bundle", target="cuda")
    assert 1e-6 < report.parity["max_rel_error"] <= 2e-2


def test_the_cuda_target_says_that_it_keeps_activations(tmp_path):
    source = packed_checkpoint(tmp_path / "source", INT8_FORMS["w8a8, outliers"], activations="int8")
    said = []
    report = export(source, tmp_path / "bundle", target="cuda", progress=said.append)
    assert [line for line in said if "14 weights were made for int8 activations" in line]
    assert 1e-6 < report.parity["max_rel_error"] <= 2e-2


def test_linears_with_one_input_share_its_rounding(tmp_path):
    source = packed_checkpoint(tmp_path / "source", INT8_FORMS["w8a8"], activations="int8")
    export(source, tmp_path / "bundle", profile="w8a8")
    model = onnx.load(tmp_path / "bundle" / "model.onnx", load_external_data=False)
    operators = [node.op_type for node in model.graph.node]
    assert operators.count("Round") == 2 * 4  # before q k v, o, gate up, and down
    assert operators.count("MatMulInteger") == 2 * 7


EMBEDDINGS = {
    **{f"{bits} bits, {zero}": (bits, 32, zero) for bits in (2, 3, 4, 8) for zero in ("symmetric", "integer", "float")},
    "groups of 24": (4, 24, "symmetric"),
}


@pytest.mark.parametrize("native", [False, True])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(("bits", "group_size", "zero"), EMBEDDINGS.values(), ids=EMBEDDINGS)
def test_embedding_and_head(bits, group_size, zero, tied, native, tmp_path):
    """Padded rows are cut from the head only; a form without a gather is looked up in float."""
    hidden = 96 if group_size == 24 else 64
    make_checkpoint(
        tmp_path / "source", "llada", n_layers=1, tied=tied, padded_rows=5, hidden_size=hidden, head_dim=hidden // 4
    )
    shape = open_checkpoint(tmp_path / "source").shape("embed.weight")
    tensor = random_tensor((shape[0], shape[1]), bits, group_size, zero)
    tensor = replace(tensor, scales=tensor.scales * 2)
    packed = {"embed.weight": tensor}
    if not tied:
        packed["head.weight"] = random_tensor((shape[0], shape[1]), bits, group_size, zero, outliers=2, seed=1)
    said = []
    profile = {
        (False, False): "w4a8-blocks",
        (False, True): "w8a8",
        (True, False): "w4a8",
        (True, True): "w8a8-qlinear",
    }
    report = export(
        pack_folder(tmp_path / "source", packed),
        tmp_path / "bundle",
        profile=profile[native, bits == 8],
        progress=said.append,
    )
    assert report.parity.get("exact_max_rel_error", report.parity["max_rel_error"]) <= TOLERANCE
    in_float = [line for line in said if "embedding runs in float" in line]
    assert bool(in_float) == (zero == "float" or group_size == 24)


def test_a_head_keeps_its_activations_and_says_so(tmp_path):
    source = make_checkpoint(tmp_path / "source", "llada", n_layers=1)
    shape = open_checkpoint(source).shape("head.weight")
    pack_folder(source, {"head.weight": random_tensor((shape[0], 64), 8, 64)}, activations="int8")
    said = []
    report = export(source, tmp_path / "bundle", profile="w8a8", progress=said.append)
    assert report.nodes[0]["activations"] == "float" and report.parity["exact_max_rel_error"] <= TOLERANCE
    assert [line for line in said if "1 head was made for int8 activations" in line]


@pytest.mark.parametrize("part", ["int8", "scales", "outliers"])
def test_one_changed_number_of_an_int8_layer_is_noticed(part, tmp_path):
    """The check's own tolerance for int8 activations is wide; the exact twin is what sees such an error."""
    source = packed_checkpoint(tmp_path / "source", INT8_FORMS["w8a8, outliers"], activations="int8")
    export(source, tmp_path / "bundle", profile="w8a8")
    graph = tmp_path / "bundle" / "model.onnx"
    checkpoint = open_checkpoint(source)
    prompts = make_prompts(checkpoint)
    again = verify(graph, checkpoint, prompts, body="float32", int8_activations=True, native=False)
    assert again["exact_max_rel_error"] <= TOLERANCE
    model = onnx.load(graph)
    name = f"layers.1.up.weight.{part}"
    tensor = next(t for t in model.graph.initializer if t.name == name)
    values = onnx.numpy_helper.to_array(tensor).copy()
    largest = np.abs(values.astype(np.float32)).argmax()
    values.reshape(-1)[largest] = values.reshape(-1)[largest] // 2 if part == "int8" else -values.reshape(-1)[largest]
    tensor.CopyFrom(onnx.numpy_helper.from_array(values, name))
    onnx.save(model, graph)
    with pytest.raises(JobError, match="differs") as refused:
        verify(graph, checkpoint, prompts, body="float32", int8_activations=True, native=False)
    assert refused.value.code == "E-PARITY" and "1e-04 is accepted" in refused.value.message
