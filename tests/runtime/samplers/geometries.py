"""Whole decodes on the toy model, canvas by canvas, over all kinds of families, caches and lengths of prompts."""

from __future__ import annotations

from functools import cache

import pytest

from tests.runtime.decoding import decode, prompt_of
from tests.runtime.toy import EOS, FAMILIES, ToyModel, make_conventions

BLOCK = 8
LENGTHS = [0, 1, 5, BLOCK - 1, BLOCK, BLOCK + 1]
CACHES = {"full": ("none", "prefix", "dual"), "block_causal": ("none", "block")}
GEOMETRIES = [
    (family, length, cache)
    for family in FAMILIES
    for length in LENGTHS
    if length or "shift" not in family
    for cache in CACHES[make_conventions(family).attention]
]
everywhere = pytest.mark.parametrize(("family", "length", "cache"), GEOMETRIES)
with_full_attention = pytest.mark.parametrize(
    ("family", "length", "cache"), [g for g in GEOMETRIES if g[0] in ("full", "full-shift")]
)


def sharp_model(seed=3):
    """One that is often sure, and never ends the text."""
    return ToyModel(seed, forbid=[EOS], sharpness=20.0)


@cache
def canvases(family, length, cache, sampler, *, sub=4, tokens=(), gen_len=19, **settings):
    """(tokens, the canvas after each step); `tokens`: pairs of an option and ids that stand for its texts."""
    seen = []
    found, stats = decode(
        make_conventions(family, BLOCK, sub),
        prompt_of(length),
        model=sharp_model(),
        cache=cache,
        sampler=sampler,
        gen_len=gen_len,
        tokens=dict(tokens),
        on_step=lambda progress: seen.append(tuple(progress.canvas.ids.tolist())),
        **settings,
    )
    assert len(found) == gen_len and len(seen) == stats.steps
    return found, seen
