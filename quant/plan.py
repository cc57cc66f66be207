"""What a job will quantize, and how large the result is; nothing is read or written."""

from __future__ import annotations

import difflib
import fnmatch
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import msgspec

from dlm_edge.checkpoint import Checkpoint
from dlm_edge.errors import UsageProblem
from dlm_edge.families.spec import ModelSpec
from dlm_edge.packed_storage import zero_bytes
from dlm_edge.quant.grid import GROUP_SIZES, check_fits
from dlm_edge.quant.layer_pass import LINEARS
from dlm_edge.quant.methods import find_method
from dlm_edge.quant.recipes import Recipe
from dlm_edge.quant.state_batch import MODES, USED_IN

MIN_STATE_TOKENS = 32768
OUTER_BITS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizeOptions:
    """`calib_tokens` None: as many as the widest layer needs."""

    recipe: Recipe = Recipe()
    recipe_name: str | None = None
    calib_data: Path | None = None
    calib_tokens: int | None = None
    seed: int = 0
    skip: tuple[str, ...] = ()
    strict: bool = False
    allow_nonfinite: bool = False
    imatrix: bool = False

    def __post_init__(self) -> None:
        given = {"calib_data": self.calib_data, "calib_tokens": self.calib_tokens, "imatrix": self.imatrix or None}
        self.refuse_unused(key for key, value in given.items() if value is not None)

    def refuse_unused(self, given: Iterable[str]) -> None:
        """Raise E-USAGE when one of these settings, which somebody asked for, would decide nothing."""
        names = {key: f"--{key.replace('_', '-')}" for key in given if key != "seed" or not self.uses_seed}
        if names and not self.needs_states:
            listed = " and ".join(names.values())
            message = f"the method {self.recipe.method} uses no calibration data: {listed} would change nothing"
            raise UsageProblem("E-USAGE", message, f"leave {listed} out, or choose --method gptq")
        for key, name in names.items():
            modes = USED_IN.get(key, MODES)
            if self.calibration not in modes:
                message = f"{name} would change nothing with --calibration {self.calibration}"
                raise UsageProblem(
                    "E-USAGE", message, f"leave it out; it belongs to --calibration {' or '.join(modes)}"
                )

    @property
    def calibration(self) -> str:
        return self.recipe.calibration

    @property
    def needs_states(self) -> bool:
        return find_method(self.recipe.method).needs_states or self.recipe.tuning is not None

    @property
    def uses_seed(self) -> bool:
        """Whether anything is drawn: calibration data and their states, or the signs of a rotation."""
        return self.needs_states or self.recipe.rotate


@dataclass(frozen=True, slots=True)
class Plan:
    """`roles` to be quantized, in layer order; `skipped` are tensor names that the user excluded.

    `outer` are the embedding and the head, as far as they are packed too: always in 8 bits, rounded to nearest.
    `spec` is that of the result: a rotated model has a head of its own.
    """

    checkpoint: Checkpoint
    spec: ModelSpec
    roles: tuple[str, ...]
    outer: tuple[str, ...]
    outer_group: int
    skipped: tuple[str, ...]
    packed_bytes: int  # codes, scales and zeros of the linear layers; without split columns
    weight_bytes: int  # everything, the untouched tensors included
    n_weights: int  # in the quantized layers
    state_tokens: int  # content tokens of the calibration rows to aim for; 0 without states

    @property
    def bits_per_weight(self) -> float:
        return 8 * self.packed_bytes / self.n_weights

    @property
    def outer_roles(self) -> list[str]:
        return ["embed.weight", "final_norm.weight"] + ([] if self.spec.tied_head else ["head.weight"])

    def name_of(self, role: str) -> str:
        return self.checkpoint.tensor_name(role)

    def names(self, layer: int) -> dict[str, str]:
        """Linears of `layer` to be quantized, and their tensor names."""
        prefix = f"layers.{layer}."
        found = [r for r in self.roles if r.startswith(prefix)]
        return {r.removeprefix(prefix).removesuffix(".weight"): self.name_of(r) for r in found}


def make_plan(checkpoint: Checkpoint, options: QuantizeOptions) -> Plan:
    """Raises E-QUANT for a layer that does not fit, a pattern that matches nothing, or a packed source."""
    if checkpoint.record is not None:
        message = (
            f"{checkpoint.name} is quantized already ({checkpoint.record.method}, {checkpoint.record.bits:g} bits)"
        )
        raise UsageProblem("E-QUANT", message, "start from the original checkpoint")
    recipe = options.recipe
    untie = recipe.rotate and checkpoint.spec.tied_head
    spec = msgspec.structs.replace(checkpoint.spec, tied_head=False) if untie else checkpoint.spec
    linears = [f"layers.{i}.{linear}.weight" for i in range(spec.n_layers) for linear in LINEARS]
    outer = ["embed.weight"] + ([] if spec.tied_head else ["head.weight"])
    skipped = match_patterns([checkpoint.tensor_name(role) for role in linears + outer], options.skip)
    roles = tuple(role for role in linears if checkpoint.tensor_name(role) not in skipped)
    if not roles:
        raise UsageProblem("E-QUANT", "--skip excludes every layer", "nothing would be quantized")
    for role in roles:
        check_fits(checkpoint.tensor_name(role), checkpoint.shape(role)[1], recipe.group_size or 8)
    group = outer_group(recipe, spec.hidden_size)
    outer = [role for role in outer if group and checkpoint.tensor_name(role) not in skipped]
    packed = sum(linear_bytes(recipe, *checkpoint.shape(role)) for role in roles)
    n_outer = spec.embedding_rows * spec.hidden_size
    others = sum(checkpoint.stored_bytes(r) for r in checkpoint.roles() if r not in {*roles, *outer})
    others += len(outer) * (n_outer * OUTER_BITS // 8 + (n_outer // group * 2 if group else 0))
    tokens = 0
    if options.needs_states:
        tokens = options.calib_tokens or max(MIN_STATE_TOKENS, 2 * max(checkpoint.shape(role)[1] for role in roles))
    return Plan(
        checkpoint,
        spec,
        roles,
        tuple(outer),
        group,
        tuple(sorted(skipped)),
        packed,
        packed + others,
        sum(math.prod(checkpoint.shape(role)) for role in roles),
        tokens,
    )


def outer_group(recipe: Recipe, width: int) -> int:
    """The group size of embedding and head; 0 when none fits and they stay as they are."""
    wanted = recipe.group_size or 64
    return next((g for g in reversed(GROUP_SIZES) if g <= wanted and width % g == 0), 0)


def linear_bytes(recipe: Recipe, rows: int, columns: int) -> int:
    """Codes, float16 scales and zeros of one linear layer, as they are stored."""
    group = recipe.group_size or columns
    codes = round(rows * columns * recipe.bits / 8)
    groups = columns // group
    scales = 4 if recipe.method in ("nf4", "fp4") else 2
    zeros = {"symmetric": 0, "integer": zero_bytes(groups, math.ceil(recipe.bits)), "float": 2 * groups}[recipe.zero]
    return codes + rows * (groups * scales + zeros)


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
