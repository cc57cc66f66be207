"""Token editing: what may change, when it ends, and that nothing is given out before it is final."""

import numpy as np
import pytest

from dlm_edge.runtime.events import Frame, Text
from tests.runtime.decoding import decode, prompt_of
from tests.runtime.samplers.given import FIRST, scores_of, select, state_of
from tests.runtime.toy import EOS, FAMILIES, MASK, ToyModel, make_conventions
from tests.tiny import EOS_ID, MASK_ID, PAD_ID, VOCAB_SIZE

BLOCK = 8
LENGTHS = [0, 1, 5, BLOCK - 1, BLOCK]
CACHES = {"full": ("none", "prefix", "dual"), "block": ("none", "block")}
CASES = [
    (family, length, cache)
    for family in FAMILIES
    for length in LENGTHS
    if length or "shift" not in family
    for cache in CACHES[family.split("-")[0]]
]


def state_with(tokens, **changes):
    """A block at FIRST that holds `tokens`; None is a mask."""
    state = state_of(len(tokens), **changes)
    for offset, token in enumerate(tokens):
        if token is not None:
            state.canvas.place(np.array([FIRST + offset]), np.array([token]))
    return state


def test_masks_are_filled_and_tokens_replaced_in_one_step():
    scores = scores_of([0.8, 0.3, 0.6, 0.9, 0.5], ids=[20, 21, 22, 23, 24])
    state = state_with([None, None, 2, 23, 4])
    assert select("edit", scores, state) == [(10, 20), (12, 22)]  # 23 stands there already, 24 is not above 0.5
    assert select("edit", scores, state, threshold=0.9) == [(10, 20), (12, 22)]  # the surest mask in any case
    assert select("edit", scores, state, threshold=0.9, min_commit=2) == [(10, 20), (11, 21), (12, 22)]
    assert select("edit", scores, state, edit_threshold=1.5) == [(10, 20)]


def test_equals_go_left():
    assert select("edit", scores_of([0.4, 0.4, 0.4]), state_with([None] * 3)) == [(10, 0)]


@pytest.mark.parametrize(("family", "length", "cache"), CASES)
def test_without_edits_it_is_threshold(family, length, cache):
    conventions = make_conventions(family, BLOCK, 4 if length == 5 else BLOCK)

    def trace(sampler, **options):
        seen = {}
        result = decode(
            conventions, prompt_of(length), sampler=sampler, cache=cache, threshold=0.5, stop_ids=(), **options,
            on_step=lambda p: seen.update({p.step: (p.canvas.ids.tolist(), p.canvas.confidence.tolist())}),
        )  # fmt: skip
        return result[0], result[1].steps, result[1].forward_passes, seen

    assert trace("edit", edit_threshold=1.5) == trace("threshold")


@pytest.mark.parametrize(("family", "length", "cache"), CASES)
def test_edits_stay_inside_their_block_and_end(family, length, cache):
    """Tokens change, but never given ones or those of another block; at most masks + 16 steps a sub-block."""
    conventions, edits, placed, final = make_conventions(family, BLOCK, 4 if length == 5 else BLOCK), 0, {}, []
    fixed = {2: 7, 11: 8} if family.startswith("full") else {}

    def watch(progress):
        nonlocal edits
        canvas, start = progress.canvas, progress.block_end - BLOCK
        now = {int(p): int(canvas.ids[p]) for p in np.flatnonzero(~canvas.is_masked)}
        changed = [p for p in placed if now.get(p) != placed[p]]
        assert all(p >= start and not canvas.is_given[p] and p in now for p in changed)
        assert MASK not in now.values()
        edits += len(changed)
        final.append(canvas.final_tokens(())[0])
        placed.clear()
        placed.update(now)

    tokens, stats = decode(
        conventions, prompt_of(length), model=ToyModel(3, forbid=[EOS], sharpness=20.0), sampler="edit", cache=cache,
        on_step=watch, fixed=fixed, threshold=0.5, edit_threshold=0.3, max_post_steps=5,
    )  # fmt: skip
    assert len(tokens) == 19 and [tokens[at] for at in fixed] == list(fixed.values())
    assert [placed[p] for p in range(length)] == prompt_of(length)
    assert stats.steps <= 19 + 2 * BLOCK + 5 * 8
    assert edits > 0
    assert final[-1] == tokens and all(given == tokens[: len(given)] for given in final)


def test_two_tokens_that_replace_each_other_end_at_the_cap():
    class Contrary(ToyModel):
        """Always sure of another token than the one that stands there."""

        def run(self, ids, *args, **options):
            self.ids = np.asarray(ids)
            return super().run(ids, *args, **options)

        def logits(self, hidden, positions):
            rows = np.zeros((len(positions), self.vocab), np.float32)
            rows[np.arange(len(positions)), np.where(self.ids[positions] == 1, 2, 1)] = 20.0
            return rows

    settings = {"model": Contrary(), "sampler": "edit", "gen_len": BLOCK}
    for cap in (0, 1, 4, 16):
        tokens, stats = decode(make_conventions("full", BLOCK), prompt_of(4), max_post_steps=cap, **settings)
        assert stats.steps == 1 + cap and tokens == [1 + cap % 2] * BLOCK


def test_a_block_that_nobody_changes_ends_after_one_look():
    class Settled(ToyModel):
        def logits(self, hidden, positions):
            rows = np.zeros((len(positions), self.vocab), np.float32)
            rows[np.arange(len(positions)), positions % 30] = 20.0
            return rows

    tokens, stats = decode(make_conventions("full", BLOCK), [1], model=Settled(), sampler="edit", gen_len=2 * BLOCK)
    assert stats.steps == 4 and tokens == [i % 30 for i in range(1, 17)]


@pytest.mark.parametrize("family", ["llada", "sdar"])
@pytest.mark.parametrize(
    ("sampler", "options"), [("edit", {"edit_threshold": 0.2}), ("wino", {"threshold_back": 0.99})]
)
def test_text_given_out_never_changes(make_engine, family, sampler, options):
    """Tokens of the block that is being edited are in frames only; a stop string ends the text where it begins."""

    def engine():
        model = ToyModel(5, VOCAB_SIZE, [EOS_ID, PAD_ID, MASK_ID], sharpness=40.0)
        return make_engine(family, model)

    settings = {"max_new_tokens": 40, "sampler": sampler, "threshold": 0.3, "sampler_options": options}
    events, revised, text, last = [], 0, "", {}
    job_engine = engine()
    job = job_engine.submit("some words", on_event=events.append, **settings)
    result = job.result(20)
    for event in events:
        if isinstance(event, Text):
            text += event.text
            assert result.text.startswith(text)
        if isinstance(event, Frame):
            now = {event.committed_tokens + i: cell.token_id for i, cell in enumerate(event.cells)}
            final = dict(enumerate(result.token_ids[: event.committed_tokens]))
            revised += sum((now | final).get(at, token) != token for at, token in last.items() if token is not None)
            last = now
    assert text == result.text and revised > 0
    assert text == job_engine.parts.codec.decode(result.token_ids)
    frames = [event for event in events if isinstance(event, Frame)]
    assert frames[-1].committed_tokens == result.new_tokens == 40 and not frames[-1].cells
    middle = len(result.text) // 2
    stop = result.text[middle : middle + 3]
    stopped = engine().generate("some words", stop=stop, **settings)
    assert stopped.text == result.text[: result.text.index(stop)] and stopped.stop_reason == "stop"
    assert stopped.steps < result.steps
