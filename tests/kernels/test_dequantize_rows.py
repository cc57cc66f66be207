"""The function body of DequantizeRows against its NumPy definition, and the definition against its encoder."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from dlm_edge import kernels
from dlm_edge.errors import JobError
from dlm_edge.kernels.dequantize_rows import function, reference

TYPES = dict(codes=TensorProto.UINT8, scale=TensorProto.FLOAT16, low=TensorProto.FLOAT16, tail=TensorProto.FLOAT)
SHAPES = dict(codes=["capacity", "bytes"], scale=["a", "b"], low=["a", "b"], tail=["n_tail", "width"])


@dataclass(frozen=True)
class Case:
    axis: str
    capacity: int
    width: int
    group: int
    cache_len: int
    n_tail: int = 0

    def __str__(self) -> str:
        return f"{self.axis}-{self.width}x{self.capacity}-g{self.group}-c{self.cache_len}-t{self.n_tail}"


CASES = [
    Case("token", 64, 128, 32, 50),
    Case("token", 7, 72, 24, 7),
    Case("token", 5, 40, 40, 1),
    Case("token", 96, 80, 16, 70, n_tail=32),  # a tail also serves rows with a scale of their own
    Case("channel", 64, 128, 32, 50, n_tail=32),
    Case("channel", 64, 128, 32, 64, n_tail=32),
    Case("channel", 96, 24, 16, 15, n_tail=16),
    Case("channel", 40, 8, 8, 33, n_tail=8),
    Case("channel", 64, 48, 64, 64),
]
by_case = pytest.mark.parametrize("case", CASES, ids=str)
by_bits = pytest.mark.parametrize("bits", reference.BITS)


def make_inputs(case: Case, bits: int, seed: int = 0) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Inputs without `rows`, and the exact values; what must not be read is NaN."""
    values = np.random.default_rng(seed).standard_normal((case.capacity, case.width)).astype(np.float32)
    codes, scale, low = reference.encode_rows(values, bits=bits, axis=case.axis, group=case.group)
    n = case.cache_len // case.n_tail * case.n_tail if case.n_tail else case.cache_len
    tail = np.full((case.n_tail, case.width), np.nan, np.float32)
    tail[: case.cache_len - n] = values[n : case.cache_len]
    unread = n if case.axis == "token" else -(-n // case.group)
    scale[unread:], low[unread:] = np.nan, np.nan
    return dict(codes=codes, scale=scale, low=low, tail=tail, cache_len=np.array([case.cache_len])), values


def orders(cache_len: int) -> list[np.ndarray]:
    """None, one, all, and some rows out of order and repeated."""
    some = np.random.default_rng(2).integers(0, cache_len, 37)
    return [np.empty(0, np.int64), np.array([cache_len - 1]), np.arange(cache_len), some]


def build_model(bits: int, axis: str) -> onnx.ModelProto:
    inputs = [helper.make_tensor_value_info(n, TYPES[n], SHAPES[n]) for n in SHAPES]
    inputs.append(helper.make_tensor_value_info("rows", TensorProto.INT64, ["n"]))
    inputs.append(helper.make_tensor_value_info("cache_len", TensorProto.INT64, [1]))
    output = helper.make_tensor_value_info("values", TensorProto.FLOAT, ["n", "width"])
    node = function.node(function.INPUTS, "values", bits=bits, axis=axis)
    graph = helper.make_graph([node], "rows", inputs, [output])
    opsets = [helper.make_opsetid("", 24), helper.make_opsetid(kernels.DOMAIN, kernels.OPERATOR_VERSION)]
    functions = [function.function_proto(bits, axis)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=11, functions=functions)


@pytest.fixture(scope="module")
def sessions():
    options = ort.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 4, 1
    return {
        (bits, axis): ort.InferenceSession(build_model(bits, axis).SerializeToString(), options)
        for bits in reference.BITS
        for axis in ("token", "channel")
    }


def expected_of(case: Case, bits: int, inputs: dict[str, np.ndarray], rows: np.ndarray) -> np.ndarray:
    tensors = (inputs[name] for name in ("codes", "scale", "low", "tail"))
    return reference.dequantize_rows(*tensors, rows, case.cache_len, bits=bits, axis=case.axis)


@by_bits
@by_case
def test_function_is_the_reference_to_the_bit(case, bits, sessions):
    inputs, _ = make_inputs(case, bits)
    for rows in orders(case.cache_len):
        (actual,) = sessions[bits, case.axis].run(None, {**inputs, "rows": rows})
        expected = expected_of(case, bits, inputs, rows)
        assert actual.dtype == np.float32 and np.isfinite(expected).all()
        np.testing.assert_array_equal(actual, expected)


@by_bits
@pytest.mark.parametrize("case", CASES[1:3] + CASES[6:8], ids=str)
def test_function_is_the_reference_in_the_onnx_evaluator(case, bits):
    inputs, _ = make_inputs(case, bits)
    rows = orders(case.cache_len)[-1]
    (actual,) = ReferenceEvaluator(build_model(bits, case.axis)).run(None, {**inputs, "rows": rows})
    np.testing.assert_array_equal(actual, expected_of(case, bits, inputs, rows))


@by_bits
@by_case
def test_rows_come_back_within_half_a_step_and_exactly_from_the_tail(case, bits):
    inputs, values = make_inputs(case, bits)
    rows = np.arange(case.cache_len)
    n = case.cache_len // case.n_tail * case.n_tail if case.n_tail else case.cache_len
    step = inputs["scale"].astype(np.float64).repeat(case.group, 1 if case.axis == "token" else 0)[:n]
    found = expected_of(case, bits, inputs, rows)
    # 1e-6: float32 rounding of values of at most 5
    assert (np.abs(found[:n] - values[:n]) <= step / 2 * (1 + 1e-5) + 1e-6).all()
    np.testing.assert_array_equal(found[n:], values[n : case.cache_len])


@by_bits
def test_packing_is_dense_and_undone_by_unpacking(bits):
    codes = np.random.default_rng(0).integers(0, 2**bits, (5, 24), dtype=np.uint8)
    packed = reference.pack_rows(codes, bits)
    assert packed.shape == (5, 24 * bits // 8)
    np.testing.assert_array_equal(reference.unpack_rows(packed, bits), codes)


def test_three_bits_are_a_plane_of_two_and_a_plane_of_one():
    codes = np.array([[7, 0, 5, 2, 4, 4, 0, 3]], np.uint8)
    assert reference.pack_rows(codes, 3).tolist() == [[0b10_01_00_11, 0b11_00_00_00, 0b00110101]]


def test_a_row_beyond_the_cache_is_a_bug():
    case = CASES[0]
    inputs, _ = make_inputs(case, 8)
    with pytest.raises(AssertionError, match="not stored"):
        expected_of(case, 8, inputs, np.array([case.cache_len]))


def test_what_is_not_finite_is_refused():
    values = np.full((4, 32), np.nan, np.float32)
    with pytest.raises(JobError, match="E-NAN"):
        reference.encode_rows(values, bits=4, axis="token", group=32)


@by_bits
@pytest.mark.parametrize("axis", ["token", "channel"])
def test_function_passes_the_checker(axis, bits):
    model = build_model(bits, axis)
    onnx.checker.check_model(model, full_check=True)
    assert {node.domain for node in model.functions[0].node} == {""}
