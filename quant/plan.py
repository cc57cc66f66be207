"""What a job will quantize, how large the result is, and whether the machine can hold it; nothing is read or written."""

from __future__ import annotations

import difflib
import fnmatch
import math
from dataclasses import dataclass
from pathlib import Path

from dlm_edge.checkpoint import Checkpoint
from dlm_edge.errors import ResourceError, UsageProblem
from dlm_edge.journal import free_bytes
from dlm_edge.memory import available_bytes
from dlm_edge.quant.grid import check_fits, check_grid
from dlm_edge.quant.layer_pass import LINEARS
from dlm_edge.quant.methods import find_method
from dlm_edge.quant.states import StateConfig
from dlm_edge.quantized import container_bits

MIN_STATE_TOKENS = 32768
OUTER_BITS = 8
SMALL_FILES_BYTES = 32 << 20  # tokenizer, index, card and the like


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizeOptions:
    method: str = "gptq"
    bits: int = 4
    group_size: int = 64
    calibration: str = "forward"
    calib_data: Path | None = None
    seed: int = 0
    skip: tuple[str, ...] = ()
    strict: bool = False
    allow_nonfinite: bool = False

    def __post_init__(self) -> None:
        check_grid(self.bits, self.group_size)
        StateConfig(mode=self.calibration)
        if not find_method(self.method).needs_states and self.calib_data is not None:
            message = f"the method {self.method} uses no calibration data"
            raise UsageProblem("E-USAGE", message, "leave --calib-data out, or choose --method gptq")


@dataclass(frozen=True, slots=True)
class Plan:
    """`roles` to be quantized, in layer order; `skipped` are tensor names that the user excluded.

    `outer` are the embedding and the head, as far as they are packed too: always in 8 bits, rounded to nearest.
    """

    roles: tuple[str, ...]
    outer: tuple[str, ...]
    skipped: tuple[str, ...]
    packed_bytes: int  # codes and float16 scales
    weight_bytes: int  # everything, the untouched tensors included
    n_weights: int  # in the quantized layers
    state_tokens: int  # content tokens of the calibration rows to aim for; 0 without states
    ram_bytes: int

    @property
    def bits_per_weight(self) -> float:
        return 8 * self.packed_bytes / self.n_weights

    def linears_of(self, layer: int) -> list[str]:
        prefix = f"layers.{layer}."
        return [r.removeprefix(prefix).removesuffix(".weight") for r in self.roles if r.startswith(prefix)]


def make_plan(checkpoint: Checkpoint, options: QuantizeOptions) -> Plan:
    """Raises E-QUANT for a layer that does not fit, a pattern that matches nothing, or a packed source."""
    if checkpoint.record is not None:
        message = f"{checkpoint.name} is quantized already ({checkpoint.record.method}, {checkpoint.record.bits} bits)"
        raise UsageProblem("E-QUANT", message, "start from the original checkpoint")
    linears = [f"layers.{i}.{linear}.weight" for i in range(checkpoint.spec.n_layers) for linear in LINEARS]
    outer = [r for r in ("embed.weight", "head.weight") if r in checkpoint.roles()]
    skipped = match_patterns([checkpoint.tensor_name(role) for role in linears + outer], options.skip)
    roles = tuple(role for role in linears if checkpoint.tensor_name(role) not in skipped)
    if not roles:
        raise UsageProblem("E-QUANT", "--skip excludes every layer", "nothing would be quantized")
    for role in roles:
        check_fits(checkpoint.tensor_name(role), checkpoint.shape(role)[1], options.group_size)
    n_weights = sum(math.prod(checkpoint.shape(role)) for role in roles)
    packed = n_weights * container_bits(options.bits) // 8 + n_weights // options.group_size * 2
    outer = [r for r in outer if checkpoint.tensor_name(r) not in skipped and fits(checkpoint, r, options.group_size)]
    n_outer = sum(math.prod(checkpoint.shape(role)) for role in outer)
    others = sum(checkpoint.stored_bytes(role) for role in checkpoint.roles() if role not in {*roles, *outer})
    others += n_outer * OUTER_BITS // 8 + n_outer // options.group_size * 2
    tokens = 0
    if find_method(options.method).needs_states:
        tokens = max(MIN_STATE_TOKENS, 2 * max(checkpoint.shape(role)[1] for role in roles))
    ram = estimate_ram(checkpoint, roles, tokens)
    return Plan(roles, tuple(outer), tuple(sorted(skipped)), packed, packed + others, n_weights, tokens, ram)


def fits(checkpoint: Checkpoint, role: str, group_size: int) -> bool:
    return checkpoint.shape(role)[1] % group_size == 0


def match_patterns(names: list[str], patterns: tuple[str, ...]) -> set[str]:
    matched: set[str] = set()
    for pattern in patterns:
        hits = fnmatch.filter(names, pattern)
        if not hits:
            near = difflib.get_close_matches(pattern, names, n=1, cutoff=0.3)
            hint = f"the closest layer is {near[0]}" if near else f"layers are named like {names[0]}"
            raise UsageProblem("E-QUANT", f"--skip {pattern!r} matches no layer that would be quantized", hint)
        matched.update(hits)
    return matched


def estimate_ram(checkpoint: Checkpoint, roles: tuple[str, ...], tokens: int) -> int:
    """Bytes at the peak: one layer twice in float32, the embedding or the activations, and a Hessian with its factors."""
    spec = checkpoint.spec
    layer = 4 * sum(math.prod(checkpoint.shape(r)) for r in checkpoint.roles() if r.startswith("layers.0."))
    largest = max(math.prod(checkpoint.shape(r)) for r in roles)
    width = max(checkpoint.shape(r)[1] for r in roles)
    torch_itself = 300 << 20
    if not tokens:
        return torch_itself + layer + 6 * 4 * largest
    stream = tokens * (1 if spec.conventions.attention == "full" else 2)
    activations = 4 * stream * (spec.hidden_size + max(width, spec.intermediate_size))
    embedding = 4 * math.prod(checkpoint.shape("embed.weight"))
    return torch_itself + max(embedding + activations // 2, 2 * layer + activations + 5 * 8 * width * width)


def check_resources(plan: Plan, out: Path) -> None:
    """Say what is missing before the first layer. Raises E-IO (disk) or E-MEM."""
    wanted, free = plan.weight_bytes + SMALL_FILES_BYTES, free_bytes(out.parent)
    if free < wanted:
        message = f"{out.parent} has {free >> 20} MiB free, the output needs {wanted >> 20} MiB"
        raise ResourceError("E-IO", message, "free some space, or choose another folder with -o")
    available = available_bytes()
    if available is not None and available < plan.ram_bytes:
        message = f"about {plan.ram_bytes >> 20} MiB of memory are needed, {available >> 20} MiB are available"
        raise ResourceError("E-MEM", message, "close other programs, or quantize on a larger machine")
