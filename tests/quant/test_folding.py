"""Scales that are folded into a producer leave the layer's function as it was."""

import pytest
import torch

from dlm_edge.models.transformer import Layer
from dlm_edge.quant.folding import PRODUCERS, fold, refusal, scale_groups, usable_scales
from dlm_edge.quant.treatments import Decision
from tests.quant.layer_bench import make_batch, make_hidden, make_layer, run_layer
from tests.tiny import FAMILY_NAMES, make_spec

GROUPS = list(PRODUCERS)
# Random scales between 0.1 and 10, float32: at most 1.3e-7 of the largest output over families, groups and 10 seeds.
CHANGE = 1e-6


def random_scales(layer: Layer, linears: tuple[str, ...]) -> torch.Tensor:
    width = getattr(layer, linears[0]).in_features
    return 10 ** (2 * torch.rand(width, generator=torch.Generator().manual_seed(2)) - 1)


@pytest.mark.parametrize(
    ("family", "linears"), [(f, g) for f in FAMILY_NAMES for g in GROUPS if refusal(g, make_spec(f)) is None]
)
def test_the_function_stays(family, linears):
    layer = make_layer(family)
    x, weight = make_hidden(layer), getattr(layer, linears[0]).weight.clone()
    before = run_layer(layer, x)
    fold(layer, linears, random_scales(layer, linears))
    assert not torch.equal(getattr(layer, linears[0]).weight, weight)
    assert (run_layer(layer, x) - before).abs().max() <= CHANGE * before.abs().max()


@pytest.mark.parametrize("linears", GROUPS, ids="".join)
def test_powers_of_two_keep_every_bit(linears):
    layer = make_layer("llada")
    x = make_hidden(layer)
    before = run_layer(layer, x)
    fold(layer, linears, random_scales(layer, linears).log2().round().exp2())
    assert torch.equal(run_layer(layer, x), before)


def test_the_bias_of_a_producer_is_divided_too():
    """Separate heads with biases: no family has both, so only this test would notice."""
    layer = make_layer("dream", n_kv_heads=4)
    x = make_hidden(layer)
    before = run_layer(layer, x)
    fold(layer, ("o",), random_scales(layer, ("o",)))
    assert (run_layer(layer, x) - before).abs().max() <= CHANGE * before.abs().max()


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_shared_v_heads_are_refused_with_the_reason(family):
    spec = make_spec(family)
    found = refusal(("o",), spec)
    if family == "llada":
        assert found is None
    else:
        assert found == "4 query heads share 2 v heads"
    assert all(refusal(linears, spec) is None for linears in GROUPS if linears != ("o",))


def test_groups_are_shown_in_order_with_the_inputs_that_the_folded_layer_has():
    layer, batch, seen = make_layer("llada"), make_batch(), {}

    def choose(layer, linears, batches, inputs):
        seen[linears] = inputs[0].clone()
        return random_scales(layer, linears), Decision("scale", "as asked")

    x = make_hidden(layer)
    before, hidden = run_layer(layer, x), [x]
    treatments = scale_groups(layer, layer.spec, [batch], hidden, choose)
    assert list(seen) == GROUPS and hidden[0] is x
    assert treatments == {linear: [Decision("scale", "as asked")] for linears in GROUPS for linear in linears}
    assert (run_layer(layer, x) - before).abs().max() <= CHANGE * before.abs().max()
    # The input of q, k, v is shown before its scale, that of everything else after the scales so far.
    folded = layer.attn_norm(x) * random_scales(layer, ("q",))
    torch.testing.assert_close(folded, seen["q", "k", "v"], rtol=1e-5, atol=1e-5)


def test_usable_scales_are_positive_finite_and_balanced():
    scales = usable_scales(torch.tensor([0.0, 4.0, float("nan"), float("inf"), 1.0]))
    assert torch.isfinite(scales).all() and (scales > 0).all()
    assert float(scales.max() * scales.min()) == pytest.approx(1.0)
