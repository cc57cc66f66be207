from dataclasses import replace

import numpy as np
import pytest
import torch

from dlm_edge.errors import UsageProblem
from dlm_edge.models import load_model
from dlm_edge.models.transformer import DiffusionTransformer, dense_attention
from dlm_edge.quant.layer_pass import run_stages
from dlm_edge.quant.masking import hide, shares, strata
from dlm_edge.quant.state_attention import stream_mask
from dlm_edge.quant.states import QUOTAS, Batch, Row, StateConfig, make_states
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
    return make_states(texts, model.spec.conventions, StateConfig(**config), seed=0, model=model)


def hidden_of(model: DiffusionTransformer, batch: Batch) -> torch.Tensor:
    with torch.no_grad():
        return model.run_layers(model.embed(batch.ids), batch.positions, batch.attend)


def noisy_blocks(batch: Batch, length: int, block: int = BLOCK) -> torch.Tensor:
    """Hidden positions [rows * blocks, block] of the noisy copies."""
    return (batch.ids[:, length:] == MASK_ID).unflatten(1, (-1, block)).flatten(0, 1)


def test_strata_fill_the_unit_interval_evenly():
    numbers = strata(50, torch.Generator().manual_seed(0))
    assert (numbers > 0).all() and (numbers <= 1).all()
    assert sorted(((numbers * 50).ceil() - 1).int().tolist()) == list(range(50))


@pytest.mark.parametrize("quota", QUOTAS)
def test_shares_follow_the_quota_exactly_and_evenly_inside_each_bucket(quota):
    numbers = shares(400, QUOTAS[quota], torch.Generator().manual_seed(0))
    assert (numbers > 0).all() and (numbers <= 1).all()
    assert torch.bincount((numbers * 4).ceil().long() - 1).tolist() == pytest.approx(
        [400 * q for q in QUOTAS[quota]], abs=1
    )
    tenths = np.histogram(numbers.numpy(), 8, (0, 1))[0]
    assert tenths.tolist() == pytest.approx([200 * q for q in QUOTAS[quota] for _ in range(2)], abs=2)


def test_lower_ranks_are_hidden_first_and_the_count_is_exact():
    allowed = torch.ones(5, 6, dtype=torch.bool)
    allowed[:, 0] = False
    share = torch.tensor([0.2, 0.4, 0.6, 0.8, 1.0])
    hidden = hide(allowed, share, torch.Generator().manual_seed(0), torch.tensor([2, 2, 2, 1, 1, 0]))
    assert hidden.sum(1).tolist() == [1, 2, 3, 4, 5]
    assert not hidden[:, 0].any() and hidden[:, 5].all() and hidden[2:, 3:].all()


def test_every_share_of_a_block_is_hidden_equally_often(models):
    hidden = torch.cat([noisy_blocks(b, 40) for b in states(models["sdar"], rows(32))])
    counts = torch.bincount(hidden.sum(1), minlength=BLOCK + 1)
    assert counts.tolist() == [0] + [20] * BLOCK  # 32 rows * 5 blocks, exactly even


def test_each_draw_of_a_text_has_its_own_strata_and_its_own_masks(models):
    (batch,) = states(models["sdar"], rows(32), draws=3)
    assert batch.ids.shape[1] == 4 * 40
    copies = [noisy_blocks(replace(batch, ids=batch.ids[:, start : start + 40]), 0) for start in (40, 80, 120)]
    for copy in copies:
        assert torch.bincount(copy.sum(1), minlength=BLOCK + 1).tolist() == [0] + [20] * BLOCK
    assert (copies[0] != copies[1]).any() and (copies[1] != copies[2]).any()
    assert len(states(models["llada"], rows(32), draws=3)) == 3


def test_a_u_shaped_quota_prefers_nearly_clean_and_nearly_masked_blocks(models):
    hidden = torch.cat([noisy_blocks(b, 40) for b in states(models["sdar"], rows(32), quota="u_shaped")])
    buckets = torch.bincount((hidden.sum(1) - 1) // 2, minlength=4)
    assert buckets.tolist() == pytest.approx([48, 32, 32, 48], abs=1)


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
    for batch in states(models[family], rows(n_prompt=13), draws=2):
        for position, column in zip(batch.positions.tolist(), batch.ids.T, strict=True):
            assert position >= 13 or (column != MASK_ID).all()


def test_a_sub_block_is_active_what_is_before_it_clean_what_is_after_it_hidden(models):
    sub = models["fast_dllm_v2"].spec.conventions.sub_block_length
    hidden = torch.cat([noisy_blocks(b, 40) for b in states(models["fast_dllm_v2"], rows(35))])
    first, second = hidden[:, :sub].sum(1), hidden[:, sub:].sum(1)
    early = first > 0
    assert (second[early] == sub).all() and (second[~early] > 0).all()
    # 7 of 8 positions may be hidden; the first block of all has 8. Each number of masks equally often.
    counts = torch.bincount(hidden[torch.arange(len(hidden)) % 5 > 0].sum(1), minlength=9)
    assert counts[1:8].tolist() == pytest.approx([20] * 7, abs=6) and counts[0] == counts[8] == 0


def test_the_first_token_of_a_block_is_known_where_finished_text_predicts_it(models):
    """The schedule commits it before the block's first step, so no step sees it hidden."""
    for batch in states(models["fast_dllm_v2"], rows(35), draws=2):
        assert not (batch.ids[:, (batch.positions % BLOCK == 0) & (batch.positions > 0)] == MASK_ID).any()
    assert any((b.ids[:, b.positions % BLOCK == 0] == MASK_ID).any() for b in states(models["sdar"], rows(35)))


@pytest.mark.parametrize("family", ["sdar", "fast_dllm_v2"])
@pytest.mark.parametrize("n_prompt", [0, 5, 8, 11, 16])
def test_visibility_is_the_runtime_s_rule_for_every_prompt_and_block(models, family, n_prompt):
    """A clean query sees [0, visible_end); a noisy one the same range: clean before its block, its own copy in it."""
    spec = models[family].spec
    (batch,) = states(models[family], rows(4, n_prompt=n_prompt), draws=2)
    positions = batch.positions.tolist()
    start, width = n_prompt // BLOCK * BLOCK, 40 - n_prompt // BLOCK * BLOCK
    assert positions == [*range(40), *range(start, 40), *range(start, 40)]
    copy = [0] * 40 + [1] * width + [2] * width
    mask = stream_mask(batch.positions, torch.tensor(copy), BLOCK)
    for query, (at, which) in enumerate(zip(positions, copy, strict=True)):
        end = spec.visible_end(at)
        block_start = end - BLOCK
        seen = [(p, c) for key, (p, c) in enumerate(zip(positions, copy, strict=True)) if mask[query, key]]
        clean_end = end if which == 0 else block_start
        expected = {(p, 0) for p in range(clean_end)} | ({(p, which) for p in range(block_start, end)})
        assert len(seen) == len(set(seen)) == end and set(seen) == expected


@pytest.mark.parametrize("family", ["sdar", "fast_dllm_v2"])
def test_a_noisy_block_is_computed_as_if_it_were_the_last_with_clean_blocks_before_it(models, family):
    """The definition of a block-causal state, one block at a time; later blocks do not exist in it."""
    model, texts = models[family], rows(3)
    (batch,) = states(model, texts, draws=2)
    both = hidden_of(model, batch)
    for copy, block in ((c, b) for c in (40, 80) for b in range(5)):
        start, end = block * BLOCK, (block + 1) * BLOCK
        single = batch.originals[:, :end].clone()
        single[:, start:] = batch.ids[:, copy + start : copy + end]
        with torch.no_grad():
            positions = torch.arange(end)
            mask = positions[None] < (positions[:, None] // BLOCK + 1) * BLOCK
            alone = model.run_layers(model.embed(single), positions, dense_attention(mask))
        torch.testing.assert_close(both[:, copy + start : copy + end], alone[:, start:], rtol=1e-4, atol=1e-4)


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


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_clean_states_hide_nothing_and_use_the_pattern_of_the_family(models, family):
    model, texts = models[family], rows(3)
    (batch,) = states(model, texts, mode="clean")
    assert sorted(batch.ids.tolist()) == sorted(list(row.ids) for row in texts)
    with torch.no_grad():
        logits = model.head(model.final_norm(hidden_of(model, batch)))
        torch.testing.assert_close(logits, model(batch.ids))


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_the_originals_are_what_the_masks_hide(models, family):
    texts = [*rows(5), *rows(3, n_prompt=18)]
    for batch in states(models[family], texts, draws=2):
        assert ((batch.ids == batch.originals) | (batch.ids == MASK_ID)).all()
        by_position = {tuple(line.tolist()) for line in batch.originals[:, : int(batch.positions.max()) + 1]}
        assert by_position <= {row.ids for row in texts}
        assert (batch.originals == batch.originals[:, batch.positions]).all()


def test_the_seed_decides_and_the_order_of_the_rows_does_not(models):
    texts = [*rows(), *rows(9, length=24)]
    first, again = states(models["sdar"], texts), states(models["sdar"], texts[::-1])
    other = make_states(texts, models["sdar"].spec.conventions, StateConfig(), seed=1)
    assert all((a.ids == b.ids).all() for a, b in zip(first, again, strict=True))
    assert any((a.ids != b.ids).any() for a, b in zip(first, other, strict=True))


def second_moment(model: DiffusionTransformer, batches: list[Batch]) -> torch.Tensor:
    """Of the second layer's last linear."""
    hidden, moment = [model.embed(b.ids) for b in batches], torch.zeros(128, 128, dtype=torch.float64)
    with torch.no_grad():
        for layer in model.layers:
            for linears, inputs in run_stages(layer, model.spec, batches, hidden):
                if linears == ("down",):
                    scaled = [
                        x.double() * b.weights.double()[..., None].sqrt() for x, b in zip(inputs, batches, strict=True)
                    ]
                    moment = sum(torch.einsum("rsi,rsj->ij", x, x) for x in scaled)
    return moment


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_the_order_of_rows_and_batches_does_not_change_second_moments(models, family):
    model = models[family]
    batches = states(model, [*rows(8), *rows(6, length=24)], draws=2)
    order = lambda b: torch.randperm(len(b.ids), generator=torch.Generator().manual_seed(3))  # noqa: E731
    shuffled = [
        replace(b, ids=b.ids[order(b)], originals=b.originals[order(b)], weights=b.weights[order(b)])
        for b in batches[::-1]
    ]
    one, other = second_moment(model, batches), second_moment(model, shuffled)
    assert ((one - other).norm() / one.norm()).item() < 1e-6


@pytest.mark.parametrize(
    "wrong, message",
    [({"mode": "rolled"}, "calibration mode 'rolled'"), ({"quota": "v"}, "quota 'v'"), ({"draws": 0}, "draws is 0")],
)
def test_unknown_settings_are_refused(wrong, message):
    with pytest.raises(UsageProblem, match=message):
        StateConfig(**wrong)
