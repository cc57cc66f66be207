"""Which input channels of the linear layers are outliers, on the states that a diffusion model visits.

Sizes are in units of the input's typical magnitude: the median over channels of the root mean square over tokens. The
peak of a channel is its largest |x| on any calibration token.

    normal    present on most tokens and moderate: mean |x| at least 4 times the median channel's, no massive peak
              (inputs of q, k, v and gate, up: "normal outliers" of QDLM, arXiv 2508.14896, section 4.1)
    massive   a peak of at least 50; in diffusion models on many tokens, unlike the one or two of autoregressive
              models (arXiv 2402.17762), and mostly in front of the second feed-forward linear (QDLM)
    super     the one channel whose peak is at least 3 times every other's and that is large (above 6, the number of
              LLM.int8, arXiv 2208.07339) on at least half of the tokens; LLaDA-8B has one (arXiv 2605.06366)

The numbers 4, 50 and 3 are this project's, set between what its reference models have and what is injected into them.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
import torch
from torch import Tensor

from dlm_edge.checkpoint import Checkpoint
from dlm_edge.quant.calibration import load_calibration
from dlm_edge.quant.layer_pass import run_stages
from dlm_edge.quant.plan import QuantizeOptions
from dlm_edge.quant.smoothquant import Int8Config, int8_treatments
from dlm_edge.quant.source_weights import SourceWeights
from dlm_edge.quant.states import Batch

LARGE = 6.0
NORMAL_MEAN = 4.0
MASSIVE_PEAK = 50.0
SUPER_LEAD = 3.0
SUPER_SHARE = 0.5
LISTED = 16  # channels of a kind that are named, the strongest first; all are counted
DEFAULT_TOKENS = 8192


class Channel(msgspec.Struct, frozen=True, kw_only=True):
    """`peak` and `mean` are in units of the input's typical magnitude, `share` is that of tokens above 6."""

    channel: int
    peak: float
    mean: float
    share: float


class InputProfile(msgspec.Struct, frozen=True, kw_only=True):
    """The input that `linears` of `layer` read. `peak_ratio`: the largest peak over that of the median channel.

    `treatments`: what the recipe w8a8 does about it, by its own measure (treatments.py). `share_above`: of all values of weighted tokens, those above 6 times the typical magnitude.
    """

    layer: int
    linears: list[str]
    channels: int
    tokens: int
    typical: float  # in the units of the activations
    peak_ratio: float
    share_above: float
    normal_count: int
    massive_count: int
    normal: list[Channel]
    massive: list[Channel]
    super_outlier: Channel | None
    treatments: list[str] = []


def profile_outliers(
    checkpoint: Checkpoint,
    *,
    n_tokens: int = DEFAULT_TOKENS,
    calib_data: Path | None = None,
    seed: int = 0,
    progress: Callable[[str], None] = lambda _: None,
) -> list[InputProfile]:
    """Profiles of four inputs per layer, in forward order; one layer is in memory at a time.

    Raises E-TOK, E-CALIB and E-NAN.
    """
    options = QuantizeOptions(calib_data=calib_data, seed=seed)
    calibrated = load_calibration(checkpoint, options, n_tokens)
    progress(f"states    {calibrated.summary()}")
    weights, spec, profiles = SourceWeights(checkpoint, zero_nonfinite=False), checkpoint.spec, list[InputProfile]()
    with torch.inference_mode():
        hidden = [weights.embedded(batch.ids) for batch in calibrated.batches]
        for number in range(spec.n_layers):
            layer, before = weights.layer(number), list(hidden)
            found = [
                profile_input(number, linears, calibrated.batches, inputs.hold())
                for linears, inputs in run_stages(layer, spec, calibrated.batches, hidden)
            ]
            treatments = int8_treatments(layer, spec, calibrated.batches, before, Int8Config())
            profiles += [msgspec.structs.replace(p, treatments=treatments[p.linears[0]]) for p in found]
            progress(f"layer     {number + 1} of {spec.n_layers}")
    return profiles


def profile_input(layer: int, linears: tuple[str, ...], batches: list[Batch], inputs: list[Tensor]) -> InputProfile:
    """inputs [rows, seq, in] for each batch; tokens of weight 0 do not count, all others count alike."""
    width = inputs[0].shape[-1]
    squares, absolute, peak = torch.zeros(width, dtype=torch.float64), torch.zeros(width).double(), torch.zeros(width)
    tokens = 0
    for x in _counted(batches, inputs):
        squares += x.square().sum(0).double()
        absolute += x.abs().sum(0).double()
        peak = torch.maximum(peak, x.abs().amax(0))
        tokens += len(x)
    typical = max(float((squares / tokens).sqrt().median()), 1e-12)
    above = sum((x.abs() > LARGE * typical).sum(0) for x in _counted(batches, inputs))
    share = torch.as_tensor(above, dtype=torch.float64) / tokens
    return describe(layer, list(linears), tokens, typical, peak.double() / typical, absolute / tokens / typical, share)


def describe(
    layer: int, linears: list[str], tokens: int, typical: float, peak: Tensor, mean: Tensor, share: Tensor
) -> InputProfile:
    """Sort channels into kinds; peak, mean and share [channels] as in `Channel`."""
    order = peak.argsort(descending=True, stable=True)
    leads = len(peak) > 1 and bool(peak[order[0]] >= SUPER_LEAD * peak[order[1]])
    is_super = torch.zeros(len(peak), dtype=torch.bool)
    is_super[order[0]] = leads and bool(share[order[0]] >= SUPER_SHARE)
    is_massive = (peak >= MASSIVE_PEAK) & ~is_super
    is_normal = (mean >= NORMAL_MEAN * mean.median()) & ~is_massive & ~is_super & (mean > 0)

    def channels(chosen: Tensor) -> list[Channel]:
        return [
            Channel(channel=i, peak=_short(peak[i]), mean=_short(mean[i]), share=_short(share[i]))
            for i in order[chosen[order]][:LISTED].tolist()
        ]

    found = channels(is_super)
    return InputProfile(
        layer=layer,
        linears=linears,
        channels=len(peak),
        tokens=tokens,
        typical=_short(typical),
        peak_ratio=_short(peak.max() / peak.median().clamp_min(1e-12)),
        share_above=_short(share.mean()),
        normal_count=int(is_normal.sum()),
        massive_count=int(is_massive.sum()),
        normal=channels(is_normal),
        massive=channels(is_massive),
        super_outlier=found[0] if found else None,
    )


def _counted(batches: list[Batch], inputs: list[Tensor]) -> list[Tensor]:
    found = (x[batch.weights > 0] for batch, x in zip(batches, inputs, strict=True))
    return [x for x in found if len(x)]


def _short(value: Tensor | float) -> float:
    """Four significant digits."""
    return float(f"{float(value):.4g}")
