"""`generate` and `chat` take the same settings, and no setting of the engine is without a flag."""

from __future__ import annotations

import click
import pytest

from dlm_edge.cli.chat import command as chat
from dlm_edge.cli.decoding_options import CACHES, DECODING, ENGINE, ENGINE_NAMES, settings_of, take_engine
from dlm_edge.cli.generate import command as generate
from dlm_edge.errors import InputFileError, UsageProblem
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
    opening = {"device": "auto", "threads": None, "memory_budget": None, "background": False, "guide": None}
    assert take_engine(options) == opening
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


def test_a_guide_that_nothing_asks_is_refused():
    options = {"device": "auto", "threads": None, "memory_budget": None, "background": False, "guide": "small"}
    with pytest.raises(UsageProblem, match="--guide has no effect"):
        take_engine(options | {"sampler": "static"})
    assert take_engine(options | {"sampler": "guided"})["guide"] == "small"


def settings_given(*words):
    context = generate.make_context("generate", ["bundle", "-p", "x", *words])
    options = {name: value for name, value in context.params.items() if name not in OWN["generate"]}
    take_engine(options)
    return settings_of(options)


def test_constraints_are_texts_or_come_from_files(tmp_path):
    schema, grammar = tmp_path / "schema.json", tmp_path / "list.gbnf"
    schema.write_text('{"type": "null"}')
    grammar.write_text('root ::= "é"', encoding="utf-8")
    assert settings_given("--json-schema", '{"type": "null"}') == {"json_schema": '{"type": "null"}'}
    assert settings_given("--json-schema", str(schema)) == {"json_schema": '{"type": "null"}'}
    assert settings_given("--grammar", str(grammar)) == {"grammar": 'root ::= "é"'}
    assert settings_given("--regex", str(schema)) == {"regex": str(schema)}


@pytest.mark.parametrize(("data", "code"), [(None, "E-FILE"), (b"\xff", "E-UTF8"), (b" " * (1 << 20 | 1), "E-FILE")])
def test_a_constraint_that_cannot_be_read_is_named(tmp_path, data, code):
    path = tmp_path / "grammar.gbnf"
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(InputFileError, match="grammar.gbnf") as caught:
        settings_given("--grammar", str(path))
    assert caught.value.code == code


def test_freecache_has_a_window():
    words = "bundle -p x --freecache --cache-window 64".split()
    options = {n: v for n, v in generate.make_context("generate", words).params.items() if n not in OWN["generate"]}
    take_engine(options)
    assert settings_of(options) == {"cache": "freecache", "cache_window": 64}
