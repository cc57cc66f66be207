"""The canvas and the grid of blocks on it: which positions are filled, in which order, in how many steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from dlm_edge.errors import UsageProblem
from dlm_edge.families.spec import Conventions


@dataclass(frozen=True, slots=True)
class Span:
    """Positions [start, end) that are filled together, in at most `n_steps` steps; None: one token per step."""

    start: int
    end: int
    n_steps: int | None = None


@dataclass(frozen=True, slots=True)
class Block:
    start: int
    end: int
    spans: tuple[Span, ...]  # the sub-blocks that hold masks, left to right


class Canvas:
    """Prompt and masks in one array of ids, rounded up to the grid; written to by `commit`, `place` and `hide`.

    `fixed`: tokens that stand among the masks from the start, by their offset from the prompt's end.
    """

    def __init__(
        self,
        prompt_ids: Sequence[int],
        gen_len: int,
        end: int,
        mask_id: int,
        fixed: Mapping[int, int] = MappingProxyType({}),
    ) -> None:
        self.prompt_len, self.gen_len, self.mask_id = len(prompt_ids), gen_len, mask_id
        self.ids = np.full(end, mask_id, np.int64)
        self.ids[: self.prompt_len] = prompt_ids
        self.is_masked = np.arange(end) >= self.prompt_len
        for offset, token in fixed.items():
            assert 0 <= offset < end - self.prompt_len, offset
            self.ids[self.prompt_len + offset], self.is_masked[self.prompt_len + offset] = token, False
        self.is_given = ~self.is_masked
        self.confidence = np.zeros(end, np.float32)  # of the commit, or of the latest prediction while masked
        self.settled_end = end  # from here on tokens may still be changed, by samplers that edit

    def masked(self, start: int, end: int) -> NDArray[np.int64]:
        return start + np.flatnonzero(self.is_masked[start:end])

    def generated(self, start: int, end: int) -> NDArray[np.int64]:
        """Positions that hold tokens which were neither given nor are masks."""
        return start + np.flatnonzero(~(self.is_masked | self.is_given)[start:end])

    def commit(self, positions: NDArray[np.int64], ids: NDArray[np.int64]) -> None:
        assert self.is_masked[positions].all(), positions
        self.place(positions, ids)

    def place(self, positions: NDArray[np.int64], ids: NDArray[np.int64]) -> None:
        """The same where tokens may be replaced, which only some samplers do."""
        assert not self.is_given[positions].any() and not (ids == self.mask_id).any(), (positions, ids)
        self.ids[positions] = ids
        self.is_masked[positions] = False

    def hide(self, positions: NDArray[np.int64]) -> None:
        assert not self.is_given[positions].any(), positions
        self.ids[positions] = self.mask_id
        self.is_masked[positions] = True

    def final_tokens(self, stop_ids: Sequence[int]) -> tuple[list[int], bool]:
        """The generated tokens that cannot change any more, up to the first stop id; and whether there was one.

        A stop id right of a mask does not count yet. Tokens beyond gen_len are rounding and never appear.
        """
        last = min(self.prompt_len + self.gen_len, self.settled_end)
        waiting = self.masked(self.prompt_len, last)
        ids = self.ids[self.prompt_len : int(waiting[0]) if waiting.size else last]
        stops = np.flatnonzero(np.isin(ids, np.asarray(stop_ids, np.int64)))
        tokens: list[int] = (ids[: stops[0]] if stops.size else ids).tolist()
        return tokens, bool(stops.size)


def grid_edges(conventions: Conventions, prompt_len: int, gen_len: int, block_length: int) -> tuple[int, int]:
    """Start of the first block with masks, and end of the last one."""
    origin = prompt_len if conventions.grid_origin == "prompt_end" else 0
    start = origin + (prompt_len - origin) // block_length * block_length
    return start, start + -(-(prompt_len + gen_len - start) // block_length) * block_length


def plan_blocks(
    start: int, end: int, *, prompt_len: int, block_length: int, sub_block_length: int, steps: int | None
) -> list[Block]:
    """Blocks of the grid with their sub-blocks; `steps` is the number of denoising steps of the whole request.

    Sub-block i of n that hold masks gets steps // n of them, the first steps % n sub-blocks one more.
    Raises E-PARAM when one would get none.
    """
    windows = [
        [
            (at, min(at + sub_block_length, first + block_length))
            for at in range(first, first + block_length, sub_block_length)
            if min(at + sub_block_length, first + block_length) > prompt_len
        ]
        for first in range(start, end, block_length)
    ]
    n_windows = sum(map(len, windows))
    if steps is not None and steps < n_windows:
        what = "blocks" if sub_block_length == block_length else "sub-blocks"
        hint = "give more steps, fewer new tokens, or a larger block length where the family allows it"
        raise UsageProblem("E-PARAM", f"{steps} steps are fewer than the {n_windows} {what} to fill", hint)
    shares = iter([None if steps is None else steps // n_windows + (i < steps % n_windows) for i in range(n_windows)])
    return [
        Block(first, first + block_length, tuple(Span(*window, next(shares)) for window in inside))
        for first, inside in zip(range(start, end, block_length), windows, strict=True)
    ]
