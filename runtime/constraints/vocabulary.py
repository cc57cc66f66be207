"""Token ids as bytes: what each token adds to the text, and a trie of all of them for walks through an automaton."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dlm_edge.errors import InputFileError

Ints = NDArray[np.int32]
BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")
METASPACE = "\u2581"
N_CHECKED = 512  # tokens whose decoding is compared with what we take it to be
HINT = "use a bundle whose tokenizer is a byte-level BPE, or one with byte fallback"


class Vocabulary:
    """The tokens that text may consist of. An id without bytes here (special, added, unused) is never part of it.

    The trie has node 0 as its root; the children of a node and the tokens that end at it are runs of consecutive
    entries, and nodes are ordered by depth.
    """

    def __init__(self, tokens: Mapping[int, bytes], *, drops_leading_space: bool = False) -> None:
        """`drops_leading_space`: the decoder takes one space away at the very beginning of the text."""
        self.drops_leading_space = drops_leading_space
        spelled = sorted((data, i) for i, data in tokens.items() if data)
        self.id_of: dict[bytes, int] = {data: i for data, i in reversed(spelled)}  # the lowest id of each spelling
        self.bytes_of: dict[int, bytes] = {i: data for data, i in spelled}
        self.n_tokens = len(spelled)
        self.longest = max((len(data) for data, _ in spelled), default=0)
        self._build_trie([data for data, _ in spelled], [i for _, i in spelled])

    @classmethod
    def of_tokenizer(cls, tokenizer: Any, forbidden: Collection[int] = ()) -> Vocabulary:
        """From a `tokenizers.Tokenizer`. Raises E-TOK where it is not known what exactly its tokens decode to."""
        decoders = decoder_kinds(tokenizer)
        kinds = [d["type"] for d in decoders]
        excluded = set(forbidden) | set(tokenizer.get_added_tokens_decoder())
        texts = {i: t for t, i in tokenizer.get_vocab(with_added_tokens=False).items() if i not in excluded}
        if kinds == ["ByteLevel"]:
            alphabet = byte_level_alphabet()
            found = {i: byte_level_bytes(t, alphabet) for i, t in texts.items()}
            vocabulary = cls({i: b for i, b in found.items() if b})
        elif kinds[:3] == ["Replace", "ByteFallback", "Fuse"] and kinds[3:] in ([], ["Strip"]):
            replace, strip = decoders[0], decoders[3] if kinds[3:] else {"start": 0, "stop": 0}
            if replace["pattern"] != {"String": METASPACE} or replace["content"] != " ":
                raise InputFileError("E-TOK", "the tokenizer's decoder replaces other text than its spaces", HINT)
            if strip["start"] not in (0, 1) or strip["stop"] or strip.get("content", " ") != " ":
                raise InputFileError("E-TOK", "the tokenizer's decoder strips other text than one space", HINT)
            spelled = {i: fallback_bytes(t) for i, t in texts.items()}
            vocabulary = cls(spelled, drops_leading_space=bool(strip["start"]))
        else:
            message = f"what tokens of a decoder {'+'.join(kinds) or 'none'} turn into is not known to the byte"
            raise InputFileError("E-TOK", message, HINT)
        vocabulary.check_decoding(tokenizer)
        return vocabulary

    def check_decoding(self, tokenizer: Any) -> None:
        """E-TOK unless the tokenizer's own decoding of single tokens is what the bytes here say."""
        ids = sorted(self.bytes_of)
        for i in ids[:: max(len(ids) // N_CHECKED, 1)]:
            expected = self.bytes_of[i].decode(errors="replace")
            if self.drops_leading_space:
                expected = expected.removeprefix(" ")
            found = tokenizer.decode([i], skip_special_tokens=True)
            if "\ufffd" not in expected and found != expected:
                raise InputFileError("E-TOK", f"token {i} decodes to {found!r} instead of {expected!r}", HINT)

    def _build_trie(self, spelled: Sequence[bytes], ids: Sequence[int]) -> None:
        """`spelled` is sorted: at each depth, the tokens with the same prefix are neighbours."""
        lengths = np.array([len(data) for data in spelled], np.int64)
        padded = np.zeros((len(spelled), self.longest + 1), np.uint8)
        for row, data in enumerate(spelled):
            padded[row, : len(data)] = np.frombuffer(data, np.uint8)
        rows = np.arange(len(spelled))  # tokens longer than the present depth
        node_of = np.zeros(len(spelled), np.int64)
        bytes_of, parents, n_nodes = [np.zeros(1, np.uint8)], [np.zeros(1, np.int64)], 1
        for depth in range(self.longest):
            rows = rows[lengths[rows] > depth]
            column = padded[rows, depth]
            is_new = np.ones(len(rows), bool)
            is_new[1:] = (column[1:] != column[:-1]) | (node_of[rows[1:]] != node_of[rows[:-1]])
            bytes_of.append(column[is_new])
            parents.append(node_of[rows[is_new]])
            node_of[rows] = n_nodes + np.cumsum(is_new) - 1
            n_nodes += int(is_new.sum())
        self.byte = np.concatenate(bytes_of)
        n_children = np.bincount(np.concatenate(parents)[1:], minlength=n_nodes)
        n_ending = np.bincount(node_of, minlength=n_nodes) if spelled else np.zeros(n_nodes, np.int64)
        self.n_children, self.first_child = n_children, 1 + np.cumsum(n_children) - n_children
        self.n_ending, self.first_ending = n_ending, np.cumsum(n_ending) - n_ending
        order = np.lexsort((np.array(ids, np.int64), node_of))
        self.ending = np.array(ids, np.int32)[order]  # token ids by node


def runs(starts: NDArray[np.int64], counts: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The members of several runs of consecutive numbers one after another, and the index of the run of each."""
    owners = np.repeat(np.arange(len(starts)), counts)
    before = np.cumsum(counts) - counts
    return np.arange(len(owners)) + (starts - before)[owners], owners


def decoder_kinds(tokenizer: Any) -> list[dict[str, Any]]:
    decoder = json.loads(tokenizer.to_str()).get("decoder") or {}
    return list(decoder["decoders"]) if decoder.get("type") == "Sequence" else [decoder] if decoder else []


def byte_level_alphabet() -> dict[str, int]:
    """The characters that stand for bytes in a byte-level BPE (GPT-2, Radford et al. 2019, encoder.py)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in printable]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}


def byte_level_bytes(token: str, alphabet: Mapping[str, int]) -> bytes | None:
    """None for a token with a character that stands for no byte."""
    try:
        return bytes(alphabet[c] for c in token)
    except KeyError:
        return None


def fallback_bytes(token: str) -> bytes:
    as_byte = BYTE_TOKEN.fullmatch(token)
    return bytes([int(as_byte[1], 16)]) if as_byte else token.replace(METASPACE, " ").encode()
