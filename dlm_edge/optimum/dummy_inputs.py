"""Inputs that the step graph accepts: a window of random tokens behind a cached prefix."""

from __future__ import annotations

from typing import Any

from optimum.utils.input_generators import DTYPE_MAPPER, DummyInputGenerator

from dlm_edge.errors import UsageProblem
from dlm_edge.optimum.dimensions import StepDimensions

DEFAULT_WINDOW = 16


class StepInputGenerator(DummyInputGenerator):
    """One window of `sequence_length` tokens at position `cache_len`, all of whose rows are scored.

    Caches hold `capacity` positions, by default just prefix and window. The graph has no batch axis to vary, so
    `batch_size` may only be 1 (E-USAGE). Sizes of other modalities are no arguments of this generator (TypeError).
    """

    SUPPORTED_INPUT_NAMES = ("input_ids", "start", "cache_len", "attn_block", "logit_rows", "k_cache.", "v_cache.")

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
        if input_name == "logit_rows":
            return self.row_numbers(framework, int_dtype)
        scalars = {"start": self.cache_len, "cache_len": self.cache_len, "attn_block": dims.attn_block}
        if input_name in scalars:
            return self.constant_tensor([1], scalars[input_name], dtype(framework, int_dtype), framework)
        shape = [1, dims.num_key_value_heads, self.capacity, dims.head_dim]
        return self.random_float_tensor(shape, -1, 1, framework=framework, dtype=float_dtype)

    def row_numbers(self, framework: str, int_dtype: str) -> Any:
        if framework == "pt":
            import torch

            return torch.arange(self.window, dtype=dtype(framework, int_dtype))
        import numpy as np

        return np.arange(self.window, dtype=dtype(framework, int_dtype))


def dtype(framework: str, name: str) -> Any:
    return getattr(DTYPE_MAPPER, framework)(name)
