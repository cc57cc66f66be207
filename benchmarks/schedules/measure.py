"""Answers of every row to the same questions: sample by sample in turns, so that a busy moment hits all of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from schedules.settings import STATIC, Row
from tokenizers import Tokenizer

from dlm_edge.evaluation.evaluate import answer_length
from dlm_edge.evaluation.tasks import make_samples
from dlm_edge.runtime import Engine


@dataclass(slots=True)
class Answers:
    """Sums over the samples of one task and seed; `right` has a 1 or a 0 for each. `seconds` of processor time."""

    right: str = ""
    forward_passes: int = 0
    steps: int = 0
    new_tokens: int = 0
    seconds: float = 0.0
    static: dict[str, float] = field(default_factory=dict)  # seconds and new_tokens of static, asked in turns with this

    def add(self, is_right: bool, result: Any, seconds: float) -> None:
        self.right += str(int(is_right))
        self.forward_passes += result.forward_passes
        self.steps += result.steps
        self.new_tokens += result.new_tokens
        self.seconds += seconds


def measure(
    engines: Mapping[str | None, Engine],
    tokenizer: Tokenizer,
    rows: Sequence[Row],
    task: str,
    count: int,
    seed: int,
    say: Callable[[str], None],
) -> dict[str, Answers]:
    """`engines` by the name of their guide."""
    found = {row.name: Answers() for row in (STATIC, *rows)}
    asked = {row.name: row for row in (STATIC, *rows)}
    block = engines[None].spec.conventions.block_length
    for number, sample in enumerate(make_samples(task, count, seed)):
        gen_len = answer_length(tokenizer, sample)
        for row in asked.values():
            engine = engines[row.guide]
            settings = row.for_length(gen_len, gen_len // block + 2)
            began = time.process_time()
            result = engine.generate(sample.prompt, max_new_tokens=gen_len, **settings)
            found[row.name].add(sample.is_correct(result.text), result, time.process_time() - began)
        if number % 20 == 19:
            say(f"{task}, seed {seed}: {number + 1} of {count}")
    static = found[STATIC.name]
    for answers in found.values():
        answers.static = {"seconds": static.seconds, "new_tokens": static.new_tokens}
    return {row.name: found[row.name] for row in rows}
