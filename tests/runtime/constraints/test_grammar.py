"""Grammars as byte automata: against a brute-force recogniser, and against the parsers of real languages."""

from __future__ import annotations

import ast
import itertools
import json
import random
import re

import pytest

from dlm_edge.errors import JobError, UsageProblem
from dlm_edge.runtime.constraints.automaton import DEAD, matches, run
from dlm_edge.runtime.constraints.grammar import GrammarAutomaton
from dlm_edge.runtime.constraints.grammar_text import Choice, Reference, Repeat, Sequence, read_grammar
from dlm_edge.runtime.constraints.syntax_tree import Chars, Literal

JSON = r"""
root   ::= ws value
value  ::= object | array | string | number | ("true" | "false" | "null") ws
object ::= "{" ws (string ":" ws value ("," ws string ":" ws value)*)? "}" ws
array  ::= "[" ws (value ("," ws value)*)? "]" ws
string ::= "\"" ([^"\\\x00-\x1F] | "\\" (["\\/bfnrt] | "u" [0-9a-fA-F]{4}))* "\"" ws
number ::= "-"? ("0" | [1-9] [0-9]*) ("." [0-9]+)? ([eE] [-+]? [0-9]+)? ws
ws     ::= [ \t\n\r]*
"""
PYTHON_EXPRESSION = r"""
root       ::= choice
choice     ::= disjunct (" if " disjunct " else " choice)? | "lambda " name ": " choice
disjunct   ::= disjunct " or " conjunct | conjunct
conjunct   ::= conjunct " and " negation | negation
negation   ::= "not " negation | comparison
comparison ::= sum ((" in " | " is not " | " < " | " == ") sum)*
sum        ::= sum [-+] product | product
product    ::= product ("*" | "//" | "%") power | power
power      ::= [-~] power | primary ("**" power)?
primary    ::= (name | group) ("(" arguments ")" | "[" choice (":" choice?)? "]" | "." name)*
             | [1-9] [0-9]{0,3} | "'" ([^'\\\x00-\x1F{}] | "\\n")* "'"
group      ::= "(" choice ")" | "[" arguments "]" | "{" (pair (", " pair)*)? "}" | "(" choice " for " name " in " group ")"
arguments  ::= (choice (", " choice)*)?
pair       ::= choice ": " choice
name       ::= "v" [a-z0-9_]{0,3}
"""


def derives(rules, text, start="root"):
    """Whether rule `start` derives `text`: which ends each rule can have from each place, grown until nothing is new."""
    known = {(start, 0): set()}

    def ends(expression, begin):
        match expression:
            case Literal(literal):
                return {begin + len(literal)} if text.startswith(literal, begin) else set()
            case Chars(ranges):
                holds = begin < len(text) and any(low <= ord(text[begin]) <= high for low, high in ranges)
                return {begin + 1} if holds else set()
            case Reference(name):
                return set(known.setdefault((name, begin), set()))
            case Choice(options):
                return set().union(*(ends(option, begin) for option in options))
            case Sequence(parts):
                return each(parts, {begin})
            case Repeat(part, least, most):
                found = now = each([part] * least, {begin})
                for _ in range(len(text) + 1 if most is None else most - least):
                    now = each([part], now)
                    found = found | now
                return found

    def each(parts, begins):
        for part in parts:
            begins = set().union(*(ends(part, begin) for begin in begins))
        return begins

    size = -1
    while size != (size := sum(len(found) + 1 for found in known.values())):
        for name, begin in list(known):
            known[name, begin] |= ends(rules[name].expression, begin)
    return len(text) in known[start, 0]


def random_grammar(rng):
    names = ["root", "a", "b-1"][: rng.randint(1, 3)]

    def expression(depth):
        kind = rng.randrange(11 if depth else 5)
        if kind < 3:
            return rng.choice(['"a"', '"b"', '"ab"', "[ab]", '""', '"b"'])
        if kind < 5:
            return rng.choice(names)
        if kind < 7:
            return f"({expression(depth - 1)} | {expression(depth - 1)})"
        if kind < 9:
            return f"{expression(depth - 1)} {expression(depth - 1)}"
        return f"({expression(depth - 1)}){rng.choice(['*', '+', '?', '{2}', '{1,2}', '{2,}', '{0,2}'])}"

    return "\n".join(f"{name} ::= " + rng.choice(["", '"a" | ']) + expression(3) for name in names)


def shortest_completion(automaton, state):
    """Bytes to acceptance, each of them one nearer: there always is one."""
    data = b""
    while distance := automaton.distance(state):
        row = automaton.next(state)
        nearer = [b for b in range(256) if row[b] != DEAD and automaton.distance(row[b]) < distance]
        assert nearer and automaton.distance(row[nearer[0]]) == distance - 1
        data, state = data + bytes(nearer[:1]), row[nearer[0]]
    assert automaton.accepts(state)
    return data


def random_text(automaton, rng, n_bytes):
    """Some bytes, any next state equally likely, then the shortest completion."""
    data, state = b"", automaton.start
    for _ in range(n_bytes):
        row = automaton.next(state)
        following = sorted(set(row.tolist()) - {DEAD})
        if not following:
            break
        state = rng.choice(following)
        data += bytes([rng.choice((row == state).nonzero()[0].tolist())])
    return (data + shortest_completion(automaton, state)).decode()


def explore(automaton):
    """Every state that can be reached."""
    state = 0
    while state < automaton.n_states:
        automaton.next(state)
        state += 1
    return range(automaton.n_states)


TEXTS = ["".join(letters) for n in range(6) for letters in itertools.product("ab", repeat=n)]


@pytest.mark.parametrize("seed", range(10))
def test_accepts_what_a_brute_force_recogniser_derives(seed):
    rng, n_compiled = random.Random(seed), 0
    for _ in range(40):
        text = random_grammar(rng)
        rules = read_grammar(text)
        try:
            automaton = GrammarAutomaton(text)
        except UsageProblem as problem:
            name = re.search("rule '(.*?)'", problem.message)[1]
            endless = "never comes to an end" in problem.message
            assert endless or "left-recursive" in problem.message, text
            assert not (endless and any(derives(rules, t, name) for t in TEXTS)), text
            continue
        n_compiled += 1
        derived = [t for t in TEXTS if derives(rules, t)]
        assert [t for t in TEXTS if matches(automaton, t.encode())] == derived, text
        for prefix in TEXTS[:31]:  # up to four letters: can it go on, and how soon may it end?
            state, longer = run(automaton, prefix.encode()), [t for t in derived if t.startswith(prefix)]
            if state == DEAD:
                assert not longer, text
            else:
                whole = prefix + shortest_completion(automaton, state).decode()
                assert derives(rules, whole) and len(whole) == min(map(len, [*longer, whole])), text
    assert n_compiled >= 15


@pytest.mark.parametrize(
    "grammar",
    [
        pytest.param('root ::= ("(" root ")" | "[" root "]" | "<" root ">")*', id="dyck"),
        pytest.param('root ::= "[" root "]" | "=" (item ";" | "zzzzz")\nitem ::= "i"', id="short-ways-need-frames"),
        pytest.param('root ::= "a" root "x" | "a" root "yy" | "a" root root | ""', id="ambiguous"),
        pytest.param(
            'root ::= t ("+" t)*\nt ::= f ("*" f)*\nf ::= [0-9]{2,3} ws | "(" root ")" ws\nws ::= " "*', id="sums"
        ),
        pytest.param(
            'root ::= "if" root ("else" root)? ";" | [a-c]{2} list\nlist ::= "," root ws list | ""\nws ::= " "?',
            id="if",
        ),
        pytest.param('root ::= "[" (e ("," e)*)? "]"\ne ::= root | [é-ÿΩ]+ | "12" e\n', id="utf-8"),
    ],
)
@pytest.mark.parametrize("max_frames", [2, 4])
def test_distance_is_the_length_of_the_shortest_way_and_no_state_is_dead(grammar, max_frames):
    automaton = GrammarAutomaton(grammar, max_frames=max_frames)
    states = explore(automaton)
    assert not automaton.narrowed
    before = {state: set() for state in states}
    for state in states:
        for following in set(automaton.next(state).tolist()) - {DEAD}:
            before[following].add(state)
    found = {state: 0 for state in states if automaton.accepts(state)}
    reached = list(found)
    for state in reached:
        for earlier in before[state] - found.keys():
            found[earlier] = found[state] + 1
            reached.append(earlier)
    assert found == {state: automaton.distance(state) for state in states}


@pytest.mark.parametrize("max_frames", [0, 1, 3])
def test_brackets_nest_up_to_the_bound_and_no_deeper(max_frames):
    automaton = GrammarAutomaton('root ::= ("(" root ")")*', max_frames=max_frames)
    assert automaton.n_states == 1
    for n in range(6):
        assert matches(automaton, b"(" * n + b")" * n + b"()" * min(1, max_frames)) == (n <= max_frames)
    assert len(explore(automaton)) == max_frames + 1


def test_a_state_is_the_set_of_stacks_and_not_the_way_to_it():
    automaton = GrammarAutomaton(JSON)
    assert run(automaton, b'{"a": [1, ') == run(automaton, '{ "é" :[true,[[]], '.encode()) != run(automaton, b"[[1, ")
    sums = GrammarAutomaton('root ::= "a" root "x" | "a" root "y" | "b"')
    assert sums.accepts(run(sums, b"a" * 30 + b"b" + b"xy" * 15))
    assert sums.n_states == 32 + 31, "the depths before b, one of them ahead, and after b; not 2^30 stacks"


def test_calls_at_the_end_of_a_rule_need_no_frame():
    automaton = GrammarAutomaton('root ::= "x" | "x" "," root', max_frames=0)
    assert matches(automaton, b"x," * 5000 + b"x") and not matches(automaton, b"x," * 5000)
    assert automaton.n_states == 2
    nested = GrammarAutomaton('root ::= "x" root " "? | ""', max_frames=5)
    assert matches(nested, b"x" * 5 + b"  ") and not matches(nested, b"x" * 6)


def test_left_recursion_of_a_rule_to_itself_is_rewritten():
    automaton = GrammarAutomaton("root ::= root [-+] t | root | t\nt ::= t [*/] [0-9] | [0-9]", max_frames=2)
    for text, accepted in {"1": 1, "1+2*3-4": 1, "1*2*3*4*5*6*7*8*9+0": 1, "1+": 0, "+1": 0, "12": 0, "": 0}.items():
        assert matches(automaton, text.encode()) == bool(accepted)


@pytest.mark.parametrize(
    "body", ['("")* "a"', '((""*)*)+ "a"', 'n* "a"', '(n | n n)+ m "a"', '(n? "a" n?){1}', '(m "a")? "a"{1}']
)
def test_repetitions_of_nothing_come_to_an_end(body):
    automaton = GrammarAutomaton(f'root ::= {body}\nn ::= "b"* | ""\nm ::= | ""')
    assert matches(automaton, b"a") and automaton.distance(automaton.start) == 1
    assert not matches(automaton, b"")


@pytest.mark.parametrize("class_", ["[^a]", "[α-ωé]", r"[\u0800-\uFFFF]", r"[^\x00-\U000FFFFF]", ".", r"[\]-]"])
def test_classes_read_whole_characters_in_utf8_and_nothing_else(class_):
    automaton, rng = GrammarAutomaton(f"root ::= {class_}"), random.Random(0)
    pattern = re.compile(class_, re.DOTALL)
    edges = [0, 0x61, 0x7F, 0x80, 0x7FF, 0x800, 0xD7FF, 0xE000, 0xFFFF, 0x10000, 0xFFFFF, 0x100000, 0x10FFFF]
    for code in [*edges, *range(0x2D, 0x80), *range(0x380, 0x400), *rng.sample(range(0xE000, 0x110000), 300)]:
        assert matches(automaton, chr(code).encode()) == bool(pattern.fullmatch(chr(code))), hex(code)
    for wrong in (b"\x80", b"\xc0\x80", b"\xe0\x80\x80", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xff", b"bb"):
        assert not matches(automaton, wrong)


def random_value(rng, depth):
    kind = rng.randrange(7 if depth else 5)
    if kind < 2:
        return rng.choice([rng.randrange(-99, 99), rng.random() * 10.0 ** rng.randrange(-30, 30), True, False, None])
    if kind < 5:
        return "".join(chr(rng.choice([rng.randrange(128), rng.randrange(0xE000, 0x110000)])) for _ in range(3))
    values = [random_value(rng, depth - 1) for _ in range(rng.randrange(4))]
    return values if kind == 5 else {str(n) + '"': value for n, value in enumerate(values)}


def test_json_is_accepted_as_python_writes_it():
    automaton, rng = GrammarAutomaton(JSON), random.Random(0)
    for _ in range(400):
        indent, ascii_only = rng.choice([None, 0, 2]), rng.random() < 0.5
        text = json.dumps(random_value(rng, 5), indent=indent, ensure_ascii=ascii_only)
        assert matches(automaton, text.encode())
        assert not matches(automaton, text.encode() + b"]")
    assert automaton.n_states < 2000
    for depth, accepted in ((31, True), (34, False)):
        assert matches(automaton, b'{"a":' * depth + b"1" + b"}" * depth) == accepted


@pytest.mark.parametrize("seed", range(4))
def test_every_text_walked_through_the_automaton_is_json(seed):
    automaton, rng = GrammarAutomaton(JSON), random.Random(seed)
    for _ in range(50):
        json.loads(random_text(automaton, rng, rng.randrange(60)))


@pytest.mark.parametrize("seed", range(4))
def test_every_text_walked_through_the_automaton_is_python(seed):
    automaton, rng = GrammarAutomaton(PYTHON_EXPRESSION), random.Random(seed)
    for _ in range(40):
        ast.parse(random_text(automaton, rng, rng.randrange(60)), mode="eval")


def test_python_expressions_are_accepted():
    automaton = GrammarAutomaton(PYTHON_EXPRESSION)
    for text in (
        "v1 + v2",
        "v1+v2*(v3-4)//5",
        "{v1: [1, 2], v2: lambda v3: v3**-2}",
        "v(v.v_x[1:], (v for v in (v2))) < 3",
    ):
        ast.parse(text, mode="eval")
        assert matches(automaton, text.replace(" + ", "+").encode()), text
    assert not matches(automaton, b"v1+*v2") and not matches(automaton, b"(v1")


def test_ten_thousand_random_bytes_reach_few_states():
    automaton, rng = GrammarAutomaton(JSON), random.Random(0)
    state, depths = automaton.start, set()
    for _ in range(10_000):
        row = automaton.next(state)
        live = (row != DEAD).nonzero()[0].tolist()
        structure = [b for b in b'[[[{{{]}",:' if row[b] != DEAD]
        state = int(row[rng.choice(structure if structure and rng.random() < 0.7 else live)])
        state = automaton.start if automaton.accepts(state) else state
        depths.add(automaton.distance(state))
    assert max(depths) > 20 and automaton.n_states < 10_000 and not automaton.narrowed


def test_gaps_narrow_the_automaton_before_its_states_run_out():
    automaton = GrammarAutomaton(JSON, max_states=2000)
    states = explore(automaton)
    assert automaton.narrowed and len(states) < 2000
    rng = random.Random(0)
    for _ in range(30):
        json.loads(random_text(automaton, rng, 40))
    assert all(automaton.distance(state) == len(shortest_completion(automaton, state)) for state in states)
    assert not automaton.fresh().narrowed and automaton.fresh().network is automaton.network


def test_running_out_of_states_is_an_error_each_time():
    automaton = GrammarAutomaton('root ::= "ab"', max_states=2)
    state = automaton.next(automaton.start)[ord("a")]
    for _ in range(2):
        with pytest.raises(JobError, match="more than 2 states") as caught:
            automaton.next(state)
        assert caught.value.code == "E-MEM"


def test_too_many_readings_of_the_same_bytes_are_refused():
    readings = "root ::= " + "a? " * 3000 + '\na ::= "x" | "x" a "y"'
    with pytest.raises(UsageProblem, match="all readings of the same bytes"):
        GrammarAutomaton(readings)
    later = GrammarAutomaton("root ::= [0-9]{3} (" + "a? " * 3000 + ')\na ::= "x" | "x" a "y"')
    assert later.distance(later.start) == 3
    with pytest.raises(JobError, match="all readings of the same bytes"):
        run(later, b"123")
