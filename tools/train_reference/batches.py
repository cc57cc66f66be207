"""Training rows: which tokens are there, which of them are answers, and what is hidden."""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch
from tokenizers import Tokenizer
from torch import Tensor

from dlm_edge.evaluation.tasks import NAMES, SHORT_TASKS, WORDS, Sample, copy_long, reverse_long

EOS_ID, MASK_ID = 0, 1
SHORT_WEIGHTS = {"copy": 1, "reverse": 2, "sort": 3, "shuffle": 1, "close": 2, "json": 3}  # how often each is drawn


@dataclass(frozen=True, slots=True)
class Rows:
    """ids and answers are [rows, length]; an answer position may be hidden and counts in the loss."""

    ids: Tensor
    answers: Tensor


def hide_in_blocks(rows: Rows, block: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Hide m ~ U{1..n} of the n answers of every block; returns (noisy ids, weights n / m on hidden positions).

    The weighted sum of cross entropies is an unbiased estimate of the order-agnostic bound, with far less
    variance than Bernoulli masking with weight 1 / t.
    """
    n_rows, length = rows.ids.shape
    answers = rows.answers.view(n_rows, length // block, block)
    n = answers.sum(-1, keepdim=True)
    m = (torch.rand(n.shape, generator=generator) * n).floor() + 1
    order = torch.rand(answers.shape, generator=generator) + (~answers) * 10.0
    hidden = (order.argsort(-1).argsort(-1) < m) & answers
    weights = torch.where(hidden, (n / m).expand_as(answers), 0.0).view(n_rows, length)
    noisy = torch.where(hidden.view(n_rows, length), MASK_ID, rows.ids)
    return noisy, weights


class RowMaker:
    """Draws rows of every kind from one seed."""

    def __init__(self, tokenizer: Tokenizer, text_ids: Tensor, block: int | None, seed: int) -> None:
        self.tokenizer, self.text_ids, self.block = tokenizer, text_ids, block
        self.rng = random.Random(seed)
        self.generator = torch.Generator().manual_seed(seed)
        self.word_ids = torch.tensor([tokenizer.token_to_id("Ġ" + w) for w in WORDS])
        self.name_ids = torch.tensor([tokenizer.token_to_id("Ġ" + n) for n in NAMES])
        self.find_ids = tokenizer.encode("find:").ids
        self.ask_ids = tokenizer.encode(" ?").ids
        # Home values are what a record holds most of the time while the look-up circuit is forming.
        self.home = self.name_ids[torch.randint(len(NAMES), (len(WORDS),), generator=torch.Generator().manual_seed(0))]

    def text(self, n_rows: int, length: int) -> Rows:
        starts = torch.randint(len(self.text_ids) - length, (n_rows,), generator=self.generator)
        ids = torch.stack([self.text_ids[s : s + length] for s in starts.tolist()])
        return Rows(ids, torch.ones_like(ids, dtype=torch.bool))

    def short(self, n_rows: int, length: int = 64) -> Rows:
        def draw() -> Sample:
            (name,) = self.rng.choices(list(SHORT_WEIGHTS), list(SHORT_WEIGHTS.values()))
            return SHORT_TASKS[name](self.rng)

        return self.questions(draw, n_rows, length)

    def long(self, n_rows: int, length: int) -> Rows:
        """Copies and reversals of up to `length` tokens, of any number of names: offsets must not be learned by heart."""

        def draw() -> Sample:
            task = copy_long if self.rng.random() < 0.7 else reverse_long
            most = min(512, (length - 8) // 2)
            return task(self.rng, self.rng.randint(most // 3, most))

        return self.questions(draw, n_rows, length)

    def questions(self, draw, n_rows: int, length: int) -> Rows:  # type: ignore[no-untyped-def]
        """Prompt, answer, EOS. With blocks the EOS up to the end of the block are answers, the rest is padding; with
        full attention (`block` None) the canvas reaches to the end of the row, and all of it is answer."""
        ids, answers = [], []
        while len(ids) < n_rows:
            sample = draw()
            prompt = self.tokenizer.encode(sample.prompt).ids
            answer = self.tokenizer.encode(sample.answer).ids + [EOS_ID]
            n = len(prompt) + len(answer)
            end = length if self.block is None else -(-n // self.block) * self.block
            if max(n, end) > length:
                continue
            ids.append(prompt + answer + [EOS_ID] * (length - n))
            answers.append([False] * len(prompt) + [True] * (end - len(prompt)) + [False] * (length - end))
        return Rows(torch.tensor(ids), torch.tensor(answers))

    def find(self, n_rows: int, n_records: int, at_home: float) -> tuple[Rows, Tensor]:
        """Rows of `find: key value ... ? key value key value ...` and which answers are NOT home values.

        Seven questions a row, or a single one ended by EOS as the task has it.
        """
        generator, total = self.generator, len(WORDS)
        n_questions = 1 if self.rng.random() < 0.5 else 7
        keys = torch.rand(n_rows, total, generator=generator).argsort(-1)[:, :n_records]
        is_home = torch.rand(n_rows, n_records, generator=generator) < at_home
        random_values = self.name_ids[torch.randint(len(NAMES), (n_rows, n_records), generator=generator)]
        values = torch.where(is_home, self.home[keys], random_values)
        asked = torch.randint(n_records, (n_rows, n_questions), generator=generator)
        records = torch.stack([self.word_ids[keys], values], -1).flatten(1)
        questions = torch.stack([self.word_ids[keys.gather(1, asked)], values.gather(1, asked)], -1).flatten(1)
        pieces = [self.repeat(self.find_ids, n_rows), records, self.repeat(self.ask_ids, n_rows), questions]
        ids = torch.cat(pieces, 1)
        first = ids.shape[1] - 2 * n_questions
        pad = -ids.shape[1] % (self.block or 16)
        ids = torch.cat([ids, torch.full((n_rows, pad), EOS_ID)], 1)
        answers = torch.zeros_like(ids, dtype=torch.bool)
        answers[:, first + 1 : first + 2 * n_questions : 2] = True
        overridden = torch.zeros_like(answers)
        overridden[:, first + 1 : first + 2 * n_questions : 2] = ~is_home.gather(1, asked)
        if n_questions == 1:
            answers[:, first + 2 :] = True
        return Rows(ids, answers), overridden

    def repeat(self, ids: list[int], n_rows: int) -> Tensor:
        return torch.tensor(ids).expand(n_rows, -1)
