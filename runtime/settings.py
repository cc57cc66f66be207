"""What a caller may ask of one generation: names, ranges, defaults, and which setting belongs to which sampler."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

import msgspec

from dlm_edge.errors import InputFileError, UsageProblem
from dlm_edge.nearest import nearest
from dlm_edge.runtime.accepted import abridged, accepted
from dlm_edge.runtime.attention import POLICIES
from dlm_edge.runtime.constraints.compiling import KINDS
from dlm_edge.runtime.sampler_options import chosen_sampler
from dlm_edge.runtime.samplers import SAMPLERS
from dlm_edge.runtime.stop_text import check_stops

PAGE_SIZES = (8, 16, 32, 64, 128)
CACHES = ("auto", "block", "none", "prefix", "dual", "freecache")
MAX_SEED = 2**64 - 1
DEFAULT_MAX_NEW_TOKENS = 128  # or less, where the context has less room
# The defaults that published decoders of all supported families agree on: greedy, threshold 0.9, exact cache
# for block-causal attention and a cache of the prefix for full attention.
DEFAULT_SAMPLER = "threshold"


SamplerValue = bool | int | float | str | tuple[str, ...]


class GenerateSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """None means the default of the bundle. Raises E-PARAM for a value out of range."""

    max_new_tokens: int | None = None
    min_new_tokens: int = 0  # no end of text before
    stop: tuple[str, ...] | str = ()  # strings that end the text, and are not part of it
    fixed: dict[int, int] | None = None  # tokens that are given: offset after the prompt -> id
    suffix: str | tuple[int, ...] | None = None  # what follows the max_new_tokens that are to be filled
    sampler: str | None = None
    steps: int | None = None  # denoising steps of the whole request, of the samplers that have a plan
    threshold: float | None = None  # confidence that commits a token; above 1: one token per step
    sampler_options: dict[str, SamplerValue] | None = None  # all other settings of the sampler, by name
    cfg_scale: float = 0.0  # classifier-free guidance: how far to move away from what the model says without the prompt
    block_length: int | None = None
    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    seed: int | None = None  # None: 0 at temperature 0, otherwise drawn and reported
    cache: str = "auto"
    refresh_every: int | None = None  # steps between full passes of the prefix, dual and freecache caches
    cache_window: int | None = None  # freecache: positions before the block that every step computes anew
    attention: str = "dense"  # how denoising steps read the prefix: a name of runtime/attention.py
    budget: int | None = None  # prefix tokens that each query reads
    page_size: int | None = None
    sink_pages: int | None = None  # always read: at the beginning, and right before the window
    recent_pages: int | None = None
    active: float | None = None  # losa: share of a window's rows that attend afresh
    drift: float | None = None  # losa: relative squared change of a query after which its row attends afresh
    selector: str | None = None  # losa: pages that held most attention in the "first" step, or by their "bounds"
    dense_layers: int | None = None  # the first layers, which always read everything
    changed: int | None = None  # flashblock: newly filled positions after which the prefix is read again
    keep: float | None = None  # sparsed: share of the blocks of keys that each block of queries reads
    skip: float | None = None  # sparsed: share of the new tokens, or from 1 on number of steps, before it is chosen
    planes: str | None = None  # of codes in two: both in a block's "first" step only, or "both" in every step
    json_schema: dict[str, Any] | bool | str | None = None  # the text is JSON that this schema, or its text, allows
    regex: str | None = None  # the whole text matches
    grammar: str | None = None  # GBNF; the text is one of the rule root
    stop_at_eos: bool = True  # False: always max_new_tokens tokens, stop ids among them

    def __post_init__(self) -> None:
        check_range("max_new_tokens", self.max_new_tokens, 1, 1 << 24)
        check_range("min_new_tokens", self.min_new_tokens, 0, self.max_new_tokens or 1 << 24)
        check_stops(self.stops)
        if self.suffix is not None and self.max_new_tokens is None:
            raise UsageProblem("E-PARAM", "a suffix needs max_new_tokens, the length of the gap before it", "give it")
        check_choice("sampler", self.sampler, tuple(SAMPLERS))
        check_range("steps", self.steps, 1, 1 << 24)
        check_range("threshold", self.threshold, 0.0, 1e6)
        check_range("cfg_scale", self.cfg_scale, 0.0, 100.0)
        check_range("block_length", self.block_length, 1, 1 << 16)
        check_range("temperature", self.temperature, 0.0, 100.0)
        check_range("top_k", self.top_k, 1, 1 << 24)
        check_range("top_p", self.top_p, 0.0, 1.0)
        check_range("seed", self.seed, 0, MAX_SEED)
        check_choice("cache", self.cache, CACHES)
        check_range("refresh_every", self.refresh_every, 1, 1 << 24)
        check_range("cache_window", self.cache_window, 0, 1 << 24)
        check_choice("attention", self.attention, tuple(POLICIES))
        check_range("budget", self.budget, 1, 1 << 24)
        check_choice("page_size", self.page_size, PAGE_SIZES)
        check_range("sink_pages", self.sink_pages, 0, 1 << 16)
        check_range("recent_pages", self.recent_pages, 0, 1 << 16)
        check_range("active", self.active, 0.0, 1.0)
        check_range("drift", self.drift, 0.0, math.inf)
        check_choice("selector", self.selector, ("first", "bounds"))
        check_choice("planes", self.planes, ("first", "both"))
        check_range("dense_layers", self.dense_layers, 0, 1 << 12)
        check_range("changed", self.changed, 1, 1 << 16)
        check_range("keep", self.keep, 0.0, 1.0)
        check_range("skip", self.skip, 0.0, 1 << 24)
        self._check_constraint()
        if self.keep == 0:
            raise UsageProblem("E-PARAM", "keep is 0, which leaves nothing to read", "choose above 0, up to 1")
        if self.skip is not None and self.skip > 1 and self.skip != int(self.skip):
            message = f"skip is {self.skip}, neither a share nor a number of steps"
            raise UsageProblem("E-PARAM", message, "choose below 1, or a whole number")
        if self.top_p == 0:
            raise UsageProblem("E-PARAM", "top_p is 0, which leaves no token to choose", "choose above 0, up to 1")
        for name in ("top_k", "top_p"):
            if self.temperature == 0 and getattr(self, name) is not None:
                raise UsageProblem("E-PARAM", f"{name} has no effect at temperature 0", "set a temperature, or drop it")

    def _check_constraint(self) -> None:
        kinds = [name for name in KINDS if getattr(self, name) is not None]
        if len(kinds) > 1:
            raise UsageProblem("E-PARAM", f"{' and '.join(kinds)} exclude each other", "give one")
        for name in ("stop", "fixed", "suffix", "min_new_tokens") if kinds else ():
            if getattr(self, name):
                message = f"{name} cannot be combined with {kinds[0]}, which says where the text ends"
                raise UsageProblem("E-PARAM", message, "drop one of them")
        if kinds and not self.stop_at_eos:
            message = f"stop_at_eos false cannot be combined with {kinds[0]}, which says where the text ends"
            raise UsageProblem("E-PARAM", message, "drop one of them")

    @property
    def stops(self) -> tuple[str, ...]:
        return (self.stop,) if isinstance(self.stop, str) else self.stop

    @property
    def own_options(self) -> dict[str, Any]:
        """What was given of the sampler's own settings, by the names of its options."""
        named = {name: value for name in ("steps", "threshold") if (value := getattr(self, name)) is not None}
        twice = set(named) & set(self.sampler_options or {})
        if twice:
            message = f"{twice.pop()} is given twice, by itself and in sampler_options"
            raise UsageProblem("E-PARAM", message, "give it once")
        return named | (self.sampler_options or {})

    @classmethod
    def of(cls, values: dict[str, Any]) -> GenerateSettings:
        """From keyword arguments: an unknown name is E-PARAM with the nearest one."""
        for name in values:
            if name not in cls.__struct_fields__:
                raise UsageProblem("E-PARAM", f"there is no setting {name!r}", nearest(name, cls.__struct_fields__))
        try:
            return msgspec.convert(values, cls)
        except msgspec.ValidationError as error:
            found = re.findall(r"`\$\.(\w+)", str(error))
            assert found, error
            name = found[-1]
            hint = f"it takes {accepted(cls, name)}"
            if name == "sampler_options" and isinstance(values[name], dict):
                hint = "each takes a number, true, false, a text or a list of texts"
            raise UsageProblem("E-PARAM", f"{name} is {abridged(values[name])}", hint) from error


def check_range(name: str, value: float | None, low: float, high: float) -> None:
    if value is not None and not low <= value <= high:  # NaN fails every comparison
        found = "NaN" if isinstance(value, float) and math.isnan(value) else value
        raise UsageProblem("E-PARAM", f"{name} is {found}", f"choose {low} to {high}")


def check_choice(name: str, value: str | int | None, known: Sequence[str | int]) -> None:
    if value is not None and value not in known:
        raise UsageProblem("E-PARAM", f"{name} {value!r} is not known", nearest(str(value), known))


def with_bundle_defaults(settings: GenerateSettings, defaults: dict[str, Any]) -> GenerateSettings:
    """Fill what the caller left open from the manifest's sampler_defaults.

    What the manifest says of another sampler than the chosen one is left out: it was not asked for. Settings of the
    sampler are in `sampler_options` afterwards, however they were given. Raises E-PARAM, E-MANIFEST.
    """
    usual, stated = check_defaults(defaults)
    chosen = settings.sampler or chosen_sampler(settings.own_options, usual)
    given = {name for name in settings.__struct_fields__ if getattr(settings, name) != DEFAULTS[name]}
    filled = {name: value for name, value in defaults.items() if name not in given}
    own = (stated if chosen == usual else {}) | settings.own_options
    moved = dict.fromkeys(OF_THE_SAMPLER) | {"sampler": chosen, "sampler_options": own or None}
    return GenerateSettings.of(msgspec.structs.asdict(settings) | filled | moved)


def check_defaults(defaults: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """The sampler that a manifest's sampler_defaults name, and what they say of its own settings. Raises E-MANIFEST."""
    usual, options = defaults.get("sampler") or DEFAULT_SAMPLER, defaults.get("sampler_options") or {}
    odd = ", ".join(sorted(set(defaults) - set(GenerateSettings.__struct_fields__)))
    if not isinstance(usual, str) or usual not in SAMPLERS:
        odd = f"sampler {usual!r}"
    if not isinstance(options, dict):
        odd = f"sampler_options {options!r}"
    if odd:
        raise InputFileError("E-MANIFEST", f"sampler_defaults holds {odd}, unknown here", "export it again")
    named = {name: defaults[name] for name in ("steps", "threshold") if defaults.get(name) is not None}
    return usual, options | named


OF_THE_SAMPLER = ("steps", "threshold", "sampler_options")
DEFAULTS = {name: getattr(GenerateSettings(), name) for name in GenerateSettings.__struct_fields__}
