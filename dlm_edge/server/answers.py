"""OpenAI's response objects, with what is ours under one key of its own."""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass, field
from typing import Any

from dlm_edge.runtime import Result

FINISH = {"eos": "stop", "stop": "stop", "length": "length"}  # of a cancelled job nobody reads an answer


@dataclass(frozen=True, slots=True)
class Answer:
    """The objects of one request, which share id and time."""

    model: str
    is_chat: bool
    include_usage: bool = False
    id: str = field(default_factory=lambda: secrets.token_hex(12))
    created: int = field(default_factory=lambda: int(time.time()))

    def whole(self, result: Result) -> dict[str, Any]:
        if self.is_chat:
            content: dict[str, Any] = {"message": {"role": "assistant", "content": result.text, "refusal": None}}
        else:
            content = {"text": result.text}
        choice = {"index": 0, **content, "logprobs": None, "finish_reason": FINISH[result.stop_reason]}
        kind = "chat.completion" if self.is_chat else "text_completion"
        return self.frame(kind) | {"choices": [choice], "usage": usage(result), "dlm": numbers(result)}

    def first(self) -> dict[str, Any] | None:
        """Sent once the prompt is accepted."""
        return self.chunk({"role": "assistant", "content": ""}) if self.is_chat else None

    def piece(self, text: str) -> dict[str, Any]:
        return self.chunk({"content": text} if self.is_chat else {"text": text})

    def last(self, result: Result) -> list[dict[str, Any]]:
        ending = self.chunk({} if self.is_chat else {"text": ""}, FINISH[result.stop_reason])
        if not self.include_usage:
            return [ending | {"dlm": numbers(result)}]
        totals = self.frame(ending["object"]) | {"choices": [], "usage": usage(result), "dlm": numbers(result)}
        return [ending, totals]

    def chunk(self, delta: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
        content = {"delta": delta} if self.is_chat else delta
        choice = {"index": 0, **content, "logprobs": None, "finish_reason": finish}
        kind = "chat.completion.chunk" if self.is_chat else "text_completion"
        usage_key = {"usage": None} if self.include_usage else {}
        return self.frame(kind) | {"choices": [choice]} | usage_key

    def frame(self, kind: str) -> dict[str, Any]:
        prefix = "chatcmpl-" if self.is_chat else "cmpl-"
        return {"id": prefix + self.id, "object": kind, "created": self.created, "model": self.model}


def usage(result: Result) -> dict[str, Any]:
    return {
        "prompt_tokens": result.prompt_tokens,
        "completion_tokens": result.new_tokens,
        "total_tokens": result.prompt_tokens + result.new_tokens,
        "prompt_tokens_details": {"cached_tokens": result.reused_tokens},
    }


def numbers(result: Result) -> dict[str, Any]:
    return {
        "steps": result.steps,
        "forward_passes": result.forward_passes,
        "seconds": result.seconds,
        "tokens_per_s": result.effective_tokens_per_s,
        "seed": result.seed,
        "stop_reason": result.stop_reason,
        "density": result.density,
    }
