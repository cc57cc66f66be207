"""What an application and the process that holds the model say to each other: one JSON object per line, in UTF-8.

docs/pipe_protocol.md is the contract for other languages; the structs here are its Python form.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from dlm_edge import errors
from dlm_edge.errors import CODES, DlmEdgeError, InternalError
from dlm_edge.runtime.events import Finished, Frame, Started, Text

VERSION = 1
MAX_LINE = 64 << 20


class Open(msgspec.Struct, frozen=True, tag="open", tag_field="type", forbid_unknown_fields=True):
    """`options` of Engine.open. The first message, and the only one of its kind."""

    id: int
    path: str
    options: dict[str, Any] = {}


class Submit(msgspec.Struct, frozen=True, tag="submit", tag_field="type", forbid_unknown_fields=True):
    """A job of the number `id`; `frames`: whether the provisional canvas is wanted."""

    id: int
    prompt: str | list[Any]  # text, ids, or messages
    raw: bool = False
    frames: bool = True
    settings: dict[str, Any] = {}


class Cancel(msgspec.Struct, frozen=True, tag="cancel", tag_field="type", forbid_unknown_fields=True):
    job: int


class Call(msgspec.Struct, frozen=True, tag="call", tag_field="type", forbid_unknown_fields=True):
    id: int
    verb: Literal["encode", "save_prompt_cache", "load_prompt_cache", "forget_prompt", "stats"]
    arguments: dict[str, Any] = {}


class Close(msgspec.Struct, frozen=True, tag="close", tag_field="type", forbid_unknown_fields=True):
    wait: bool = False


class Reply(msgspec.Struct, frozen=True, tag="reply", tag_field="type"):
    id: int
    value: Any = None


class Failure(msgspec.Struct, frozen=True, tag="error", tag_field="type"):
    """`kind` is the class of the error, which decides a command's exit code."""

    id: int
    kind: str
    code: str
    message: str
    hint: str

    @classmethod
    def of(cls, id: int, error: BaseException) -> Failure:
        if not isinstance(error, DlmEdgeError):
            error = InternalError("E-INTERNAL", f"{type(error).__name__}: {error}", "please report this")
        return cls(id, type(error).__name__, error.code, error.message, error.hint)

    def to_error(self) -> DlmEdgeError:
        kind = getattr(errors, self.kind, None)
        if not (isinstance(kind, type) and issubclass(kind, DlmEdgeError)) or self.code not in CODES:
            return InternalError("E-INTERNAL", f"{self.code}: {self.message}", self.hint)
        return kind(self.code, self.message, self.hint)


class Happened(msgspec.Struct, frozen=True, tag="event", tag_field="type"):
    """An event of the job `id`; the last one is "finished"."""

    id: int
    event: Started | Text | Frame | Finished


Request = Open | Submit | Cancel | Call | Close
Answer = Reply | Failure | Happened

decode_request = msgspec.json.Decoder(Request).decode
decode_answer = msgspec.json.Decoder(Answer).decode


def line(message: Request | Answer) -> bytes:
    return msgspec.json.encode(message) + b"\n"
