"""Denoising many prompts at once in torch, by the runtime's own schedule, and every state seen on the way.

The schedule is the runtime's default: its blocks, sub-blocks and first-token rule, greedy predictions, and its
`threshold` sampler itself. Block-causal families keep keys and values of finished blocks, which is exact. With full
attention every step runs the whole canvas (the runtime's caches for these families approximate just that).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import groupby

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from dlm_edge.families.spec import Conventions
from dlm_edge.models.transformer import DiffusionTransformer, dense_attention
from dlm_edge.quant.token_weights import predictions
from dlm_edge.runtime.blocks import Block, Canvas, grid_edges, plan_blocks
from dlm_edge.runtime.samplers.contract import SelectState
from dlm_edge.runtime.samplers.threshold import Options, select
from dlm_edge.runtime.scores import Scores

Ids = NDArray[np.int64]
ROWS_AT_ONCE = 64


@dataclass(frozen=True, slots=True)
class State:
    """What one step saw from `start` on: the active block, or the whole canvas where attention is full.

    `confidence` is the probability of the prediction for each hidden token, 0 elsewhere; `share` of the active
    block is hidden.
    """

    start: int
    ids: Ids  # [width]
    hidden: NDArray[np.bool_]  # [width]
    confidence: NDArray[np.float32]  # [width]
    share: float


@dataclass(frozen=True, slots=True)
class Prompt:
    ids: tuple[int, ...]
    gen_len: int


@dataclass(slots=True)
class Trajectory:
    """One prompt being answered. `canvas` is final up to where decoding stopped."""

    canvas: Canvas
    blocks: list[Block]
    states: list[State] = field(default_factory=list)
    stopped: bool = False

    @property
    def final_ids(self) -> Ids:
        return self.canvas.ids

    def observe(self, block: Block, confidence: NDArray[np.float32], ids: Ids, start: int, end: int) -> None:
        """Keep the present state of [start, end), then commit in the active sub-block; predictions from `start` on."""
        canvas, seen = self.canvas, slice(start, end)
        hidden = canvas.is_masked[seen].copy()
        sure = np.where(hidden, confidence, 0).astype(np.float32)
        share = float(canvas.is_masked[block.start : block.end].mean())
        self.states.append(State(start, canvas.ids[seen].copy(), hidden, sure, share))
        span = next(s for s in block.spans if len(canvas.masked(s.start, s.end)))
        positions = canvas.masked(span.start, span.end)
        chosen = confidence[positions - start].astype(np.float64)
        unread = np.full(len(positions), np.nan)  # the sampler looks at confidences alone
        scores = Scores(positions, ids[positions - start], chosen, chosen, unread, unread)
        step = SelectState(
            step=0,
            n_masked=len(positions),
            n_steps=len(positions),
            span=(span.start, span.end),
            block=(block.start, block.end),
            canvas=canvas,
        )
        commits = select(scores, step, Options())
        canvas.commit(commits.positions, commits.ids)

    def finish(self, block: Block, stop_ids: Sequence[int]) -> None:
        first = max(block.start, self.canvas.prompt_len)
        last = min(block.end, self.canvas.prompt_len + self.canvas.gen_len)
        self.stopped = bool(np.isin(self.canvas.ids[first:last], stop_ids).any())


def lay_out(prompt: Prompt, conventions: Conventions) -> Trajectory:
    length = conventions.block_length
    start, end = grid_edges(conventions, len(prompt.ids), prompt.gen_len, length)
    blocks = plan_blocks(
        start,
        end,
        prompt_len=len(prompt.ids),
        block_length=length,
        sub_block_length=conventions.sub_block_length,
        steps=None,
    )
    return Trajectory(Canvas(prompt.ids, prompt.gen_len, end, conventions.mask_id), blocks)


@torch.inference_mode()
def denoise(model: DiffusionTransformer, prompts: Iterable[Prompt]) -> list[Trajectory]:
    """All prompts to their end; trajectories by first block and length. Raises E-NUM."""
    conventions = model.spec.conventions
    full = conventions.attention == "full"

    def alike(trajectory: Trajectory) -> tuple[int, int]:
        return (0, len(trajectory.final_ids)) if full else (trajectory.blocks[0].start, 0)

    # Full attention pads to the longest, so only neighbours in length go together; the others share a first block.
    laid_out = sorted((lay_out(p, conventions) for p in prompts), key=alike)
    for _, group in groupby(laid_out, (lambda t: alike(t)[1] // 32) if full else alike):
        members = list(group)
        for i in range(0, len(members), ROWS_AT_ONCE):
            (denoise_canvases if full else denoise_blocks)(model, members[i : i + ROWS_AT_ONCE])
    return laid_out


class PrefixAttention:
    """Attention over kept keys and values and the tokens at hand; layers call it in turn.

    Passes with `keep` on store what they compute, for those that come after.
    """

    def __init__(self, n_layers: int) -> None:
        self.kept: list[tuple[Tensor, Tensor] | None] = [None] * n_layers
        self.turn, self.keep = 0, False

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        earlier = self.kept[self.turn]
        if earlier is not None:
            k, v = torch.cat([earlier[0], k], 2), torch.cat([earlier[1], v], 2)
        if self.keep:
            self.kept[self.turn] = k, v
        self.turn = (self.turn + 1) % len(self.kept)
        return F.scaled_dot_product_attention(q, k, v, enable_gqa=q.shape[1] != k.shape[1])

    def only(self, rows: Tensor) -> PrefixAttention:
        """The same for some of the rows."""
        part = PrefixAttention(len(self.kept))
        part.kept = [None if kv is None else (kv[0][rows], kv[1][rows]) for kv in self.kept]
        return part


def denoise_blocks(model: DiffusionTransformer, rows: list[Trajectory]) -> None:
    """Rows whose first blocks begin at one position: block by block in step, each row as long as it needs."""
    conventions, prefix = model.spec.conventions, PrefixAttention(model.spec.n_layers)
    last = store_prompt(model, rows, prefix)
    for index in range(max(len(row.blocks) for row in rows)):
        going = [i for i, row in enumerate(rows) if not row.stopped and index < len(row.blocks)]
        if not going:
            return
        if len(going) < len(rows):
            chosen = torch.tensor(going)
            rows, prefix, last = [rows[i] for i in going], prefix.only(chosen), None if last is None else last[chosen]
        block = rows[0].blocks[index]
        fill_block(model, rows, index, prefix, None if last is None else predictions(model, last))
        for row in rows:
            row.finish(row.blocks[index], conventions.stop_ids)
        last = store(model, rows, prefix, block.start, block.end)


def store_prompt(model: DiffusionTransformer, rows: list[Trajectory], prefix: PrefixAttention) -> Tensor | None:
    """Whole blocks of the prompts, one after another; the last position's output [rows, hidden_size]."""
    last, length = None, model.spec.conventions.block_length
    for start in range(0, rows[0].blocks[0].start, length):
        last = store(model, rows, prefix, start, start + length)
    return last


def store(model: DiffusionTransformer, rows: list[Trajectory], prefix: PrefixAttention, start: int, end: int) -> Tensor:
    prefix.keep = True
    out = run_window(model, rows, prefix, start, end)
    prefix.keep = False
    return out[:, -1]


def run_window(
    model: DiffusionTransformer, rows: list[Trajectory], attend: PrefixAttention, start: int, end: int
) -> Tensor:
    ids = torch.from_numpy(np.stack([row.canvas.ids[start:end] for row in rows]))
    return model.run_layers(model.embed(ids), torch.arange(start, end), attend)


def fill_block(
    model: DiffusionTransformer,
    rows: list[Trajectory],
    index: int,
    prefix: PrefixAttention,
    carried: tuple[Tensor, Tensor] | None,
) -> None:
    """`carried`: what the last finished token predicts for the block's first one, where logits are shifted."""
    conventions = model.spec.conventions
    shift, (start, end) = conventions.logit_shift, (rows[0].blocks[index].start, rows[0].blocks[index].end)
    first = None if carried is None or not shift else (carried[0].numpy(), carried[1].numpy())
    if first is not None and conventions.first_token_rule == "previous_logit":
        for row, token in zip(rows, first[1], strict=True):
            if row.canvas.is_masked[start]:
                row.canvas.commit(np.array([start]), np.array([token]))
    active, attend = list(range(len(rows))), prefix
    while True:
        left = [n for n, i in enumerate(active) if rows[i].canvas.is_masked[start:end].any()]
        if not left:
            return
        if len(left) < len(active):
            active, attend = [active[n] for n in left], attend.only(torch.tensor(left))
        out = run_window(model, [rows[i] for i in active], attend, start, end)
        confidence, ids = window_predictions(model, out, shift)
        for n, i in enumerate(active):
            if first is not None:
                confidence[n, 0], ids[n, 0] = first[0][i], first[1][i]
            rows[i].observe(rows[i].blocks[index], confidence[n], ids[n], start, end)


def window_predictions(model: DiffusionTransformer, out: Tensor, shift: int) -> tuple[NDArray[np.float32], Ids]:
    """Confidence and id [rows, seq] of every position from the last layer's output [rows, seq, hidden_size]."""
    source = (torch.arange(out.shape[1]) - shift).clamp_min(0)
    confidence, ids = predictions(model, out[:, source].flatten(0, 1))
    return confidence.view(out.shape[:2]).numpy(), ids.view(out.shape[:2]).numpy()


def denoise_canvases(model: DiffusionTransformer, rows: list[Trajectory]) -> None:
    """Full attention: all canvases in one padded batch, each at its own block; padding is never a key."""
    conventions = model.spec.conventions
    at = [0] * len(rows)
    active = list(range(len(rows)))
    while active:
        present = [rows[i] for i in active]
        lengths = torch.tensor([len(row.final_ids) for row in present])
        longest = int(lengths.max())
        ids = np.full((len(present), longest), conventions.pad_id)
        for line, row in zip(ids, present, strict=True):
            line[: len(row.final_ids)] = row.final_ids
        real = torch.arange(longest) < lengths[:, None]
        attend = dense_attention(None if real.all() else real[:, None, None])
        out = model.run_layers(model.embed(torch.from_numpy(ids)), torch.arange(longest), attend)
        confidence, predicted = window_predictions(model, out, conventions.logit_shift)
        for n, i in enumerate(active):
            row, block = rows[i], rows[i].blocks[at[i]]
            end = len(row.final_ids)
            row.observe(block, confidence[n, :end], predicted[n, :end], 0, end)
            if not row.canvas.is_masked[block.start : block.end].any():
                row.finish(block, conventions.stop_ids)
                at[i] += 1
        active = [i for i in active if not rows[i].stopped and at[i] < len(rows[i].blocks)]
