from dataclasses import replace

import numpy as np
import pytest
import torch

from dlm_edge.errors import UsageProblem
from dlm_edge.models import load_model
from dlm_edge.models.transformer import DiffusionTransformer, dense_attention
from dlm_edge.quant.states import Batch, Row, StateConfig, make_states, strata
from tests.tiny import FAMILY_NAMES, MASK_ID, make_checkpoint

BLOCK = 8


def rows(n: int = 24, length: int = 40, n_prompt: int = 0, n_fill: int = 0) -> list[Row]:
    rng = np.random.default_rng(0)
    return [Row(tuple(rng.integers(0, 256, length).tolist()), n_prompt, length - n_fill) for _ in range(n)]


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, DiffusionTransformer]:
    folder = tmp_path_factory.mktemp("states")
    return {f: load_model(make_checkpoint(folder / f, f, n_layers=2)) for f in FAMILY_NAMES}


def states(model: DiffusionTransformer, texts: list[Row], **config) -> list[Batch]:
    return make_states(texts, model.spec.conventions, StateConfig(**config), seed=0)


def hidden_of(model: DiffusionTransformer, batch: Batch) -> torch.Tensor:
    with torch.no_grad():
        return model.run_layers(model.embed(batch.ids), batch.positions, batch.attend)


def noisy_blocks(batch: Batch, length: int, block: int = BLOCK) -> torch.Tensor:
    """Hidden positions [rows * blocks, block] of the noisy copy."""
    return (batch.ids[:, length:] == MASK_ID).unflatten(1, (-1, block)).flatten(0, 1)


def test_strata_fill_the_unit_interval_evenly():
    numbers = strata(50, torch.Generator().manual_seed(0))
    assert (numbers > 0).all() and (numbers <= 1).all()
    assert sorted(((numbers * 50).ceil() - 1).int().tolist()) == list(range(50))


def test_every_share_of_a_block_is_hidden_equally_often(models):
    hidden = torch.cat([noisy_blocks(b, 40) for b in states(models["sdar"], rows(32))])
    counts = torch.bincount(hidden.sum(1), minlength=BLOCK + 1)
    assert counts.tolist() == [0] + [20] * BLOCK  # 32 rows * 5 blocks, exactly even


def test_full_attention_hides_every_share_of_what_follows_a_visible_prefix(models):
    (batch,) = states(models["llada"], rows(64))
    hidden = batch.ids == MASK_ID
    first = hidden.int().argmax(1)
    share = hidden.sum(1) / (40 - first)
    assert hidden.any(1).all()
    assert np.histogram(first, 4, (0, 40))[0].min() >= 8  # prefixes of every length
    assert np.histogram(share, 4, (0, 1))[0].min() >= 6


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_prompts_are_never_hidden(models, family):
    for batch in states(models[family], rows(n_prompt=13)):
        for position, column in zip(batch.positions.tolist(), batch.ids.T, strict=True):
            assert position >= 13 or (column != MASK_ID).all()


def test_a_sub_block_is_active_what_is_before_it_clean_what_is_after_it_hidden(models):
    sub = models["fast_dllm_v2"].spec.conventions.sub_block_length
    hidden = torch.cat([noisy_blocks(b, 40) for b in states(models["fast_dllm_v2"], rows(32))])
    first, second = hidden[:, :sub].sum(1), hidden[:, sub:].sum(1)
    early = first > 0
    assert (second[early] == sub).all() and (second[~early] > 0).all()
    assert 0.4 < early.float().mean() < 0.6
    assert torch.bincount(first[early]).tolist()[1:] == pytest.approx([20] * sub, abs=8)


@pytest.mark.parametrize("family", ["sdar", "fast_dllm_v2"])
def test_a_noisy_block_is_computed_as_if_it_were_the_last_with_clean_blocks_before_it(models, family):
    """The definition of a block-causal state, one block at a time; later blocks do not exist in it."""
    model, texts = models[family], rows(3)
    (batch,) = states(model, texts)
    both = hidden_of(model, batch)
    for block in range(5):
        start, end = block * BLOCK, (block + 1) * BLOCK
        single = torch.tensor([row.ids for row in texts])[:, :end]
        single[:, start:] = batch.ids[:, 40 + start : 40 + end]
        with torch.no_grad():
            positions = torch.arange(end)
            mask = positions[None] < (positions[:, None] // BLOCK + 1) * BLOCK
            alone = model.run_layers(model.embed(single), positions, dense_attention(mask))
        torch.testing.assert_close(both[:, 40 + start : 40 + end], alone[:, start:], rtol=1e-4, atol=1e-4)


def test_clean_tokens_see_no_mask_and_changing_later_blocks_changes_nothing(models):
    model, texts = models["sdar"], rows(3)
    (batch,) = states(model, texts)
    before = hidden_of(model, batch)
    changed = batch.ids.clone()
    changed[:, 24:40] = 7  # clean tokens of blocks 3 and 4
    changed[:, 40 + 24 :] = 9  # and their noisy copies
    after = hidden_of(model, replace(batch, ids=changed))
    torch.testing.assert_close(after[:, :24], before[:, :24])
    torch.testing.assert_close(after[:, 40 : 40 + 24], before[:, 40 : 40 + 24])
    with torch.no_grad():
        clean = model.run_layers(
            model.embed(batch.ids[:, :40]), torch.arange(40), states(model, texts, mode="clean")[0].attend
        )
    torch.testing.assert_close(before[:, :40], clean, rtol=1e-4, atol=1e-4)


def test_a_prompt_of_whole_blocks_has_no_noisy_copy(models):
    (batch,) = states(models["sdar"], rows(n_prompt=2 * BLOCK + 3))
    assert batch.positions.tolist() == [*range(40), *range(16, 40)]


@pytest.mark.parametrize("family", FAMILY_NAMES)
@pytest.mark.parametrize("mode", ["forward", "clean"])
def test_filling_tokens_weigh_nothing_and_weights_have_mean_one(models, family, mode):
    batches = states(models[family], [*rows(n_fill=5), *rows(length=24)], mode=mode)
    counted = torch.cat([b.weights[b.weights > 0] for b in batches])
    assert counted.mean().item() == pytest.approx(1)
    for batch in batches:
        if batch.positions.max() == 39:
            assert (batch.weights[:, batch.positions >= 35] == 0).all()


def test_hidden_tokens_weigh_more_than_visible_ones_and_these_more_than_nothing(models):
    (batch,) = states(models["sdar"], rows(), visible=0.25, clean=0.5)
    masked, unit = batch.ids == MASK_ID, batch.weights[batch.ids == MASK_ID][0]
    assert (batch.weights[masked] == unit).all()
    torch.testing.assert_close(
        batch.weights[:, 40:][~masked[:, 40:]] / unit, torch.full(((~masked[:, 40:]).sum(),), 0.25)
    )
    torch.testing.assert_close(batch.weights[:, :40] / unit, torch.full((24, 40), 0.5))


def test_where_logits_are_shifted_the_token_before_a_hidden_one_counts_in_full(models):
    (batch,) = states(models["dream"], rows(), visible=0.25)
    important = batch.ids == MASK_ID
    important[:, :-1] |= batch.ids[:, 1:] == MASK_ID
    unit = batch.weights.max()
    torch.testing.assert_close(batch.weights / unit, torch.where(important, 1.0, 0.25))


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_clean_states_hide_nothing_and_use_the_pattern_of_the_family(models, family):
    model, texts = models[family], rows(3)
    (batch,) = states(model, texts, mode="clean")
    assert (batch.ids == torch.tensor([row.ids for row in texts])).all()
    with torch.no_grad():
        logits = model.head(model.final_norm(hidden_of(model, batch)))
        torch.testing.assert_close(logits, model(batch.ids))


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_the_originals_are_what_the_masks_hide(models, family):
    texts = [*rows(5), *rows(3, n_prompt=18)]
    for batch in states(models[family], texts):
        assert ((batch.ids == batch.originals) | (batch.ids == MASK_ID)).all()
        by_position = {tuple(column.tolist()) for column in batch.originals[:, : int(batch.positions.max()) + 1]}
        assert by_position <= {row.ids for row in texts}
        assert (batch.originals == batch.originals[:, batch.positions]).all()


def test_the_seed_decides(models):
    first, again = states(models["sdar"], rows()), states(models["sdar"], rows())
    other = make_states(rows(), models["sdar"].spec.conventions, StateConfig(), seed=1)
    assert all((a.ids == b.ids).all() for a, b in zip(first, again, strict=True))
    assert any((a.ids != b.ids).any() for a, b in zip(first, other, strict=True))


def test_an_unknown_mode_is_refused():
    with pytest.raises(UsageProblem, match="calibration mode 'rolled' is not known"):
        StateConfig(mode="rolled")
