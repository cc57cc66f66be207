"""RematerialiseRows in plain NumPy: some rows of a quantized matrix times a projection. The definition.

XQuant (arXiv 2508.10395) stores the input of the attention layer, or its latents, and makes keys and values of the
selected positions again. The projection is of floats here: the map back from latents, or a layer's own weight where
that is not quantized.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from dlm_edge.kernels.dequantize_rows.reference import Axis, dequantize_rows
from dlm_edge.kernels.quantized_pages.reference import Codes, Floats, Halves


def rematerialise_rows(
    codes: Codes,
    scale: Halves,
    low: Halves,
    tail: Floats,
    rows: NDArray[np.int64],
    cache_len: int,
    weight: NDArray[np.floating[Any]],
    *,
    bits: int,
    axis: Axis,
) -> NDArray[np.floating[Any]]:
    """[len(rows), n_out] in the dtype of `weight` [width, n_out]; everything before it as `dequantize_rows` takes it.

    Values are rounded to that dtype before they are multiplied, as between two nodes; sums are exact here. Bias, norm and
    RoPE of the keys follow in the graph, which applies them to the window's own rows as well.
    """
    values = dequantize_rows(codes, scale, low, tail, rows, cache_len, bits=bits, axis=axis).astype(weight.dtype)
    product: NDArray[np.floating[Any]] = (values.astype(np.float64) @ weight.astype(np.float64)).astype(weight.dtype)
    return product
