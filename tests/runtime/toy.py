"""A deterministic stand-in for a network: hash-based logits of (visible tokens, position), with real K/V semantics.

Two layers, so that the stored value of a position depends on what that position saw: reusing a value that was
stored with masks in view changes the logits, exactly as it would in a transformer. All arithmetic is on
integers, so "equal" means bit for bit.
"""

from __future__ import annotations

import numpy as np

from dlm_edge.families.spec import Conventions
from dlm_edge.runtime.step_model import Terminated

VOCAB, MASK, EOS = 40, 37, 38
U = np.uint64


def mix(x):
    """splitmix64, vectorized."""
    with np.errstate(over="ignore"):
        x = np.asarray(x, U) + U(0x9E3779B97F4A7C15)
        x = (x ^ (x >> U(30))) * U(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> U(27))) * U(0x94D049BB133111EB)
        return x ^ (x >> U(31))


def pair(a, b):
    with np.errstate(over="ignore"):
        return mix(np.asarray(a, U) * U(0x100000001B3) ^ np.asarray(b, U))


class ToyModel:
    """StepModel over hashes. `forbid` lists ids that are never the best; `runs` records every window; tokens more than
    `radius` away are seen through others in between only."""

    def __init__(self, seed=0, vocab=VOCAB, forbid=(), sharpness=6.0, radius=None):
        self.seed, self.vocab, self.forbid, self.sharpness = seed, vocab, list(forbid), sharpness
        self.radius = 1 << 30 if radius is None else radius
        self.stopped = False
        self.runs = []
        self.given = np.empty((0, vocab), np.float32)
        self.before_run = lambda index: None
        self.reset(0)

    def reset(self, capacity, attention=None, max_rows=1):
        self.layers = np.zeros((2, capacity), U)
        self.stopped = False

    def terminate(self):
        self.stopped = True

    def discard(self):
        self.layers = self.layers[:, :0]

    def store(self, start, end):
        pass

    def keep(self, ids, multiple):
        return 0

    def stored_prefix(self, ids):
        return 0

    stats = np.empty((0, 4), np.float32)
    batches_copies = True
    store_multiple = 1
    stores_floats = True

    def run(self, ids, start, cache_len, attn_block, logit_rows, policy=None, *, planes=2, stored_rows=0):
        self.before_run(len(self.runs))
        if self.stopped:
            raise Terminated
        end = start + len(ids)
        assert end <= self.layers.shape[1], "window beyond the capacity"
        assert all(0 <= row < len(ids) for row in logit_rows), "row outside the window"
        self.runs.append((start, end, cache_len, list(logit_rows)))
        positions = np.arange(start, end)
        keys = np.arange(max(cache_len, end))
        readable = (keys < cache_len) | ((keys >= start) & (keys < end))
        visible = readable & (keys < (positions[:, None] // attn_block + 1) * attn_block)
        visible &= np.abs(keys - positions[:, None]) <= self.radius
        hidden = pair(np.asarray(ids), positions + 1000 * self.seed)
        for layer in self.layers:
            layer[start:end] = hidden
            with np.errstate(over="ignore"):
                seen = np.where(visible, layer[keys], U(0)).sum(axis=1, dtype=U)
            hidden = pair(seen, hidden)
        self.given[:] = np.nan  # an array is valid until the next run only
        rows = np.asarray(logit_rows, np.int64)
        self.given = self.logits(hidden[rows], positions[rows])
        return self.given

    def run_copies(self, copies, start, cache_len, attn_block, logit_rows):
        length, logits = copies.shape[1], np.empty((len(logit_rows), self.vocab), np.float32)
        for i, ids in enumerate(copies):
            mine = logit_rows // length == i
            logits[mine] = self.run(ids, start, cache_len, attn_block, logit_rows[mine] % length)
        self.given = logits
        return logits

    def logits(self, hidden, positions):
        table = pair(hidden[:, None], np.arange(self.vocab)[None, :]) >> U(11)
        sharp = self.sharpness * (1 + (mix(hidden) >> U(62)).astype(np.float64))[:, None]
        logits = (table.astype(np.float64) / 2**53 * sharp).astype(np.float32)
        logits[:, self.forbid] -= 50
        return logits


def make_conventions(name, block=4, sub=None, **changes):
    """The four kinds of family there are: (attention, shift)."""
    kinds = {
        "full": {"attention": "full", "logit_shift": 0, "grid_origin": "prompt_end", "kv_commit_rule": "approximate"},
        "full-shift": {
            "attention": "full",
            "logit_shift": 1,
            "grid_origin": "prompt_end",
            "kv_commit_rule": "approximate",
        },
        "block": {"attention": "block_causal", "logit_shift": 0, "grid_origin": "zero", "kv_commit_rule": "extra_pass"},
        "block-shift": {
            "attention": "block_causal",
            "logit_shift": 1,
            "grid_origin": "zero",
            "kv_commit_rule": "extra_pass",
            "first_token_rule": "previous_logit",
        },
    }
    values = {
        "mask_id": MASK,
        "block_length": block,
        "sub_block_length": sub or block,
        "first_token_rule": "predicted",
        "stop_ids": (EOS,),
        "eos_id": EOS,
        "pad_id": EOS,
    }
    return Conventions(**(values | kinds[name] | changes))


FAMILIES = ("full", "full-shift", "block", "block-shift")
