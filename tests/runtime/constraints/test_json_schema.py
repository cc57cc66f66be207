"""What a schema's automaton accepts is valid by jsonschema; what json.dumps writes in schema order is accepted."""

from __future__ import annotations

import json
import random
from decimal import Decimal

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dlm_edge.errors import UsageProblem
from dlm_edge.runtime.constraints.automaton import matches
from dlm_edge.runtime.constraints.json_schema import compile_json_schema
from dlm_edge.runtime.constraints.nfa import RegularAutomaton
from dlm_edge.runtime.constraints.number_ranges import Bound, decimals, integers
from tests.runtime.constraints.texts import drawn_text

NODE = {
    "$ref": "#/$defs/node",
    "$defs": {
        "node": {
            "type": "object",
            "properties": {"v": {"type": "integer"}, "next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]}},
            "required": ["v", "next"],
            "additionalProperties": False,
        }
    },
}
CAT = {"type": "object", "properties": {"kind": {"const": "cat"}, "lives": {"type": "integer", "minimum": 0}}}
DOG = {"type": "object", "properties": {"kind": {"enum": ["dog", "wolf"]}, "good": {"type": "boolean"}}}
SCHEMAS = [
    {},
    True,
    {"type": "object"},
    {"type": "array"},
    {"type": ["string", "null", "integer"], "minLength": 2, "maximum": 7},
    {"properties": {"a": {"type": "null"}, "b": True}, "required": ["b", "z"]},
    {"type": "object", "properties": {"k": {}}, "additionalProperties": {"type": "boolean"}},
    {"type": "object", "additionalProperties": {"type": "integer"}, "required": ["x"]},
    {"type": "array", "items": {"enum": ["x", 1, None, 2.5, {"a": []}]}, "minItems": 1, "maxItems": 3},
    {"type": "array", "prefixItems": [{"type": "boolean"}, {"type": "null"}], "items": {"const": "é\n"}, "minItems": 1},
    {"type": "array", "prefixItems": [{"type": "boolean"}], "items": False},
    {"type": "array", "items": {"type": "boolean"}, "minItems": 2},
    {"type": "string", "pattern": r"^[a-z\"\\]{2,4}\d?$|x", "title": "t", "x-own": 1},
    {"type": "string", "minLength": 1, "maxLength": 3},
    *({"type": "string", "format": name} for name in ("date", "time", "date-time", "uuid", "email", "ipv4")),
    {"type": "number", "exclusiveMinimum": -1.25, "maximum": 3},
    {"type": "integer", "multipleOf": 7, "minimum": -20},
    {"oneOf": [CAT, DOG, {"type": "array", "maxItems": 0}]},
    {"allOf": [{"type": "object", "properties": {"a": {"minimum": 3}}}, {"properties": {"a": {"type": "integer"}}}]},
    {"type": "object", "anyOf": [{"required": ["a"]}, {"required": ["b"]}], "properties": {"a": {}, "b": {"const": 1}}},
    {"enum": [1, "a", None, True], "type": ["string", "boolean"]},
    {"const": {"b": 1, "a": [True, "\u2028"]}},
    NODE,
]


def is_valid(schema, text):
    value = json.loads(text)
    checker = jsonschema.Draft202012Validator.FORMAT_CHECKER
    return jsonschema.Draft202012Validator(schema, format_checker=checker).is_valid(value)


@pytest.mark.parametrize("schema", SCHEMAS, ids=lambda schema: json.dumps(schema)[:60])
def test_every_text_is_valid(schema):
    automaton, rng = compile_json_schema(schema), random.Random(0)
    for limit in (5, 30, 120) * 8:
        text = drawn_text(automaton, rng, limit)
        assert is_valid(schema, text), text


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
scalars = st.one_of(st.none(), st.booleans(), st.integers(-999, 999), st.floats(-1e9, 1e9), texts)


def schemas_with_values():
    """(schema, value) pairs, the value's keys in the order of the schema."""
    leaves = st.one_of(
        scalars.map(lambda v: ({"const": v}, v)),
        texts.map(lambda v: ({"type": "string", "minLength": len(v) // 2, "maxLength": len(v) + 1}, v)),
        st.integers(-5000, 5000).map(lambda v: ({"type": "integer", "minimum": v - 3, "exclusiveMaximum": v + 1}, v)),
        st.decimals(-99, 99, places=2).map(lambda v: ({"type": "number", "minimum": float(v)}, float(v))),
        st.integers(-9, 9).map(lambda v: ({"type": ["integer", "null"], "multipleOf": abs(v) or 1}, v)),
        scalars.map(lambda v: ({}, {"a": [v]})),
        st.dates().map(lambda v: ({"type": "string", "format": "date"}, v.isoformat())),
        st.uuids().map(lambda v: ({"type": "string", "format": "uuid"}, str(v))),
    )

    def objects(inner):
        members = st.lists(st.tuples(texts, inner, st.booleans(), st.booleans()), max_size=4, unique_by=lambda m: m[0])
        return members.map(object_of)

    def object_of(members):
        schema = {
            "type": "object",
            "properties": {key: pair[0] for key, pair, _, _ in members},
            "required": [key for key, _, is_required, _ in members if is_required],
        }
        return schema, {key: pair[1] for key, pair, must, is_there in members if must or is_there}

    def arrays(inner):
        return st.lists(inner, max_size=3).map(
            lambda items: ({"type": "array", "prefixItems": [s for s, _ in items] or [{}]}, [v for _, v in items])
        )

    def choices(inner):
        return st.tuples(inner, inner).map(lambda both: ({"anyOf": [both[0][0], both[1][0]]}, both[1][1]))

    return st.recursive(leaves, lambda inner: st.one_of(objects(inner), arrays(inner), choices(inner)), max_leaves=6)


@settings(max_examples=200, deadline=None)
@given(schemas_with_values(), st.integers(0, 1 << 30))
def test_instances_in_schema_order_are_accepted_and_drawn_texts_are_valid(pair, seed):
    schema, value = pair
    automaton = compile_json_schema(json.dumps(schema))
    text = json.dumps(value, ensure_ascii=False)
    if not any(f"e{sign}" in text for sign in "+-"):  # bounded numbers are written without exponents
        assert matches(automaton, text.encode()), text
    drawn = drawn_text(automaton, random.Random(seed), limit=40)
    assert is_valid(schema, drawn), drawn


@pytest.mark.parametrize("seed", range(12))
def test_numbers_between_bounds_are_exact(seed):
    rng = random.Random(seed)
    low, high = sorted(Decimal(rng.randint(-300, 300)) / rng.choice([1, 10, 100]) for _ in range(2))
    low_bound = rng.choice([None, Bound(low), Bound(low, True)])
    high_bound = rng.choice([None, Bound(high), Bound(high, True)])
    multiple = rng.choice([1, 3, 25])

    def fits(value):
        above = low_bound is None or (value > low if low_bound.is_exclusive else value >= low)
        return above and (high_bound is None or (value < high if high_bound.is_exclusive else value <= high))

    for tree, scales, step in (
        (integers(low_bound, high_bound, multiple), (1,), multiple),
        (decimals(low_bound, high_bound), (1, 10, 100), 1),
    ):
        try:
            automaton = RegularAutomaton(tree, "it")
        except UsageProblem:  # nothing between them
            automaton = None
        for scale in scales:
            for number in range(-1100, 1100, 3):
                value = Decimal(number) / scale
                expected = fits(value) and number % step == 0
                assert (automaton is not None and matches(automaton, f"{value:f}".encode())) == expected, value
        for odd in (b"-0", b"007", b"", b"1.", b".5", b"+1"):
            assert automaton is None or not matches(automaton, odd)


def test_the_style_is_that_of_json_dumps():
    automaton = compile_json_schema({"type": "object", "properties": {"a": {}, "b": {"type": "array"}}})
    for text in ('{"a": 1, "b": [1, 2]}', ' {"b": []}', '\n{"a": {"x": [null]}}', "{}", '{"a": "\\u001f\\n\\"é"}'):
        assert matches(automaton, text.encode()), text
    for text in (
        '{"a":1}',
        '{"b": [], "a": 1}',
        '{"a": 1,"b": []}',
        "{ }",
        '  {"a": 1}',
        '{"c": 1}',
        '{"a": "\\u00e9"}',
    ):
        assert not matches(automaton, text.encode()), text


def test_other_keys_are_none_of_those_listed():
    schema = {"type": "object", "properties": {"ab": {"type": "null"}, "a": {}}, "additionalProperties": {"const": 1}}
    automaton = compile_json_schema(schema)
    for text, is_good in (
        ('{"abc": 1}', True),
        ('{"ab": 1}', False),
        ('{"a": 1, "": 1, "b": 1}', True),
        ('{"x": 2}', False),
    ):
        assert matches(automaton, text.encode()) == is_good, text


def test_a_recursive_definition_is_expanded_four_times():
    automaton = compile_json_schema(NODE)
    for depth, is_good in ((1, True), (4, True), (5, False)):
        text = "null"
        for _ in range(depth):
            text = f'{{"v": 1, "next": {text}}}'
        assert matches(automaton, text.encode()) == is_good


@pytest.mark.parametrize(
    ("schema", "named"),
    [
        ({"type": "object", "patternProperties": {}}, "patternProperties"),
        ({"not": {}}, "'not'"),
        ({"if": {}}, "'if'"),
        ({"properties": {"a": {"type": "strin"}}}, r"\$\.a: type"),
        ({"type": "array", "uniqueItems": True}, "uniqueItems"),
        ({"type": "array", "maxItems": 2**63}, "maxItems"),
        ({"type": "array", "minItems": 3, "maxItems": 2}, "maxItems is less"),
        ({"type": "string", "maxLength": -1}, "maxLength"),
        ({"type": "string", "format": "regex"}, "format 'regex'"),
        ({"type": "string", "pattern": "(?=a)"}, "position 0"),
        ({"type": "string", "pattern": "a", "maxLength": 3}, "together"),
        ({"type": "number", "multipleOf": 0.1}, "multipleOf"),
        ({"enum": [1], "minimum": 0}, "beside enum"),
        ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, "oneOf"),
        ({"oneOf": [{"const": 1}, {"const": 1.0}]}, "oneOf"),
        ({"allOf": [{"pattern": "a"}, {"pattern": "b"}]}, "different pattern"),
        ({"type": "object", "minProperties": 1}, "minProperties"),
        ({"$ref": "other.json"}, "leads out"),
        ({"$ref": "#/$defs/x"}, "leads to nothing"),
        ({"$ref": "#"}, "no text fits"),
        (False, "no text fits"),
        ({"enum": []}, "enum"),
        ({"type": "integer", "minimum": 3, "maximum": 2}, "no text fits"),
        ({"required": ["a"], "additionalProperties": False}, "no text fits"),
        ({"items": [{}]}, "no schema"),
        ("{", "no JSON"),
        ('{"minimum": NaN}', "NaN"),
        ('{"minimum": 1e999}', "out of range"),
        ('{"type": "null", "type": "null"}', "twice"),
        ({"const": "\ud800"}, "no JSON"),
        ({"description": "x" * (1 << 20)}, "characters"),
        ("[" * 100_000, "no JSON"),
    ],
)  # fmt: skip
def test_what_cannot_be_kept_to_is_refused_by_name(schema, named):
    with pytest.raises(UsageProblem, match=named) as caught:
        compile_json_schema(schema)
    assert caught.value.code == "E-PARAM" and len(caught.value.message) < 500


@pytest.mark.parametrize("kind", ["array", "object", "allOf", "anyOf"])
def test_schemas_nest_64_deep_and_no_deeper(kind):
    def nested(depth):
        schema = {"type": "null"}
        for _ in range(depth):
            schema = {
                "array": {"type": "array", "items": schema},
                "object": {"type": "object", "properties": {"a": schema}},
                "allOf": {"allOf": [schema]},
                "anyOf": {"anyOf": [schema, {"const": 1}]},
            }[kind]
        return schema

    assert compile_json_schema(nested(60)).distance(0) > 0
    with pytest.raises(UsageProblem):
        compile_json_schema(nested(3000 if kind == "allOf" else 70))


def test_definitions_that_multiply_are_refused():
    twice = {f"d{i}": {"allOf": [{"$ref": f"#/$defs/d{i + 1}"}] * 2} for i in range(40)} | {"d40": {"type": "null"}}
    with pytest.raises(UsageProblem, match="too large"):
        compile_json_schema({"$ref": "#/$defs/d0", "$defs": twice})
    wide = {f"w{i}": {"type": "array", "prefixItems": [{"$ref": f"#/$defs/w{i + 1}"}] * 9} for i in range(9)}
    with pytest.raises(UsageProblem):
        compile_json_schema({"$ref": "#/$defs/w0", "$defs": wide | {"w9": {}}})
