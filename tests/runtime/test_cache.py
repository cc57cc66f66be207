"""Each cache against recomputation, bit for bit, and what each one is allowed to run."""

import pytest

from dlm_edge.errors import UsageProblem
from tests.runtime.decoding import decode, prompt_of
from tests.runtime.toy import FAMILIES, ToyModel, make_conventions

BLOCK = 8
LENGTHS = [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 28]


def with_lengths(*families):
    """A shifted family needs a prompt."""
    return [(f, n) for f in families for n in LENGTHS if n or "shift" not in f]


BLOCK_FAMILIES = ("block", "block-shift", "block-shift predicted")
BLOCK_CASES = [(f, n, 512) for f, n in with_lengths(*BLOCK_FAMILIES)]
BLOCK_CASES += [(f, n, chunk) for f in BLOCK_FAMILIES for n, chunk in ((28, 1), (28, 16), (16, 8))]


def trace(conventions, prompt, **settings):
    """Every intermediate canvas, so that "equal" is not only about the end."""
    seen = []
    result = decode(
        conventions, prompt, on_step=lambda p: seen.append((p.canvas.ids.tolist(), p.canvas.confidence[-40:].tolist())),
        gen_len=30, **settings,
    )  # fmt: skip
    return result[0], seen


@pytest.mark.parametrize("sampler", ["static", "threshold"])
@pytest.mark.parametrize("sub", [BLOCK, 4])
@pytest.mark.parametrize(("family", "length", "chunk"), BLOCK_CASES)
def test_block_cache_is_recomputation(family, length, chunk, sub, sampler):
    name, *rule = family.split()
    changes = {"first_token_rule": rule[0]} if rule else {}
    conventions = make_conventions(name, BLOCK, sub, **changes)
    settings = {"sampler": sampler, "threshold": 0.3, "stop_ids": ()}
    expected = trace(conventions, prompt_of(length), cache="none", **settings)
    assert trace(conventions, prompt_of(length), cache="block", prefill_chunk=chunk, **settings) == expected


@pytest.mark.parametrize("sampler", ["static", "threshold"])
@pytest.mark.parametrize("cache", ["prefix", "dual"])
@pytest.mark.parametrize(("family", "length"), with_lengths("full", "full-shift"))
def test_refresh_at_every_step_is_no_cache(family, cache, length, sampler):
    conventions, settings = make_conventions(family, BLOCK), {"sampler": sampler, "threshold": 0.3, "stop_ids": ()}
    expected = trace(conventions, prompt_of(length), cache="none", **settings)
    assert trace(conventions, prompt_of(length), cache=cache, refresh_every=1, **settings) == expected


@pytest.mark.parametrize("cache", ["prefix", "dual"])
@pytest.mark.parametrize("family", ["full", "full-shift"])
def test_reuse_is_approximate(family, cache):
    """Guards the test above: without refreshing, stored values are stale and the toy model notices."""
    conventions = make_conventions(family, BLOCK)
    expected = decode(conventions, prompt_of(9), cache="none", stop_ids=())[0]
    assert decode(conventions, prompt_of(9), cache=cache, stop_ids=())[0] != expected


def test_windows_of_the_block_cache():
    """Prefill in chunks, the present block only, and in a block's first step the clean one before it."""
    model = ToyModel()
    decode(
        make_conventions("block", 4), prompt_of(9), model=model, cache="block", gen_len=7, prefill_chunk=4, stop_ids=()
    )
    windows = [(0, 4, 0), (4, 8, 4), *[(8, 12, 8)] * 3, (8, 16, 8), *[(12, 16, 12)] * 3]
    assert [run[:3] for run in model.runs] == windows
    assert model.runs[5][3] == [4, 5, 6, 7]  # the clean block needs no logits
    assert [len(run[3]) for run in model.runs] == [0, 0, 3, 2, 1, 4, 3, 2, 1]  # and steps only masked rows


def test_windows_of_the_shifted_block_cache():
    """The clean pass gives the next block's first token, so no row before the window is ever needed."""
    model = ToyModel()
    decode(make_conventions("block-shift", 4), prompt_of(8), model=model, cache="block", gen_len=8, stop_ids=())
    assert model.runs[0] == (0, 8, 0, [7])
    assert model.runs[1] == (8, 12, 8, [0, 1, 2])  # row 0 predicts position 9; position 8 is placed already
    assert [len(run[3]) for run in model.runs[1:4]] == [3, 2, 1]
    assert model.runs[4] == (8, 12, 8, [3])


@pytest.mark.parametrize("shift", [0, 1])
def test_windows_of_the_approximate_caches(shift):
    conventions = make_conventions("full-shift" if shift else "full", 4)
    for cache, end, cache_len in (("prefix", 14, 6 - shift), ("dual", 10, 14)):
        model = ToyModel()
        decode(conventions, prompt_of(6), model=model, cache=cache, gen_len=8, refresh_every=3, stop_ids=())
        reuse = (6 - shift, end, cache_len)
        assert [run[:3] for run in model.runs[:4]] == [(0, 14, 0), reuse, reuse, (0, 14, 0)]
        assert model.runs[4][:3] == (0, 14, 0)  # each block begins with a refresh


def test_logits_only_of_the_sub_block():
    model = ToyModel()
    decode(make_conventions("block", 8, 2), [], model=model, cache="block", gen_len=8, stop_ids=())
    assert model.runs[0][3] == [0, 1] and all(len(run[3]) <= 2 for run in model.runs)


@pytest.mark.parametrize("family", FAMILIES)
def test_cache_that_does_not_fit_is_refused(family):
    for cache in ("block",) if "full" in family else ("prefix", "dual"):
        with pytest.raises(UsageProblem) as error:
            decode(make_conventions(family, BLOCK), [1], cache=cache)
        assert error.value.code == "E-PARAM"
