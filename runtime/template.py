"""The chat template, rendered in a sandbox: no files, no includes, no clock, bounded work, bounded output."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import minijinja

from dlm_edge.errors import InputFileError, JobError

FUEL = 200_000  # instructions; a conversation of 1,000 messages takes about 30,000
MAX_TEMPLATE_BYTES = 256 << 10
OUTPUT_PER_CONTEXT_TOKEN = 16  # characters of output per position of the context, and at least MIN_OUTPUT
MIN_OUTPUT = 1 << 16
Message = Mapping[str, str]


class ChatTemplate:
    """`render(messages)` gives the prompt text up to where the assistant answers."""

    def __init__(self, source: str, *, max_positions: int, tokens: Mapping[str, str] | None = None) -> None:
        """`tokens` are the names that templates expect, such as bos_token and eos_token."""
        self.source, self.tokens = source, dict(tokens or {})
        self.max_output = max(MIN_OUTPUT, OUTPUT_PER_CONTEXT_TOKEN * max_positions)
        self.environment = minijinja.Environment(
            fuel=FUEL, trim_blocks=True, lstrip_blocks=True, auto_escape_callback=lambda name: False
        )
        self.environment.add_filter("tojson", to_json)
        self.environment.add_global("raise_exception", raise_exception)

    @classmethod
    def read(cls, path: Path, *, max_positions: int, tokens: Mapping[str, str] | None = None) -> ChatTemplate:
        if path.stat().st_size > MAX_TEMPLATE_BYTES:
            raise InputFileError("E-TEMPLATE", f"{path} is larger than {MAX_TEMPLATE_BYTES} bytes", "use --raw")
        try:
            source = path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise InputFileError("E-TEMPLATE", f"{path} is not UTF-8: {error}", "use --raw") from error
        return cls(source, max_positions=max_positions, tokens=tokens)

    def render(self, messages: Sequence[Message]) -> str:
        """Raises E-TEMPLATE for a template that fails, takes too long or writes too much."""
        context: dict[str, Any] = {**self.tokens, "messages": list(messages), "add_generation_prompt": True}
        try:
            text = self.environment.render_str(self.source, **context)
        except BaseException as error:
            if isinstance(error, (KeyboardInterrupt, SystemExit)):
                raise
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise JobError(
                "E-TEMPLATE", f"the chat template failed: {reason}", "use --raw, or other messages"
            ) from error
        if len(text) > self.max_output:
            message = f"the chat template wrote {len(text)} characters, more than {self.max_output}"
            raise JobError("E-TEMPLATE", message, "shorten the messages, or use --raw")
        return text


def raise_exception(message: str) -> NoReturn:
    raise ValueError(message)


def to_json(value: Any, indent: int | None = None, ensure_ascii: bool = False, sort_keys: bool = False) -> str:
    """As transformers defines it for chat templates: nothing escaped for HTML."""
    return json.dumps(value, indent=indent, ensure_ascii=ensure_ascii, sort_keys=sort_keys)
