"""From OpenAI's request to our settings. Every field is understood, known to change nothing, or refused by name."""

from __future__ import annotations

import difflib
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from dlm_edge.runtime.request import Prompt
from dlm_edge.runtime.samplers import SAMPLERS
from dlm_edge.runtime.settings import GenerateSettings
from dlm_edge.server.refusals import Refusal, bad_request

MAX_MESSAGES = 1000
OWN_NAMES = {"max_new_tokens": "max_tokens", "stop": "stop", "temperature": "temperature", "top_p": "top_p"}
OWN_NAMES |= {"seed": "seed"}  # our settings that have OpenAI's name, and are given by it
DLM_FIELDS = tuple(name for name in GenerateSettings.__struct_fields__ if name not in OWN_NAMES)
OF_SAMPLERS = tuple(dict.fromkeys(name for sampler in SAMPLERS.values() for name in sampler.option_names))
# Fields for the provider's accounts and routing: a server of one model on one machine has none.
NO_EFFECT = ("user", "metadata", "store", "safety_identifier", "prompt_cache_key", "service_tier")
# Fields accepted only with the values that ask for nothing.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "logprobs": (False, 0),
    "top_logprobs": (0,),
    "echo": (False,),
    "best_of": (1,),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logit_bias": ({},),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "modalities": (["text"],),
}
COMMON = ("model", "stream", "stream_options", "max_tokens", "temperature", "top_p", "seed", "stop", "dlm", *NO_EFFECT)
CHAT = (
    *COMMON,
    "messages",
    "max_completion_tokens",
    "response_format",
    *(n for n in NEUTRAL if n not in ("echo", "best_of")),
)
COMPLETION = (
    *COMMON,
    "prompt",
    "suffix",
    *("n", "logprobs", "echo", "best_of", "frequency_penalty", "presence_penalty", "logit_bias"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """What one request asks for."""

    prompt: Prompt
    is_chat: bool
    settings: dict[str, Any]  # of Engine.submit
    stream: bool
    include_usage: bool
    canvas: bool

    @property
    def raw(self) -> bool:
        return not self.is_chat and isinstance(self.prompt, str)

    @property
    def param_names(self) -> dict[str, str]:
        """The request's fields by the names of our settings."""
        of_the_sampler = {name: f"dlm.sampler_options.{name}" for name in self.settings.get("sampler_options") or ()}
        return OWN_NAMES | {name: f"dlm.{name}" for name in DLM_FIELDS} | of_the_sampler


def read_chat(body: Any, model: str) -> Generation:
    fields = known_fields(body, CHAT, model)
    if "max_completion_tokens" in fields:
        if "max_tokens" in fields:
            raise bad_request("max_tokens and max_completion_tokens are the same: give one", "max_completion_tokens")
        fields["max_tokens"] = fields.pop("max_completion_tokens")
    return generation(fields, read_messages(fields.get("messages")), is_chat=True)


def read_completion(body: Any, model: str) -> Generation:
    fields = known_fields(body, COMPLETION, model)
    return generation(fields, read_prompt(fields.get("prompt")), is_chat=False)


def known_fields(body: Any, known: tuple[str, ...], model: str) -> dict[str, Any]:
    """The fields that are given: null is as good as absent. Raises Refusal for the others, and for another model."""
    if not isinstance(body, dict):
        raise bad_request("the body must be a JSON object")
    check_names(body, known, "")
    fields = {name: value for name, value in body.items() if value is not None}
    for name, neutral in NEUTRAL.items():
        if name in fields and not is_one_of(fields[name], neutral):
            raise Refusal(400, f"{name} is not supported here; leave it out", code="unsupported_value", param=name)
    asked = fields.get("model", model)
    if asked != model:
        raise Refusal(404, f"there is no such model here; there is {model}", code="model_not_found", param="model")
    return fields


def check_names(given: Mapping[str, Any], known: tuple[str, ...], prefix: str) -> None:
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            few = ", ".join(known) if len(known) <= 4 else "those in docs/serve.md"
            advice = f"did you mean {prefix}{near[0]}?" if near else f"known: {few}"
            shown = ascii(name[:80])
            raise Refusal(
                400, f"there is no field {shown}; {advice}", code="unknown_parameter", param=prefix + name[:80]
            )


def is_one_of(value: Any, choices: tuple[Any, ...]) -> bool:
    """Equal in value and kind: true is not 1. Whole numbers may be written 0.0."""
    return any(value == each and isinstance(value, bool) == isinstance(each, bool) for each in choices)


def generation(fields: dict[str, Any], prompt: Prompt, *, is_chat: bool) -> Generation:
    own = typed(fields, "dlm", dict, {})
    check_names(own, (*DLM_FIELDS, "canvas"), "dlm.")
    options = typed(fields, "stream_options", dict, {})
    check_names(options, ("include_usage",), "stream_options.")
    stream = typed(fields, "stream", bool, False)
    if options and not stream:
        raise bad_request("stream_options go with stream: true only", "stream_options")
    canvas = typed(own, "canvas", bool, False, "dlm.")
    if canvas and not stream:
        raise bad_request("the canvas is streamed: give stream: true", "dlm.canvas")
    settings = {name: own[name] for name in DLM_FIELDS if own.get(name) is not None and name != "sampler_options"}
    settings |= sampler_options(own)
    settings |= {name: fields[theirs] for name, theirs in OWN_NAMES.items() if theirs in fields}
    settings |= response_format(fields, settings)
    if "suffix" in fields:
        if "suffix" in settings:
            raise bad_request("suffix and dlm.suffix are the same: give one", "suffix")
        settings["suffix"] = fields["suffix"]
    if "temperature" in settings and "seed" not in settings and settings["temperature"] != 0:
        settings["seed"] = secrets.randbits(53)  # readers in JavaScript keep no more of a number
    return Generation(
        prompt=prompt,
        is_chat=is_chat,
        settings=without_whole_nucleus(with_offsets(settings)),
        stream=stream,
        include_usage=typed(options, "include_usage", bool, False, "stream_options."),
        canvas=canvas,
    )


def sampler_options(own: Mapping[str, Any]) -> dict[str, Any]:
    """Names and kinds that some sampler has; which of them the chosen one has, and their ranges, the engine says."""
    given = typed(own, "sampler_options", dict, {}, "dlm.")
    check_names(given, OF_SAMPLERS, "dlm.sampler_options.")
    for name, value in given.items():
        is_texts = isinstance(value, list) and all(isinstance(each, str) for each in value)
        if not (value is None or is_texts or isinstance(value, bool | int | float | str)):
            where = f"dlm.sampler_options.{name}"
            raise bad_request(f"{where} must be a number, true, false, a text or a list of texts", where)
    found = {name: value for name, value in given.items() if value is not None}
    return {"sampler_options": found} if found else {}


def response_format(fields: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Of a chat: any text, any JSON object, or what a schema allows; `strict` changes nothing, for it always holds."""
    asked = typed(fields, "response_format", dict, {})
    kind = asked.get("type", "text")
    if kind not in ("text", "json_object", "json_schema"):
        raise bad_request("response_format.type must be text, json_object or json_schema", "response_format.type")
    check_names(asked, ("type", "json_schema") if kind == "json_schema" else ("type",), "response_format.")
    if kind == "text":
        return {}
    if "json_schema" in settings:
        raise bad_request("response_format and dlm.json_schema are the same: give one", "response_format")
    if kind == "json_object":
        return {"json_schema": {"type": "object"}}
    wrapped = typed(asked, "json_schema", dict, {}, "response_format.")
    where = "response_format.json_schema."
    check_names(wrapped, ("name", "description", "schema", "strict"), where)
    typed(wrapped, "strict", bool, True, where)
    if not isinstance(wrapped.get("schema"), dict):
        raise bad_request(f"{where}schema must be an object", f"{where}schema")
    return {"json_schema": wrapped["schema"]}


def typed(fields: Mapping[str, Any], name: str, kind: Callable[..., Any], default: Any, prefix: str = "") -> Any:
    value = fields.get(name)
    if value is None:
        return default
    if not isinstance(value, kind):  # type: ignore[arg-type]
        raise bad_request(f"{prefix}{name} must be {WORDS[kind]}", prefix + name)
    return value


WORDS: dict[Any, str] = {dict: "an object", bool: "true or false"}


def without_whole_nucleus(settings: dict[str, Any]) -> dict[str, Any]:
    """top_p of 1 keeps every token, and at temperature 0 the likeliest token is in every nucleus: by definition it then
    changes nothing. The engine asks to leave it out, which OpenAI's clients do not."""
    top_p, is_greedy = settings.get("top_p"), "temperature" in settings and settings["temperature"] == 0
    is_valid = isinstance(top_p, int | float) and not isinstance(top_p, bool) and 0 < top_p <= 1
    if is_valid and (top_p == 1 or is_greedy):
        return {name: value for name, value in settings.items() if name != "top_p"}
    return settings


def with_offsets(settings: dict[str, Any]) -> dict[str, Any]:
    """JSON has only strings as keys of `fixed`."""
    fixed = settings.get("fixed")
    if not isinstance(fixed, dict):
        return settings
    if not all(key.isascii() and key.isdecimal() and len(key) <= 9 for key in fixed):
        raise bad_request('the keys of dlm.fixed are offsets, such as {"3": 17}', "dlm.fixed")
    return settings | {"fixed": {int(key): value for key, value in fixed.items()}}


def read_messages(messages: Any) -> list[dict[str, str]]:
    if not isinstance(messages, list) or not messages:
        raise bad_request("messages must be a list of at least one message", "messages")
    if len(messages) > MAX_MESSAGES:
        raise bad_request(f"{len(messages)} messages are more than {MAX_MESSAGES}", "messages")
    return [read_message(message, f"messages[{index}]") for index, message in enumerate(messages)]


def read_message(message: Any, where: str) -> dict[str, str]:
    if not isinstance(message, dict):
        raise bad_request(f"{where} must be an object with role and content", where)
    given = {name: value for name, value in message.items() if value is not None}
    check_names(given, ("role", "content"), f"{where}.")
    if not isinstance(given.get("role"), str):
        raise bad_request(f"{where}.role must be a string", f"{where}.role")
    return {"role": given["role"], "content": read_content(given.get("content"), f"{where}.content")}


def read_content(content: Any, where: str) -> str:
    """A string, or OpenAI's list of parts where all are text."""
    if isinstance(content, str):
        return content
    if isinstance(content, list) and all(
        isinstance(part, dict)
        and set(part) == {"type", "text"}
        and part["type"] == "text"
        and isinstance(part["text"], str)
        for part in content
    ):
        return "".join(part["text"] for part in content)
    raise bad_request(f"{where} must be text", where)


def read_prompt(prompt: Any) -> Prompt:
    """A text or a list of token ids; a list of one such."""
    if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], str | list):
        prompt = prompt[0]
    if isinstance(prompt, str):
        return prompt
    if isinstance(prompt, list) and prompt and not any(isinstance(each, str | list | dict) for each in prompt):
        return prompt
    raise bad_request("prompt must be one text, or one list of token ids", "prompt")
