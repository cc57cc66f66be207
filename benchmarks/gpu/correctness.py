"""Every timed step against the NumPy definitions, on the device that will be timed."""

from __future__ import annotations

import numpy as np
import torch

from dlm_edge.kernels.prefix_block_attention.reference import prefix_block_attention, sparse_prefix_block_attention
from dlm_edge.kernels.quantized_pages.reference import Quantized, dequantize_cache
from dlm_edge.kernels.select_pages.reference import DENSE_KEEP, select_pages

from .pattern_steps import STEPS as PATTERN_STEPS
from .pattern_steps import PatternWork, SequenceShape
from .row_steps import BITS, RowShape, RowWork
from .row_steps import STEPS as ROW_STEPS
from .workload import Shape, Workload

# Inputs are standard normal in float16. What is rounded: softmax weights, values from codes, and the result, by which
# Triton's interpreter is off by 1e-3 at most (tests/kernels/test_triton_attention.py). The bound leaves a factor of three.
TOLERANCE = 3e-3
SHAPES = [
    Shape("grouped", 8, 2, 128, 16, 1000),
    Shape("multi-head", 4, 4, 64, 32, 333),
    Shape("wide", 7, 1, 256, 16, 250),
    Shape("odd", 3, 1, 80, 5, 40),
]
# Relative to the largest product. One rounding of the result is 4.9e-4; the product of two operators is PyTorch's.
ROW_TOLERANCE = 1.5e-3
ROW_SHAPES = [
    RowShape("latents", 320, 320, True, 500, 77),  # four kv heads of 80
    RowShape("few rows", 1024, 1024, True, 256, 9),
    RowShape("inputs", 512, 512, False, 300, 130),
]
SEQUENCES = [
    SequenceShape("grouped", 8, 2, 128, 500, 32),
    SequenceShape("multi-head", 4, 4, 64, 333, 128),
    SequenceShape("wide", 2, 1, 256, 100, 16),
    SequenceShape("odd", 3, 1, 80, 70, 10),
]


def check_all(device: str) -> list[dict[str, object]]:
    """One row per shape, precision and step: the largest error, its bound, and whether it holds."""
    return check_cached(device) + check_rows(device) + check_sequences(device)


def check_rows(device: str, shapes: list[RowShape] | None = None) -> list[dict[str, object]]:
    return [
        verdict(shape.model, bits, step, RowWork(shape, bits, device).error(step), ROW_TOLERANCE)
        for shape in shapes or ROW_SHAPES
        for bits in BITS
        for step in ROW_STEPS
    ]


def check_sequences(device: str, shapes: list[SequenceShape] | None = None) -> list[dict[str, object]]:
    return [
        verdict(shape.model, 16, step, PatternWork(shape, device).error(step), TOLERANCE)
        for shape in shapes or SEQUENCES
        for step in PATTERN_STEPS
    ]


def verdict(shape: str, bits: int, step: str, error: float, bound: float) -> dict[str, object]:
    return {"shape": shape, "bits": bits, "step": step, "error": error, "bound": bound, "ok": bool(error <= bound)}


def check_cached(device: str, shapes: list[Shape] | None = None) -> list[dict[str, object]]:
    rows = []
    for shape in shapes or SHAPES:
        for bits in (16, 8, 4):
            work = Workload(shape, bits, device)
            for step in ("dense", "losa", "losa by masses", "quest", "mage first", "mage"):
                rows.append(verdict(shape.model, bits, step, step_error(work, step), TOLERANCE))
            if bits == 16:
                rows.append(verdict(shape.model, bits, "plain dense", dense_error(work), TOLERANCE))
    return rows


def step_error(work: Workload, step: str) -> float:
    """Of output and state, given what was selected; infinite when the selection itself is not the definition's.

    Scores of float16 queries are added in another order than NumPy's, so that pages with nearly equal scores may
    change places: the selection may differ in as many pages as have such a neighbour, which is 1 in 100 here.
    """
    work.prepare(step)
    work.q_last.copy_(work.q_before)
    state = [array(x) for x in (work.state.prefix_out, work.state.prefix_lse, work.state.masses)]
    queries = [array(x) for x in (work.q_last, work.q_stored)]
    out = array(work.step(step))
    assert work.selected is not None
    s, policy = work.shape, work.policy(step)
    bounds = [array(x, np.int8) for x in (work.low, work.high)] + [array(work.page_scale)]
    expected = select_pages(array(work.q), *bounds, *queries, state[2], s.prefix, s.prefix, policy)
    active, pages = array(work.selected.active, np.uint8), array(work.selected.pages, np.uint8)
    if not np.array_equal(active, expected.active) or np.mean(pages != expected.pages) > 0.01:
        return float("inf")
    keys, values = cached(work)
    wanted = sparse_prefix_block_attention(
        array(work.q), array(work.k), array(work.v), keys, values, s.prefix, s.prefix, s.q_len, active, pages,
        policy.mode == DENSE_KEEP, *state,
    )  # fmt: skip
    found = [out, *(array(x) for x in (work.state.prefix_out, work.state.prefix_lse, work.state.masses))]
    return max(float(np.abs(a - b).max()) for a, b in zip(found, wanted, strict=True))


def dense_error(work: Workload) -> float:
    s = work.shape
    window = [array(x) for x in (work.q, work.k, work.v)]
    wanted = prefix_block_attention(*window, *cached(work), s.prefix, s.prefix, s.q_len)
    return float(np.abs(array(work.prepare("plain dense")()) - wanted).max())


def cached(work: Workload) -> tuple[np.ndarray, np.ndarray]:
    """Keys and values float32 with the workload's capacity."""
    c = work.cache
    if work.bits == 16:
        return array(c.k), array(c.v)
    halves = [array(x, np.float16) for x in (c.k_scale, c.k_low, c.v_scale, c.v_low)]
    k = Quantized(array(c.k, np.uint8), *halves[:2])
    v = Quantized(array(c.v, np.uint8), *halves[2:])
    found = dequantize_cache(k, array(c.k_tail), v, work.shape.prefix, work.bits)
    padding = [(0, 0), (0, 0), (0, work.capacity - work.shape.prefix), (0, 0)]
    keys, values = (np.pad(x, padding) for x in found)
    return keys, values


def array(tensor: object, dtype: type = np.float32) -> np.ndarray:
    assert isinstance(tensor, torch.Tensor)
    return tensor.cpu().numpy().astype(dtype)
