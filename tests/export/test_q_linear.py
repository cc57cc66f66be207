"""Packed weights as QLinear nodes: what they compute, alone, side by side, and behind a gate."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from dlm_edge import kernels
from dlm_edge.checkpoint import open_checkpoint
from dlm_edge.export import export
from dlm_edge.export.exact_linear import exact_function, exact_linear
from dlm_edge.export.external_data import InlineData
from dlm_edge.export.nodes import IR_VERSION, GraphBuilder, opset_imports
from dlm_edge.export.q_linear import q_linear, stacked
from dlm_edge.models.int8_linear import Int8ActivationLinear
from dlm_edge.quantized import dequantize
from tests.packed_folder import linear_roles, pack_folder, pack_linears, random_codebook, random_tensor
from tests.tiny import make_checkpoint

torch = pytest.importorskip("torch")

TOLERANCE = 1e-5
BITS, ZEROS = [2, 3, 4, 8], ["symmetric", "integer", "float"]
NATIVE = pytest.param(True, marks=pytest.mark.skipif(kernels.library_path() is None, reason="no native library"))


def run(x, tensor, *, native, exact=False, bias=None, gated=False, row_blocks=False):
    graph = GraphBuilder(InlineData(), np.dtype(np.float32))
    out = q_linear(graph, "x", "w", tensor, "y", bias, row_blocks=row_blocks, gated=gated)
    nodes, functions = graph.nodes, list(graph.functions.values())
    if exact:
        nodes = [twin for node in nodes for twin in (exact_linear(node) if node.op_type == "QLinear" else [node])]
        functions = [exact_function(function) for function in functions]
    width = tensor.shape[1] * (2 if gated else 1)
    shapes = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, "rows", n])
              for name, n in (("x", width), (out, tensor.shape[0]))]  # fmt: skip
    model = helper.make_model(
        helper.make_graph(nodes, "linear", shapes[:1], shapes[1:], graph.initializers),
        opset_imports=opset_imports(), ir_version=IR_VERSION, functions=functions,
    )  # fmt: skip
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    if native:
        kernels.register(options)
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x[None]})[0][0].astype(np.float64)


def rows_of(tensor, rows=9, seed=1):
    """One is zero, one is tiny, and one column is loud."""
    x = np.random.default_rng(seed).standard_normal((rows, tensor.shape[1])).astype(np.float32)
    x[3], x[:, 0] = 0, x[:, 0] * 50
    x[4] *= 1e-20
    return x


def definition(x, tensor, bias=None):
    """Rounding per row in the order of the packed columns, by the layer that quantizing runs."""
    weight, columns = torch.from_numpy(dequantize(tensor)).double(), ()
    if tensor.outliers is not None:
        columns = tensor.outliers.columns.tolist()
    layer = Int8ActivationLinear(weight, None if bias is None else torch.from_numpy(bias).double(), columns)
    return layer(torch.from_numpy(x).double()).numpy()


def near(actual, expected):
    scale = np.maximum(np.abs(expected).max(1, keepdims=True), 1e-300)
    return (np.abs(actual - expected) <= TOLERANCE * scale).all()


@pytest.mark.parametrize("native", [False, NATIVE])
@pytest.mark.parametrize("outliers", [0, 3])
@pytest.mark.parametrize("reordered", [False, True])
@pytest.mark.parametrize("zero", ZEROS)
@pytest.mark.parametrize("bits", BITS)
def test_a_packed_weight_is_its_definition(bits, zero, reordered, outliers, native):
    tensor = random_tensor((33, 320), bits, 32, zero, reordered=reordered, outliers=outliers)
    x, bias = rows_of(tensor), np.linspace(-1, 1, 33, dtype=np.float32)
    assert near(run(x, tensor, native=native), definition(x, tensor))
    assert near(run(x, tensor, native=native, bias=bias), definition(x, tensor, bias))


@pytest.mark.parametrize("native", [False, NATIVE])
@pytest.mark.parametrize("zero", ZEROS)
def test_a_large_value_takes_the_grid_of_its_own_block(zero, native):
    tensor = random_tensor((33, 320), 4, 32, zero)
    x = np.random.default_rng(1).standard_normal((9, 320)).astype(np.float32)
    x[:, :32] = 0
    rest = x.astype(np.float64) @ dequantize(tensor).astype(np.float64).T
    x[:, 5] = 1e4
    exact = x.astype(np.float64) @ dequantize(tensor).astype(np.float64).T
    whole, blocks = (np.abs(run(x, tensor, native=native, row_blocks=flag) - exact).max() for flag in (False, True))
    assert blocks <= 0.02 * np.abs(rest).max() + 1e-6 * np.abs(exact).max()
    assert whole >= 0.5 * np.abs(rest).max()  # nothing of the others is left


@pytest.mark.parametrize("outliers", [0, 3])
@pytest.mark.parametrize("reordered", [False, True])
@pytest.mark.parametrize("zero", ZEROS)
@pytest.mark.parametrize(("bits", "group"), [(2, 16), (3, 48), (4, 240), (8, 240), (8, 16)])
def test_the_exact_twin_rounds_nothing(bits, group, zero, reordered, outliers):
    tensor = random_tensor((17, 240), bits, group, zero, reordered=reordered, outliers=outliers)
    x, bias = rows_of(tensor), np.linspace(-1, 1, 17, dtype=np.float32)
    expected = x.astype(np.float64) @ dequantize(tensor).astype(np.float64).T + bias
    assert near(run(x, tensor, native=False, exact=True, bias=bias), expected)


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("outliers", [0, 3])
@pytest.mark.parametrize("zero", ZEROS)
def test_the_exact_twin_takes_many_outputs_in_parts(zero, outliers, gated, monkeypatch):
    tensor = random_tensor((57, 96), 4, 32, zero, outliers=outliers)
    x = np.random.default_rng(3).standard_normal((5, 192 if gated else 96)).astype(np.float32)
    bias = np.linspace(-1, 1, 57, dtype=np.float32)
    for options in ({}, {"bias": bias}):
        whole = run(x, tensor, native=False, exact=True, gated=gated, **options)
        with monkeypatch.context() as patch:
            patch.setattr("dlm_edge.export.exact_linear.OUTPUTS_AT_ONCE", 16)
            parts = run(x, tensor, native=False, exact=True, gated=gated, **options)
        assert near(parts, whole)


@pytest.mark.parametrize("native", [False, NATIVE])
@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("outliers", [0, 3])
def test_a_gate_comes_before_the_rounding(outliers, exact, native):
    tensor = random_tensor((33, 320), 4, 64, outliers=outliers)
    both = np.random.default_rng(2).standard_normal((9, 640)).astype(np.float32) * 3
    gate, up = both[:, :320].astype(np.float64), both[:, 320:].astype(np.float64)
    x = (gate / (1 + np.exp(-gate)) * up).astype(np.float32)
    expected = x.astype(np.float64) @ dequantize(tensor).astype(np.float64).T if exact else definition(x, tensor)
    actual = run(both, tensor, native=native and not exact, exact=exact, gated=True)
    # A last-bit difference before the rounding moves a code by one in a few places.
    assert np.abs(actual - expected).max() <= (TOLERANCE if exact else 2e-3) * np.abs(expected).max()


def test_float16_scales_stay_what_they_are():
    halves = random_tensor((33, 320), 4, 32)
    halves = replace(halves, scales=halves.scales.astype(np.float16).astype(np.float32))
    odd = replace(halves, scales=halves.scales * np.float32(1 + 2**-14))
    for tensor, kind in ((halves, TensorProto.FLOAT16), (odd, TensorProto.FLOAT)):
        graph = GraphBuilder(InlineData(), np.dtype(np.float32))
        q_linear(graph, "x", "w", tensor, "y", row_blocks=False)
        assert next(t for t in graph.initializers if t.name == "w.scales").data_type == kind
        assert near(run(rows_of(tensor), tensor, native=False), definition(rows_of(tensor), tensor))


def test_weights_side_by_side_are_the_weights():
    parts = [random_tensor((rows, 96), 4, 32, "integer", outliers=2, seed=seed) for seed, rows in enumerate((48, 16))]
    parts[1] = replace(parts[1], outliers=replace(parts[1].outliers, columns=parts[0].outliers.columns))
    whole = stacked(parts)
    assert whole is not None and whole.shape == (64, 96)
    np.testing.assert_array_equal(dequantize(whole), np.concatenate([dequantize(part) for part in parts]))


@pytest.mark.parametrize("other", [
    random_tensor((16, 96), 3, 32), random_tensor((16, 96), 4, 48), random_tensor((16, 96), 4, 32, "integer"),
    random_tensor((16, 96), 4, 32, outliers=2), random_tensor((16, 96), 4, 32, reordered=True), random_tensor((15, 96), 4, 32),
])  # fmt: skip
def test_weights_of_other_forms_do_not_stand_side_by_side(other):
    assert stacked([random_tensor((16, 96), 4, 32), other]) is None
    assert stacked([other, random_tensor((16, 96), 4, 32)]) is None


def test_outliers_of_other_columns_do_not_stand_side_by_side():
    tensor = random_tensor((16, 96), 4, 32, outliers=2)
    other = replace(tensor, outliers=replace(tensor.outliers, columns=np.array([1, 95])))
    assert stacked([tensor, other]) is None


@pytest.fixture
def packed(tmp_path):
    seeds = iter(range(100))
    make_checkpoint(tmp_path / "source", "fast_dllm_v2", n_layers=2, seed=1)  # with biases
    return pack_linears(tmp_path / "source", lambda shape: random_tensor(shape, 4, 32, seed=next(seeds)))


def products(bundle):
    model = onnx.load(bundle / "model.onnx", load_external_data=False)
    return [node.name for node in model.graph.node if node.op_type == "QLinear"]


def test_a_layer_is_four_products(packed, tmp_path):
    report = export(packed, tmp_path / "bundle", profile="w4a8")
    assert products(tmp_path / "bundle") == [
        f"layers.{i}.{name}" for i in (0, 1) for name in ("qkv", "o", "gate_up", "down")
    ]
    assert [entry["name"].split(".")[2] for entry in report.nodes] == ["q", "k", "v", "o", "gate", "up", "down"] * 2
    assert {(entry["form"], entry["activations"]) for entry in report.nodes} == {("QLinear", "int8")}


@pytest.mark.parametrize(("activations", "blocks"), [("float", 1), ("int8", 0)])
def test_rows_have_one_scale_where_quantizing_has_rounded_them_so(activations, blocks, tmp_path):
    source = make_checkpoint(tmp_path / "source", "sdar", n_layers=1)
    pack_linears(source, lambda shape: random_tensor(shape, 4, 32), activations=activations)
    export(source, tmp_path / "bundle", profile="w4a8")
    model = onnx.load(tmp_path / "bundle" / "model.onnx", load_external_data=False)
    flags = [
        a.i for node in model.graph.node if node.op_type == "QLinear" for a in node.attribute if a.name == "row_blocks"
    ]
    assert flags == [blocks] * 4


def test_a_weight_of_another_form_stands_alone(tmp_path):
    source = make_checkpoint(tmp_path / "source", "fast_dllm_v2", n_layers=2, seed=1)
    shapes = linear_roles(source)
    forms = {role: random_tensor(shape, 4, 32) for role, shape in shapes.items()}
    for role, options in (("layers.0.k.weight", {"bits": 8}), ("layers.1.down.weight", {"bits": 4, "reordered": True})):
        forms[role] = random_tensor(shapes[role], group_size=32, **options)
    forms["layers.0.up.weight"] = random_codebook(shapes["layers.0.up.weight"], "nf4")
    packed = pack_folder(source, forms)
    report = export(packed, tmp_path / "bundle", profile="w4a8")
    assert report.parity["exact_max_rel_error"] <= TOLERANCE
    names = {name.removeprefix("layers.") for name in products(tmp_path / "bundle")}
    assert names == {"0.q", "0.k", "0.v", "0.o", "0.gate", "0.down", "1.qkv", "1.o", "1.gate", "1.up", "1.down"}


def test_weights_that_quantizing_marked_keep_float_activations(tmp_path):
    source = make_checkpoint(tmp_path / "source", "sdar", n_layers=1)
    pack_linears(source, lambda shape: random_tensor(shape, 4, 32), activations="exact")
    said = []
    report = export(source, tmp_path / "bundle", profile="w4a8", progress=said.append)
    assert {(entry["form"], entry["accuracy_level"]) for entry in report.nodes} == {("MatMulNBits", 0)}
    assert report.parity["max_rel_error"] <= TOLERANCE
    assert any("7 weights keep float activations" in line for line in said)


@pytest.mark.parametrize("part", ["codes", "scales"])
def test_one_changed_number_is_noticed(part, packed, tmp_path):
    """The bound of int8 activations is wide; the exact twin is what sees such an error."""
    from dlm_edge.errors import JobError
    from dlm_edge.export.verify import make_prompts, verify

    export(packed, tmp_path / "bundle", profile="w4a8")
    graph, checkpoint = tmp_path / "bundle" / "model.onnx", open_checkpoint(packed)
    model = onnx.load(graph)
    tensor = next(t for t in model.graph.initializer if t.name == f"layers.1.gate_up.{part}")
    values = onnx.numpy_helper.to_array(tensor).copy()
    at = 0 if part == "codes" else np.abs(values.astype(np.float32)).argmax()
    values.reshape(-1)[at] = values.reshape(-1)[at] ^ 0x88 if part == "codes" else -values.reshape(-1)[at]
    tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    onnx.save(model, graph)
    with pytest.raises(JobError, match="1e-04 is accepted"):
        verify(graph, checkpoint, make_prompts(checkpoint), body="float32", int8_activations=True, native=False)
