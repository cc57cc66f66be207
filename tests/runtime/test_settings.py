"""Ranges, names, and which setting goes with which sampler and family."""

import math

import pytest

from dlm_edge.errors import InputFileError, UsageProblem
from dlm_edge.runtime.accepted import accepted
from dlm_edge.runtime.resolving import resolve
from dlm_edge.runtime.samplers import SAMPLERS
from dlm_edge.runtime.settings import GenerateSettings, with_bundle_defaults
from tests.runtime.toy import EOS, make_conventions

NAN, INF = math.nan, math.inf
BAD = [
    *[("max_new_tokens", v) for v in (0, -1, 10**9, 1.5, "8", True)],
    *[("sampler", v) for v in ("", "Static", 3)],
    *[("steps", v) for v in (0, -1, 10**9)],
    *[("threshold", v) for v in (NAN, INF, -0.1, "0.9")],
    *[("block_length", v) for v in (0, -4, 10**6)],
    *[("temperature", v) for v in (NAN, INF, -1, 101)],
    *[("top_k", v) for v in (0, -1)],
    *[("top_p", v) for v in (0, NAN, 1.1, -0.5)],
    *[("seed", v) for v in (-1, 2**64, 0.5)],
    *[("cache", v) for v in ("yes", None)],
    *[("refresh_every", v) for v in (0, -1)],
]


@pytest.mark.parametrize(("name", "value"), BAD)
def test_out_of_range(name, value):
    with pytest.raises(UsageProblem) as error:
        GenerateSettings.of({"temperature": 1.0, name: value})
    assert error.value.code == "E-PARAM" and name in error.value.message


@pytest.mark.parametrize(
    ("given", "meant"), [("max_token", "max_new_tokens"), ("temprature", "temperature"), ("topk", "top_k")]
)
def test_unknown_name_gets_the_nearest(given, meant):
    with pytest.raises(UsageProblem) as error:
        GenerateSettings.of({given: 1})
    assert meant in error.value.hint


@pytest.mark.parametrize(
    ("name", "value", "takes"),
    [
        ("max_new_tokens", "8", "a whole number"),
        ("stop_at_eos", 1, "true or false"),
        ("stop", (1,), "a list of texts or a text"),
        ("fixed", {"a": 1}, "an object"),
        ("sampler_options", {"gamma": None}, "each takes a number, true, false, a text or a list of texts"),
        ("sampler_options", 5, "an object"),
        ("suffix", 5.5, "a list of whole numbers"),
    ],
)
def test_a_wrong_kind_is_told_in_words(name, value, takes):
    with pytest.raises(UsageProblem) as error:
        GenerateSettings.of({"max_new_tokens": 5, name: value})
    assert error.value.message.startswith(f"{name} is ") and takes in error.value.hint


def test_every_setting_says_what_it_takes_in_words():
    for struct in (GenerateSettings, *(sampler.options for sampler in SAMPLERS.values())):
        for name in struct.__struct_fields__:
            words = accepted(struct, name)
            assert words and "Type" not in words and "|" not in words, name


def resolved(family="block", defaults=None, **values):
    settings = with_bundle_defaults(GenerateSettings.of(values), defaults or {})
    return settings.sampler, resolve(settings, make_conventions(family, 8, 4), room=500)


def test_defaults():
    sampler, decode = resolved()
    assert (sampler, decode.options.threshold, decode.cache, decode.gen_len) == ("threshold", 0.9, "block", 128)
    assert (decode.block_length, decode.sub_block_length, decode.stop_ids) == (8, 4, (EOS,))
    assert resolved("full")[1].cache == "prefix"


def test_bundle_defaults_fill_only_what_is_open():
    defaults = {"sampler": "threshold", "threshold": 0.7, "max_new_tokens": 50}
    assert resolved(defaults=defaults)[1].options.threshold == 0.7
    assert resolved(defaults=defaults, threshold=0.8)[1].options.threshold == 0.8
    sampler, decode = resolved(defaults=defaults, sampler="static")
    assert (sampler, decode.gen_len) == ("static", 50)


@pytest.mark.parametrize("own", [{"threshold": 0.7}, {"sampler_options": {"threshold": 0.7}}])
@pytest.mark.parametrize("stated", [{"threshold": 0.8}, {"sampler_options": {"threshold": 0.8}}])
def test_one_setting_has_two_names_and_the_callers_wins(own, stated):
    defaults = {"sampler": "threshold"} | stated
    assert resolved(defaults=defaults)[1].options.threshold == 0.8
    assert resolved(defaults=defaults, **own)[1].options.threshold == 0.7


@pytest.mark.parametrize(
    "defaults", [{"thresh": 1}, {"sampler": "magic"}, {"sampler": ["static"]}, {"sampler_options": 5}]
)
def test_strange_bundle_defaults_are_refused(defaults):
    with pytest.raises(InputFileError) as error:
        resolved(defaults=defaults)
    assert error.value.code == "E-MANIFEST"


def test_an_option_names_its_sampler():
    assert resolved(steps=64)[0] == "static" and resolved(threshold=0.5)[0] == "threshold"


@pytest.mark.parametrize(
    "values",
    [
        {"sampler": "static", "threshold": 0.9},
        {"sampler": "threshold", "steps": 9},
        {"steps": 9, "threshold": 0.9},
        {"top_k": 5},
        {"top_p": 0.9},
        {"refresh_every": 2},
        {"cache": "none", "refresh_every": 2},
        {"block_length": 16},
    ],
)
def test_settings_that_would_do_nothing_are_refused(values):
    with pytest.raises(UsageProblem) as error:
        resolved(**values)
    assert error.value.code == "E-PARAM"


def test_block_length_is_free_for_full_attention():
    decode = resolved("full", block_length=16)[1]
    assert (decode.block_length, decode.sub_block_length) == (16, 16)


def test_seed_is_drawn_only_when_it_matters():
    assert resolved()[1].sampling.seed == 0 and resolved(temperature=1.0, seed=3)[1].sampling.seed == 3
    assert len({resolved(temperature=1.0)[1].sampling.seed for _ in range(5)}) == 5


def test_whole_text_on_request():
    assert resolved(stop_at_eos=False)[1].stop_ids == ()


def test_no_setting_of_a_sampler_has_the_name_of_another_setting():
    own = {name for sampler in SAMPLERS.values() for name in sampler.option_names} - {"threshold", "steps"}
    assert not own & set(GenerateSettings.__struct_fields__)
