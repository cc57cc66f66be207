"""No cache: the window is the whole sequence."""

from __future__ import annotations

import onnx

from dlm_edge.export.cache_nodes.contract import Projections, Tensors, Window, window_keys
from dlm_edge.families.spec import ModelSpec
from dlm_edge.kernels import DOMAIN
from dlm_edge.kernels.pattern_attention import function as pattern_attention


class WholeSequence:
    """Full attention only. It has no use for SelectPages, so `active` and `pages` are empty names."""

    overload = ""
    takes_copies = False  # the window sees no prefix that copies could share
    projects_window_only = True
    numbers: tuple[str, ...] = ()

    def inputs(self, i: int, spec: ModelSpec, body: int) -> Tensors:
        return {}

    def written(self) -> tuple[str, ...]:
        return ()

    def stored(self, i: int, spec: ModelSpec, body: int) -> Tensors:
        return {}

    def attend(self, lent: Projections, window: Window, active: str, pages: str) -> str:
        i = window.layer
        return lent.graph.add(
            pattern_attention.OPERATOR,
            [window.q, *window_keys(lent, window), f"layers.{i}.policy", f"pattern.{i}"],
            "attention",
            more=[f"pattern_out.{i}", f"stats.{i}"],
            domain=DOMAIN,
        )

    def functions(self, n_layers: int) -> list[onnx.FunctionProto]:
        return [pattern_attention.function_proto()]
