"""The hand-written slot numbers against ONNX Runtime's official headers, wherever a copy of them is at hand.

tools/fetch_ort_headers.sh build/ort_headers
DLM_EDGE_ORT_HEADERS=build/ort_headers python -m pytest tests/kernels/test_ort_abi.py
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ABI_HEADER = Path(__file__).resolve().parents[2] / "kernels" / "csrc" / "ort_abi.h"
COMPILER = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
C_API = "onnxruntime_c_api.h"


@pytest.fixture(scope="module")
def official_headers() -> Path:
    folder = os.environ.get("DLM_EDGE_ORT_HEADERS")
    if not folder:
        pytest.skip("DLM_EDGE_ORT_HEADERS does not name a folder with ONNX Runtime's headers")
    if COMPILER is None:
        pytest.skip("needs a C++ compiler")
    found = sorted(Path(folder).rglob(C_API))
    assert found, f"no {C_API} below {folder}"
    return found[0].parent


def slots() -> list[tuple[str, int]]:
    text = ABI_HEADER.read_text(encoding="utf-8")
    return [(name, int(slot)) for name, slot in re.findall(r"using (\w+) = Slot<(\d+)", text)]


def custom_op_members() -> list[str]:
    struct = ABI_HEADER.read_text(encoding="utf-8").split("struct CustomOp {")[1].split("};")[0]
    return ["version", *re.findall(r"\(\*(\w+)\)", struct)]


def compile_check(asserts: list[str], headers: Path, folder: Path) -> str:
    """The compiler's messages; empty when every assertion holds."""
    source = folder / "check.cpp"
    lines = ["#include <cstddef>", f'#include "{C_API}"', f'#include "{ABI_HEADER}"', *asserts]
    source.write_text("\n".join(lines) + "\n", encoding="utf-8")
    command = [str(COMPILER), "-std=c++17", "-fsyntax-only", "-Wno-invalid-offsetof", "-I", str(headers), str(source)]
    return subprocess.run(command, check=False, capture_output=True, text=True).stderr


def slot_assert(name: str, slot: str) -> str:
    return f'static_assert(offsetof(OrtApi, {name}) == {slot} * sizeof(void*), "{name}");'


def test_every_slot_is_where_the_official_header_has_it(official_headers, tmp_path):
    asserts = [slot_assert(name, f"dlm_edge::ort::{name}::number") for name, _ in slots()]
    assert len(asserts) == 19
    assert compile_check(asserts, official_headers, tmp_path) == ""


def test_custom_op_has_the_official_layout(official_headers, tmp_path):
    members = custom_op_members()
    assert len(members) == 26
    asserts = [
        f'static_assert(offsetof(OrtCustomOp, {m}) == offsetof(dlm_edge::ort::CustomOp, {m}), "{m}");' for m in members
    ]
    assert compile_check(asserts, official_headers, tmp_path) == ""


def test_constants_have_the_official_values(official_headers, tmp_path):
    pairs = {
        "ORT_FAIL": "kFail",
        "ORT_INVALID_ARGUMENT": "kInvalidArgument",
        "ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT": "kFloat",
        "ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64": "kInt64",
        "ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED": "kAnyType",
        "ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8": "kUint8",
        "ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8": "kInt8",
        "ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16": "kFloat16",
        "INPUT_OUTPUT_REQUIRED": "kRequired",
        "INPUT_OUTPUT_OPTIONAL": "kOptional",
    }
    asserts = [f"static_assert(int({theirs}) == int(dlm_edge::ort::{ours}));" for theirs, ours in pairs.items()]
    asserts.append("static_assert(dlm_edge::ort::kApiVersion <= ORT_API_VERSION);")
    assert compile_check(asserts, official_headers, tmp_path) == ""


def test_a_wrong_slot_would_be_noticed(official_headers, tmp_path):
    name, slot = slots()[-1]
    assert name in compile_check([slot_assert(name, str(slot + 1))], official_headers, tmp_path)
