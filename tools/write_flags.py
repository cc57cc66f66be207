"""docs/flags.md from the code of the command line: `python tools/write_flags.py`, with --check only compare."""

from __future__ import annotations

import sys
from pathlib import Path

import click

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from dlm_edge.cli.program import program  # noqa: E402 - only now it is on the path
from dlm_edge.verbs import EXTRAS, VERBS  # noqa: E402

PAGE = ROOT / "docs" / "flags.md"
HEAD = """\
# All flags

Made from the code by `python tools/write_flags.py`. `dlm-edge VERB --help` prints the same; `--version` and `--help` work
everywhere. Results go to standard output, progress to standard error; with `--json` the result is one JSON object.
A flag, verb or name that does not exist is an error that names the nearest one.

| exit code | means |
|---|---|
| 0 | done |
| 1 | the job failed |
| 2 | wrong usage |
| 3 | an input file cannot be used |
| 4 | not enough memory or disk |
| 5 | the installation lacks something |
| 6 | a bug of ours |
| 130 | stopped by Ctrl-C |

Every verb has, beside its own flags:

| flag | takes | default | |
|---|---|---|---|
"""
COMMON = ("json", "quiet", "verbose")


def page() -> str:
    context = click.Context(program, info_name="dlm-edge")
    commands = {verb: program.get_command(context, verb) for verb in VERBS}
    text = HEAD
    first = next(command for command in commands.values() if command is not None)
    for option in options(first):
        if is_common(option):
            text += row(option, "Print one JSON object." if "--json" in option.opts else option.help)
    for verb, command in commands.items():
        assert command is not None
        text += section(context, verb, command)
    return text


def section(context: click.Context, verb: str, command: click.Command) -> str:
    inner = click.Context(command, info_name=verb, parent=context)
    usage = " ".join([f"dlm-edge {verb}", *command.collect_usage_pieces(inner)])
    paragraphs = [" ".join(part.split()) for part in (command.help or "").split("\n\n")]
    text = f"\n## {verb}\n\n`{usage}`\n\n" + "\n\n".join(paragraphs) + "\n"
    if verb in EXTRAS:
        text += f"\nNeeds `pip install 'dlm-edge[{','.join(EXTRAS[verb])}]'`.\n"
    own = [
        option for option in options(command) if not is_common(option) or "--json" in option.opts and says_more(option)
    ]
    if own:
        text += "\n| flag | takes | default | |\n|---|---|---|---|\n" + "".join(row(o, o.help) for o in own)
    return text


def options(command: click.Command) -> list[click.Option]:
    return [parameter for parameter in command.params if isinstance(parameter, click.Option)]


def is_common(option: click.Option) -> bool:
    return any(flag.lstrip("-") in COMMON for flag in option.opts)


def says_more(option: click.Option) -> bool:
    return (option.help or "").rstrip(".") != "Print one JSON object"


def row(option: click.Option, help_text: str | None) -> str:
    flags = ", ".join(f"`{flag}`" for flag in [*option.opts, *option.secondary_opts])
    several = ", several times" if option.multiple else ""
    default = option.default
    if option.required:
        shown = "required"
    elif option.is_flag or default is None or default in ("", ()) or not isinstance(default, str | int | float | tuple):
        shown = ""
    else:
        shown = ", ".join(f"`{value}`" for value in (default if isinstance(default, tuple) else (default,)))
    return (
        f"| {flags} | {escape(takes(option) + several)} | {shown} | {escape(' '.join((help_text or '').split()))} |\n"
    )


def takes(option: click.Option) -> str:
    if option.is_flag or option.count:
        return ""
    kind = option.type
    if isinstance(kind, click.Choice):
        return ", ".join(str(choice) for choice in kind.choices)
    if isinstance(kind, click.IntRange | click.FloatRange):
        number = "whole number" if isinstance(kind, click.IntRange) else "number"
        low = "" if kind.min is None else f" from {kind.min}"
        return number + low + ("" if kind.max is None else f" to {kind.max}")
    name = {"integer": "whole number", "float": "number"}.get(kind.name, "")
    return name or option.metavar or "text"


def escape(text: str) -> str:
    return text.replace("|", "\\|")


def main(arguments: list[str]) -> int:
    text = page()
    if arguments == ["--check"]:
        if PAGE.read_text(encoding="utf-8") != text:
            print("docs/flags.md is out of date: python tools/write_flags.py", file=sys.stderr)
            return 1
        return 0
    PAGE.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
