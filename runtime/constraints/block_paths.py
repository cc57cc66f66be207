"""Valid fillings of the open slots of a block: the likeliest, a drawn one, and the tokens that any of them uses.

Dynamic programming over the states of the automaton, slot by slot (DINGO, Suresh et al. 2025, arXiv 2505.23061),
here with committed slots anywhere, with draws, and with the tokens of each slot that some valid filling has. Whatever
filling is returned, all its ids lie on one valid path, so committing any part of them leaves a valid completion.

Probabilities below exp(FLOOR) count as exp(FLOOR): the model may think the only valid text impossible.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from dlm_edge.runtime.constraints.automaton import DEAD
from dlm_edge.runtime.constraints.layer import END, Flags, Layer, Row, Values, by_first, layer_after
from dlm_edge.runtime.constraints.token_edges import Ints, Longs, Partition, TokenEdges

FLOOR = -500.0
MAX_WIDTH = 512  # states per slot; beyond it the least likely are left out
MAX_LAYER_BYTES = 64 << 20  # of layers kept for the next steps


@dataclass(slots=True)
class Slots:
    """A stretch of the text from its first open slot on, and what the model says about it."""

    committed: NDArray[np.int64]  # [n] ids, -1 where open
    rows: list[Row | None]  # [n] log-probabilities up to a constant, 0 or less; None where the model gave none


@dataclass(slots=True)
class Trellis:
    """What a forward pass leaves behind, slot by slot."""

    states: list[Ints] = field(default_factory=list)  # [n + 1] before each slot, and after the last
    scores: list[Values] = field(default_factory=list)  # [n + 1]
    layers: list[Layer | None] = field(default_factory=list)  # [n] None: committed
    edge_scores: list[Values] = field(default_factory=list)  # [n]
    sources: list[Longs] = field(default_factory=list)  # [n] of the edges
    targets: list[Longs] = field(default_factory=list)  # [n] of the edges, -1: left out


class BlockPaths:
    def __init__(self, edges: TokenEdges, stop_ids: Sequence[int], max_width: int = MAX_WIDTH) -> None:
        """`stop_ids` end the text where the automaton accepts, and may be repeated from there on."""
        self.edges, self.max_width = edges, max_width
        self.stops = Partition(np.unique(np.array(stop_ids, np.int32)), np.zeros(1, np.int64))
        self._layers: dict[bytes, Layer] = {}
        self._layer_bytes = 0

    def forward(self, start: int, slots: Slots, kept: Callable[[], Sequence[int]]) -> Trellis:
        """The best score of each state before each slot.

        `kept` gives a valid filling [n] whose states are never left out, which keeps a wide search from ending nowhere.
        """
        if self.edges.forget_if_large():
            self._forget_layers()
        trellis = Trellis([np.array([start], np.int32)], [np.zeros(1)])
        kept_states: list[int] = []
        for slot, token in enumerate(slots.committed.tolist()):
            before, score = trellis.states[-1], trellis.scores[-1]
            if token >= 0:
                after = self.after(before, token)
                sources = np.flatnonzero(after != DEAD)
                states, targets = by_first(after[sources])
                edge_scores, layer = score[sources], None
                best = np.full(len(states), -np.inf)
                np.maximum.at(best, targets, edge_scores)
            else:
                layer = self.layer(before)
                values = layer.group_values(slots.rows[slot], np.maximum.reduceat)
                edge_scores, sources = score[layer.sources] + values[layer.groups], layer.sources
                states, targets = layer.targets, layer.owners
                assert len(states), "no token goes on from any state"
                best = np.maximum.reduceat(edge_scores, layer.starts)
            assert len(states), "the committed tokens lie on no valid path"
            if len(states) > self.max_width:
                kept_states = kept_states or self._states_of(start, kept())
                states, best, targets = self._narrowed(states, best, targets, kept_states[slot])
            trellis.layers.append(layer)
            trellis.edge_scores.append(edge_scores)
            trellis.sources.append(sources)
            trellis.targets.append(targets)
            trellis.states.append(states)
            trellis.scores.append(best)
        return trellis

    def _states_of(self, start: int, ids: Sequence[int]) -> list[int]:
        """The state after each of the tokens."""
        found, at = [], np.array([start], np.int32)
        for token in ids:
            at = self.after(at, token)
            found.append(int(at[0]))
        return found

    def _narrowed(self, states: Ints, best: Values, targets: Longs, kept_state: int) -> tuple[Ints, Values, Longs]:
        is_in = np.zeros(len(states), bool)
        is_in[np.argsort(-best, kind="stable")[: self.max_width]] = True
        is_in |= states == kept_state
        new_index = np.where(is_in, np.cumsum(is_in) - 1, -1)
        return states[is_in], best[is_in], new_index[targets]

    def after(self, states: Ints, token: int) -> Ints:
        """The state after a committed token, for each of `states`."""
        if token in self.stops.tokens:
            may_end = [s == END or self.edges.automaton.accepts(s) for s in states.tolist()]
            return np.where(may_end, END, DEAD).astype(np.int32)
        after: Ints = np.full(len(states), DEAD, np.int32)
        inside = states != END
        after[inside] = self.edges.step(states[inside], token)
        return after

    def layer(self, states: Ints) -> Layer:
        key = states.tobytes()
        if key not in self._layers:
            if self._layer_bytes > MAX_LAYER_BYTES:
                self._forget_layers()
            self._layers[key] = layer_after(states, self.edges, self.stops)
            self._layer_bytes += self._layers[key].n_bytes
        return self._layers[key]

    def _forget_layers(self) -> None:
        self._layers, self._layer_bytes = {}, 0


def living(trellis: Trellis, is_end: Flags) -> list[Flags]:
    """[n + 1] which states before each slot, and after the last, lie on a path to an end that `is_end` marks."""
    alive = [is_end]
    for sources, targets, states in zip(
        reversed(trellis.sources), reversed(trellis.targets), reversed(trellis.states[:-1]), strict=True
    ):
        reaches = alive[-1][targets] & (targets >= 0)
        flags = np.zeros(len(states), bool)
        flags[sources[reaches]] = True
        alive.append(flags)
    return alive[::-1]


def allowed_tokens(trellis: Trellis, alive: Sequence[Flags], slot: int, vocab_size: int) -> Flags:
    """[vocab_size] the tokens that some valid filling has in an open slot."""
    layer = trellis.layers[slot]
    assert layer is not None
    targets = trellis.targets[slot]
    reaches = alive[slot + 1][targets] & (targets >= 0)
    is_marked, mask = np.zeros(sum(map(len, layer.sizes)), bool), np.zeros(vocab_size, bool)
    is_marked[layer.groups[reaches]] = True
    layer.mark_tokens(is_marked, mask)
    return mask


def best_filling(trellis: Trellis, slots: Slots, is_end: Flags) -> NDArray[np.int64]:
    """[n] the ids of the likeliest valid filling (Viterbi, 1967). Of equals: the state found first, then the lowest id."""
    ids = slots.committed.copy()
    ends = np.where(is_end, trellis.scores[-1], -np.inf)
    at = int(np.argmax(ends))
    for slot in reversed(range(len(ids))):
        edges = np.flatnonzero(trellis.targets[slot] == at)
        scores, layer = trellis.edge_scores[slot][edges], trellis.layers[slot]
        edges = edges[scores == scores.max()]
        if layer is not None:
            row = slots.rows[slot]
            choices = [layer.tokens_of(g) for g in layer.groups[edges].tolist()]
            tokens = [int(c[0] if row is None else c[np.argmax(row[c])]) for c in choices]
            ids[slot] = min(tokens)
            edges = edges[[int(np.argmin(tokens))]]
        at = int(trellis.sources[slot][edges[0]])
    return ids


def drawn_filling(
    trellis: Trellis, slots: Slots, alive: Sequence[Flags], uniforms: NDArray[np.float64]
) -> NDArray[np.int64]:
    """[n] ids drawn from the product of the rows' distributions, given that the filling is valid; `uniforms` [n].

    Forward filtering, backward sampling: sums of path probabilities left to right, then states and tokens from
    right to left. The trellis gives the states; `slots` may hold other rows than it was made with.
    """
    sums = [np.zeros(1)]
    edge_sums: list[Values] = []
    for slot, layer in enumerate(trellis.layers):
        values = 0.0 if layer is None else layer.group_values(slots.rows[slot], log_sums)[layer.groups]
        scores = sums[-1][trellis.sources[slot]] + values
        targets = trellis.targets[slot]
        scores[~(alive[slot + 1][targets] & (targets >= 0))] = -np.inf
        edge_sums.append(scores)
        total = np.full(len(trellis.states[slot + 1]), -np.inf)
        np.logaddexp.at(total, targets[targets >= 0], scores[targets >= 0])
        sums.append(total)
    ids = slots.committed.copy()
    at, u = draw(np.where(alive[-1], sums[-1], -np.inf), float(uniforms[-1]))
    for slot in reversed(range(len(ids))):
        edges = np.flatnonzero(trellis.targets[slot] == at)
        layer = trellis.layers[slot]
        edge, u = draw(edge_sums[slot][edges], u if slot + 1 == len(ids) else float(uniforms[slot]))
        if layer is not None:
            tokens, row = layer.tokens_of(int(layer.groups[edges[edge]])), slots.rows[slot]
            ids[slot] = tokens[draw(np.zeros(len(tokens)) if row is None else row[tokens].astype(np.float64), u)[0]]
        at = int(trellis.sources[slot][edges[edge]])
    return ids


def log_sums(values: Row, starts: Longs) -> Values:
    """log of the sum of exp(values) from each start to the next. The values are FLOOR to 0, so nothing underflows."""
    sums: Values = np.log(np.add.reduceat(np.exp(values.astype(np.float64)), starts))
    return sums


def draw(scores: Values, u: float) -> tuple[int, float]:
    """An index with probability proportional to exp(score), and what is left of `u` for a draw inside it."""
    cumulative = np.cumsum(np.exp(scores - scores.max()))
    target = u * cumulative[-1]
    index = int(np.searchsorted(cumulative, target, side="right"))
    index = min(index, int(np.flatnonzero(scores > -np.inf)[-1]))
    before = cumulative[index - 1] if index else 0.0
    width = cumulative[index] - before
    return index, min(float((target - before) / width), 1 - 2.0**-53) if width > 0 else 0.0
