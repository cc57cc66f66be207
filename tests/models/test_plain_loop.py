"""The plain loop on scorers whose answers are known: order, shift, grid, quota, stop, and what it never does."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dlm_edge.errors import JobError, UsageProblem
from dlm_edge.models import load_model
from dlm_edge.models.plain_loop import PlainResult, PlainSettings, decode, generate, quotas
from tests.tiny import EOS_ID, FAMILY_NAMES, MASK_ID, VOCAB_SIZE, make_checkpoint, make_spec

# Equal confidences need equal rows: the sum inside a softmax rounds differently when its terms change places.
SAME_IDS = dict.fromkeys(range(64), 5)


class Scorer:
    """Stands in for a model: row r of a canvas prefers the id of position r + shift, with a strength per position."""

    def __init__(
        self, family: str, strength: dict[int, float] | None = None, ids: dict[int, int] | None = None, **spec: Any
    ):
        self.spec = make_spec(family, padded_rows=7, **spec)
        self.strength, self.ids, self.seen = strength or {}, ids or {}, list[list[int]]()

    def __call__(self, input_ids: Tensor, *, origin: int = 0) -> Tensor:
        self.seen.append(input_ids[0].tolist())
        rows = input_ids.shape[1]
        logits = torch.zeros(1, rows, self.spec.embedding_rows)
        logits[..., MASK_ID] = 50.0  # the mask and the padding are what this scorer likes best
        logits[..., VOCAB_SIZE:] = 60.0
        for row in range(rows):
            position = row + self.spec.conventions.logit_shift
            logits[0, row, self.ids.get(position, position % 250)] = self.strength.get(position, 10.0)
        return logits


def run(scorer: Any, prompt: int | list[int], **settings: Any) -> PlainResult:
    ids = prompt if isinstance(prompt, list) else [250] * prompt
    return decode(scorer, ids, PlainSettings(**{"gen_len": 16} | settings))


@pytest.mark.parametrize("family", FAMILY_NAMES)
@pytest.mark.parametrize("prompt", [1, 7, 8, 9, 15, 16])
@pytest.mark.parametrize("gen_len", [1, 7, 8, 20])
def test_every_position_gets_the_scores_of_its_own_row(family: str, prompt: int, gen_len: int) -> None:
    result = run(Scorer(family), prompt, gen_len=gen_len)
    assert result.ids == list(range(prompt, prompt + gen_len))
    assert not result.stopped


@pytest.mark.parametrize(("family", "first"), [("llada", 0), ("sdar", 0), ("dream", 1), ("fast_dllm_v2", 1)])
def test_an_empty_prompt_takes_row_zero(family: str, first: int) -> None:
    assert run(Scorer(family), 0, gen_len=3).ids == [first, 1, 2]


def test_the_most_confident_goes_first_and_equals_go_left_to_right() -> None:
    result = run(Scorer("sdar", {10: 12.0, 13: 14.0}, SAME_IDS), 8, gen_len=8)
    assert [p for step in result.commits for p, _ in step] == [13, 10, 8, 9, 11, 12, 14, 15]
    assert result.forward_passes == 8


def test_the_canvas_ends_with_the_block_for_block_causal_attention() -> None:
    scorer = Scorer("sdar")
    result = run(scorer, 11, gen_len=10)  # positions 11 to 20: blocks [8, 16) and [16, 24)
    assert [len(seen) for seen in scorer.seen] == [16] * 5 + [24] * 8
    assert all(seen[:11] == [250] * 11 for seen in scorer.seen)
    assert len(result.ids) == 10


def test_the_canvas_is_whole_for_full_attention() -> None:
    scorer = Scorer("llada")
    run(scorer, 11, gen_len=10)  # blocks [11, 19) and [19, 27)
    assert [len(seen) for seen in scorer.seen] == [27] * 16
    assert scorer.seen[0][11:] == [MASK_ID] * 16
    assert MASK_ID not in scorer.seen[8][:19] and scorer.seen[8][19:] == [MASK_ID] * 8


def test_first_tokens_come_from_the_clean_pass_and_sub_blocks_go_left_to_right() -> None:
    scorer = Scorer("fast_dllm_v2", {22: 15.0}, SAME_IDS)
    result = run(scorer, 8, gen_len=16)
    order = [p for step in result.commits for p, _ in step]
    assert order == [8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 22, 20, 21, 23]
    assert [len(seen) for seen in scorer.seen] == [8, *[16] * 7, 16, *[24] * 7]
    assert MASK_ID not in scorer.seen[0] + scorer.seen[8]


def test_a_block_that_begins_with_the_prompt_has_no_first_token_pass() -> None:
    scorer = Scorer("fast_dllm_v2")
    run(scorer, 9, gen_len=7)
    assert [len(seen) for seen in scorer.seen] == [16] * 7


@pytest.mark.parametrize("n_masked", range(1, 33))
def test_quotas_commit_everything_and_never_nothing(n_masked: int) -> None:
    for n_steps in range(1, 40):
        plan = quotas(n_masked, n_steps)
        assert sum(plan) == n_masked and len(plan) == min(n_steps, n_masked)
        assert min(plan) >= 1 and all(a >= b for a, b in pairwise(plan)) and plan[0] - plan[-1] <= 1


@pytest.mark.parametrize(
    ("settings", "sizes"),
    [
        ({"steps": 5}, [3, 2, 4, 4, 8]),  # masks 5, 8, 8 share 2, 2, 1 steps
        ({"steps": 1}, [5, 8, 8]),
        ({"steps": 99}, [1] * 21),
        ({"steps_per_block": 3}, [2, 2, 1, 3, 3, 2, 3, 3, 2]),
        ({"steps_per_block": 8}, [1] * 21),
        ({"tokens_per_step": 3}, [3, 2, 3, 3, 2, 3, 3, 2]),
        ({"threshold": 1.5}, [1] * 21),
        ({"threshold": 0.01}, [5, 8, 8]),
    ],
)
def test_how_many_tokens_a_step_commits(settings: dict[str, Any], sizes: list[int]) -> None:
    result = run(Scorer("sdar"), 3, gen_len=18, **settings)
    assert [len(step) for step in result.commits] == sizes


def test_steps_per_block_are_shared_by_the_sub_blocks() -> None:
    result = run(Scorer("fast_dllm_v2"), 8, gen_len=8, steps_per_block=3)
    assert [len(step) for step in result.commits] == [1, 2, 1, 4]  # the first token is beside the quota


def test_threshold_takes_all_that_reach_it_and_at_least_one() -> None:
    strength = dict.fromkeys(range(8, 16), 5.0) | {9: 12.0, 14: 12.0}
    result = run(Scorer("sdar", strength), 8, gen_len=8, threshold=0.9)
    assert [p for p, _ in result.commits[0]] == [9, 14]
    assert [len(step) for step in result.commits] == [2, 1, 1, 1, 1, 1, 1]


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_a_stop_id_ends_the_run_after_its_block(family: str) -> None:
    stop = {12: EOS_ID}
    early = run(Scorer(family, {12: 30.0}, stop), 8, gen_len=32)
    assert early.stopped and early.ids == [8, 9, 10, 11]
    assert sum(map(len, early.commits)) == 8  # the whole block, although the stop id came early


def test_a_stop_id_of_the_prompt_means_nothing() -> None:
    assert not run(Scorer("sdar"), [EOS_ID] * 9, gen_len=8).stopped


def test_a_stop_id_beyond_gen_len_means_nothing() -> None:
    result = run(Scorer("sdar", ids={13: EOS_ID}), 8, gen_len=4)
    assert (result.ids, result.stopped) == ([8, 9, 10, 11], False)


@pytest.mark.parametrize(
    ("prompt", "settings", "code"),
    [
        ([1, MASK_ID], {}, "E-PROMPT"),
        ([-1], {}, "E-PROMPT"),
        ([VOCAB_SIZE], {}, "E-PROMPT"),
        ([1] * 500, {"gen_len": 13}, "E-CONTEXT"),
        ([1], {"gen_len": 0}, "E-PARAM"),
        ([1], {"block_length": 4}, "E-PARAM"),
        ([1], {"threshold": float("nan")}, "E-PARAM"),
        ([1], {"threshold": 0.9, "steps": 4}, "E-PARAM"),
    ],
)
def test_what_cannot_be_decoded_is_refused(prompt: list[int], settings: dict[str, Any], code: str) -> None:
    with pytest.raises(UsageProblem) as refused:
        run(Scorer("sdar"), prompt, **settings)
    assert refused.value.code == code


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_broken_scores_end_the_job(value: float) -> None:
    with pytest.raises(JobError) as failed:
        run(Scorer("sdar", {9: value}), 8)
    assert failed.value.code == "E-NUM"


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_real_models_decode_the_same_one_by_one_and_below_threshold(tmp_path: Path, family: str) -> None:
    model = load_model(make_checkpoint(tmp_path, family, padded_rows=4))
    prompt = list(range(40, 51))
    static = generate(model, prompt, gen_len=20)
    assert static == generate(model, prompt, gen_len=20, threshold=2.0)
    assert static == generate(model, prompt, gen_len=20, tokens_per_step=1)
    assert all(0 <= token < VOCAB_SIZE and token != MASK_ID for token in static)
