"""The notation of grammars: what is read, and what is refused where."""

from __future__ import annotations

import pytest

from dlm_edge.errors import UsageProblem
from dlm_edge.runtime.constraints.grammar import GrammarAutomaton
from dlm_edge.runtime.constraints.grammar_text import Choice, Reference, Repeat, Sequence, read_grammar
from dlm_edge.runtime.constraints.syntax_tree import Chars, Literal

A, B = Literal("a"), Literal("b")


@pytest.mark.parametrize(
    ("body", "expression"),
    [
        ('"a"', A),
        ('("a")', A),
        ("", Sequence(())),
        ('"a" "b"', Sequence((A, B))),
        ('"a" | "b" |', Choice((A, B, Sequence(())))),
        ('"a" |\n  "b"\n | root', Choice((A, B, Reference("root", 24)))),
        ('"a"* "b"+', Sequence((Repeat(A, 0, None), Repeat(B, 1, None)))),
        ('"a" ? # one } or none\n"b"{2}', Sequence((Repeat(A, 0, 1), Repeat(B, 2, 2)))),
        ('"a"{3,}{ 0 , 4 }', Repeat(Repeat(A, 3, None), 0, 4)),
        (r'"\x41\u00e9\U0001F600\n\r\t\\\"\[\]é#"', Literal('Aé😀\n\r\t\\"[]é#')),
        (r"[a-cx\]\-\\]", Chars(((45, 45), (92, 93), (97, 99), (120, 120)))),
        ("[-a]", Chars(((45, 45), (97, 97)))),
        ("[a-]", Chars(((45, 45), (97, 97)))),
        ("[a^]", Chars(((94, 94), (97, 97)))),
        ("[^b-\U0010ffff]", Chars(((0, 97),))),
        (".", Chars(((0, 0xD7FF), (0xE000, 0x10FFFF)))),
        ("[ca-bd]", Chars(((97, 100),))),
    ],
)
def test_a_rule_is_read(body, expression):
    assert read_grammar(f"root ::= {body}")["root"].expression == expression


def test_rules_end_where_the_next_begins():
    rules = read_grammar('# first\nroot::=a_1 B-2\n\n a_1 ::= "x"  B-2 ::= "y" # last')
    assert list(rules) == ["root", "a_1", "B-2"]
    assert rules["root"].expression == Sequence((Reference("a_1", 15), Reference("B-2", 19)))


REFUSED = [
    ("", "no rule 'root'"),
    ('a ::= "x"', "no rule 'root'"),
    ('root = "x"', "line 1, column 1: found 'root = \"x\"', not a rule"),
    ('root ::= "a"\nroot ::= "b"', "line 2, column 1: rule 'root' is defined twice"),
    ('root ::= "a" |\n  b', "line 2, column 3: rule 'b' is not defined"),
    ('root ::= ("a"\nb ::= "x"', "line 1, column 10: this group is not closed"),
    ('root ::= "a")', "line 1, column 13: unexpected ')'"),
    ('root ::= * "a"', "line 1, column 10: unexpected '*'"),
    ('root ::= "a"\n | "b" &', "line 2, column 8: unexpected '&'"),
    ('root ::= "abc\n"', 'column 10: " is not closed on this line'),
    ("root ::= [abc", "column 10: [ is not closed on this line"),
    ("root ::= [a-", "column 10: [ is not closed on this line"),
    ("root ::= []", "column 10: [] has no character"),
    (r"root ::= [^\x00-\U0010FFFF]", "-\\U0010FFFF] has no character"),
    ("root ::= [xz-a]", "column 12: the range z-a runs backwards"),
    (r'root ::= "a\q"', "column 12: unknown escape"),
    (r'root ::= "\x4"', r"column 11: \x needs 2 hexadecimal digits"),
    (r'root ::= "\uD800"', "column 11: U+D800 is no character"),
    (r'root ::= "\U00110000"', "column 11: U+110000 is no character"),
    ('root ::= "\ud800"', "column 11: U+D800 is no character"),
    ("root ::= <think>", "column 10: unexpected '<'"),
    ("root ::= !<[7]>", "column 10: unexpected '!'"),
    ('root ::= "a"{,2}', "column 13: this is not {m}, {m,} or {m,n}"),
    ('root ::= "a"{2,1}', "column 13: {2,1} ends below its beginning"),
    ('root ::= "a"{1,1000000}', "column 13: {1,1000000} repeats more than 10000 times"),
    pytest.param('root ::= "a"{' + "9" * 100_000 + "}", "999 repeats more than 10000", id="digits"),
    pytest.param('root ::= "a"' + "*" * 5000, "column 113: more than 100 repetitions of repetitions", id="stars"),
    pytest.param("root ::= " + "(" * 5000, "column 110: groups nested more than 100 deep", id="groups"),
    pytest.param("#" * 300_000, "300000 characters", id="characters"),
    ('root ::= "a" b\nb ::= "x" b', "line 2, column 1: rule 'b' never comes to an end"),
    ("root ::= root", "rule 'root' never comes to an end"),
    ('root ::= a | "x"\na ::= root "y"', "line 2, column 1: rule 'a' is left-recursive"),
    ('root ::= a | "x"\na ::= b\nb ::= a | "y"', "line 2, column 1: rule 'a' is left-recursive"),
    ('root ::= "x" a\na ::= n a "x" | "y"\nn ::= "b"?', "line 2, column 1: rule 'a' is left-recursive"),
    ('root ::= ("a"? root "b")? "c"', "rule 'root' is left-recursive"),
    ('root ::= ("" {10000} ""){10000}', "rule 'root' the grammar needs more than 200000 steps"),
    (
        'root ::= a\na ::= (("a"{1000}){1000}){1000}',
        "line 2, column 1: with rule 'a' the grammar needs more than 20000",
    ),
    pytest.param("root ::= " + "|".join(f'"{n}"' for n in range(20_000)), "more than 20000 items", id="alternatives"),
    pytest.param("root ::= [" + "".join(chr(0x4E00 + 2 * n) for n in range(9000)) + "]{99}", "needs more", id="class"),
    pytest.param(
        "root ::= r0\n" + "".join(f'r{n} ::= "(" r{n + 1} ")"\n' for n in range(40)) + 'r40 ::= "x"',
        "needs more than 32 rules open at once",
        id="nesting",
    ),
    pytest.param("".join(f"r{n}::=\n" for n in range(22_000)) + "root ::=", "more than 20000 items", id="rules"),
]


@pytest.mark.parametrize(("text", "message"), REFUSED)
def test_what_cannot_be_a_constraint_is_refused(text, message):
    with pytest.raises(UsageProblem) as caught:
        GrammarAutomaton(text)
    assert caught.value.code == "E-PARAM" and message in caught.value.message and len(str(caught.value)) < 300


def test_a_long_list_of_words_is_no_problem():
    words = [f"word-{n * n}" for n in range(2500)]
    automaton = GrammarAutomaton("root ::= " + " | ".join(f'"{word}"' for word in words))
    assert automaton.distance(automaton.start) == len("word-0")
