"""Settings of one generation as the denoising loop takes them: what sampler, family and layout have, and what they refuse."""

from __future__ import annotations

import secrets

from dlm_edge.errors import UsageProblem
from dlm_edge.families.spec import Conventions
from dlm_edge.runtime.attention import POLICIES, AttentionSettings
from dlm_edge.runtime.cache import FREE_WINDOW, check_cache_fits
from dlm_edge.runtime.decode_settings import DecodeSettings
from dlm_edge.runtime.layouts import layout_kind
from dlm_edge.runtime.sampler_options import sampler_options
from dlm_edge.runtime.samplers import SAMPLERS
from dlm_edge.runtime.scores import Sampling
from dlm_edge.runtime.settings import DEFAULT_MAX_NEW_TOKENS, DEFAULT_SAMPLER, GenerateSettings

SPARSED_BLOCK = 32  # the paper's for short tasks; 128 for long ones


def resolve(
    settings: GenerateSettings, conventions: Conventions, *, room: int, layout: str = "kv-fp32"
) -> DecodeSettings:
    """Settings of the loop for one family; `room` is how many tokens fit after the prompt, `layout` that of the caches.

    Raises E-PARAM for a combination that the sampler, the family or the layout does not have.
    """
    sampler = SAMPLERS[settings.sampler or DEFAULT_SAMPLER]
    options = sampler_options(sampler, settings.own_options)
    block, sub_block = block_lengths(settings.block_length, conventions)
    stores = layout_kind(layout).form != "none"
    auto = "none" if not stores or settings.cfg_scale else "prefix" if conventions.attention == "full" else "block"
    cache = settings.cache if settings.cache != "auto" else auto
    check_cache_fits(cache, conventions)
    if cache != "none" and not stores:
        message = f"the {cache} cache stores keys, and this bundle was exported without room for them"
        raise UsageProblem("E-PARAM", message, "use the cache none, or export with --cache kv")
    if settings.refresh_every is not None and cache not in ("prefix", "dual", "freecache"):
        message = f"refresh_every has no meaning for the {cache} cache"
        raise UsageProblem("E-PARAM", message, "use the prefix, dual or freecache cache, or drop it")
    if settings.cache_window is not None and cache != "freecache":
        message = f"cache_window has no meaning for the {cache} cache"
        raise UsageProblem("E-PARAM", message, "use the cache freecache, or drop it")
    if settings.cfg_scale and cache != "none":
        message = f"cfg_scale hides the prompt in every step, and the {cache} cache keeps it"
        raise UsageProblem("E-PARAM", message, "use the cache none, or drop it")
    attention = attention_settings(settings, layout)
    if attention.policy != "dense" and (settings.cfg_scale or sampler.drafts or sampler.needs.needs_left_out):
        what = "cfg_scale" if settings.cfg_scale else f"the sampler {sampler.name}"
        message = f"{what} evaluates several texts at once, which attention {attention.policy} keeps no state for"
        raise UsageProblem("E-PARAM", message, "use dense attention")
    if sampler.drafts and layout_kind(layout).has_planes and attention.planes == "first":
        message = f"the sampler {sampler.name} evaluates several texts at once, which reads both planes of codes"
        raise UsageProblem("E-PARAM", message, "set planes to both, or use another sampler")
    if attention.policy == "sparsed" and stores:
        full = conventions.attention == "full"
        hint = "export with --cache none" if full else "use losa, quest, mage or flashblock"
        raise UsageProblem("E-PARAM", f"attention sparsed needs full attention and the layout none, not {layout}", hint)
    if cache == "none" and attention.policy not in ("dense", "sparsed"):
        message = f"attention {attention.policy} chooses among stored keys, and there is no cache"
        hint = "use another cache than none, or dense attention" if stores else "use sparsed, or dense attention"
        raise UsageProblem("E-PARAM", message, hint)
    if attention.needs_masses and not holds_keys(layout):
        message = (
            f"attention {attention.policy} measures stored keys, which a cache of the layout {layout} does not hold"
        )
        raise UsageProblem(
            "E-PARAM", message, "use quest, or losa with the selector bounds, or export with a kv layout"
        )
    seed = settings.seed
    if seed is None:
        seed = 0 if settings.temperature == 0 else secrets.randbits(64)
    return DecodeSettings(
        gen_len=settings.max_new_tokens or max(min(DEFAULT_MAX_NEW_TOKENS, room), 1),
        block_length=block,
        sub_block_length=sub_block,
        options=options,
        guidance=settings.cfg_scale,
        cache=cache,
        refresh_every=settings.refresh_every,
        cache_window=FREE_WINDOW if settings.cache_window is None else settings.cache_window,
        sampling=Sampling(
            temperature=settings.temperature, top_k=settings.top_k, top_p=settings.top_p or 1.0, seed=seed
        ),
        stop_ids=conventions.stop_ids if settings.stop_at_eos else (),
        stop_texts=settings.stops,
        min_new_tokens=settings.min_new_tokens,
        attention=attention,
    )


def holds_keys(layout: str) -> bool:
    return layout_kind(layout).form in ("float", "kv")


def attention_settings(settings: GenerateSettings, layout: str) -> AttentionSettings:
    """E-PARAM for a setting that the chosen policy or the layout does not have. Where keys cannot be measured, losa's own choice of a
    selector is by bounds."""
    own, options = POLICIES[settings.attention].options, {o for p in POLICIES.values() for o in p.options}
    given = {name: value for name in options if (value := getattr(settings, name, None)) is not None}
    for name in given:
        if name not in own:
            owners = ", ".join(n for n, p in POLICIES.items() if name in p.options)
            message = f"{name} does not belong to attention {settings.attention}"
            raise UsageProblem("E-PARAM", message, f"use {owners}, or drop it")
    if settings.planes is not None:
        if not layout_kind(layout).has_planes:
            message = f"planes is {settings.planes!r}, and the cache layout {layout} has no planes of codes"
            raise UsageProblem("E-PARAM", message, "export with --cache kv-int4x2, or drop it")
        given["planes"] = settings.planes
    if settings.attention == "losa" and not holds_keys(layout):
        given = {"selector": "bounds"} | given
    if settings.attention == "sparsed":
        given = {"page_size": SPARSED_BLOCK} | given
    return AttentionSettings(policy=settings.attention, **given)


def block_lengths(asked: int | None, conventions: Conventions) -> tuple[int, int]:
    """Block and sub-block length: free for full attention, fixed by training for all others."""
    own = conventions.block_length
    if asked is None or asked == own:
        return own, conventions.sub_block_length
    if conventions.attention != "full":
        message = f"block_length is {asked}, and this model was trained for blocks of {own}"
        raise UsageProblem("E-PARAM", message, "drop the setting")
    return asked, asked
