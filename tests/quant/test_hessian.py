import pytest
import torch

from dlm_edge.errors import InputFileError
from dlm_edge.quant.hessian import Hessian, inverse_factor, output_error


def tokens(n: int = 40, width: int = 12) -> torch.Tensor:
    return torch.randn(n, width, generator=torch.Generator().manual_seed(0))


def mean_of(x: torch.Tensor, weights: torch.Tensor, cuts: int = 1) -> torch.Tensor:
    hessian = Hessian("w", x.shape[1])
    for part, w in zip(x.chunk(cuts), weights.chunk(cuts), strict=True):
        hessian.add(part, w)
    return hessian.mean()


def test_a_weight_of_n_counts_a_token_n_times():
    x, weights = tokens(), torch.randint(0, 4, (40,), generator=torch.Generator().manual_seed(1))
    repeated = x.repeat_interleave(weights, 0)
    expected = mean_of(repeated, torch.ones(len(repeated)))
    torch.testing.assert_close(mean_of(x, weights.float()), expected, rtol=1e-5, atol=1e-6)  # products are float32


def test_batches_add_up_to_the_whole():
    x, weights = tokens(), torch.rand(40, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(mean_of(x, weights, cuts=7), mean_of(x, weights), rtol=1e-5, atol=1e-6)


def test_pads_weigh_nothing_whatever_they_hold():
    x, weights = tokens(), torch.ones(40)
    weights[30:] = 0
    x[30:] = float("nan")
    torch.testing.assert_close(mean_of(x, weights), mean_of(x[:30], torch.ones(30)))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_nan_and_infinity_name_the_tensor(bad):
    x = tokens()
    x[5, 3] = bad
    with pytest.raises(InputFileError, match="model.q.weight: 1 of 480 input values") as caught:
        Hessian("model.q.weight", 12).add(x, torch.ones(40))
    assert caught.value.code == "E-NAN"


def test_the_output_error_is_that_of_the_outputs():
    x, weight, changed = tokens(), torch.randn(5, 12), torch.randn(5, 12)
    expected = ((x @ (weight - changed).T) ** 2).sum() / ((x @ weight.T) ** 2).sum()
    assert output_error(mean_of(x, torch.ones(40)), weight, changed) == pytest.approx(expected.item(), rel=1e-5)


def test_the_factor_is_that_of_the_damped_inverse():
    hessian = mean_of(tokens(), torch.ones(40))
    factor = inverse_factor(hessian, 0.01)
    assert factor is not None and factor.damping == 0.01
    damped = hessian + 0.01 * hessian.diagonal().mean() * torch.eye(12)
    assert (factor.upper.tril(-1) == 0).all()
    product = (factor.upper.T @ factor.upper).double()
    torch.testing.assert_close(product @ damped, torch.eye(12, dtype=torch.float64), rtol=1e-4, atol=1e-4)


def test_damping_grows_until_a_singular_matrix_can_be_factored():
    x = tokens(n=3)  # rank 3 of 12
    factor = inverse_factor(mean_of(x, torch.ones(3)), 0.0)
    assert factor is not None and 0 < factor.damping <= 0.02


def test_a_matrix_with_a_large_negative_direction_cannot_be_factored():
    hessian = mean_of(tokens(), torch.ones(40))
    hessian[0, 0] = -100 * hessian.diagonal().abs().max()
    assert inverse_factor(hessian, 0.01) is None
