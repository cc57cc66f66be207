"""AWQ: scales that leave the function, and clipping that never makes a group worse."""

import copy
import itertools

import numpy as np
import pytest
import torch

from dlm_edge.errors import UsageProblem
from dlm_edge.quant import awq, gptq, rtn
from dlm_edge.quant.awq import AwqConfig
from dlm_edge.quant.gptq import GptqConfig
from dlm_edge.quant.outlier_injection import Injection
from dlm_edge.quant.statistics import output_error
from dlm_edge.quant.treatments import Decision
from tests.quant.layer_bench import inputs_of, make_batch, make_hidden, make_layer, run_layer, statistics_of
from tests.tiny import FAMILY_NAMES

GRIDS = list(itertools.product([2, 3, 4], ["symmetric", "integer", "float"]))
CHANGE = 2e-6  # of the largest output, float32: measured at most 6.1e-7 over the families and 10 seeds


def salient_inputs(tokens: int = 512, channels: int = 128) -> torch.Tensor:
    """A few channels much larger than the rest, all correlated."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(tokens, channels, generator=generator) + 0.5 * torch.randn(tokens, 1, generator=generator)
    x[:, :4] *= 12
    return x


def weight(rows: int = 48, channels: int = 128) -> np.ndarray:
    return np.random.default_rng(1).standard_t(4, (rows, channels)).astype(np.float32)


def error(w: np.ndarray, tensor, x: torch.Tensor) -> float:
    hessian = statistics_of(x).hessian()
    return output_error(hessian, torch.from_numpy(w), torch.from_numpy(awq.dequantize(tensor)))


@pytest.mark.parametrize(("bits", "zero"), GRIDS)
def test_clipping_loses_less_than_the_whole_range(bits, zero):
    """Judged by the groups' own blocks of the second moment, which is the whole of it where groups are uncorrelated."""
    x, w = torch.randn(4096, 64, generator=torch.Generator().manual_seed(0)), weight(48, 64)
    clipped = awq.quantize("w", w, AwqConfig(bits=bits, group_size=64, zero=zero), statistics_of(x)).tensor
    whole = rtn.quantize("w", w, rtn.RtnConfig(bits=bits, group_size=64, zero=zero, search=None))
    assert error(w, clipped, x) < error(w, whole, x)


@pytest.mark.parametrize("zero", ["symmetric", "integer", "float"])
def test_no_group_gets_worse(zero):
    x, w = salient_inputs(), weight()
    statistics, config = statistics_of(x), AwqConfig(bits=3, group_size=32, zero=zero)
    blocks = awq.diagonal_blocks(statistics.hessian().float(), 32)
    groups = torch.from_numpy(w).reshape(len(w), -1, 32)
    whole = awq.choose_grid(groups, 3, zero, None)
    clipped = awq.clipped_grid(groups, blocks, config)
    before, after = awq.output_errors(groups, whole, blocks), awq.output_errors(groups, clipped, blocks)
    assert (after <= before).all() and (after < before).any()


def test_ends_are_clipped_separately():
    """One far value at the upper end only: the lower end has to stay where it is."""
    w = np.tile(np.linspace(-1, 1, 64, dtype=np.float32), (8, 1))
    w[:, 63] = 1.9
    x = torch.randn(2048, 64, generator=torch.Generator().manual_seed(0))
    x[:, 63] *= 0.01  # and nobody reads it
    config = AwqConfig(bits=2, group_size=64, zero="float")
    grid = awq.clipped_grid(
        torch.from_numpy(w)[:, None], awq.diagonal_blocks(statistics_of(x).hessian().float(), 64), config
    )
    low, high = -grid.zeros * grid.scales, (3 - grid.zeros) * grid.scales
    assert (high < 1.3).all() and (low < -0.6).all()


def test_diagonal_blocks_are_those_of_the_groups():
    h = torch.arange(36.0).view(6, 6)
    assert torch.equal(awq.diagonal_blocks(h, 3), torch.stack([h[:3, :3], h[3:, 3:]]))


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_scaling_leaves_the_function_and_lowers_the_error(family):
    layer, batch = make_layer(family), make_batch()
    layer.mlp_norm.weight[:3] *= 20
    x, config = make_hidden(layer), AwqConfig(bits=3, group_size=32)
    before, original = run_layer(layer, x), copy.deepcopy(layer)
    treatments = awq.prepare(layer, layer.spec, [batch], [x], config)
    assert (run_layer(layer, x) - before).abs().max() <= CHANGE * before.abs().max()
    assert str(treatments["gate"][0]).startswith("scale (output error -") and treatments["gate"] == treatments["up"]
    assert set(treatments) == {"q", "k", "v", "o", "gate", "up", "down"}
    shared = Decision("none", "4 query heads share 2 v heads")
    assert (treatments["o"] == [shared]) == (family != "llada")
    errors = []
    for candidate in (original, layer):
        inputs = inputs_of(candidate, batch, x)
        errors.append(
            sum(error(getattr(candidate, n).weight.numpy(), nearest(candidate, n), inputs[n]) for n in ("gate", "up"))
        )
    assert errors[1] < 0.9 * errors[0]


def nearest(layer, linear: str):
    config = rtn.RtnConfig(bits=3, group_size=32, zero="integer", search=None)
    return rtn.quantize(linear, getattr(layer, linear).weight.numpy(), config)


def test_normalised_queries_are_scaled_only_if_attention_gains(monkeypatch):
    layer, batch = make_layer("sdar"), make_batch()
    layer.attn_norm.weight[:3] *= 20
    x, gain = make_hidden(layer), layer.attn_norm.weight.clone()
    measured = iter([1.0, 1.02])
    monkeypatch.setattr(awq, "attention_error", lambda *arguments: next(measured))
    treatments = awq.prepare(layer, layer.spec, [batch], [x], AwqConfig(bits=3, group_size=32))
    assert treatments["q"] == [Decision("none", "scaled: attention error +2.0%, q and k are normalised")]
    assert torch.equal(layer.attn_norm.weight, gain)


def test_attention_error_leaves_the_layer_as_it_was():
    layer, batch = make_layer("sdar"), make_batch()
    x, state = make_hidden(layer), {k: v.clone() for k, v in layer.state_dict().items()}
    found = awq.attention_error(layer, layer.spec, [batch], [x], torch.ones(64), AwqConfig(bits=3, group_size=32))
    assert found > 0 and all(torch.equal(v, state[k]) for k, v in layer.state_dict().items())


def test_scales_for_gptq_leave_the_function_too():
    layer, batch, config = make_layer("llada"), make_batch(), GptqConfig(bits=3, group_size=32, zero="integer")
    layer.mlp_norm.weight[:3] *= 20
    x = make_hidden(layer)
    before = run_layer(layer, x)
    treatments = awq.prepare_for_gptq(layer, layer.spec, [batch], [x], config)
    assert treatments["up"][0].treatment == "scale"
    assert (run_layer(layer, x) - before).abs().max() <= CHANGE * before.abs().max()
    seen, weight = inputs_of(layer, batch, x)["up"], layer.up.weight.numpy()
    tensor = gptq.quantize("up", weight, config, statistics_of(seen)).tensor
    assert tensor is not None and error(weight, tensor, seen) < error(weight, nearest(layer, "up"), seen)


@pytest.mark.parametrize("linear", ["q", "up", "down"])
def test_injected_outliers_cost_nothing_after_scaling(linear):
    """Their columns are a hundred times smaller than the rest of their group, and vanish in its step unless scaled."""
    batch, config = make_batch(), GptqConfig(bits=4, group_size=32)
    errors = {}
    for case in ("calm", "injected", "scaled"):
        layer = make_layer("llada")
        x = make_hidden(layer)
        if case != "calm":
            Injection(scale=100.0).apply(layer, 0)
        if case == "scaled":
            awq.prepare_for_gptq(layer, layer.spec, [batch], [x], config)
        seen, weight = inputs_of(layer, batch, x)[linear], getattr(layer, linear).weight.numpy()
        errors[case] = error(weight, gptq.quantize(linear, weight, config, statistics_of(seen)).tensor, seen)
    assert errors["injected"] > 2 * errors["calm"] and errors["scaled"] < 1.25 * errors["calm"]


def test_what_gptq_cannot_correct_is_the_conditional_variance():
    """With the later columns free, a column costs its variance given them: H's diagonal without correlations, the last
    column's own second moment always, and never more than the diagonal."""
    config = GptqConfig(bits=3, group_size=32, damping=1e-9)
    apart = statistics_of(torch.eye(32) * torch.arange(1.0, 33.0)[:, None])
    torch.testing.assert_close(awq.uncorrected(apart, config), apart.hessian().diagonal().float(), rtol=1e-4, atol=0)
    together = statistics_of(salient_inputs())
    costs, diagonal = awq.uncorrected(together, config), together.hessian().diagonal().float()
    last = awq.column_order(together.hessian().diagonal(), config)[-1]
    assert (costs <= diagonal * (1 + 1e-4)).all() and (costs < 0.9 * diagonal).any()
    torch.testing.assert_close(costs[last], diagonal[last], rtol=1e-3, atol=0)


def test_results_do_not_depend_on_how_tokens_are_batched():
    x, w, config = salient_inputs(), weight(), AwqConfig(bits=3, group_size=32)
    pieces = statistics_of(x[:100])
    pieces.add(x[100:], torch.ones(len(x) - 100))
    one, two = (awq.quantize("w", w, config, s).tensor for s in (statistics_of(x), pieces))
    assert one is not None and two is not None
    assert (one.scales == two.scales).mean() > 0.99  # ties aside


def test_groups_have_to_fit():
    with pytest.raises(UsageProblem, match="not a multiple"):
        awq.quantize("w", weight(8, 96), AwqConfig(group_size=64), statistics_of(torch.ones(4, 96)))


def test_zeros_stay_zeros():
    w = weight()
    w[:, :32] = 0
    tensor = awq.quantize("w", w, AwqConfig(bits=2, group_size=32), statistics_of(salient_inputs())).tensor
    assert (awq.dequantize(tensor)[:, :32] == 0).all()
