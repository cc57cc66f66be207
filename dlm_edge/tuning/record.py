"""What a manifest keeps of a tuning: measured["tune"]."""

from __future__ import annotations

from typing import Any

import msgspec

from dlm_edge.bundle import Manifest
from dlm_edge.errors import InputFileError

KEY = "tune"


class TuneRecord(msgspec.Struct, frozen=True, kw_only=True):
    """Of the chosen setting; see TuneRow for the figures."""

    setting: str
    agreement_asked: float
    agreement: float
    agreement_se: float
    identical: float
    exact_match: float | None
    exact_match_static: float | None
    speed_ratio: float
    steps_per_token: float
    prompts: int
    source: str
    seed: int
    machine: dict[str, Any]
    versions: dict[str, str]
    date: str  # ISO 8601, UTC


def read_record(manifest: Manifest) -> TuneRecord | None:
    """None for a bundle that was never tuned. Raises E-MANIFEST."""
    if KEY not in manifest.measured:
        return None
    try:
        return msgspec.convert(manifest.measured[KEY], TuneRecord)
    except msgspec.ValidationError as error:
        raise InputFileError("E-MANIFEST", f"measured.{KEY}: {error}", "tune it again") from error
