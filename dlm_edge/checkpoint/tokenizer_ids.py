"""What the tokenizer says about ids, read without running it: the highest id, and the id of the mask token."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dlm_edge.checkpoint.strict_json import read_json_object, shorten
from dlm_edge.errors import InputFileError

MAX_TOKENIZER_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class TokenizerIds:
    highest: int
    mask_id: int | None


def read_tokenizer_ids(folder: Path) -> TokenizerIds | None:
    """None when there is no tokenizer.json. Raises E-TOK for ids that are negative, doubled or not numbers."""
    path = folder / "tokenizer.json"
    if not os.path.lexists(path):
        return None
    try:
        content = read_json_object(path, MAX_TOKENIZER_BYTES)
    except InputFileError as error:
        if error.code == "E-FILE":
            raise
        raise InputFileError("E-TOK", error.message, error.hint) from error
    ids = _vocabulary(path, content)
    for token in _added(path, content):
        if ids.setdefault(token["content"], token["id"]) != token["id"]:
            raise _bad(path, f"token {shorten(token['content'])} has two ids")
    if not ids:
        raise _bad(path, "the vocabulary is empty")
    return TokenizerIds(max(ids.values()), _mask_id(folder, ids))


def _vocabulary(path: Path, content: dict[str, Any]) -> dict[str, int]:
    model = content.get("model")
    vocab = model.get("vocab") if isinstance(model, dict) else None
    if isinstance(vocab, list):  # Unigram: pairs of text and score, the id is the place
        if not all(isinstance(pair, list) and pair and isinstance(pair[0], str) for pair in vocab):
            raise _bad(path, "the vocabulary is not a list of pairs")
        return {pair[0]: i for i, pair in enumerate(vocab)}
    if not isinstance(vocab, dict):
        raise _bad(path, "there is no vocabulary")
    for token, number in vocab.items():
        if not _is_id(number):
            raise _bad(path, f"token {shorten(token)} has id {shorten(str(number))}")
    if len(set(vocab.values())) != len(vocab):
        raise _bad(path, "two tokens of the vocabulary share an id")
    return dict(vocab)


def _added(path: Path, content: dict[str, Any]) -> list[dict[str, Any]]:
    added = content.get("added_tokens", [])
    for token in added if isinstance(added, list) else [None]:
        if not isinstance(token, dict) or not isinstance(token.get("content"), str) or not _is_id(token.get("id")):
            raise _bad(path, "added_tokens holds something that is no token")
    return list(added)


def _mask_id(folder: Path, ids: dict[str, int]) -> int | None:
    path = folder / "tokenizer_config.json"
    if not os.path.lexists(path):
        return None
    token = read_json_object(path).get("mask_token")
    text = token.get("content") if isinstance(token, dict) else token
    return ids.get(text) if isinstance(text, str) else None


def _is_id(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**31


def _bad(path: Path, what: str) -> InputFileError:
    return InputFileError("E-TOK", f"{path}: {what}", "download the tokenizer again")
