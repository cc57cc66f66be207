"""What one sequence keeps between runs where nothing is cached: the pairs of blocks that attention reads, of every head.

They have a meaning from the step that chooses them to the end of the request: kernels/pattern_attention/reference.py.
"""

from __future__ import annotations

import numpy as np

from dlm_edge.errors import ResourceError
from dlm_edge.runtime.attention import AttentionSettings
from dlm_edge.runtime.sequence_memory import CAPACITY_STEP, Arrays, SequenceMemory


class PatternMemory(SequenceMemory):
    """A SequenceMemory of the layout none, which has no caches and no pages."""

    block_size = 0  # of the pattern; without one, a block is all that fits

    @property
    def page_size(self) -> int:
        return self.block_size

    @property
    def bounds_share(self) -> float:
        return 0.0

    def reserve(self, capacity: int, attention: AttentionSettings, max_rows: int) -> bool:
        self.attention = attention
        self.capacity = max(self.capacity, -(-capacity // CAPACITY_STEP) * CAPACITY_STEP)
        self.block_size = attention.page_size if attention.policy == "sparsed" else self.capacity
        shapes = self.state_shapes(max_rows)
        if shapes == {name: array.shape for name, array in self.state.items()}:
            return False
        try:
            self.state = {name: np.zeros(shape, np.uint8) for name, shape in shapes.items()}
        except MemoryError as error:
            self.discard()
            message = f"the pattern for {capacity} positions does not fit into memory: {error}"
            raise ResourceError("E-MEM", message, "shorten the prompt or the output, or use larger blocks") from error
        return True

    def state_shapes(self, n_rows: int) -> dict[str, tuple[int, ...]]:
        n_slots = -(-self.capacity // max(self.block_size, 1))
        return {f"pattern.{i}": (self.spec.n_heads, n_slots, n_slots) for i in range(self.spec.n_layers)}

    def arrays(self) -> Arrays:
        return self.state

    def is_written(self, name: str) -> bool:
        return True
