"""What a schema's keywords say of types and values, without looking deeper into it."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from typing import Any

from dlm_edge.runtime.constraints.number_ranges import Bound
from dlm_edge.runtime.constraints.schema_merging import (
    OF_ARRAYS,
    OF_NUMBERS,
    OF_OBJECTS,
    OF_STRINGS,
    TYPES,
    Schema,
    same_json,
)

OWN_KEYWORDS = {"object": OF_OBJECTS, "array": OF_ARRAYS, "string": OF_STRINGS, "number": OF_NUMBERS}


def types_of(keywords: Schema) -> list[str]:
    """The types asked for; where none is, those of the keywords that are there, or all of them."""
    asked = keywords.get("type")
    if asked is not None:
        return [asked] if isinstance(asked, str) else list(asked)
    meant = [name for name, own in OWN_KEYWORDS.items() if any(key in keywords for key in own)]
    return meant or list(TYPES)


def kinds_of(keywords: Schema) -> list[str]:
    """The types of values that a schema allows, as far as that is plain."""
    values = listed_values(keywords)
    if values is not None:
        return sorted({json_type(value) for value in values})
    asked = keywords.get("type", list(TYPES))
    return [asked] if isinstance(asked, str) else list(asked)


def listed_values(keywords: Schema) -> list[Any] | None:
    """Of enum or const; None where the values are not listed."""
    if "const" in keywords:
        return [keywords["const"]]
    found: list[Any] | None = keywords.get("enum")
    return found


def are_apart(one: Sequence[Any] | None, other: Sequence[Any] | None) -> bool:
    if one is None or other is None:
        return False
    return not any(equal_numbers(a, b) or same_json(a, b) for a in one for b in other)


def equal_numbers(one: Any, other: Any) -> bool:
    """To JSON schema 1 and 1.0 are the same."""
    return json_type(one) in ("integer", "number") and json_type(other) in ("integer", "number") and one == other


def json_type(value: Any) -> str:
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, float):
        return "integer" if value == int(value) else "number"
    names = {type(None): "null", str: "string", int: "integer", list: "array", dict: "object"}
    return names[type(value)]


def strictest(keywords: Schema, inclusive: str, exclusive: str, sign: int) -> Bound | None:
    found = [Bound(Decimal(str(keywords[n])), n == exclusive) for n in (inclusive, exclusive) if n in keywords]
    return max(found, key=lambda bound: (sign * bound.value, bound.is_exclusive), default=None)
