"""What to do about the outliers of one linear layer, from the profile of its input; a pure function with stated thresholds."""

from __future__ import annotations

from typing import Literal

from dlm_edge.families.spec import ModelSpec
from dlm_edge.quant.folding import refusal
from dlm_edge.quant.outliers import InputProfile

Treatment = Literal["smooth", "split", "rotate", "more bits"]

# Peak of the strongest channel over that of the median one, against the squared error of int8 products with activations
# rounded per token; both reference models, as they are and with injected outliers of scale 3 and 10 (30 for o):
#   smoothing leaves 91-100 % of the error below a ratio of 1.9, 51-89 % from 2 to 2.8, 23-65 % from 3 to 4.6
#   rotating heads leaves 87-103 % of o's error below 3, 40-66 % from 3 to 6
#   splitting starts at 6 (int8_outlier.py) and leaves 0-3 % of o's error from 20; in front of q, k, v, gate and up
#   smoothing is better at every ratio measured (7-16 % against 9-42 % from 10 on), in front of down neither always is.
SMOOTH_FROM = 2.0
ROTATE_FROM = 3.0
SPLIT_FROM = 6.0
FEW_BITS = 3  # weights of at most so many bits want one step more where inputs are massive


def choose_treatments(
    profile: InputProfile, spec: ModelSpec, *, bits: int, activations: Literal["float", "int8"]
) -> list[Treatment]:
    """For the linears that read the profiled input, in the order in which they are applied.

    Activations in floating point do not mind outliers; only weights of few bits do, where massive inputs multiply
    their errors. For int8 activations an input is smoothed where its producer takes the scale. What then still stands
    out (in front of `down`), or has no such producer (`o` of shared v heads), is split off, or rotated while it is small.
    """
    ratio = profile.peak_ratio
    if activations == "float":
        massive = profile.massive_count > 0 or profile.super_outlier is not None
        return ["more bits"] if massive and bits <= FEW_BITS and profile.linears == ["down"] else []
    if refusal(tuple(profile.linears), spec) is not None:
        if ratio >= SPLIT_FROM:
            return ["split"]
        return ["rotate"] if ratio >= ROTATE_FROM else []
    if ratio < SMOOTH_FROM:
        return []
    return ["smooth", "split"] if profile.linears == ["down"] and ratio >= SPLIT_FROM else ["smooth"]
