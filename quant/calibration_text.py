"""Texts for calibration: the shipped mix of Python sources and task samples, or a file of the user's."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from dlm_edge.errors import InputFileError
from dlm_edge.evaluation.tasks import SHORT_TASKS, make_samples
from dlm_edge.evaluation.text import python_sources
from dlm_edge.families.spec import ModelSpec
from dlm_edge.quant.calibration_files import read_entries
from dlm_edge.quant.state_batch import Row

WINDOW = 256  # tokens of a row of running text
ROW_UNIT = 16  # rows of full-attention families are filled up to a multiple of this, so that few lengths remain
TASK_SHARE = 0.4  # of the tokens of the shipped mix
TASK_SEED = 1_000_000_000  # evaluation seeds are small numbers
MAX_REPEATS = 8  # passes over the same rows with other masks, when there is little text

# messages -> text in the model's chat format, up to where the assistant answers
Render = Callable[[list[dict[str, str]]], str]


@dataclass(frozen=True, slots=True)
class CalibrationRows:
    rows: list[Row]
    source: str  # "default", or the name of the file
    sha256: str  # of the token ids: the same text in another vocabulary is other data
    duplicates: int = 0
    left_out: int = 0  # rows that the tokens asked for did not need


class RowCutter:
    """Token ids to rows: cut into windows, closed by EOS where a text ends, filled up to whole blocks."""

    def __init__(self, spec: ModelSpec) -> None:
        conventions = spec.conventions
        self.unit = conventions.block_length if conventions.attention == "block_causal" else ROW_UNIT
        self.unit = min(self.unit, spec.max_positions)
        self.window = max(self.unit, min(WINDOW, spec.max_positions) // self.unit * self.unit)
        self.eos_id = conventions.eos_id

    def cut(self, ids: list[int], n_prompt: int = 0) -> Iterator[Row]:
        for start in range(0, len(ids), self.window):
            part, prompt = ids[start : start + self.window], max(0, n_prompt - start)
            if prompt >= len(part):
                continue  # nothing in it could be hidden
            if len(part) < self.unit and start > 0:
                continue  # a tail too short to be a text
            fill = -len(part) % self.unit
            yield Row((*part, *[self.eos_id] * fill), prompt, len(part))

    def whole(self, prompt: list[int], answer: list[int]) -> Iterator[Row]:
        yield from self.cut([*prompt, *answer, self.eos_id], len(prompt))


def default_rows(tokenizer: Tokenizer, spec: ModelSpec, n_tokens: int, seed: int) -> CalibrationRows:
    """About `n_tokens` tokens of task samples and of windows at random places of Python's standard library."""
    cutter, rng = RowCutter(spec), random.Random(f"calibration/{seed}")
    rows = list(_task_rows(tokenizer, cutter, int(n_tokens * TASK_SHARE), seed))
    texts, count = python_sources(held_out=False), sum(len(row.ids) for row in rows)
    while count < n_tokens:
        text = rng.choice(texts)
        start = rng.randrange(max(1, len(text) - 8 * cutter.window))
        ids = encode(tokenizer, text[start : start + 8 * cutter.window])[: cutter.window]
        rows += cutter.cut(ids)
        count += len(ids)
    return _checked(rows, "default")


def _task_rows(tokenizer: Tokenizer, cutter: RowCutter, n_tokens: int, seed: int) -> Iterator[Row]:
    n_each = max(1, n_tokens // (len(SHORT_TASKS) * 48))  # a sample is 25 to 60 tokens
    for name in SHORT_TASKS:
        for sample in make_samples(name, n_each, TASK_SEED + seed):
            prompt = encode(tokenizer, sample.prompt)
            yield from cutter.whole(prompt, encode(tokenizer, sample.answer))


def read_rows(path: Path, tokenizer: Tokenizer, spec: ModelSpec, render: Render | None) -> CalibrationRows:
    """Rows of a file with running text, questions with answers, or conversations; see calibration_files.

    `render` turns messages into text with the model's chat template. Raises E-CALIB naming the line.
    """
    cutter, rows = RowCutter(spec), list[Row]()
    for where, entry in read_entries(path):
        rows += _entry_rows(entry, where, tokenizer, cutter, render)
    return _checked(rows, path.name)


def _entry_rows(
    entry: Any, where: str, tokenizer: Tokenizer, cutter: RowCutter, render: Render | None
) -> Iterator[Row]:
    match entry:
        case {"text": str(text)}:
            yield from cutter.cut(encode(tokenizer, text))
        case {"prompt": str(prompt), "answer": str(answer)}:
            yield from cutter.whole(encode(tokenizer, prompt), encode(tokenizer, answer))
        case {"messages": [*earlier, {"role": "assistant", "content": str(answer)}]}:
            if render is None:
                hint = 'use "text", or "prompt" and "answer"'
                raise InputFileError("E-CALIB", f'{where} has "messages", but the model has no chat template', hint)
            yield from cutter.whole(
                encode(tokenizer, render(checked_messages(earlier, where))), encode(tokenizer, answer)
            )
        case _:
            hint = 'each entry needs "text", "prompt" and "answer", or "messages" that end with the assistant\'s'
            raise InputFileError("E-CALIB", f"{where} has nothing to calibrate on", hint)


def checked_messages(messages: list[Any], where: str) -> list[dict[str, str]]:
    for message in messages:
        match message:
            case {"role": str(), "content": str()}:
                continue
        hint = 'each needs "role" and "content", both texts'
        raise InputFileError("E-CALIB", f"{where} has a message without a text", hint)
    return messages


def encode(tokenizer: Tokenizer, text: str) -> list[int]:
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
    return ids


def _checked(rows: list[Row], source: str) -> CalibrationRows:
    unique = list(dict.fromkeys(rows))
    if not unique:
        raise InputFileError("E-CALIB", f"{source} gives no usable rows", "give more text")
    digest = hashlib.sha256(json.dumps([(r.ids, r.n_prompt) for r in unique]).encode()).hexdigest()
    return CalibrationRows(unique, source, digest, len(rows) - len(unique))


def limited(data: CalibrationRows, n_tokens: int, seed: int) -> CalibrationRows:
    """Rows at random, in their order, until they hold `n_tokens`."""
    order = list(range(len(data.rows)))
    random.Random(f"rows/{seed}").shuffle(order)
    taken, count = list[int](), 0
    for i in order:
        if count >= n_tokens:
            break
        taken.append(i)
        count += data.rows[i].n_content
    return replace(data, rows=[data.rows[i] for i in sorted(taken)], left_out=len(order) - len(taken))


def repeats(rows: list[Row], n_tokens: int) -> int:
    """Passes over the rows to reach `n_tokens`, give or take a tenth, `MAX_REPEATS` at most: each hides other tokens."""
    count = sum(row.n_content for row in rows)
    return min(MAX_REPEATS, max(1, -(-int(0.9 * n_tokens) // count)))


def repeated(rows: list[Row], n_tokens: int) -> list[Row]:
    return rows * repeats(rows, n_tokens)
