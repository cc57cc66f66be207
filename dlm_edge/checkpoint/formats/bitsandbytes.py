"""bitsandbytes checkpoints in four bits (QLoRA, arXiv 2305.14314): nf4 or fp4 in blocks of 64 along the flattened weight.

    layer.weight                 uint8 [out * in / 2, 1]   high nibble first
    layer.weight.absmax          float32 [blocks], or uint8 with double quantization
    layer.weight.quant_map       float32 [16]
    layer.weight.nested_absmax   float32 [blocks / 256]     layer.weight.nested_quant_map   float32 [256]
    layer.weight.quant_state.bitsandbytes__nf4   uint8 [n]   JSON: sizes, types, offset

With double quantization absmax = nested_quant_map[code] * nested_absmax + nested_offset. Read only: the engines that
we write for have better forms, and the library makes these from any checkpoint while loading.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dlm_edge.checkpoint.formats.format import Entries, Part, Parts, Reader, Variant, check_keys
from dlm_edge.checkpoint.formats.stored import read_floats, read_octets
from dlm_edge.checkpoint.strict_json import parse_json
from dlm_edge.errors import InputFileError
from dlm_edge.families.settings import Settings
from dlm_edge.quantized import CODEBOOK_BLOCK, CODEBOOKS, CodebookTensor

NESTED_BLOCK = 256
MAX_STATE_BYTES = 1 << 16
STORAGE = ("U8", "I8", "BF16", "F16", "F32")  # bnb_4bit_quant_storage: the same bytes under another type
LAYOUT_KEYS = {
    *("quant_method", "load_in_4bit", "_load_in_4bit", "load_in_8bit", "_load_in_8bit", "bnb_4bit_quant_type"),
    *("bnb_4bit_use_double_quant", "bnb_4bit_quant_storage"),
}
# Which layers are packed shows in the weight files; llm_int8_... concern the eight-bit form.
OTHER_KEYS = {
    *("bnb_4bit_compute_dtype", "llm_int8_enable_fp32_cpu_offload", "llm_int8_has_fp16_weight"),
    *("llm_int8_skip_modules", "llm_int8_threshold"),
}
STATE_KEYS = {
    *("quant_type", "blocksize", "dtype", "shape", "nested_blocksize", "nested_dtype", "nested_offset"),
}


def read_config(settings: Settings) -> tuple[Variant, ...]:
    check_keys(settings, LAYOUT_KEYS | OTHER_KEYS)
    for key in ("load_in_8bit", "_load_in_8bit"):
        if settings.flag(key, default=False):
            raise settings.wrong(key, True, "false: only the 4-bit forms can be read")
    for key in ("load_in_4bit", "_load_in_4bit"):
        settings.only(key, True)
    codes = settings.config.get("bnb_4bit_quant_type", "fp4")
    if codes not in ("nf4", "fp4"):
        raise settings.wrong("bnb_4bit_quant_type", codes, "nf4 or fp4")
    settings.only("bnb_4bit_quant_storage", "uint8", "int8", "bfloat16", "float16", "float32")
    nested = settings.flag("bnb_4bit_use_double_quant", default=False)
    detail = "nested" if nested else ""
    return (Variant(bits=4, group_size=CODEBOOK_BLOCK, symmetric=True, codes=codes, detail=detail),)


def parts(name: str, variant: Variant, shape: tuple[int, int]) -> Parts:
    n_blocks = -(-shape[0] * shape[1] // CODEBOOK_BLOCK)
    found = {
        "codes": Part(name, STORAGE, None),  # its size in bytes is checked: the shape depends on the storage type
        "state": Part(f"{name}.quant_state.bitsandbytes__{variant.codes}", ("U8",), None),
        "codebook": Part(name + ".quant_map", ("F32",), (16,)),
    }
    if not variant.detail:
        return found | {"absmax": Part(name + ".absmax", ("F32",), (n_blocks,))}
    return found | {
        "absmax": Part(name + ".absmax", ("U8",), (n_blocks,)),
        "nested_absmax": Part(name + ".nested_absmax", ("F32",), (-(-n_blocks // NESTED_BLOCK),)),
        "nested_codebook": Part(name + ".nested_quant_map", ("F32",), (256,)),
    }


def read(
    name: str, variant: Variant, shape: tuple[int, int], entries: Entries, first: int, last: int
) -> CodebookTensor:
    rows, columns = shape
    assert variant.codes != "int"
    state, packed = read_state(entries, variant, shape), entries["codes"]
    if packed.end - packed.begin != -(-rows * columns // 2) or rows * columns % 2:
        raise bad(entries, "codes", f"has {packed.end - packed.begin} bytes, expected {rows * columns / 2:g}")
    if not np.array_equal(read_floats(entries["codebook"]), CODEBOOKS[variant.codes]):
        raise bad(entries, "codebook", f"is not the table of {variant.codes}")
    begin, end = first * columns, last * columns
    blocks = slice(begin // CODEBOOK_BLOCK, -(-end // CODEBOOK_BLOCK))
    magnitudes = read_magnitudes(entries, state)[blocks]
    return CodebookTensor(read_octets(packed, begin // 2, end // 2), magnitudes, (last - first, columns), variant.codes)


def read_magnitudes(entries: Entries, state: Settings) -> NDArray[np.float32]:
    """One for each block of the whole weight, in float32 as the library computes them."""
    if "nested_codebook" not in entries:
        return read_floats(entries["absmax"])
    codes = read_octets(entries["absmax"], 0, entries["absmax"].shape[0])
    outer = np.repeat(read_floats(entries["nested_absmax"]), NESTED_BLOCK)[: len(codes)]
    found: NDArray[np.float32] = read_floats(entries["nested_codebook"])[codes] * outer
    found += np.float32(state.number("nested_offset", -1e30, 1e30))
    if not np.isfinite(found).all():
        raise bad(entries, "absmax", "gives magnitudes that are not finite")
    return found


def read_state(entries: Entries, variant: Variant, shape: tuple[int, int]) -> Settings:
    """The JSON of quant_state, checked against what the config and the model say."""
    entry = entries["state"]
    if entry.end - entry.begin > MAX_STATE_BYTES:
        raise bad(entries, "state", f"has {entry.end - entry.begin} bytes")
    try:
        content: Any = parse_json(read_octets(entry, 0, entry.end - entry.begin).tobytes())
    except ValueError as error:
        raise bad(entries, "state", f"is not JSON: {error}") from error
    if not isinstance(content, dict) or set(content) - STATE_KEYS:
        raise bad(entries, "state", f"is not an object of {', '.join(sorted(STATE_KEYS))}")
    wanted: dict[str, Any] = {"quant_type": variant.codes, "blocksize": CODEBOOK_BLOCK, "shape": list(shape)}
    if variant.detail:
        wanted |= {"nested_blocksize": NESTED_BLOCK, "nested_dtype": "float32"}
    elif any(key.startswith("nested") for key in content):
        raise bad(entries, "state", "speaks of double quantization, config.json does not")
    for key, value in wanted.items():
        if content.get(key) != value:
            raise bad(entries, "state", f"has {key} {str(content.get(key))[:80]!r}, only {value} can be read")
    return Settings(content, entry.name)


def bad(entries: Entries, part: str, what: str) -> InputFileError:
    entry = entries[part]
    return InputFileError("E-TENSOR", f"{entry.file.path}: {entry.name} {what}", "save it again with blocks of 64")


def row_step(columns: int) -> int:
    """Rows that begin with a block."""
    return CODEBOOK_BLOCK // math.gcd(columns, CODEBOOK_BLOCK)


READER = Reader(
    method="bitsandbytes", read_config=read_config, marker="state", parts=parts, read=read, row_step=row_step
)
