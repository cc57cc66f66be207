"""Threshold decoding of many prompts at once in torch: what the runtime does, batched.

Blocks are filled from left to right; a step commits every masked position of the block whose confidence reaches the
threshold, and the most confident one in any case (Fast-dLLM, arXiv 2505.22618). Block-causal models read earlier
blocks from a cache of clean keys and values (prefix.py), models with full attention see their whole canvas each time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dlm_edge.errors import UsageProblem
from dlm_edge.models.transformer import DiffusionTransformer, dense_attention

from .prefix import Prefix

THRESHOLD = 0.9
ROWS_AT_ONCE = 64


@dataclass(frozen=True, slots=True)
class Step:
    """One selection for each of n prompts: `row` [n] which, `start` [n] of its block, `canvas` [n, seq] before it,
    `chosen` [n, block] committed positions, `tokens` [n, block] what is predicted there."""

    row: Tensor
    start: Tensor
    canvas: Tensor
    chosen: Tensor
    tokens: Tensor


class Canvases:
    """Prompts side by side, filled up with masks: `ids` [prompts, seq]; sequence i ends at `end[i]`."""

    def __init__(self, model: DiffusionTransformer, prompts: Sequence[list[int]], gen_lens: Sequence[int]) -> None:
        conventions = model.spec.conventions
        plain = conventions.sub_block_length == conventions.block_length and conventions.first_token_rule == "predicted"
        if not plain or conventions.logit_shift or conventions.attention == "causal":
            raise UsageProblem(
                "E-USAGE", f"{model.spec.family} has a decoding rule that is not batched here", "use eval"
            )
        self.block, self.mask_id, self.stop_ids = conventions.block_length, conventions.mask_id, conventions.stop_ids
        self.n_prompt, self.gen_len = torch.tensor([len(p) for p in prompts]), torch.tensor(gen_lens)
        origin = self.n_prompt if conventions.grid_origin == "prompt_end" else torch.zeros_like(self.n_prompt)
        self.start = origin + (self.n_prompt - origin) // self.block * self.block
        n_blocks = -((self.start - self.n_prompt - self.gen_len) // self.block)
        self.end = self.start + n_blocks * self.block
        self.ids = torch.full((len(prompts), int(self.end.max())), self.mask_id)
        for row, prompt in enumerate(prompts):
            self.ids[row, : len(prompt)] = torch.tensor(prompt)

    def places(self, rows: Tensor) -> Tensor:
        """Positions [n, block] of the present blocks."""
        return self.start[rows, None] + torch.arange(self.block)

    def has_stopped(self, rows: Tensor) -> Tensor:
        """Bool [n]: a generated token of the present block ends the text."""
        places = self.places(rows)
        generated = (places >= self.n_prompt[rows, None]) & (places < (self.n_prompt + self.gen_len)[rows, None])
        return (torch.isin(self.ids[rows[:, None], places], torch.tensor(self.stop_ids)) & generated).any(1)

    def answer(self, row: int) -> list[int]:
        """Generated ids before the first stop id."""
        first = int(self.n_prompt[row])
        ids: list[int] = self.ids[row, first : first + int(self.gen_len[row])].tolist()
        return next((ids[:i] for i, token in enumerate(ids) if token in self.stop_ids), ids)


def predict(
    model: DiffusionTransformer, canvas: Tensor, start: Tensor, end: Tensor, prefix: Prefix | None, rows: Tensor
) -> tuple[Tensor, Tensor]:
    """Confidence and id [n, block] for the blocks from `start` [n] on of `canvas` [n, seq]; `rows` [n] of the prefix."""
    conventions, confidence, tokens = model.spec.conventions, [], []
    for at in range(0, len(rows), ROWS_AT_ONCE):
        part = slice(at, at + ROWS_AT_ONCE)
        places = start[part, None] + torch.arange(conventions.block_length)
        if prefix is not None:
            hidden = prefix.run(rows[part], start[part], canvas[part].gather(1, places))
        else:
            length = int(end[part].max())
            seen = (torch.arange(length) < end[part, None])[:, None, None]
            out = model.run_layers(model.embed(canvas[part, :length]), torch.arange(length), dense_attention(seen))
            hidden = out.gather(1, places[..., None].expand(-1, -1, out.shape[2]))
        logits = model.head(model.final_norm(hidden))[..., : model.spec.vocab_size].float()
        logits[..., conventions.mask_id] = -torch.inf
        best, ids = logits.softmax(-1).max(-1)
        confidence.append(best)
        tokens.append(ids)
    return torch.cat(confidence), torch.cat(tokens)


def choose(confidence: Tensor, masked: Tensor, threshold: float) -> Tensor:
    """Bool [n, block]: which of the `masked` positions are committed; of equally sure ones the first."""
    confidence = confidence.masked_fill(~masked, -1.0)
    surest = torch.zeros_like(masked).scatter_(1, confidence.argmax(1, keepdim=True), True)
    return masked & ((confidence >= threshold) | surest)


@torch.inference_mode()
def decode(
    model: DiffusionTransformer,
    prompts: Sequence[list[int]],
    gen_lens: Sequence[int],
    threshold: float = THRESHOLD,
    on_step: Callable[[Step], None] = lambda step: None,
) -> Canvases:
    """Fill the canvases of all prompts. Raises E-USAGE for a family with other decoding rules."""
    canvases = Canvases(model, prompts, gen_lens)
    prefix = None
    if model.spec.conventions.attention == "block_causal":
        prefix = Prefix(model, canvases.ids, int(canvases.start.max()))
    rows = torch.arange(len(prompts))
    while len(rows):
        places, start = canvases.places(rows), canvases.start[rows]
        confidence, tokens = predict(model, canvases.ids[rows], start, canvases.end[rows], prefix, rows)
        block = canvases.ids[rows[:, None], places]
        chosen = choose(confidence, block == canvases.mask_id, threshold)
        on_step(Step(rows, start, canvases.ids[rows], chosen, tokens))
        block = torch.where(chosen, tokens, block)
        canvases.ids[rows[:, None], places] = block
        full = ~(block == canvases.mask_id).any(1)
        last = canvases.has_stopped(rows) | (start + canvases.block >= canvases.end[rows])
        onward = rows[full & ~last]
        if prefix is not None and len(onward):
            prefix.store(onward, canvases.start[onward], block[full & ~last])
        canvases.start[onward] += canvases.block
        rows = rows[~(full & last)]
    return canvases
