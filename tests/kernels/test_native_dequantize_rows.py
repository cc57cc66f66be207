"""The native kernel of DequantizeRows against the NumPy definition."""

from __future__ import annotations

import numpy as np
import pytest
from onnxruntime.capi.onnxruntime_pybind11_state import InvalidArgument, RuntimeException

from dlm_edge import kernels
from dlm_edge.kernels.dequantize_rows.reference import dequantize_rows, encode_rows
from tests.kernels import native_operators as native

pytestmark = pytest.mark.skipif(kernels.library_path() is None, reason="the native library is not built")

# One product and one sum in float32, in the kernel perhaps without the rounding between them: two roundings of values
# up to 5. Largest difference measured over 20 seeds: 2.4e-7.
TOLERANCE = 1e-6


@pytest.fixture(scope="module")
def sessions():
    inputs = make_inputs("token", 8)
    return {
        (axis, bits): native.session("DequantizeRows", inputs, ("out",), bits=bits, axis=axis)
        for axis in ("token", "channel")
        for bits in (8, 4, 3, 2)
    }


@pytest.fixture
def force_simd():
    yield lambda name: kernels.set_simd(name) or pytest.skip(f"this processor has no {name}")
    kernels.set_simd(None)


def make_inputs(axis: str, bits: int, *, width: int = 64, group: int = 32, n_rows: int = 200) -> native.Arrays:
    capacity, cache_len = 6 * group, 5 * group - 3
    rng = np.random.default_rng(0)
    values = rng.standard_normal((capacity, width)).astype(np.float32)
    codes, scale, low = encode_rows(values, bits=bits, axis=axis, group=group)
    n_tail = group if axis == "channel" else 0
    if axis == "channel":
        scale[cache_len // group :] = np.nan  # these rows come from the tail
    tail = rng.standard_normal((n_tail, width)).astype(np.float32)
    rows = rng.integers(0, cache_len, n_rows)
    return dict(codes=codes, scale=scale, low=low, tail=tail, rows=rows, cache_len=np.array([cache_len]))


@pytest.mark.parametrize("simd", native.SIMD)
@pytest.mark.parametrize("bits", [8, 4, 3, 2])
@pytest.mark.parametrize(("axis", "width", "group"), [
    ("token", 64, 32), ("token", 1024, 128), ("token", 120, 24), ("token", 40, 5), ("token", 24, 1),
    ("channel", 64, 32), ("channel", 1000, 128), ("channel", 24, 7),
])  # fmt: skip
def test_matches_reference(axis, width, group, bits, simd, sessions, force_simd):
    force_simd(simd)
    for n_rows in (0, 1, 200):
        inputs = make_inputs(axis, bits, width=width, group=group, n_rows=n_rows)
        (actual,) = sessions[axis, bits].run(None, inputs)
        numbers = inputs | {"cache_len": int(inputs["cache_len"][0])}
        np.testing.assert_allclose(actual, dequantize_rows(**numbers, bits=bits, axis=axis), rtol=0, atol=TOLERANCE)


BAD_INPUTS = [  # what to change, what the message must say
    pytest.param(
        "token", {"rows": np.array([0, -1])}, "rows has -1 at index 1, expected 0 to below", id="negative-row"
    ),
    pytest.param("token", {"rows": np.array([157])}, "rows has 157 at index 0", id="row"),
    pytest.param("token", {"cache_len": np.array([193])}, "cache_len is 193", id="cache-len"),
    pytest.param("token", {"scale": (192, 7)}, r"low has shape \[192, 2\]", id="low"),
    pytest.param("token", {"scale": (192, 7), "low": (192, 7)}, r"scale has shape \[192, 7\]", id="scale"),
    pytest.param("token", {"tail": (32, 64)}, "tail has shape", id="token-tail"),
    pytest.param("token", {"codes": (192, 0)}, r"codes has shape \[192, 0\]", id="no-width"),
    pytest.param("channel", {"tail": (31, 64)}, r"tail has shape \[31, 64\]", id="tail"),
    pytest.param("channel", {"scale": (5, 64), "low": (5, 64)}, r"scale has shape \[5, 64\]", id="groups"),
]


@pytest.mark.parametrize(("axis", "change", "message"), BAD_INPUTS)
def test_bad_inputs_are_refused_by_name(axis, change, message, sessions):
    inputs = make_inputs(axis, 8)
    for name, value in change.items():
        inputs[name] = np.zeros(value, inputs[name].dtype) if isinstance(value, tuple) else value
    with pytest.raises(InvalidArgument, match=f"DequantizeRows: .*{message}"):
        sessions[axis, 8].run(None, inputs)


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"bits": 5, "axis": "token"}, "bits is 5, expected 8, 4, 3 or 2"),
        ({"bits": 4, "axis": "row"}, "axis is 'row', expected 'token' or 'channel'"),
        ({"bits": 4, "axis": "a name longer than any"}, "axis must be 'token' or 'channel'"),
        ({"bits": 4}, "axis must be 'token' or 'channel'"),
    ],
)
def test_bad_attributes_are_refused(attributes, message):
    with pytest.raises(RuntimeException, match=message):
        native.session("DequantizeRows", make_inputs("token", 8), ("out",), **attributes)
