"""QLinear's function bodies of standard operators against its definition, run by ONNX Runtime."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from dlm_edge import kernels
from dlm_edge.kernels.qlinear import function
from dlm_edge.kernels.qlinear.gating import gated_rows
from dlm_edge.kernels.qlinear.inputs import LinearInputs
from dlm_edge.kernels.qlinear.reference import round_rows
from tests.kernels.linear_cases import CASES, Case, defined, dense_weight, make_rows, make_weight, parts_of

# Of the function body with outliers, whose product is a MatMul in an order of its own: the largest error relative to
# the largest |y| over these cases and 20 seeds is 1.3e-7; without outliers it is 0.
OUTLIER_TOLERANCE = 4e-7
# Gated rows differ in last bits: over 6 seeds by 1.3e-7 of the sum of magnitudes, and no value fell on the
# other side of a tie, which would be a step.
GATED_STEPS, GATED_TOLERANCE = 1, 4e-7

by_case = pytest.mark.parametrize("case", CASES, ids=str)
needs_library = pytest.mark.skipif(kernels.library_path() is None, reason="the native library is not built")


def build_model(case: Case, weight: LinearInputs) -> onnx.ModelProto:
    node = function.node(function.INPUTS, "y", weight, **case.sizes)
    body = function.function_proto(
        case.bits,
        case.zero,
        whole=case.group_size >= case.in_features,
        bias=case.bias,
        outliers=case.outliers > 0,
        gated=case.gated,
        row_blocks=case.row_blocks,
    )
    assert node.overload == body.overload
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["lead", "rows", case.row_width])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["lead", "rows", case.out_features])]
    constants = [numpy_helper.from_array(array, name) for name, array in parts_of(weight).items()]
    graph = helper.make_graph([node], "linear", inputs, outputs, constants)
    opsets = [helper.make_opsetid("", 24), helper.make_opsetid(kernels.DOMAIN, kernels.OPERATOR_VERSION)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=11, functions=[body])


def open_function(case: Case, weight: LinearInputs) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 4, 1
    return ort.InferenceSession(build_model(case, weight).SerializeToString(), options)


def gating_error(case: Case, weight: LinearInputs, x: np.ndarray) -> np.ndarray:
    """[.., rows, 1]: a value that falls on the other side of a tie, and last bits of the scale and the sum."""
    if not case.gated:
        return np.zeros((*x.shape[:-1], 1))
    rows = np.nan_to_num(gated_rows(x[0]), posinf=0, neginf=0)
    _, scales = round_rows(rows, weight.outlier_columns, case.group_size if case.row_blocks else None)
    dense = np.abs(dense_weight(case, weight))
    steps = np.delete(dense, weight.outlier_columns, 1).max(initial=0) * GATED_STEPS
    return scales.max(-1, keepdims=True) * steps + GATED_TOLERANCE * (np.abs(rows) @ dense.T).max(-1, keepdims=True)


@by_case
def test_function_is_the_definition(case):
    weight = make_weight(case)
    tested = open_function(case, weight)
    for count in (0, 1, 12):
        x = make_rows(case, count)[None] if count else np.empty((1, 0, case.row_width), np.float32)
        (found,) = tested.run(None, {"x": x})
        if count == 0:
            assert found.shape == (1, 0, case.out_features)
            continue
        expected = defined(case, weight, x)
        np.testing.assert_array_equal(np.isnan(found), np.isnan(expected))
        error = np.abs(np.nan_to_num(found) - np.nan_to_num(expected))
        largest = np.abs(np.nan_to_num(expected)).max(-1, keepdims=True)
        assert (error <= (OUTLIER_TOLERANCE if case.outliers else 0) * largest + gating_error(case, weight, x)).all()


@pytest.mark.parametrize("case", [*CASES[:4], CASES[-1]], ids=str)
def test_function_passes_the_checker(case):
    model = build_model(case, make_weight(case))
    onnx.checker.check_model(model, full_check=True)
    assert {node.domain for node in model.functions[0].node} == {""}


@needs_library
def test_a_model_with_the_function_runs_the_native_operator():
    case = Case(100, 33, 4, 32, zero="integer", outliers=3)
    weight, x = make_weight(case), make_rows(case, 12)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    kernels.register(options)
    (found,) = ort.InferenceSession(build_model(case, weight).SerializeToString(), options).run(None, {"x": x[None]})
    np.testing.assert_array_equal(found[0], defined(case, weight, x))  # the function body differs in a last bit
