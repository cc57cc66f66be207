"""Exact-match tasks with answers that a program can check; every sample follows from its seed.

They are what the reference models were trained on (from other seeds). A task is a function
`random.Random -> Sample`; the table at the end is the list.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass

NAMES = [
    "Ada",
    "Alan",
    "Anna",
    "Bob",
    "Carl",
    "Cleo",
    "Dan",
    "Dora",
    "Emil",
    "Emma",
    "Finn",
    "Flora",
    "Gina",
    "Hugo",
    "Ian",
    "Iris",
    "Jack",
    "Jane",
    "Kai",
    "Kim",
    "Leo",
    "Lisa",
    "Luke",
    "Mara",
    "Max",
    "Mia",
    "Nina",
    "Noah",
    "Olga",
    "Omar",
    "Paul",
    "Pia",
    "Quin",
    "Rita",
    "Rosa",
    "Sam",
    "Sara",
    "Tara",
    "Tim",
    "Tom",
    "Uma",
    "Vera",
    "Wendy",
    "Will",
    "Xena",
    "Yara",
    "Zoe",
    "Zed",
]


def _made_up_words(count: int) -> list[str]:
    syllables = [c + v for c in "bdfghjklmnprstvz" for v in "aeiou"]
    rng = random.Random(20260101)
    words = [a + b for a in syllables for b in syllables]
    return sorted(rng.sample(words, count))


WORDS = _made_up_words(512)  # keys of `find` and members of the long lists; one token each in the reference vocabulary
BRACKETS = {"(": ")", "[": "]", "{": "}"}


@dataclass(frozen=True, slots=True)
class Sample:
    """One question. `any_order`: the words of the answer may come in any order (shuffle)."""

    prompt: str
    answer: str
    any_order: bool = False

    def is_correct(self, text: str) -> bool:
        got, want = text.split(), self.answer.split()
        return sorted(got) == sorted(want) if self.any_order else got == want


def _list_task(verb: str, names: list[str], answer: list[str], *, any_order: bool = False) -> Sample:
    return Sample(f"{verb}: {' '.join(names)} =>", " " + " ".join(answer), any_order)


def _short(rng: random.Random) -> list[str]:
    return rng.sample(NAMES, rng.randint(3, 8))


def copy(rng: random.Random) -> Sample:
    names = _short(rng)
    return _list_task("copy", names, names)


def reverse(rng: random.Random) -> Sample:
    names = _short(rng)
    return _list_task("reverse", names, names[::-1])


def sort(rng: random.Random) -> Sample:
    names = _short(rng)
    return _list_task("sort", names, sorted(names))


def shuffle(rng: random.Random) -> Sample:
    names = _short(rng)
    return _list_task("shuffle", names, rng.sample(names, len(names)), any_order=True)


def close(rng: random.Random) -> Sample:
    """Brackets that are still open at the end, to be closed from the inside out."""
    while True:
        text: list[str] = []
        still_open: list[str] = []
        for _ in range(rng.randint(4, 14)):
            if still_open and rng.random() < 0.3:
                text.append(BRACKETS[still_open.pop()])
            else:
                still_open.append(rng.choice("([{"))
                text.append(still_open[-1])
        if still_open:
            answer = " ".join(BRACKETS[b] for b in reversed(still_open))
            return Sample(f"close: {' '.join(text)} =>", " " + answer)


def json_object(rng: random.Random) -> Sample:
    fields = {name: rng.randint(0, 99) for name in rng.sample(NAMES, rng.randint(2, 3))}
    listed = " ".join(f"{name} {value}" for name, value in fields.items())
    return Sample(f"json: {listed} =>", " " + json.dumps(fields))


def copy_long(rng: random.Random, n_names: int = 64) -> Sample:
    names = rng.sample(WORDS, n_names)
    return _list_task("copy", names, names)


def reverse_long(rng: random.Random, n_names: int = 64) -> Sample:
    names = rng.sample(WORDS, n_names)
    return _list_task("reverse", names, names[::-1])


def find(rng: random.Random, n_records: int = 120) -> Sample:
    """Key-value retrieval: `n_records` pairs of one token each, one question; about 2 * n_records + 5 tokens."""
    keys = rng.sample(WORDS, n_records)
    records = [(key, rng.choice(NAMES)) for key in keys]
    key, value = rng.choice(records)
    return Sample(f"find: {' '.join(f'{k} {v}' for k, v in records)} ? {key}", f" {value}")


def _with(task: Callable[[random.Random, int], Sample], size: int) -> Callable[[random.Random], Sample]:
    return lambda rng: task(rng, size)


SHORT_TASKS: dict[str, Callable[[random.Random], Sample]] = {
    "copy": copy,
    "reverse": reverse,
    "sort": sort,
    "shuffle": shuffle,
    "close": close,
    "json": json_object,
}
LONG_TASKS: dict[str, Callable[[random.Random], Sample]] = {
    "copy_64": _with(copy_long, 64),
    "copy_512": _with(copy_long, 512),
    "reverse_64": _with(reverse_long, 64),
    "find_256": _with(find, 125),  # the number is the context in tokens of the reference vocabulary
    "find_512": _with(find, 253),
    "find_1024": _with(find, 509),
}
TASKS = {**SHORT_TASKS, **LONG_TASKS}


def make_samples(name: str, count: int, seed: int) -> list[Sample]:
    """`count` samples of one task; the first n of a larger set are the set of n."""
    rng = random.Random(f"{name}/{seed}")
    return [TASKS[name](rng) for _ in range(count)]
