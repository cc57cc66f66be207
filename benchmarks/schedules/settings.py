"""The rows of the table: samplers, with the settings that their papers give or that a block of 16 asks for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Row:
    """`tokens_per_step` of samplers with a plan: the steps of a request follow from its length. `guide`: the second
    model of `guided`."""

    name: str
    settings: dict[str, Any] = field(default_factory=dict)
    tokens_per_step: int | None = None
    guide: str | None = None

    def for_length(self, gen_len: int, n_blocks: int) -> dict[str, Any]:
        if self.tokens_per_step is None:
            return self.settings
        return self.settings | {"steps": max(-(-gen_len // self.tokens_per_step), n_blocks)}


def sampler(name: str, row: str = "", **options: Any) -> Row:
    return Row(row or name, {"sampler": name, "sampler_options": options})


STATIC = sampler("static")


def rows(model: str) -> Iterator[Row]:
    """`static` is the first one: all others are compared with it."""
    full = model == "reference-full"
    yield STATIC
    yield Row("static, 2 a step", {"sampler": "static"}, tokens_per_step=2)
    for threshold in (0.9, 0.7):
        yield sampler("threshold", f"threshold {threshold}", threshold=threshold)
    yield sampler("factor")
    yield sampler("sdar-dynamic")
    yield sampler("fast-dllm-v2", "fast-dllm-v2 0.9", threshold=0.9)
    for name in ("origin", "maskgit_plus", "topk_margin", "entropy"):
        yield Row(f"{name}, 2 a step", {"sampler": name}, tokens_per_step=2)
    for name in ("eb", "product", "prophet", "localleap", "bacd", "hierarchical", "credit", "learn2pd"):
        yield sampler(name)
    for name in ("freedave", "edit", "wino"):
        yield sampler(name)
    yield Row("threshold 0.9, cfg 0.5", {"sampler": "threshold", "cfg_scale": 0.5, "cache": "none"})
    yield Row("guided", {"sampler": "guided"}, guide="reference" if full else "reference-full")
    if full:
        yield sampler("adablock")
        yield Row("threshold 0.9, dual cache", {"sampler": "threshold", "cache": "dual"})
        yield Row("threshold 0.9, freecache", {"sampler": "threshold", "cache": "freecache"})
        yield Row("threshold 0.9, no cache", {"sampler": "threshold", "cache": "none"})
