"""`dlm-edge chat`: a conversation on the terminal, or with the lines of a pipe."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import click

from dlm_edge.cli.decoding_options import decoding_options, open_engine, settings_of, take_engine
from dlm_edge.cli.output import print_json, progress_line
from dlm_edge.cli.running_job import show_text, stop_on_interrupt
from dlm_edge.errors import DlmEdgeError, Stopped, UsageProblem

if TYPE_CHECKING:
    from dlm_edge.cli.conversation import Conversation
    from dlm_edge.cli.line_input import Read
    from dlm_edge.runtime import Engine, Result

CONTINUES = (
    "this bundle has no chat template: what you write is continued as one running text, without roles",
    "--raw: what you write is continued as one running text, without roles",
)


@click.command("chat")
@click.argument("bundle", metavar="BUNDLE")
@click.option("--system", metavar="TEXT", help="What the model is told before the conversation.")
@decoding_options
@click.option("--load", metavar="FILE", help="Go on with a conversation that /save wrote.")
@click.option("--no-history", is_flag=True, help="Neither read nor keep the lines that you type.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object at the end: messages and results.")
def command(bundle: str, as_json: bool, **options: Any) -> None:
    """Talk to BUNDLE, an exported folder, with what was said before in view; /help lists the commands.

    BUNDLE may also be a checkpoint folder or `reference`; it is exported into the user's cache folder first. In a pipe every
    line is a message, and the answers alone are written. Ctrl-C stops an answer and keeps its text; at the prompt it quits.
    """
    system, load, no_history = options.pop("system"), options.pop("load"), options.pop("no_history")
    opening, raw, settings = take_engine(options), options["raw"], settings_of(options)

    from pathlib import Path

    from dlm_edge.cli.chat_commands import NAMES
    from dlm_edge.cli.conversation import Conversation
    from dlm_edge.cli.line_input import edited_lines, history_path, read_piped
    from dlm_edge.runtime import GenerateSettings

    GenerateSettings.of(settings)  # before the bundle is opened, which takes its time
    is_typed = sys.stdin.isatty() and sys.stdout.isatty() and not as_json
    with open_engine(bundle, opening) as engine:
        continued = raw or not engine.has_chat_template
        if continued and system is not None:
            raise UsageProblem("E-USAGE", "--system needs a chat template", "drop it, and --raw")
        conversation = Conversation(continued=continued, settings=settings, system=system)
        if load is not None:
            conversation.load(Path(load))
        if continued:
            progress_line(CONTINUES[raw])
        words = (*NAMES, *GenerateSettings.__struct_fields__)
        history = None if no_history else history_path()
        with edited_lines(history, words) if is_typed else nullcontext(read_piped) as read:
            results: list[Result] = []
            try:
                talk(engine, conversation, read, results, is_typed=is_typed, as_json=as_json)
            except DlmEdgeError as error:
                if not as_json:
                    raise
                print_json(as_object(conversation, results) | {"error": error.to_dict()})  # answers are not lost
                click.get_current_context().exit(error.exit_code)
    if as_json:
        print_json(as_object(conversation, results))
    if not is_typed and was_stopped(results):
        if as_json:  # its one object is printed, an error would be a second one
            click.get_current_context().exit(Stopped.exit_code)
        raise Stopped("E-STOPPED", "stopped", "the text above is what was finished")


def talk(
    engine: Engine, conversation: Conversation, read: Read, results: list[Result], *, is_typed: bool, as_json: bool
) -> None:
    """Add to `results` until the end of input or /quit. What goes wrong with a line is said to whoever types, and ends a pipe.

    On a terminal commands are answered where the text is; in a pipe standard output holds answers alone.
    """
    from dlm_edge.cli.chat_commands import execute, is_command
    from dlm_edge.cli.line_input import read_message

    say = print if is_typed else progress_line
    while (text := read_message(read, "> ")) is not None:
        try:
            if is_command(text):
                if not execute(text, conversation, say):
                    break
            elif text.strip():
                results.append(answer(engine, conversation, text, as_json=as_json))
        except DlmEdgeError as error:
            if not is_typed:
                raise
            say(f"error {error}" + ("; /reset forgets what was said" if error.code == "E-CONTEXT" else ""))
        if not is_typed and was_stopped(results):
            break


def answer(engine: Engine, conversation: Conversation, text: str, *, as_json: bool) -> Result:
    job = conversation.ask(engine, text)
    with stop_on_interrupt(job):
        if not as_json:
            show_text(job)
        result = job.result()
    conversation.answered(text, result)
    return result


def was_stopped(results: list[Result]) -> bool:
    return bool(results) and results[-1].stop_reason == "cancelled"


def as_object(conversation: Conversation, results: list[Result]) -> dict[str, Any]:
    import msgspec

    chat: dict[str, Any] = msgspec.to_builtins(conversation.saved())
    return chat | {"results": msgspec.to_builtins(results)}
