"""SmoothQuant and the W8A8 default, on layers with planted outliers and on the trained reference model."""

import copy

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from dlm_edge.checkpoint import open_checkpoint
from dlm_edge.evaluation.masked_nll import text_windows
from dlm_edge.models import load_model
from dlm_edge.models.int8_linear import with_int8_activations
from dlm_edge.models.transformer import DiffusionTransformer, Layer
from dlm_edge.quant import int8_outlier, smoothquant
from dlm_edge.quant.int8_outlier import Int8Config
from dlm_edge.quant.layer_pass import run_stages
from dlm_edge.quant.outlier_injection import Injection
from dlm_edge.quant.states import Batch, Row, StateConfig, make_states
from dlm_edge.quant.statistics import InputStatistics
from dlm_edge.quant.treatments import Decision
from tests.quant.layer_bench import inputs_of, make_batch, make_hidden, make_layer, run_layer
from tests.tiny import FAMILY_NAMES

CHANGE = 1e-6  # of the largest output, float32: measured at most 1.4e-7 over the families and 10 seeds
SCALE = 100.0
METHODS = {  # name: what happens to the layer before, and how a weight is rounded
    "plain": (None, int8_outlier.quantize_whole),
    "smoothquant": (smoothquant.prepare, int8_outlier.quantize_whole),
    "int8-outlier": (None, int8_outlier.quantize),
    "w8a8": (smoothquant.prepare_for_split, int8_outlier.quantize),
}


def int8_output_error(layer: Layer, batch: Batch, x: torch.Tensor, linear: str) -> float:
    seen, weight = inputs_of(layer, batch, x)[linear], getattr(layer, linear).weight
    largest = seen.abs().amax(0)
    error = smoothquant.int8_error(seen, torch.ones(len(seen)), weight, largest, None)
    return error / float((seen @ weight.T).square().sum())


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_smoothing_leaves_the_function_and_lowers_the_int8_error(family):
    layer, batch = make_layer(family), make_batch()
    x = make_hidden(layer)
    Injection(scale=SCALE).apply(layer, 0)
    before, original = run_layer(layer, x), copy.deepcopy(layer)
    treatments = smoothquant.prepare(layer, layer.spec, [batch], [x], Int8Config())
    assert (run_layer(layer, x) - before).abs().max() <= CHANGE * before.abs().max()
    for linear in ("q", "up", "down"):
        assert treatments[linear][0].treatment == "smooth"
        assert int8_output_error(layer, batch, x, linear) < 0.02 * int8_output_error(original, batch, x, linear)
    assert (treatments["o"] == [Decision("none", "4 query heads share 2 v heads")]) == (family != "llada")


def test_calm_inputs_are_left_as_they_are():
    layer, batch = make_layer("llada"), make_batch()
    for norm in (layer.attn_norm, layer.mlp_norm):
        norm.weight.fill_(1.0)
    for linear in ("q", "k", "v", "gate", "up"):
        getattr(layer, linear).weight.uniform_(-0.2, 0.2, generator=torch.Generator().manual_seed(0))
    state = {k: v.clone() for k, v in layer.state_dict().items()}
    treatments = smoothquant.prepare(layer, layer.spec, [batch], [make_hidden(layer)], Int8Config())
    for linear, producer in {"q": "attn_norm", "gate": "mlp_norm"}.items():
        assert [d.treatment for d in treatments[linear]] == ["none"]
        assert torch.equal(getattr(layer, producer).weight, state[f"{producer}.weight"])


@pytest.mark.parametrize("family", ["sdar", "dream"])
def test_heads_are_rotated_where_shared_v_heads_make_outliers(family):
    layer, batch = make_layer(family), make_batch()
    layer.v.weight[[3, 20]] *= 5
    x = make_hidden(layer)
    before, error = run_layer(layer, x), int8_output_error(layer, batch, x, "o")
    treatments = smoothquant.prepare_for_split(layer, layer.spec, [batch], [x], Int8Config())
    assert treatments["o"][0] == Decision("none", "4 query heads share 2 v heads")
    assert str(treatments["o"][1]).startswith("rotate (heads between v and o, int8 error -")
    assert (run_layer(layer, x) - before).abs().max() <= CHANGE * before.abs().max()
    assert int8_output_error(layer, batch, x, "o") < 0.8 * error


def test_sampled_tokens_carry_weight_and_are_spread():
    ids = torch.zeros(2, 3000, dtype=torch.int64)
    weights = torch.ones(2, 3000)
    weights[0, ::2] = 0
    batch = Batch(ids, ids, torch.arange(3000), weights, lambda q, k, v: v)
    x = torch.arange(6000.0).view(2, 3000, 1)
    found, token_weights = smoothquant.sample_tokens([batch, batch], [x, x])
    assert len(found) == len(token_weights) and smoothquant.JUDGED_TOKENS <= len(found) <= 1300
    assert (token_weights == 1).all() and (found[found < 3000] % 2 == 1).all()
    assert float(found.max()) > 5900 and float(found.min()) < 100


# On the reference model: 3 windows of held-out text for calibration, 3 others for the loss.


@pytest.fixture(scope="module")
def reference() -> tuple[DiffusionTransformer, list[Batch], list[Batch]]:
    source, model = open_checkpoint("reference"), load_model("reference")
    tokenizer = Tokenizer.from_file(str(source.path / "tokenizer.json"))
    windows = text_windows(tokenizer, 6, 256)[0].tolist()
    calibration, held_out = ([Row(tuple(w), 0, 256) for w in windows[i::2]] for i in (0, 1))
    conventions = model.spec.conventions
    return (
        model,
        make_states(calibration, conventions, StateConfig(), 0),
        make_states(held_out, conventions, StateConfig(), 1),
    )


@pytest.fixture(scope="module")
def injected(reference) -> DiffusionTransformer:
    model = copy.deepcopy(reference[0])
    for number, layer in enumerate(model.layers):
        Injection(scale=SCALE).apply(layer, number)
    return model


@torch.inference_mode()
def quantized(model: DiffusionTransformer, batches: list[Batch], method: str) -> DiffusionTransformer:
    """Every linear layer in int8 with int8 activations, each on inputs that passed the ones before."""
    (prepare, rounded), config, model = METHODS[method], Int8Config(), copy.deepcopy(model)
    hidden = [model.embed(batch.ids) for batch in batches]
    for layer in model.layers:
        if prepare is not None:
            prepare(layer, model.spec, batches, hidden, config)
        for linears, inputs in run_stages(layer, model.spec, batches, hidden):
            statistics = InputStatistics(linears[0], inputs[0].shape[-1])
            for batch, x in zip(batches, inputs, strict=True):
                statistics.add(x.flatten(0, 1), batch.weights.flatten())
            for linear in linears:
                tensor = rounded(linear, getattr(layer, linear).weight.numpy(), config, statistics).tensor
                getattr(layer, linear).weight.copy_(torch.from_numpy(int8_outlier.dequantize(tensor)))
                columns = () if tensor.outliers is None else tensor.outliers.columns
                setattr(layer, linear, with_int8_activations(getattr(layer, linear), columns))
    return model


@torch.inference_mode()
def masked_nll(model: DiffusionTransformer, batches: list[Batch]) -> float:
    losses = []
    for batch in batches:
        hidden = batch.ids != batch.originals
        out = model.run_layers(model.embed(batch.ids), batch.positions, batch.attend)[hidden]
        log_probabilities = model.head(model.final_norm(out)).log_softmax(-1)
        losses.append(-log_probabilities.gather(1, batch.originals[hidden][:, None])[:, 0])
    return float(torch.cat(losses).double().mean())


@pytest.fixture(scope="module")
def uninjected_nll(reference) -> float:
    model, calibration, held_out = reference
    return masked_nll(quantized(model, calibration, "w8a8"), held_out)


def test_injection_leaves_full_precision_as_it_was(reference, injected):
    model, _, held_out = reference
    assert masked_nll(injected, held_out) == pytest.approx(masked_nll(model, held_out), rel=1e-5)


def test_plain_rounding_breaks_on_injected_outliers(reference, injected, uninjected_nll):
    _, calibration, held_out = reference
    assert masked_nll(quantized(injected, calibration, "plain"), held_out) > 1.02 * uninjected_nll


@pytest.mark.parametrize("method", ["smoothquant", "int8-outlier", "w8a8"])
def test_treated_rounding_survives_injected_outliers(method, reference, injected, uninjected_nll):
    _, calibration, held_out = reference
    found = masked_nll(quantized(injected, calibration, method), held_out)
    assert np.isfinite(found) and abs(found / uninjected_nll - 1) < 0.01


def test_w8a8_costs_next_to_nothing_without_outliers(reference, uninjected_nll):
    model, _, held_out = reference
    assert uninjected_nll == pytest.approx(masked_nll(model, held_out), rel=2e-3)
