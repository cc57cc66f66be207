"""Memory of a running model, piece by piece: process, weights, caches, attention state, activations, logits.

Formulas follow the runtime and the step graph for dense attention on the CPU. The constants were fitted to peaks of
Linux processes with onnxruntime 1.31 (reference models and a random one 1024 wide, contexts of 256 to 8192).
"""

from __future__ import annotations

import math

import msgspec

from dlm_edge.errors import UsageProblem
from dlm_edge.families.spec import ModelSpec
from dlm_edge.runtime.attention import AttentionSettings
from dlm_edge.runtime.budget import attention_bytes, cache_bytes
from dlm_edge.runtime.decode_settings import DecodeSettings
from dlm_edge.runtime.layouts import (
    LAYOUTS,
    CacheShape,
    bytes_per_token,
    default_group,
    fitting_layout,
    layout_kind,
    open_layout,
)

PROCESS_BYTES = 80 << 20  # Python, NumPy, ONNX Runtime, the operator library, a tokenizer and a graph
FLOAT = 4
# ONNX Runtime's arena doubles as it grows, and holes stay between passes of different windows.
ARENA_ONE_PASS, ARENA_MANY = 1.05, 2.0
PASS_ROWS = DecodeSettings(gen_len=1, block_length=1, sub_block_length=1).prefill_chunk
LOGIT_COPIES = 3  # the product, the output, and what its probabilities are computed in


class RunMemory(msgspec.Struct, frozen=True, kw_only=True):
    """All in bytes. `ram_bytes` is the sum of those after it, but for `cache_bytes_per_token` and `sparse_bytes`, which
    come on top where another attention than dense is chosen (losa over page bounds has the most)."""

    context: int
    cache: str
    is_own: bool  # the layout that the bundle was exported with
    ram_bytes: int
    process_bytes: int
    weight_bytes: int
    cache_bytes: int
    activation_bytes: int
    logit_bytes: int
    cache_bytes_per_token: float
    sparse_bytes: int


def run_memory(
    spec: ModelSpec, layout: str, group: int, context: int, weight_bytes: int, *, is_own: bool = False
) -> RunMemory:
    """Of one request whose prompt and text together have `context` tokens."""
    parts = {
        "process_bytes": PROCESS_BYTES,
        "weight_bytes": weight_bytes,
        "cache_bytes": cache_bytes(spec, layout, group, context),
        "activation_bytes": activation_bytes(spec, layout, group, context),
        "logit_bytes": LOGIT_COPIES * FLOAT * spec.conventions.sub_block_length * spec.vocab_size,
    }
    return RunMemory(
        context=context,
        cache=layout,
        is_own=is_own,
        ram_bytes=sum(parts.values()),
        cache_bytes_per_token=bytes_per_token(layout, CacheShape.of(spec), group=group),
        sparse_bytes=sparse_bytes(spec, layout, context),
        **parts,
    )


def activation_bytes(spec: ModelSpec, layout: str, group: int, context: int) -> int:
    """Of the widest pass, rows that are remade from a compressed prefix, and rows on their way into the caches.

    Full attention passes over the whole sequence at once, all others over the prompt in pieces.
    """
    is_full = spec.conventions.attention == "full"
    rows = context if is_full else min(PASS_ROWS, context)
    hidden, kv = spec.hidden_size, spec.kv_width
    feed_forward = 2 * hidden + 4 * spec.intermediate_size
    attention = 2 * hidden + 3 * spec.q_width + 4 * kv
    arena = ARENA_ONE_PASS if rows == context else ARENA_MANY
    form = layout_kind(layout).form
    values = math.ceil(FLOAT * rows * max(feed_forward, attention) * arena)
    remade = FLOAT * context * {"x": 2 * hidden + 3 * kv, "latent": 7 * kv, "deltas": 4 * hidden + 8 * kv}.get(form, 0)
    if is_full:  # a pass over everything remakes nothing, and what it stores leaves the graph as codes
        codes = bytes_per_token(layout, CacheShape.of(spec), group=group) if form not in ("none", "float") else 0.0
        return max(values, remade) + math.ceil(rows * codes)
    stored = {"kv": 2 * kv, "x": hidden + kv, "latent": 3 * kv, "deltas": hidden + kv}.get(form, 0)
    return values + remade + FLOAT * rows * spec.n_layers * stored


def sparse_bytes(spec: ModelSpec, layout: str, context: int) -> int:
    """Of the policy that keeps most. Without a cache that is the pattern of `sparsed`."""
    policy = "sparsed" if layout_kind(layout).form == "none" else "losa"
    settings = AttentionSettings(policy=policy, selector="bounds")
    return attention_bytes(spec, layout, settings, context, spec.conventions.block_length)


def fitting_layouts(spec: ModelSpec) -> dict[str, int]:
    """Every layout that this model can be exported with, and its default group."""
    shape = CacheShape.of(spec)
    found: dict[str, int] = {}
    for name in LAYOUTS:
        layout, group = fitting_layout(name, shape), default_group(fitting_layout(name, shape))
        if layout_kind(layout).form == "latent" and name == layout and 2 * shape.kv_width > shape.hidden_size:
            continue  # wider than X itself
        if layout_kind(layout).form == "none" and spec.conventions.attention != "full":
            continue
        try:
            open_layout(layout, shape, 0, group=group)
        except UsageProblem:
            continue  # its rows do not fill whole groups
        found[layout] = group
    return found
