"""The model families: one file each, and this table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dlm_edge.errors import InputFileError
from dlm_edge.families.dream import DREAM
from dlm_edge.families.family import Family
from dlm_edge.families.fast_dllm_v2 import FAST_DLLM_V2
from dlm_edge.families.llada import LLADA
from dlm_edge.families.sdar import SDAR

FAMILIES: dict[str, Family] = {
    "llada": LLADA,
    "dream": DREAM,
    "sdar": SDAR,
    "fast_dllm_v2": FAST_DLLM_V2,
}


def find_family(config: Mapping[str, Any], name: str) -> Family:
    """The family of `architectures[0]`, or of `model_type` where the config names no architecture.

    A known model_type does not rescue an unknown architecture: LLaDA-MoE calls itself `llada` too.
    """
    architectures, model_type = config.get("architectures"), config.get("model_type")
    if architectures:
        found = architectures[0] if isinstance(architectures, list) else architectures
        for family in FAMILIES.values():
            if found in family.architectures:
                return family
    else:
        found = model_type
        for family in FAMILIES.values():
            if found in family.model_types:
                return family
    known = ", ".join(f"{a} ({f.name})" for f in FAMILIES.values() for a in f.architectures)
    raise InputFileError(
        "E-ARCH",
        f"config.json of {name}: architecture {found!r} (model_type {model_type!r}) is not supported; known: {known}",
        "a new one is a file in dlm_edge/families/ and a line in its table",
    )
