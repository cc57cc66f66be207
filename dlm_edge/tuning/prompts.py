"""The prompts of a sweep: our seeded tasks, or a file of the user's."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer

from dlm_edge.errors import InputFileError, UsageProblem
from dlm_edge.evaluation.evaluate import answer_length
from dlm_edge.evaluation.tasks import SHORT_TASKS, Sample, make_samples

MAX_FILE_BYTES = 16 << 20


@dataclass(frozen=True, slots=True)
class Question:
    """`max_new_tokens` None: the engine's own. `sample` is None where no answer is known."""

    prompt: str
    max_new_tokens: int | None
    sample: Sample | None = None


def task_questions(tokenizer: Tokenizer, samples: int, seed: int) -> list[Question]:
    """`samples` of every short task, the tasks in turns, so that any first part holds all of them."""
    sets = [make_samples(name, samples, seed) for name in SHORT_TASKS]
    return [
        Question(sample.prompt, answer_length(tokenizer, sample), sample)
        for turn in zip(*sets, strict=True)
        for sample in turn
    ]


def read_questions(path: Path, max_new_tokens: int | None) -> list[Question]:
    """One prompt per line; of a .jsonl file a string, or an object with "prompt" and perhaps "answer".

    Raises E-FILE, E-UTF8, E-JSON and E-PROMPT with file and line.
    """
    questions = []
    for where, line in lines_of(path):
        prompt, answer = parse(where, line) if path.suffix == ".jsonl" else (line, None)
        if not prompt.strip():
            raise UsageProblem("E-PROMPT", f"{where}: the prompt is empty", "give a text")
        sample = None if answer is None else Sample(prompt, answer)
        questions.append(Question(prompt, max_new_tokens, sample))
    if not questions:
        raise UsageProblem("E-PROMPT", f"{path} holds no prompt", "write one per line")
    return questions


def lines_of(path: Path) -> Iterator[tuple[str, str]]:
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise InputFileError("E-FILE", f"{path} is larger than {MAX_FILE_BYTES} bytes", "a few prompts are plenty")
        text = path.read_text("utf-8")
    except OSError as error:
        raise InputFileError("E-FILE", f"{path}: {error.strerror}", "give a text file") from error
    except UnicodeDecodeError as error:
        raise InputFileError("E-UTF8", f"{path} is not UTF-8 at byte {error.start}", "convert it") from error
    for number, line in enumerate(text.split("\n"), 1):  # other breaks of lines may be part of a prompt
        if line.strip():
            yield f"{path}, line {number}", line.removesuffix("\r")


def parse(where: str, line: str) -> tuple[str, str | None]:
    wanted = 'write "text" or {"prompt": "text", "answer": "text"}'
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputFileError("E-JSON", f"{where} is not JSON ({error})", wanted) from error
    entry = {"prompt": value} if isinstance(value, str) else value
    if not isinstance(entry, dict) or set(entry) - {"prompt", "answer"} or not isinstance(entry.get("prompt"), str):
        raise InputFileError("E-JSON", f"{where} is no prompt", wanted)
    answer = entry.get("answer")
    if answer is not None and not isinstance(answer, str):
        raise InputFileError("E-JSON", f"{where}: the answer is no text", wanted)
    return entry["prompt"], answer
