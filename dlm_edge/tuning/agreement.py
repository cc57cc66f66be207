"""How far texts of one setting are those of `static`, which commits one token per step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(slots=True)
class Agreement:
    """Texts of one setting against the reference's of the same prompts.

    A text is its tokens before the end of text. Tokens are compared position by position until either text ends; what
    one text has beyond the other's end agrees with nothing. So of two texts of n and m tokens with e equal positions,
    e of max(n, m) agree, and `share` is the sum of e over the sum of max(n, m) of all prompts: longer texts count
    more. Two empty texts add nothing to it. `identical` is the share of prompts whose texts are equal throughout.
    """

    equal: list[int] = field(default_factory=list)  # by prompt
    compared: list[int] = field(default_factory=list)

    def add(self, reference: Sequence[int], tokens: Sequence[int]) -> None:
        self.equal.append(sum(a == b for a, b in zip(reference, tokens, strict=False)))
        self.compared.append(max(len(reference), len(tokens)))

    @property
    def share(self) -> float:
        return sum(self.equal) / sum(self.compared) if any(self.compared) else 1.0

    @property
    def identical(self) -> float:
        return sum(e == c for e, c in zip(self.equal, self.compared, strict=True)) / max(len(self.equal), 1)

    @property
    def standard_error(self) -> float:
        """Of `share`, a ratio of sums over prompts: the linearised variance of residuals e - share * max(n, m)."""
        n, total, share = len(self.equal), sum(self.compared), self.share
        if n < 2 or not total:
            return 0.0
        squares = sum((e - share * c) ** 2 for e, c in zip(self.equal, self.compared, strict=True))
        return math.sqrt(n / (n - 1) * squares) / total

    def best_possible(self, lengths_left: Sequence[int]) -> float:
        """What `share` can still become: the reference's other texts, of these lengths, all met token for token."""
        left = sum(lengths_left)
        compared = sum(self.compared) + left
        return (sum(self.equal) + left) / compared if compared else 1.0
