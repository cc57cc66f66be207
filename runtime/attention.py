"""Which attention a denoising step uses: rules that turn the state of a block into SelectPages' policy.

dense       every step reads the whole prefix.
quest       every query of every step chooses pages by their bounds (arXiv 2406.10774).
losa        dense in a block's first step; then the rows that moved most attend to chosen pages, the others keep their
            result of the prefix (arXiv 2604.12056). Pages are those that held most attention in the first step, as mage
            has it, or chosen by their bounds in every step, as the paper has it.
flashblock  dense; then every row keeps its result until enough positions have changed (arXiv 2602.05305).
mage        dense, measuring where attention goes; then every row attends to those pages (arXiv 2602.14209).
sparsed     full attention without a cache: dense for the first part of the request; then each block of queries attends to
            the blocks of keys that held most attention, of prompt and generation separately (arXiv 2509.24014).

One more policy is one function and one line in the table. Passes that store keys are always dense.

Where codes lie in two planes, passes that store keys and the first step of a block read both of them, later steps the
upper one alone, whatever the policy: what is stored should be exact, and later steps keep results of the first.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import astuple, dataclass, replace

import numpy as np
from numpy.typing import NDArray

from dlm_edge.kernels.quantized_pages.planes import BOTH, UPPER
from dlm_edge.kernels.select_pages.reference import (
    DENSE,
    DENSE_KEEP,
    REUSE_PAGES,
    REUSE_ROWS,
    SELECT,
    SELECT_ROWS,
    Policy,
)

ALL_ROWS = 1 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionSettings:
    """`budget`: prefix tokens that one query reads; `active`: share of a window's rows that attend afresh;
    `drift`: relative squared change of a query beyond which its stored result is renewed, infinity for never;
    `changed`: newly filled positions after which flashblock reads the prefix again; `selector` of losa: the pages
    that held most attention in the block's first step, or pages by their bounds in every step; `dense_layers`: the first ones, which always read everything;
    `keep` of sparsed: share of the blocks of keys that a block of queries keeps; `skip`: below 1 the share of the positions
    to fill that are filled by dense steps first, from 1 on the number of dense steps. A block is `page_size` positions.
    `planes` of codes, where they lie in two: both in a block's "first" step only, or "both" in every step."""

    policy: str = "dense"
    budget: int = 256
    page_size: int = 8
    sink_pages: int = 0
    recent_pages: int = 0
    active: float = 0.3125  # 5 of 16
    drift: float = float("inf")
    changed: int = 3
    selector: str = "first"  # or "bounds"
    dense_layers: int = 0
    per_head: bool = False
    since_stored: bool = False
    keep: float = 0.5
    skip: float = 0.2
    planes: str = "first"  # or "both"

    @property
    def needs_bounds(self) -> bool:
        """Of pages."""
        return self.policy == "quest" or (self.policy == "losa" and self.selector == "bounds")

    @property
    def needs_masses(self) -> bool:
        """Of pages, measured in a block's first step."""
        return self.policy == "mage" or (self.policy == "losa" and self.selector == "first")

    def numbers(self, mode: int, n_rows: int = ALL_ROWS, *, one_list: bool = False) -> Policy:
        return Policy(
            mode=mode,
            n_pages=max(-(-self.budget // self.page_size), 1),
            n_active=n_rows,
            sink=self.sink_pages,
            recent=self.recent_pages,
            per_head=int(self.per_head),
            since_stored=int(self.since_stored),
            one_list=int(one_list),
            page_size=self.page_size,
        )


@dataclass(frozen=True, slots=True)
class StepState:
    """`step` counts from the last dense pass over this window and prefix, `n_changed` the positions filled since."""

    step: int
    n_changed: int
    n_rows: int
    progress: float = 0.0  # share of the request's positions to fill that are filled
    prompt_len: int = 0
    has_pattern: bool = False


Rule = Callable[[AttentionSettings, StepState], Policy]


@dataclass(frozen=True, slots=True)
class AttentionPolicy:
    rule: Rule
    options: tuple[str, ...]  # the settings that belong to it
    keeps_rows: bool = False  # queries and results of the last step


def dense(settings: AttentionSettings, state: StepState) -> Policy:
    return settings.numbers(DENSE)


def quest(settings: AttentionSettings, state: StepState) -> Policy:
    return settings.numbers(SELECT)


def losa(settings: AttentionSettings, state: StepState) -> Policy:
    by_bounds = settings.selector == "bounds"
    if state.step == 0:
        return settings.numbers(DENSE if by_bounds else DENSE_KEEP)
    return settings.numbers(SELECT if by_bounds else SELECT_ROWS, max(round(settings.active * state.n_rows), 1))


def flashblock(settings: AttentionSettings, state: StepState) -> Policy:
    return settings.numbers(DENSE if state.step == 0 or state.n_changed >= settings.changed else REUSE_ROWS)


def mage(settings: AttentionSettings, state: StepState) -> Policy:
    return settings.numbers(DENSE_KEEP if state.step == 0 else REUSE_PAGES)


def sparsed(settings: AttentionSettings, state: StepState) -> Policy:
    """`skip` counts what is filled, not steps, so that it is defined where confidence decides how many steps there are;
    with equal steps the two are the same. A block across the border of the prompt counts as generation."""
    done = state.step if settings.skip >= 1 else state.progress
    mode = REUSE_PAGES if state.has_pattern else DENSE if done < settings.skip else DENSE_KEEP
    prompt = state.prompt_len // settings.page_size
    others = -(-state.n_rows // settings.page_size) - prompt
    kept = {"n_pages": kept_blocks(settings.keep, prompt), "n_active": kept_blocks(settings.keep, others)}
    return replace(settings.numbers(mode), sink=prompt, **kept)


def kept_blocks(share: float, n_blocks: int) -> int:
    """The whole part and one, as in SparseD's published code: of two blocks half are both. Rounded up instead, the model
    reference-full loses the other block of what it generates, and 7 % of its answers."""
    return min(math.floor(share * n_blocks + 1e-9) + 1, n_blocks)  # 0.29 * 100 is 29 here, not 28.99


LAYERS = ("dense_layers",)
PAGES = ("budget", "page_size", "sink_pages", "recent_pages")
POLICIES: dict[str, AttentionPolicy] = {
    "dense": AttentionPolicy(dense, ()),
    "quest": AttentionPolicy(quest, (*PAGES, *LAYERS)),
    "losa": AttentionPolicy(
        losa, (*PAGES, *LAYERS, "active", "drift", "selector", "per_head", "since_stored"), keeps_rows=True
    ),
    "flashblock": AttentionPolicy(flashblock, ("changed", *LAYERS), keeps_rows=True),
    "mage": AttentionPolicy(mage, (*PAGES, *LAYERS)),
    "sparsed": AttentionPolicy(sparsed, ("page_size", "keep", "skip", *LAYERS)),
}
EXACT = AttentionSettings()


class AttentionPlan:
    """The policy of each run of one request: told what happens, asked before each run."""

    def __init__(self, settings: AttentionSettings, prompt_len: int = 0, n_to_fill: int = 0) -> None:
        self.settings, self.rule = settings, POLICIES[settings.policy].rule
        self.prompt_len, self.n_to_fill, self.n_filled = prompt_len, n_to_fill, 0
        self.restart()

    def restart(self) -> None:
        """Stored results are worthless: another block, or another prefix."""
        self._step, self._changed, self._has_pattern = 0, 0, False

    def filled(self, n_positions: int) -> None:
        self._changed += n_positions
        self.n_filled += n_positions

    @property
    def planes(self) -> int:
        """Of codes that lie in two: how many the run reads that `of_step` is asked about next."""
        return UPPER if self._step and self.settings.planes == "first" else BOTH

    def of_step(self, n_rows: int) -> Policy:
        progress = self.n_filled / max(self.n_to_fill, 1)
        state = StepState(self._step, self._changed, n_rows, progress, self.prompt_len, self._has_pattern)
        policy = self.rule(self.settings, state)
        self._step += 1
        self._has_pattern |= policy.mode == DENSE_KEEP
        if policy.mode in (DENSE, DENSE_KEEP):
            self._changed = 0
        return policy

    def of_exact_pass(self) -> Policy:
        return self.settings.numbers(DENSE)


def as_matrix(policy: Policy, n_layers: int, dense_layers: int) -> NDArray[np.int64]:
    """The graph's input, int64 [n_layers, 9]."""
    matrix = np.array([astuple(policy)] * n_layers, np.int64)
    if policy.mode != DENSE_KEEP:
        matrix[:dense_layers, 0] = DENSE
    return matrix


@dataclass(slots=True)
class Density:
    """What steps with a prefix read of it, as a share of what dense attention reads; sums over steps and layers."""

    read: float = 0.0
    pages: float = 0.0
    whole: float = 0.0
    active: float = 0.0
    rows: float = 0.0

    def add(self, stats: NDArray[np.float32], n_rows: int) -> None:
        """`stats` as StepModel gives them after a step over `n_rows` rows."""
        for active, pages, valid, bounds in stats.tolist():
            if valid:
                self.read += (pages + bounds) / valid
                self.pages += pages
                self.whole += 1
                self.active += active
                self.rows += n_rows

    @property
    def share(self) -> float:
        """Of the prefix's bytes, page bounds counted with them; 1 where nothing had a prefix."""
        return self.read / self.whole if self.whole else 1.0

    @property
    def pages_read(self) -> float:
        """Mean over steps and layers, of one K/V head."""
        return self.pages / self.whole if self.whole else 0.0

    @property
    def active_share(self) -> float:
        return self.active / self.rows if self.rows else 1.0
