"""What was said in a chat: the turns, the settings that answer them, and both in a file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from dlm_edge import files
from dlm_edge.cli.sampler_options import read_assignments
from dlm_edge.errors import InputFileError, UsageProblem
from dlm_edge.nearest import nearest, unknown_field
from dlm_edge.runtime.samplers import SAMPLERS
from dlm_edge.runtime.settings import GenerateSettings

if TYPE_CHECKING:
    from dlm_edge.runtime import Engine, Job, Result

SCHEMA, KIND = 1, "dlm-edge chat"
MAX_FILE_BYTES = 64 << 20
DEFAULT_WORDS = ("default", "none")  # /set NAME default: what the bundle says


class Turn(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    role: str
    content: str


class SavedChat(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The content of a file of /save, and of `chat --json`."""

    schema: int = SCHEMA
    kind: str = KIND
    continued: bool  # plain text without roles
    messages: list[Turn]
    settings: dict[str, Any]


class Conversation:
    """Turns go through the chat template; `continued`, their texts are one running text instead.

    settings   keyword arguments of `Engine.submit`; the engine says which of them fit the bundle
    """

    def __init__(self, *, continued: bool, settings: dict[str, Any], system: str | None = None) -> None:
        self.continued, self.system = continued, system
        self.settings = dict(settings)
        GenerateSettings.of(self.settings)
        self.reset()

    def reset(self) -> None:
        self.messages: list[Turn] = [] if self.system is None else [Turn("system", self.system)]

    def ask(self, engine: Engine, text: str) -> Job:
        """Submit `text` after what was said. Nothing is said yet: call `answered` with the result."""
        turns = [*self.messages, Turn("user", text)]
        if self.continued:
            return engine.submit(running_text(turns), raw=True, **self.settings)
        return engine.submit([msgspec.structs.asdict(turn) for turn in turns], **self.settings)

    def answered(self, text: str, result: Result) -> None:
        """Also of an answer that was stopped: what is on the screen was said."""
        self.messages += [Turn("user", text), Turn("assistant", result.text)]

    def set(self, name: str, text: str) -> None:
        """Change one setting, of a sampler too. Raises E-PARAM: unknown name (with the nearest one), wrong type, out of range."""
        if name not in GenerateSettings.__struct_fields__:
            return self.set_of_sampler(name, text)
        changed = {key: value for key, value in self.settings.items() if key != name}
        if text.lower() not in DEFAULT_WORDS:
            try:
                whole = msgspec.convert(changed | {name: text}, GenerateSettings, strict=False)
            except msgspec.ValidationError as error:
                raise UsageProblem("E-PARAM", f"{name} {text!r}: {error}", "see /settings") from error
            changed[name] = getattr(whole, name)
        GenerateSettings.of(changed)
        self.settings = changed

    def set_of_sampler(self, name: str, text: str) -> None:
        """In sampler_options, as `--set` does; whether the chosen sampler has it, the next answer says."""
        known = {option for sampler in SAMPLERS.values() for option in sampler.option_names}
        if name not in known:
            hint = nearest(name, [*GenerateSettings.__struct_fields__, *sorted(known)])
            raise UsageProblem("E-PARAM", f"there is no setting {name!r}", hint)
        own = {key: value for key, value in self.settings.get("sampler_options", {}).items() if key != name}
        if text.lower() not in DEFAULT_WORDS:
            own |= read_assignments([f"{name}={text}"])
        changed = {key: value for key, value in self.settings.items() if key != "sampler_options"}
        changed |= {"sampler_options": own} if own else {}
        GenerateSettings.of(changed)
        self.settings = changed

    def value(self, name: str) -> Any:
        """As it was set, or `default`."""
        return self.settings.get(name, self.settings.get("sampler_options", {}).get(name, DEFAULT_WORDS[0]))

    def saved(self) -> SavedChat:
        return SavedChat(continued=self.continued, messages=self.messages, settings=self.settings)

    def save(self, path: Path) -> None:
        """Raises E-EXISTS for a file that is no saved chat, E-IO."""
        if path.exists():
            try:
                read_chat(path)
            except InputFileError as error:
                message = f"{path} is there, and is no saved chat"
                raise UsageProblem("E-EXISTS", message, "choose another name") from error
        files.write_json(path, msgspec.to_builtins(self.saved()))

    def load(self, path: Path) -> None:
        """Take turns and settings from a file. Raises E-FILE, E-JSON, E-PARAM; then nothing has changed."""
        chat = read_chat(path)
        if chat.continued != self.continued:
            kind = "continued without a chat template" if chat.continued else "made with a chat template"
            hint = "open the chat with --raw" if chat.continued else "open the chat without --raw"
            raise UsageProblem("E-USAGE", f"{path} was {kind}", hint)
        GenerateSettings.of(chat.settings)
        self.messages, self.settings = list(chat.messages), dict(chat.settings)


def running_text(turns: list[Turn]) -> str:
    """What a model without a template continues: every answer directly behind the text it continued."""
    text = ""
    for turn in turns:
        text += ("\n" if text and turn.role == "user" else "") + turn.content
    return text


def read_chat(path: Path) -> SavedChat:
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise InputFileError("E-JSON", f"{path} is larger than {MAX_FILE_BYTES} bytes", "give a saved chat")
        chat = msgspec.json.decode(path.read_bytes(), type=SavedChat)
    except OSError as error:
        raise InputFileError("E-FILE", f"{path}: {error.strerror or error}", "give a file of /save") from error
    except msgspec.DecodeError as error:
        near = unknown_field(str(error), SavedChat.__struct_fields__)
        raise InputFileError("E-JSON", f"{path}: {error}{near}", "give a file of /save") from error
    if (chat.schema, chat.kind) != (SCHEMA, KIND):
        raise InputFileError("E-JSON", f"{path} has schema {chat.schema}, kind {chat.kind}", "give a file of /save")
    return chat
