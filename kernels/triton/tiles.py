"""Tile sizes and split counts: the launch rules that Python, the compiled files and kernels/csrc/cuda_launch.h share."""

from __future__ import annotations

SCAN_BLOCK = 1024  # flags that one program looks at together
SLOTS = (1024, 4096, 16384)  # pages with keys that choose_pages is compiled for
ROW_PART = 512  # values of one row that one program dequantizes
PRODUCT_COLUMNS, PRODUCT_DEPTH = (
    128,
    32,
)  # of a tile of rematerialise_rows: wide, since every tile decodes its rows anew
KEYS_PER_SPLIT = 256  # fewer are not worth another partial result
SMALL_ROWS, LARGE_ROWS = 16, 64  # the tensor cores' least number of rows, and what fills them
BLOCK_ROWS = (16, 32, 64)  # the same of a block of queries, which is often of 32
MEASURED_KEYS = 16  # keys of a tile in measure_pages: a page is seldom longer
MEASURED_BLOCK_KEYS = 32  # the same in measure_blocks
PATTERN_SLOTS = SLOTS[:2]  # blocks of a sequence that choose_blocks is compiled for
STATE_ROWS = (128, 1024)  # rows with state that choose_rows is compiled for
HEAD_DIMS = (64, 128, 256)


def head_block(head_dim: int) -> int:
    """The compiled head dimension that holds `head_dim`, a multiple of 16 up to 256."""
    return next(size for size in HEAD_DIMS if size >= head_dim)


def row_block(n_rows: int) -> int:
    return SMALL_ROWS if n_rows <= SMALL_ROWS else LARGE_ROWS


def block_rows(block_size: int) -> int:
    return next((rows for rows in BLOCK_ROWS if rows >= block_size), LARGE_ROWS)


def key_block(head_block: int, bits: int = 16) -> int:
    """Keys of a tile. Two stages of keys and values have to fit into 99 KiB of shared memory beside the queries."""
    return 32 if head_block > 128 or bits != 16 else 64


def warps(head_block: int, n_rows: int, bits: int = 16) -> int:
    """Of a program that keeps n_rows x head_block sums in registers, and dequantizes there. With fewer, ptxas
    spills more registers; what it still spills, at head_block 256, is at most 120 bytes a thread."""
    return 8 if head_block > 128 or (bits != 16 and n_rows > SMALL_ROWS) else 4


def window_warps(head_block: int, n_rows: int) -> int:
    """As `warps`, for attend_window and page_scores, which hold two results at once."""
    return 8 if head_block > 128 or n_rows > SMALL_ROWS else 4


def stages(head_block: int, bits: int = 16) -> int:
    """Tiles in flight. Codes, scales and offsets of both keys and values do not fit twice at head_block 256."""
    return 1 if head_block > 128 and bits != 16 else 2


def state_block(n_rows: int) -> int:
    return next(size for size in STATE_ROWS if size >= n_rows)


def slot_block(n_valid: int) -> int:
    return next(size for size in SLOTS if size >= n_valid)


def pattern_block(n_slots: int) -> int:
    return next(size for size in PATTERN_SLOTS if size >= n_slots)


def slot_warps(slot_block: int) -> int:
    return 16 if slot_block > 4096 else 4


def split_count(n_programs: int, n_keys: int, n_processors: int) -> int:
    """Key ranges that fill the device twice, without ranges shorter than KEYS_PER_SPLIT. Depends on shapes alone."""
    if n_keys == 0:
        return 0
    return max(1, min(2 * n_processors // n_programs, -(-n_keys // KEYS_PER_SPLIT), 128))
