"""What a job needs of disk and memory, refused early where it is not there."""

from __future__ import annotations

from pathlib import Path

from dlm_edge.errors import ResourceError
from dlm_edge.files import free_bytes
from dlm_edge.memory import available_bytes
from dlm_edge.quant.memory_estimate import estimate_ram
from dlm_edge.quant.plan import Plan, QuantizeOptions

SMALL_FILES_BYTES = 32 << 20  # tokenizer, index, card and the like


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
