"""The byte-level BPE vocabulary of the reference models: digits apart, names and made-up words one token each."""

from __future__ import annotations

import random

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from dlm_edge.evaluation.tasks import NAMES, SHORT_TASKS, WORDS

EOS, MASK = "<|endoftext|>", "<|mask|>"
SPLIT = r"\d| ?[A-Za-z_]+| ?[^\sA-Za-z_\d]+|\s+(?!\S)|\s+"


def train_tokenizer(texts: list[str], vocab_size: int = 2048) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    rng = random.Random(0)
    tasks = [s.prompt + s.answer for f in SHORT_TASKS.values() for s in (f(rng) for _ in range(4000))]
    # Often enough that the merges of these words come before those of ordinary text.
    single = [" " + " ".join(WORDS + NAMES)] * 6000
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[EOS, MASK],
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator([t[:60000] for t in texts] + tasks + single, trainer)
    for word in WORDS + NAMES:
        if len(tokenizer.encode(" " + word).ids) != 1:
            raise SystemExit(f"{word!r} is not one token; raise the vocabulary size")
    return tokenizer
