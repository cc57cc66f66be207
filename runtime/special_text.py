"""Keep special tokens out of what users write, without changing how ordinary text is tokenized.

A chat template writes special tokens and user texts into one string, and a tokenizer cannot tell whose
"<|im_end|>" it sees. So the first character of a special token's text is replaced, in the users' texts only, by
a character that nobody used; after rendering it tells where the text has to be cut so that the tokenizer never
sees that token whole. A prompt without any such text is tokenized in one piece, as it stands.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence

PRIVATE = range(0xF0000, 0xFFFFE)  # supplementary private use: no meaning of its own in any text
Write = Callable[[str], str]


class Shield:
    """For one set of user texts: the special texts to look for and the stand-ins for their first characters."""

    def __init__(self, special_texts: Collection[str], texts: Sequence[str]) -> None:
        """Special texts of one character are left alone: they cannot be cut, and are letters like any other."""
        ordered = sorted((t for t in special_texts if len(t) > 1), key=lambda t: (-len(t), t))
        self.special = re.compile("|".join(map(re.escape, ordered)) or r"(?!)")
        firsts = sorted({t[0] for t in ordered})
        used = {c for text in texts for c in text}
        self.is_needed = not used.isdisjoint(firsts)
        free = (chr(code) for code in PRIVATE if chr(code) not in used)
        self.stand_in = {first: next(free) for first in firsts}
        self.hide = {ord(first): stand_in for first, stand_in in self.stand_in.items()}
        self.show = {ord(stand_in): first for first, stand_in in self.stand_in.items()}

    def render(self, render: Callable[[Write], str]) -> str:
        """The text that `render` makes of the users' texts, each passed through the function it is given.

        A special text can also arise where two user texts meet. Replacing every first character excludes that,
        and shows which special texts are the template's own; the gentle way counts only if it shows the same.
        """
        if not self.is_needed:
            return render(lambda text: text)
        strict, gentle = render(self.replace_all), render(self.replace_special)
        return gentle if self.special.findall(gentle) == self.special.findall(strict) else strict

    def replace_special(self, text: str) -> str:
        while self.special.search(text):  # again: an occurrence may have overlapped one that is gone now
            text = self.special.sub(lambda match: self.stand_in[match[0][0]] + match[0][1:], text)
        return text

    def replace_all(self, text: str) -> str:
        return text.translate(self.hide)

    def pieces(self, text: str) -> list[str]:
        """The text with the original characters, cut after each one that was replaced."""
        if self.show.keys().isdisjoint(map(ord, text)):
            return [text]
        stand_ins = "".join(map(chr, self.show))
        cut = re.split(f"(?<=[{stand_ins}])", text)
        return [piece.translate(self.show) for piece in cut if piece]
