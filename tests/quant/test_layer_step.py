"""What a method is told of its inputs in the middle of a layer: which drift, and which gap in the residual stream."""

import copy

import pytest
import torch

from dlm_edge.models.transformer import Layer, pattern
from dlm_edge.quant.layer_pass import run_stages
from dlm_edge.quant.layer_step import LayerJob, quantize_with_states
from dlm_edge.quant.recipes import choose_recipe
from dlm_edge.quant.states import Batch
from tests.tiny import FAMILY_NAMES, make_spec

LINEARS = ("q", "k", "v", "o", "gate", "up", "down")
BITS = 2  # so that what was quantized before makes itself felt


@pytest.fixture(params=FAMILY_NAMES)
def spec(request):
    return make_spec(request.param, n_layers=1, hidden_size=32, head_dim=8, intermediate_size=48)


def make_layer(spec):
    torch.manual_seed(0)
    return Layer(spec).requires_grad_(False)


def make_batches(spec):
    """Two, with tokens that count differently and some that do not."""
    positions, ids = torch.arange(16), torch.zeros(3, 16, dtype=torch.long)
    generator = torch.Generator().manual_seed(1)
    weights = [torch.rand(3, 16, generator=generator) * (torch.arange(16) < 13) for _ in range(2)]
    return [Batch(ids, ids, positions, w, pattern(spec.conventions, positions)) for w in weights]


@pytest.mark.parametrize("method", ["decoupleq", "gptaq"])
def test_the_inputs_the_drift_and_the_gap_are_those_of_the_two_models(spec, method):
    """Against a second pass over both layers with the weights that came out."""
    layer, batches = make_layer(spec), make_batches(spec)
    original, generator = copy.deepcopy(layer), torch.Generator().manual_seed(2)
    hidden, full = ([torch.randn(3, 16, 32, generator=generator) for _ in batches] for _ in range(2))
    seen = {}
    recipe = choose_recipe(None, method=method, bits=BITS, group_size=16)
    names, bits = {n: n for n in LINEARS}, dict.fromkeys(LINEARS, BITS)
    job = LayerJob(
        spec, names, bits, recipe, False, lambda linears, inputs: seen.update(dict.fromkeys(linears, inputs))
    )
    quantize_with_states(layer, job, batches, list(hidden), list(full))
    assert not torch.equal(layer.q.weight, original.q.weight)

    weights = torch.cat([b.weights.flatten() for b in batches]).double()
    ours, theirs = list(hidden), list(full)
    stages = zip(run_stages(layer, spec, batches, ours), run_stages(original, spec, batches, theirs), strict=True)
    for (linears, inputs), (_, full_inputs) in stages:
        x, x_full, h, h_full = (
            torch.cat([part.flatten(0, 1) for part in parts]).double()
            for parts in (list(inputs), list(full_inputs), ours, theirs)
        )
        for linear in linears:
            told = seen[linear]
            close(told.second_moment, mean(weights, x, x))
            close(told.drift, mean(weights, x_full - x, x))
            if linear in ("o", "down"):
                close(told.owed, mean(weights, h_full - h, x))
            else:
                assert told.owed is None


def mean(weights, a, b):
    """Of c a b^T over the tokens."""
    return (a * weights[:, None]).T @ b / weights.sum()


def close(found, wanted):
    torch.testing.assert_close(found.double(), wanted, rtol=1e-4, atol=1e-5 * float(wanted.abs().max()))
