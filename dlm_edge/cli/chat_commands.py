"""The commands of a chat: lines that begin with a slash."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from dlm_edge.errors import UsageProblem
from dlm_edge.runtime.settings import GenerateSettings

if TYPE_CHECKING:
    from dlm_edge.cli.conversation import Conversation

Say = Callable[[str], None]
HELP = {
    "/help": "this list",
    "/reset": "forget what was said",
    "/set NAME VALUE": "change a setting; the value `default` takes it back",
    "/settings": "what is set, and what can be",
    "/save FILE": "write the conversation to a file",
    "/load FILE": "go on with a saved conversation",
    "/quit": "end (also Ctrl-D); Ctrl-C stops an answer and keeps it",
}
NAMES = tuple(usage.split()[0] for usage in HELP)


def is_command(line: str) -> bool:
    """A path or a comment in a prompt is none: `/etc/hosts`, `//`."""
    word = line.split(maxsplit=1)[0] if line.strip() else ""
    return line.startswith("/") and word[1:].isalpha()


def execute(line: str, conversation: Conversation, say: Say) -> bool:
    """Whether the chat goes on. Raises E-USAGE for an unknown command, with the nearest one, or a wrong argument; and what the command raises."""
    name, argument = (line.strip().split(maxsplit=1) + [""])[:2]
    if name not in NAMES:
        near = difflib.get_close_matches(name, NAMES, n=1)
        hint = f"did you mean {near[0]}?" if near else "see /help"
        raise UsageProblem("E-USAGE", f"there is no command {name}", hint)
    usage = next(usage for usage in HELP if usage.split()[0] == name)
    if len(argument.split(maxsplit=1)) < len(usage.split()) - 1 or (argument and " " not in usage):
        raise UsageProblem("E-USAGE", f"{name} was given {argument!r}", f"write {usage}")
    if name == "/quit":
        return False
    if name == "/help":
        width = max(map(len, HELP))
        for usage, meaning in HELP.items():
            say(f"{usage:{width}}  {meaning}")
    elif name == "/reset":
        conversation.reset()
        say("nothing was said")
    elif name == "/set":
        setting, value = argument.split(maxsplit=1)
        conversation.set(setting, value.strip())
        say(f"{setting} = {conversation.value(setting)}")
    elif name == "/settings":
        for setting, value in conversation.settings.items():
            say(f"{setting} = {value}")
        others = [field for field in GenerateSettings.__struct_fields__ if field not in conversation.settings]
        say(f"default: {', '.join(others)}")
    elif name == "/save":
        conversation.save(Path(argument).expanduser())
        say(f"written {argument}: {len(conversation.messages)} messages")
    else:
        conversation.load(Path(argument).expanduser())
        say(f"loaded {argument}: {len(conversation.messages)} messages")
    return True
