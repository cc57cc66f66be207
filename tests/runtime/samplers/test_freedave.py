"""Draft and verify against `static`: the same canvases in the same order, and never more passes."""

import numpy as np
import pytest

from dlm_edge.errors import UsageProblem
from dlm_edge.runtime import Engine
from dlm_edge.runtime.resolving import resolve
from dlm_edge.runtime.samplers import SAMPLERS
from dlm_edge.runtime.scores import Sampling
from dlm_edge.runtime.settings import GenerateSettings
from tests.runtime.decoding import decode, prompt_of
from tests.runtime.samplers.given import scores_of, select, state_of
from tests.runtime.toy import EOS, FAMILIES, ToyModel, make_conventions, mix, pair

BLOCK = 8
LENGTHS = [0, 1, 5, BLOCK - 1, BLOCK]
CACHES = {
    "full": [
        ("none", None),
        ("freecache", None),
        *((cache, every) for cache in ("prefix", "dual") for every in (None, 1, 2, 3)),
    ],
    "block": [("none", None), ("block", None)],
}
CASES = [
    (family, length, *cache)
    for family in (*FAMILIES, "block-shift predicted")
    for length in LENGTHS
    if length or "shift" not in family
    for cache in CACHES[family.split("-")[0]]
    if cache[1] is None or length in (1, 5)
]


class Nearby(ToyModel):
    """Logits depend on the tokens at most `reach` positions away; at 0 on the position alone."""

    def __init__(self, reach, **options):
        super().__init__(**options)
        self.reach = reach

    def run(self, ids, start, cache_len, attn_block, logit_rows, policy=None, **options):
        self.window = (start, np.asarray(ids))
        return super().run(ids, start, cache_len, attn_block, logit_rows, policy, **options)

    def logits(self, hidden, positions):
        start, ids = self.window
        seen = mix(positions + 1000 * self.seed)
        for offset in range(-self.reach, self.reach + 1):
            at = np.clip(positions - start + offset, 0, len(ids) - 1)
            seen = pair(seen, ids[at]) if self.reach else seen
        return super().logits(seen, positions)


def family_of(name, sub=BLOCK):
    kind, *rule = name.split()
    return make_conventions(kind, BLOCK, sub, **({"first_token_rule": rule[0]} if rule else {}))


def trace(sampler, conventions, prompt, model, **settings):
    seen = []
    result, stats = decode(
        conventions, prompt, model=model, sampler=sampler, gen_len=19,
        on_step=lambda p: seen.append((p.step, p.canvas.ids.tolist(), p.canvas.confidence.tolist())), **settings,
    )  # fmt: skip
    return (result, seen, stats.steps, stats.stop_reason), stats.forward_passes


SETTINGS = [
    (ToyModel(0), {}, (1, 4)),
    (ToyModel(1), {"steps": 9, "stop_ids": ()}, (3,)),
    (ToyModel(2), {"sampling": Sampling(temperature=0.8, top_k=7, seed=2)}, (2,)),
    (Nearby(1, seed=3), {"stop_ids": ()}, (4,)),
    (Nearby(0, seed=4), {"stop_ids": ()}, (4,)),
]


@pytest.mark.parametrize(("family", "length", "cache", "every"), CASES)
def test_lossless_with_no_more_passes(family, length, cache, every):
    conventions, saved = family_of(family, 4 if length == 5 else BLOCK), 0
    for model, settings, numbers in SETTINGS:
        settings = {"cache": cache, "refresh_every": every, "cache_window": 4} | settings
        expected, passes = trace("static", conventions, prompt_of(length), model, **settings)
        for drafts in numbers:
            found, taken = trace("freedave", conventions, prompt_of(length), model, drafts=drafts, **settings)
            assert found == expected
            assert taken <= passes and (drafts > 1 or taken == passes)
            saved += passes - taken
    assert saved > 0 or every in (1, 2)  # then no step but the next one runs on what is stored


@pytest.mark.parametrize(("family", "cache"), [("full", "none"), ("full-shift", "dual"), ("block-shift", "block")])
def test_one_canvas_a_pass_costs_what_static_costs(family, cache):
    class Single(ToyModel):
        batches_copies = False

    conventions = make_conventions(family, BLOCK)
    expected, passes = trace("static", conventions, prompt_of(9), Single(2), cache=cache)
    assert trace("freedave", conventions, prompt_of(9), Single(2), cache=cache) == (expected, passes)


@pytest.mark.parametrize("drafts", [1, 2, 4, 8])
@pytest.mark.parametrize("family", FAMILIES)
def test_where_nothing_depends_on_neighbours_all_drafts_hold(family, drafts):
    """A first pass over a block, one for every `drafts` further steps, and those that are not steps."""
    conventions, model = make_conventions(family, BLOCK), Nearby(0, forbid=[EOS])
    settings = {"gen_len": 32, "stop_ids": (), "cache": "none"}
    _, static = decode(conventions, prompt_of(BLOCK), model=model, **settings)
    _, stats = decode(conventions, prompt_of(BLOCK), model=model, sampler="freedave", drafts=drafts, **settings)
    known = family == "block-shift"  # of each block's tokens one costs a pass of its own
    masks = BLOCK - known
    assert static.forward_passes == 4 * BLOCK
    assert stats.forward_passes == 4 * (1 + -(-(masks - 1) // drafts) + known)


def test_a_failing_row_of_a_guess_that_is_wrong_does_no_harm():
    """Only canvases that come true are scored."""
    conventions, hits = make_conventions("full", BLOCK), 0

    class Brittle(ToyModel):
        """NaN for every canvas that `static` never asks for."""

        def __init__(self, allowed):
            super().__init__(5)
            self.allowed = allowed

        def run(self, ids, *args, **options):
            nonlocal hits
            logits = super().run(ids, *args, **options)
            if tuple(ids) not in self.allowed:
                hits += 1
                logits[:] = np.nan
            return logits

    class Recorder(ToyModel):
        def __init__(self):
            super().__init__(5)
            self.asked = set()

        def run(self, ids, *args, **options):
            self.asked.add(tuple(ids))
            return super().run(ids, *args, **options)

    recorder = Recorder()
    expected, _ = trace("static", conventions, prompt_of(3), recorder)
    assert trace("freedave", conventions, prompt_of(3), Brittle(recorder.asked))[0] == expected and hits


def test_drafts_are_the_next_quotas_of_unchanged_scores():
    scores, sampler = scores_of([0.2, 0.9, 0.9, 0.1, 0.5]), SAMPLERS["freedave"]
    state = state_of(5, n_steps=3)  # quotas 2, 2, 1
    chain = sampler.drafts(scores, state, sampler.options())
    assert [c.positions.tolist() for c in chain] == [[11, 12], [10, 14], [13]]
    assert [c.ids.tolist() for c in chain] == [[1, 2], [0, 4], [3]]
    assert select("freedave", scores, state) == [(11, 1), (12, 2)] == select("static", scores, state)


def test_one_plane_of_codes_is_refused():
    """Steps of `static` would read one plane there, and the pass over several canvases reads both."""
    conventions = make_conventions("block", BLOCK)
    with pytest.raises(UsageProblem, match="both planes") as error:
        resolve(GenerateSettings(sampler="freedave"), conventions, room=100, layout="kv-int4x2")
    assert error.value.code == "E-PARAM"
    resolve(GenerateSettings(sampler="freedave", planes="both"), conventions, room=100, layout="kv-int4x2")


@pytest.mark.parametrize("family", ["llada", "dream", "sdar", "fast_dllm_v2"])
def test_real_graphs_give_the_text_of_static_in_fewer_passes(bundles, family):
    saved = 0
    with Engine.open(bundles[family][1], threads=1) as engine:
        assert engine.parts.model.batches_copies == engine.parts.native_operators
        for prompt in ([5, 6, 7], list(range(40, 51))):
            settings = {"max_new_tokens": 24, "stop_at_eos": False}
            expected = engine.generate(prompt, sampler="static", **settings)
            found = engine.generate(prompt, sampler="freedave", **settings)
            assert found.token_ids == expected.token_ids and found.steps == expected.steps
            saved += expected.forward_passes - found.forward_passes
        assert saved > 0 if engine.parts.native_operators else saved == 0
