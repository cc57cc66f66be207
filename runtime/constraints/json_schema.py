"""JSON schemas to trees: texts that are valid by construction, with properties in the order of the schema.

A part of draft 2020-12, the one that OpenAI's structured output and pydantic use. What is generated may be less than
what the schema allows (no properties beyond those listed unless `additionalProperties` says which, nesting up to a
depth where the schema sets none, one way to write each value), never more: a keyword that constrains and cannot be
kept to is refused by name.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable
from typing import Any, NoReturn

from dlm_edge.errors import UsageProblem
from dlm_edge.runtime.constraints.automaton import MAX_DEPTH
from dlm_edge.runtime.constraints.characters import ANY, of_text
from dlm_edge.runtime.constraints.json_text import (
    FORMATS,
    INTEGER,
    NUMBER,
    any_array,
    any_object,
    any_value,
    json_array,
    json_literal,
    json_object,
    json_string,
    member,
    other_keys,
    pattern,
)
from dlm_edge.runtime.constraints.nfa import RegularAutomaton
from dlm_edge.runtime.constraints.number_ranges import decimals, integers
from dlm_edge.runtime.constraints.regex import search_tree
from dlm_edge.runtime.constraints.schema_merging import (
    OF_STRINGS,
    Document,
    Place,
    Schema,
    common_types,
    flattened,
    merged,
    same_json,
)
from dlm_edge.runtime.constraints.schema_values import (
    are_apart,
    json_type,
    kinds_of,
    listed_values,
    strictest,
    types_of,
)
from dlm_edge.runtime.constraints.syntax_tree import NOTHING, Chars, Choice, Literal, Repeat, Tree, optional, sequence

MAX_SCHEMA_CHARACTERS = 1 << 20
MAX_SCHEMAS = 10_000  # after definitions were expanded
MAX_COUNT = 10_000  # of minItems, maxLength and their like
MAX_MULTIPLE = 1000
LEADING_SPACE = optional(
    Chars(of_text(" \n"))
)  # JSON allows it, and much of what models learned has it behind a prompt


def compile_json_schema(schema: Any) -> RegularAutomaton:
    """The automaton of JSON texts that the schema, an object or JSON text, allows. Raises E-PARAM."""
    root = read_schema(schema)
    try:
        return RegularAutomaton(sequence(LEADING_SPACE, _Schema(root).tree(root, Place())), "the JSON schema")
    except RecursionError as error:
        raise UsageProblem("E-PARAM", f"the JSON schema nests more than {MAX_DEPTH} deep", "flatten it") from error


def read_schema(schema: Any) -> Any:
    """E-PARAM for text that is no JSON, and for what is too large."""
    try:
        text = schema if isinstance(schema, str) else json.dumps(schema)
        if len(text) > MAX_SCHEMA_CHARACTERS:
            message = f"the JSON schema has {len(text)} characters, more than {MAX_SCHEMA_CHARACTERS}"
            raise UsageProblem("E-PARAM", message, "shorten it")
        return json.loads(text, object_pairs_hook=_unique, parse_constant=_refused, parse_float=_finite)
    except (ValueError, TypeError, RecursionError) as error:
        raise UsageProblem("E-PARAM", f"the JSON schema is no JSON: {str(error)[:200]}", "correct it") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) < len(pairs):
        raise ValueError("a key appears twice in one object")
    return dict(pairs)


def _refused(text: str) -> NoReturn:
    raise ValueError(f"{text} is not JSON")


def _finite(text: str) -> float:
    if not math.isfinite(float(text)):
        raise ValueError(f"the number {text[:40]} is out of range")
    return float(text)


class _Schema:
    def __init__(self, root: Any) -> None:
        self.document, self.n_schemas = Document(root), 0

    def tree(self, schema: Any, place: Place) -> Tree:
        self.n_schemas += 1
        if self.n_schemas > MAX_SCHEMAS:
            raise place.problem(f"more than {MAX_SCHEMAS} schemas, with definitions expanded")
        if place.depth > MAX_DEPTH:
            raise place.problem(f"nested more than {MAX_DEPTH} deep", "flatten it")
        if schema is False:
            return NOTHING
        keywords, place = flattened(schema, place, self.document)
        return NOTHING if keywords is None else self.flat_tree(keywords, place)

    def flat_tree(self, keywords: Schema, place: Place) -> Tree:
        if "enum" in keywords or "const" in keywords:
            return self.listed(keywords, place)
        for name in ("anyOf", "oneOf"):
            if name in keywords:
                return self.alternatives(name, keywords, place)
        if not keywords:
            return any_value()
        ways: dict[str, Callable[[Schema, Place], Tree]] = {
            "object": self.object,
            "array": self.array,
            "string": self.string,
            "integer": self.number,
        }
        ways["number"] = self.number
        constants: dict[str, Tree] = {"boolean": Choice((Literal("true"), Literal("false"))), "null": Literal("null")}
        types = types_of(keywords)
        if "number" in types:
            types = [name for name in types if name != "integer"]
        trees: list[Tree] = [constants[t] if t in constants else ways[t]({**keywords, "type": t}, place) for t in types]
        return trees[0] if len(trees) == 1 else Choice(tuple(trees))

    def listed(self, keywords: Schema, place: Place) -> Tree:
        """enum and const; beside them only a type, which leaves some of the values out."""
        others = keywords.keys() - {"enum", "const", "type"}
        if others:
            raise place.problem(f"{min(others)} beside enum or const is not supported", "leave out values instead")
        values = keywords.get("enum", [keywords.get("const")])
        if "const" in keywords:
            values = [value for value in values if same_json(value, keywords["const"])]
        if "type" in keywords:
            types = types_of(keywords)
            values = [value for value in values if common_types(types, json_type(value))]
        return Choice(tuple(json_literal(value) for value in values))

    def alternatives(self, name: str, keywords: Schema, place: Place) -> Tree:
        rest = {key: value for key, value in keywords.items() if key != name}
        options = []
        for index, option in enumerate(keywords[name]):
            inside = place.inside(f"{name}.{index}")
            found, inside = (None, inside) if option is False else flattened(option, inside, self.document)
            if found is not None:
                options.append((merged(rest, found, inside), inside))
        if name == "oneOf":
            options = self.told_apart(options, place)
        return Choice(tuple(self.flat_checked(option, inside) for option, inside in options))

    def flat_checked(self, keywords: Schema, place: Place) -> Tree:
        """Of keywords that were flattened, and merged since, so that there may be something to flatten again."""
        return self.tree(dict(keywords), place)

    def told_apart(
        self, options: list[tuple[dict[str, Any], Place]], place: Place
    ) -> list[tuple[dict[str, Any], Place]]:
        """With the property that tells options apart made required. E-PARAM where a value might fit two of them."""
        required: list[set[str]] = [set() for _ in options]
        for (i, (one, _)), (j, (other, _)) in itertools.combinations(enumerate(options), 2):
            kinds = common_types(kinds_of(one), kinds_of(other))
            if not kinds or are_apart(listed_values(one), listed_values(other)):
                continue
            names = (
                [n for n in one.get("properties", {}) if n in other.get("properties", {})]
                if kinds == ["object"]
                else []
            )
            apart = [n for n in names if are_apart(*(self.property_values(o, n, place) for o in (one, other)))]
            if not apart:
                what = f"a value may fit both option {i} and option {j} of oneOf"
                raise place.problem(what, "use anyOf, or give both a property with different const values")
            required[i].add(apart[0])
            required[j].add(apart[0])
        return [
            ({**option, "required": [*option.get("required", ()), *sorted(names)]} if names else option, inside)
            for (option, inside), names in zip(options, required, strict=True)
        ]

    def property_values(self, option: Schema, name: str, place: Place) -> list[Any] | None:
        found = flattened(option["properties"][name], place, self.document)[0]
        return listed_values(found) if found is not None else []

    def object(self, keywords: Schema, place: Place) -> Tree:
        properties = keywords.get("properties", {})
        others = keywords.get("additionalProperties", not properties and "required" not in keywords)
        required = list(dict.fromkeys(keywords.get("required", ())))
        self.check_count(keywords, "minProperties", len(required), place, at_most=True)
        n_possible = None if others else len({*properties, *required})
        self.check_count(keywords, "maxProperties", n_possible, place, at_most=False)
        if not properties and not required and others is True:
            return any_object()
        value = any_value() if others is True else NOTHING if others is False else self.tree(others, place.inside("*"))
        if "additionalProperties" not in keywords:
            value = any_value()  # of required properties about which nothing is said
        names = [*properties, *(name for name in required if name not in properties)]
        members = []
        for name in names:
            own = self.tree(properties[name], place.inside(name)) if name in properties else value
            members.append((member(json_literal(name), own), name in required))
        return json_object(members, member(other_keys(names), value) if others else None)

    def check_count(self, keywords: Schema, name: str, known: int | None, place: Place, *, at_most: bool) -> None:
        """Bounds of the number of properties hold by themselves, or are refused."""
        if name in keywords and (known is None or (keywords[name] > known if at_most else keywords[name] < known)):
            raise place.problem(f"{name} is not supported where it restricts which properties there are")

    def array(self, keywords: Schema, place: Place) -> Tree:
        low, high = self.counts(keywords, "minItems", "maxItems", place)
        if keywords.get("uniqueItems") and (high is None or high > 1):
            raise place.problem("uniqueItems is not supported")
        prefix = keywords.get("prefixItems", [])
        rest = keywords.get("items", not prefix)  # after listed items there are no others unless it is said which
        if set(keywords) <= {"type"}:
            return any_array()
        first = [self.tree(item, place.inside(i)) for i, item in enumerate(prefix[: None if high is None else high])]
        other = NOTHING if rest is False else self.tree(rest, place.inside("items"))
        if low > len(first) and other == NOTHING:
            return NOTHING
        n_listed = max(len(first), low if high is None else high if other != NOTHING else 0)
        items = [(first[i] if i < len(first) else other, i < low) for i in range(n_listed)]
        return json_array(items, other if high is None and other != NOTHING else None)

    def string(self, keywords: Schema, place: Place) -> Tree:
        low, high = self.counts(keywords, "minLength", "maxLength", place)
        kinds = [name for name in ("pattern", "format") if name in keywords]
        if len(kinds) > 1 or (kinds and (low or high is not None)):
            names = [name for name in OF_STRINGS if name in keywords]
            raise place.problem(f"{' and '.join(names)} together are not supported", "say it with a pattern alone")
        if "pattern" in keywords:
            try:
                return json_string(search_tree(keywords["pattern"]))
            except UsageProblem as error:
                raise place.problem(error.message, error.hint) from error
        if "format" in keywords:
            if keywords["format"] not in FORMATS:
                message = f"the format {keywords['format'][:80]!r} is not supported"
                raise place.problem(message, f"known: {', '.join(FORMATS)}; or use a pattern")
            return json_string(pattern(FORMATS[keywords["format"]]))
        return json_string(Repeat(Chars(ANY), low, high))

    def counts(self, keywords: Schema, least: str, most: str, place: Place) -> tuple[int, int | None]:
        low, high = int(keywords.get(least, 0)), keywords.get(most)
        for name in (least, most):
            if keywords.get(name, 0) > MAX_COUNT:
                raise place.problem(f"{name} is more than {MAX_COUNT}", "choose less, or leave it out")
        if high is not None and high < low:
            raise place.problem(f"{most} is less than {least}")
        return low, None if high is None else int(high)

    def number(self, keywords: Schema, place: Place) -> Tree:
        low = strictest(keywords, "minimum", "exclusiveMinimum", 1)
        high = strictest(keywords, "maximum", "exclusiveMaximum", -1)
        multiple = keywords.get("multipleOf", 1)
        if multiple != int(multiple) or multiple > MAX_MULTIPLE:
            raise place.problem(f"multipleOf {multiple} is not supported", f"choose a whole number to {MAX_MULTIPLE}")
        is_whole = keywords["type"] == "integer" or "multipleOf" in keywords
        if low is None and high is None and multiple == 1:
            return INTEGER if is_whole else NUMBER
        return integers(low, high, int(multiple)) if is_whole else decimals(low, high)
