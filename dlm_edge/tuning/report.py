"""What a sweep found, as `dlm-edge tune --json` prints it."""

from __future__ import annotations

import statistics
from typing import Any, Literal

import msgspec

from dlm_edge.tuning.grid import Candidate
from dlm_edge.tuning.sweep import Trial

Verdict = Literal["chosen", "holds", "special", "dropped", "refused"]


class TuneRow(msgspec.Struct, frozen=True, kw_only=True):
    """One setting. A dropped one was measured on its first `prompts` only, a refused one not at all, and a
    special one holds the agreement and is not chosen: `why`."""

    sampler: str
    options: dict[str, Any]
    label: str
    verdict: Verdict
    why: str = ""
    prompts: int = 0
    agreement: float = 0.0  # see tuning/agreement.py
    agreement_se: float = 0.0
    identical: float = 0.0  # share of texts
    exact_match: float | None = None  # None: no answers are known
    steps_per_token: float = 0.0
    forward_passes: int = 0
    effective_tokens_per_s: float = 0.0  # median of the rounds
    speed_ratio: float = 0.0  # to `static` on the same prompts of the same round; median of the rounds
    speed_spread: float = 1.0  # highest over lowest of those ratios


class TuneReport(msgspec.Struct, frozen=True, kw_only=True):
    """Keys of `dlm-edge tune --json`."""

    chosen: dict[str, Any]  # as sampler_defaults has it
    rows: list[TuneRow]
    agreement: float  # asked for
    prompts: int
    source: str  # "tasks", or the name of the file
    repeats: int
    seed: int
    seconds: float
    machine: dict[str, Any]
    versions: dict[str, str]
    bundle: str
    written: bool  # to the bundle
    plot: str | None = None  # the file of it

    @property
    def best(self) -> TuneRow:
        return next(row for row in self.rows if row.verdict == "chosen")


def refused(candidate: Candidate, why: str) -> TuneRow:
    return TuneRow(
        sampler=candidate.sampler, options=candidate.options, label=candidate.label, verdict="refused", why=why
    )


def row_of(trial: Trial, reference: Trial) -> TuneRow:
    candidate = trial.candidate
    if trial.refused:
        return refused(candidate, trial.refused)
    ratios = trial.ratios(reference)
    return TuneRow(
        sampler=candidate.sampler,
        options=candidate.options,
        label=candidate.label,
        verdict="dropped" if trial.is_dropped else "holds",
        prompts=trial.seen,
        agreement=trial.agreement.share,
        agreement_se=trial.agreement.standard_error,
        identical=trial.agreement.identical,
        exact_match=trial.right / trial.asked if trial.asked else None,
        steps_per_token=trial.steps_per_token,
        forward_passes=trial.forward_passes,
        effective_tokens_per_s=trial.speed(),
        speed_ratio=statistics.median(ratios),
        speed_spread=max(ratios) / min(ratios) if min(ratios) else 1.0,
    )
