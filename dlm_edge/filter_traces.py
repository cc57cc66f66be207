"""What the filter of learn2pd learns from: `static` decodes prompts, and every step shows confidences beside predictions.

A prediction was right when it is the token that the slot ends with. Confidences are shown as the sampler will show them:
1 for filled slots, 0 for masked ones without scores; right of a committed end of text there are none any more.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from dlm_edge.evaluation.text import python_sources
from dlm_edge.runtime.decode_settings import DecodeSettings
from dlm_edge.runtime.denoise import Progress, denoise
from dlm_edge.runtime.engine import Engine
from dlm_edge.runtime.opening import Parts
from dlm_edge.runtime.request import prepare
from dlm_edge.runtime.samplers import SAMPLERS, Commits, SamplerOptions, SelectState
from dlm_edge.runtime.samplers.learn2pd import block_confidence
from dlm_edge.runtime.scores import Scores
from dlm_edge.runtime.settings import OF_THE_SAMPLER
from dlm_edge.tuning.prompts import Question

STATIC = SAMPLERS["static"]
TEXT_TOKENS, TEXT_NEW_TOKENS = 64, 48  # of a piece of training text, and of its continuation


@dataclass(frozen=True, slots=True)
class Traces:
    """One row per step of `static`. Answers are known where `is_scored`."""

    confidence: NDArray[np.float64]  # [n_steps, block_length]
    is_scored: NDArray[np.bool_]  # [n_steps, block_length]
    is_right: NDArray[np.bool_]  # [n_steps, block_length]
    prompt: NDArray[np.int64]  # [n_steps] which prompt it was

    @property
    def n_slots(self) -> int:
        return int(self.is_scored.sum())

    def of_prompts(self, prompts: NDArray[np.int64]) -> Traces:
        rows = np.isin(self.prompt, prompts)
        return Traces(self.confidence[rows], self.is_scored[rows], self.is_right[rows], self.prompt[rows])


def record_traces(
    engine: Engine, questions: Sequence[Question], *, raw: Sequence[Question] = (), say: Callable[[str], None]
) -> Traces:
    """`raw`: questions without the chat template. Raises what a request raises."""
    defaults = {k: v for k, v in engine.parts.sampler_defaults.items() if k not in ("sampler", *OF_THE_SAMPLER)}
    parts = replace(engine.parts, sampler_defaults=defaults)
    every = [(question, False) for question in questions] + [(question, True) for question in raw]
    rows: list[tuple[NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_]]] = []
    owners: list[int] = []
    for number, (question, is_raw) in enumerate(every):
        if number % 20 == 0:
            say(f"decoding  prompt {number + 1} of {len(every)}, {len(rows)} steps so far")
        settings = {"sampler": "static", "max_new_tokens": question.max_new_tokens}
        request = prepare(parts, engine.encode(question.prompt, raw=is_raw), settings)
        found = trace(parts, request.ids, request.settings)
        rows += found
        owners += [number] * len(found)
    length = parts.spec.conventions.block_length
    columns = [np.array([row[i] for row in rows]).reshape(len(rows), length) for i in range(3)]
    return Traces(columns[0], columns[1], columns[2], np.array(owners, np.int64))


def trace(
    parts: Parts, ids: list[int], settings: DecodeSettings
) -> list[tuple[NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_]]]:
    """Confidence, is_scored and is_right [block_length] of every step of one decode."""
    seen: list[tuple[int, NDArray[np.float64], Scores]] = []  # block start, confidences, the scores shown
    canvas = [np.empty(0, np.int64)]

    def select(scores: Scores, state: SelectState, options: SamplerOptions) -> Commits:
        shown = scores.of(scores.positions[scores.positions < first_stop(state, settings.stop_ids)])
        if shown.positions.size:
            seen.append((state.block[0], block_confidence(shown, state), replace(shown, logits=())))
        return STATIC.select(scores, state, options)

    def on_step(progress: Progress) -> None:
        canvas[0] = progress.canvas.ids.copy()

    denoise(parts.model, parts.spec.conventions, ids, settings, replace(STATIC, select=select), on_step)
    return [answered(start, confidence, scores, canvas[0]) for start, confidence, scores in seen]


def answered(
    start: int, confidence: NDArray[np.float64], scores: Scores, final: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_]]:
    slots = scores.positions - start
    is_scored, is_right = np.zeros(len(confidence), bool), np.zeros(len(confidence), bool)
    is_scored[slots] = True
    is_right[slots] = final[scores.positions] == scores.ids
    return confidence, is_scored, is_right


def first_stop(state: SelectState, stop_ids: Sequence[int]) -> int:
    """Where the text ends by what is committed in this block; beyond the block where it does not."""
    canvas, (start, end) = state.canvas, state.block
    written = canvas.generated(start, min(end, canvas.prompt_len + canvas.gen_len))
    stops = written[np.isin(canvas.ids[written], list(stop_ids))]
    return int(stops[0]) if stops.size else end


def training_text(engine: Engine, count: int, seed: int) -> list[Question]:
    """Beginnings of `count` pieces of the text that the reference models were trained on, to be continued."""
    texts, rng = python_sources(held_out=False), np.random.default_rng([seed, 1])
    questions = []
    for index in rng.permutation(len(texts))[:count].tolist():
        ids = engine.parts.codec.encode_text(texts[index][: 8 * TEXT_TOKENS])[:TEXT_TOKENS]
        questions.append(Question(engine.parts.codec.decode(ids), TEXT_NEW_TOKENS))
    return questions
