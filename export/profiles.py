"""How the linear layers of a CPU bundle compute: one line for each profile of `dlm-edge export --profile`.

    profile         weights        activations            product
    fp32            unpacked       float32                MatMul
    w4, w8          packed         float32                MatMulNBits, accuracy level 0
    w4a8-blocks     packed         int8 in blocks         MatMulNBits, accuracy level 4; `down` below 8 bits: level 0
    w4a8            packed         int8 in blocks         QLinear
    w8a8            8 bits         int8 for each row      MatMulInteger where a weight has one scale per output; other
                                                          weights as in w4a8-blocks
    w8a8-qlinear    8 bits         int8 in blocks         QLinear

Blocks are the groups of the weight: a row has a scale for each. Where a weight has one scale for each output, and where
quantizing has rounded whole rows, a row has one.

`auto` is the fastest of those that fit the weights and keep them packed, see measured_profile.py. QLinear is slow without
our native library, all others run at full speed without it. Whatever the profile: weights that quantizing marked as `exact`
keep float activations.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from dlm_edge.checkpoint import Checkpoint
from dlm_edge.errors import UsageProblem
from dlm_edge.nearest import nearest

Kernel = Literal["float", "n_bits", "blocks", "integer", "qlinear"]
Widths = Literal["none", "codebook", "low", "eight"]  # of a checkpoint's packed layers; low: any of 4 bits or fewer
INT8_KERNELS: tuple[Kernel, ...] = ("blocks", "integer", "qlinear")
AUTO = "auto"


@dataclass(frozen=True, slots=True)
class Precision:
    """`body` is the dtype of activations and of weights that are not packed; `kernel` runs those that are."""

    body: np.dtype[Any]
    kernel: Kernel

    @property
    def int8_activations(self) -> bool:
        """Whether activations are rounded, where that is harmless."""
        return self.kernel in INT8_KERNELS


@dataclass(frozen=True, slots=True)
class Profile:
    name: str
    kernel: Kernel
    fits: tuple[Widths, ...]

    @property
    def needs_library(self) -> bool:
        return self.kernel == "qlinear"


PROFILES = {
    profile.name: profile
    for profile in (
        Profile("fp32", "float", ("none", "codebook", "low", "eight")),
        Profile("w4", "n_bits", ("codebook", "low")),
        Profile("w4a8", "qlinear", ("low",)),
        Profile("w4a8-blocks", "blocks", ("low",)),
        Profile("w8", "n_bits", ("eight",)),
        Profile("w8a8", "integer", ("eight",)),
        Profile("w8a8-qlinear", "qlinear", ("eight",)),
    )
}
DESCRIBED = {
    "none": "weights that are not quantized",
    "codebook": "nf4 or fp4 weights",
    "low": "weights of 4 bits or fewer",
    "eight": "weights of 8 bits",
}
NAMES = (AUTO, *PROFILES)


def widths_of(checkpoint: Checkpoint) -> Widths:
    """By the records of the layers' weights. Embedding and head follow, and count only where no layer is packed."""
    records = {role: checkpoint.layer_record(role) for role in checkpoint.roles()}
    found = {role: (record.format, record.bits) for role, record in records.items() if record is not None}
    formats = [of for role, of in found.items() if role.startswith("layers.")] or [*found.values()]
    if not formats:
        return "none"
    bits = [bits for kind, bits in formats if kind == "int"]
    return "codebook" if not bits else "low" if min(bits) <= 4 else "eight"


def check_profile(name: str, target: str, checkpoint: Checkpoint) -> None:
    """E-USAGE for a name that is not known, E-PARAM where it fits neither the target nor the checkpoint's weights."""
    if name not in NAMES:
        raise UsageProblem("E-USAGE", f"profile {name!r} is not known", nearest(name, NAMES))
    if name == AUTO:
        return
    if target != "cpu":
        message = f"profile {name} is of bundles for the CPU"
        raise UsageProblem("E-PARAM", message, f"leave --profile out for --target {target}")
    widths = widths_of(checkpoint)
    if widths in PROFILES[name].fits:
        return
    fitting = ", ".join(fit.name for fit in that_fit(widths))
    hint = f"choose {fitting} or auto"
    if widths == "none":
        recipe = "w8a8" if name.startswith("w8") else "w4"
        hint += f", or quantize it first: dlm-edge quantize {checkpoint.name} -o OUT --recipe {recipe}"
    raise UsageProblem("E-PARAM", f"profile {name} does not fit {checkpoint.name}: it has {DESCRIBED[widths]}", hint)


def that_fit(widths: Widths) -> Iterable[Profile]:
    return [profile for profile in PROFILES.values() if widths in profile.fits]


def candidates(checkpoint: Checkpoint, has_library: bool) -> list[Profile]:
    """Of `auto`: packed weights stay packed, and nothing runs on the function body of our operator."""
    fitting = [profile for profile in that_fit(widths_of(checkpoint)) if has_library or not profile.needs_library]
    packed = [profile for profile in fitting if profile.kernel != "float"]
    return packed or fitting
