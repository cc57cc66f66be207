"""The flags of decoding and of the engine, which `generate` and `chat` have in common, and what becomes of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from dlm_edge.cli.attention_options import attention_options
from dlm_edge.cli.output import progress_line
from dlm_edge.cli.sampler_options import OPTIONS, read_assignments
from dlm_edge.errors import InputFileError, UsageProblem

if TYPE_CHECKING:
    from dlm_edge.runtime import Engine

MAX_CONSTRAINT_BYTES = 1 << 20

Command = TypeVar("Command", bound=Callable[..., Any])

CACHES = {"prefix_cache": "prefix", "dual_cache": "dual", "freecache": "freecache", "no_cache": "none"}
CONSTRAINTS = (
    click.option("--json-schema", metavar="FILE_OR_TEXT", help="The text is JSON that this schema allows."),
    click.option("--regex", metavar="PATTERN", help="The whole text matches."),
    click.option("--grammar", metavar="FILE", help="The text is one of this GBNF grammar."),
)
DECODING = (
    click.option("--raw", is_flag=True, help="Do not apply the chat template."),
    click.option("--max-new-tokens", type=int, metavar="N", help="At most N tokens. Default: 128, or what fits."),
    click.option("--min-new-tokens", type=int, metavar="N", help="No end of text before N tokens."),
    click.option("--stop", multiple=True, metavar="TEXT", help="End before this text; may be given several times."),
    click.option("--ignore-eos", is_flag=True, help="Go on at the end of text, until --max-new-tokens."),
    *OPTIONS,
    *CONSTRAINTS,
    click.option("--cfg-scale", type=float, metavar="W", help="Classifier-free guidance; twice the work, no cache."),
    click.option("--block-length", type=int, metavar="N", help="Tokens per block (models with full attention)."),
    click.option("--temperature", type=float, metavar="T", help="0, the default, always takes the likeliest token."),
    click.option("--top-k", type=int, metavar="K", help="Draw among the K likeliest tokens."),
    click.option("--top-p", type=float, metavar="P", help="Draw among the likeliest tokens that make up P."),
    click.option("--seed", type=int, metavar="N", help="Same seed, same text."),
    click.option("--prefix-cache", is_flag=True, help="Full attention: store K/V before the block. Approximate."),
    click.option("--dual-cache", is_flag=True, help="Full attention: store K/V around the block. Approximate."),
    click.option("--freecache", is_flag=True, help="Full attention: freeze K/V of early positions. Approximate."),
    click.option("--cache-window", type=int, metavar="N", help="Positions before the block that are not frozen."),
    click.option("--no-cache", is_flag=True, help="Compute the whole sequence at every step."),
    click.option("--refresh-every", type=int, metavar="N", help="Steps between full passes of those caches."),
)
ENGINE = (
    click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True),
    click.option("--threads", type=int, metavar="N", help="Default: one per core."),
    click.option("--memory-budget", metavar="SIZE", help="Refuse to go beyond, as in 6GiB."),
    click.option("--background", is_flag=True, help="Yield to all other programs (Linux)."),
    click.option("--guide", metavar="BUNDLE", help="A smaller model that supervises, for --sampler guided."),
)
ENGINE_NAMES = ("device", "threads", "memory_budget", "background", "guide")


def decoding_options(command: Command) -> Command:
    """Flags in the order in which --help shows them: decoding, attention, engine."""
    for option in reversed(ENGINE):
        command = option(command)
    command = attention_options(command)
    for option in reversed(DECODING):
        command = option(command)
    return command


def take_engine(options: dict[str, Any]) -> dict[str, Any]:
    """Remove the engine's flags from `options`: the keyword arguments of `Engine.open`; the guide as it was named.

    Raises E-USAGE for a guide that nothing would ask.
    """
    if options["guide"] is not None and options["sampler"] != "guided":
        raise UsageProblem("E-USAGE", "--guide has no effect without --sampler guided", "give both, or none")
    return {name: options.pop(name) for name in ENGINE_NAMES}


def open_engine(bundle: str, opening: dict[str, Any]) -> Engine:
    """Bundles may also be checkpoint folders or names of reference models, which are exported first."""
    from dlm_edge.artifacts import resolve_bundle
    from dlm_edge.runtime import Engine

    folder, guide = resolve_bundle(bundle, say=progress_line), opening["guide"]
    if guide is not None:
        opening = opening | {"guide": resolve_bundle(guide, say=progress_line)}
    return Engine.open(folder, **opening)


def settings_of(options: dict[str, Any]) -> dict[str, Any]:
    """Of all other flags what was given, under the names of GenerateSettings; `raw` is not among them.

    Raises E-USAGE for cache flags that exclude each other.
    """
    values = {name: value for name, value in options.items() if name not in (*CACHES, "raw", "ignore_eos", "stop")}
    chosen = [kind for flag, kind in CACHES.items() if options[flag]]
    if len(chosen) > 1:
        flags = ", ".join(f"--{flag.replace('_', '-')}" for flag in CACHES)
        raise UsageProblem("E-USAGE", f"{flags} exclude each other", "give one")
    if chosen:
        values["cache"] = chosen[0]
    if values["json_schema"] is not None and not values["json_schema"].lstrip().startswith(("{", "true")):
        values["json_schema"] = read_constraint("--json-schema", values["json_schema"])
    if values["grammar"] is not None:
        values["grammar"] = read_constraint("--grammar", values["grammar"])
    own = read_assignments(values.pop("assignments"))
    if own:
        values["sampler_options"] = own
    if options["stop"]:
        values["stop"] = tuple(options["stop"])
    if options["ignore_eos"]:
        values["stop_at_eos"] = False
    return {name: value for name, value in values.items() if value is not None}


def read_constraint(flag: str, name: str) -> str:
    """The text of a file. Raises E-FILE and E-UTF8."""
    try:
        with Path(name).open("rb") as file:
            data = file.read(MAX_CONSTRAINT_BYTES + 1)
    except OSError as error:
        raise InputFileError("E-FILE", f"{flag} {name}: {error.strerror}", "name a file that can be read") from error
    if len(data) > MAX_CONSTRAINT_BYTES:
        raise InputFileError("E-FILE", f"{flag} {name} is larger than {MAX_CONSTRAINT_BYTES} bytes", "shorten it")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise InputFileError(
            "E-UTF8", f"{flag} {name} is not UTF-8 at byte {error.start}", "save it as UTF-8"
        ) from error
