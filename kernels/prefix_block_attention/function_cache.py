"""How the bodies of PrefixBlockAttention read cached keys and values: the beginning of the cache, as float32."""

from __future__ import annotations

from onnx import TensorProto

from dlm_edge.kernels.function_body import FunctionBody
from dlm_edge.kernels.quantized_pages.planes import BOTH, MIDDLE

PLAIN: tuple[str, ...] = ()
QUANTIZED = ("k_scale", "k_low", "k_tail", "v_scale", "v_low")
PLANES = (*QUANTIZED, "k_lower", "v_lower", "planes")


def plain_keys_and_values(body: FunctionBody) -> None:
    """keys, values float32 [n_kv_heads, kv_len, head_dim] of positions 0 .. kv_len - 1. Reads the values "kv_len",
    int64 [1], and "positions" [kv_len]; the cache may be float32 or float16, and shorter than kv_len."""
    for cache, name in (("k_cache", "keys"), ("v_cache", "values")):
        body("Squeeze", body.float32(_beginning(body, cache, "kv_len")), "zero", name=name)


def int8_keys_and_values(body: FunctionBody) -> None:
    """As plain_keys_and_values, from codes: value = code * scale + low.

    Keys share a scale per channel over groups of k_tail's length, values per token over equal groups of channels.
    The keys of the last, unfinished group are exact and lie in k_tail.
    """
    codes = {cache: _beginning(body, cache, "kv_len") for cache in ("k_cache", "v_cache")}
    _dequantize(body, codes)


def int4_keys_and_values(body: FunctionBody) -> None:
    """As int8_keys_and_values; a byte holds two channels, the even one in the low nibble."""
    _dequantize(body, _nibbles(body, "k_cache", "v_cache"))


def int4x2_keys_and_values(body: FunctionBody) -> None:
    """As int8_keys_and_values, from codes of which k_cache and v_cache hold the upper nibbles, k_lower and v_lower the
    lower ones, each as in int4_keys_and_values. Where `planes`, int64 [1], is not BOTH, a lower nibble counts as 7.5."""
    nibbles = _nibbles(body, "k_cache", "v_cache", "k_lower", "v_lower")
    read_both = body("Equal", "planes", body.ints("both_planes", BOTH))
    codes = {}
    for cache, lower in (("k_cache", "k_lower"), ("v_cache", "v_lower")):
        rest = body("Where", read_both, body.float32(nibbles[lower]), body.number(MIDDLE))
        codes[cache] = body("Add", body("Mul", body.float32(nibbles[cache]), body.number(16.0)), rest)
    _dequantize(body, codes)


def _nibbles(body: FunctionBody, *caches: str) -> dict[str, str]:
    """Of each cache, uint8 [1, n_kv_heads, kv_len, head_dim]."""
    mask, shift = (body("Cast", body.ints(f"nibble_{i}", i), to=TensorProto.UINT8) for i in (15, 4))
    codes = {}
    for cache in caches:
        packed = body("Unsqueeze", _beginning(body, cache, "kv_len"), "rest")
        halves = (body("BitwiseAnd", packed, mask), body("BitShift", packed, shift, direction="RIGHT"))
        pairs = body("Concat", *halves, axis=-1)
        codes[cache] = body.reshape(pairs, "one", body.dim(cache, 1), "kv_len", body.dim("k", 3))
    return codes


def _dequantize(body: FunctionBody, codes: dict[str, str]) -> None:
    group, n_kv_heads, head_dim = body.dim("k_tail", 2), body.dim("k_cache", 1), body.dim("k", 3)
    n_groups = body.ceil_div("kv_len", group)
    group_of = body("Div", "positions", group)
    scale, low = (
        body("Gather", body.float32(_beginning(body, rows, n_groups)), group_of, axis=2)
        for rows in ("k_scale", "k_low")
    )
    coded = body("Add", body("Mul", body.float32(codes["k_cache"]), scale), low)
    n_coded = body("Mul", body("Div", "cache_len", group), group)
    in_tail = body("Sub", "positions", n_coded)
    tail_row = body("Clip", in_tail, body("Squeeze", "zero"), body("Squeeze", body("Sub", group, "one")))
    is_exact = body("Unsqueeze", body("GreaterOrEqual", in_tail, "zero"), "rest")
    exact = body("Gather", body.float32("k_tail"), tail_row, axis=2)
    body("Squeeze", body("Where", is_exact, exact, coded), "zero", name="keys")

    by_group = body.reshape(codes["v_cache"], "one", n_kv_heads, "kv_len", body.dim("v_scale", 3), "rest")
    scale, low = (
        body("Unsqueeze", body.float32(_beginning(body, rows, "kv_len")), "rest") for rows in ("v_scale", "v_low")
    )
    values = body("Add", body("Mul", body.float32(by_group), scale), low)
    body.reshape(values, n_kv_heads, "kv_len", head_dim, name="values")


def _beginning(body: FunctionBody, tensor: str, length: str) -> str:
    """The first `length` rows along axis 2, with zeros where the tensor has fewer."""
    axis = body("Add", "one", "one")
    rows = body("Slice", tensor, "zero", length, axis)
    missing = body("Sub", length, body.dim(rows, 2))
    return body("Pad", rows, body("Concat", "zero", missing, axis=0), "", axis)
