"""Prompts of a sweep: the tasks in turns, and files that are read or refused by line."""

from __future__ import annotations

import pytest

from dlm_edge.errors import DlmEdgeError
from dlm_edge.evaluation.tasks import SHORT_TASKS, make_samples
from dlm_edge.tuning.prompts import read_questions, task_questions
from tests.tiny import make_tokenizer


def test_any_first_part_holds_all_tasks():
    tokenizer = make_tokenizer()
    found = task_questions(tokenizer, 3, seed=5)
    assert len(found) == 3 * len(SHORT_TASKS)
    assert [q.sample for q in found[: len(SHORT_TASKS)]] == [make_samples(name, 1, 5)[0] for name in SHORT_TASKS]
    assert found[: len(SHORT_TASKS)] == task_questions(tokenizer, 1, seed=5)
    assert all(q.max_new_tokens > len(tokenizer.encode(q.sample.answer).ids) for q in found)


def test_a_text_file_has_a_prompt_per_line(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_bytes('first\r\n\n{"not": 1}\n  third\u2028still third\n'.encode())
    found = read_questions(path, 9)
    assert [q.prompt for q in found] == ["first", '{"not": 1}', "  third\u2028still third"]
    assert all(q.max_new_tokens == 9 and q.sample is None for q in found)


def test_json_lines_may_have_answers(tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text('"one"\n{"prompt": "two\\nlines"}\n{"prompt": "2+2=", "answer": "4"}\n')
    found = read_questions(path, None)
    assert [q.prompt for q in found] == ["one", "two\nlines", "2+2="]
    assert found[1].sample is None and found[2].sample.is_correct(" 4 ") and not found[2].sample.is_correct("5")


@pytest.mark.parametrize(
    ("name", "data", "code", "place"),
    [
        ("p.txt", b"", "E-PROMPT", "p.txt"),
        ("p.txt", b"a\n\xff\n", "E-UTF8", "byte 2"),
        ("p.jsonl", b'"a"\n{', "E-JSON", "line 2"),
        ("p.jsonl", b"[" * 100_000, "E-JSON", "line 1"),
        ("p.jsonl", b"5", "E-JSON", "line 1"),
        ("p.jsonl", b'{"prompt": 5}', "E-JSON", "line 1"),
        ("p.jsonl", b'{"prompt": "a", "answers": "b"}', "E-JSON", "line 1"),
        ("p.jsonl", b'{"prompt": "a", "answer": 4}', "E-JSON", "answer"),
        ("p.jsonl", b'""', "E-PROMPT", "line 1"),
        ("folder", None, "E-FILE", "folder"),
        ("absent", ..., "E-FILE", "absent"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path, name, data, code, place):
    path = tmp_path / name
    if data is None:
        path.mkdir()
    elif data is not ...:
        path.write_bytes(data)
    with pytest.raises(DlmEdgeError) as error:
        read_questions(path, None)
    assert error.value.code == code and place in error.value.message
