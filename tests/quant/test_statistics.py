import pytest
import torch

from dlm_edge.errors import InputFileError
from dlm_edge.quant import statistics
from dlm_edge.quant.statistics import InputStatistics, inverse_factor, output_error


def tokens(n: int = 40, width: int = 12) -> torch.Tensor:
    return torch.randn(n, width, generator=torch.Generator().manual_seed(0))


def collected(x: torch.Tensor, weights: torch.Tensor, cuts: int = 1, full=None) -> InputStatistics:
    inputs = InputStatistics("w", x.shape[1], with_drift=full is not None)
    fulls = [None] * cuts if full is None else full.chunk(cuts)
    for part, w, f in zip(x.chunk(cuts), weights.chunk(cuts), fulls, strict=True):
        inputs.add(part, w, f)
    return inputs


def mean_of(x: torch.Tensor, weights: torch.Tensor, cuts: int = 1) -> torch.Tensor:
    return collected(x, weights, cuts).hessian()


def test_a_weight_of_n_counts_a_token_n_times():
    x, weights = tokens(), torch.randint(0, 4, (40,), generator=torch.Generator().manual_seed(1))
    repeated = x.repeat_interleave(weights, 0)
    expected = mean_of(repeated, torch.ones(len(repeated)))
    torch.testing.assert_close(mean_of(x, weights.float()), expected, rtol=1e-5, atol=1e-6)  # products are float32


def test_batches_add_up_to_the_whole():
    x, weights = tokens(), torch.rand(40, generator=torch.Generator().manual_seed(2))
    full = x + tokens(40, 12).flip(0)
    parts, whole = collected(x, weights, 7, full), collected(x, weights, 1, full)
    torch.testing.assert_close(parts.hessian(), whole.hessian(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(parts.drift, whole.drift, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(parts.absolute_mean(), whole.absolute_mean())
    assert (parts.absolute_max == whole.absolute_max).all() and parts.tokens == whole.tokens == 40


@pytest.mark.parametrize("width", [12, 300])
def test_the_second_moment_is_the_weighted_mean_of_products(monkeypatch, width):
    monkeypatch.setattr(statistics, "PANEL", 64)
    x, weights = tokens(width=width), torch.rand(40, generator=torch.Generator().manual_seed(2))
    found = mean_of(x, weights, cuts=3)
    expected = (x * weights[:, None]).double().T @ x.double() / weights.double().sum()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert (found == found.T).all()


def test_the_drift_is_that_of_the_inputs():
    x, full, weights = tokens(), tokens().flip(0), torch.rand(40, generator=torch.Generator().manual_seed(2))
    expected = ((full - x) * weights[:, None]).T @ x / weights.sum()
    torch.testing.assert_close(collected(x, weights, 4, full).drift, expected, rtol=1e-5, atol=1e-6)


def test_pads_weigh_nothing_whatever_they_hold():
    x, weights = tokens(), torch.ones(40)
    weights[30:] = 0
    x[30:] = float("nan")
    torch.testing.assert_close(mean_of(x, weights), mean_of(x[:30], torch.ones(30)))
    assert (mean_of(x, torch.zeros(40)) == 0).all()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_nan_and_infinity_name_the_tensor(bad):
    x = tokens()
    x[5, 3] = bad
    with pytest.raises(InputFileError, match="model.q.weight: 1 of 480 input values") as caught:
        InputStatistics("model.q.weight", 12).add(x, torch.ones(40))
    assert caught.value.code == "E-NAN"


def test_the_output_error_is_that_of_the_outputs():
    x, weight, changed = tokens(), torch.randn(5, 12), torch.randn(5, 12)
    expected = ((x @ (weight - changed).T) ** 2).sum() / ((x @ weight.T) ** 2).sum()
    assert output_error(mean_of(x, torch.ones(40)), weight, changed) == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize(("width", "block"), [(12, 512), (100, 16), (96, 16)])
def test_the_factor_is_that_of_the_damped_inverse(monkeypatch, width, block):
    monkeypatch.setattr(statistics, "BLOCK", block)
    hessian = mean_of(tokens(200, width), torch.ones(200))
    before, order = hessian.clone(), torch.randperm(width, generator=torch.Generator().manual_seed(5))
    factor = inverse_factor(hessian, 0.01, order)
    assert factor is not None and factor.damping == 0.01 and factor.floor == 0
    damped = (hessian + 0.01 * hessian.diagonal().mean() * torch.eye(width))[order][:, order]
    assert (factor.upper.tril(-1) == 0).all() and (hessian == before).all()
    product = (factor.upper.T @ factor.upper).double()
    torch.testing.assert_close(product @ damped, torch.eye(width, dtype=torch.float64), rtol=1e-4, atol=1e-4)


def test_damping_grows_until_a_singular_matrix_can_be_factored():
    x = tokens(n=3)  # rank 3 of 12
    factor = inverse_factor(mean_of(x, torch.ones(3)), 0.0)
    assert factor is not None and 0 < factor.damping <= 0.02


def test_when_no_damping_is_enough_a_floor_under_the_diagonal_is_tried():
    """Not a second moment, but what rounding errors may leave of one: a large entry with tiny neighbours."""
    hessian = torch.eye(12, dtype=torch.float64) * 1e-3
    hessian[0, 0] = 1.0
    hessian[1, 2] = hessian[2, 1] = 0.15  # above what a damping of 1 * mean(diag) = 0.084 puts on the diagonal
    factor = inverse_factor(hessian, 0.01)
    assert factor is None  # the highest floor is 0.1: below 0.15
    hessian[1, 2] = hessian[2, 1] = 0.095
    factor = inverse_factor(hessian, 0.01)
    assert factor is not None and factor.damping > 0.5 and factor.floor == pytest.approx(0.1)


def test_matrices_that_are_no_second_moments_cannot_be_factored():
    hessian = mean_of(tokens(), torch.ones(40))
    negative, wild, missing = hessian.clone(), hessian.clone(), hessian.clone()
    negative[0, 0] = -1e-9
    wild[2, 3] = wild[3, 2] = 100 * hessian.diagonal().max()
    missing[4, 4] = float("nan")
    assert [inverse_factor(h, 0.01) for h in (negative, wild, missing)] == [None, None, None]
