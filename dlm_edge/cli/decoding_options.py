"""The flags of decoding and of the engine, which `generate` and `chat` have in common, and what becomes of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from dlm_edge.cli.attention_options import attention_options
from dlm_edge.cli.sampler_options import OPTIONS, read_assignments
from dlm_edge.errors import UsageProblem

Command = TypeVar("Command", bound=Callable[..., Any])

CACHES = {"prefix_cache": "prefix", "dual_cache": "dual", "no_cache": "none"}
DECODING = (
    click.option("--raw", is_flag=True, help="Do not apply the chat template."),
    click.option("--max-new-tokens", type=int, metavar="N", help="At most N tokens. Default: 128, or what fits."),
    click.option("--min-new-tokens", type=int, metavar="N", help="No end of text before N tokens."),
    click.option("--stop", multiple=True, metavar="TEXT", help="End before this text; may be given several times."),
    click.option("--ignore-eos", is_flag=True, help="Go on at the end of text, until --max-new-tokens."),
    *OPTIONS,
    click.option("--cfg-scale", type=float, metavar="W", help="Classifier-free guidance; twice the work, no cache."),
    click.option("--block-length", type=int, metavar="N", help="Tokens per block (models with full attention)."),
    click.option("--temperature", type=float, metavar="T", help="0, the default, always takes the likeliest token."),
    click.option("--top-k", type=int, metavar="K", help="Draw among the K likeliest tokens."),
    click.option("--top-p", type=float, metavar="P", help="Draw among the likeliest tokens that make up P."),
    click.option("--seed", type=int, metavar="N", help="Same seed, same text."),
    click.option("--prefix-cache", is_flag=True, help="Full attention: store K/V before the block. Approximate."),
    click.option("--dual-cache", is_flag=True, help="Full attention: store K/V around the block. Approximate."),
    click.option("--no-cache", is_flag=True, help="Compute the whole sequence at every step."),
    click.option("--refresh-every", type=int, metavar="N", help="Steps between full passes of those caches."),
)
ENGINE = (
    click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True),
    click.option("--threads", type=int, metavar="N", help="Default: one per core."),
    click.option("--memory-budget", metavar="SIZE", help="Refuse to go beyond, as in 6GiB."),
    click.option("--background", is_flag=True, help="Yield to all other programs (Linux)."),
)
ENGINE_NAMES = ("device", "threads", "memory_budget", "background")


def decoding_options(command: Command) -> Command:
    """Flags in the order in which --help shows them: decoding, attention, engine."""
    for option in reversed(ENGINE):
        command = option(command)
    command = attention_options(command)
    for option in reversed(DECODING):
        command = option(command)
    return command


def take_engine(options: dict[str, Any]) -> dict[str, Any]:
    """Remove the engine's flags from `options`: the keyword arguments of `Engine.open`."""
    return {name: options.pop(name) for name in ENGINE_NAMES}


def settings_of(options: dict[str, Any]) -> dict[str, Any]:
    """Of all other flags what was given, under the names of GenerateSettings; `raw` is not among them.

    Raises E-USAGE for cache flags that exclude each other.
    """
    values = {name: value for name, value in options.items() if name not in (*CACHES, "raw", "ignore_eos", "stop")}
    chosen = [kind for flag, kind in CACHES.items() if options[flag]]
    if len(chosen) > 1:
        raise UsageProblem("E-USAGE", "--prefix-cache, --dual-cache and --no-cache exclude each other", "give one")
    if chosen:
        values["cache"] = chosen[0]
    own = read_assignments(values.pop("assignments"))
    if own:
        values["sampler_options"] = own
    if options["stop"]:
        values["stop"] = tuple(options["stop"])
    if options["ignore_eos"]:
        values["stop_at_eos"] = False
    return {name: value for name, value in values.items() if value is not None}
