"""The pass over one layer: inputs are made when they are read, and both streams end where the layer itself would take them."""

import copy

import pytest
import torch

from dlm_edge.quant.layer_pass import advance, run_stages
from dlm_edge.quant.layer_step import LayerJob, quantize_with_states
from dlm_edge.quant.recipes import choose_recipe
from tests.quant.layer_bench import make_batch, make_hidden, make_layer, run_layer

LINEARS = ("q", "k", "v", "o", "gate", "up", "down")


def two_batches(layer):
    batches = [make_batch(), make_batch(rows=2, length=64)]
    return batches, [make_hidden(layer), make_hidden(layer, 2, 64, seed=2)]


@pytest.mark.parametrize("held", [False, True])
@torch.inference_mode()
def test_reading_inputs_does_not_change_where_the_pass_ends(held):
    layer = make_layer("llada")
    batches, hidden = two_batches(layer)
    alone, read = list(hidden), list(hidden)
    advance(layer, layer.spec, batches, alone)
    widths = {}
    for linears, inputs in run_stages(layer, layer.spec, batches, read):
        once = inputs.hold() if held else list(inputs)
        assert all(torch.equal(a, b) for a, b in zip(once, inputs, strict=True))
        assert all(a is b for a, b in zip(once, inputs, strict=True)) == held
        widths[linears[0]] = [tuple(x.shape) for x in once]
    spec = layer.spec
    assert widths["down"] == [(4, 32, spec.intermediate_size), (2, 64, spec.intermediate_size)]
    assert all(torch.equal(a, b) for a, b in zip(alone, read, strict=True))
    torch.testing.assert_close(alone[0], run_layer(layer, hidden[0]), rtol=1e-5, atol=1e-5)


@torch.inference_mode()
def test_what_is_changed_in_held_inputs_the_linears_read():
    layer = make_layer("llada")
    batches, hidden = two_batches(layer)
    attended = []
    for linears, inputs in run_stages(layer, layer.spec, batches, hidden):
        if linears == ("gate", "up"):
            attended = list(hidden)
        if linears == ("down",):
            inputs.hold()[1].zero_()
    assert not torch.equal(hidden[0], attended[0])
    assert torch.equal(hidden[1], attended[1])


@torch.inference_mode()
def test_zeroed_inputs_are_counted_once_however_often_they_are_read():
    layer = make_layer("llada")
    batches, hidden = two_batches(layer)
    layer.attn_norm.weight[3] = torch.nan
    stages = run_stages(layer, layer.spec, batches, hidden, zero_nonfinite=True)
    _, inputs = next(stages)
    for _ in range(2):
        assert all(torch.isfinite(x).all() and not x[..., 3].any() for x in inputs)
    assert inputs.zeroed == 2 * 4 * 32
    assert next(stages)[1].zeroed == 0


@pytest.mark.parametrize("tuning", [None, {"steps": 1}])
@torch.inference_mode()
def test_the_full_precision_stream_ends_on_the_bits_of_the_original_layer(tuning):
    layer = make_layer("llada")
    with torch.inference_mode(False):
        batches = [make_batch(), make_batch(rows=2, length=64)]
    _, full = two_batches(layer)
    hidden, wanted, original = [x + 0.01 for x in full], list(full), copy.deepcopy(layer)
    advance(original, layer.spec, batches, wanted)
    recipe = choose_recipe(None, method="decoupleq", bits=2, group_size=32, tuning=tuning)
    quantized = list(hidden)
    job = LayerJob(layer.spec, {n: n for n in LINEARS}, dict.fromkeys(LINEARS, 2.0), recipe, False)
    quantize_with_states(layer, job, batches, quantized, full)
    assert all(torch.equal(a, b) for a, b in zip(full, wanted, strict=True))
    advance(layer, layer.spec, batches, hidden)
    # The quantized layer takes the calibration to the same bits: so a resumed job will find it.
    assert all(torch.equal(a, b) for a, b in zip(quantized, hidden, strict=True))
