"""The filter of learn2pd: of each slot of a block, how likely its present prediction is the token it ends with.

A perceptron of one hidden layer over the confidences of the block (Learn2PD, arXiv 2509.25188), about 2,000 numbers. It
belongs to one bundle, for whose block length it was trained by `dlm-edge train-filter`; see runtime/filter_file.py.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
NAMES = ("hidden_weight", "hidden_bias", "slot_weight", "slot_bias")
SATURATED = 60.0  # from here on the sigmoid is 1, or all but 0


@dataclass(frozen=True, slots=True)
class Filter:
    """relu(confidence @ hidden_weight + hidden_bias) @ slot_weight + slot_bias, float32; the sigmoid of it is the answer."""

    hidden_weight: NDArray[np.float32]  # [block_length, n_hidden]
    hidden_bias: NDArray[np.float32]  # [n_hidden]
    slot_weight: NDArray[np.float32]  # [n_hidden, block_length]
    slot_bias: NDArray[np.float32]  # [block_length]

    @property
    def block_length(self) -> int:
        return len(self.slot_bias)

    @property
    def arrays(self) -> dict[str, NDArray[np.float32]]:
        return {name: getattr(self, name) for name in NAMES}

    def logits(self, confidence: Floats) -> Floats:
        hidden = np.maximum(confidence @ self.hidden_weight.astype(np.float64) + self.hidden_bias, 0.0)
        found: Floats = hidden @ self.slot_weight.astype(np.float64) + self.slot_bias
        return found

    def probabilities(self, confidence: Floats) -> Floats:
        """[..., block_length] of confidences [..., block_length]: 1 where a slot is filled, 0 where it is masked and not
        asked about."""
        logits = np.clip(self.logits(confidence), -SATURATED, SATURATED)
        found: Floats = 1.0 / (1.0 + np.exp(-logits))
        return found
