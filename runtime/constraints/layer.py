"""The edges of an open slot: from all states before it to all states after it, and the tokens of each edge."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dlm_edge.runtime.constraints.token_edges import Ints, Longs, Partition, TokenEdges

END = -2  # the state after a stop id, where only stop ids follow
SMALL = 4096  # tokens of a partition that is reduced together with others
Row = NDArray[np.float32]
Values = NDArray[np.float64]
Flags = NDArray[np.bool_]


@dataclass(frozen=True, slots=True, eq=False)
class Layer:
    """The edges of an open slot, from the states before it to the states after it."""

    partitions: list[Partition]  # the small ones joined first
    sizes: list[Longs]  # of each partition's groups
    sources: Longs  # [n_edges] index of the state before
    groups: Longs  # [n_edges] number of the group, through all partitions
    targets: Ints  # [n_targets] states after, in the order of the edges that lead there first
    starts: Longs  # [n_targets] first edge of each target; edges are ordered by target

    @property
    def n_bytes(self) -> int:
        own: list[Longs | Ints] = [self.sources, self.groups, self.targets, self.starts, *self.sizes]
        joined_tokens = self.partitions[0].tokens.nbytes if self.partitions else 0
        return sum(array.nbytes for array in own) + joined_tokens

    @property
    def owners(self) -> Longs:
        return np.repeat(np.arange(len(self.targets)), np.diff(self.starts, append=len(self.groups)))

    def group_values(self, row: Row | None, reduce: Callable[[Row, Longs], Values]) -> Values:
        """[n_groups] `reduce` over the tokens of each group; `row` None: every token has 0."""
        values = [
            reduce(np.zeros(len(p.tokens), np.float32) if row is None else row[p.tokens], p.starts)
            for p in self.partitions
        ]
        return np.concatenate(values)

    def tokens_of(self, group: int) -> Ints:
        for partition in self.partitions:
            if group < len(partition.starts):
                return partition.group(group)
            group -= len(partition.starts)
        raise AssertionError(group)

    def mark_tokens(self, is_marked: Flags, mask: Flags) -> None:
        """Set `mask` for the tokens of the marked groups."""
        at = 0
        for partition, sizes in zip(self.partitions, self.sizes, strict=True):
            marked = is_marked[at : at + len(sizes)]
            mask[partition.tokens if marked.all() else partition.tokens[np.repeat(marked, sizes)]] = True
            at += len(sizes)


def layer_after(states: Ints, token_edges: TokenEdges, stops: Partition) -> Layer:
    """The edges of `states`; `stops` lead from where the text may end to END, and from there to END again."""
    token_edges.find(states[states != END])
    edges = [(i, token_edges.known(s)) for i, s in enumerate(states.tolist()) if s != END]
    ends = [i for i, s in enumerate(states.tolist()) if s == END or token_edges.automaton.accepts(s)]
    distinct = {id(e.partition): e.partition for _, e in edges if len(e.targets)}
    small = [p for p in distinct.values() if len(p.tokens) <= SMALL] + ([stops] if ends else [])
    large = [p for p in distinct.values() if len(p.tokens) > SMALL]
    before = np.cumsum([0, *(len(p.starts) for p in small + large)]).tolist()
    first_group = dict(zip(map(id, small + large), before, strict=False))
    sources = [np.full(len(e.targets), i) for i, e in edges] + [np.array(ends, np.int64)]
    groups = [first_group.get(id(e.partition), 0) + np.arange(len(e.targets)) for _, e in edges]
    groups.append(np.full(len(ends), first_group.get(id(stops), 0)))
    targets = np.concatenate([*(e.targets for _, e in edges), np.full(len(ends), END, np.int32)])
    reached, index = by_first(targets)
    order = np.argsort(index, kind="stable")
    partitions = [joined(small), *large] if small else large
    return Layer(
        partitions,
        [p.sizes for p in partitions],
        np.concatenate(sources)[order].astype(np.int64),
        np.concatenate(groups)[order].astype(np.int64),
        reached,
        np.searchsorted(index[order], np.arange(len(reached))).astype(np.int64),
    )


def by_first(values: Ints) -> tuple[Ints, Longs]:
    """The distinct values in the order of their first places, and for each value the index of its own.

    Numbers of states depend on what was asked of the automaton before, and no text may depend on that.
    """
    distinct, first, inverse = np.unique(values, return_index=True, return_inverse=True)
    order = np.argsort(first)
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    return distinct[order], rank[inverse]


def joined(partitions: Sequence[Partition]) -> Partition:
    before = np.cumsum([0, *(len(p.tokens) for p in partitions)])
    tokens = np.concatenate([p.tokens for p in partitions])
    return Partition(tokens, np.concatenate([p.starts + b for p, b in zip(partitions, before[:-1], strict=True)]))
