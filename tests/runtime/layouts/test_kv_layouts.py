"""kv-int8, kv-int4 and kv-int4x2 against the definition of quantized pages, read as the attention operator reads them."""

from __future__ import annotations

import numpy as np
import pytest

from dlm_edge.kernels.quantized_pages import reference
from dlm_edge.kernels.quantized_pages.planes import join_codes
from dlm_edge.kernels.quantized_pages.reference import Quantized
from tests.runtime.layouts.layout_cases import CAPACITY, GROUP, SHAPE, append, opened, window_rows


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("end", [1, 31, 32, 100, CAPACITY])
def test_what_the_operator_sees_is_the_quantized_input(end, bits):
    name = f"kv-int{bits}"
    layout, rows = opened(name), window_rows(name, CAPACITY)
    append(layout, rows, 0, end // 2)
    append(layout, rows, end // 2, end)
    n = end // GROUP * GROUP
    for i, (k, v) in enumerate(rows):
        b = layout.buffers(i)
        stored_k = Quantized(b["k_cache"], b["k_scale"], b["k_low"])
        stored_v = Quantized(b["v_cache"], b["v_scale"], b["v_low"])
        keys, values = reference.dequantize_cache(stored_k, b["k_tail"], stored_v, end, bits)
        expected = reference.quantize_keys(k, bits, GROUP)
        np.testing.assert_array_equal(keys[0, :, :n], reference.dequantize_keys(expected, bits)[:, :n])
        np.testing.assert_array_equal(keys[0, :, n:], k[:, n:end])
        group = SHAPE.head_dim // b["v_scale"].shape[-1]
        expected = reference.quantize_values(v, bits, group)
        np.testing.assert_array_equal(values[0], reference.dequantize_values(expected, bits)[:, :end])


@pytest.mark.parametrize("bits", [8, 4])
def test_shapes_are_those_of_the_operator(bits):
    c, h, d = CAPACITY, SHAPE.n_kv_heads, SHAPE.head_dim
    assert {name: array.shape for name, array in opened(f"kv-int{bits}").buffers(0).items()} == {
        "k_cache": (1, h, c, d * bits // 8),
        "k_scale": (1, h, c // GROUP, d),
        "k_low": (1, h, c // GROUP, d),
        "k_tail": (1, h, GROUP, d),
        "v_cache": (1, h, c, d * bits // 8),
        "v_scale": (1, h, c, d // 8),  # groups of 8: the largest common divisor of 32 and 40
        "v_low": (1, h, c, d // 8),
    }


def test_float16_is_rounded_and_float32_exact():
    for name, dtype in (("kv-fp32", np.float32), ("kv-fp16", np.float16)):
        layout, rows = opened(name), window_rows(name, 20)
        append(layout, rows, 0, 20)
        np.testing.assert_array_equal(layout.buffers(2)["k_cache"][0, :, :20], rows[2][0].astype(dtype))


@pytest.mark.parametrize("end", [1, 31, 32, 100, CAPACITY])
def test_two_planes_hold_the_codes_of_eight_bits(end):
    found, whole, rows = opened("kv-int4x2"), opened("kv-int8"), window_rows("kv-int4x2", CAPACITY)
    for layout in (found, whole):
        append(layout, rows, 0, end // 2)
        append(layout, rows, end // 2, end)
    assert found.bytes_per_token == whole.bytes_per_token and found.fixed_bytes == whole.fixed_bytes
    for i in range(SHAPE.n_layers):
        b, expected = found.buffers(i), whole.buffers(i)
        assert b.keys() == {*expected, "k_lower", "v_lower"}
        for name, array in expected.items():
            if not name.endswith("_cache"):
                np.testing.assert_array_equal(b[name], array, err_msg=name)
        for kind in "kv":
            upper, lower = b[f"{kind}_cache"], b[f"{kind}_lower"]
            assert upper.shape == lower.shape == (1, SHAPE.n_kv_heads, CAPACITY, SHAPE.head_dim // 2)
            np.testing.assert_array_equal(join_codes(upper, lower), expected[f"{kind}_cache"])
