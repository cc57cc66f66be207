"""What every verb has without saying so: -q, -v, completion of paths, and the nearest match for a wrong choice."""

from __future__ import annotations

import difflib
from typing import Any

import click

PATHS = ("BUNDLE", "FILE", "FOLDER", "OTHER", "OUT")  # metavars


class NearestChoice(click.Choice):  # type: ignore[type-arg]  # generic from click 8.2 on only
    """A choice whose refusal names the value that was probably meant."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            return super().convert(value, param, ctx)
        except click.BadParameter as error:
            near = difflib.get_close_matches(str(value), [str(choice) for choice in self.choices], n=1)
            if not near:
                raise
            raise click.BadParameter(f"{error.message} Did you mean {near[0]}?", ctx=ctx, param=param) from None


def with_common_options(command: click.Command) -> click.Command:
    """Give `command` what all verbs have; calling it again changes nothing."""
    names = {parameter.name for parameter in command.params}
    for parameter in command.params:
        if type(parameter.type) is click.Choice:
            parameter.type = NearestChoice(parameter.type.choices, parameter.type.case_sensitive)
        elif parameter.type is click.STRING and (isinstance(parameter, click.Argument) or parameter.metavar in PATHS):
            parameter.type = click.Path()  # a text as before, but shells complete it
    if "quiet" not in names:
        command.params += [
            click.Option(
                ["-q", "--quiet"], is_flag=True, expose_value=False, callback=keep, help="No progress on stderr."
            ),
            click.Option(
                ["-v", "--verbose"],
                is_flag=True,
                expose_value=False,
                callback=keep,
                help="Show where an error came from.",
            ),
        ]
    return command


def keep(context: click.Context, parameter: click.Parameter, value: bool) -> None:
    """In the set of flags that `main` hands to click as the context's object."""
    given = context.find_root().obj
    if value and parameter.name is not None and isinstance(given, set):
        given.add(parameter.name)


def is_quiet() -> bool:
    context = click.get_current_context(silent=True)
    return context is not None and "quiet" in (context.find_root().obj or ())
