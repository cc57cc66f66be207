"""A checkpoint that another tool quantized becomes a bundle like any other: export compares it with the torch model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dlm_edge.checkpoint.formats import WRITERS
from dlm_edge.export import export
from tests import bitsandbytes_files as bnb
from tests.foreign import make_foreign, random_codebook, random_weight, to_write, writer_of


def make(folder: Path, format: str, bits: int, symmetric: bool, reordered: bool) -> None:
    if format in ("nf4", "fp4"):
        config = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": format}
        make_foreign(folder, "sdar", bnb.plain_tensors, config, lambda shape, i: random_codebook(shape, format, i))  # type: ignore[arg-type]
        return
    keys: dict[str, Any] = {"symmetric": symmetric, "reordered": reordered}
    config = WRITERS[format].config([to_write("x.weight", random_weight((64, 64), bits, 32, **keys))], [])
    make_foreign(
        folder, "sdar", writer_of(format), config, lambda shape, i: random_weight(shape, bits, 32, seed=i, **keys)
    )


@pytest.mark.parametrize(
    ("format", "bits", "symmetric", "reordered"),
    [
        ("gptq", 4, True, False),
        ("gptq", 4, True, True),
        ("gptq_v2", 3, False, False),
        ("gptq_v2", 2, False, False),
        ("awq", 4, False, False),
        ("compressed-tensors", 4, True, False),
        ("compressed-tensors", 8, False, False),
        ("nf4", 4, True, False),
        ("fp4", 4, True, False),
    ],
)
def test_export(tmp_path: Path, format: str, bits: int, symmetric: bool, reordered: bool) -> None:
    make(tmp_path / "foreign", format, bits, symmetric, reordered)
    report = export(tmp_path / "foreign", tmp_path / "bundle", profile="w8" if bits == 8 else "w4")
    assert report.parity["max_rel_error"] <= 1e-4 and len(report.nodes) == 14
    assert (tmp_path / "bundle" / "manifest.json").is_file()
