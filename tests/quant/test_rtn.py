import numpy as np
import pytest

from dlm_edge.errors import UsageProblem
from dlm_edge.quant import rtn
from dlm_edge.quantized import container_bits, unpack

BITS = [2, 3, 4, 8]


def random_weight(rows: int = 9, columns: int = 160) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((rows, columns)).astype(np.float32)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("group_size", [16, 32])
def test_error_is_at_most_half_a_step(bits, group_size):
    weight = random_weight()
    quantized = rtn.quantize("w", weight, rtn.RtnConfig(bits=bits, group_size=group_size, search=None))
    step = np.abs(quantized.scales).repeat(group_size, axis=1)
    error = np.abs(rtn.dequantize(quantized) - weight)
    assert (error <= 0.5 * step * (1 + 1e-5)).all()  # 1e-5: float32 rounding of the products


@pytest.mark.parametrize("bits", BITS)
def test_every_code_is_the_nearest(bits):
    """Also where the search clips: no other code of the grid is closer."""
    weight = random_weight()
    quantized = rtn.quantize("w", weight, rtn.RtnConfig(bits=bits, group_size=32))
    scale = quantized.scales.repeat(32, axis=1)
    grid = np.arange(-(2 ** (bits - 1)), 2 ** (bits - 1)) * scale[..., None]
    nearest = np.abs(grid - weight[..., None]).min(-1)
    assert np.abs(rtn.dequantize(quantized) - weight) == pytest.approx(nearest, abs=1e-6)


def test_three_bits_use_eight_codes_of_the_four_bit_container():
    quantized = rtn.quantize("w", random_weight(), rtn.RtnConfig(bits=3, group_size=16))
    codes = unpack(quantized)
    assert container_bits(3) == 4 and quantized.packed.shape == (9, 10, 8)
    assert (codes.min(), codes.max()) == (4, 11)


def test_zeros_stay_exactly_zero():
    weight = random_weight()
    weight[:, 32:64] = 0
    weight[3] = 0
    values = rtn.dequantize(rtn.quantize("w", weight, rtn.RtnConfig(bits=2, group_size=32)))
    assert (values[:, 32:64] == 0).all() and (values[3] == 0).all()


@pytest.mark.parametrize("factor", [1e-9, 1e-4, 1.0, 1e6])
def test_the_relative_error_does_not_depend_on_the_size_of_the_weights(factor):
    weight = random_weight()
    config = rtn.RtnConfig(bits=4, group_size=32)
    values = rtn.dequantize(rtn.quantize("w", weight * np.float32(factor), config)) / np.float32(factor)
    error, expected = (
        np.abs(values - weight).mean(),
        np.abs(rtn.dequantize(rtn.quantize("w", weight, config)) - weight).mean(),
    )
    assert error == pytest.approx(expected, rel=0.02)  # scales are rounded to float16, finer or coarser


def test_a_layer_that_does_not_fit_is_named():
    with pytest.raises(
        UsageProblem, match="model.x.weight: in_features 160 is not a multiple of group size 64"
    ) as caught:
        rtn.quantize("model.x.weight", random_weight(), rtn.RtnConfig(group_size=64))
    assert caught.value.code == "E-QUANT" and "--skip 'model.x.weight'" in caught.value.hint
