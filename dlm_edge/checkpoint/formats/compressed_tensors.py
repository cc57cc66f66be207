"""compressed-tensors checkpoints in the format pack-quantized (llm-compressor, vLLM).

    layer.weight_packed      int32 [out, in * bits / 32]     codes in words along in_features
    layer.weight_scale       float [out, groups]
    layer.weight_zero_point  int32 [out * bits / 32, groups]   zeros in words along out_features; not when symmetric
    layer.weight_shape       int64 [2]
    layer.weight_g_idx       int32 [in]   with actorder "group", which releases before 0.20 wrote

Codes and zeros are signed integers stored with 2**(bits - 1) added, so both are our unsigned codes.
"""

from __future__ import annotations

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
from dlm_edge.checkpoint.formats.stored import read_floats, read_integers, read_words
from dlm_edge.checkpoint.formats.words import pack_words, unpack_words, word_count
from dlm_edge.errors import InputFileError
from dlm_edge.families.settings import Settings
from dlm_edge.quantized import QuantizedTensor, unpack

PACKED = "pack-quantized"
LAYOUT_KEYS = {
    *("quant_method", "format", "quantization_status", "config_groups", "kv_cache_scheme", "sparsity_config"),
    *("transform_config", "moe_sparsity_config"),
}
OTHER_KEYS = {"ignore", "global_compression_ratio", "version", "run_compressed"}  # what is packed shows in the files
GROUP_KEYS = {"targets", "weights", "input_activations", "output_activations", "format"}
WEIGHT_KEYS = {
    *("num_bits", "type", "symmetric", "strategy", "group_size", "dynamic", "actorder", "block_structure"),
    *("observer", "observer_kwargs", "scale_dtype", "zp_dtype"),
}


def read_config(settings: Settings) -> tuple[Variant, ...]:
    check_keys(settings, LAYOUT_KEYS | OTHER_KEYS)
    settings.only("format", PACKED, "mixed-precision")
    settings.only("quantization_status", "compressed")
    for key in ("kv_cache_scheme", "moe_sparsity_config"):
        settings.only(key)
    settings.only("transform_config", {})
    sparsity = settings.config.get("sparsity_config") or {}
    if not isinstance(sparsity, dict) or sparsity.get("format", "dense") != "dense":
        raise settings.wrong("sparsity_config", sparsity, "no sparsity")
    groups = settings.config.get("config_groups")
    if not isinstance(groups, dict) or not groups:
        raise settings.wrong("config_groups", groups, "an object with at least one group")
    return tuple(read_group(settings, group) for group in groups.values())


def read_group(settings: Settings, group: Any) -> Variant:
    """Which layers a group means shows in the shapes of their tensors, so no pattern of the file is run."""
    if not isinstance(group, dict):
        raise settings.wrong("config_groups", group, "groups that say in full how weights are stored")
    scheme = Settings(group, settings.name)
    check_keys(scheme, GROUP_KEYS)
    scheme.only("input_activations")
    scheme.only("output_activations")
    scheme.only("format", PACKED)
    if not isinstance(group.get("weights"), dict):
        raise scheme.wrong("weights", group.get("weights"), "an object")
    weights = Settings(group["weights"], settings.name)
    check_keys(weights, WEIGHT_KEYS)
    weights.only("type", "int")
    weights.only("dynamic", False)
    weights.only("block_structure")
    weights.only("strategy", "group", "channel")
    weights.only("actorder", False, "group", "dynamic", "weight", "static")
    bits = weights.integer("num_bits", 1, 64)
    if bits not in BITS:
        raise weights.wrong("num_bits", bits, ", ".join(map(str, BITS)))
    per_channel = weights.config.get("strategy", "group" if weights.has("group_size") else "channel") == "channel"
    return Variant(
        bits=bits,
        group_size=None if per_channel else weights.integer("group_size", 1, MAX_GROUP),
        symmetric=weights.flag("symmetric", default=True),
        reordered=weights.config.get("actorder") in ("group", "dynamic"),
    )


def parts(name: str, variant: Variant, shape: tuple[int, int]) -> Parts:
    rows, columns = shape
    groups = variant.groups(columns)
    found = {
        "codes": Part(name + "_packed", ("I32",), (rows, word_count(columns, variant.bits))),
        "scales": Part(name + "_scale", FLOATS, (rows, groups)),
        "shape": Part(name + "_shape", ("I64", "I32"), (2,)),
    }
    if not variant.symmetric:
        found["zeros"] = Part(name + "_zero_point", ("I32",), (word_count(rows, variant.bits), groups))
    if variant.reordered:
        found["groups"] = Part(name + "_g_idx", ("I32",), (columns,))
    return found


def read(
    name: str, variant: Variant, shape: tuple[int, int], entries: Entries, first: int, last: int
) -> QuantizedTensor:
    rows, columns = shape
    check_group(name, variant, columns)
    stored_shape = read_integers(entries["shape"]).tolist()
    if stored_shape != [rows, columns]:
        raise InputFileError(
            "E-TENSOR",
            f"{entries['shape'].file.path}: {entries['shape'].name} says {stored_shape}, expected {[rows, columns]}",
            "get an intact checkpoint",
        )
    order, zeros = None, None
    if "groups" in entries:
        order = column_order(name, read_integers(entries["groups"]), variant, entries["groups"])
    if "zeros" in entries:
        words = np.ascontiguousarray(read_words(entries["zeros"]).T)
        zeros = np.ascontiguousarray(unpack_words(words, variant.bits, rows)[:, first:last].T)
    codes = unpack_words(read_words(entries["codes"], first, last), variant.bits, columns)
    return in_memory(codes, read_floats(entries["scales"], first, last), zeros, variant, order)


READER = Reader(method="compressed-tensors", read_config=read_config, marker="codes", parts=parts, read=read)


def refusal(layer: LayerToWrite) -> tuple[str, str] | None:
    if layer.record.reordered:
        return "reordered columns, which compressed-tensors 0.20 no longer reads", "use gptq_v2"
    return None


def variant_of(layer: LayerToWrite) -> Variant:
    record = layer.record
    return Variant(bits=record.bits, group_size=layer.group_size, symmetric=record.zero == "symmetric")


def config(layers: Sequence[LayerToWrite], plain: Sequence[str]) -> dict[str, Any]:
    modules: dict[Variant, list[str]] = {}
    for layer in layers:
        modules.setdefault(variant_of(layer), []).append(layer.module)
    return {
        "quant_method": "compressed-tensors",
        "format": PACKED,
        "quantization_status": "compressed",
        "config_groups": {
            f"group_{i}": {
                "targets": ["Linear"] if len(modules) == 1 else names,
                "weights": {
                    "num_bits": variant.bits,
                    "type": "int",
                    "symmetric": variant.symmetric,
                    "strategy": "channel" if variant.group_size is None else "group",
                    "group_size": variant.group_size,
                    "dynamic": False,
                },
                "input_activations": None,
                "output_activations": None,
                "format": PACKED,
            }
            for i, (variant, names) in enumerate(modules.items())
        },
        "ignore": list(plain),
        "kv_cache_scheme": None,
    }


def stored_parts(layer: LayerToWrite) -> dict[str, tuple[str, tuple[int, ...]]]:
    types = {"codes": "I32", "scales": layer.scale_dtype, "shape": "I64", "zeros": "I32"}
    found = {}
    for key, part in parts(layer.name, variant_of(layer), layer.shape).items():
        assert part.shape is not None
        found[part.name] = (types[key], part.shape)
    return found


def tensors(layer: LayerToWrite, weight: QuantizedTensor) -> dict[str, NDArray[Any]]:
    found: dict[str, NDArray[Any]] = {
        layer.name + "_packed": pack_words(unpack(weight), weight.bits),
        layer.name + "_scale": as_stored(weight.scales, layer.scale_dtype),
        layer.name + "_shape": np.array(weight.shape, "<i8"),
    }
    if weight.zeros is not None:
        assert weight.zeros.dtype == np.uint8, layer.name  # float zeros are refused before anything is written
        words = pack_words(np.ascontiguousarray(weight.zeros.T), weight.bits)
        found[layer.name + "_zero_point"] = np.ascontiguousarray(words.T)
    return found


def as_stored(scales: NDArray[np.float32], dtype: str) -> NDArray[Any]:
    """In the type they came in, so exactly."""
    if dtype == "BF16":
        return (np.ascontiguousarray(scales).view(np.uint32) >> np.uint32(16)).astype("<u2")
    return scales.astype("<f2" if dtype == "F16" else "<f4")


WRITER = Writer(refusal=refusal, config=config, parts=stored_parts, tensors=tensors, half_scales=False)
