import numpy as np
import pytest
import torch

from dlm_edge.quant import decoupleq, gptq
from dlm_edge.quant.decoupleq import DecoupleqConfig
from dlm_edge.quant.gptq import GptqConfig
from dlm_edge.quant.statistics import InputStatistics, output_error
from dlm_edge.quantized import unpack

KINDS = [(bits, zero) for bits in (2, 3, 4) for zero in ("symmetric", "integer", "float")]
WIDTH = 128


def random_weight(rows: int = 32) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((rows, WIDTH)).astype(np.float32)


def random_inputs(*, dead: tuple[int, ...] = (), drift: float | None = None) -> InputStatistics:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1024, 16, generator=generator) @ torch.randn(16, WIDTH, generator=generator)
    x += 0.3 * torch.randn(x.shape, generator=generator)
    x[:, list(dead)] = 0
    inputs = InputStatistics("w", WIDTH, with_drift=drift is not None)
    inputs.add(x, torch.ones(len(x)), None if drift is None else x * (1 + drift))
    return inputs


def run(weight: np.ndarray, inputs: InputStatistics, **settings):
    return decoupleq.quantize("w", weight, DecoupleqConfig(group_size=32, **settings), inputs).tensor


def error(weight: np.ndarray, tensor, inputs: InputStatistics) -> float:
    return output_error(inputs.hessian(), torch.from_numpy(weight), torch.from_numpy(decoupleq.dequantize(tensor)))


@pytest.mark.parametrize(("bits", "zero"), KINDS)
def test_it_loses_much_less_than_gptq(bits, zero):
    weight, inputs = random_weight(), random_inputs()
    plain = gptq.quantize("w", weight, GptqConfig(bits=bits, group_size=32, zero=zero), inputs).tensor
    tensor = run(weight, inputs, bits=bits, zero=zero)
    assert tensor.zero_kind == zero and tensor.bits == bits
    assert error(weight, tensor, inputs) < 0.75 * error(weight, plain, inputs)


@pytest.mark.parametrize(("bits", "zero"), KINDS)
def test_more_sweeps_never_lose_more(bits, zero):
    """In the damped error, which is what is minimised."""
    weight, inputs = random_weight(), random_inputs()
    inputs.second_moment.diagonal().add_(0.05 * inputs.second_moment.diagonal().mean())
    settings = {"bits": bits, "zero": zero, "damping": 1e-6}
    errors = [error(weight, run(weight, inputs, sweeps=n, **settings), inputs) for n in range(5)]
    assert all(b <= a * (1 + 1e-5) for a, b in zip(errors, errors[1:], strict=False))  # 1e-5: float32 sums
    assert errors[4] < errors[1] < errors[0]


def test_the_fitted_scale_and_zero_are_those_of_least_squares():
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(200, 32, generator=generator, dtype=torch.float64)
    target, codes = torch.randn(32, 1, generator=generator), torch.randint(0, 4, (32, 1), generator=generator).float()
    group = decoupleq.Group(codes, torch.full((1,), 0.7), torch.full((1,), 1.5))
    fitted = decoupleq.fitted(group, (x.T @ x).float(), target, DecoupleqConfig())
    design = torch.cat([x @ codes.double(), x.sum(1, keepdim=True)], 1)
    scale, offset = torch.linalg.lstsq(design, x @ target.double()).solution[:, 0].tolist()
    # float16 zeros and scales: 2^-11 and 2^-10 of themselves
    assert fitted.scale.item() == pytest.approx(scale, rel=2**-10)
    assert -fitted.scale.item() * fitted.zero.item() == pytest.approx(offset, rel=2**-9)


@pytest.mark.parametrize(("bits", "zero"), KINDS)
def test_scales_and_zeros_are_those_that_can_be_stored(bits, zero):
    tensor = run(random_weight(), random_inputs(), bits=bits, zero=zero)
    assert (tensor.scales.astype(np.float16).astype(np.float32) == tensor.scales).all()
    assert unpack(tensor).max() < 2**bits
    if zero == "float":
        assert (tensor.zeros.astype(np.float16).astype(np.float32) == tensor.zeros).all()


@pytest.mark.parametrize(("bits", "zero"), KINDS)
def test_zero_groups_and_dead_inputs_stay_zero(bits, zero):
    weight = random_weight()
    weight[:, 32:64] = 0
    weight[5] = 0
    values = decoupleq.dequantize(run(weight, random_inputs(dead=(3, 100)), bits=bits, zero=zero))
    assert np.isfinite(values).all()
    assert (values[5] == 0).all() and (values[:, 32:64] == 0).all()
    if zero != "float":  # a zero that lies between codes cannot give 0, and a dead input does not ask for it
        assert (values[:, [3, 100]] == 0).all()


def test_a_drift_is_used_with_alpha_only():
    weight, inputs = random_weight(), random_inputs(drift=0.25)
    ignored, used = run(weight, inputs, alpha=0.0), run(weight, inputs, alpha=1.0)
    assert (unpack(ignored) == unpack(run(weight, random_inputs()))).all()
    assert error(1.25 * weight, used, inputs) < 0.5 * error(1.25 * weight, ignored, inputs)


def test_an_indefinite_second_moment_gives_no_tensor_and_the_reason():
    inputs = random_inputs()
    inputs.second_moment[3, 5] = inputs.second_moment[5, 3] = 1e6
    result = decoupleq.quantize("w", random_weight(), DecoupleqConfig(group_size=32), inputs)
    assert result.tensor is None and result.notes == [gptq.NOT_POSITIVE]
