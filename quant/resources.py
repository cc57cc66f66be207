"""What a job needs: memory, disk and time, estimated before anything is read, and refused early where it is not there.

Both estimates follow the code phase by phase. Their few constants were fitted to the jobs in
benchmarks/results/big_checkpoint.json.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from dlm_edge.errors import ResourceError
from dlm_edge.journal import free_bytes
from dlm_edge.memory import available_bytes
from dlm_edge.quant.gptq import CACHE_VALUES
from dlm_edge.quant.grid import Search, choose_grid
from dlm_edge.quant.held_out import TOKENS as PROBE_TOKENS
from dlm_edge.quant.methods import Method, find_method
from dlm_edge.quant.outer import CHUNK_ROWS
from dlm_edge.quant.plan import Plan, QuantizeOptions
from dlm_edge.quant.state_batch import BATCH_TOKENS
from dlm_edge.quant.statistics import BLOCK

SMALL_FILES_BYTES = 32 << 20  # tokenizer, index, card and the like
PROCESS_BYTES = 300 << 20  # Python, torch and their libraries, and what the allocator keeps of small tensors
KEPT_BLOCK_BYTES = 32 << 20  # freed blocks up to this size stay with the process (glibc's largest mmap threshold)
START_SECONDS = 4.0
READ_SPEED = 1e9  # bytes a second, hashing included
DOUBLE = 2.0  # a float64 operation in float32 ones
# Work on single weights, in candidates of a search: rounding column by column, and three sweeps over all groups.
ROUNDING, SWEEPING = 30, 216


@dataclass(frozen=True, slots=True)
class Workload:
    """The shapes that decide, in values: linears (rows, columns) of one layer; tokens of calibration and held-out states."""

    layer: int
    linears: list[tuple[int, int]]
    outer: int
    n_outer: int
    width: int
    tokens: int
    probe_tokens: int
    method: Method
    bits: float
    tuned: bool

    @classmethod
    def of(cls, plan: Plan, options: QuantizeOptions) -> Workload:
        source, spec = plan.checkpoint, plan.spec
        copies = 1 if spec.conventions.attention == "full" else 2  # clean text and its noisy copy
        return cls(
            layer=sum(math.prod(source.shape(r)) for r in source.roles() if r.startswith("layers.0.")),
            linears=[(source.shape(r)[0], source.shape(r)[1]) for r in plan.roles],
            outer=spec.embedding_rows * spec.hidden_size,
            n_outer=len(plan.outer),
            width=spec.hidden_size,
            tokens=plan.state_tokens * copies,
            probe_tokens=PROBE_TOKENS * copies if plan.state_tokens else 0,
            method=find_method(options.recipe.method),
            bits=options.recipe.bits,
            tuned=options.recipe.tuning is not None,
        )

    @property
    def results(self) -> int:
        """Bytes of the layer's packed weights, about."""
        return math.ceil(self.layer * (self.bits / 8 + 1 / 16))

    @property
    def beside(self) -> bool:
        """Whether the hidden states of the full-precision model are kept."""
        return self.method.needs_full or self.tuned


def estimate_ram(plan: Plan, options: QuantizeOptions) -> int:
    """Bytes at the peak: the largest of the phases that a job goes through."""
    work = Workload.of(plan, options)
    phases = [outer_bytes(work), rounding_bytes(work, 0)]
    if work.tokens:
        kept = streams_bytes(work)
        phases = [outer_bytes(work)]
        phases += [kept + phase(work) for phase in (mixing_bytes, collecting_bytes, solving_bytes, passing_bytes)]
        if work.method.prepare:
            phases.append(kept + preparing_bytes(work))
        if work.tuned:
            phases.append(kept + tuning_bytes(work))
    return PROCESS_BYTES + unreturned_bytes(work) + max(phases)


def outer_bytes(work: Workload) -> int:
    """Embedding and head packed in 8 bits: each once as an array, all of them as the bytes to be written."""
    packed = work.outer * 17 // 16
    return (work.n_outer + 1) * packed * (work.n_outer > 0) + 2 * 4 * CHUNK_ROWS * work.width


def streams_bytes(work: Workload) -> int:
    """Hidden states between two layers: of the calibration, and of the held-out states in both models."""
    return 4 * work.width * (work.tokens * (2 if work.beside else 1) + 2 * work.probe_tokens)


def widest(work: Workload) -> tuple[int, int]:
    """(rows, columns) of the linear with the most inputs."""
    return max(work.linears, key=lambda shape: (shape[1], shape[0]))


def unreturned_bytes(work: Workload) -> int:
    """A layer that was freed, where its weights are small enough to stay with the process."""
    largest = 4 * max(rows * columns for rows, columns in work.linears)
    return 4 * work.layer * (work.tokens > 0 and largest <= KEPT_BLOCK_BYTES)


def layers_bytes(work: Workload) -> int:
    """The layer, the original beside it, and what a tuning will start from once more."""
    copies = 2 if work.method.needs_full or work.tuned else 1
    return 4 * copies * work.layer + 4 * work.tokens * work.width * (1 + work.method.needs_full) * work.tuned


def mixing_bytes(work: Workload) -> int:
    """While `o` is quantized: the layers, its inputs of all tokens, and what is summed over them."""
    inputs = 4 * work.tokens * work.width * (1 + work.method.needs_full)
    return layers_bytes(work) + inputs + 16 * work.width**2 + work.results


def collecting_bytes(work: Workload) -> int:
    """The layers, and the sums over the inputs of the widest linear, with those of one batch and copies of them."""
    rows, columns = widest(work)
    at_once = 4 * min(work.tokens, BATCH_TOKENS) * columns
    held = layers_bytes(work) + 8 * columns**2 + work.results
    if not work.method.needs_full:
        return held + 3 * at_once
    return held + 4 * columns**2 + 4 * rows * columns + 4 * at_once


def solving_bytes(work: Workload) -> int:
    """The layer, the second moment of its widest linear's inputs, and the larger of its factorisation and rounding."""
    rows, columns = widest(work)
    held = layers_bytes(work) - 4 * work.layer * (work.method.needs_full and not work.tuned)
    held += 8 * columns**2 + work.results
    # A target of its own is solved for in float64, beside the matrix that has been factorised.
    held += (4 + 8) * columns**2 + 4 * rows * columns if work.method.needs_full else 0
    return held + max(12 * columns**2 + 3 * 8 * BLOCK * columns, rounding_bytes(work, columns) - 4 * work.layer)


def rounding_bytes(work: Workload, columns: int) -> int:
    """The layer and what rounding one weight takes; with its factor, in float32, for methods that have `columns` of one."""
    largest = max(rows * columns for rows, columns in work.linears)
    if not columns:
        return 4 * work.layer + 4 * 4 * largest
    rows, _ = widest(work)
    return 4 * work.layer + 4 * columns**2 + 4 * rows * columns * (5 if work.method.needs_full else 3)


def passing_bytes(work: Workload) -> int:
    """The layer and its source side by side, and the intermediate values of one batch."""
    _, columns = widest(work)
    return 8 * work.layer + 3 * 4 * min(max(work.tokens, work.probe_tokens), BATCH_TOKENS) * columns


def preparing_bytes(work: Workload) -> int:
    """Scales that are searched for beforehand: the states once more, and second moments with copies of them."""
    _, columns = widest(work)
    wanted = {"gptq": 36, "awq": 16}.get(work.method.quantize.__module__.rpartition(".")[2], 0)
    inputs = 4 * work.tokens * (columns + work.width)
    return 4 * work.layer + inputs + wanted * columns**2 + 4 * 4 * max(r * c for r, c in work.linears)


def tuning_bytes(work: Workload) -> int:
    """Both layers, codes in floating point, and weights with their gradients."""
    _, columns = widest(work)
    return 4 * 7 * work.layer + 4 * work.tokens * work.width * 3 + 4 * BATCH_TOKENS * columns * 4


def estimate_seconds(plan: Plan, options: QuantizeOptions) -> float:
    """From the speed of a matrix product and of a grid search, both measured here."""
    work, product, search = Workload.of(plan, options), product_speed(), search_speed()
    seconds = START_SECONDS + 2 * sum(plan.checkpoint.stored_bytes(r) for r in plan.checkpoint.roles()) / READ_SPEED
    seconds += work.n_outer * work.outer * candidates(Search()) / search
    weights = sum(rows * columns for rows, columns in work.linears)
    seconds += weights * candidates(Search()) / search  # rounded to nearest: the result, or what it is compared with
    if not work.tokens:
        return seconds
    passes = 1 + work.beside + work.tuned + 3 * bool(work.method.prepare)
    operations = 2.0 * weights * (passes * work.tokens + 2 * work.probe_tokens)
    before_widest = sum(rows * columns for rows, columns in work.linears if rows == widest(work)[1])
    operations += 2.0 * before_widest * work.tokens * (1 + work.method.needs_full)  # its inputs are made twice
    for rows, columns in work.linears:
        operations += solving_operations(work, rows, columns)
    if work.probe_tokens:
        operations += 2 * work.outer * work.probe_tokens  # half of these tokens are hidden, in two models
    if work.tuned:
        tuning = options.recipe.tuning or {}
        operations += 6.0 * weights * int(tuning.get("steps", 32)) * int(tuning.get("step_tokens", 2048))
    values = candidates(own_search(work)) + ROUNDING + SWEEPING * work.method.needs_full
    return seconds + operations / product + weights * values / search


def own_search(work: Workload) -> Search | None:
    found = getattr(work.method.config(bits=8 if work.method.int8_activations else 4), "search", None)
    return found if isinstance(found, Search) else None


def candidates(search: Search | None) -> int:
    """Grids tried for every group: each of either sign."""
    return 1 if search is None else 1 + 2 * search.candidates


def solving_operations(work: Workload, rows: int, columns: int) -> float:
    """Of one weight: its share of the second moment, the factor, rounding, and the errors that are reported."""
    moments = 0.5 * work.tokens * columns**2
    errors = 3.0 * DOUBLE * rows * columns**2
    if work.method.int8_activations:
        return moments + errors
    factor = 0.9 * DOUBLE * columns**3
    rounding = 1.0 * rows * columns**2
    if work.method.needs_full:
        moments += 1.5 * work.tokens * columns**2
        rounding += (6.0 + 6.0) * rows * columns**2  # the corrected weight; three sweeps over all groups
    return moments + errors + factor + rounding


def fastest(action: Callable[[], object], times: int = 4) -> float:
    """Seconds of the quickest of a few."""
    best = math.inf
    for _ in range(times):
        started = time.perf_counter()
        action()
        best = min(best, time.perf_counter() - started)
    return best


def product_speed(size: int = 1024) -> float:
    """Float32 operations a second of a square matrix product."""
    a = torch.ones(size, size)
    return 2 * size**3 / fastest(lambda: torch.mm(a, a))


def search_speed() -> float:
    """Candidates times weights a second of a search for grids."""
    groups, search = torch.linspace(-1, 1, CACHE_VALUES).view(-1, 64), Search(candidates=4)
    seconds = fastest(lambda: choose_grid(groups, 4, "symmetric", search))
    return CACHE_VALUES * candidates(search) / seconds


def check_resources(plan: Plan, options: QuantizeOptions, out: Path, *, finished_bytes: int = 0) -> None:
    """Say what is missing before the first layer; `finished_bytes` lie there already. Raises E-IO (disk) or E-MEM."""
    wanted, free = plan.weight_bytes + SMALL_FILES_BYTES - finished_bytes, free_bytes(out.parent)
    if free < wanted:
        message = f"{out.parent} has {free >> 20} MiB free, the output needs {wanted >> 20} MiB"
        raise ResourceError("E-IO", message, "free some space, or choose another folder with -o")
    needed, available = estimate_ram(plan, options), available_bytes()
    if available is not None and available < needed:
        message = f"about {needed >> 20} MiB of memory are needed, {available >> 20} MiB are available"
        hint = "close other programs, or calibrate on fewer tokens with --calib-tokens"
        raise ResourceError("E-MEM", message, hint)


def finished_bytes(out: Path) -> int:
    """What an unfinished run has left, if there is one."""
    work = out.with_name(out.name + ".partial")
    return sum(p.stat().st_size for p in work.iterdir() if p.is_file()) if work.is_dir() else 0
