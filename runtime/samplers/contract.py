"""What every sampler is: a pure function from the scores of masked positions to the ones it commits.

No model, no clock, no random state: whatever a sampler remembers it returns in `Commits.memory` and is given back in
the next selection of the same block. So the same scores and state give the same commits, wherever they come from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Generic, Literal, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from dlm_edge.runtime.blocks import Canvas
from dlm_edge.runtime.scores import Sampling, Scores, uniform

Positions = NDArray[np.int64]
NONE = np.empty(0, np.int64)

Probability = Annotated[float, msgspec.Meta(ge=0.0, le=1.0)]
Threshold = Annotated[float, msgspec.Meta(ge=0.0, le=1e6)]  # no probability exceeds 1: above it nothing passes
Steps = Annotated[int, msgspec.Meta(ge=1, le=1 << 24)]
Count = Annotated[int, msgspec.Meta(ge=0, le=1 << 24)]


class SamplerOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The settings of one sampler; the range of each is in its annotation."""


Options = TypeVar("Options", bound=SamplerOptions)


@dataclass(frozen=True, slots=True, kw_only=True)
class Needs:
    """What a sampler asks of the loop beyond the scores of masked positions."""

    needs_full_logits: bool = False  # Scores.logits
    needs_placed: bool = False  # scores of the tokens of this block that are committed already, too
    needs_left_out: bool = False  # SelectState.left_out
    needs_whole_text: bool = (
        False  # scores of all masked positions that the cache's window reaches, not of the span only
    )
    needs_soft_input: bool = False  # mixes of embeddings in place of the mask's
    needs_guide: bool = False  # another model, see runtime/guide.py
    needs_filter: bool = False  # SelectState.filter
    can_edit: bool = False  # may change or hide tokens that are committed already
    full_attention: bool = False  # has no meaning where blocks are fixed by training
    chooses_ids: bool = False  # may commit other ids than those of the scores, which a constraint has made fit together
    ends_at_stop: bool = False  # positions right of a committed stop id are not filled any more


@dataclass(frozen=True, slots=True)
class LeftOut:
    """Tokens generated in this (sub-)block, and how likely each is where it alone is hidden."""

    positions: Positions  # [n] absolute, ascending
    probability: NDArray[np.float64]  # [n]


NOTHING_LEFT_OUT = LeftOut(NONE, np.empty(0))


@dataclass(frozen=True, slots=True)
class Opinion:
    """What the guide says of one drafted token, given the drafted tokens before it."""

    best: int  # its own first choice
    best_probability: float
    probability: float  # of the drafted token
    n_likelier: int  # tokens that it finds likelier than the drafted one


@dataclass(frozen=True, slots=True, kw_only=True)
class SelectState:
    """Where the loop stands inside the (sub-)block that is being filled. The canvas is the loop's: read it only."""

    step: int  # 0 at the first selection in this (sub-)block
    n_masked: int  # masked slots when it began
    n_steps: int  # steps planned for it, 1 .. n_masked
    span: tuple[int, int]  # the (sub-)block, absolute positions
    block: tuple[int, int]
    canvas: Canvas
    progress: float = 0.0  # share of the request's positions to fill that are filled
    number: int = 0  # selections of this request so far
    sampling: Sampling = field(default_factory=Sampling)
    memory: Any = None  # what this sampler returned in the step before; None in a block's first step
    tokens: Mapping[str, tuple[int, ...]] = field(default_factory=dict)  # ids of the sampler's `texts`, see Sampler
    stop_ids: tuple[int, ...] = ()
    left_out: Callable[[], LeftOut] = lambda: NOTHING_LEFT_OUT  # of the span's tokens; computed when it is called
    guide: Iterable[Opinion] = ()  # of each row of the scores; computed as it is walked through, once
    filter: Any = None  # weights that `dlm-edge train-filter` wrote, see learn2pd.py

    @property
    def quota(self) -> int:
        """Tokens of this step: n_masked // n_steps, and one more in the first n_masked % n_steps steps."""
        return self.n_masked // self.n_steps + (self.step < self.n_masked % self.n_steps)

    def uniform(self, slot: int, stream: int = 1) -> float:
        """A number in [0, 1) of this selection and slot; other than the one that may have drawn the slot's token."""
        return uniform(self.sampling, self.number, slot, stream)


@dataclass(frozen=True, slots=True)
class Commits:
    """Rows of the scores that turn into tokens, as absolute positions and ids, positions ascending."""

    positions: Positions  # [n]
    ids: NDArray[np.int64]  # [n]
    memory: Any = None  # for the next selection in this block
    hidden: Positions = field(default_factory=lambda: NONE)  # tokens that turn back into masks (can_edit only)


Select = Callable[[Scores, SelectState, Options], Commits]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampler(Generic[Options]):
    """`select` commits at least one masked position in every step.

    drafts   guesses of this and the next selections, of which the first is sure; see runtime/drafting.py
    border   end of the block that begins with `span`, chosen from the first scores over `span`, the window that it may
             fill; `block` of the state is then the usual one there
    window   positions from which `border` chooses: (options, gen_len, block_length) -> at most so many
    spans    the sub-blocks of a block, filled left to right; None, also as its answer: those of the family
    texts    options that hold texts, and what SelectState.tokens has of them: "containing", the ids of all tokens that
             contain one of several, or "marker", the ids that one is written with
    max_steps  selections in a span of n masks, for samplers that can edit; others never need more than n
    polishes   whether such a sampler goes on where no mask is left; a selection without commits ends it then
    """

    name: str
    select: Select[Options]
    options: type[Options]
    needs: Needs = Needs()
    drafts: Callable[[Scores, SelectState, Options], list[Commits]] | None = None
    border: Callable[[Scores, SelectState, Options], int] | None = None
    window: Callable[[Options, int, int], int] | None = None
    spans: Callable[[SelectState, Options], Sequence[tuple[int, int]] | None] | None = None
    texts: Mapping[str, Literal["containing", "marker"]] = field(default_factory=dict)
    max_steps: Callable[[int, Options], int] | None = None
    polishes: Callable[[SelectState, Options], bool] | None = None

    @property
    def option_names(self) -> tuple[str, ...]:
        return self.options.__struct_fields__


def most_confident_first(scores: Scores, measure: NDArray[np.float64] | None = None) -> NDArray[np.int64]:
    """Rows by falling confidence, or by another measure; equals by rising position."""
    return np.lexsort((scores.positions, -(scores.confidence if measure is None else measure))).astype(np.int64)


def commit_rows(scores: Scores, rows: NDArray[Any], memory: Any = None) -> Commits:
    rows = np.sort(rows)
    return Commits(scores.positions[rows], scores.ids[rows], memory)


def commit_where(scores: Scores, is_sure: NDArray[np.bool_], memory: Any = None) -> Commits:
    """The rows that are sure; where there is none, the most confident one."""
    rows = np.flatnonzero(is_sure)
    return commit_rows(scores, rows if rows.size else most_confident_first(scores)[:1], memory)
