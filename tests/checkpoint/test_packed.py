"""Packed weights in a checkpoint: what comes back, and every disagreement of parts and record that is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from dlm_edge.checkpoint import open_checkpoint
from dlm_edge.errors import InputFileError
from dlm_edge.quantized import dequantize, pack, pack_codes
from tests.packed_folder import WEIGHTS, pack_folder, random_codebook, random_tensor
from tests.tiny import make_checkpoint

UP, DOWN = "layers.1.up.weight", "layers.0.down.weight"  # [128, 64] and [64, 128]
NAME = "model.layers.1.mlp.up_proj.weight"


def check_weight(folder: Path, tensor: Any) -> None:
    checkpoint, expected = open_checkpoint(folder), dequantize(tensor)
    packed = checkpoint.load_packed(UP)
    assert packed is not None and packed.shape == (128, 64)
    np.testing.assert_array_equal(dequantize(packed), expected)
    np.testing.assert_array_equal(checkpoint.load(UP), expected)
    np.testing.assert_array_equal(checkpoint.load_rows(UP, 3, 9), expected[3:9])
    assert checkpoint.load_packed(DOWN) is None and checkpoint.layer_record(DOWN) is None


@pytest.mark.parametrize("factor", [1.0, 1e-7], ids=["float16 scales", "float32 scales"])
@pytest.mark.parametrize("zero", ["symmetric", "integer", "float"])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_every_grid_is_read(tmp_path, bits, zero, factor):
    random = random_tensor((128, 64), bits, 16, zero, reordered=True, outliers=3)
    tensor = replace(random, scales=random.scales * np.float32(factor))
    activations = "float" if zero == "float" else "int8"
    pack_folder(make_checkpoint(tmp_path, "sdar"), {UP: tensor}, activations)
    check_weight(tmp_path, tensor)
    checkpoint = open_checkpoint(tmp_path)
    record = checkpoint.layer_record(UP)
    assert record is not None and (record.activations, record.zero, record.reordered) == (activations, zero, True)
    assert checkpoint.dtype(UP) == f"int{bits}"
    parts = {n: t for n, t in load_file(tmp_path / WEIGHTS).items() if n.startswith(NAME)}
    assert checkpoint.stored_bytes(UP) == sum(part.nbytes for part in parts.values())
    assert parts[NAME + "_packed"].nbytes == 128 * 64 * bits // 8


def test_zeros_of_three_bits_that_earlier_versions_stored_in_four_are_read(tmp_path):
    tensor = random_tensor((128, 64), 3, 8, "integer")
    pack_folder(make_checkpoint(tmp_path, "sdar"), {UP: tensor})
    stored = load_file(tmp_path / WEIGHTS)
    assert stored[NAME + "_zero"].shape == (128, 3)
    save_file(stored | {NAME + "_zero": pack_codes(tensor.zeros, 4)}, tmp_path / WEIGHTS)
    check_weight(tmp_path, tensor)


@pytest.mark.parametrize("form", ["nf4", "fp4"])
def test_codebooks_are_read(tmp_path, form):
    tensor = random_codebook((128, 64), form)
    pack_folder(make_checkpoint(tmp_path, "sdar"), {UP: tensor})
    check_weight(tmp_path, tensor)
    assert open_checkpoint(tmp_path).dtype(UP) == form


def test_one_scale_per_row(tmp_path):
    tensor = random_tensor((128, 64), 8, 64)
    pack_folder(make_checkpoint(tmp_path, "sdar"), {UP: tensor}, activations="int8")
    check_weight(tmp_path, tensor)


Record = dict[str, Any]
RECORDS: dict[str, tuple[Callable[[Record], object], str]] = {
    "unknown key": (lambda r: r.update(colour="red"), "E-CONFIG"),
    "schema 1": (lambda r: r.update(schema=1), "E-CONFIG"),
    "newer schema": (lambda r: r.update(schema=3), "E-CONFIG"),
    "five bits": (lambda r: r["layers"][0].update(bits=5), "E-CONFIG"),
    "no group": (lambda r: r["layers"][0].update(group_size=0), "E-CONFIG"),
    "negative group": (lambda r: r["layers"][0].update(group_size=-16), "E-CONFIG"),
    "group of 12": (lambda r: r["layers"][0].update(group_size=12), "E-CONFIG"),
    "unknown zero": (lambda r: r["layers"][0].update(zero="none"), "E-CONFIG"),
    "unknown format": (lambda r: r["layers"][0].update(format="int9"), "E-CONFIG"),
    "codebook of 8 bits": (lambda r: r["layers"][0].update(format="nf4", bits=8, group_size=64), "E-CONFIG"),
    "codebook of 32": (lambda r: r["layers"][0].update(format="nf4"), "E-CONFIG"),
    "codebook with zeros": (lambda r: r["layers"][0].update(format="nf4", group_size=64), "E-CONFIG"),
    "int8 without the columns": (lambda r: r["layers"][0].update(activations="int8", zero="float"), "E-CONFIG"),
    "a weight twice": (lambda r: r["layers"].append(r["layers"][0]), "E-CONFIG"),
    "other groups": (lambda r: r["layers"][0].update(group_size=16), "E-TENSOR"),
    "groups that do not divide": (lambda r: r["layers"][0].update(group_size=24), "E-TENSOR"),
    "other bits": (lambda r: r["layers"][0].update(bits=8), "E-TENSOR"),
    "fewer outliers": (lambda r: r["layers"][0].update(outlier_columns=1), "E-TENSOR"),
    "negative outliers": (lambda r: r["layers"][0].update(outlier_columns=-1), "E-TENSOR"),
    "more outliers than columns": (lambda r: r["layers"][0].update(outlier_columns=65), "E-TENSOR"),
    "zeros not mentioned": (lambda r: r["layers"][0].update(zero="symmetric"), "E-TENSOR"),
    "another kind of zeros": (lambda r: r["layers"][0].update(zero="float"), "E-TENSOR"),
    "order not mentioned": (lambda r: r["layers"][0].update(reordered=False), "E-TENSOR"),
    "another model's weight": (lambda r: r["layers"][0].update(name="model.layers.9.mlp.up_proj.weight"), "E-TENSOR"),
    "weight not listed": (lambda r: r["layers"].pop(), "E-TENSOR"),
}


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    tensor = random_tensor((128, 64), 3, 32, "integer", reordered=True, outliers=3)
    return pack_folder(make_checkpoint(tmp_path_factory.mktemp("good"), "sdar"), {UP: tensor})


@pytest.fixture
def folder(good, tmp_path):
    for file in good.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


def refusal(folder: Path) -> InputFileError:
    with pytest.raises(InputFileError) as refused:
        open_checkpoint(folder).load(UP)
    return refused.value


@pytest.mark.parametrize(("change", "code"), RECORDS.values(), ids=RECORDS)
def test_a_record_that_does_not_fit_is_refused(folder, change, code):
    record = json.loads((folder / "dlm_edge.json").read_text())
    change(record)
    (folder / "dlm_edge.json").write_text(json.dumps(record))
    assert refusal(folder).code == code


def test_an_unknown_key_of_our_own_file_names_the_nearest(folder):
    text = (folder / "dlm_edge.json").read_text().replace('"group_size"', '"groupsize"', 1)
    (folder / "dlm_edge.json").write_text(text)
    assert "did you mean group_size" in refusal(folder).message


Parts = dict[str, np.ndarray]


def changed(suffix: str, change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Parts], object]:
    return lambda parts: parts.update({NAME + suffix: np.ascontiguousarray(change(parts[NAME + suffix]))})


def edited(suffix: str, where: Any, value: Any) -> Callable[[Parts], object]:
    def edit(part: np.ndarray) -> np.ndarray:
        part = part.copy()
        part[where] = value
        return part

    return changed(suffix, edit)


SUFFIXES = ["_packed", "_scale", "_zero", "_order", "_outlier_columns", "_outliers"]
PARTS: dict[str, tuple[Callable[[Parts], object], str]] = {
    **{f"{s} missing": (lambda parts, s=s: parts.pop(NAME + s), "E-TENSOR") for s in SUFFIXES},
    **{f"{s} cut": (changed(s, lambda part: part[:-1]), "E-TENSOR") for s in SUFFIXES},
    "codes signed": (changed("_packed", lambda p: p.view(np.int8)), "E-ST-DTYPE"),
    "scales double": (changed("_scale", lambda p: p.astype(np.float64)), "E-ST-DTYPE"),
    "zeros in float": (changed("_zero", lambda p: p.astype(np.float16)), "E-ST-DTYPE"),
    "order in 32 bits": (changed("_order", lambda p: p.astype(np.int32)), "E-ST-DTYPE"),
    "columns in 32 bits": (changed("_outlier_columns", lambda p: p.astype(np.int32)), "E-ST-DTYPE"),
    "outliers in bytes": (changed("_outliers", lambda p: p.view(np.uint8)[:, ::2]), "E-ST-DTYPE"),
    "scale NaN": (edited("_scale", (5, 1), np.nan), "E-NAN"),
    "scale infinite": (edited("_scale", (127, 0), np.inf), "E-NAN"),
    "outlier NaN": (edited("_outliers", (0, 2), np.nan), "E-NAN"),
    "order twice": (lambda parts: edited("_order", 0, parts[NAME + "_order"][1])(parts), "E-TENSOR"),
    "order beyond": (lambda parts: edited("_order", parts[NAME + "_order"].argmax(), 64)(parts), "E-TENSOR"),
    "order negative": (lambda parts: edited("_order", parts[NAME + "_order"].argmin(), -1)(parts), "E-TENSOR"),
    "columns beyond": (edited("_outlier_columns", 2, 64), "E-TENSOR"),
    "columns negative": (edited("_outlier_columns", 0, -1), "E-TENSOR"),
    "columns fall": (changed("_outlier_columns", lambda p: p[::-1]), "E-TENSOR"),
    "columns twice": (lambda parts: edited("_outlier_columns", 1, parts[NAME + "_outlier_columns"][0])(parts), "E-TENSOR"),
    "zeros too wide": (edited("_zero", (9, 0), 0x80), "E-TENSOR"),  # 8 in three bits
    "a part that nobody asked for": (lambda parts: parts.update({NAME + "_magnitude": np.ones(1, "f4")}), "E-TENSOR"),
    "the float weight too": (lambda parts: parts.update({NAME: np.ones((128, 64), "f4")}), "E-TENSOR"),
}  # fmt: skip


@pytest.mark.parametrize(("change", "code"), PARTS.values(), ids=PARTS)
def test_a_part_that_does_not_fit_is_refused(folder, change, code):
    parts = load_file(folder / WEIGHTS)
    change(parts)
    save_file(parts, folder / WEIGHTS, {"format": "pt"})
    error = refusal(folder)
    assert error.code == code and NAME in error.message


def test_outlier_columns_have_codes_that_stand_for_zero(tmp_path):
    """Otherwise a column would count twice, or not at all where its activations are left out."""
    tensor = random_tensor((128, 64), 4, 32, outliers=2)
    codes = np.full((128, 64), 9, np.uint8)
    wrong = pack(codes, tensor.scales, 4, outliers=tensor.outliers)
    pack_folder(make_checkpoint(tmp_path, "sdar"), {UP: wrong})
    error = refusal(tmp_path)
    assert error.code == "E-TENSOR" and "outlier" in error.message
