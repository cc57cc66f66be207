"""The flags of sparse attention, which every verb that generates text has in common."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from dlm_edge.errors import UsageProblem

Command = TypeVar("Command", bound=Callable[..., Any])

NAMES = "dense, losa, quest, mage, flashblock or sparsed: what steps read."
OPTIONS = (
    click.option("--budget", type=int, metavar="N", help="losa, quest, mage: prompt tokens that each query reads."),
    click.option("--page-size", type=int, metavar="N", help="losa, quest, mage, sparsed: tokens chosen together."),
    click.option("--sink-pages", type=int, metavar="N", help="Pages at the beginning that are always read."),
    click.option("--recent-pages", type=int, metavar="N", help="Pages before the block that are always read."),
    click.option(
        "--active", type=float, metavar="SHARE", help="losa: rows of a block that attend afresh in each step."
    ),
    click.option("--drift", type=float, metavar="X", help="losa: renew a row when its query has moved further."),
    click.option("--selector", metavar="NAME", help="losa: pages by attention of the first step, or by bounds."),
    click.option("--dense-layers", type=int, metavar="N", help="The first N layers always read everything."),
    click.option("--changed", type=int, metavar="N", help="flashblock: read the prompt again after N new tokens."),
    click.option("--keep", type=float, metavar="SHARE", help="sparsed: blocks of the text that each block reads."),
    click.option("--skip", type=float, metavar="X", help="sparsed: share of new tokens, or steps, before it begins."),
    click.option(
        "--planes", metavar="NAME", help="kv-int4x2: all 8 bits in a block's first step (first), or always (both)."
    ),
)
OF_LAYOUTS = ("planes",)  # goes with every policy, and with some cache layouts
FLAGS = (
    "budget", "page_size", "sink_pages", "recent_pages", "active", "drift", "selector", "dense_layers", "changed",
    "keep", "skip", *OF_LAYOUTS,
)  # fmt: skip


def attention_options(command: Command) -> Command:
    """One `--attention`, and the options of all policies; which of them go together the engine says."""
    return click.option("--attention", metavar="NAME", help=NAMES)(policy_options(command))


def policy_options(command: Command) -> Command:
    for option in reversed(OPTIONS):
        command = option(command)
    return command


def take_attention(options: dict[str, Any]) -> dict[str, Any]:
    """Remove what the flags above gave from `options`, and return what was given."""
    return {name: value for name in FLAGS if (value := options.pop(name)) is not None}


def for_each_policy(names: tuple[str, ...], given: dict[str, Any]) -> list[dict[str, Any]]:
    """Settings of every policy named, each with those of the given options that are its own. E-USAGE for one of nobody."""
    from dlm_edge.runtime.attention import POLICIES

    def own(name: str) -> tuple[str, ...]:
        # Of a name that is not known the engine says which is nearest.
        return (*POLICIES[name].options, *OF_LAYOUTS) if name in POLICIES else tuple(given)

    for option in given:
        if not any(option in own(name) for name in names):
            message = f"--{option.replace('_', '-')} is no option of {', '.join(names)}"
            raise UsageProblem("E-USAGE", message, "add --attention of a policy that has it, or drop it")
    return [{"attention": name} | {k: v for k, v in given.items() if k in own(name)} for name in names]
