"""Coarse while the text thinks, one token after the other in the answer."""

import msgspec
import numpy as np
import pytest
from tokenizers import normalizers

from dlm_edge.errors import UsageProblem
from dlm_edge.runtime.blocks import Canvas
from dlm_edge.runtime.sampler_options import sampler_options
from dlm_edge.runtime.samplers import SAMPLERS
from dlm_edge.runtime.samplers.tccf import last_place
from tests.runtime.decoding import decode, prompt_of
from tests.runtime.samplers.geometries import BLOCK, GEOMETRIES, canvases, everywhere
from tests.runtime.samplers.given import state_of
from tests.runtime.toy import EOS, FAMILIES, ToyModel, make_conventions

START, END = (31,), (32, 33)  # ids that no prompt of prompt_of has
MARKERS = (("think_start", START), ("think_end", END))
NEVER = (("think_start", (50,)), ("think_end", (50,)))


def stage(text, n_prompt=None):
    """Of a block of 4 masks after the text."""
    canvas = Canvas(text[:n_prompt], 99, len(text) + 4, mask_id=99)
    if n_prompt is not None:
        canvas.commit(np.arange(n_prompt, len(text)), np.array(text[n_prompt:]))
    edges = (len(text), len(text) + 4)
    chosen = SAMPLERS["tccf"]
    found = chosen.spans(state_of(span=edges, block=edges, canvas=canvas, tokens=dict(MARKERS)), chosen.options())
    assert found in (None, [(at, at + 1) for at in range(*edges)])
    return "coarse" if found is None else "fine"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ([1, 2, 3], "coarse"),  # nothing has appeared
        ([1, *START, 3], "coarse"),
        ([1, *START, 3, *END], "fine"),
        ([1, *START, *END, 3], "fine"),
        ([1, 3, *END, 7], "fine"),  # the template wrote the beginning elsewhere
        ([1, *START, 3, *END, 7, *START], "coarse"),  # a later turn
        ([1, *START, 3, *END, 7, *START, 5, *END], "fine"),
        ([1, *START, 3, END[0], 7, END[1]], "coarse"),  # not the marker
    ],
)
def test_the_last_marker_decides(text, expected):
    assert stage(text) == expected
    for n_prompt in range(len(text)):  # whoever wrote it
        assert stage(text, n_prompt) == expected


def test_a_block_without_masks_has_no_stage():
    canvas = Canvas([1, *END, 5], 4, 8, mask_id=99, fixed={0: 1, 1: 2, 2: 3, 3: 4})
    chosen = SAMPLERS["tccf"]
    assert chosen.spans(state_of(block=(4, 8), canvas=canvas, tokens=dict(MARKERS)), chosen.options()) is None


def test_last_place():
    ids = np.array([4, 5, 4, 5, 5])
    assert [last_place(ids, marker) for marker in ([4, 5], [5], [5, 4], [4, 4], [4, 5, 4, 5, 5, 4])] == [
        2,
        4,
        1,
        -1,
        -1,
    ]


def test_an_empty_marker_is_refused():
    with pytest.raises(UsageProblem, match="think_end"):
        sampler_options(SAMPLERS["tccf"], {"think_end": ""})
    assert msgspec.structs.asdict(SAMPLERS["tccf"].options())["think_end"] == "</think>"


@everywhere
def test_without_markers_it_is_bacd(family, length, cache):
    found = canvases(family, length, cache, "tccf", tokens=NEVER)
    assert found == canvases(family, length, cache, "bacd")


@pytest.mark.parametrize(("family", "length", "cache"), [g for g in GEOMETRIES if g[1] >= 2])
def test_after_the_prompt_has_closed_its_section_it_goes_left_to_right(family, length, cache):
    """As sub-blocks of one slot do, whatever the model thinks of it."""
    prompt, orders = [*prompt_of(length - 2), *END], []
    for sampler, sub in (("tccf", 4), ("static", 1)):
        seen = []
        decode(
            make_conventions(family, BLOCK, sub),
            prompt,
            model=ToyModel(3, forbid=[EOS, *START], sharpness=20.0),
            cache=cache,
            sampler=sampler,
            tokens=dict(MARKERS),
            on_step=lambda progress, seen=seen: seen.append(progress.canvas.ids.tolist()),
        )
        orders.append(seen)
    assert orders[0] == orders[1]


class Thinker(ToyModel):
    """Sure of everything, and of the end marker at positions 19 and 20."""

    def logits(self, hidden, positions):
        logits = super().logits(hidden, positions) + 0.0
        at = positions + self.shift
        logits[np.arange(len(at)), at % 30] += 60
        for place, token in zip((19, 20), END, strict=True):
            logits[at == place, token] += 200
        return logits


@pytest.mark.parametrize("family", FAMILIES)
def test_a_section_that_closes_inside_a_block_is_seen_from_the_next_one_on(family):
    conventions, model, new = make_conventions(family, BLOCK), Thinker(forbid=[EOS]), []
    model.shift = conventions.logit_shift

    def watch(progress):
        masked = progress.canvas.is_masked
        new.append((progress.block_end, int(np.flatnonzero(~masked).max()), int((~masked).sum())))

    decode(
        conventions, [31, *prompt_of(7)], model=model, sampler="tccf", gen_len=32, tokens=dict(MARKERS), on_step=watch
    )
    coarse, fine = [n for n in new if n[0] <= 24], [n for n in new if n[0] > 24]
    assert len(coarse) <= 4  # two blocks of eight
    assert len(fine) == 16 and [last for _, last, _ in fine] == list(range(24, 40))
    assert [count for _, _, count in fine] == list(range(25, 41))


def test_markers_are_found_in_the_vocabulary(make_engine):
    """A prompt that closes its section in plain text, without a token for the marker."""
    engine = make_engine("llada")
    steps = {}
    for prompt in ("words <end> more", "words <start> more"):
        for sampler in ("tccf", "bacd"):
            own = {"lower": 0.0, "upper": 0.0} | (
                {"think_end": "<end>", "think_start": "<start>"} if sampler == "tccf" else {}
            )
            result = engine.generate(
                prompt, raw=True, sampler=sampler, sampler_options=own, max_new_tokens=16, stop_at_eos=False
            )
            steps[prompt, sampler] = result.steps
    assert steps["words <start> more", "tccf"] == steps["words <start> more", "bacd"] < 8
    assert steps["words <end> more", "bacd"] < 8 and steps["words <end> more", "tccf"] >= 16


def test_a_marker_that_no_token_writes_is_refused(make_engine):
    engine = make_engine("llada")
    engine.parts.codec.tokenizer.normalizer = normalizers.Replace("<think>", "")
    with pytest.raises(UsageProblem, match="no token writes think_start '<think>'"):
        engine.generate([5, 6], sampler="tccf")
