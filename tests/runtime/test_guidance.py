"""Classifier-free guidance against a model that computes it by itself, from two plain runs."""

import numpy as np
import pytest

from dlm_edge.errors import UsageProblem
from dlm_edge.runtime.resolving import resolve
from dlm_edge.runtime.samplers import SAMPLERS
from dlm_edge.runtime.settings import GenerateSettings
from tests.runtime.decoding import decode, prompt_of
from tests.runtime.toy import EOS, FAMILIES, MASK, ToyModel, make_conventions

BLOCK, SCALE = 8, 1.5
LENGTHS = [0, 1, BLOCK - 1, BLOCK]
CASES = [(family, length) for family in FAMILIES for length in LENGTHS if length or "shift" not in family]
OWN_INPUT = ("needs_guide", "needs_soft_input", "needs_filter")  # tested where they are
ALONE = [s for s in SAMPLERS.values() if not any(getattr(s.needs, name) for name in OWN_INPUT)]


class Guided(ToyModel):
    """The guided logits themselves, of a text with a prompt of `length` tokens."""

    def __init__(self, length, **options):
        super().__init__(**options)
        self.length = length

    def run(self, ids, start, cache_len, attn_block, logit_rows, policy=None, **options):
        assert start == 0
        hidden = np.array(ids)
        hidden[: self.length] = MASK
        free = super().run(hidden, start, cache_len, attn_block, logit_rows, policy, **options).copy()
        given = super().run(ids, start, cache_len, attn_block, logit_rows, policy, **options)
        return free + np.float32(SCALE + 1) * (given - free)


def trace(sampler, family, length, model, **settings):
    seen = []
    fixed = {3: 5} if family.startswith("full") else {}
    texts = {name: (3, 4) for name in SAMPLERS[sampler].texts}
    tokens, stats = decode(
        make_conventions(family, BLOCK), prompt_of(length), model=model, sampler=sampler, fixed=fixed, tokens=texts,
        on_step=lambda p: seen.append((p.canvas.ids.tolist(), p.canvas.confidence.tolist())), **settings,
    )  # fmt: skip
    return (tokens, seen), stats.forward_passes


@pytest.mark.parametrize(("family", "length"), CASES)
@pytest.mark.parametrize("sampler", [s.name for s in ALONE])
def test_it_is_decoding_with_guided_logits(sampler, family, length):
    if SAMPLERS[sampler].needs.full_attention and not family.startswith("full"):
        pytest.skip("this sampler moves the borders of blocks")
    model, expected = ToyModel(2, sharpness=12.0), Guided(length, seed=2, sharpness=12.0)
    found = trace(sampler, family, length, model, guidance=SCALE)
    assert found == trace(sampler, family, length, expected)
    if length:
        assert found != trace(sampler, family, length, model)


@pytest.mark.parametrize("sampler", ["static", "freedave", "wino"])
def test_scale_zero_is_none(sampler):
    model = ToyModel(2)
    assert trace(sampler, "full", 9, model, guidance=0.0) == trace(sampler, "full", 9, model)
    assert len(model.runs) == 2 * trace(sampler, "full", 9, ToyModel(2))[1] or sampler != "static"


def test_without_batching_it_costs_twice_as_many_passes():
    class Single(ToyModel):
        batches_copies = False

    settings = {"gen_len": 16, "stop_ids": ()}
    (_, one), (_, two) = (
        decode(make_conventions("full", BLOCK), prompt_of(9), model=Single(forbid=[EOS]), guidance=scale, **settings)
        for scale in (0.0, 1.0)
    )
    assert (one.forward_passes, two.forward_passes) == (16, 32)


@pytest.mark.parametrize(
    ("family", "cache"), [("full", "prefix"), ("full", "dual"), ("full", "freecache"), ("block", "block")]
)
def test_caches_are_refused(family, cache):
    conventions = make_conventions(family, BLOCK)
    with pytest.raises(UsageProblem) as error:
        resolve(GenerateSettings(cfg_scale=1.0, cache=cache), conventions, room=100)
    assert error.value.code == "E-PARAM" and "cfg_scale" in error.value.message
    assert resolve(GenerateSettings(cfg_scale=1.0), conventions, room=100).cache == "none"


def test_sparse_attention_is_refused():
    with pytest.raises(UsageProblem) as error:
        resolve(GenerateSettings(cfg_scale=1.0, attention="sparsed"), make_conventions("full"), room=100, layout="none")
    assert error.value.code == "E-PARAM" and "several texts" in error.value.message
