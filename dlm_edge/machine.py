"""What this machine calls itself, and what it can do."""

from __future__ import annotations

import platform
from pathlib import Path

from dlm_edge import kernels

CPUINFO = Path("/proc/cpuinfo")
DOTS_OF_BYTES = ("avx512_vnni", "avx_vnni")  # as Linux and our library call them


def processor() -> str:
    """The processor's own name where the system tells it."""
    return told("model name") or platform.processor()


def has_dots_of_bytes() -> bool:
    """Whether the processor multiplies bytes and adds four products exactly in 32 bits (AVX-512 VNNI, AVX-VNNI)."""
    flags = told("flags").split()
    return any(name in flags for name in DOTS_OF_BYTES) if flags else kernels.simd() in (*DOTS_OF_BYTES, "amx")


def told(key: str) -> str:
    """What Linux says of the first core; empty elsewhere."""
    try:
        lines = CPUINFO.read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    return next((line.split(":", 1)[1].strip() for line in lines if line.split(":")[0].strip() == key), "")
