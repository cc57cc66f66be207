"""What is compiled ahead of time: every kernel with its argument types and compile-time constants.

The operator library finds a variant by `name` alone (kernels/csrc/cuda_launch.h builds the same names), so a name
carries every constant that the library chooses by.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from dlm_edge.kernels.triton import tiles
from dlm_edge.kernels.triton.attend_blocks import attend_blocks
from dlm_edge.kernels.triton.attend_pages import attend_pages
from dlm_edge.kernels.triton.attend_window import attend_window
from dlm_edge.kernels.triton.compaction import compact_blocks, compact_rows_and_pages
from dlm_edge.kernels.triton.dequantize_rows import dequantize_rows, rematerialise_rows
from dlm_edge.kernels.triton.measure_pages import measure_pages
from dlm_edge.kernels.triton.page_choice import choose_pages, page_scores
from dlm_edge.kernels.triton.pattern_choice import choose_blocks, count_pairs, measure_blocks
from dlm_edge.kernels.triton.row_choice import choose_rows, row_movement
from dlm_edge.kernels.triton.selection_end import keep_queries

ARCHITECTURES = (80, 86, 89, 90, 120)  # A100, RTX 30, RTX 40, H100, RTX 50

HALVES = "q k v out k_scale k_low v_scale v_low row_scale row_low weight product"
FLOATS = (
    "movement page_scale scores stats partial_out partial_lse prefix_out prefix_lse row_lse masses k_tail tail values"
)
BYTES = "active pages codes pattern"
INTEGERS = "row_list row_place page_list block_list counts"
POINTERS = {
    **dict.fromkeys(HALVES.split(), "*fp16"),
    **dict.fromkeys(FLOATS.split(), "*fp32"),
    **dict.fromkeys(BYTES.split(), "*u8"),
    **dict.fromkeys(INTEGERS.split(), "*i32"),
    **dict.fromkeys(("low", "high"), "*i8"),
    "rows": "*i64",
}
NUMBERS = {"scale_log2": "fp32", "drift": "fp32"}  # all others are int32
SELECTION = (row_movement, page_scores, keep_queries)  # SelectPages has its queries in float32, like their state
QUERIES = ("q", "q_last", "q_stored")
DIVISIBLE_BY_16 = ("head_dim", "n_in", "n_out")  # and every pointer


@dataclass(frozen=True, slots=True)
class Variant:
    """One file. `kernel` is a Triton function; `constants` are its constexpr arguments."""

    kernel: Any
    constants: dict[str, int]
    num_warps: int = 4
    num_stages: int = 2

    @property
    def name(self) -> str:
        """attend_pages-b16-p1-m64-n64-d128: the constants' first letters after BLOCK_, in the kernel's order."""
        letters = {key: key.removeprefix("BLOCK_")[0].lower() for key in self.constants}
        return "-".join([self.function, *(f"{letters[key]}{value}" for key, value in self.constants.items())])

    @property
    def function(self) -> str:
        return str(self.kernel.__name__)

    def signature(self) -> dict[str, str]:
        """Argument to Triton type, in order; constants are "constexpr"."""
        found = {}
        for name in self.kernel.arg_names:
            if name in self.constants:
                found[name] = "constexpr"
            elif name in QUERIES and self.kernel in SELECTION:
                found[name] = "*fp32"
            elif name in ("k_cache", "v_cache"):
                found[name] = "*fp16" if self.constants["BITS"] == 16 else "*u8"
            else:
                found[name] = POINTERS.get(name) or NUMBERS.get(name, "i32")
        return found

    def grid(self) -> str:
        """The grid as the kernel's docstring states it: its first line up to a colon or full stop."""
        first_line = (self.kernel.__doc__ or "").strip().splitlines()[0]
        assert first_line.startswith("Grid ("), f"{self.function} does not state its grid"
        return first_line.removeprefix("Grid ").split(":")[0].split(". ")[0].rstrip(".")


def variants(head_dims: tuple[int, ...] = tiles.HEAD_DIMS) -> Iterator[Variant]:
    """All variants of one architecture."""
    scan = {"BLOCK": tiles.SCAN_BLOCK}
    for kernel in (compact_rows_and_pages, compact_blocks, count_pairs):
        yield Variant(kernel, scan)
    for n_slots in tiles.PATTERN_SLOTS:
        yield Variant(choose_blocks, {"BLOCK": n_slots})
    for n_slots in tiles.SLOTS:
        yield Variant(choose_pages, {"BLOCK": n_slots}, tiles.slot_warps(n_slots))
    for n_rows in tiles.STATE_ROWS:
        yield Variant(choose_rows, {"BLOCK_R": n_rows, **scan}, num_warps=1)
    for bits in (8, 4, 3, 2):
        for channel in (0, 1):
            layout = {"BITS": bits, "CHANNEL": channel}
            yield Variant(dequantize_rows, {**layout, "BLOCK": tiles.ROW_PART})
            for n_rows in (tiles.SMALL_ROWS, tiles.LARGE_ROWS):
                yield Variant(rematerialise_rows, {**layout, **_product(n_rows)})
    for head_dim in head_dims:
        yield Variant(row_movement, {"BLOCK_D": head_dim}, num_warps=1)
        yield Variant(keep_queries, {"BLOCK_D": head_dim, **scan})
        for n_rows in (tiles.SMALL_ROWS, tiles.LARGE_ROWS):
            yield from _of_shape(head_dim, n_rows)
        for n_rows in tiles.BLOCK_ROWS:
            yield from _of_blocks(head_dim, n_rows)


def _of_shape(head_dim: int, n_rows: int) -> Iterator[Variant]:
    yield Variant(page_scores, _constants(head_dim, n_rows), tiles.window_warps(head_dim, n_rows))
    for keep in (0, 1):
        yield Variant(
            attend_window, {"KEEP": keep, **_constants(head_dim, n_rows)}, tiles.window_warps(head_dim, n_rows)
        )
    for bits, paged in ((16, 0), (16, 1), (8, 1), (4, 1)):
        constants = {"BITS": bits, "PAGED": paged, **_constants(head_dim, n_rows, bits)}
        yield Variant(attend_pages, constants, tiles.warps(head_dim, n_rows, bits), tiles.stages(head_dim, bits))
    for bits in (16, 8, 4):
        constants = {"BITS": bits, **_constants(head_dim, n_rows), "BLOCK_N": tiles.MEASURED_KEYS}
        yield Variant(measure_pages, constants, num_stages=tiles.stages(head_dim, bits))


def _of_blocks(head_dim: int, n_rows: int) -> Iterator[Variant]:
    for listed in (0, 1):
        constants = {"LISTED": listed, **_constants(head_dim, n_rows)}
        yield Variant(attend_blocks, constants, tiles.warps(head_dim, n_rows))
    yield Variant(measure_blocks, {**_constants(head_dim, n_rows), "BLOCK_N": tiles.MEASURED_BLOCK_KEYS})


def _product(n_rows: int) -> dict[str, int]:
    return {"BLOCK_M": n_rows, "BLOCK_N": tiles.PRODUCT_COLUMNS, "BLOCK_K": tiles.PRODUCT_DEPTH}


def _constants(head_dim: int, n_rows: int, bits: int = 16) -> dict[str, int]:
    return {"BLOCK_M": n_rows, "BLOCK_N": tiles.key_block(head_dim, bits), "BLOCK_D": head_dim}
