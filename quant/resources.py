"""What a job needs: memory, disk and time, estimated before anything is read, and refused early where it is not there."""

from __future__ import annotations

import math
import time
from pathlib import Path

import torch

from dlm_edge.errors import ResourceError
from dlm_edge.journal import free_bytes
from dlm_edge.memory import available_bytes
from dlm_edge.quant.methods import find_method
from dlm_edge.quant.plan import Plan, QuantizeOptions

SMALL_FILES_BYTES = 32 << 20  # tokenizer, index, card and the like
INTERPRETER_BYTES = 300 << 20  # Python, torch and their libraries


def estimate_ram(plan: Plan, options: QuantizeOptions) -> int:
    """Bytes at the peak: the layer and its copies in float32, the streams of hidden states, one input of the widest
    linear, its second moment with the factor, and what rounding the largest weight takes."""
    source, spec = plan.checkpoint, plan.spec
    layer = 4 * sum(math.prod(source.shape(r)) for r in source.roles() if r.startswith("layers.0."))
    largest = max(math.prod(source.shape(r)) for r in plan.roles)
    if not plan.state_tokens:
        return INTERPRETER_BYTES + layer + 6 * 4 * largest
    method, tuned = find_method(options.recipe.method), options.recipe.tuning is not None
    width = max(source.shape(r)[1] for r in plan.roles)
    tokens = plan.state_tokens * (1 if spec.conventions.attention == "full" else 2)
    streams = 2 if method.needs_full or tuned else 1
    hidden = 4 * tokens * spec.hidden_size * (2 * streams)  # before and after a layer
    inputs = 4 * tokens * width * (2 if method.needs_full else 1)
    copies = layer * (2 if method.needs_full or tuned else 1)
    moments = width * width * (8 + 8 + 4 + (4 if method.needs_full else 0))
    rounding = 4 * largest * 5
    return INTERPRETER_BYTES + copies + hidden + inputs + moments + rounding


def estimate_seconds(plan: Plan, options: QuantizeOptions) -> float:
    """From the speed of a matrix product measured here: passes of the states through every layer, second moments,
    their factors, and the rounding itself."""
    source, spec = plan.checkpoint, plan.spec
    weights = [source.shape(r) for r in plan.roles]
    if not plan.state_tokens:
        return sum(math.prod(shape) for shape in weights) / 4e6
    method, tuned = find_method(options.recipe.method), options.recipe.tuning is not None
    tokens = plan.state_tokens * (1 if spec.conventions.attention == "full" else 2)
    passes = (3 if method.needs_full or tuned else 1) + (3 if method.prepare else 0)
    operations = 2.0 * tokens * passes * sum(math.prod(shape) for shape in weights)
    operations += sum(2.0 * tokens * columns * columns for _, columns in weights) * 0.6
    single = sum(4.0 * columns**3 / 3 + 2.0 * rows * columns**2 for rows, columns in weights)
    return (operations + 2 * single) / product_speed() + 2e-8 * sum(math.prod(shape) for shape in weights)


def product_speed(size: int = 1024) -> float:
    """Float32 operations a second of a square matrix product, the best of a few."""
    a, best = torch.ones(size, size), math.inf
    for _ in range(4):
        started = time.perf_counter()
        torch.mm(a, a)
        best = min(best, time.perf_counter() - started)
    return 2 * size**3 / best


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
