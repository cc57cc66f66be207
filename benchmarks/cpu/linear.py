"""QLinear against ONNX Runtime's quantized products, layer by layer: benchmarks/qlinear.py in the shapes of two models."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

import qlinear

from dlm_edge import kernels

from .rows import Rows
from .timing import with_peaks

SECTION = "linear"
SHAPES = ("1536x1536", "1536x256", "1536x8960", "8960x1536", "4096x4096", "4096x12288", "12288x4096")
SETTINGS = ("nbits4g32", "nbits4g128", "nbits8g128", "integer_only", "q4g32b", "q4g128b", "q8g128b", "q8g0")
ROWS = (32, 128)
SECONDS_OF_SHAPE = 3.0  # for all settings of one number of rows
BEST = "best"


def run(rows: Rows, threads: list[int], shapes: list[str], say: Callable[[str], None]) -> None:
    """The best variant of this processor, then the one for AVX2; ONNX Runtime keeps its own choice of instructions."""
    for variant in (BEST, "avx2"):
        if not kernels.set_simd(None if variant == BEST else variant):
            say(f"{SECTION}: no variant {variant} on this processor")
            continue
        for shape in shapes:
            for n_threads in threads:
                key = f"{shape}/{variant}/{n_threads}"
                if rows.lacks(SECTION, key):
                    say(f"{SECTION}: {key} ({kernels.simd()})")
                    measured = with_peaks(n_threads, partial(measure, shape, n_threads))
                    rows.add(SECTION, key, {"variant": variant, "simd": kernels.simd()} | measured)
    kernels.set_simd(None)


def measure(shape: str, threads: int) -> dict[str, Any]:
    k, n = (int(size) for size in shape.split("x"))
    args = argparse.Namespace(threads=threads, rows=list(ROWS), seconds=SECONDS_OF_SHAPE)
    return {"shape": shape, "threads": threads, "settings": qlinear.measure(list(SETTINGS), k, n, args)}
