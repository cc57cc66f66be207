"""What each sampler promises beyond what all of them do, and what it takes to run one. test_properties.py holds them to it.

A sampler without a line here is tested with its default options, for what all of them promise.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tests.runtime.samplers.given import threshold_filter
from tests.runtime.toy import VOCAB

Options = Mapping[str, Any]
HIGH = 1.5  # a threshold that no probability reaches


@dataclass(frozen=True, slots=True, kw_only=True)
class Claims:
    options: tuple[Options, ...] = ({},)  # what it is tested with: the default, and what commits more at once
    as_static: tuple[Options, ...] = ()  # options with which it is static, one token per step
    is_lossless: bool = False  # the text of static whatever the options, in as many forward passes or fewer
    looser: tuple[Options, ...] = ()  # each commits from equal scores at least what the one before it does
    refused: tuple[str, ...] = ()  # families that it has no meaning for
    is_random: bool = False  # commits other slots for other seeds
    settings: Mapping[str, Any] = field(default_factory=dict)  # of DecodeSettings, where `options` do not have them


def rising(name: str, *values: float, **others: Any) -> tuple[Options, ...]:
    return tuple({name: value} | others for value in values)


THRESHOLDS = (HIGH, 1.0, 0.9, 0.7, 0.4, 0.0)
BLOCK_CAUSAL = ("block", "block-shift")
FAMILY_BLOCK = {"sub_block": 1 << 16}
RANKED = Claims(options=({}, {"steps": 12}, {"steps": 12, "alg_temp": 0.3}))

CLAIMS = {
    "static": Claims(options=({}, {"steps": 12}), as_static=({},)),
    "threshold": Claims(
        options=({}, {"threshold": 0.4}), as_static=({"threshold": HIGH},), looser=rising("threshold", *THRESHOLDS)
    ),
    "factor": Claims(
        options=({}, {"factor": 4.0}), as_static=({"factor": 0.0},), looser=rising("factor", 0.0, 0.5, 1.0, 2.0, 50.0)
    ),
    "product": Claims(
        options=({}, {"threshold": 0.2}), as_static=({"threshold": HIGH},), looser=rising("threshold", *THRESHOLDS)
    ),
    "eb": Claims(
        options=({}, {"gamma": 2.0}, {"gamma": 1.0, "rule": "each"}),
        looser=rising("gamma", 0.0, 0.01, 0.1, 1.0, 50.0),
    ),
    "sdar-dynamic": Claims(
        options=({}, {"threshold": 0.4}, {"steps": 12}),
        as_static=({"threshold": 1.0},),
        looser=rising("threshold", *THRESHOLDS),
    ),
    "fast-dllm-v2": Claims(
        options=({}, {"threshold": 0.4, "sub_block": 3}, {"threshold": 0.6}),
        as_static=(FAMILY_BLOCK, FAMILY_BLOCK | {"threshold": HIGH}),
        looser=rising("threshold", *THRESHOLDS),
    ),
    "origin": Claims(options=({}, {"steps": 12}), is_random=True),
    "maskgit_plus": Claims(options=RANKED.options, as_static=({},)),
    "topk_margin": RANKED,
    "entropy": RANKED,
    "freedave": Claims(options=({}, {"drafts": 2}, {"steps": 12}), as_static=({"drafts": 1},), is_lossless=True),
    "adablock": Claims(
        options=({}, {"threshold": 0.4, "window": 0.5}),
        as_static=({"threshold": HIGH, "delimiter_threshold": HIGH},),
        refused=BLOCK_CAUSAL,
        settings={"tokens": {"delimiters": tuple(range(0, VOCAB, 5))}},
    ),
    "prophet": Claims(
        options=({}, {"gap_early": 3.0, "gap_middle": 2.0, "gap_late": 1.0}, {"region_start": 2, "region_length": 3}),
        as_static=({"gap_early": 1e6, "gap_middle": 1e6, "gap_late": 1e6},),
    ),
    "localleap": Claims(
        options=({}, {"threshold": 0.6, "relaxed": 0.3}),
        as_static=({"threshold": HIGH}, {"threshold": HIGH, "relaxed": HIGH, "radius": 0}),
        looser=rising("threshold", *THRESHOLDS, relaxed=0.5),
    ),
    "bacd": Claims(options=({}, {"lower": 0.3, "upper": 0.6}), as_static=({"lower": HIGH, "upper": HIGH},)),
    "tccf": Claims(
        options=({}, {"lower": 0.3, "upper": 0.6}),
        as_static=({"lower": HIGH, "upper": HIGH, "tokens": {"think_start": (VOCAB,), "think_end": (VOCAB,)}},),
        settings={"tokens": {"think_start": (31, 32), "think_end": (7,)}},  # in prompts of two tokens and more
    ),
    "hierarchical": Claims(
        options=({}, {"threshold": 0.6, "low": 0.2}),
        as_static=({"threshold": HIGH, "low": HIGH},),
        looser=rising("threshold", *THRESHOLDS, low=0.3),
    ),
    "credit": Claims(
        options=({}, {"threshold": 0.5, "strength": 1.0}),
        as_static=({"threshold": HIGH, "strength": 0.0},),
    ),
    "edit": Claims(
        options=({}, {"threshold": 0.4, "edit_threshold": 0.1, "max_post_steps": 3}),
        as_static=({"threshold": HIGH, "edit_threshold": HIGH},),
        looser=rising("threshold", *THRESHOLDS),
    ),
    "wino": Claims(
        options=({}, {"threshold": 0.3, "threshold_back": 0.5}),
        as_static=({"threshold": HIGH}, {"threshold": HIGH, "threshold_back": 0.0}),
        looser=rising("threshold", *THRESHOLDS),
    ),
    "learn2pd": Claims(
        options=({}, {"tau": 0.5}),
        as_static=({"tau": HIGH}, {"tau": 1.0}),
        looser=rising("tau", *THRESHOLDS),
        settings={"filter": threshold_filter(4, 0.4, 20.0)},  # blocks of 4, as in test_properties.py
    ),
    "rcd": Claims(refused=("full", "full-shift", *BLOCK_CAUSAL)),
    "guided": Claims(options=({}, {"rule": "deterministic"}, {"k": 5, "ratio": 0.1})),
}


def claims_of(sampler: str) -> Claims:
    return CLAIMS.get(sampler, Claims())
