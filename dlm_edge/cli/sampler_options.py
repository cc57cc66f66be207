"""The flags that choose a sampler and its settings, for every verb that decodes."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click
from click.shell_completion import CompletionItem

from dlm_edge.errors import UsageProblem

Command = TypeVar("Command", bound=Callable[..., Any])

DEFAULT = "threshold"


class SamplerName(click.ParamType):  # type: ignore[type-arg]  # generic in the newest click only
    """A text, checked by whoever decodes; shells complete it."""

    name = "NAME"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        from dlm_edge.runtime.samplers import SAMPLERS  # only now: --help needs no numpy

        return [CompletionItem(name) for name in SAMPLERS if name.startswith(incomplete)]


OPTIONS = (
    click.option(
        "--sampler", type=SamplerName(), metavar="NAME", help="How a step chooses what to commit: docs/samplers.md."
    ),
    click.option("--threshold", type=float, metavar="P", help="Commit every token at least this likely."),
    click.option("--steps", type=int, metavar="N", help="Denoising steps in total, of samplers that plan them."),
    click.option(
        "-s",
        "--set",
        "assignments",
        multiple=True,
        metavar="NAME=VALUE",
        help="Any other setting of the sampler; repeatable.",
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
    if sampler is not None:
        return sampler, own
    from dlm_edge.runtime.sampler_options import chosen_sampler  # only now: --help needs no numpy

    return chosen_sampler(own, DEFAULT), own


def read_assignments(assignments: Sequence[str]) -> dict[str, Any]:
    """NAME=VALUE, where the value is a number, true, false, a text, or a JSON list of texts. Raises E-USAGE."""
    found: dict[str, Any] = {}
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        if not equals or not name:
            raise UsageProblem("E-USAGE", f"--set {assignment} is no NAME=VALUE", "write it as in --set factor=1.2")
        if name in found:
            raise UsageProblem("E-USAGE", f"--set {name}= is given twice", "give it once")
        found[name] = value_of(name, text)
    return found


def value_of(name: str, text: str) -> Any:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text
    is_list = isinstance(value, list) and all(isinstance(each, str) for each in value)
    if value is None or isinstance(value, dict) or (isinstance(value, list) and not is_list):
        message = f"--set {name}={text} is no value"
        raise UsageProblem("E-USAGE", message, 'give a number, true, false, a text, or texts as in ["a", "b"]')
    return value
