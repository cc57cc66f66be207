"""From a prompt and settings to what the denoising loop takes: everything that can be refused is refused here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from dlm_edge.errors import UsageProblem
from dlm_edge.families.spec import ModelSpec
from dlm_edge.runtime.budget import attention_bytes, cache_bytes, check_budget
from dlm_edge.runtime.constraints.compiling import KINDS
from dlm_edge.runtime.constraints.constraint import WORKING_BYTES, Constraint
from dlm_edge.runtime.decode_settings import DecodeSettings
from dlm_edge.runtime.denoise import check_request, lay_out, widest_step
from dlm_edge.runtime.infilling import check_visible, fixed_tokens
from dlm_edge.runtime.job import Request
from dlm_edge.runtime.learned_filter import Filter
from dlm_edge.runtime.opening import Parts
from dlm_edge.runtime.resolving import resolve
from dlm_edge.runtime.samplers import SAMPLERS, Sampler
from dlm_edge.runtime.settings import GenerateSettings, with_bundle_defaults
from dlm_edge.runtime.template import Message

Prompt = str | Sequence[int] | Sequence[Message]


def prepare(parts: Parts, ids: list[int], values: dict[str, Any]) -> Request:
    """`values`: fields of GenerateSettings. Raises E-PARAM, E-CONTEXT, E-PROMPT, E-MEM and others."""
    spec, conventions = parts.spec, parts.spec.conventions
    chosen = with_bundle_defaults(GenerateSettings.of(values), parts.sampler_defaults)
    decode = resolve(chosen, conventions, room=spec.max_positions - len(ids), layout=parts.cache_layout)
    decode = replace(decode, constraint=constraint_of(parts, chosen, decode))
    decode = replace(decode, fixed=given_tokens(parts, chosen, decode, len(ids)))
    sampler = SAMPLERS[chosen.sampler or ""]
    check_context(spec, len(ids), max(decode.gen_len, 1 + max(decode.fixed, default=0)))
    check_request(conventions, ids, sampler, None if parts.guide is None else parts.guide.spec.conventions)
    decode = replace(decode, tokens=ids_of_texts(parts, sampler, decode), filter=filter_of(parts, sampler, decode))
    working = working_bytes(parts, ids, decode, sampler)
    check_budget(parts.memory_budget, parts.all_weight_bytes, working)
    return Request(ids, decode, sampler, working)


def encode(parts: Parts, prompt: Prompt, *, raw: bool) -> list[int]:
    """Raises E-PROMPT, E-UTF8, E-TEMPLATE and E-TOK."""
    if isinstance(prompt, str):
        messages: Sequence[Message] = [{"role": "user", "content": prompt}]
    elif all(isinstance(entry, dict) for entry in prompt) and len(prompt):
        messages = [entry for entry in prompt if isinstance(entry, dict)]
    else:
        return parts.codec.check_ids([entry for entry in prompt])  # type: ignore[misc]
    if raw or (parts.template is None and isinstance(prompt, str)):
        if not isinstance(prompt, str):
            raise UsageProblem("E-USAGE", "raw goes with a text, not with messages", "drop raw, or give a text")
        return parts.codec.encode_text(prompt)
    if parts.template is None:
        raise UsageProblem("E-TEMPLATE", "this bundle has no chat template for messages", "give a text")
    return parts.codec.encode_chat(messages, parts.template)


def constraint_of(parts: Parts, chosen: GenerateSettings, decode: DecodeSettings) -> Constraint | None:
    """E-PARAM for what cannot be kept to, or has no room."""
    given = {name: value for name in KINDS if (value := getattr(chosen, name)) is not None}
    if not given:
        return None
    needs = SAMPLERS[chosen.sampler or ""].needs
    if needs.can_edit or needs.needs_guide or needs.chooses_ids:
        message = f"the sampler {chosen.sampler} chooses tokens by itself, which {next(iter(given))} cannot follow"
        raise UsageProblem("E-PARAM", message, "use another sampler")
    constraint = parts.constraints.constraint(given, parts.codec.tokenizer, parts.spec.conventions)
    constraint.check_fits(decode.gen_len)
    return constraint


def given_tokens(parts: Parts, chosen: GenerateSettings, decode: DecodeSettings, prompt_len: int) -> dict[int, int]:
    suffix = parts.codec.encode_suffix(chosen.suffix) if chosen.suffix is not None else []
    fixed = fixed_tokens(chosen.fixed or {}, suffix, decode.gen_len)
    parts.codec.check_ids(list(fixed.values()))
    check_visible(fixed, parts.spec.conventions, prompt_len, decode.block_length)
    return fixed


def ids_of_texts(parts: Parts, sampler: Sampler[Any], decode: DecodeSettings) -> dict[str, tuple[int, ...]]:
    """What SelectState.tokens has: ids for the sampler's options that hold texts. Raises E-PARAM."""
    found: dict[str, tuple[int, ...]] = {}
    for name, kind in sampler.texts.items():
        value = getattr(decode.options, name)
        if kind == "marker":
            found[name] = parts.codec.ids_of_marker(value) if value else ()
            if value and not found[name]:
                raise UsageProblem("E-PARAM", f"no token writes {name} {value!r}", "give what the vocabulary has")
            continue
        found[name] = tuple(sorted({i for text in value for i in parts.codec.ids_containing(text)}))
        if value and not found[name]:
            shown = ", ".join(map(repr, value))
            raise UsageProblem("E-PARAM", f"no token contains {name} {shown}", "give what the vocabulary has")
    return found


def filter_of(parts: Parts, sampler: Sampler[Any], decode: DecodeSettings) -> Filter | None:
    """What SelectState.filter is. Raises E-PARAM where the sampler needs one and the bundle has none for these blocks."""
    if not sampler.needs.needs_filter:
        return None
    if parts.filter is None:
        message = f"the sampler {sampler.name} needs a filter, and this bundle has none"
        raise UsageProblem("E-PARAM", message, "make it with `dlm-edge train-filter BUNDLE`, or use another sampler")
    if decode.block_length != parts.filter.block_length:
        message = (
            f"block_length is {decode.block_length}, and the bundle's filter is one for {parts.filter.block_length}"
        )
        raise UsageProblem("E-PARAM", message, "drop the setting, or use another sampler than learn2pd")
    return parts.filter


def working_bytes(parts: Parts, ids: Sequence[int], decode: DecodeSettings, sampler: Sampler[Any]) -> int:
    """What a request takes beside the weights. What `lay_out` refuses is refused here, and not on the worker."""
    conventions = parts.spec.conventions
    blocks, canvas = lay_out(conventions, ids, decode)
    positions = len(canvas.ids)
    rows = widest_step(decode, sampler, blocks, conventions)
    scored = scored_rows(decode, sampler, int(canvas.is_masked.sum()))
    scores = 4 * scored * parts.spec.vocab_size + (WORKING_BYTES if decode.constraint else 0)
    if sampler.needs.needs_guide and parts.guide is not None:
        parts.guide.check_context(positions)
        scores += parts.guide.working_bytes(positions, decode.sub_block_length)
    caches = cache_bytes(parts.spec, parts.cache_layout, parts.cache_group, positions)
    return scores + caches + attention_bytes(parts.spec, parts.cache_layout, decode.attention, positions, rows)


def scored_rows(decode: DecodeSettings, sampler: Sampler[Any], n_masked: int) -> int:
    """Rows of logits that one pass gives at most."""
    rows = decode.sub_block_length
    if sampler.needs.needs_whole_text:
        rows = n_masked
    elif sampler.window is not None:
        rows = sampler.window(decode.options, decode.gen_len, decode.block_length)
    if sampler.needs.needs_placed or sampler.needs.needs_left_out:  # and of the tokens that the block holds
        rows += decode.block_length
    if sampler.drafts is not None:
        rows *= decode.options.drafts  # type: ignore[attr-defined]
    return rows * (2 if decode.guidance else 1)


def check_context(spec: ModelSpec, prompt_tokens: int, gen_len: int) -> None:
    if prompt_tokens + gen_len > spec.max_positions:
        message = (
            f"a prompt of {prompt_tokens} tokens and {gen_len} new ones exceed the context of {spec.max_positions}"
        )
        raise UsageProblem("E-CONTEXT", message, "shorten the prompt, or ask for fewer tokens")
