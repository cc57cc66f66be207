"""Texts drawn from automata, and tiny vocabularies, for the tests of this folder."""

from __future__ import annotations

import itertools

import numpy as np

from dlm_edge.runtime.constraints.automaton import N_BYTES, run
from dlm_edge.runtime.constraints.layer import END
from dlm_edge.runtime.constraints.vocabulary import Vocabulary


def drawn_text(automaton, rng, limit=120):
    """A text that the automaton accepts; from `limit` bytes on by the shortest way. ASCII bytes are likelier."""
    state, written = automaton.start, b""
    while True:
        row = automaton.next(state)
        ways = [b for b in range(N_BYTES) if row[b] >= 0]
        if automaton.accepts(state) and (not ways or rng.random() < 0.3 or len(written) >= limit):
            return written.decode()
        if len(written) >= limit:
            ways = [b for b in ways if automaton.distance(int(row[b])) < automaton.distance(state)]
        byte = rng.choice([b for b in ways if b < 128 and rng.random() < 0.7] or ways)
        written += bytes([byte])
        state = int(row[byte])


STOPS = (0, 1)
TINY = {2: b"a", 3: b"b", 4: b"ab", 5: b"ba", 6: b"c", 7: b"aab", 8: b"a"}  # two ids spell the same
TINY_SIZE = 10  # id 9 is no text


def tiny_vocabulary():
    return Vocabulary(TINY)


def is_valid_filling(automaton, ids, start, can_end):
    """By running the bytes: the definition. `can_end(state)` for states after the last slot."""
    state = start
    for token in ids:
        if token in STOPS:
            if state != END and not automaton.accepts(state):
                return False
            state = END
            continue
        if state == END or token not in TINY:
            return False
        state = run(automaton, TINY[token], state)
        if state < 0:
            return False
    return can_end(state)


def all_fillings(automaton, committed, start, can_end):
    choices = [range(TINY_SIZE) if token < 0 else [token] for token in committed]
    return [ids for ids in itertools.product(*choices) if is_valid_filling(automaton, ids, start, can_end)]


def log_rows(rng, n_slots, size=TINY_SIZE, scale=2.0):
    logits = rng.normal(0, scale, (n_slots, size)).astype(np.float32)
    return list(logits - logits.max(axis=1, keepdims=True))
