"""Every sampler on tiny bundles of the four families, with padding rows in the vocabulary."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dlm_edge.errors import UsageProblem
from dlm_edge.runtime import Engine
from dlm_edge.runtime.samplers import SAMPLERS
from tests.runtime.samplers.claims import claims_of
from tests.runtime.samplers.given import threshold_filter
from tests.tiny import FAMILY_NAMES, MASK_ID, VOCAB_SIZE, make_checkpoint

KINDS = {"llada": "full", "dream": "full-shift", "sdar": "block", "fast_dllm_v2": "block-shift"}
PROMPTS = ([5, 6, 7], [(11 * i) % 250 for i in range(11)])


@pytest.fixture(scope="module")
def engines(tmp_path_factory):
    export = pytest.importorskip("dlm_edge.export", reason="needs onnx").export
    folder, opened = tmp_path_factory.mktemp("samplers"), {}
    for family in FAMILY_NAMES:
        make_checkpoint(folder / family, family, n_layers=1, padded_rows=13)
        export(str(folder / family), str(folder / f"{family}-bundle"))
        guide = folder / "llada-bundle"  # of the same vocabulary, made first
        opened[family] = Engine.open(folder / f"{family}-bundle", threads=1, parallel=2, guide=guide)
        opened[family].parts = replace(opened[family].parts, filter=threshold_filter(8, 0.4, 20.0))
    yield opened
    for engine in opened.values():
        engine.close()


CASES = [(name, f) for name in SAMPLERS for f in FAMILY_NAMES if KINDS[f] not in claims_of(name).refused]
LIMITS = [
    (name, f)
    for name, f in CASES
    if claims_of(name).as_static and (f != "fast_dllm_v2" or SAMPLERS[name].spans is None)  # it has its own sub-blocks
]


def settings_for(sampler, options, **changes):
    own = {name: value for name, value in options.items() if name in SAMPLERS[sampler].option_names}
    return {"sampler": sampler, "sampler_options": own, "max_new_tokens": 13, "stop_at_eos": False} | changes


@pytest.mark.parametrize(("sampler", "family"), CASES)
def test_the_text_is_filled_also_with_two_in_flight(engines, sampler, family):
    engine, options = engines[family], claims_of(sampler).options
    for own, sampling in ((options[0], {}), (options[-1], {"temperature": 0.8, "seed": 5})):
        settings = settings_for(sampler, own, **sampling)
        alone = [engine.generate(prompt, **settings) for prompt in PROMPTS]
        assert all(len(r.token_ids) == 13 and r.stop_reason == "length" for r in alone)
        assert all(0 <= token < VOCAB_SIZE and token != MASK_ID for r in alone for token in r.token_ids)
    jobs = [engine.submit(prompt, **settings) for prompt in PROMPTS]
    assert [job.result(60).token_ids for job in jobs] == [r.token_ids for r in alone]


@pytest.mark.parametrize(("sampler", "family"), LIMITS)
def test_the_limit_is_static(engines, sampler, family):
    for prompt in PROMPTS:
        expected = engines[family].generate(prompt, **settings_for("static", {}))
        found = engines[family].generate(prompt, **settings_for(sampler, claims_of(sampler).as_static[-1]))
        assert found.token_ids == expected.token_ids


@pytest.mark.parametrize(
    ("sampler", "family"), [(name, f) for name in SAMPLERS for f in FAMILY_NAMES if (name, f) not in CASES]
)
def test_what_has_no_meaning_is_refused(engines, sampler, family):
    with pytest.raises(UsageProblem) as error:
        engines[family].generate(PROMPTS[0], **settings_for(sampler, {}))
    assert error.value.code == "E-PARAM"
