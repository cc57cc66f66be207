"""How much memory a job takes at its peak, estimated before anything is read.

The estimate follows the code phase by phase. Its few constants were fitted to the jobs in
benchmarks/results/big_checkpoint.json.
"""

from __future__ import annotations

from dlm_edge.quant.outer import CHUNK_ROWS
from dlm_edge.quant.plan import Plan, QuantizeOptions
from dlm_edge.quant.state_batch import BATCH_TOKENS
from dlm_edge.quant.statistics import BLOCK
from dlm_edge.quant.workload import Workload, widest

PROCESS_BYTES = 300 << 20  # Python, torch and their libraries, and what the allocator keeps of small tensors
KEPT_BLOCK_BYTES = 32 << 20  # freed blocks up to this size stay with the process (glibc's largest mmap threshold)


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
