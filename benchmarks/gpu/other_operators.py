"""Times of RematerialiseRows and PatternAttention, each against what would run without it, and their tables."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from .pattern_steps import STEPS as PATTERN_STEPS
from .pattern_steps import PatternWork, SequenceShape
from .row_steps import BITS, RowShape, RowWork
from .row_steps import STEPS as ROW_STEPS
from .timing import seconds_per_call

Row = dict[str, Any]
Heads = dict[str, tuple[int, int, int]]
Say = Callable[[str], None]
POSITIONS = (1024, 4096)  # made again: what LoSA's pages hold together, and a dense first step's share
LONG = 4096  # from there on blocks of 128 positions, below of 32: SparseD's settings
LAYERS = 8  # data of several, so that little of it stays in the device's cache


def measure_rows(models: Heads, prefixes: list[int], bandwidth: float, say: Say) -> list[Row]:
    """`speed_up` of the fused form is over the two operators with memory between them."""
    rows: list[Row] = []
    longest = max(prefixes)
    for model, heads in models.items():
        for n in POSITIONS:
            shape = RowShape.of(model, heads, longest, n)
            say(f"{model}, {shape.n} positions made again out of {longest}")
            for bits in BITS:
                work = [RowWork(shape, bits, seed=seed) for seed in range(LAYERS)]
                found = {step: seconds_per_call([each.prepare(step) for each in work]) for step in ROW_STEPS}
                for step, times in found.items():
                    row = timed(model, step, times) | {"bits": bits, "positions": shape.n, "prefix": longest}
                    row["of_copy_bandwidth"] = work[0].bytes_read() / times[0] / bandwidth
                    rows.append({**row, "speed_up": found["rows in two"][0] / times[0]})
    return rows


def measure_sequences(models: Heads, lengths: list[int], say: Say) -> list[Row]:
    """`speed_up` is over the fastest dense attention of the same sequence, ours or PyTorch's."""
    rows: list[Row] = []
    for model, heads in models.items():
        for length in lengths:
            say(f"{model}, a sequence of {length} without a cache")
            shape = SequenceShape(model, *heads, length, 128 if length > LONG else 32)
            work = [PatternWork(shape, seed=seed) for seed in range(LAYERS)]
            found = []
            for step in PATTERN_STEPS:
                times = seconds_per_call([each.prepare(step) for each in work])
                found.append(
                    timed(model, step, times)
                    | {"length": length, "density": work[0].density(), "block": shape.block_size}
                )
            times = seconds_per_call([each.sdpa for each in work])
            difference = float((work[0].step("whole dense") - as_ours(work[0].sdpa())).abs().max())
            found.append(timed(model, "sdpa", times) | {"length": length, "density": 1.0, "difference": difference})
            dense = min(row["seconds"] for row in found if row["step"] in ("whole dense", "sdpa"))
            rows += [{**row, "speed_up": dense / row["seconds"]} for row in found]
            del work
            torch.cuda.empty_cache()
    return rows


def as_ours(out: torch.Tensor) -> torch.Tensor:
    """[1, n_heads, q_len, head_dim] to [1, q_len, n_heads * head_dim]."""
    return out.transpose(1, 2).flatten(2)


def timed(model: str, step: str, times: tuple[float, float, float]) -> Row:
    return {"model": model, "step": step, "seconds": times[0], "least": times[1], "most": times[2]}


def print_tables(rematerialised: list[Row], sequences: list[Row]) -> None:
    print("\n| model | positions | of | step | bits | us | speed-up | of copy bandwidth |")
    print("|---|---|---|---|---|---|---|---|")
    for row in rematerialised:
        print(
            f"| {row['model']} | {row['positions']} | {row['prefix']} | {row['step']} | {row['bits']} "
            f"| {row['seconds'] * 1e6:.1f} | {row['speed_up']:.2f} | {row['of_copy_bandwidth']:.0%} |"
        )
    print("\n| model | length | step | us | density | speed-up |")
    print("|---|---|---|---|---|---|")
    for row in sequences:
        print(
            f"| {row['model']} | {row['length']} | {row['step']} | {row['seconds'] * 1e6:.1f} | {row['density']:.1%} "
            f"| {row['speed_up']:.2f} |"
        )
