"""The denoising loop in plain torch, without a cache: slow, obvious, and the definition of `static` decoding.

The canvas. The generated part is cut into blocks of `block_length`, on a grid that starts at position 0
(`grid_origin` zero: the first block may begin with the end of the prompt) or at the end of the prompt.
The canvas ends where the block that holds position prompt + gen_len - 1 ends; tokens beyond gen_len are
decoded like all others and then dropped. A block is decoded in its sub-blocks, left to right; most families
have one sub-block per block. With full attention every forward pass sees the whole canvas, later blocks as
masks. With block-causal attention it sees the canvas up to the end of the present block: nothing later exists.

One step. The scores of position i are the logits of row i, or of row i - 1 with `logit_shift` 1 (position 0
then uses row 0), in float32, cut to `vocab_size`, with the mask id at -infinity before the softmax. The
prediction of a position is the id of its highest probability (the lowest id among equals) and its confidence
is that probability. A step commits the `quota` most confident masked positions of the sub-block, equals in
favour of the lower position; with a threshold, all whose confidence reaches it, and always at least one.

The quota. A sub-block with m masks and k steps (1 <= k <= m) commits m // k per step, and one more in the first
m % k steps. k is m unless `steps` or `steps_per_block` say otherwise: `steps_per_block` is shared out over the
sub-blocks of a block that hold masks, `steps` over all sub-blocks of the canvas that do, as evenly as
possible, the first ones taking one more. `tokens_per_step` is the quota itself.

The first token of a block. With block-causal attention and `first_token_rule` previous_logit, a block that
begins with a mask gets its first token before its first step, from the logits of the last clean position, in
a forward pass over the clean tokens alone (a cached runtime has these logits from the pass that stores the
block before). It uses no step of the quota. At position 0 there is no clean token, and the rule does not apply.

The end. After a block in which an id of `stop_ids` was generated (all of the block is committed by then),
decoding stops. The result is what stands before the first stop id, at most gen_len ids. Stop ids in the
prompt mean nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dlm_edge.errors import JobError, UsageProblem
from dlm_edge.families.spec import ModelSpec
from dlm_edge.models.transformer import DiffusionTransformer


@dataclass(frozen=True, slots=True)
class PlainResult:
    """`ids` end before the first stop id; `commits` holds for every forward pass the (position, id) it committed."""

    ids: list[int]
    commits: list[list[tuple[int, int]]]
    stopped: bool  # by a stop id

    @property
    def forward_passes(self) -> int:
        return len(self.commits)


@dataclass(frozen=True, slots=True, kw_only=True)
class PlainSettings:
    """None for block_length: the family's own. At most one of the last four is given."""

    gen_len: int
    block_length: int | None = None
    steps: int | None = None
    steps_per_block: int | None = None
    tokens_per_step: int | None = None
    threshold: float | None = None

    def __post_init__(self) -> None:
        for key in ("gen_len", "block_length", "steps", "steps_per_block", "tokens_per_step"):
            value = getattr(self, key)
            if value is not None and value < 1:
                raise UsageProblem("E-PARAM", f"{key} is {value}", "give a number from 1 up")
        given = [
            k for k in ("steps", "steps_per_block", "tokens_per_step", "threshold") if getattr(self, k) is not None
        ]
        if len(given) > 1:
            raise UsageProblem("E-PARAM", f"{' and '.join(given)} exclude each other", "give one of them")
        if self.threshold is not None and not self.threshold > 0:
            raise UsageProblem(
                "E-PARAM", f"threshold is {self.threshold}", "give a probability; above 1 means one by one"
            )


def generate(
    model: DiffusionTransformer,
    prompt_ids: list[int],
    *,
    gen_len: int,
    block_length: int | None = None,
    steps: int | None = None,
    steps_per_block: int | None = None,
    tokens_per_step: int | None = None,
    threshold: float | None = None,
) -> list[int]:
    """The generated ids before the first stop id; see the module's text for every rule."""
    settings = PlainSettings(
        gen_len=gen_len,
        block_length=block_length,
        steps=steps,
        steps_per_block=steps_per_block,
        tokens_per_step=tokens_per_step,
        threshold=threshold,
    )
    return decode(model, prompt_ids, settings).ids


@torch.no_grad()
def decode(model: DiffusionTransformer, prompt_ids: list[int], settings: PlainSettings) -> PlainResult:
    """`generate` with the order of commits. Raises E-PROMPT, E-CONTEXT, E-PARAM, E-NUM."""
    spec, n_prompt = model.spec, len(prompt_ids)
    blocks = lay_blocks(spec, n_prompt, settings)
    _check_prompt(spec, prompt_ids, settings.gen_len)
    canvas = torch.full((blocks[-1][-1][1],), spec.conventions.mask_id)
    canvas[:n_prompt] = torch.tensor(prompt_ids, dtype=torch.long)
    run = _Run(model, canvas, n_prompt)
    shares = share_steps(blocks, n_prompt, settings)
    for block in blocks:
        run.decode_block(block, shares, settings)
        if run.has_stopped(block):
            break
    generated = canvas[n_prompt : n_prompt + settings.gen_len].tolist()
    stops = [i for i, token in enumerate(generated) if token in spec.conventions.stop_ids]
    return PlainResult(generated[: stops[0]] if stops else generated, run.commits, bool(stops))


Window = tuple[int, int]


def lay_blocks(spec: ModelSpec, n_prompt: int, settings: PlainSettings) -> list[list[Window]]:
    """The blocks that hold generated positions, each as the windows [start, end) of its sub-blocks."""
    conventions = spec.conventions
    length = settings.block_length or conventions.block_length
    if conventions.attention != "full" and length != conventions.block_length:
        raise UsageProblem(
            "E-PARAM",
            f"block_length is {length}, and this model's attention has blocks of {conventions.block_length}",
            "leave it out",
        )
    sub = conventions.sub_block_length if length == conventions.block_length else length
    origin = 0 if conventions.grid_origin == "zero" else n_prompt
    first = origin + (n_prompt - origin) // length * length
    starts = range(first, n_prompt + settings.gen_len, length)
    return [[(s, min(s + sub, start + length)) for s in range(start, start + length, sub)] for start in starts]


def share_steps(blocks: list[list[Window]], n_prompt: int, settings: PlainSettings) -> dict[Window, int]:
    """How many steps each window gets; a window without an entry takes one step per mask."""
    masked = [[window for window in block if window[1] > n_prompt] for block in blocks]
    if settings.steps is not None:
        groups, total = [[window for block in masked for window in block]], settings.steps
    elif settings.steps_per_block is not None:
        groups, total = masked, settings.steps_per_block
    else:
        return {}
    return {
        window: max(1, total // len(group) + (i < total % len(group)))
        for group in groups
        for i, window in enumerate(group)
    }


def quotas(n_masked: int, n_steps: int) -> list[int]:
    """How many positions each step commits: they sum up to n_masked, and none is zero."""
    n_steps = min(n_steps, n_masked)
    return [n_masked // n_steps + (i < n_masked % n_steps) for i in range(n_steps)]


class _Run:
    """The canvas of one request and what was committed to it."""

    def __init__(self, model: DiffusionTransformer, canvas: Tensor, n_prompt: int) -> None:
        self.model, self.canvas, self.n_prompt = model, canvas, n_prompt
        self.conventions = model.spec.conventions
        self.origin = 0 if self.conventions.grid_origin == "zero" else n_prompt
        self.commits: list[list[tuple[int, int]]] = []

    def decode_block(self, block: list[Window], shares: dict[Window, int], settings: PlainSettings) -> None:
        full = self.conventions.attention == "full"
        start, end = block[0][0], len(self.canvas) if full else block[-1][1]
        all_masked = start >= self.n_prompt
        if not full and self.conventions.first_token_rule == "previous_logit" and all_masked and start > 0:
            self.commit(start, *self.predict(start, start + 1, seen=start), quota=1)
        for window in block:
            n_masked = len(self.masked(window))
            if settings.tokens_per_step is not None:
                plan = [settings.tokens_per_step] * n_masked
            else:
                plan = quotas(n_masked, shares.get(window, n_masked)) if n_masked else []
            for quota in plan:
                if len(self.masked(window)) == 0:
                    break
                confidence, ids = self.predict(*window, seen=end)
                self.commit(window[0], confidence, ids, quota=quota, threshold=settings.threshold)

    def predict(self, start: int, end: int, *, seen: int) -> tuple[Tensor, Tensor]:
        """Confidence and id of every position of [start, end), from a pass over the canvas [0, seen)."""
        logits = self.model(self.canvas[None, :seen], origin=self.origin)[0]
        rows = (torch.arange(start, end) - self.conventions.logit_shift).clamp_min(0)
        scores = logits[rows, : self.model.spec.vocab_size].float()
        if self.conventions.mask_id < scores.shape[1]:
            scores[:, self.conventions.mask_id] = float("-inf")
        if scores.isnan().any() or (scores == float("inf")).any():
            raise JobError("E-NUM", f"NaN or infinite logits for positions {start} to {end}", "check the weights")
        confidence, ids = scores.softmax(-1).max(-1)  # torch's max takes the first of equals
        return confidence, ids

    def commit(
        self, start: int, confidence: Tensor, ids: Tensor, *, quota: int, threshold: float | None = None
    ) -> None:
        """Turn predictions of still masked positions into tokens, the most confident first."""
        candidates = self.masked((start, start + len(ids)))
        order = sorted(candidates, key=lambda p: (-confidence[p - start].item(), p))
        if threshold is not None:
            quota = max(1, sum(confidence[p - start].item() >= threshold for p in order))
        chosen = [(p, int(ids[p - start])) for p in order[:quota]]
        for position, token in chosen:
            self.canvas[position] = token
        self.commits.append(chosen)

    def masked(self, window: Window) -> list[int]:
        """Positions of the window still to be decoded; the prompt holds no mask."""
        return [p for p in range(*window) if int(self.canvas[p]) == self.conventions.mask_id]

    def has_stopped(self, block: list[Window]) -> bool:
        generated = self.canvas[max(block[0][0], self.n_prompt) : block[-1][1]].tolist()
        return any(token in self.conventions.stop_ids for token in generated)


def _check_prompt(spec: ModelSpec, prompt_ids: list[int], gen_len: int) -> None:
    wrong = [token for token in prompt_ids if not 0 <= token < spec.vocab_size or token == spec.conventions.mask_id]
    if wrong:
        what = f"the prompt holds id {wrong[0]}; ids go from 0 to {spec.vocab_size - 1}, without the mask id"
        raise UsageProblem("E-PROMPT", f"{what} {spec.conventions.mask_id}", "tokenize it with the model's tokenizer")
    if len(prompt_ids) + gen_len > spec.max_positions:
        raise UsageProblem(
            "E-CONTEXT",
            f"a prompt of {len(prompt_ids)} and {gen_len} new tokens exceed the context of {spec.max_positions}",
            "shorten one of them",
        )
