import numpy as np
import pytest
import torch

from dlm_edge.errors import UsageProblem
from dlm_edge.quant import rtn
from dlm_edge.quant.grid import Search
from dlm_edge.quant.statistics import InputStatistics
from dlm_edge.quantized import container_bits, dequantize, unpack

BITS = [2, 3, 4, 8]
KINDS = [(bits, zero) for bits in BITS for zero in ("symmetric", "integer", "float") if (bits, zero) != (8, "float")]


def random_weight(rows: int = 9, columns: int = 160) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((rows, columns)).astype(np.float32)


@pytest.mark.parametrize(("bits", "zero"), KINDS)
@pytest.mark.parametrize("group_size", [16, 32])
def test_error_is_at_most_half_a_step(bits, zero, group_size):
    """An integer zero is rounded itself, which can cost half a step more at the ends of the range."""
    weight = random_weight()
    config = rtn.RtnConfig(bits=bits, group_size=group_size, zero=zero, search=None)
    quantized = rtn.quantize("w", weight, config)
    assert quantized.zero_kind == zero
    step = np.abs(quantized.scales).repeat(group_size, axis=1)
    error = np.abs(dequantize(quantized) - weight)
    # 1e-5: float32 rounding of the products; a float zero is rounded to eleven bits of the codes it may be
    bound = {"symmetric": 0.5 + 1e-5, "integer": 1 + 1e-5, "float": 0.5 + 2.0**bits * 2.0**-11}[zero]
    assert (error <= bound * step).all()


@pytest.mark.parametrize(("bits", "zero"), KINDS)
def test_every_code_is_the_nearest(bits, zero):
    """Also where the search clips: no other code of the grid is closer."""
    weight = random_weight()
    quantized = rtn.quantize("w", weight, rtn.RtnConfig(bits=bits, group_size=32, zero=zero))
    zeros = np.float32(2 ** (bits - 1)) if quantized.zeros is None else quantized.zeros.astype(np.float32).repeat(32, 1)
    codes = np.arange(2**bits, dtype=np.float32)[:, None, None]
    grid = (codes - zeros) * quantized.scales.repeat(32, axis=1)
    nearest = np.abs(grid - weight).min(0)
    assert np.abs(dequantize(quantized) - weight) == pytest.approx(nearest, abs=1e-6)


@pytest.mark.parametrize(("bits", "zero"), KINDS)
def test_the_search_never_costs(bits, zero):
    weight = random_weight()

    def squared(search):
        config = rtn.RtnConfig(bits=bits, group_size=32, zero=zero, search=search)
        return ((dequantize(rtn.quantize("w", weight, config)) - weight) ** 2).reshape(9, -1, 32).sum(-1)

    found, whole = squared(Search()), squared(None)
    assert (found <= whole * (1 + 1e-5)).all()
    assert bits > 3 or found.sum() < 0.97 * whole.sum()  # clipping matters where steps are wide


def test_full_range_symmetric_uses_the_extra_code_on_the_longer_side():
    weight = np.concatenate([np.linspace(-1, 0.8, 32), np.linspace(-0.8, 1, 32)]).astype(np.float32)[None]
    quantized = rtn.quantize("w", weight, rtn.RtnConfig(bits=2, group_size=32, search=None))
    scales = quantized.scales[0]
    assert scales[0] > 0 > scales[1]
    for group, side in enumerate((-1, 1)):
        values = set(dequantize(quantized)[0, 32 * group : 32 * group + 32].tolist())
        assert len(values) == 4 and max(values, key=abs) * side > 0


def inputs_with(columns: np.ndarray) -> InputStatistics:
    """Independent inputs of these standard deviations."""
    x = torch.randn(4000, len(columns), generator=torch.Generator().manual_seed(1)) * torch.from_numpy(columns).float()
    inputs = InputStatistics("x", len(columns))
    inputs.add(x, torch.ones(len(x)))
    return inputs


@pytest.mark.parametrize(("bits", "zero"), [kind for kind in KINDS if kind[0] < 8])
def test_importance_lowers_the_error_of_outputs(bits, zero):
    weight = random_weight(32)
    deviations = np.where(np.arange(160) % 8 == 0, 10.0, 0.5)
    inputs, config = inputs_with(deviations), rtn.RtnConfig(bits=bits, group_size=32, zero=zero)

    def output_error(quantized):
        return (((dequantize(quantized) - weight) * deviations) ** 2).sum()

    weighted = output_error(rtn.quantize("w", weight, config, inputs))
    assert weighted < 0.95 * output_error(rtn.quantize("w", weight, config))


def test_dead_inputs_leave_the_plain_search():
    weight, config = random_weight(), rtn.RtnConfig(bits=3, group_size=32)
    plain = rtn.quantize("w", weight, config)
    silent = rtn.quantize("w", weight, config, inputs_with(np.zeros(160)))
    np.testing.assert_array_equal(silent.packed, plain.packed)


def test_three_bits_use_eight_codes_of_the_four_bit_container():
    quantized = rtn.quantize("w", random_weight(), rtn.RtnConfig(bits=3, group_size=16))
    codes = unpack(quantized)
    assert container_bits(3) == 4 and quantized.packed.shape == (9, 10, 8)
    assert (codes.min(), codes.max()) == (0, 7)


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
