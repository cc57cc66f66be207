"""Retrieval that takes several steps: seven records of a long prompt are asked for at once, one token a step.

`find: key value ... ? key [M] key [M] ...`: the keys of the questions stand among the masks, so every step after a
block's first reads the prompt anew, or does without, as the attention policy has it.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from tokenizers import Tokenizer

from dlm_edge.evaluation.tasks import NAMES, WORDS
from dlm_edge.families.spec import Conventions
from dlm_edge.runtime.attention import AttentionSettings
from dlm_edge.runtime.decode_settings import DecodeSettings, Stats
from dlm_edge.runtime.denoise import denoise
from dlm_edge.runtime.samplers import SAMPLERS
from dlm_edge.runtime.step_model import StepModel

QUESTIONS = 7


@dataclass(frozen=True, slots=True)
class Questions:
    prompt: list[int]
    fixed: dict[int, int]  # offsets of the asked keys -> ids
    values: dict[int, int]  # offsets of the answers -> ids


def questions(tokenizer: Tokenizer, n_records: int, count: int, seed: int = 0) -> list[Questions]:
    rng = random.Random(f"seven of {n_records}/{seed}")

    def ids(text: str) -> list[int]:
        found: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
        return found

    samples = []
    for _ in range(count):
        keys = rng.sample(WORDS, n_records)
        records = [(key, rng.choice(NAMES)) for key in keys]
        asked = rng.sample(records, QUESTIONS)
        prompt = ids("find: " + " ".join(f"{k} {v}" for k, v in records) + " ?")
        fixed = {2 * n: ids(f" {key}")[0] for n, (key, _) in enumerate(asked)}
        values = {2 * n + 1: ids(f" {value}")[0] for n, (_, value) in enumerate(asked)}
        samples.append(Questions(prompt, fixed, values))
    return samples


def cache_kind(conventions: Conventions, stores: bool) -> str:
    return "none" if not stores else "prefix" if conventions.attention == "full" else "block"


@dataclass(frozen=True, slots=True)
class Answered:
    right: int  # of QUESTIONS
    stats: Stats


def answer(
    model: StepModel,
    conventions: Conventions,
    asked: Questions,
    attention: AttentionSettings,
    threshold: float,
    *,
    stores: bool = True,
) -> Answered:
    """`threshold` above 1: one token a step. `stores`: the model has caches."""
    full = conventions.attention == "full"
    gen_len = 2 * QUESTIONS
    settings = DecodeSettings(
        gen_len=gen_len,
        block_length=gen_len if full else conventions.block_length,
        sub_block_length=gen_len if full else conventions.sub_block_length,
        options=SAMPLERS["threshold"].options(threshold=threshold),
        cache=cache_kind(conventions, stores),
        attention=attention,
        fixed=asked.fixed,
    )
    tokens, stats = denoise(model, conventions, asked.prompt, settings, SAMPLERS["threshold"])
    return Answered(sum(tokens[at] == value for at, value in asked.values.items() if at < len(tokens)), stats)
