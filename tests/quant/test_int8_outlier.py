"""Outlier columns beside int8 weights."""

import numpy as np
import pytest
import torch

from dlm_edge.errors import UsageProblem
from dlm_edge.models.int8_linear import Int8ActivationLinear
from dlm_edge.quant import int8_outlier
from dlm_edge.quant.int8_outlier import Int8Config, outlier_columns
from dlm_edge.quantized import unpack
from tests.quant.layer_bench import statistics_of

PLANTED = (5, 70)


def inputs(tokens: int = 256, channels: int = 96, scale: float = 100.0) -> torch.Tensor:
    x = torch.randn(tokens, channels, generator=torch.Generator().manual_seed(0))
    x[:, PLANTED] *= scale
    return x


def weight(rows: int = 40, channels: int = 96, scale: float = 100.0) -> np.ndarray:
    w = np.random.default_rng(0).standard_normal((rows, channels)).astype(np.float32)
    w[:, PLANTED] /= scale
    return w


def product_error(tensor, w: np.ndarray, x: torch.Tensor) -> float:
    columns = () if tensor.outliers is None else tensor.outliers.columns
    linear = Int8ActivationLinear(torch.from_numpy(int8_outlier.dequantize(tensor)), None, columns)
    exact = x @ torch.from_numpy(w).T
    return float((linear(x) - exact).square().mean().sqrt() / exact.square().mean().sqrt())


def test_planted_columns_are_found_and_kept():
    x, w = inputs(), weight()
    result = int8_outlier.quantize("w", w, Int8Config(), statistics_of(x))
    tensor = result.tensor
    assert tensor is not None and tensor.outliers is not None
    assert tensor.outliers.columns.tolist() == list(PLANTED) and result.notes == []
    assert str(result.treatment).startswith("split (2 of 96 columns, peaks up to ")
    np.testing.assert_array_equal(tensor.outliers.weights, w[:, PLANTED].astype(np.float16).astype(np.float32))
    assert (unpack(tensor)[:, PLANTED] == 128).all()  # the zero code
    np.testing.assert_allclose(int8_outlier.dequantize(tensor)[:, PLANTED], w[:, PLANTED], rtol=2**-10, atol=0)


def test_splitting_restores_what_plain_int8_loses():
    """Error of rounding without outliers: weights and activations of about 0.8 % of a step's rounding each."""
    x, w, config = inputs(), weight(), Int8Config()
    whole = int8_outlier.quantize_whole("w", w, config, statistics_of(x)).tensor
    split = int8_outlier.quantize("w", w, config, statistics_of(x)).tensor
    calm = int8_outlier.quantize_whole("w", weight(scale=1.0), config, None).tensor
    without = product_error(calm, weight(scale=1.0), inputs(scale=1.0))
    assert product_error(whole, w, x) > 20 * without
    assert product_error(split, w, x) < 1.2 * without


def test_calm_inputs_split_nothing():
    result = int8_outlier.quantize("w", weight(), Int8Config(), statistics_of(inputs(scale=1.0)))
    assert result.tensor is not None and result.tensor.outliers is None and result.notes == []
    assert str(result.treatment).startswith("none (largest peak ")


def test_one_scale_for_each_row_within_half_a_step():
    w = weight(scale=1.0)
    tensor = int8_outlier.quantize_whole("w", w, Int8Config(group_size=96), None).tensor
    assert tensor is not None and tensor.scales.shape == (40, 1) and tensor.group_size == 96 and tensor.bits == 8
    assert (np.abs(int8_outlier.dequantize(tensor) - w) <= 0.5 * np.abs(tensor.scales) * (1 + 1e-5)).all()


def test_the_share_is_a_limit_and_what_it_leaves_is_said():
    peaks = torch.ones(100)
    peaks[:20] = torch.arange(20, 40).float()
    columns, beyond = outlier_columns(peaks, Int8Config(largest_share=0.05))
    assert columns.tolist() == [15, 16, 17, 18, 19] and beyond == 20
    x = torch.randn(64, 100) * peaks
    said = str(int8_outlier.quantize("w", weight(8, 100), Int8Config(), statistics_of(x)).treatment)
    assert said.startswith("split (5 of 100 columns") and said.endswith(", 15 more lie beyond 6)")
    result = int8_outlier.quantize("w", weight(8, 100), Int8Config(largest_share=0.0), statistics_of(x))
    assert result.notes and "none may be split" in result.notes[0] and result.treatment.treatment == "none"


def test_channels_never_in_use_do_not_shift_the_median():
    peaks = torch.zeros(100)
    peaks[:10] = 1.0
    peaks[3] = 50.0
    assert outlier_columns(peaks, Int8Config())[0].tolist() == [3]
    assert outlier_columns(torch.zeros(8), Int8Config())[0].tolist() == []


def test_weights_beyond_float16_stay_with_the_rest():
    w = weight()
    w[0, 5] = 1e5
    result = int8_outlier.quantize("w", w, Int8Config(), statistics_of(inputs()))
    assert result.tensor is not None and result.tensor.outliers is None
    assert result.notes[0] == "outlier columns hold weights beyond float16 and were not kept apart"


@pytest.mark.parametrize("settings", [{"bits": 4}, {"zero": "integer"}, {"threshold": 0.5}, {"largest_share": 1.5}])
def test_what_int8_cannot_be_is_refused(settings):
    with pytest.raises(UsageProblem):
        Int8Config(**settings)


def test_groups_are_refused():
    with pytest.raises(UsageProblem, match="one scale per output channel"):
        int8_outlier.quantize_whole("w", weight(), Int8Config(group_size=32), None)
