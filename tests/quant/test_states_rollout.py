import random

import msgspec
import numpy as np
import pytest
import torch

from dlm_edge.errors import InputFileError
from dlm_edge.models import load_model
from dlm_edge.models.plain_loop import PlainSettings, decode
from dlm_edge.models.transformer import DiffusionTransformer, pattern
from dlm_edge.quant.rollout_states import bucket, by_trajectory, draw, pack, rollout_batches, segment
from dlm_edge.quant.states import QUOTAS, Row, StateConfig, make_states, sample_states
from dlm_edge.quant.trajectories import Prompt, State, Trajectory, denoise
from dlm_edge.runtime.samplers.threshold import Options
from tests.tiny import FAMILY_NAMES, MASK_ID, make_checkpoint

BLOCK = 8
PROMPTS = (1, 5, 8, 11, 16, 21)  # block borders and beside them


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, DiffusionTransformer]:
    folder, models = tmp_path_factory.mktemp("rollout"), {}
    for family in FAMILY_NAMES:
        model = load_model(make_checkpoint(folder / family, family, n_layers=2))
        # Random weights are never sure; with these the threshold commits one token or several at a time.
        model.head.weight = torch.nn.Parameter(4 * model.head.weight, requires_grad=False)
        models[family] = model
    return models


def prompt_ids(n_prompt: int) -> tuple[int, ...]:
    return tuple(np.random.default_rng(n_prompt).integers(0, 256, n_prompt).tolist())


def rows(n: int = 12, length: int = 40, n_prompt: int = 0) -> list[Row]:
    rng = np.random.default_rng(0)
    return [Row(tuple(rng.integers(0, 256, length).tolist()), n_prompt, length) for _ in range(n)]


def commits_of(trajectory: Trajectory) -> list[list[tuple[int, int]]]:
    """(position, id) that each state's step committed, read off the next state of the block, or the final ids."""
    steps = []
    for state, following in zip(trajectory.states, [*trajectory.states[1:], None], strict=True):
        same = following is not None and following.start == state.start
        after = following.hidden if same else np.zeros_like(state.hidden)
        if trajectory.blocks[0].start != state.start and following is not None and state.start == 0:
            after = following.hidden  # a whole canvas: the next block's step sees it too
        decoded = np.flatnonzero(state.hidden & ~after)
        steps.append([(int(p) + state.start, int(trajectory.final_ids[p + state.start])) for p in decoded])
    return steps


@pytest.mark.parametrize("family", FAMILY_NAMES)
@pytest.mark.parametrize("n_prompt", PROMPTS)
def test_a_trajectory_is_the_plain_loop_s(models, family, n_prompt):
    model, prompt = models[family], prompt_ids(n_prompt)
    (mine,) = denoise(model, [Prompt(prompt, 20)])
    plain = decode(model, list(prompt), PlainSettings(gen_len=20, threshold=Options().threshold))
    flat = {position: token for step in plain.commits for position, token in step}
    assert all(mine.final_ids[p] == token for p, token in flat.items())
    assert int((~mine.canvas.is_masked).sum()) == n_prompt + len(flat)
    # A first token taken from finished text is a commit of the loop, and no step of the network over the block.
    rule = model.spec.conventions.first_token_rule == "previous_logit" and model.spec.conventions.attention != "full"
    steps = [s for s in plain.commits if not (rule and len(s) == 1 and s[0][0] % BLOCK == 0 and s[0][0] >= n_prompt)]
    assert [sorted(step) for step in steps] == [sorted(step) for step in commits_of(mine)]
    assert any(len(step) > 1 for step in steps) or len(steps) > 12


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_many_prompts_at_once_are_answered_as_each_alone(models, family):
    model, prompts = models[family], [Prompt(prompt_ids(n), 12 + n) for n in (*PROMPTS, 30, 33)]
    together = {t.canvas.prompt_len: t for t in denoise(model, prompts)}
    for prompt in prompts:
        (alone,) = denoise(model, [prompt])
        same = together[len(prompt.ids)]
        assert (alone.final_ids == same.final_ids).all() and len(alone.states) == len(same.states)
        for a, b in zip(alone.states, same.states, strict=True):
            assert (a.ids == b.ids).all() and a.start == b.start and a.share == b.share
            np.testing.assert_allclose(a.confidence, b.confidence, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_confidence_is_the_model_s_on_the_visible_canvas(models, family):
    model = models[family]
    (trajectory,) = denoise(model, [Prompt(prompt_ids(11), 20)])
    shift, full = model.spec.conventions.logit_shift, model.spec.conventions.attention == "full"
    for state in trajectory.states:
        ids = torch.from_numpy(np.concatenate([trajectory.final_ids[: state.start], state.ids]))[None]
        with torch.no_grad():
            scores = model(ids, origin=11 if full else 0)[0, :, : model.spec.vocab_size]
        scores[:, MASK_ID] = -torch.inf
        probability = scores.softmax(-1).max(-1).values.numpy()
        at = np.flatnonzero(state.hidden)
        np.testing.assert_allclose(
            state.confidence[at], probability[np.maximum(at + state.start - shift, 0)], rtol=1e-4, atol=1e-6
        )
        assert (state.confidence[~state.hidden] == 0).all()


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_decoding_ends_after_the_block_of_a_stop_id(models, family):
    (free,) = denoise(with_stops(models[family], ()), [Prompt(prompt_ids(5), 40)])
    chosen = int(free.final_ids[18])
    (stopped,) = denoise(with_stops(models[family], (chosen,)), [Prompt(prompt_ids(5), 40)])
    left = stopped.canvas.is_masked
    assert stopped.stopped and left.any() and not free.canvas.is_masked.any()
    end = int(np.flatnonzero(~left)[-1]) + 1
    assert chosen in stopped.final_ids[5:end] and end <= 32
    if models[family].spec.conventions.attention != "full":  # later blocks do not exist, so nothing else differs
        assert (stopped.final_ids[:end] == free.final_ids[:end]).all()


def with_stops(model: DiffusionTransformer, stop_ids: tuple[int, ...]) -> DiffusionTransformer:
    conventions = msgspec.structs.replace(model.spec.conventions, stop_ids=stop_ids)
    other = DiffusionTransformer(msgspec.structs.replace(model.spec, conventions=conventions, tied_head=False))
    other.load_state_dict(model.state_dict())
    return other.eval().requires_grad_(False)


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_a_packed_row_computes_every_state_as_the_runtime_sees_it(models, family):
    """Each state in a row of several trajectories, against a pass over its own canvas and nothing else."""
    model, conventions, config = models[family], models[family].spec.conventions, StateConfig(mode="rollout")
    pool = [(t, s) for t in denoise(model, [Prompt(prompt_ids(n), 24) for n in PROMPTS]) for s in t.states[::2]]
    groups = list(by_trajectory(pool, conventions))
    batch = pack([segment(t, states, conventions, config) for t, states in groups])
    with torch.no_grad():
        packed = model.run_layers(model.embed(batch.ids), batch.positions, batch.attend)[0]
    at = 0
    for trajectory, states in groups:
        at += max(s.start for s in states)
        for state in states:
            ids = torch.from_numpy(np.concatenate([trajectory.final_ids[: state.start], state.ids]))[None]
            place = torch.arange(ids.shape[1])
            with torch.no_grad():
                alone = model.run_layers(model.embed(ids), place, pattern(conventions, place))[0, state.start :]
            torch.testing.assert_close(packed[at : at + len(state.ids)], alone, rtol=1e-3, atol=1e-3)
            at += len(state.ids)
    assert at == len(packed) and len(pool) > 20


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_a_batch_holds_no_later_block_and_no_mask_outside_the_active_one(models, family):
    model = models[family]
    for batch in make_states(rows(n_prompt=9), model.spec.conventions, StateConfig(mode="rollout"), 0, model=model):
        masked = (batch.ids == MASK_ID)[0]
        assert masked.any() and ((batch.ids == batch.originals)[0] | masked).all()
        assert (batch.positions[masked] >= 9).all()
        if model.spec.conventions.attention != "full":
            blocks = batch.positions // BLOCK
            assert (blocks[masked] >= 1).all()


def states_with(shares: list[float]) -> list[tuple[Trajectory, State]]:
    (trajectory,) = [Trajectory.__new__(Trajectory)]
    empty = np.zeros(0)
    return [(trajectory, State(0, empty.astype(np.int64), empty > 0, empty.astype(np.float32), s)) for s in shares]


@pytest.mark.parametrize("quota", QUOTAS)
def test_the_quota_is_met_exactly_where_enough_states_were_visited(quota):
    pool = states_with([s / 40 for s in range(1, 41)] * 10)
    chosen, notes = draw(pool, 200, QUOTAS[quota], random.Random(0))
    counts = np.bincount([bucket(s.share, 4) for _, s in chosen], minlength=4)
    assert counts.tolist() == [round(200 * q) for q in QUOTAS[quota]] and not notes
    assert len({id(s) for _, s in chosen}) == 200


def test_a_bucket_that_is_hardly_visited_is_reported_and_filled_from_the_others():
    pool = states_with([1.0] * 300 + [0.1] * 10)
    chosen, notes = draw(pool, 200, QUOTAS["uniform"], random.Random(0))
    assert len(chosen) == 200 and len(notes) == 3
    assert notes[0] == (
        "rollout visited only 10 states with 0 to 25 % of the active block hidden, where the quota asks for 50"
    )
    _, notes = draw(pool, 400, QUOTAS["uniform"], random.Random(0))
    assert "rollout visited 310 states, where 400 were wanted" in notes[-1]


def test_the_tokens_asked_for_are_drawn_and_the_seed_decides(models):
    model = models["sdar"]
    conventions, config, texts = model.spec.conventions, StateConfig(mode="rollout"), rows(20)
    first = sample_states(texts, conventions, config, 0, model=model, n_tokens=400)
    again = sample_states(texts[::-1], conventions, config, 0, model=model, n_tokens=400)
    other = sample_states(texts, conventions, config, 1, model=model, n_tokens=400)
    assert all(
        (a.ids == b.ids).all() and (a.weights == b.weights).all()
        for a, b in zip(first.batches, again.batches, strict=True)
    )
    assert any(
        a.ids.shape != b.ids.shape or (a.ids != b.ids).any() for a, b in zip(first.batches, other.batches, strict=False)
    )


def test_rows_that_leave_no_room_for_an_answer_are_refused(models):
    row = Row((7,) * 512, 512, 512)
    with pytest.raises(InputFileError, match="no row leaves room for an answer"):
        rollout_batches([row], models["sdar"], StateConfig(mode="rollout"), 0, 100)
