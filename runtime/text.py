"""Text to ids and back. What a user wrote never becomes the mask token or any other special token."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dlm_edge.errors import DlmEdgeError, InputFileError, JobError, UsageProblem
from dlm_edge.families.spec import ModelSpec
from dlm_edge.runtime.special_text import Shield

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dlm_edge.runtime.template import ChatTemplate, Message

MAX_TOKENIZER_BYTES = 64 << 20
CHARACTERS_PER_POSITION = 64  # no text of more characters than this per context position could fit
LONG_TEXT = 10_000  # characters; from there on the batch form is used, which lets other threads of the process run
ROLES = ("system", "user", "assistant", "tool")
REPLACEMENT = "\ufffd"  # what decoders write for bytes that are no character, or not one yet


class TextCodec:
    """The bundle's tokenizer, for prompts of one model. May be used from any thread."""

    def __init__(self, tokenizer: Any, spec: ModelSpec, *, name: str = "tokenizer.json") -> None:
        self.tokenizer, self.spec, self.name = tokenizer, spec, name
        self.max_characters = CHARACTERS_PER_POSITION * spec.max_positions
        self._texts: list[str] | None = None  # of every token by itself, once somebody asks
        self._containing: dict[str, tuple[int, ...]] = {}
        conventions = spec.conventions
        reserved = {conventions.mask_id, conventions.eos_id, conventions.pad_id, *conventions.stop_ids}
        with self._library_errors():
            added = tokenizer.get_added_tokens_decoder()
            self.special_texts = {t.content for i, t in added.items() if t.special or i in reserved}
            self.special_texts.add(tokenizer.id_to_token(conventions.mask_id) or "")
            highest = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)
        if highest >= spec.embedding_rows:
            message = f"{name} has the id {highest}, and the model has {spec.embedding_rows} embeddings"
            raise InputFileError("E-TOK", message, "use the tokenizer that belongs to the model")

    @classmethod
    def read(cls, path: Path, spec: ModelSpec) -> TextCodec:
        from tokenizers import Tokenizer

        try:
            size = path.stat().st_size
        except OSError as error:
            raise InputFileError("E-TOK", f"{path}: {error.strerror}", "export the model again") from error
        if size > MAX_TOKENIZER_BYTES:
            raise InputFileError(
                "E-TOK", f"{path} has {size} bytes, more than {MAX_TOKENIZER_BYTES}", "export it again"
            )
        try:
            tokenizer = Tokenizer.from_file(str(path))
        except BaseException as error:  # a panic of the Rust side is no Exception
            if isinstance(error, (KeyboardInterrupt, SystemExit)):
                raise
            raise InputFileError("E-TOK", f"{path}: {first_line(error)}", "export the model again") from error
        tokenizer.no_truncation()
        tokenizer.no_padding()
        return cls(tokenizer, spec, name=str(path))

    def encode_text(self, text: str) -> list[int]:
        """Plain text with what the tokenizer itself puts around it (a bos token, for some)."""
        self._check_text(text)
        shield = Shield(self.special_texts, [text])
        pieces = shield.pieces(shield.replace_special(text))
        if len(pieces) == 1:
            return self._check_mask(self._encode(text, add_special_tokens=True))
        return self._check_mask(self._encode("", add_special_tokens=True) + self._encode_pieces(pieces))

    def encode_suffix(self, suffix: str | Sequence[int]) -> list[int]:
        """Text or ids that follow a gap: nothing is put around them."""
        if not isinstance(suffix, str):
            return self.check_ids(suffix)
        self._check_text(suffix)
        shield = Shield(self.special_texts, [suffix])
        return self._check_mask(self._encode_pieces(shield.pieces(shield.replace_special(suffix))))

    def encode_chat(self, messages: Sequence[Message], template: ChatTemplate) -> list[int]:
        """The rendered template; special tokens only where the template itself wrote them."""
        check_messages(messages)
        contents = [m["content"] for m in messages]
        for content in contents:
            self._check_text(content)
        shield = Shield(self.special_texts, contents)

        def render(write: Any) -> str:
            return template.render([{"role": m["role"], "content": write(m["content"])} for m in messages])

        return self._check_mask(self._encode_pieces(shield.pieces(shield.render(render))))

    def check_ids(self, ids: Sequence[int]) -> list[int]:
        """Ids given by a caller; E-PROMPT unless each is one that a prompt may hold."""
        mask_id, limit = self.spec.conventions.mask_id, self.spec.vocab_size
        for index, value in enumerate(ids):
            if isinstance(value, bool) or not isinstance(value, int):
                raise UsageProblem("E-PROMPT", f"prompt id {index} is {value!r}, no integer", "give token ids")
            if not 0 <= value < limit:
                raise UsageProblem("E-PROMPT", f"prompt id {index} is {value}", f"choose 0 to {limit - 1}")
            if value == mask_id:
                raise UsageProblem("E-PROMPT", f"prompt id {index} is the mask token {mask_id}", "remove it")
        return list(ids)

    def decode(self, ids: Sequence[int]) -> str:
        with self._library_errors():
            text: str = self.tokenizer.decode(list(ids), skip_special_tokens=True)
        return text

    def token_text(self, token_id: int) -> str:
        with self._library_errors():
            text: str = self.tokenizer.decode([token_id], skip_special_tokens=False)
        return text

    def ids_containing(self, text: str) -> tuple[int, ...]:
        """Of the tokens whose text contains `text`, special ones excepted."""
        if text not in self._containing:
            if self._texts is None:
                ids = range(self.tokenizer.get_vocab_size(with_added_tokens=True))
                with self._library_errors():
                    self._texts = self.tokenizer.decode_batch([[i] for i in ids], skip_special_tokens=True)
            self._containing[text] = tuple(i for i, own in enumerate(self._texts) if text in own)
        return self._containing[text]

    def ids_of_marker(self, text: str) -> tuple[int, ...]:
        """The one token that is written so, special or not, or else the tokens of the plain text."""
        with self._library_errors():
            single = self.tokenizer.token_to_id(text)
        return (single,) if single is not None else tuple(self.encode_suffix(text))

    def special_text(self, token_id: int) -> str | None:
        """How the tokenizer writes the token itself, as templates name it."""
        with self._library_errors():
            text: str | None = self.tokenizer.id_to_token(token_id)
        return text

    def _encode_pieces(self, pieces: Sequence[str]) -> list[int]:
        return [i for piece in pieces for i in self._encode(piece, add_special_tokens=False)]

    def _encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        with self._library_errors():
            if len(text) < LONG_TEXT:
                ids: list[int] = self.tokenizer.encode(text, add_special_tokens=add_special_tokens).ids
            else:
                ids = self.tokenizer.encode_batch([text], add_special_tokens=add_special_tokens)[0].ids
        return ids

    def _check_mask(self, ids: list[int]) -> list[int]:
        """The last word: whatever normalization made of the text, the mask id does not pass."""
        if self.spec.conventions.mask_id in ids:
            raise UsageProblem("E-PROMPT", "the prompt's text turns into the mask token", "remove that part")
        return ids

    def _check_text(self, text: str) -> None:
        if not isinstance(text, str):
            raise UsageProblem("E-PROMPT", f"the prompt is {type(text).__name__}, no text", "give a string")
        if len(text) > self.max_characters:
            message = f"the prompt has {len(text)} characters, more than {self.max_characters}"
            raise UsageProblem("E-PROMPT", message, "shorten it")
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise UsageProblem("E-UTF8", f"the prompt holds a lone surrogate at {error.start}", "remove it") from error

    @contextmanager
    def _library_errors(self) -> Iterator[None]:
        try:
            yield
        except (DlmEdgeError, KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # a panic of the Rust side is no Exception
            raise JobError(
                "E-TOK", f"{self.name} failed: {first_line(error)}", "use another text or tokenizer"
            ) from error


class TextStream:
    """Ids in, whole characters out; the pieces together are the decoded whole."""

    def __init__(self, codec: TextCodec) -> None:
        self.codec = codec
        self.ids: list[int] = []
        self.text = ""  # given out so far

    def push(self, ids: Sequence[int]) -> str:
        """Text that is final once `ids` follow; a character whose bytes are incomplete waits."""
        self.ids.extend(ids)
        return self._give(self.codec.decode(self.ids).rstrip(REPLACEMENT)) if ids else ""

    def finish(self) -> str:
        """The rest, with what never became a character; `text` is the whole afterwards."""
        return self._give(self.codec.decode(self.ids))

    def _give(self, whole: str) -> str:
        if not whole.startswith(self.text):  # a decoder that rewrites what it gave: keep what was given out
            whole = self.text + whole[len(os.path.commonprefix([whole, self.text])) :]
        new, self.text = whole[len(self.text) :], whole
        return new


def check_messages(messages: Sequence[Message]) -> None:
    if not messages:
        raise UsageProblem("E-PROMPT", "there are no messages", "give at least one")
    for index, message in enumerate(messages):
        if set(message) != {"role", "content"} or not isinstance(message["content"], str):
            raise UsageProblem("E-PROMPT", f"message {index} is not a role and a text", 'give {"role", "content"}')
        if message["role"] not in ROLES:
            known = f"known: {', '.join(ROLES)}"
            raise UsageProblem("E-PROMPT", f"message {index} has the role {message['role']!r}", known)


def first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
