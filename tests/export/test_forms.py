"""Every stored form of a weight, as nodes in ONNX Runtime, against the dequantized weight in float64."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from dlm_edge.checkpoint import open_checkpoint
from dlm_edge.export.n_bits import block_of
from dlm_edge.models.int8_linear import Int8ActivationLinear
from dlm_edge.quantized import CodebookTensor, QuantizedTensor, dequantize
from tests.export.one_linear import EXACT, FAST, HALF, build_linear, run_linear
from tests.packed_folder import random_codebook, random_tensor
from tests.tiny import make_checkpoint

# Float32 products of up to 768 terms against float64, over the largest result: 4e-7 to 6e-6 measured (the latter where
# one output is all there is and its terms cancel).
TOLERANCE = 1e-5
HALF_TOLERANCE = 2e-2  # of a float16 body; 1e-3 measured
INT8_TOLERANCE = 6e-2  # of accuracy level 4; up to 2e-2 measured over these shapes
BITS = [2, 3, 4, 8]
ZEROS = ["symmetric", "integer", "float"]
SHAPES = [(1, 1), (3, 2), (17, 3), (33, 5), (64, 4)]  # rows, groups


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return open_checkpoint(make_checkpoint(tmp_path_factory.mktemp("source"), "fast_dllm_v2"))


def inputs(tensor, rows=5, seed=1):
    return np.random.default_rng(seed).standard_normal((rows, tensor.shape[1])).astype(np.float32)


def relative_error(actual, expected):
    return np.abs(actual - expected).max() / np.abs(expected).max()


def product(x, tensor):
    return x.astype(np.float64) @ dequantize(tensor).astype(np.float64).T


@pytest.mark.parametrize("group_size", [16, 32, 64, 128])
@pytest.mark.parametrize("zero", ZEROS)
@pytest.mark.parametrize("bits", BITS)
def test_every_grid_is_exact_on_float_activations(checkpoint, bits, zero, group_size):
    for rows, groups in SHAPES:
        tensor = random_tensor((rows, groups * group_size), bits, group_size, zero, seed=rows)
        x = inputs(tensor)
        y, node = run_linear(checkpoint, tensor, x)
        assert (node["form"], node["accuracy_level"], node["zero"]) == ("MatMulNBits", 0, zero)
        assert (node["bits"], node["group_size"], node["activations"]) == (bits, group_size, "float")
        assert relative_error(y, product(x, tensor)) <= TOLERANCE


@pytest.mark.parametrize("group_size", [48, 96, 192, 256, 768])
@pytest.mark.parametrize("zero", ZEROS)
@pytest.mark.parametrize("bits", BITS)
def test_groups_that_the_kernel_does_not_know_are_cut(checkpoint, bits, zero, group_size):
    tensor = random_tensor((7, 768), bits, group_size, zero)
    assert block_of(tensor) in (16, 32, 64, 128, 256) and group_size % block_of(tensor) == 0
    y, node = run_linear(checkpoint, tensor, inputs(tensor))
    assert (node["form"], node["group_size"]) == ("MatMulNBits", group_size)
    assert relative_error(y, product(inputs(tensor), tensor)) <= TOLERANCE


@pytest.mark.parametrize("group_size", [8, 24, 40])
def test_groups_without_a_kernel_run_in_float_and_say_so(checkpoint, group_size):
    tensor = random_tensor((7, 240), 4, group_size, outliers=2, reordered=True)
    model, weights = build_linear(checkpoint, tensor, FAST)
    assert "MatMulNBits" not in {node.op_type for node in model.graph.node}
    assert weights.notices == [f"1 weights run in float: no kernel for groups of {group_size}"]
    y, node = run_linear(checkpoint, tensor, inputs(tensor), FAST)
    assert (node["form"], node["accuracy_level"]) == ("MatMul", 0)
    assert relative_error(y, product(inputs(tensor), tensor)) <= TOLERANCE


@pytest.mark.parametrize("zero", ZEROS)
@pytest.mark.parametrize("bits", BITS)
def test_int8_activations_inside_the_kernel_are_near(checkpoint, bits, zero):
    tensor = random_tensor((96, 512), bits, 64, zero)
    x = inputs(tensor, rows=32)
    y, node = run_linear(checkpoint, tensor, x, FAST)
    assert node["accuracy_level"] == 4
    assert 1e-4 < relative_error(y, product(x, tensor)) <= INT8_TOLERANCE


@pytest.mark.parametrize("zero", ZEROS)
@pytest.mark.parametrize("bits", BITS)
def test_activations_that_do_not_bear_rounding_are_never_rounded(checkpoint, bits, zero):
    tensor = random_tensor((96, 512), bits, 64, zero)
    x = inputs(tensor, rows=32)
    x[:, ::64] *= 1000  # in every block
    y, node = run_linear(checkpoint, tensor, x, FAST, activations="exact")
    assert (node["accuracy_level"], node["activations"]) == (0, "float")
    assert relative_error(y, product(x, tensor)) <= TOLERANCE


@pytest.mark.parametrize(("bits", "level"), [(2, 0), (3, 0), (4, 0), (8, 4)])
def test_the_second_mlp_linear_keeps_its_activations(checkpoint, bits, level):
    """8 bits have no fast kernel that does."""
    tensor = random_tensor((16, 128), bits, 64)
    assert (
        run_linear(checkpoint, tensor, inputs(tensor), FAST, role="layers.0.down.weight")[1]["accuracy_level"] == level
    )


@pytest.mark.parametrize(("group_size", "level"), [(16, 0), (32, 4), (128, 4), (256, 4)])
def test_two_bits_round_activations_only_where_the_kernel_does(checkpoint, group_size, level):
    tensor = random_tensor((16, 512), 2, group_size)
    x = inputs(tensor)
    y, node = run_linear(checkpoint, tensor, x, FAST)
    assert node["accuracy_level"] == level
    assert (relative_error(y, product(x, tensor)) > 1e-4) == (level == 4)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("zero", ZEROS)
def test_a_float16_body(checkpoint, bits, zero):
    tensor = random_tensor((33, 160), bits, 32, zero, reordered=True, outliers=3)
    y, _ = run_linear(checkpoint, tensor, inputs(tensor), HALF)
    assert 1e-6 < relative_error(y, product(inputs(tensor), tensor)) <= HALF_TOLERANCE


@pytest.mark.parametrize("precision", [EXACT, FAST], ids=["exact", "fast"])
@pytest.mark.parametrize("reordered", [False, True])
@pytest.mark.parametrize("outliers", [0, 4])
@pytest.mark.parametrize("zero", ZEROS)
@pytest.mark.parametrize("bits", BITS)
def test_order_and_outlier_columns(checkpoint, bits, zero, outliers, reordered, precision):
    """Outlier inputs a thousand times larger than the others must not cost the others their precision."""
    tensor = random_tensor((48, 320), bits, 32, zero, reordered=reordered, outliers=outliers)
    x = inputs(tensor, rows=16)
    quiet = product(x, replace(tensor, outliers=None))
    loud = x.copy()
    if tensor.outliers is not None:
        loud[:, tensor.outliers.columns] *= 1000
    y, node = run_linear(checkpoint, tensor, loud, precision)
    rest = y
    if tensor.outliers is not None:
        columns = tensor.outliers.columns
        rest = y - loud[:, columns].astype(np.float64) @ tensor.outliers.weights.astype(np.float64).T
    if zero == "float" and outliers:  # the codes of the columns stand for little, not for zero
        assert relative_error(y, product(loud, tensor)) <= (INT8_TOLERANCE if node["accuracy_level"] else TOLERANCE)
    elif node["accuracy_level"]:
        assert relative_error(rest, quiet) <= INT8_TOLERANCE
    else:
        assert np.abs(rest - quiet).max() <= TOLERANCE * np.abs(product(loud, tensor)).max()


@pytest.mark.parametrize("form", ["nf4", "fp4"])
@pytest.mark.parametrize("shape", [(1, 64), (7, 128), (33, 320), (6, 96)])  # the last: blocks run over two rows
def test_codebooks_are_exact(checkpoint, form, shape):
    tensor = random_codebook(shape, form)
    y, node = run_linear(checkpoint, tensor, inputs(tensor), FAST)
    assert (node["form"], node["bits"], node["group_size"], node["accuracy_level"]) == ("MatMulBnb4", 4, 64, 0)
    assert relative_error(y, product(inputs(tensor), tensor)) <= TOLERANCE


@pytest.mark.parametrize("form", ["nf4", "fp4"])
def test_codebooks_warn_about_their_speed_on_the_cpu(checkpoint, form):
    _, weights = build_linear(checkpoint, random_codebook((8, 64), form), FAST)
    assert f"1 weights are {form}" in weights.notices[0] and "4-bit integers" in weights.notices[0]
    _, weights = build_linear(checkpoint, random_codebook((8, 64), form), HALF)
    assert not weights.notices


def simulated(tensor, x, bias=None):
    columns = () if tensor.outliers is None else tensor.outliers.columns.tolist()
    layer = Int8ActivationLinear(torch.from_numpy(dequantize(tensor)).double(), bias, columns)
    return layer(torch.from_numpy(x).double()).numpy()


@pytest.mark.parametrize("outliers", [0, 4])
@pytest.mark.parametrize("reordered", [False, True])
@pytest.mark.parametrize("zero", ["symmetric", "integer"])
@pytest.mark.parametrize("shape", [(1, 8), (3, 24), (17, 104), (64, 256), (33, 1000)])
def test_w8a8_is_its_definition(checkpoint, shape, zero, reordered, outliers):
    """The integer product is exact, so only the two scales are rounded."""
    tensor = random_tensor(shape, 8, shape[1], zero, reordered=reordered, outliers=outliers)
    x = inputs(tensor, rows=9)
    x[3] = 0  # a row of zeros has no scale
    x[4] *= 1e-20
    x[:, 0] *= 50
    y, node = run_linear(checkpoint, tensor, x, FAST, activations="int8")
    assert (node["form"], node["activations"], node["bits"]) == ("MatMulInteger", "int8", 8)
    expected = simulated(tensor, x)
    scale = np.abs(expected).max(1, keepdims=True)
    assert (y[3] == 0).all() and (scale[4] > 0).all()
    assert (np.abs(y - expected) <= TOLERANCE * np.maximum(scale, 1e-300)).all()  # row by row


@pytest.mark.parametrize(("bits", "group_size", "zero"), [(4, 32, "symmetric"), (2, 64, "float"), (3, 8, "integer"), (8, 32, "float")])  # fmt: skip
def test_int8_activations_before_other_products(checkpoint, bits, group_size, zero):
    tensor = random_tensor((33, 320), bits, group_size, zero, reordered=True, outliers=0 if zero == "float" else 3)
    x = inputs(tensor, rows=9)
    y, node = run_linear(checkpoint, tensor, x, FAST, activations="int8")
    assert (node["activations"], node["accuracy_level"]) == ("int8", 0)
    assert relative_error(y, simulated(tensor, x)) <= TOLERANCE


def test_a_float16_body_keeps_activations_that_the_record_wants_rounded(checkpoint):
    tensor = random_tensor((33, 256), 8, 256)
    model, weights = build_linear(checkpoint, tensor, HALF, "int8")
    assert "Round" not in {node.op_type for node in model.graph.node}
    assert weights.notices == ["1 weights were made for int8 activations, which this target keeps in float"]
    y, node = run_linear(checkpoint, tensor, inputs(tensor), HALF, activations="int8")
    assert node["activations"] == "float"
    assert relative_error(y, product(inputs(tensor), tensor)) <= HALF_TOLERANCE


@pytest.mark.parametrize("make", [
    lambda: random_tensor((32, 64), 4, 32), lambda: random_tensor((32, 64), 3, 32, "float", outliers=2),
    lambda: random_tensor((32, 64), 8, 64), lambda: random_codebook((32, 64), "nf4"),
])  # fmt: skip
def test_a_bias_is_added_once(checkpoint, make):
    tensor: QuantizedTensor | CodebookTensor = make()
    bias = checkpoint.load("layers.0.k.bias")
    assert bias.shape == (32,)
    activations = "int8" if isinstance(tensor, QuantizedTensor) and tensor.bits == 8 else "float"
    x = inputs(tensor)
    precision = FAST if activations == "int8" else EXACT
    y, _ = run_linear(checkpoint, tensor, x, precision, bias="layers.0.k.bias", activations=activations)
    expected = simulated(tensor, x) if activations == "int8" else product(x, tensor)
    assert relative_error(y, expected + bias) <= TOLERANCE
