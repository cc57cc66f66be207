"""Tokens as bytes, exactly as tokenizers decode them, and the trie of all of them."""

from __future__ import annotations

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models

from dlm_edge.errors import InputFileError
from dlm_edge.runtime.constraints.automaton import DEAD, run
from dlm_edge.runtime.constraints.regex import compile_regex
from dlm_edge.runtime.constraints.spelling import Spelling
from dlm_edge.runtime.constraints.token_edges import TokenEdges
from dlm_edge.runtime.constraints.vocabulary import Vocabulary
from tests.runtime.constraints.texts import TINY, TINY_SIZE, tiny_vocabulary
from tests.tiny import make_tokenizer


def llama_like(strip=True):
    pieces = ["<unk>", "<s>", *(f"<0x{b:02X}>" for b in range(256)), "\u2581a", "a", "\u2581\u2581", "é", "b\u2581c"]
    tokenizer = Tokenizer(models.BPE({p: i for i, p in enumerate(pieces)}, [], byte_fallback=True, unk_token="<unk>"))
    tokenizer.add_special_tokens([AddedToken("<unk>"), AddedToken("<s>")])
    chain = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence(chain + [decoders.Strip(" ", 1, 0)] * strip)
    return tokenizer


@pytest.mark.parametrize("tokenizer", [make_tokenizer(), llama_like(), llama_like(strip=False)])
def test_bytes_are_what_the_tokenizer_decodes(tokenizer):
    vocabulary = Vocabulary.of_tokenizer(tokenizer)
    rng = np.random.default_rng(0)
    ids = sorted(vocabulary.bytes_of)
    for _ in range(200):
        some = rng.choice(ids, 5).tolist()
        data = b"".join(vocabulary.bytes_of[i] for i in some)
        try:
            expected = data.decode()
        except UnicodeDecodeError:
            continue
        expected = expected.removeprefix(" ") if vocabulary.drops_leading_space else expected
        assert tokenizer.decode(some) == expected


def test_special_and_added_tokens_are_no_text():
    tokenizer = make_tokenizer()
    tokenizer.add_tokens(["<tool>"])
    vocabulary = Vocabulary.of_tokenizer(tokenizer, forbidden=[tokenizer.token_to_id("a")])
    assert not set(tokenizer.get_added_tokens_decoder()) & set(vocabulary.bytes_of)
    assert tokenizer.token_to_id("a") not in vocabulary.bytes_of


def test_a_decoder_that_is_not_known_to_the_byte_is_refused():
    tokenizer = llama_like()
    tokenizer.decoder = decoders.WordPiece()
    with pytest.raises(InputFileError, match="WordPiece"):
        Vocabulary.of_tokenizer(tokenizer)
    tokenizer.decoder = None
    with pytest.raises(InputFileError, match="none"):
        Vocabulary.of_tokenizer(tokenizer)


@pytest.mark.parametrize("pattern", ["(ab|ba)*c?", "[a-c]{0,3}", "a+b", ".*"])
def test_edges_are_where_the_bytes_lead(pattern):
    automaton, vocabulary = compile_regex(pattern), tiny_vocabulary()
    edges = TokenEdges(automaton, vocabulary)
    for state in range(3):
        found = edges.next_states(state, TINY_SIZE) if state < len(automaton._sets) else []
        for token, after in enumerate(found):
            expected = run(automaton, TINY[token], state) if token in TINY else DEAD
            assert after == expected
            assert edges.step(np.array([state], np.int32), token)[0] == expected
        for partition in [edges.edges(state).partition] if len(found) else []:
            groups = [partition.group(i) for i in range(len(partition.starts))]
            assert all((np.diff(group) > 0).all() for group in groups)
            assert [g[0] for g in groups] == sorted(g[0] for g in groups)


def test_states_that_only_count_share_their_partition():
    automaton = compile_regex("[a-c]{0,40}")
    edges = TokenEdges(automaton, tiny_vocabulary())
    states = [run(automaton, b"a" * n) for n in range(30)]
    edges.find(np.array(states, np.int32))
    assert len({id(edges.edges(s).partition) for s in states}) == 1
    assert len({edges.edges(s).targets.tobytes() for s in states}) == 30


def test_what_was_kept_is_forgotten_when_it_is_too_much():
    edges = TokenEdges(compile_regex("[a-c]*"), tiny_vocabulary(), max_bytes=10)
    before = edges.next_states(0, TINY_SIZE)
    assert edges.forget_if_large() and not edges.forget_if_large()
    assert np.array_equal(before, edges.next_states(0, TINY_SIZE))


@pytest.mark.parametrize(("pattern", "n_tokens"), [("a", 1), ("aab", 1), ("aabab", 2), ("c{7}", 7), ("(ab){3}|b", 1)])
def test_spelling_is_short_and_kept_step_by_step(pattern, n_tokens):
    automaton = compile_regex(pattern)
    spelling = Spelling(automaton, tiny_vocabulary())
    state, written = automaton.start, b""
    assert spelling.n_tokens(state) == n_tokens
    for left in range(n_tokens, 0, -1):
        assert spelling.n_tokens(state) == left
        token, state = spelling.next_token(state)
        written += TINY[token]
    assert automaton.accepts(state) and run(automaton, written) == state


def test_a_vocabulary_without_a_byte_cannot_spell():
    assert Spelling(compile_regex("ad"), tiny_vocabulary()).n_tokens(0) == float("inf")
