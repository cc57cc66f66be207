import numpy as np
import pytest
import torch

from dlm_edge.errors import UsageProblem
from dlm_edge.quant import gptaq, gptq
from dlm_edge.quant.gptaq import GptaqConfig
from dlm_edge.quant.gptq import GptqConfig
from dlm_edge.quant.statistics import InputStatistics
from dlm_edge.quantized import unpack

WIDTH = 128


def streams(drift: float, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs [tokens, in] in the quantized and in the full-precision stream: the latter turned and scaled a little."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(1024, 16, generator=generator) @ torch.randn(16, WIDTH, generator=generator)
    x += 0.3 * torch.randn(x.shape, generator=generator)
    return x, x + drift * x @ torch.randn(WIDTH, WIDTH, generator=generator) / WIDTH**0.5


def statistics_of(x: torch.Tensor, full: torch.Tensor) -> InputStatistics:
    inputs = InputStatistics("w", WIDTH, with_drift=True)
    inputs.add(x, torch.ones(len(x)), full)
    return inputs


def random_weight() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((32, WIDTH)).astype(np.float32)


def lost(weight: np.ndarray, tensor, x: torch.Tensor, full: torch.Tensor) -> float:
    wanted, found = full @ torch.from_numpy(weight).T, x @ torch.from_numpy(gptaq.dequantize(tensor)).T
    return float(((wanted - found) ** 2).sum() / (wanted**2).sum())


def run(weight: np.ndarray, inputs: InputStatistics, **settings):
    return gptaq.quantize("w", weight, GptaqConfig(group_size=32, **settings), inputs).tensor


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("zero", ["symmetric", "integer", "float"])
def test_it_gives_the_full_precision_output_better_than_gptq(bits, zero):
    weight, (x, full) = random_weight(), streams(0.3)
    inputs = statistics_of(x, full)
    plain = gptq.quantize("w", weight, GptqConfig(bits=bits, group_size=32, zero=zero), inputs).tensor
    corrected = [lost(weight, run(weight, inputs, bits=bits, zero=zero, alpha=a), x, full) for a in (0.5, 1.0)]
    assert corrected[1] < corrected[0] < lost(weight, plain, x, full)


def test_without_rounding_the_target_is_the_least_squares_solution():
    weight, (x, full) = random_weight(), streams(0.3)
    inputs = statistics_of(x, full)
    problem = gptq.pose("w", weight, GptaqConfig(damping=1e-6), inputs, [])
    assert problem is not None
    found = gptaq.corrected(problem, inputs, 1.0).weights
    expected = torch.linalg.lstsq(x.double(), (full @ torch.from_numpy(weight).T).double()).solution.T
    torch.testing.assert_close(found.double(), expected, rtol=1e-3, atol=1e-3)


def test_a_gap_in_the_residual_stream_is_made_up_for():
    weight, (x, full) = random_weight(), streams(0.3)
    gap = 0.2 * x @ torch.randn(WIDTH, 32, generator=torch.Generator().manual_seed(2))
    inputs = InputStatistics("w", WIDTH, with_drift=True)
    for part in zip(x.chunk(3), full.chunk(3), gap.chunk(3), strict=True):
        inputs.add(part[0], torch.ones(len(part[0])), part[1], part[2])
    torch.testing.assert_close(inputs.owed, gap.T @ x / len(x), rtol=1e-4, atol=1e-3)
    problem = gptq.pose("w", weight, GptaqConfig(damping=1e-6), inputs, [])
    assert problem is not None
    found = gptaq.corrected(problem, inputs, 1.0).weights
    wanted = (full @ torch.from_numpy(weight).T + gap).double()
    expected = torch.linalg.lstsq(x.double(), wanted).solution.T
    torch.testing.assert_close(found.double(), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("drift", [0.0, 0.3])
def test_without_drift_or_alpha_it_is_gptq(drift):
    weight, (x, full) = random_weight(), streams(drift)
    inputs = statistics_of(x, full)
    plain = gptq.quantize("w", weight, GptqConfig(group_size=32), inputs).tensor
    same = run(weight, inputs, alpha=0.0 if drift else 1.0)
    assert (unpack(same) == unpack(plain)).all() and (same.scales == plain.scales).all()


def test_dead_inputs_keep_code_zero():
    weight, (x, full) = random_weight(), streams(0.3)
    x[:, [3, 70]] = full[:, [3, 70]] = 0
    values = gptaq.dequantize(run(weight, statistics_of(x, full), alpha=1.0))
    assert (values[:, [3, 70]] == 0).all()


@pytest.mark.parametrize("alpha", [-0.1, 1.5])
def test_an_alpha_out_of_range_is_refused(alpha):
    with pytest.raises(UsageProblem) as caught:
        GptaqConfig(alpha=alpha)
    assert caught.value.code == "E-QUANT"


def test_an_indefinite_second_moment_gives_no_tensor_and_the_reason():
    inputs = statistics_of(*streams(0.3))
    inputs.second_moment[3, 5] = inputs.second_moment[5, 3] = 1e6
    result = gptaq.quantize("w", random_weight(), GptaqConfig(group_size=32), inputs)
    assert result.tensor is None and result.notes == [gptq.NOT_POSITIVE]
