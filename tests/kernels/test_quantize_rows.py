"""QuantizeRows: the definition against the encoders of the cache, its function body and the native kernel against it."""

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
from dlm_edge.kernels.dequantize_rows.reference import BITS, dequantize_rows, encode_rows
from dlm_edge.kernels.quantize_rows import function
from dlm_edge.kernels.quantize_rows.reference import QuantizedRows, check_scales, quantize_rows
from dlm_edge.kernels.quantized_pages.reference import quantize_keys, quantize_values

# The definition looks for the number below -65504, whether or not it is needed.
pytestmark = pytest.mark.filterwarnings("ignore:overflow encountered in nextafter")

TYPES = dict(codes=TensorProto.UINT8, scale=TensorProto.FLOAT16, low=TensorProto.FLOAT16, tail=TensorProto.FLOAT)


@dataclass(frozen=True)
class Case:
    axis: str
    lead: int
    length: int
    width: int
    group: int
    count: int

    def __str__(self) -> str:
        return f"{self.axis}-{self.lead}x{self.length}x{self.width}-g{self.group}-n{self.count}"


CASES = [
    Case("token", 2, 50, 64, 32, 50),
    Case("token", 1, 9, 1024, 128, 7),
    Case("token", 3, 5, 80, 16, 5),
    Case("token", 1, 4, 40, 5, 3),
    Case("token", 1, 3, 24, 1, 3),
    Case("token", 2, 8, 72, 24, 0),
    Case("token", 1, 1, 8, 8, 1),
    Case("channel", 2, 70, 64, 32, 70),
    Case("channel", 1, 300, 1000, 128, 257),
    Case("channel", 3, 64, 80, 16, 48),
    Case("channel", 2, 40, 24, 7, 40),
    Case("channel", 2, 16, 40, 1, 16),
    Case("channel", 2, 33, 80, 64, 33),  # no whole group
    Case("channel", 1, 1, 8, 16, 1),
    Case("channel", 2, 64, 16, 32, 0),
]
by_case = pytest.mark.parametrize("case", CASES, ids=str)
by_bits = pytest.mark.parametrize("bits", BITS)


def normal(case: Case, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((case.lead, case.length, case.width)).astype(np.float32)


def defined(case: Case, rows: np.ndarray, bits: int) -> QuantizedRows:
    return quantize_rows(rows, case.count, case.group, bits=bits, axis=case.axis)


def grouped_as(rows: np.ndarray, case: Case) -> np.ndarray:
    """A view of `rows` with what shares a scale along the last axis, which is `group` long."""
    if case.axis == "token":
        return rows.reshape(case.lead, case.length, -1, case.group)
    whole = rows[:, : case.length // case.group * case.group]
    return whole.reshape(case.lead, -1, case.group, case.width).swapaxes(-1, -2)


def awkward(case: Case) -> np.ndarray:
    """Groups of all kinds: constants, ties between two codes, the smallest and the largest numbers, outliers."""
    rng, rows = np.random.default_rng(1), normal(case)
    makers = [
        lambda g: np.full(g, rng.standard_normal(), np.float32),
        lambda g: np.full(g, -0.0, np.float32),
        lambda g: rng.integers(0, 31, g).astype(np.float32) / 2,  # on the grid of steps of 1 and between it
        lambda g: rng.standard_normal(g).astype(np.float32) * np.float32(1e-40),  # subnormal float32
        lambda g: rng.standard_normal(g).astype(np.float32) * np.float32(3e-7),  # subnormal float16
        lambda g: np.where(rng.random(g) < 0.5, 65504, -65504).astype(np.float32),
        lambda g: rng.standard_normal(g).astype(np.float32) * np.float32(1e4),
        lambda g: (rng.standard_normal(g) + 1000 * (np.arange(g) == 0)).astype(np.float32),
        lambda g: -np.exp(rng.standard_normal(g) * 8).clip(0, 60000).astype(np.float32),
    ]
    groups = grouped_as(rows, case)
    for i, at in enumerate(np.ndindex(groups.shape[:-1])):
        groups[at] = makers[i % len(makers)](case.group)
    return rows


def broken(case: Case) -> np.ndarray:
    """Every third group holds what cannot be stored."""
    rows, bad = normal(case), [np.nan, np.inf, -np.inf, 65520.0, -7e4, 3e38]
    groups = grouped_as(rows, case)
    for i, at in enumerate(list(np.ndindex(groups.shape[:-1]))[::3]):
        groups[at][i % case.group] = bad[i % len(bad)]
        if i % 5 == 0:
            groups[at][:] = bad[i % len(bad)]
    return rows


def build_model(bits: int, axis: str, *, carries_function: bool = True) -> onnx.ModelProto:
    inputs = [helper.make_tensor_value_info("rows", TensorProto.FLOAT, ["lead", "window", "width"])]
    inputs += [helper.make_tensor_value_info(name, TensorProto.INT64, [1]) for name in ("count", "group")]
    made = function.outputs(axis)
    outputs = [helper.make_tensor_value_info(n, TYPES[n], [f"{n}_{i}" for i in range(3)]) for n in made]
    graph = helper.make_graph([function.node(function.INPUTS, made, bits=bits, axis=axis)], "quantize", inputs, outputs)
    opsets = [helper.make_opsetid("", 24), helper.make_opsetid(kernels.DOMAIN, kernels.OPERATOR_VERSION)]
    functions = [function.function_proto(bits, axis)] if carries_function else []
    return helper.make_model(graph, opset_imports=opsets, ir_version=11, functions=functions)


def open_sessions(native: bool) -> dict:
    options = ort.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 4, 2 if native else 1
    if native:
        kernels.register(options)
    return {
        (bits, axis): ort.InferenceSession(
            build_model(bits, axis, carries_function=not native).SerializeToString(), options
        )
        for bits in BITS
        for axis in ("token", "channel")
    }


@pytest.fixture(scope="module")
def functions():
    return open_sessions(native=False)


@pytest.fixture(scope="module")
def operators():
    if kernels.library_path() is None:
        pytest.skip("the native library is not built")
    return open_sessions(native=True)


@pytest.fixture(params=["avx512_vnni", "avx512", "avx2", "portable"])
def simd(request):
    kernels.set_simd(request.param) or pytest.skip(f"this processor has no {request.param}")
    yield
    kernels.set_simd(None)


def feeds(case: Case, rows: np.ndarray) -> dict[str, np.ndarray]:
    return dict(rows=rows, count=np.array([case.count]), group=np.array([case.group]))


def assert_same(found: list[np.ndarray], expected: QuantizedRows) -> None:
    """To the bit, but for codes and low of groups whose scale says that they mean nothing; shapes in any case."""
    sound = np.isfinite(expected.scale)
    for name, actual, wanted in zip(QuantizedRows._fields, found, expected, strict=False):
        assert (actual.shape, actual.dtype) == (wanted.shape, wanted.dtype), name
        if name == "scale" or sound.all():
            np.testing.assert_array_equal(actual, wanted, err_msg=name)
        elif name == "low":
            np.testing.assert_array_equal(actual[sound], wanted[sound])


@by_bits
@by_case
def test_definition_is_what_the_caches_store(case, bits):
    for rows in (normal(case), awkward(case)):
        found = defined(case, rows, bits)
        n = found.codes.shape[1]
        expected = encode_rows(rows[:, :n], bits=bits, axis=case.axis, group=case.group) if n else found[:3]
        for actual, wanted in zip(found, (*expected, rows[:, n : case.count]), strict=True):
            assert actual.dtype == wanted.dtype
            np.testing.assert_array_equal(actual, wanted)


@pytest.mark.parametrize("bits", [8, 4])
def test_definition_is_that_of_quantized_pages(bits):
    rows = np.random.default_rng(0).standard_normal((3, 96, 80)).astype(np.float32)
    for axis, quantize, group in (("channel", quantize_keys, 32), ("token", quantize_values, 16)):
        found = quantize_rows(rows, 96, group, bits=bits, axis=axis)
        for actual, wanted in zip(found, quantize(rows, bits, group), strict=False):
            np.testing.assert_array_equal(actual, wanted)


@by_bits
@by_case
def test_values_come_back_within_half_a_step(case, bits):
    rows = normal(case)
    codes, scale, low, tail = defined(case, rows, bits)
    n, no_tail = codes.shape[1], np.empty((0, case.width), np.float32)
    for head in range(case.lead if n else 0):
        back = dequantize_rows(codes[head], scale[head], low[head], no_tail, np.arange(n), n, bits=bits, axis=case.axis)
        step = scale[head].astype(np.float64).repeat(case.group, 1 if case.axis == "token" else 0)
        # 1e-6: float32 rounding of values of at most 5
        assert (np.abs(back - rows[head, :n]) <= step / 2 * (1 + 1e-5) + 1e-6).all()
    np.testing.assert_array_equal(tail, rows[:, n : case.count])


@by_bits
@by_case
def test_function_is_the_definition_to_the_bit(case, bits, functions):
    for rows in (normal(case), awkward(case), broken(case)):
        assert_same(functions[bits, case.axis].run(None, feeds(case, rows)), defined(case, rows, bits))


@by_bits
@pytest.mark.parametrize("case", [CASES[i] for i in (2, 3, 9, 12)], ids=str)
def test_function_is_the_definition_in_the_onnx_evaluator(case, bits):
    rows = awkward(case)
    found = ReferenceEvaluator(build_model(bits, case.axis)).run(None, feeds(case, rows))
    assert_same(found, defined(case, rows, bits))


@by_bits
@pytest.mark.parametrize("axis", ["token", "channel"])
def test_function_passes_the_checker(axis, bits):
    model = build_model(bits, axis)
    onnx.checker.check_model(model, full_check=True)
    assert {node.domain for node in model.functions[0].node} == {""}


@by_bits
@by_case
def test_native_is_the_definition_to_the_bit(case, bits, operators, simd):
    for rows in (normal(case), awkward(case), broken(case)):
        assert_same(operators[bits, case.axis].run(None, feeds(case, rows)), defined(case, rows, bits))


def every_rounding() -> np.ndarray:
    """Groups of two equal values [n, 2]: every float16 number, the numbers right below and above it, and the middle
    between it and the next one, which is a tie."""
    halves = np.arange(2**16, dtype=np.uint16).view(np.float16)
    halves = np.sort(halves[np.isfinite(halves)]).astype(np.float32)
    near = [np.nextafter(halves, np.float32(way)) for way in (-np.inf, np.inf)]
    numbers = np.concatenate([halves, *near, (halves[1:] + halves[:-1]) / 2])
    return np.repeat(numbers[np.abs(numbers) <= 65504], 2).reshape(-1, 2)


def every_scale() -> np.ndarray:
    """Groups [n, 2] from 0 to what makes the scale a float16 number, or nearly one, and to any float32 number."""
    scales = np.arange(0x7C00, dtype=np.uint16).view(np.float16).astype(np.float32)
    tops = np.concatenate([scales * k for k in (3, 7, 15, 255)])
    tops = np.concatenate([tops, *(np.nextafter(tops, np.float32(way)) for way in (0, np.inf))])
    random = np.random.default_rng(0).integers(0, 0x477FE000, 200_000, dtype=np.uint32).view(np.float32)
    tops = np.concatenate([tops, random])
    tops = tops[tops <= 65504]
    return np.stack([np.zeros_like(tops), tops], 1)


@by_bits
@pytest.mark.parametrize("makers", [every_rounding, every_scale])
def test_rounding_to_float16_is_that_of_the_definition(makers, bits, functions, request):
    pairs = makers()[: 400_000 // 8 * 8]
    pairs = pairs[: len(pairs) // 8 * 8].reshape(1, -1, 16)
    case = Case("token", 1, pairs.shape[1], 16, 2, pairs.shape[1])
    expected = defined(case, pairs, bits)
    assert_same(functions[bits, "token"].run(None, feeds(case, pairs)), expected)
    if kernels.library_path() is not None:
        operators = request.getfixturevalue("operators")
        assert_same(operators[bits, "token"].run(None, feeds(case, pairs)), expected)


@pytest.mark.parametrize(("value", "code"), [(np.nan, "E-NAN"), (-np.inf, "E-NAN"), (65520.0, "E-QUANT")])
@pytest.mark.parametrize("case", [CASES[0], CASES[7]], ids=str)
def test_what_cannot_be_stored_is_refused_as_by_the_encoder(case, value, code):
    rows = normal(case)
    check_scales(defined(case, rows, 4).scale)
    rows[1, 3, 5] = value
    for refuse in (
        lambda: check_scales(defined(case, rows, 4).scale),
        lambda: encode_rows(rows[:, :32], bits=4, axis=case.axis, group=case.group),
    ):
        with pytest.raises(JobError, match=code):
            refuse()
