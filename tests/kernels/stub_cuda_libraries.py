"""Stub CUDA libraries, with which ONNX Runtime's CUDA provider opens sessions on a machine without a GPU.

They show placement, registration and launches, never numbers: no kernel runs. Built from the symbols that the
installed provider leaves undefined, so nothing of CUDA's is needed.
"""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
from pathlib import Path

SOURCES = Path(__file__).resolve().parent / "stub_cuda"


def provider_library() -> Path | None:
    """The CUDA provider of the installed onnxruntime, or None: the CPU package has none."""
    spec = importlib.util.find_spec("onnxruntime")
    if spec is None or spec.origin is None:
        return None
    path = Path(spec.origin).parent / "capi" / "libonnxruntime_providers_cuda.so"
    return path if path.is_file() else None


def missing_tools() -> str:
    """Why the stubs cannot be built here, or ""."""
    absent = [tool for tool in ("cc", "nm", "readelf") if shutil.which(tool) is None]
    if provider_library() is None:
        return "needs onnxruntime-gpu: the installed onnxruntime has no CUDA provider"
    return f"needs {', '.join(absent)}" if absent else ""


def build(folder: Path) -> None:
    """libcuda.so.1 and the CUDA libraries that the provider names, in `folder`: for LD_LIBRARY_PATH."""
    provider = provider_library()
    assert provider is not None
    needed = re.findall(r"\[(lib(?:cu\w+)\.so\.\d+)\]", output("readelf", "-d", str(provider)))
    undefined = re.findall(r" U (\w+)(?:@+(\S+))?", output("nm", "-D", "--undefined-only", str(provider)))
    for name in needed:
        handwritten = {"libcuda.so.1": "driver.c"}.get(name, "runtime.c" if name.startswith("libcudart") else None)
        source = (SOURCES / handwritten).read_text(encoding="utf-8") if handwritten else ""
        present = set(re.findall(r"^[\w* ]+?[ *](\w+)\(", source, re.MULTILINE))
        rest = sorted({symbol for symbol, owner in undefined if owner == name} - present)
        source += "".join(f"\nint {symbol}(void) {{ return 0; }}" for symbol in rest) + "\n"
        (folder / f"{name}.c").write_text(source, encoding="utf-8")
        command = ["cc", "-shared", "-fPIC", "-O1", "-w", f"-Wl,-soname,{name}"]
        if name != "libcuda.so.1":  # whose symbols have no version
            script = folder / f"{name}.map"
            script.write_text(f"{name} {{ *; }};\n", encoding="utf-8")
            command.append(f"-Wl,--version-script={script}")
        subprocess.run([*command, str(folder / f"{name}.c"), "-o", str(folder / name)], check=True)


def output(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout
