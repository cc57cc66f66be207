"""Inputs that the step graph accepts: a window of random tokens behind a cached prefix, with dense attention."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from optimum.utils.input_generators import DummyInputGenerator

from dlm_edge.errors import UsageProblem
from dlm_edge.kernels.select_pages.reference import EXACT_POLICY
from dlm_edge.optimum.dimensions import StepDimensions
from dlm_edge.runtime.attention import as_matrix

DEFAULT_WINDOW = 16


class StepInputGenerator(DummyInputGenerator):
    """One window of `sequence_length` tokens at position `cache_len`, all of whose rows are scored.

    Caches hold `capacity` positions, by default just prefix and window, in one page. The state of sparse attention is
    empty, with a row for each token of the window. Copies of the window share one sequence and are no batch, so
    `batch_size` may only be 1 (E-USAGE). Sizes of other modalities are no arguments of this generator (TypeError).
    """

    SUPPORTED_INPUT_NAMES = (
        *("input_ids", "start", "cache_len", "attn_block", "logit_rows", "policy", "drift", "k_cache.", "v_cache."),
        *("page_low.", "page_high.", "page_scale.", "q_last.", "q_stored.", "prefix_out.", "prefix_lse.", "masses."),
    )

    def __init__(
        self,
        task: str,
        dimensions: StepDimensions,
        *,
        batch_size: int = 1,
        sequence_length: int = DEFAULT_WINDOW,
        cache_len: int = 0,
        capacity: int | None = None,
    ) -> None:
        end = cache_len + sequence_length
        if batch_size != 1:
            raise UsageProblem("E-USAGE", f"batch_size is {batch_size}, and the step graph runs one sequence", "give 1")
        if sequence_length < 1 or cache_len < 0:
            message = f"sequence_length {sequence_length} and cache_len {cache_len} describe no window"
            raise UsageProblem("E-USAGE", message, "give at least 1 and at least 0")
        if capacity is not None and capacity < end:
            message = f"capacity {capacity} is too small for {cache_len} cached positions and {sequence_length} more"
            raise UsageProblem("E-USAGE", message, f"give {end} or more")
        self.task, self.dimensions = task, dimensions
        self.window, self.cache_len, self.capacity = sequence_length, cache_len, capacity or end

    def generate(
        self, input_name: str, framework: str = "pt", int_dtype: str = "int64", float_dtype: str = "fp32"
    ) -> Any:
        """A tensor of the named input; `framework` is pt (torch) or np (NumPy)."""
        dims = self.dimensions
        if input_name == "input_ids":
            return self.random_int_tensor(
                [1, self.window], max_value=dims.vocab_size, framework=framework, dtype=int_dtype
            )
        kind = input_name.split(".")[0]
        if kind in ("k_cache", "v_cache"):
            shape = [1, dims.num_key_value_heads, self.capacity, dims.head_dim]
            return self.random_float_tensor(shape, -1, 1, framework=framework, dtype=float_dtype)
        found = self.numbers() | self.empty_state()
        return as_tensor(found[kind], framework)

    def numbers(self) -> dict[str, NDArray[Any]]:
        scalars = {"start": self.cache_len, "cache_len": self.cache_len, "attn_block": self.dimensions.attn_block}
        return {name: np.array([value], np.int64) for name, value in scalars.items()} | {
            "logit_rows": np.arange(self.window),
            "policy": as_matrix(replace(EXACT_POLICY, page_size=self.capacity), self.dimensions.num_layers, 0),
            "drift": np.array([np.inf], np.float32),
        }

    def empty_state(self) -> dict[str, NDArray[Any]]:
        dims = self.dimensions
        page, rows = (1, dims.num_key_value_heads, 1), (1, dims.num_attention_heads, self.window)
        bounds = {name: np.zeros((*page, dims.head_dim), np.int8) for name in ("page_low", "page_high")}
        wide = {name: np.zeros((*rows, dims.head_dim), np.float32) for name in ("q_last", "q_stored", "prefix_out")}
        narrow = {"page_scale": page, "prefix_lse": rows, "masses": page}
        return bounds | wide | {name: np.zeros(shape, np.float32) for name, shape in narrow.items()}


def as_tensor(array: NDArray[Any], framework: str) -> Any:
    if framework == "pt":
        import torch

        return torch.from_numpy(array)
    return array
