"""The language of a pattern is that of Python's re.fullmatch, and what is not supported is refused with its place."""

from __future__ import annotations

import random
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dlm_edge.errors import JobError, UsageProblem
from dlm_edge.runtime.constraints import nfa
from dlm_edge.runtime.constraints.automaton import matches, run
from dlm_edge.runtime.constraints.nfa import RegularAutomaton
from dlm_edge.runtime.constraints.regex import compile_regex, search_tree
from tests.runtime.constraints.texts import drawn_text

ALPHABET = "ab01 \n-]é߿\u0800\uffff\U0001f600_"
ATOMS = [
    "a",
    "b",
    "é",
    "😀",
    ".",
    r"\d",
    r"\w",
    r"\s",
    r"\D",
    r"\W",
    r"\S",
    "[ab]",
    "[^a]",
    "[a-b0-1]",
    r"[^\d]",
    r"[\]é-]",
]
ATOMS += [r"\.", r"\u00e9", r"\x61", "[߿-\U0001f600]", "{", "[]]", "[^]a]", r"[\w-]", "a{,2}"]
patterns = st.recursive(
    st.sampled_from(ATOMS),
    lambda inner: st.one_of(
        st.tuples(inner, inner).map("".join),
        st.tuples(inner, inner).map("|".join).map("(?:{})".format),
        inner.map("({})".format),
        st.tuples(inner, st.sampled_from(["*", "+", "?", "{2}", "{1,3}", "{,2}", "{1,}", "*?", "+?"])).map(
            lambda pair: f"(?:{pair[0]}){pair[1]}"
        ),
    ),
    max_leaves=6,
)


@settings(max_examples=300, deadline=None)
@given(patterns, st.lists(st.text(ALPHABET, max_size=6), min_size=4, max_size=8), st.integers(0, 1 << 30))
def test_the_language_is_that_of_fullmatch(pattern, texts, seed):
    automaton, expected = compile_regex(pattern), re.compile(pattern)
    for text in texts:
        assert matches(automaton, text.encode()) == (expected.fullmatch(text) is not None), text
    for _ in range(3):
        text = drawn_text(automaton, random.Random(seed), limit=20)
        assert expected.fullmatch(text), text


@pytest.mark.parametrize("pattern", [r"\d", r"\w", r"\s", ".", r"\W", "[^é]"])
def test_classes_hold_the_code_points_that_they_hold_in_python(pattern):
    automaton, expected = compile_regex(pattern), re.compile(pattern)
    for code in [*range(0x3000), *range(0xD7F0, 0xD800), *range(0xE000, 0xE010), 0xFFFF, 0x10000, 0x1D7CE, 0x10FFFF]:
        assert matches(automaton, chr(code).encode()) == bool(expected.fullmatch(chr(code))), hex(code)


@pytest.mark.parametrize("pattern", ["(a|b)*abb", r"\d{3}-\d{4}|x", "a{2,5}b?", "(é|ab){3}", "c*"])
def test_distance_is_the_fewest_bytes_and_no_state_is_a_dead_end(pattern):
    automaton = compile_regex(pattern)
    todo, seen = [automaton.start], set()
    while todo:
        state = todo.pop()
        if state in seen:
            continue
        seen.add(state)
        after = {int(s) for s in automaton.next(state) if s >= 0}
        steps = [automaton.distance(s) + 1 for s in after]
        assert automaton.distance(state) == (0 if automaton.accepts(state) else min(steps))
        todo += after
    assert not automaton.next(automaton.start).flags.writeable


@pytest.mark.parametrize(
    ("pattern", "position"),
    [
        ("a(?=b)", 1), ("(?<!a)b", 0), (r"(a)\1", 3), (r"a\b", 1), ("(?i)a", 0), ("a^b", 1), ("(a$)b", 2), ("(", 0),
        (")", 0), ("[a", 0), ("[b-a]", 1), (r"[\d-a]", 1), ("*a", 0), ("a**", 2), ("a*+", 2), ("a{3,2}", 1),
        ("a{100001}", 1), ("a\\", 1), (r"\p{L}", 0), (r"\xg1", 0), ("(?P=x)", 0), ("{1}a", 0), ("\ud800", 0),
        (r"\U00110000", 0), ("(" * 65 + ")" * 65, 64), ("a" * 20_001, None),
    ],
)  # fmt: skip
def test_what_is_not_supported_is_refused_with_its_place(pattern, position):
    with pytest.raises(UsageProblem) as caught:
        compile_regex(pattern)
    assert caught.value.code == "E-PARAM"
    if position is not None:
        assert f"position {position}:" in caught.value.message


def test_a_pattern_that_nothing_matches_is_refused():
    with pytest.raises(UsageProblem, match="no text fits"):
        compile_regex(r"a[^\s\S]")


def test_anchors_at_the_ends_change_nothing_where_the_whole_text_must_match():
    for pattern in ("^a+$", "^a+", "a+$", "a+"):
        assert matches(compile_regex(pattern), b"aa") and not matches(compile_regex(pattern), b"ba")
    assert matches(compile_regex("^a$|^b$"), b"b")


@pytest.mark.parametrize("pattern", ["^a", "a$", "a", "^a$|b", "x*", "^$"])
def test_a_pattern_of_a_schema_is_searched_for(pattern):
    automaton = RegularAutomaton(search_tree(pattern), "it")
    for text in ("a", "ba", "ab", "cbc", "", "x", "c"):
        assert matches(automaton, text.encode()) == (re.search(pattern, text) is not None), text


def test_counts_are_not_written_out():
    automaton = compile_regex("(?:(?:[ab]{1000}){1000}){1000}")
    assert automaton.distance(automaton.start) == 10**9
    assert run(automaton, b"ab" * 2000) >= 0


def test_what_is_too_ambiguous_is_refused_instead_of_taking_hours(monkeypatch):
    monkeypatch.setattr(nfa, "MAX_WORK", 100_000)
    with pytest.raises(UsageProblem, match="too ambiguous"):
        compile_regex("(?:(?:a?){0,3000}){0,3000}")
    automaton = compile_regex("(a|b)*a(a|b){40}")
    rng = random.Random(0)
    with pytest.raises(JobError) as caught:
        for _ in range(10_000):
            run(automaton, bytes(rng.choice(b"ab") for _ in range(100)))
    assert caught.value.code == "E-MEM"


def test_the_depth_of_groups_costs_no_recursion():
    assert matches(compile_regex("(" * 64 + "a" + ")" * 64), b"a")
