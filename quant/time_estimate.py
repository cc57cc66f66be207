"""How long a job takes, estimated from what it has to compute and from two speeds of this machine.

The few constants were fitted to the jobs in benchmarks/results/big_checkpoint.json.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import torch

from dlm_edge.quant.gptq import CACHE_VALUES
from dlm_edge.quant.grid import Search, choose_grid
from dlm_edge.quant.invariance import LENGTH, LOGIT_EVERY, MASK_RATIOS
from dlm_edge.quant.plan import Plan, QuantizeOptions
from dlm_edge.quant.workload import Workload, widest

CHECK_TOKENS = len(MASK_RATIOS) * LENGTH  # that a rotation is checked on, in two models
START_SECONDS = 4.0
READ_SPEED = 1e9  # bytes a second, hashing included
DOUBLE = 2.0  # a float64 operation in float32 ones
# Work on single weights, in candidates of a search: rounding column by column, and three sweeps over all groups.
ROUNDING, SWEEPING = 30, 216
TURNING = 14  # the same of rotating a weight, whatever its width


def estimate_seconds(plan: Plan, options: QuantizeOptions) -> float:
    """From the speed of a matrix product and of a grid search, both measured here."""
    work, product, search = Workload.of(plan, options), product_speed(), search_speed()
    seconds = START_SECONDS + 2 * sum(plan.checkpoint.stored_bytes(r) for r in plan.checkpoint.roles()) / READ_SPEED
    seconds += work.n_outer * work.outer * candidates(Search()) / search
    weights = sum(rows * columns for rows, columns in work.linears)
    seconds += weights * candidates(Search()) / search  # rounded to nearest: the result, or what it is compared with
    if work.rotated:
        seconds += turned_values(work, weights) * TURNING / search
        seconds += 4.0 * (weights * CHECK_TOKENS + work.outer * CHECK_TOKENS / LOGIT_EVERY) / product
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


def turned_values(work: Workload, weights: int) -> int:
    """Every layer, once more beside the states; embedding and head, the head once more for the check and the states."""
    beside = 1 if work.tokens else 0
    return weights * (1 + beside) + work.outer * (3 + beside)


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
