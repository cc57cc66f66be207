"""The samplers by name. One more is one file beside these, its test, and one line in the table."""

from typing import Any

from dlm_edge.runtime.samplers import (
    adablock,
    bacd,
    credit,
    eb,
    edit,
    entropy,
    factor,
    fast_dllm_v2,
    freedave,
    guided,
    hierarchical,
    learn2pd,
    localleap,
    maskgit_plus,
    origin,
    product,
    prophet,
    rcd,
    sdar_dynamic,
    static,
    tccf,
    threshold,
    topk_margin,
    wino,
)
from dlm_edge.runtime.samplers.contract import Commits, Needs, Sampler, SamplerOptions, SelectState

_ALL: tuple[Sampler[Any], ...] = (
    static.SAMPLER,
    threshold.SAMPLER,
    factor.SAMPLER,
    product.SAMPLER,
    eb.SAMPLER,
    sdar_dynamic.SAMPLER,
    fast_dllm_v2.SAMPLER,
    origin.SAMPLER,
    maskgit_plus.SAMPLER,
    topk_margin.SAMPLER,
    entropy.SAMPLER,
    freedave.SAMPLER,
    edit.SAMPLER,
    wino.SAMPLER,
    guided.SAMPLER,
    rcd.SAMPLER,
    localleap.SAMPLER,
    bacd.SAMPLER,
    tccf.SAMPLER,
    hierarchical.SAMPLER,
    credit.SAMPLER,
    prophet.SAMPLER,
    adablock.SAMPLER,
    learn2pd.SAMPLER,
)
SAMPLERS: dict[str, Sampler[Any]] = {sampler.name: sampler for sampler in _ALL}

__all__ = ["SAMPLERS", "Commits", "Needs", "Sampler", "SamplerOptions", "SelectState"]
