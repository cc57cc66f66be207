"""Ahead-of-time compilation: every kernel compiles, the metadata is what the launcher relies on. No GPU is needed."""

from __future__ import annotations

import importlib.util
import json
import os
import struct
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ARCHITECTURES = (80, 86, 89, 90, 120)
FUSED = ["attend_pages-b4-p1-m16-*-d64", "attend_blocks-l1-m16-*-d64", "rematerialise_rows-b4-c1-m16-*"]
SMALLEST = [  # variant of each kernel but those
    "compact_rows_and_pages-*", "choose_pages-b1024", "choose_rows-r128-*", "dequantize_rows-b3-c1-*", "row_movement-d64",
    "keep_queries-d64-*", "page_scores-m16-*-d64", "attend_window-k1-m16-*-d64", "measure_pages-b8-m16-*-d64",
    "compact_blocks-*", "measure_blocks-m16-*-d64", "choose_blocks-b1024", "count_pairs-*",
]  # fmt: skip
EM_CUDA = 190  # the ELF machine number of device code

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs Triton: pip install triton")


def compile_kernels(out: Path, only: list[str], archs: Sequence[int]) -> None:
    """In a process of its own: in this one Triton interprets (tests/conftest.py)."""
    environment = {**os.environ, "TRITON_CACHE_DIR": str(out / "cache"), "PYTHONPATH": str(ROOT)}
    environment.pop("TRITON_INTERPRET", None)
    tool = [sys.executable, str(ROOT / "tools" / "compile_kernels.py"), "--out", str(out), "--only", *only]
    done = subprocess.run([*tool, "--arch", *map(str, archs)], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def metadata(out: Path) -> list[dict]:
    return [json.loads(path.read_text()) for path in sorted(out.glob("sm_*/*.json"))]


@pytest.fixture(scope="module")
def for_all_architectures(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("cubins")
    compile_kernels(out, FUSED, ARCHITECTURES)
    return out


@pytest.fixture(scope="module")
def every_kernel(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("kernels")
    compile_kernels(out, SMALLEST, [86])
    return out


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_every_architecture_gets_device_code(for_all_architectures, arch):
    cubins = list(for_all_architectures.glob(f"sm_{arch}/*.cubin"))
    assert len(cubins) == len(FUSED)
    for content in (cubin.read_bytes() for cubin in cubins):
        assert content[:4] == b"\x7fELF"
        assert struct.unpack_from("<H", content, 18) == (EM_CUDA,)
        (flags,) = struct.unpack_from("<I", content, 48)
        assert (flags if content[8] < 8 else flags >> 8) & 0xFF == arch  # ABI 8 moved the architecture up a byte


def test_every_kernel_compiles(every_kernel):
    assert len({found["function"] for found in metadata(every_kernel)}) == len(SMALLEST)


def test_metadata_is_what_a_plain_launch_needs(for_all_architectures):
    for found in metadata(for_all_architectures):
        assert found["num_ctas"] == 1 and not found["launch_pdl"] and not found["launch_cooperative_grid"]
        assert found["global_scratch_size"] == found["profile_scratch_size"] == 0
        assert found["shared"] <= 101376
        names = [name for name, _ in found["arguments"]]
        first, types, divisible, grid = {
            "attend_pages": (["q", "k_cache", "v_cache"], ("k_cache", "*u8"), ("head_dim", "q_len"), "(n_kv_heads, "),
            "attend_blocks": (["q", "k", "v"], ("counts", "*i32"), ("head_dim", "q_len"), "(n_blocks * "),
            "rematerialise_rows": (["codes", "row_scale"], ("weight", "*fp16"), ("n_in", "cache_len"), "(ceil(n / "),
        }[found["function"]]
        assert names[: len(first)] == first and not set(names) & {"BITS", "LISTED", "BLOCK_M"}
        assert dict(found["arguments"])[types[0]] == types[1]
        assert divisible[0] in found["divisible_by_16"] and divisible[1] not in found["divisible_by_16"]
        assert found["grid"].startswith(grid)


def test_the_table_of_the_library_says_the_same(for_all_architectures):
    for arch in ARCHITECTURES:
        rows = (for_all_architectures / f"sm_{arch}" / "kernels.txt").read_text().splitlines()[2:]
        columns = [
            [found["name"], found["function"], found["num_warps"], found["shared"], len(found["arguments"])]
            for found in metadata(for_all_architectures)
            if found["arch"] == arch
        ]
        assert sorted(rows) == sorted(" ".join(map(str, row)) for row in columns)


def test_an_up_to_date_folder_is_left_alone(for_all_architectures):
    cubins = list(for_all_architectures.glob("sm_86/*.cubin"))
    before = [cubin.stat().st_mtime_ns for cubin in cubins]
    compile_kernels(for_all_architectures, FUSED, [86])
    assert [cubin.stat().st_mtime_ns for cubin in cubins] == before
