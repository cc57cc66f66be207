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
FUSED = ["attend_pages-b4-p1-m16-*-d64"]
SMALLEST = [  # variant of each kernel but attend_pages
    "compact_rows_and_pages-*", "choose_pages-b1024", "choose_rows-r128-*", "dequantize_rows-b3-c1-*", "row_movement-d64",
    "keep_queries-d64-*", "page_scores-m16-*-d64", "attend_window-k1-m16-*-d64", "measure_pages-b8-m16-*-d64",
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
    (cubin,) = for_all_architectures.glob(f"sm_{arch}/*.cubin")
    content = cubin.read_bytes()
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
        assert names[:3] == ["q", "k_cache", "v_cache"] and "BITS" not in names
        assert dict(found["arguments"])["k_cache"] == "*u8"
        assert "head_dim" in found["divisible_by_16"] and "q_len" not in found["divisible_by_16"]
        assert found["grid"].startswith("(n_kv_heads, ")


def test_the_table_of_the_library_says_the_same(for_all_architectures):
    for found in metadata(for_all_architectures):
        rows = (for_all_architectures / f"sm_{found['arch']}" / "kernels.txt").read_text().splitlines()[2:]
        columns = [found["name"], found["function"], found["num_warps"], found["shared"], len(found["arguments"])]
        assert rows == [" ".join(map(str, columns))]


def test_an_up_to_date_folder_is_left_alone(for_all_architectures):
    (cubin,) = for_all_architectures.glob("sm_86/*.cubin")
    before = cubin.stat().st_mtime_ns
    compile_kernels(for_all_architectures, FUSED, [86])
    assert cubin.stat().st_mtime_ns == before
