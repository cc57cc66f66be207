"""AWQ checkpoints of version GEMM (AutoAWQ, GPTQModel): four bits, words along out_features.

    layer.qweight  int32 [in, out / 8]      layer.qzeros  int32 [groups, out / 8]
    layer.scales   f16   [groups, out]

Field i of a word (lowest first) holds column INTERLEAVE[i] of its eight. Zeros are stored as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dlm_edge.checkpoint.formats.format import (
    FLOATS,
    MAX_GROUP,
    Entries,
    LayerToWrite,
    Part,
    Parts,
    Reader,
    Variant,
    Writer,
    check_group,
    check_keys,
    in_memory,
)
from dlm_edge.checkpoint.formats.gptq import middle_only
from dlm_edge.checkpoint.formats.stored import read_floats, read_words, to_half
from dlm_edge.checkpoint.formats.uniform import one_setting
from dlm_edge.checkpoint.formats.words import Words, pack_words, unpack_words
from dlm_edge.families.settings import Settings
from dlm_edge.quantized import QuantizedTensor, middle_code, unpack

INTERLEAVE = np.array([0, 2, 4, 6, 1, 3, 5, 7])
BITS = 4
LAYOUT_KEYS = {
    *("quant_method", "bits", "w_bit", "group_size", "q_group_size", "version", "zero_point", "sym", "desc_act"),
    *("format", "checkpoint_format", "method", "pack_dtype", "dynamic", "lm_head", "adapter", "activation", "rotation"),
}
# Which layers are packed shows in the weight files; the rest is about how the model was made or is run.
OTHER_KEYS = {
    *("modules_to_not_convert", "backend", "do_fuse", "fuse_max_seq_len", "modules_to_fuse", "exllama_config"),
    *("meta", "model_name_or_path", "model_file_base_name", "damp_percent", "true_sequential", "act_group_aware"),
}


def read_config(settings: Settings) -> tuple[Variant, ...]:
    check_keys(settings, LAYOUT_KEYS | OTHER_KEYS)
    bits = settings.integer("w_bit" if settings.has("w_bit") else "bits", 1, 64)
    if bits != BITS:
        raise settings.wrong("bits", bits, "4, which is all that the GEMM version holds")
    for key in ("version", "format", "checkpoint_format"):
        found = settings.config.get(key)
        if found is not None and str(found).lower() != "gemm":
            raise settings.wrong(key, found, "gemm")
    settings.only("desc_act", False)
    settings.only("pack_dtype", "int32")
    settings.only("method", "awq")
    settings.only("dynamic", False)
    for key in ("adapter", "activation", "rotation"):
        settings.only(key)
    size = settings.integer("q_group_size" if settings.has("q_group_size") else "group_size", -1, MAX_GROUP)
    if size == 0:
        raise settings.wrong("group_size", size, "-1 or a positive number")
    symmetric = not settings.flag("zero_point", default=not settings.flag("sym", default=False))
    return (Variant(bits=BITS, group_size=None if size == -1 else size, symmetric=symmetric),)


def parts(name: str, variant: Variant, shape: tuple[int, int]) -> Parts:
    stem, (rows, columns) = name.removesuffix("weight"), shape
    groups = variant.groups(columns)
    return {
        "codes": Part(stem + "qweight", ("I32",), (columns, -(-rows // 8))),
        "zeros": Part(stem + "qzeros", ("I32",), (groups, -(-rows // 8))),
        "scales": Part(stem + "scales", FLOATS, (groups, rows)),
    }


def read(
    name: str, variant: Variant, shape: tuple[int, int], entries: Entries, first: int, last: int
) -> QuantizedTensor:
    check_group(name, variant, shape[1])
    begin, end = first // 8, -(-last // 8)  # words that hold these columns
    wanted = slice(first - 8 * begin, last - 8 * begin)
    codes = unpack_interleaved(read_words(entries["codes"])[:, begin:end])[:, wanted]
    zeros = unpack_interleaved(read_words(entries["zeros"])[:, begin:end])[:, wanted].T
    scales = read_floats(entries["scales"])[:, first:last].T
    kept = middle_only(name, zeros, variant, entries)
    return in_memory(np.ascontiguousarray(codes.T), scales, kept, variant)


def pack_interleaved(codes: NDArray[np.uint8]) -> Words:
    """Codes [n, out] as words [n, out / 8]; out is a multiple of 8."""
    eights = codes.reshape(len(codes), -1, 8)[..., INTERLEAVE]
    return pack_words(eights.reshape(codes.shape), BITS)


def unpack_interleaved(words: Words) -> NDArray[np.uint8]:
    fields = unpack_words(words, BITS, 8 * words.shape[1]).reshape(*words.shape, 8)
    codes = np.empty_like(fields)
    codes[..., INTERLEAVE] = fields
    return codes.reshape(len(words), -1)


READER = Reader(method="awq", read_config=read_config, marker="codes", parts=parts, read=read)


def refusal(layer: LayerToWrite) -> tuple[str, str] | None:
    if layer.record.bits != BITS:
        return f"{layer.record.bits} bits", "use gptq_v2 or compressed-tensors"
    if layer.record.reordered:
        return "reordered columns", "use gptq_v2"
    if layer.shape[0] % 8:
        return f"{layer.shape[0]} output channels, not a multiple of 8", "use compressed-tensors"
    return None


def config(layers: Sequence[LayerToWrite], plain: Sequence[str]) -> dict[str, Any]:
    bits, group_size = one_setting(layers, "awq")
    return {
        "quant_method": "awq",
        "version": "gemm",
        "bits": bits,
        "group_size": group_size or -1,
        "zero_point": True,
        "modules_to_not_convert": list(plain) or None,
    }


def stored_parts(layer: LayerToWrite) -> dict[str, tuple[str, tuple[int, ...]]]:
    variant = Variant(bits=BITS, group_size=layer.group_size, symmetric=False)
    types = {"codes": "I32", "zeros": "I32", "scales": "F16"}
    found = {}
    for key, part in parts(layer.name, variant, layer.shape).items():
        assert part.shape is not None
        found[part.name] = (types[key], part.shape)
    return found


def tensors(layer: LayerToWrite, weight: QuantizedTensor) -> dict[str, NDArray[Any]]:
    stem = layer.name.removesuffix("weight")
    zeros = np.full(weight.scales.shape, middle_code(BITS), np.uint8) if weight.zeros is None else weight.zeros
    assert zeros.dtype == np.uint8, layer.name  # float zeros are refused before anything is written
    return {
        stem + "qweight": pack_interleaved(np.ascontiguousarray(unpack(weight).T)),
        stem + "qzeros": pack_interleaved(np.ascontiguousarray(zeros.T)),
        stem + "scales": to_half(np.ascontiguousarray(weight.scales.T)),
    }


WRITER = Writer(refusal=refusal, config=config, parts=stored_parts, tensors=tensors)
