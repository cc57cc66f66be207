"""The measured cost of activations in int8 blocks, against a product computed token by token and block by block."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dlm_edge.quant.block_rounding import HARMLESS, SHARE, in_blocks, judge, rounding_error
from dlm_edge.quant.statistics import InputStatistics
from dlm_edge.quantized import LayerRecord, dequantize
from tests.packed_folder import random_tensor


def by_hand(x: np.ndarray, weights: np.ndarray, tensor) -> float:
    w, size = dequantize(tensor).astype(np.float64), tensor.group_size
    order = np.arange(w.shape[1]) if tensor.order is None else tensor.order
    lost = whole = 0.0
    for token, c in zip(x.astype(np.float64), weights, strict=True):
        rest = token.copy()
        if tensor.outliers is not None:
            rest[tensor.outliers.columns] = 0
        rounded = rest.copy()
        for first in range(0, len(order), size):
            block = order[first : first + size]
            step = np.abs(rest[block]).max() / 127
            rounded[block] = np.round(rest[block] / step) * step
        lost += c * ((rounded - rest) @ w.T @ (w @ (rounded - rest)))
        whole += c * (token @ w.T @ (w @ token))
    return lost / whole


@pytest.mark.parametrize("options", [{}, {"reordered": True}, {"outliers": 3}, {"reordered": True, "outliers": 3}])
@pytest.mark.parametrize("zero", ["symmetric", "integer", "float"])
def test_it_is_the_error_of_the_product(zero, options):
    tensor = random_tensor((24, 96), 4, 32, zero, **options)
    generator = torch.Generator().manual_seed(0)
    x, weights = torch.randn(20, 96, generator=generator), torch.rand(20, generator=generator)
    found = rounding_error(x, weights, tensor)
    assert found == pytest.approx(by_hand(x.numpy(), weights.numpy(), tensor), rel=1e-3)
    assert 1e-6 < found < 1e-3


def test_an_outlier_takes_the_steps_of_its_block_only():
    x = torch.randn(8, 64, generator=torch.Generator().manual_seed(1))
    x[:, 5] = 1000.0
    lost = (in_blocks(x, 32) - x).abs().amax(0)
    assert lost[:32].max() > 1.0 and lost[32:].max() < 0.02
    assert torch.equal(in_blocks(torch.zeros(2, 32), 16), torch.zeros(2, 32))


def test_what_is_judged_is_the_share_of_the_weight_s_own_error():
    def verdict(own: float, error: float) -> str:
        record = LayerRecord(name="w", bits=4, group_size=64, method="gptq", error=own)
        return judge(record, error).treatment

    assert [verdict(1e-3, HARMLESS * f) for f in (0.9, 1.1)] == ["none", "float"]
    assert [verdict(0.1, 0.1 * SHARE * f) for f in (0.9, 1.1)] == ["none", "float"]


def test_the_sample_is_spread_over_tokens_that_count():
    inputs, x = InputStatistics("x", 4), torch.arange(40.0).reshape(10, 4)
    weights = torch.tensor([0.0, 1, 1, 1, 1, 1, 1, 0, 1, 1])
    inputs.keep_some(x, weights, 4)
    inputs.keep_some(x, torch.zeros(10), 4)
    assert inputs.sample[0][:, 0].tolist() == [4.0, 12.0, 20.0, 32.0] and inputs.sample[1].tolist() == [1.0] * 4
