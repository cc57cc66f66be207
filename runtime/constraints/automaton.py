"""A lazy byte automaton: the one shape in which a constraint on text reaches the decoder.

Regular expressions, JSON schemas and grammars all become a `ByteAutomaton` over the UTF-8 bytes of the text. States
are found only when they are asked for, so a constraint costs what the text touches and not what it could touch.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

DEAD = -1  # in place of a next state: no acceptable text begins with these bytes
N_BYTES = 256
MAX_DEPTH = 64  # nesting of groups, of schemas and of what they describe
MAX_STATES = 50_000  # of one automaton, about 1 KB each


class ByteAutomaton(Protocol):
    """A deterministic automaton; states are small ints, handed out when first reached and never renumbered.

    `next` leads only to states from which acceptance can be reached, so no state is a dead end and `distance` is
    always finite. `next` and `distance` raise JobError E-MEM when more than MAX_STATES states would be needed.
    """

    start: int

    def next(self, state: int) -> NDArray[np.int32]:
        """[256] the next state for each byte, DEAD where no acceptable text goes on so. Not to be written to."""
        ...

    def accepts(self, state: int) -> bool:
        """Whether the text may end here."""
        ...

    def distance(self, state: int) -> int:
        """The fewest bytes from here to acceptance; 0 where the text may end."""
        ...


def run(automaton: ByteAutomaton, data: bytes, state: int | None = None) -> int:
    """The state after `data`, from the start or from `state`; DEAD if no acceptable text begins so."""
    at = automaton.start if state is None else state
    for byte in data:
        if at == DEAD:
            return DEAD
        at = int(automaton.next(at)[byte])
    return at


def matches(automaton: ByteAutomaton, data: bytes) -> bool:
    """Whether `data` is an acceptable text from its first byte to its last."""
    end = run(automaton, data)
    return end != DEAD and automaton.accepts(end)
