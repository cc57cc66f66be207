import numpy as np
import pytest
import torch

from dlm_edge.models import load_model
from dlm_edge.models.transformer import DiffusionTransformer
from dlm_edge.quant.states import Batch, Row, StateConfig, make_states
from tests.tiny import FAMILY_NAMES, MASK_ID, make_checkpoint

BLOCK = 8


def rows(n: int = 24, length: int = 40, n_fill: int = 0) -> list[Row]:
    rng = np.random.default_rng(0)
    return [Row(tuple(rng.integers(0, 256, length).tolist()), 0, length - n_fill) for _ in range(n)]


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, DiffusionTransformer]:
    folder = tmp_path_factory.mktemp("weights")
    return {f: load_model(make_checkpoint(folder / f, f, n_layers=2)) for f in FAMILY_NAMES}


def states(model: DiffusionTransformer, texts: list[Row], **config) -> list[Batch]:
    return make_states(texts, model.spec.conventions, StateConfig(**config), seed=0, model=model)


CASES = [
    {"mode": "clean"},
    {"draws": 2},
    {"confidence": True},
    {"mode": "rollout"},
    {"mode": "rollout", "confidence": True, "quota": "u_shaped"},
]


@pytest.mark.parametrize("family", FAMILY_NAMES)
@pytest.mark.parametrize("config", CASES, ids=str)
def test_weights_have_mean_one_and_filling_tokens_none(models, family, config):
    batches = states(models[family], [*rows(n_fill=5), *rows(length=24)], **config)
    weights = torch.cat([b.weights.flatten() for b in batches])
    assert (weights >= 0).all() and weights[weights > 0].mean().item() == pytest.approx(1)
    if config.get("mode") != "rollout":  # it generates, so nothing fills up a block
        for batch in batches:
            if batch.positions.max() == 39:
                assert (batch.weights[:, batch.positions >= 35] == 0).all()


def test_hidden_tokens_weigh_more_than_visible_ones_and_these_more_than_nothing(models):
    (batch,) = states(models["sdar"], rows(), visible=0.25, clean=0.5)
    masked, unit = batch.ids == MASK_ID, batch.weights[batch.ids == MASK_ID][0]
    assert (batch.weights[masked] == unit).all()
    visible = ~masked[:, 40:]
    torch.testing.assert_close(batch.weights[:, 40:][visible] / unit, torch.full((int(visible.sum()),), 0.25))
    torch.testing.assert_close(batch.weights[:, :40] / unit, torch.full((24, 40), 0.5))


def test_where_logits_are_shifted_the_token_before_a_hidden_one_counts_in_full(models):
    (batch,) = states(models["dream"], rows(), visible=0.25)
    important = batch.ids == MASK_ID
    important[:, :-1] |= batch.ids[:, 1:] == MASK_ID
    torch.testing.assert_close(batch.weights / batch.weights.max(), torch.where(important, 1.0, 0.25))


def test_a_finished_block_s_last_token_counts_in_full_where_it_predicts_the_next_block(models):
    (batch,) = states(models["fast_dllm_v2"], rows(), visible=0.25, clean=0.5)
    clean = batch.weights[0, :40] / batch.weights.max()
    assert clean.tolist() == pytest.approx(([0.5] * 7 + [1.0]) * 5)
    copy = (batch.ids[:, 40:] == MASK_ID).unflatten(1, (-1, BLOCK))
    last_visible = ~copy[..., -1]  # what follows belongs to another block, which this copy does not predict
    weights = (batch.weights[:, 40:] / batch.weights.max()).unflatten(1, (-1, BLOCK))[..., -1]
    assert last_visible.any() and weights[last_visible].max().item() == pytest.approx(0.25)


def confidence_by_hand(model: DiffusionTransformer, row: Row, batch: Batch, r: int, place: int) -> float:
    """Of the hidden token at `place` of row r, from a pass over nothing but what that token's state holds."""
    at, shift = int(batch.positions[place]), model.spec.conventions.logit_shift
    if model.spec.conventions.attention == "full":
        ids = batch.ids[r : r + 1]
    else:
        start = at // BLOCK * BLOCK
        first = place - (at - start)
        ids = torch.cat([batch.originals[r : r + 1, :start], batch.ids[r : r + 1, first : first + BLOCK]], 1)
    with torch.no_grad():
        scores = model(ids)[0, at - shift, : model.spec.vocab_size]
    scores[MASK_ID] = -torch.inf
    return float(scores.softmax(0).max())


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_hidden_tokens_weigh_half_plus_the_model_s_confidence(models, family):
    model, texts = models[family], rows(4)
    (batch,) = states(model, texts, confidence=True, visible=0.25, clean=0.25)
    unit = float(batch.weights.min()) / 0.25
    shift = model.spec.conventions.logit_shift
    places = torch.nonzero(batch.ids == MASK_ID).tolist()
    for r, place in places[:: max(1, len(places) // 40)]:
        at = int(batch.positions[place])
        if at < shift:
            continue  # nothing predicts the first token of all
        expected = 0.5 + confidence_by_hand(model, texts[r], batch, r, place)
        follows = place + 1 < len(batch.positions) and int(batch.positions[place + 1]) == at + 1
        if shift and follows and batch.ids[r, place + 1] == MASK_ID and (family == "dream" or (at + 1) % BLOCK):
            expected = max(expected, 0.5 + confidence_by_hand(model, texts[r], batch, r, place + 1))
        assert float(batch.weights[r, place]) / unit == pytest.approx(expected, rel=1e-4)
