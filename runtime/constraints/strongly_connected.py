"""Strongly connected components: which items of a network lie on common circles."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator


def components(n_items: int, following: Callable[[int], Iterable[int]]) -> list[int]:
    """For each item a number that two items share when each leads to the other. Tarjan 1972, without recursion."""
    component, low = [-1] * n_items, [-1] * n_items
    waiting, n_seen = list[int](), 0
    for begin in range(n_items):
        path: list[tuple[int, int, Iterator[int]]] = []  # item, when it was first seen, what follows it
        at: int | None = begin if low[begin] < 0 else None
        while at is not None or path:
            if at is not None:
                low[at] = n_seen
                path.append((at, n_seen, iter(following(at))))
                waiting.append(at)
                n_seen += 1
            item, first_seen, rest = path[-1]
            at = None
            for after in rest:
                if low[after] < 0:
                    at = after
                    break
                if component[after] < 0:
                    low[item] = min(low[item], low[after])
            if at is not None:
                continue
            path.pop()
            if path:
                low[path[-1][0]] = min(low[path[-1][0]], low[item])
            if low[item] == first_seen:
                while component[item] < 0:
                    component[waiting.pop()] = item
    return component
