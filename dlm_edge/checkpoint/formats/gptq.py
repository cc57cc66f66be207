"""GPTQ checkpoints (AutoGPTQ, GPTQModel), first and second version.

    layer.qweight  int32 [in * bits / 32, out]   codes in words along in_features
    layer.qzeros   int32 [groups, out * bits / 32]   zeros in words along out_features
    layer.scales   f16   [groups, out]
    layer.g_idx    int32 [in]   the group of every input column

Version 1 stores zero - 1. For 2, 4 and 8 bits the subtraction is made on whole words (GPTQModel), so a zero of 0 borrows
from its neighbour and only the addition on whole words undoes it. Three-bit zeros are subtracted one by one.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dlm_edge.checkpoint.formats.format import (
    BITS,
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
    column_order,
    in_memory,
)
from dlm_edge.checkpoint.formats.stored import read_floats, read_integers, read_words, to_half
from dlm_edge.checkpoint.formats.uniform import one_setting
from dlm_edge.checkpoint.formats.words import Words, pack_words, unpack_words, word_count
from dlm_edge.errors import InputFileError
from dlm_edge.families.settings import Settings
from dlm_edge.quantized import QuantizedTensor, middle_code, unpack

VERSIONS = ("gptq", "gptq_v2")
LAYOUT_KEYS = {
    *("quant_method", "bits", "group_size", "sym", "desc_act", "checkpoint_format", "format", "method"),
    *("pack_dtype", "is_marlin_format", "dynamic", "adapter", "activation", "rotation", "lm_head"),
}
# How the weights were made or are run, not how they are stored. Which layers are packed shows in the weight files.
OTHER_KEYS = {
    *("damp_percent", "damp_auto_increment", "true_sequential", "static_groups", "mse", "meta", "dataset", "tokenizer"),
    *("model_name_or_path", "model_file_base_name", "block_name_to_quantize", "module_name_preceding_first_block"),
    *("modules_in_block_to_quantize", "modules_to_not_convert", "batch_size", "pad_token_id", "max_input_length"),
    *("model_seqlen", "cache_block_outputs", "use_cuda_fp16", "use_exllama", "disable_exllama", "exllama_config"),
    *("backend", "act_group_aware", "hessian", "offload_to_disk", "offload_to_disk_path", "parallel_packing"),
    *("failsafe", "fallback", "gptaq", "foem", "v2", "v2_alpha", "device", "auto_forward_data_parallel"),
    *("vram_strategy", "gc_mode", "wait_for_submodule_finalizers", "compute_device_filter", "weight_only"),
    *("pack_impl", "moe", "smooth", "preprocessors", "process", "hyb_act", "mock_quantization"),
}
OVERRIDES = {"bits", "group_size"}  # what `dynamic` may change for some layers
OTHER_OVERRIDES = {"damp_percent", "damp_auto_increment", "mse", "static_groups"}


def read_config(settings: Settings) -> tuple[Variant, ...]:
    check_keys(settings, LAYOUT_KEYS | OTHER_KEYS)
    settings.only("pack_dtype", "int32", "torch.int32")
    settings.only("is_marlin_format", False)
    settings.only("method", "gptq")
    for key in ("adapter", "activation", "rotation"):
        settings.only(key)
    variant = Variant(
        bits=read_bits(settings),
        group_size=read_group(settings),
        symmetric=settings.flag("sym", default=True),
        reordered=settings.flag("desc_act", default=False),
        detail=read_version(settings),
    )
    return (variant, *overrides(settings, variant))


def read_version(settings: Settings) -> str:
    found = {str(settings.config[key]).lower() for key in ("checkpoint_format", "format") if settings.has(key)}
    version = found.pop() if len(found) == 1 else "gptq" if not found else str(sorted(found))
    if version not in VERSIONS:
        raise settings.wrong("checkpoint_format", version, " or ".join(VERSIONS))
    return version


def read_bits(settings: Settings) -> int:
    bits = settings.integer("bits", 1, 64)
    if bits not in BITS:
        raise settings.wrong("bits", bits, ", ".join(map(str, BITS)))
    return bits


def read_group(settings: Settings) -> int | None:
    size = settings.integer("group_size", -1, MAX_GROUP)
    if size == 0:
        raise settings.wrong("group_size", size, "-1 or a positive number")
    return None if size == -1 else size


def overrides(settings: Settings, variant: Variant) -> list[Variant]:
    """The settings of `dynamic`: which layers have them shows in the shapes, so no pattern of the file is run."""
    dynamic = settings.config.get("dynamic")
    if dynamic is None or dynamic is False:
        return []
    if not isinstance(dynamic, dict):
        raise settings.wrong("dynamic", dynamic, "an object")
    variants = []
    for pattern, changed in dynamic.items():
        if pattern.startswith("-:"):
            continue
        if not isinstance(changed, dict):
            raise settings.wrong("dynamic", changed, "an object for every pattern")
        inner = Settings({"bits": variant.bits, "group_size": variant.group_size or -1} | changed, settings.name)
        check_keys(inner, OVERRIDES | OTHER_OVERRIDES)
        variants.append(
            Variant(
                bits=read_bits(inner),
                group_size=read_group(inner),
                symmetric=variant.symmetric,
                reordered=variant.reordered,
                detail=variant.detail,
            )
        )
    return variants


def parts(name: str, variant: Variant, shape: tuple[int, int]) -> Parts:
    stem, (rows, columns) = name.removesuffix("weight"), shape
    groups = variant.groups(columns)
    return {
        "codes": Part(stem + "qweight", ("I32",), (word_count(columns, variant.bits), rows)),
        "zeros": Part(stem + "qzeros", ("I32",), (groups, word_count(rows, variant.bits))),
        "scales": Part(stem + "scales", FLOATS, (groups, rows)),
        "groups": Part(stem + "g_idx", ("I32",), (columns,), optional=not variant.reordered),
    }


def read(
    name: str, variant: Variant, shape: tuple[int, int], entries: Entries, first: int, last: int
) -> QuantizedTensor:
    rows, columns = shape
    check_group(name, variant, columns)
    order = None
    if "groups" in entries:
        order = column_order(name, read_integers(entries["groups"]), variant, entries["groups"])
    words = read_words(entries["codes"])[:, first:last]
    codes = unpack_words(np.ascontiguousarray(words.T), variant.bits, columns)
    zeros = unpack_zeros(read_words(entries["zeros"]), variant.bits, rows, variant.detail)[:, first:last].T
    scales = read_floats(entries["scales"])[:, first:last].T
    kept = middle_only(name, zeros, variant, entries)
    return in_memory(codes, scales, kept, variant, order)


def middle_only(name: str, zeros: NDArray[np.uint8], variant: Variant, entries: Entries) -> NDArray[np.uint8] | None:
    """None for a symmetric grid. Raises E-TENSOR when the file has other zeros than its config says."""
    if not variant.symmetric:
        return np.ascontiguousarray(zeros)
    if (zeros != middle_code(variant.bits)).any():
        raise InputFileError(
            "E-TENSOR",
            f"{entries['zeros'].file.path}: {entries['zeros'].name} has zeros other than {middle_code(variant.bits)}, "
            "though config.json says that the grid is symmetric",
            "set sym (zero_point for awq) in config.json to what the weights are",
        )
    return None


def fields_of_one(bits: int) -> np.uint32:
    """A word with 1 in every field."""
    return np.uint32(sum(1 << shift for shift in range(0, 32, bits)))


def pack_zeros(zeros: NDArray[np.uint8], bits: int, version: str) -> Words:
    """Zeros [groups, out] as stored."""
    if version == "gptq" and bits == 3:
        return pack_words((zeros - np.uint8(1)) & np.uint8(7), bits)
    words = pack_words(zeros, bits)
    return words - fields_of_one(bits) if version == "gptq" else words


def unpack_zeros(words: Words, bits: int, n_zeros: int, version: str) -> NDArray[np.uint8]:
    if version == "gptq" and bits == 3:
        return (unpack_words(words, bits, n_zeros) + np.uint8(1)) & np.uint8(7)
    return unpack_words(words + fields_of_one(bits) if version == "gptq" else words, bits, n_zeros)


READER = Reader(method="gptq", read_config=read_config, marker="codes", parts=parts, read=read)


def refusal(layer: LayerToWrite) -> tuple[str, str] | None:
    rows, columns = layer.shape
    if rows * layer.record.bits % 32 or columns * layer.record.bits % 32:
        return f"{layer.shape} does not fill words of 32 bits", "use compressed-tensors"
    return None


def variant_of(layer: LayerToWrite) -> Variant:
    record = layer.record
    return Variant(
        bits=record.bits,
        group_size=layer.group_size,
        symmetric=record.zero == "symmetric",
        reordered=record.reordered,
    )


def config(version: str, layers: Sequence[LayerToWrite], plain: Sequence[str]) -> dict[str, Any]:
    bits, group_size = one_setting(layers, version)
    found: dict[str, Any] = {
        "quant_method": "gptq",
        "checkpoint_format": version,
        "bits": bits,
        "group_size": group_size or -1,
        "sym": all(layer.record.zero == "symmetric" for layer in layers),
        "desc_act": any(layer.record.reordered for layer in layers),
        "lm_head": False,
        "pack_dtype": "int32",
    }
    if plain:
        found["dynamic"] = {f"-:^{re.escape(module)}$": {} for module in plain}
    return found


def stored_parts(layer: LayerToWrite) -> dict[str, tuple[str, tuple[int, ...]]]:
    types = {"codes": "I32", "zeros": "I32", "scales": "F16", "groups": "I32"}
    found = {}
    for key, part in parts(layer.name, variant_of(layer), layer.shape).items():
        assert part.shape is not None
        found[part.name] = (types[key], part.shape)
    return found


def tensors(version: str, layer: LayerToWrite, weight: QuantizedTensor) -> dict[str, NDArray[Any]]:
    stem, columns = layer.name.removesuffix("weight"), weight.shape[1]
    codes, groups = unpack(weight), np.arange(columns) // weight.group_size
    if weight.order is not None:
        codes, groups = natural(codes, weight.order), natural(groups[None], weight.order)[0]
    zeros = np.full(weight.scales.shape, middle_code(weight.bits), np.uint8) if weight.zeros is None else weight.zeros
    assert zeros.dtype == np.uint8, layer.name  # float zeros are refused before anything is written
    return {
        stem + "qweight": np.ascontiguousarray(pack_words(codes, weight.bits).T),
        stem + "qzeros": pack_zeros(np.ascontiguousarray(zeros.T), weight.bits, version),
        stem + "scales": to_half(np.ascontiguousarray(weight.scales.T)),
        stem + "g_idx": groups.astype("<i4"),
    }


def natural(values: NDArray[Any], order: NDArray[np.int64]) -> NDArray[Any]:
    """Columns back from their packed order."""
    back = np.empty_like(values)
    back[:, order] = values
    return back


def writer(version: str) -> Writer:
    return Writer(
        refusal=refusal,
        config=lambda layers, plain: config(version, layers, plain),
        parts=stored_parts,
        tensors=lambda layer, weight: tensors(version, layer, weight),
    )
