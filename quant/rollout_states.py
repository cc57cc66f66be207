"""`rollout`: states that real denoising visits, drawn to a quota over the share of hidden tokens.

Prompts come from the calibration rows: a row's own prompt, or a random prefix of its text. The full-precision model
answers them by the runtime's own schedule (trajectories.py), every visited state is kept, and the quota is drawn from
these (timestep/mask adaptive sampling of DLLMQuant, arXiv 2508.14090). Block-causal families: the chosen states of a
trajectory share one pass over its finished blocks. Trajectories lie one after another in a row of about BATCH_TOKENS.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dlm_edge.errors import InputFileError
from dlm_edge.families.spec import Conventions, ModelSpec
from dlm_edge.models.transformer import DiffusionTransformer
from dlm_edge.quant.forward_states import clean_weights
from dlm_edge.quant.row_batches import in_fixed_order
from dlm_edge.quant.state_attention import packed_attention, stream_mask
from dlm_edge.quant.state_batch import BATCH_TOKENS, QUOTAS, Batch, Row, StateConfig
from dlm_edge.quant.token_weights import token_weights
from dlm_edge.quant.trajectories import Prompt, State, Trajectory, denoise

GENERATED = 32  # tokens after a prefix, at least: many short answers vary more than a few long ones
ROUND = 64  # prompts answered before it is counted what was visited
ENOUGH = 3  # states visited per state wanted, after which a bucket that is still short stays so
SHORT = 0.5  # of its quota: a bucket with less is reported


def rollout_batches(
    rows: Sequence[Row], model: DiffusionTransformer, config: StateConfig, seed: int, n_tokens: int
) -> tuple[list[Batch], list[str]]:
    """Batches, and sentences on buckets that the schedule visits too rarely. Raises E-CALIB, E-NUM."""
    spec, rng = model.spec, random.Random(f"rollout/{seed}")
    assert spec.conventions.attention != "causal", "no family denoises under causal attention"
    quota, pool = QUOTAS[config.quota], list[tuple[Trajectory, State]]()
    wanted = 0
    for prompts in rounds(rows, spec, rng):
        pool += [(t, s) for t in denoise(model, prompts) for s in t.states]
        if not pool:
            continue
        width = sum(len(s.ids) for _, s in pool) / len(pool)
        wanted = max(1, round(n_tokens / width))
        counts = bucket_counts(pool, len(quota))
        if all(c >= wanted * q for c, q in zip(counts, quota, strict=True)) or len(pool) >= ENOUGH * wanted:
            break
    if not pool:
        raise InputFileError(
            "E-CALIB", "no row leaves room for an answer", "give shorter rows, or --calibration forward"
        )
    chosen, notes = draw(pool, wanted, quota, rng)
    segments = [segment(t, states, spec.conventions, config) for t, states in by_trajectory(chosen, spec.conventions)]
    return list(packed(segments)), notes


def rounds(rows: Sequence[Row], spec: ModelSpec, rng: random.Random) -> Iterator[list[Prompt]]:
    """Prompts in random order. Repeated rows without a prompt are cut elsewhere; a question is answered once."""
    length = spec.conventions.block_length
    ordered, prompts = in_fixed_order(rows, length), list[Prompt]()
    for row in ordered:
        n_prompt = row.n_prompt or rng.randint(1, max(1, row.n_content - 1))
        room = spec.max_positions - n_prompt
        answer = row.n_content - n_prompt + length if row.n_prompt else max(2 * length, GENERATED)
        gen_len = min(room, max(2 * length, GENERATED), max(answer, length))
        if gen_len > 0:
            prompts.append(Prompt(row.ids[:n_prompt], gen_len))
    prompts = list(dict.fromkeys(prompts))
    rng.shuffle(prompts)
    for i in range(0, len(prompts), ROUND):
        yield prompts[i : i + ROUND]


def bucket(share: float, n_buckets: int) -> int:
    return max(0, int(np.ceil(share * n_buckets)) - 1)


def bucket_counts(pool: Sequence[tuple[Trajectory, State]], n_buckets: int) -> list[int]:
    found = np.bincount([bucket(s.share, n_buckets) for _, s in pool], minlength=n_buckets)
    counts: list[int] = found.tolist()
    return counts


def draw(
    pool: Sequence[tuple[Trajectory, State]], wanted: int, quota: Sequence[float], rng: random.Random
) -> tuple[list[tuple[Trajectory, State]], list[str]]:
    """`wanted` states without repetition, quota[i] of them from bucket i; what a bucket lacks the others give."""
    members = [[i for i, (_, s) in enumerate(pool) if bucket(s.share, len(quota)) == b] for b in range(len(quota))]
    taken, left, notes = list[int](), list[int](), list[str]()
    for b, (inside, share) in enumerate(zip(members, quota, strict=True)):
        rng.shuffle(inside)
        count = round(wanted * share)
        taken, left = taken + inside[:count], left + inside[count:]
        if len(inside) < SHORT * count:
            low, high = 100 * b // len(quota), 100 * (b + 1) // len(quota)
            notes.append(
                f"rollout visited only {len(inside)} states with {low} to {high} % of the active block hidden, "
                f"where the quota asks for {count}"
            )
    rng.shuffle(left)
    taken += left[: wanted - len(taken)]
    if len(taken) < wanted:
        notes.append(f"rollout visited {len(taken)} states, where {wanted} were wanted: give more text")
    return [pool[i] for i in sorted(taken[:wanted])], notes


def by_trajectory(
    chosen: Sequence[tuple[Trajectory, State]], conventions: Conventions
) -> Iterator[tuple[Trajectory, list[State]]]:
    """States that can share a pass: those of one trajectory, under full attention each alone."""
    if conventions.attention == "full":
        yield from ((t, [s]) for t, s in chosen)
        return
    together: dict[int, tuple[Trajectory, list[State]]] = {}
    for trajectory, state in chosen:
        together.setdefault(id(trajectory), (trajectory, []))[1].append(state)
    yield from together.values()


@dataclass(frozen=True, slots=True)
class Segment:
    """One trajectory's part of a batch, all [seq]."""

    ids: Tensor
    originals: Tensor
    positions: Tensor
    weights: Tensor
    mask: Tensor | None


def segment(trajectory: Trajectory, states: Sequence[State], conventions: Conventions, config: StateConfig) -> Segment:
    """Finished text up to the last of the states' blocks (none under full attention), then each state."""
    final = torch.from_numpy(trajectory.final_ids)
    n_clean = max(s.start for s in states)  # 0 under full attention
    spans = [torch.arange(s.start, s.start + len(s.ids)) for s in states]
    positions = torch.cat([torch.arange(n_clean), *spans])
    noisy = torch.from_numpy(np.concatenate([s.ids for s in states]))
    weights = torch.cat(
        [clean_weights(n_clean, conventions, config.clean)] + [state_weights(s, conventions, config) for s in states]
    )
    mask = None
    if conventions.attention != "full":
        copies = [torch.full((len(s.ids),), n) for n, s in enumerate(states, 1)]
        mask = stream_mask(positions, torch.cat([torch.zeros(n_clean), *copies]), conventions.block_length)
    return Segment(torch.cat([final[:n_clean], noisy]), final[positions], positions, weights, mask)


def state_weights(state: State, conventions: Conventions, config: StateConfig) -> Tensor:
    hidden = torch.from_numpy(state.hidden)[None]
    sure = torch.from_numpy(state.confidence)[None] if config.confidence else None
    content = torch.ones_like(hidden)  # the runtime fills tokens beyond the asked length like all others
    shift, width = conventions.logit_shift, len(state.ids)
    return token_weights(hidden, content, shift=shift, block=width, visible=config.visible, confidence=sure)[0]


def packed(segments: Sequence[Segment]) -> Iterator[Batch]:
    waiting: list[Segment] = []
    for part in segments:
        if waiting and sum(len(s.ids) for s in waiting) + len(part.ids) > BATCH_TOKENS:
            yield pack(waiting)
            waiting = []
        waiting.append(part)
    yield pack(waiting)


def pack(segments: Sequence[Segment]) -> Batch:
    return Batch(
        ids=torch.cat([s.ids for s in segments])[None],
        originals=torch.cat([s.originals for s in segments])[None],
        positions=torch.cat([s.positions for s in segments]),
        weights=torch.cat([s.weights for s in segments])[None],
        attend=packed_attention([len(s.ids) for s in segments], [s.mask for s in segments]),
    )
