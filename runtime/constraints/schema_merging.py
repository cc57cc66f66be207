"""Schemas that hold together: `$ref` resolved, `allOf` and neighbours of `anyOf` joined into one set of keywords."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

from dlm_edge.errors import UsageProblem
from dlm_edge.nearest import nearest

Schema = Mapping[str, Any]
TYPES = ("object", "array", "string", "integer", "number", "boolean", "null")
COUNTS = ("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties")
BOUNDS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")
OF_OBJECTS = ("properties", "required", "additionalProperties", "minProperties", "maxProperties")
OF_ARRAYS = ("items", "prefixItems", "minItems", "maxItems", "uniqueItems")
OF_STRINGS = ("minLength", "maxLength", "pattern", "format")
OF_NUMBERS = (*BOUNDS, "multipleOf")
GENERAL = ("type", "enum", "const", "anyOf", "oneOf", "allOf", "$ref")
ANNOTATIONS = (
    *("title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly", "discriminator"),
    *("$schema", "$id", "$comment", "$anchor", "$defs", "definitions"),
)
KEYWORDS = (*GENERAL, *OF_OBJECTS, *OF_ARRAYS, *OF_STRINGS, *OF_NUMBERS)
MAX_WORK = 100_000  # keywords and properties looked at
MAX_RECURSION = 4  # times that a definition is expanded inside itself
# Of two values of a keyword that both hold, the one that holds both.
STRICTER = {n: max for n in ("minLength", "minItems", "minProperties", "minimum", "exclusiveMinimum")}
STRICTER |= {n: min for n in ("maxLength", "maxItems", "maxProperties", "maximum", "exclusiveMaximum")}


@dataclass(slots=True)
class Document:
    """The whole schema, and how much has been done with it: definitions that use each other twice grow fast."""

    root: Any
    work: int = 0

    def count(self, amount: int, place: Place) -> None:
        self.work += amount
        if self.work > MAX_WORK:
            raise place.problem("with its definitions expanded it is too large")


@dataclass(frozen=True, slots=True)
class Place:
    """Where in the schema we are, for messages, and which definitions are expanded around it."""

    path: str = "$"
    refs: tuple[str, ...] = ()
    depth: int = 0

    def inside(self, name: str | int) -> Place:
        return Place(f"{self.path}.{name}", self.refs, self.depth + 1)

    def problem(self, what: str, hint: str = "change the schema") -> UsageProblem:
        shown = self.path if len(self.path) <= 200 else "..." + self.path[-200:]
        return UsageProblem("E-PARAM", f"the JSON schema at {shown}: {what}", hint)


def checked(schema: Any, place: Place) -> dict[str, Any]:
    """The keywords that constrain, each of a known name and kind; annotations are dropped. E-PARAM."""
    if schema is True:
        return {}
    if not isinstance(schema, dict):
        raise place.problem(f"a {type(schema).__name__} is no schema")
    for name in schema:
        if name not in KEYWORDS and name not in ANNOTATIONS and not str(name).startswith("x-"):
            raise place.problem(f"the keyword {str(name)[:80]!r} is not supported", nearest(str(name), KEYWORDS))
    found = {name: value for name, value in schema.items() if name in KEYWORDS}
    for name, value in found.items():
        check_kind(name, value, place)
    return found


def check_kind(name: str, value: Any, place: Place) -> None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if name in COUNTS:
        fits, kind = is_number and value == int(value) and value >= 0, "a whole number from 0 on"
    elif name in OF_NUMBERS:
        fits, kind = is_number and (name != "multipleOf" or value > 0), "a number" + " above 0" * (name == "multipleOf")
    elif name in ("pattern", "format", "$ref"):
        fits, kind = isinstance(value, str), "a text"
    elif name in ("anyOf", "oneOf", "allOf", "prefixItems", "enum"):
        fits, kind = isinstance(value, list) and bool(value), "a list that is not empty"
    elif name == "required":
        fits, kind = isinstance(value, list) and all(isinstance(n, str) for n in value), "a list of names"
    elif name == "properties":
        fits, kind = isinstance(value, dict) and all(isinstance(n, str) for n in value), "an object"
    elif name == "uniqueItems":
        fits, kind = isinstance(value, bool), "true or false"
    elif name == "type":
        names = value if isinstance(value, list) and value else [value]
        fits, kind = all(n in TYPES for n in names), f"one or several of {', '.join(TYPES)}"
    else:
        return
    if not fits:
        raise place.problem(f"{name} is {str(value)[:80]!r}, not {kind}")


def flattened(schema: Any, place: Place, document: Document) -> tuple[dict[str, Any] | None, Place]:
    """Without `$ref` and `allOf`; None where a definition would be expanded inside itself too often. E-PARAM."""
    keywords = checked(schema, place)
    document.count(1 + len(keywords) + len(place.refs), place)
    while "$ref" in keywords or "allOf" in keywords:
        if "$ref" in keywords:
            ref = keywords.pop("$ref")
            if place.refs.count(ref) >= MAX_RECURSION:
                return None, place
            place = Place(place.path, (*place.refs, ref), place.depth)
            parts = [resolved(ref, document.root, place)]
        else:
            parts = keywords.pop("allOf")
        around = place
        for part in parts:
            if part is False:
                return None, place
            found, inside = flattened(part, around, document)
            if found is None:
                return None, place
            refs = Counter(place.refs) | Counter(inside.refs)
            place = Place(place.path, tuple(refs.elements()), place.depth)
            document.count(len(found.get("properties", ())) + len(keywords.get("properties", ())), place)
            keywords = merged(keywords, found, place)
    return keywords, place


def resolved(ref: str, root: Any, place: Place) -> Any:
    if not ref.startswith("#"):
        raise place.problem(f"$ref {ref[:80]!r} leads out of the schema", "put the definition into $defs")
    found = root
    for part in unquote(ref[1:]).split("/")[1:]:
        key = part.replace("~1", "/").replace("~0", "~")
        if isinstance(found, dict) and key in found:
            found = found[key]
        elif isinstance(found, list) and key.isdecimal() and int(key) < len(found):
            found = found[int(key)]
        else:
            raise place.problem(f"$ref {ref[:80]!r} leads to nothing", "define it in $defs")
    return found


def merged(one: Schema, other: Schema, place: Place) -> dict[str, Any]:
    """The keywords of a schema that allows what both allow. E-PARAM where one of the supported kind cannot say it."""
    both = dict(one)
    for name, value in other.items():
        if name not in both or same_json(both[name], value):
            both[name] = value
        elif name in STRICTER:
            both[name] = STRICTER[name](both[name], value)
        elif name == "required":
            both[name] = list(dict.fromkeys([*both[name], *value]))
        elif name == "properties":
            shared = {key: {"allOf": [both[name][key], value[key]]} for key in value if key in both[name]}
            both[name] = {**both[name], **value, **shared}
        elif name == "type":
            both[name] = common_types(both[name], value)
        elif name == "enum":
            both[name] = [each for each in both[name] if any(same_json(each, v) for v in value)]
        elif name == "uniqueItems":
            both[name] = True
        else:
            raise place.problem(f"two schemas that both hold have different {name}", "write them as one")
    if "additionalProperties" in both:
        own = [set(each.get("properties", ())) for each in (one, other)]
        closed = [each.get("additionalProperties", True) is not True for each in (one, other)]
        if (closed[0] and own[1] - own[0]) or (closed[1] and own[0] - own[1]):
            raise place.problem("additionalProperties of one schema meets properties of another", "write them as one")
    return both


def common_types(one: str | list[str], other: str | list[str]) -> list[str]:
    first, second = (set([t] if isinstance(t, str) else t) for t in (one, other))
    for names, others in ((first, second), (second, first)):
        if "number" in names and "integer" in others and "integer" not in names:
            names.add("integer")
    return [name for name in TYPES if name in first & second]


def same_json(one: Any, other: Any) -> bool:
    """Equal as JSON: true is not 1."""
    return one is other or (one == other and json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True))
