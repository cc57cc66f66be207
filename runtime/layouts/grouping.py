"""How many values share one scale."""

from __future__ import annotations

import math

from dlm_edge.errors import UsageProblem
from dlm_edge.kernels.dequantize_rows.reference import width_multiple

GROUPS = (16, 32, 64, 128)
SMALLEST_GROUP = 8


def check_group(group: int) -> None:
    """E-PARAM for a size that is not offered."""
    if group not in GROUPS:
        sizes = ", ".join(map(str, GROUPS))
        raise UsageProblem("E-PARAM", f"a cache group of {group} was asked for", f"choose one of {sizes}")


def channel_group(group: int, width: int, bits: int) -> int:
    """The group along a row of `width` values: the largest common divisor of the group asked for and the width.

    E-PARAM where a row of this width has no groups worth having, or does not fill whole bytes.
    """
    common = math.gcd(group, width)
    if common < SMALLEST_GROUP or width % width_multiple(bits):
        message = f"rows of {width} values cannot be stored with {bits} bits in groups of {group}"
        raise UsageProblem("E-PARAM", message, "choose another cache layout, such as kv-fp16")
    return common
