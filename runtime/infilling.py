"""Tokens that are given among those to be filled: where a family can see them, and what of a request they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from dlm_edge.errors import UsageProblem
from dlm_edge.families.spec import Conventions

MAX_FIXED = 1 << 16


def fixed_tokens(given: Mapping[int, int], suffix: Sequence[int], gen_len: int) -> dict[int, int]:
    """Offsets after the prompt -> ids; the suffix begins at `gen_len`. E-PARAM for an offset outside."""
    for offset in given:
        if not 0 <= offset < gen_len:
            raise UsageProblem("E-PARAM", f"fixed names the offset {offset}", f"choose 0 to {gen_len - 1}")
    if len(given) + len(suffix) > MAX_FIXED:
        raise UsageProblem("E-PARAM", f"{len(given) + len(suffix)} tokens are fixed", f"give at most {MAX_FIXED}")
    return dict(given) | {gen_len + i: token for i, token in enumerate(suffix)}


def check_visible(fixed: Mapping[int, int], conventions: Conventions, prompt_len: int, block_length: int) -> None:
    """E-PARAM where a given token lies behind what it should guide: block-causal models fill one block without seeing the
    next. With full attention every token sees every other."""
    if conventions.attention == "full" or not fixed:
        return
    gaps = sorted(set(range(max(fixed) + 1)) - set(fixed))
    first = (prompt_len + gaps[0]) // block_length if gaps else None
    for offset in fixed:
        block = (prompt_len + offset) // block_length
        if first is not None and offset > gaps[0] and block > first:
            room = (first + 1) * block_length - prompt_len
            message = (
                f"the token fixed at offset {offset} lies in a later block than the first gap, which does not see it"
            )
            hint = f"with this prompt keep gap and fixed tokens below offset {room}, or use a model with full attention"
            raise UsageProblem("E-PARAM", message, hint)
