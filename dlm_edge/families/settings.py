"""Typed, ranged reading of a foreign config.json: a wrong value is E-CONFIG with the key, never a guess."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dlm_edge.errors import InputFileError


@dataclass(frozen=True, slots=True)
class Settings:
    """config.json of one checkpoint and what stands beside it. A null counts as a missing key.

    `beside` holds generation_config.json; `tokenizer_mask_id` is the id of the tokenizer's own mask token.
    """

    config: Mapping[str, Any]
    name: str  # for messages: the folder
    beside: Mapping[str, Any] = field(default_factory=dict)
    tokenizer_mask_id: int | None = None
    produced_rows: int | None = None  # highest id of the tokenizer + 1

    def integer(self, key: str, low: int, high: int, default: int | None = None) -> int:
        value = self._value(key, default)
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.wrong(key, value, "a whole number")
        if not low <= value <= high:
            raise self.wrong(key, value, f"from {low} to {high}")
        return value

    def number(self, key: str, low: float, high: float, default: float | None = None) -> float:
        value = self._value(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.wrong(key, value, "a number")
        if not (math.isfinite(value) and low <= value <= high):
            raise self.wrong(key, value, f"from {low:g} to {high:g}")
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        value = self._value(key, default)
        if not isinstance(value, bool):
            raise self.wrong(key, value, "true or false")
        return value

    def has(self, key: str) -> bool:
        return self.config.get(key) is not None

    def only(self, key: str, *implemented: Any) -> None:
        """Refuse a value of `key` that changes the computation in a way that is not implemented; missing is fine."""
        value = self.config.get(key)
        # 1 == True in Python, but not in a config.
        if value is None or any(type(value) is type(known) and value == known for known in implemented):
            return
        known = " or ".join(repr(v) for v in implemented) or "absent"
        raise InputFileError(
            "E-CONFIG",
            f"config.json of {self.name}: {key} is {value!r}, and only {known} is implemented",
            "this checkpoint computes something that dlm-edge does not",
        )

    def only_forms(self, forms: Mapping[str, Sequence[Any]]) -> None:
        for key, implemented in forms.items():
            self.only(key, *implemented)

    def wrong(self, key: str, value: object, wanted: str) -> InputFileError:
        shown = repr(value) if len(repr(value)) <= 80 else repr(value)[:77] + "..."
        return InputFileError(
            "E-CONFIG",
            f"config.json of {self.name}: {key} is {shown}, expected {wanted}",
            "download the file again, or correct it by hand",
        )

    def _value(self, key: str, default: Any) -> Any:
        value = self.config.get(key)
        if value is not None:
            return value
        if default is None:
            raise InputFileError(
                "E-CONFIG", f"config.json of {self.name} has no {key}", "download the file again, or add the key"
            )
        return default
