"""The function body of RematerialiseRows, as a runtime without the kernel runs it, against the NumPy definition."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from dlm_edge import kernels
from dlm_edge.kernels.dequantize_rows.reference import BITS
from dlm_edge.kernels.rematerialise_rows import function
from dlm_edge.kernels.rematerialise_rows.reference import rematerialise_rows
from tests.kernels.stored_rows import Stored

FLOAT, HALF = TensorProto.FLOAT, TensorProto.FLOAT16
TYPES = (TensorProto.UINT8, HALF, HALF, FLOAT, TensorProto.INT64, TensorProto.INT64)
STORED = [Stored("token", 48, 72, 24, 40), Stored("channel", 64, 80, 16, 55)]
ERROR = {FLOAT: 8e-7, HALF: 2e-3}  # relative to the largest product; measured over 5 seeds: 4.0e-7 and 9.2e-4


def model_of(bits: int, axis: str, dtype: int) -> onnx.ModelProto:
    types = [*TYPES, dtype]
    shapes = [[f"{name}_{i}" for i in range(2)] for name in function.INPUTS]
    shapes[4], shapes[5] = ["n"], [1]
    inputs = [helper.make_tensor_value_info(*each) for each in zip(function.INPUTS, types, shapes, strict=True)]
    node = function.node(function.INPUTS, "product", bits=bits, axis=axis)
    output = helper.make_tensor_value_info("product", dtype, ["n", "n_out"])
    graph = helper.make_graph([node], "product", inputs, [output])
    opsets = [helper.make_opsetid("", 24), helper.make_opsetid(kernels.DOMAIN, kernels.OPERATOR_VERSION)]
    functions = [function.function_proto(bits, axis)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=11, functions=functions)


def session_of(model: onnx.ModelProto) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def assert_right(session: ort.InferenceSession, stored: Stored, bits: int, dtype: int, n: int) -> None:
    weight = np.random.default_rng(2).standard_normal((stored.width, 48))
    weight = weight.astype(helper.tensor_dtype_to_np_dtype(dtype))
    parts, rows = stored.inputs(bits), stored.rows(n)
    wanted = rematerialise_rows(*parts, rows, stored.cache_len, weight, bits=bits, axis=stored.axis)
    given = [*parts, rows, np.array([stored.cache_len]), weight]
    (found,) = session.run(None, dict(zip(function.INPUTS, given, strict=True)))
    assert found.dtype == wanted.dtype and found.shape == wanted.shape
    bound = ERROR[dtype] * np.abs(wanted.astype(np.float32)).max(initial=0)
    np.testing.assert_allclose(found.astype(np.float32), wanted.astype(np.float32), rtol=0, atol=bound)


@pytest.mark.parametrize("dtype", ERROR)
@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("stored", STORED, ids=str)
def test_the_function_is_the_definition(stored, bits, dtype):
    session = session_of(model_of(bits, stored.axis, dtype))
    for n in (0, 1, 37):
        assert_right(session, stored, bits, dtype, n)


@pytest.mark.parametrize("stored", STORED, ids=str)
def test_onnx_accepts_the_model(stored):
    onnx.checker.check_model(model_of(3, stored.axis, HALF), full_check=True)
