"""The flags of samplers: what they become, what is refused and how, and that shells complete the names."""

from __future__ import annotations

import json

import click
import pytest

from dlm_edge.cli import main
from dlm_edge.cli.sampler_options import SamplerName, read_assignments, sampler_options, take_sampler
from dlm_edge.errors import UsageProblem
from dlm_edge.runtime.samplers import SAMPLERS


def taken(*words):
    @click.command()
    @sampler_options
    def verb(**options):
        pass

    return take_sampler(verb.make_context("verb", list(words)).params)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], ("threshold", {})),
        (["--threshold", "0.7"], ("threshold", {"threshold": 0.7})),
        (["--steps", "4"], ("static", {"steps": 4})),
        (["--sampler", "sdar-dynamic", "--steps", "4"], ("sdar-dynamic", {"steps": 4})),
        (["--sampler", "eb", "-s", "gamma=0.3", "--set", "rule=each"], ("eb", {"gamma": 0.3, "rule": "each"})),
    ],
)
def test_flags_become_a_sampler_and_its_settings(words, expected):
    assert taken(*words) == expected


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1", 1), ("0.5", 0.5), ("true", True), ("each", "each"), ("", ""), ('["a", "b"]', ["a", "b"]), ('"1"', "1"),
        ("a=b", "a=b"), ("[", "["), ("[" * 100_000, "[" * 100_000),
    ],
)  # fmt: skip
def test_values(text, value):
    assert read_assignments([f"name={text}"]) == {"name": value}


@pytest.mark.parametrize("words", [["name"], ["=1"], ["a=1", "a=2"], ["a=null"], ["a={}"], ["a=[1]"], ["a=[[]]"]])
def test_what_is_no_assignment_is_refused(words):
    with pytest.raises(UsageProblem, match="--set") as error:
        read_assignments(words)
    assert error.value.code == "E-USAGE" and error.value.hint


def test_a_setting_is_given_once():
    with pytest.raises(UsageProblem, match="the same"):
        taken("--threshold", "0.7", "--set", "threshold=0.7")


@pytest.mark.parametrize(
    ("words", "message", "hint"),
    [
        ("--sampler treshold", "sampler 'treshold' is not known", "did you mean threshold?"),
        ("--sampler factor --set factor=abc", "factor is 'abc'", "the sampler factor takes a number from 0 to 1000000"),
        ("--sampler factor --set factor=-3", "factor is -3", "from 0"),
        ("--sampler factor --set factor=NaN", "factor is nan", "from 0"),
        ("--sampler eb --set rule=any", "rule is 'any'", "takes each or sum"),
        ("--sampler eb --set gama=1", "gama is no setting of the sampler eb, which has gamma, rule", "mean gamma?"),
        ("--set nosuch=1", "nosuch is no setting of the sampler threshold", "docs/samplers.md"),
        ("--sampler eb --threshold 2", "threshold does not belong to the sampler eb, which has gamma, rule", "drop it, or"),
        ("--sampler static --set steps=0", "steps is 0", "a whole number from 1"),
        ("--set factor=1.2", "factor does not belong to the sampler threshold", "a sampler that has it: factor"),
        ("--sampler adablock --set delimiters=5", "delimiters is 5", "a list of texts"),
        ("--set threshold=true", "threshold is True", "a number"),
        ("--sampler bacd --set lower=0.9 --set upper=0.5", "lower is 0.9, above upper", ""),
        ("--threshold=-2", "threshold is -2", "choose 0.0"),
    ],
)  # fmt: skip
def test_wrong_names_and_values_are_told_plainly(bundle, capsys, words, message, hint):
    assert main(["generate", str(bundle), "-p", "x", "--json", *words.split()]) == 2
    error = json.loads(capsys.readouterr().out)["error"]
    assert error["code"] == "E-PARAM"
    assert error["message"].startswith(message) and hint in error["hint"], error
    assert not any(mark in error["message"] + error["hint"] for mark in "`$") and len(str(error)) < 400


def test_shells_complete_the_names():
    context = click.Context(click.Command("verb"))
    found = [item.value for item in SamplerName().shell_complete(context, click.Option(["--sampler"]), "f")]
    assert found == [name for name in SAMPLERS if name.startswith("f")] and "factor" in found
