"""Supervision by a second model: whose text comes out, and what it takes."""

import numpy as np
import pytest

from dlm_edge.errors import UsageProblem
from dlm_edge.runtime.guide import GuideModel
from dlm_edge.runtime.samplers.contract import Opinion
from dlm_edge.runtime.step_model import FULL_ATTENTION
from tests.runtime.decoding import decode, prompt_of
from tests.runtime.samplers.given import scores_of, select, state_of
from tests.runtime.toy import EOS, FAMILIES, MASK, ToyModel, make_conventions

BLOCK = 8
LENGTHS = [0, 1, 5, BLOCK]
GUIDES = {
    "full": make_conventions("full", BLOCK),
    "full-shift": make_conventions("full-shift", BLOCK),
    "block": make_conventions("block", BLOCK),
    "block-shift": make_conventions("block-shift", BLOCK),
    "blocks of 3": make_conventions("block", 3),
    "shift and blocks of 16": make_conventions("block-shift", 16),
    "causal": make_conventions("block-shift", BLOCK, attention="causal", first_token_rule="predicted"),
}
CASES = [
    (family, length, guide)
    for family in FAMILIES
    for length in LENGTHS
    for guide in GUIDES
    if length or "shift" not in family and not GUIDES[guide].logit_shift
]


def greedy(model, conventions, prompt, gen_len, end):
    """What a model writes from left to right, everything recomputed, on a canvas of `end` positions."""
    canvas = np.full(end, MASK)
    canvas[: len(prompt)] = prompt
    length = {"full": FULL_ATTENTION, "causal": 1}.get(conventions.attention, conventions.block_length)
    model.reset(end)
    for position in range(len(prompt), end):
        seen = min((position // length + 1) * length, end)
        logits = model.run(canvas[:seen], 0, 0, length, [position - conventions.logit_shift])[0].copy()
        logits[MASK] = -np.inf
        canvas[position] = int(np.argmax(logits))
    return canvas[len(prompt) : len(prompt) + gen_len].tolist()


def canvas_end(conventions, length, gen_len):
    start = 0 if conventions.grid_origin == "zero" else length
    return start - (start - length - gen_len) // BLOCK * BLOCK


@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize(("family", "length", "guide"), CASES)
def test_deterministic_is_the_guides_own_text(family, length, guide, batched):
    """Whatever the model says and wherever keys are stored; a pass of the model for each draft that is rejected."""
    conventions, steps = make_conventions(family, BLOCK, 4 if length == 5 else BLOCK), []
    judge = ToyModel(7, forbid=[EOS])
    judge.batches_copies = batched
    expected = greedy(
        ToyModel(7, forbid=[EOS]), GUIDES[guide], prompt_of(length), 19, canvas_end(conventions, length, 19)
    )
    caches = ("none", "dual") if family.startswith("full") else ("none", "block")
    for cache, stores in zip(caches, (False, True), strict=True):
        tokens, stats = decode(
            conventions, prompt_of(length), model=ToyModel(3), sampler="guided", rule="deterministic", cache=cache,
            guide=GuideModel(judge, GUIDES[guide], stores), stop_ids=(), on_step=lambda p: steps.append(p.step),
        )  # fmt: skip
        assert tokens == expected
        assert stats.guide_passes >= stats.steps


class Prophet(ToyModel):
    """Knows the text; wrong at every `wrong`-th position."""

    def __init__(self, text, shift, wrong):
        super().__init__()
        self.text, self.shift, self.wrong = text, shift, wrong

    def logits(self, hidden, positions):
        rows = np.zeros((len(positions), self.vocab), np.float32)
        for row, at in zip(rows, positions + self.shift, strict=True):
            row[(self.text[at] + (at % self.wrong == 0)) % 30] = 9.0
        return rows


@pytest.mark.parametrize("wrong", [1, 3, 1000])
@pytest.mark.parametrize("family", FAMILIES)
def test_as_few_passes_as_drafts_are_rejected(family, wrong):
    conventions, gen_len = make_conventions(family, BLOCK), 2 * BLOCK
    judge, forbidden = GUIDES["full"], list(range(30, 40))
    prompt = prompt_of(BLOCK)
    expected = greedy(ToyModel(7, forbid=forbidden), judge, prompt, gen_len, BLOCK + gen_len)
    model = Prophet([*prompt, *expected], conventions.logit_shift, wrong)
    tokens, stats = decode(
        conventions, prompt, model=model, sampler="guided", rule="deterministic", gen_len=gen_len, stop_ids=(),
        guide=GuideModel(ToyModel(7, forbid=forbidden), judge),
    )  # fmt: skip
    at = range(BLOCK, BLOCK + gen_len)
    rejected = [p for p in at if p % wrong == 0]
    endings = sum(p not in rejected for p in (2 * BLOCK - 1, 3 * BLOCK - 1))  # blocks that end with an accepted token
    assert tokens == expected
    assert stats.forward_passes == stats.steps == len(rejected) + endings
    assert stats.guide_passes == (4 if wrong == 1000 else stats.steps)  # four slots at a time, then as many as before


def opinions(*rows):
    return [Opinion(*row) for row in rows]


def test_the_walk_ends_with_the_guides_first_correction():
    scores = scores_of([0.9] * 4, ids=[5, 6, 7, 8])
    same = (5, 0.9, 0.9, 0)
    near, far, third = (1, 0.5, 0.3, 1), (1, 0.5, 0.2, 1), (1, 0.4, 0.25, 2)

    def chosen(*rows, **options):
        return select("guided", scores, state_of(guide=opinions(*rows)), **options)

    assert chosen(same, near, far, near) == [(10, 5), (11, 6), (12, 1)]
    assert chosen(same, near, third, near) == [(10, 5), (11, 6), (12, 1)]
    assert chosen(same, near, third, near, k=3) == [(10, 5), (11, 6), (12, 7), (13, 8)]
    assert chosen(same, near, far, near, ratio=0.9) == [(10, 5), (11, 1)]
    assert chosen(same, near, near, near, rule="deterministic") == [(10, 5), (11, 1)]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_guide_that_lets_everything_pass_leaves_the_first_draft(family):
    """k and ratio without bound: a block is what the model drafts at once."""
    conventions = make_conventions(family, BLOCK, first_token_rule="predicted")
    guide = GuideModel(ToyModel(7), GUIDES["block"])
    settings = {"stop_ids": (), "cache": "none"}
    found, stats = decode(conventions, prompt_of(4), sampler="guided", k=40, ratio=0.0, guide=guide, **settings)
    expected, threshold = decode(conventions, prompt_of(4), sampler="threshold", threshold=0.0, **settings)
    assert found == expected and stats.steps == threshold.steps


def test_the_guide_keeps_out_stop_ids_that_are_too_early():
    class Final(ToyModel):
        def logits(self, hidden, positions):
            rows = super().logits(hidden, positions)
            rows[:, EOS] = 50
            return rows

    guide = GuideModel(Final(1), GUIDES["full"])
    tokens, stats = decode(GUIDES["full"], [1], sampler="guided", rule="deterministic", guide=guide, min_new_tokens=6)
    assert len(tokens) == 6 and stats.stop_reason == "eos" and EOS not in tokens


@pytest.mark.parametrize(
    ("guide", "prompt", "code", "said"),
    [
        (None, [1], "E-PARAM", "needs a second model"),
        (make_conventions("full", BLOCK, mask_id=3), [1], "E-PARAM", "mask is token 3"),
        (GUIDES["full-shift"], [], "E-PROMPT", "prompt is empty"),
        (make_conventions("block", BLOCK, attention="causal"), [1], "E-PARAM", "causal guide"),
    ],
)
def test_what_cannot_work_is_refused(guide, prompt, code, said):
    with pytest.raises(UsageProblem) as error:
        decode(GUIDES["full"], prompt, sampler="guided", guide=guide and GuideModel(ToyModel(), guide))
    assert error.value.code == code and said in error.value.message


def test_other_samplers_leave_an_open_guide_alone():
    guide = GuideModel(ToyModel(7), GUIDES["full"])
    tokens, stats = decode(GUIDES["full"], [1], guide=guide)
    assert not guide.model.runs and stats.guide_passes == 0
    assert tokens == decode(GUIDES["full"], [1])[0]
