"""The measuring instruments of benchmarks/quality against the definitions they batch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from benchmarks.quality import decisions, scoring, states
from benchmarks.quality.denoising import decode
from benchmarks.quality.peer_files import visible
from benchmarks.quality.plain_rounding import plain_rtn
from benchmarks.quality.results import Results
from benchmarks.quality.settings import all_settings
from dlm_edge.checkpoint import open_checkpoint
from dlm_edge.errors import InputFileError
from dlm_edge.models import load_model, plain_loop
from dlm_edge.models.transformer import DiffusionTransformer, dense_attention
from dlm_edge.quant.calibration import read_tokenizer

MODELS = ("reference", "reference-full")


@pytest.fixture(scope="module", params=MODELS)
def model(request: pytest.FixtureRequest) -> DiffusionTransformer:
    return load_model(request.param)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return read_tokenizer(open_checkpoint("reference"))


def damaged(model: DiffusionTransformer) -> DiffusionTransformer:
    other = load_model("reference" if model.spec.family == "sdar" else "reference-full")
    for layer in other.layers:
        layer.up.weight = torch.nn.Parameter(plain_rtn(layer.up.weight.data, 2, 32), requires_grad=False)
    return other


def test_batched_decoding_equals_the_plain_loop(model: DiffusionTransformer, tokenizer: Tokenizer) -> None:
    prompts, gen_lens = decisions.prompts_of(tokenizer, states.short_samples(1))
    canvases = decode(model, prompts, gen_lens)
    for i, (prompt, gen_len) in enumerate(zip(prompts, gen_lens, strict=True)):
        assert canvases.answer(i) == plain_loop.generate(model, prompt, gen_len=gen_len, threshold=0.9)


def test_a_model_does_not_flip_against_itself_and_a_damaged_one_does(
    model: DiffusionTransformer, tokenizer: Tokenizer
) -> None:
    recording = decisions.record(model, tokenizer, states.short_samples(1))
    flips, n_states = decisions.count_flips(model, recording)
    assert flips.sum() == 0 and (n_states > 0).all()
    assert decisions.count_flips(damaged(model), recording)[0].sum() > 0


def test_scores_of_the_model_itself_are_zero_and_of_a_damaged_one_are_not(
    model: DiffusionTransformer, tokenizer: Tokenizer
) -> None:
    rows = states.evaluation_rows(tokenizer, model, windows=2, samples=1)["text"]
    hidden = states.hidden_tokens(model, rows)
    own, other = scoring.score(model, hidden), scoring.score(damaged(model), hidden)
    assert np.abs(own["increase"]).max() < 1e-6 and own["tokens"].sum() == sum(len(h.row) for h in hidden)
    assert scoring.summary(other)["divergence"] > 10
    assert np.array_equal(own["nats"], other["nats"])
    assert scoring.percent_error(other["increase"] - other["increase"], other) == 0


def test_plain_rounding_stays_on_its_grid() -> None:
    weight = torch.randn(6, 64, generator=torch.Generator().manual_seed(0))
    for asymmetric in (False, True):
        rounded = plain_rtn(weight, 3, 32, asymmetric=asymmetric).view(6, 2, 32)
        assert all(len(group.unique()) <= 8 - (not asymmetric) for group in rounded.flatten(0, 1))
    low, high = weight.view(6, 2, 32).aminmax(dim=-1, keepdim=True)
    error = (plain_rtn(weight, 3, 32, asymmetric=True) - weight).view(6, 2, 32).abs()
    assert (error <= (high - low) / 7 * 1.001).all()  # half a step, and half of one for the rounded zero


def test_the_mask_of_a_pattern_is_found_again() -> None:
    mask = torch.rand(12, 12, generator=torch.Generator().manual_seed(1)) < 0.5
    mask |= torch.eye(12, dtype=torch.bool)
    assert torch.equal(visible(dense_attention(mask), 12), mask)
    assert visible(dense_attention(None), 5).all()


def test_rows_survive_and_other_conditions_are_refused(tmp_path: Path) -> None:
    path, arrays = tmp_path / "rows.json", {"text/increase": np.arange(6.0).reshape(3, 2)}
    Results(path, {"windows": 3}).add("m|a|0", {"bits": 4}, arrays)
    again = Results(path, {"windows": 3})
    assert "m|a|0" in again and again.rows["m|a|0"] == {"bits": 4}
    np.testing.assert_array_equal(again.arrays_of("m|a|0", "text")["increase"], arrays["text/increase"])
    with pytest.raises(InputFileError, match="windows"):
        Results(path, {"windows": 4})


def test_names_of_rows_are_unique() -> None:
    names = [setting.name for setting in all_settings([4, 3, 2], [32, 64])]
    assert len(names) == len(set(names))
