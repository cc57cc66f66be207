"""`generate` and `chat` take the same settings, and no setting of the engine is without a flag."""

from __future__ import annotations

import click
import pytest

from dlm_edge.cli.chat import command as chat
from dlm_edge.cli.decoding_options import CACHES, DECODING, ENGINE, ENGINE_NAMES, settings_of, take_engine
from dlm_edge.cli.generate import command as generate
from dlm_edge.errors import UsageProblem
from dlm_edge.runtime import GenerateSettings

WITHOUT_A_FLAG = {"fixed"}  # ids at offsets: for programs
OWN = {  # flags that only one of both has
    "generate": {"bundle", "prompt", "prompt_file", "ids", "suffix", "prompt_cache", "as_json", "json_lines"},
    "chat": {"bundle", "system", "load", "no_history", "as_json"},
}


def names(command):
    return {parameter.name for parameter in command.params} - {"quiet", "verbose"}


def test_the_two_verbs_differ_in_what_is_named_here_only():
    assert names(generate) - OWN["generate"] == names(chat) - OWN["chat"]
    flags = {p.name: (p.opts, p.default, p.help) for p in generate.params if isinstance(p, click.Option)}
    for option in chat.params:
        if isinstance(option, click.Option) and option.name not in OWN["chat"] | {"quiet", "verbose"}:
            assert flags[option.name] == (option.opts, option.default, option.help)
    assert len(DECODING) + len(ENGINE) < len(names(generate))


def test_every_setting_has_a_flag():
    flags = names(generate)
    renamed = {"cache": set(CACHES), "stop_at_eos": {"ignore_eos"}, "sampler_options": {"assignments"}}
    for field in GenerateSettings.__struct_fields__:
        assert field in WITHOUT_A_FLAG or renamed.get(field, {field}) <= flags, field


@pytest.mark.parametrize("command", [generate, chat])
def test_what_was_not_given_is_not_set(command):
    context = command.make_context("verb", ["bundle"] + (["-p", "x"] if command is generate else []))
    options = {name: value for name, value in context.params.items() if name not in OWN[command.name]}
    assert take_engine(options) == {"device": "auto", "threads": None, "memory_budget": None, "background": False}
    assert settings_of(options) == {} and not set(ENGINE_NAMES) & set(options)


def test_flags_become_settings():
    words = "bundle -p x --stop a --stop b --ignore-eos --dual-cache --refresh-every 3 --temperature 0.5 --suffix end"
    context = generate.make_context("generate", words.split())
    options = {n: v for n, v in context.params.items() if n not in OWN["generate"] - {"suffix"}}
    take_engine(options)
    found = settings_of(options)
    assert found == {
        "stop": ("a", "b"), "stop_at_eos": False, "cache": "dual", "refresh_every": 3, "temperature": 0.5,
        "suffix": "end",
    }  # fmt: skip
    GenerateSettings.of(found | {"max_new_tokens": 4})
    with pytest.raises(UsageProblem, match="exclude each other"):
        settings_of(options | {"no_cache": True})
