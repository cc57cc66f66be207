"""Weights written in a foreign layout and read again: the same codes, scales, zeros and order, for awkward shapes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from dlm_edge.checkpoint.foreign import find_layers
from dlm_edge.checkpoint.formats import READERS, WRITERS
from dlm_edge.checkpoint.packed_layer import PackedLayer
from dlm_edge.checkpoint.safetensors_header import read_header
from dlm_edge.families.settings import Settings
from dlm_edge.quantized import CodebookTensor, QuantizedTensor, dequantize, unpack
from tests import bitsandbytes_files as bnb
from tests.foreign import random_codebook, random_weight, stored, to_write

NAME = "model.layers.0.mlp.up_proj.weight"
SHAPES = [((32, 32), 32), ((64, 96), 32), ((96, 160), 16), ((32, 64), 64), ((160, 32), 8)]


def reopen(folder: Path, tensors: dict[str, np.ndarray], config: dict[str, Any], shape: tuple[int, int]) -> PackedLayer:
    save_file(stored(tensors), folder / "w.safetensors")
    reader = READERS[config["quant_method"]]
    variants = reader.read_config(Settings(config, "tiny"))
    entries = read_header(folder / "w.safetensors")
    layer = find_layers(reader, variants, entries, {NAME: shape}, folder)[NAME]
    assert set(layer.entries) == set(entries)
    return layer


def assert_same(found: object, weight: QuantizedTensor) -> None:
    assert isinstance(found, QuantizedTensor)
    assert (found.bits, found.group_size, found.shape) == (weight.bits, weight.group_size, weight.shape)
    np.testing.assert_array_equal(unpack(found), unpack(weight))
    np.testing.assert_array_equal(found.scales, weight.scales)
    for part in ("zeros", "order"):
        mine, theirs = getattr(found, part), getattr(weight, part)
        assert (mine is None) == (theirs is None), part
        if theirs is not None:
            np.testing.assert_array_equal(mine, theirs)


@pytest.mark.parametrize(("shape", "group_size"), SHAPES)
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("reordered", [False, True])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("format", ["gptq", "gptq_v2"])
def test_gptq(
    tmp_path: Path, format: str, bits: int, reordered: bool, symmetric: bool, shape: tuple[int, int], group_size: int
) -> None:
    weight = random_weight(shape, bits, group_size, symmetric=symmetric, reordered=reordered)
    check_round_trip(tmp_path, format, weight, one_group=shape[1] == group_size)


@pytest.mark.parametrize(("shape", "group_size"), [*SHAPES, ((8, 32), 32), ((40, 24), 8)])
def test_awq(tmp_path: Path, shape: tuple[int, int], group_size: int) -> None:
    check_round_trip(tmp_path, "awq", random_weight(shape, 4, group_size))


@pytest.mark.parametrize(("shape", "group_size"), [*SHAPES, ((5, 40), 8), ((33, 24), 24), ((1, 136), 8)])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_compressed_tensors(
    tmp_path: Path, bits: int, symmetric: bool, shape: tuple[int, int], group_size: int
) -> None:
    check_round_trip(tmp_path, "compressed-tensors", random_weight(shape, bits, group_size, symmetric=symmetric))


def check_round_trip(folder: Path, format: str, weight: QuantizedTensor, *, one_group: bool = False) -> None:
    layer, writer = to_write(NAME, weight), WRITERS[format]
    assert writer.refusal(layer) is None
    tensors, config = writer.tensors(layer, weight), writer.config([layer], [])
    parts = {name: (t.dtype.itemsize, t.shape) for name, t in tensors.items()}
    sizes = {"I32": 4, "F16": 2, "I64": 8}
    assert parts == {name: (sizes[dtype], shape) for name, (dtype, shape) in writer.parts(layer).items()}
    if one_group and weight.order is not None:  # one group has no order to tell
        weight = random_weight(weight.shape, weight.bits, weight.group_size, symmetric=weight.zeros is None)
        tensors = writer.tensors(layer, weight)
    found = reopen(folder, tensors, config, weight.shape)
    assert_same(found.read(0, weight.shape[0]), weight)
    whole = dequantize(weight)
    for first, last in [(0, 1), (weight.shape[0] // 2, weight.shape[0]), (3 % weight.shape[0], weight.shape[0] - 1)]:
        if first <= last:
            np.testing.assert_array_equal(found.rows(first, last), whole[first:last])


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("scale_dtype", ["F32", "BF16"])
def test_compressed_tensors_keeps_the_type_of_scales(tmp_path: Path, bits: int, scale_dtype: str) -> None:
    weight = random_weight((32, 64), bits, 32)
    scales = (weight.scales.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)
    weight = QuantizedTensor(weight.packed, scales, bits, weight.zeros)
    layer, writer = to_write(NAME, weight, scale_dtype), WRITERS["compressed-tensors"]
    tensors = writer.tensors(layer, weight)
    if scale_dtype == "BF16":
        import ml_dtypes

        tensors[NAME + "_scale"] = tensors[NAME + "_scale"].view(ml_dtypes.bfloat16)
    found = reopen(tmp_path, tensors, writer.config([layer], []), weight.shape)
    assert found.scale_dtype == scale_dtype
    assert_same(found.read(0, 32), weight)


def test_a_short_last_group_is_cut_into_smaller_ones(tmp_path: Path) -> None:
    """160 columns in groups of 128: GPTQ makes one of 128 and one of 32."""
    fine = random_weight((32, 160), 4, 32)
    scales, zeros = fine.scales.copy(), fine.zeros.copy()
    scales[:, 1:4], zeros[:, 1:4] = scales[:, :1], zeros[:, :1]
    fine = QuantizedTensor(fine.packed, scales, 4, zeros)
    tensors = WRITERS["gptq_v2"].tensors(to_write(NAME, fine), fine)
    stem = NAME.removesuffix("weight")
    for part in ("scales", "qzeros"):
        tensors[stem + part] = np.ascontiguousarray(tensors[stem + part][[0, 4]])
    tensors[stem + "g_idx"] = (np.arange(160) // 128).astype(np.int32)
    config = {"quant_method": "gptq", "bits": 4, "group_size": 128, "sym": False, "checkpoint_format": "gptq_v2"}
    found = reopen(tmp_path, tensors, config, (32, 160))
    assert found.record.group_size == 32
    assert_same(found.read(0, 32), fine)


def test_compressed_tensors_with_group_index(tmp_path: Path) -> None:
    """Releases before 0.20 stored the groups of the columns beside codes in natural order."""
    weight = random_weight((8, 64), 4, 16, reordered=True)
    gptq = WRITERS["gptq_v2"].tensors(to_write(NAME, weight), weight)
    codes = np.empty((8, 64), np.uint8)
    codes[:, weight.order] = unpack(weight)
    from dlm_edge.checkpoint.formats.words import pack_words

    plain = random_weight((8, 64), 4, 16)
    layer = to_write(NAME, plain)
    tensors = WRITERS["compressed-tensors"].tensors(layer, plain)
    tensors[NAME + "_packed"] = pack_words(codes, 4)
    tensors[NAME + "_g_idx"] = gptq[NAME.removesuffix("weight") + "g_idx"]
    config = WRITERS["compressed-tensors"].config([layer], [])
    config["config_groups"]["group_0"]["weights"]["actorder"] = "group"
    found = reopen(tmp_path, tensors, config, (8, 64)).read(0, 8)
    assert_same(found, QuantizedTensor(weight.packed, plain.scales, 4, plain.zeros, weight.order))


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("shape", [(8, 64), (6, 32), (10, 96), (4, 160), (7, 10), (1000, 64)])
@pytest.mark.parametrize("format", ["nf4", "fp4"])
def test_bitsandbytes(tmp_path: Path, format: str, shape: tuple[int, int], nested: bool) -> None:
    weight = random_codebook(shape, format)
    config = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": format}
    if nested:
        tensors, magnitudes = bnb.nested_tensors(NAME, weight)
        weight = CodebookTensor(weight.packed, magnitudes, shape, weight.format)
        config["bnb_4bit_use_double_quant"] = True
    else:
        tensors = bnb.plain_tensors(NAME, weight)
    found = reopen(tmp_path, tensors, config, shape)
    whole = found.read(0, shape[0])
    assert isinstance(whole, CodebookTensor) and (whole.shape, whole.format) == (shape, format)
    np.testing.assert_array_equal(whole.packed, weight.packed)
    np.testing.assert_array_equal(whole.magnitudes, weight.magnitudes)
    values = dequantize(weight)
    for first in range(min(shape[0], 5)):
        np.testing.assert_array_equal(found.rows(first, shape[0]), values[first:])
        np.testing.assert_array_equal(found.rows(first, first + 1), values[first : first + 1])
