"""Bytes that a request takes beside the weights, and the budget of memory that an application may set."""

from __future__ import annotations

import math
import re

from dlm_edge.errors import ResourceError, UsageProblem
from dlm_edge.families.spec import ModelSpec
from dlm_edge.runtime.attention import POLICIES, AttentionSettings
from dlm_edge.runtime.layouts import CacheShape, PageBounds, layout_kind, open_layout
from dlm_edge.runtime.sequence_memory import CAPACITY_STEP

UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "ki": 1 << 10, "mi": 1 << 20, "gi": 1 << 30}
FLOAT = 4


def rounded_capacity(positions: int) -> int:
    """Positions that a sequence of so many reserves."""
    return math.ceil(positions / CAPACITY_STEP) * CAPACITY_STEP


def cache_bytes(spec: ModelSpec, layout: str, group: int, positions: int) -> int:
    """Of all layers, tails included."""
    one_group = open_layout(layout, CacheShape.of(spec), group, group=group)
    return math.ceil(rounded_capacity(positions) * one_group.bytes_per_token) + one_group.fixed_bytes


def attention_bytes(spec: ModelSpec, layout: str, attention: AttentionSettings, positions: int, rows: int) -> int:
    """What sparse attention keeps: page bounds and masses, the queries and prefix results of `rows` rows of a window; or
    without a cache the pattern, a byte for every pair of blocks of a head."""
    capacity = rounded_capacity(positions)
    if layout_kind(layout).form == "none":
        n_slots = math.ceil(capacity / attention.page_size) if attention.policy == "sparsed" else 1
        return spec.n_layers * spec.n_heads * n_slots**2
    rows = rows if POLICIES[attention.policy].keeps_rows else 1
    kept = FLOAT * spec.n_layers * spec.n_heads * rows * (3 * spec.head_dim + 1)
    if not (attention.needs_bounds or attention.needs_masses):
        return kept
    page = attention.page_size
    kept += FLOAT * spec.n_layers * spec.n_kv_heads * (capacity // page)
    if not attention.needs_bounds:
        return kept
    one_page = PageBounds(CacheShape.of(spec), page, page)
    return kept + math.ceil(one_page.bytes_per_token * capacity) + one_page.fixed_bytes


def check_budget(budget: int | None, weights: int, working: int) -> None:
    """E-MEM where both together are more than `budget`."""
    if budget is not None and weights + working > budget:
        message = f"{weights} bytes of weights and {working} of caches and scores exceed the budget of {budget}"
        raise ResourceError("E-MEM", message, "raise the budget, shorten the request, or export fewer bits per weight")


def parse_bytes(value: int | str | None) -> int | None:
    """Bytes from 6442450944, "6GiB" or "1.5 GB". Raises E-PARAM."""
    if value is None or (isinstance(value, int) and not isinstance(value, bool) and value > 0):
        return value
    text = value.lower() if isinstance(value, str) else ""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(|[kmg]i?)b?\s*", text)
    if match is None or float(match[1]) <= 0:
        raise UsageProblem("E-PARAM", f"memory_budget is {value!r}", 'give bytes, or a size like "6GiB"')
    return int(float(match[1]) * UNITS[match[2]])
