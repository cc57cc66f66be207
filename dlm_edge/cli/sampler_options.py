"""The flags that choose a sampler and its settings, for every verb that decodes."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click

from dlm_edge.errors import UsageProblem

Command = TypeVar("Command", bound=Callable[..., Any])

DEFAULT = "threshold"
OPTIONS = (
    click.option("--sampler", metavar="NAME", help="How steps choose what to commit; names in docs/samplers.md."),
    click.option("--threshold", type=float, metavar="P", help="Commit every token at least this likely."),
    click.option("--steps", type=int, metavar="N", help="Denoising steps in total, of samplers that plan them."),
    click.option(
        "-s",
        "--set",
        "assignments",
        multiple=True,
        metavar="NAME=VALUE",
        help="Another setting of the sampler; repeatable.",
    ),
)


def sampler_options(command: Command) -> Command:
    for option in reversed(OPTIONS):
        command = option(command)
    return command


def take_sampler(options: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Remove the flags from `options`: the sampler's name and its own settings."""
    sampler, threshold, steps = (options.pop(name) for name in ("sampler", "threshold", "steps"))
    own = read_assignments(options.pop("assignments"))
    for name, value in (("threshold", threshold), ("steps", steps)):
        if value is not None:
            if name in own:
                raise UsageProblem("E-USAGE", f"--{name} and --set {name}= are the same", "give one of them")
            own[name] = value
    return sampler or DEFAULT, own


def read_assignments(assignments: Sequence[str]) -> dict[str, Any]:
    """NAME=VALUE, where the value is a number, true, false, a JSON list of strings, or else a text."""
    found: dict[str, Any] = {}
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        if not equals or not name:
            raise UsageProblem("E-USAGE", f"--set {assignment} is no NAME=VALUE", "write it as in --set factor=1.2")
        if name in found:
            raise UsageProblem("E-USAGE", f"--set {name}= is given twice", "give it once")
        try:
            found[name] = json.loads(text)
        except ValueError:
            found[name] = text
    return found
