"""The latents that XQuant stores where kv heads are fewer than query heads (arXiv 2508.10395, section 3.2).

W^T = U S B^T for a projection W [kv_width, hidden_size] that acts as x @ W^T. The latent of x is x U: as wide as keys or
values, with the scale of X and its outliers gathered in the first channels. It is had from the projection's output
without X, x U = (x W^T) B S^-1, and gives it back as (x U) S B^T. Nothing is truncated.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dlm_edge.errors import JobError
from dlm_edge.kernels.quantized_pages.reference import Floats

SMALLEST_SCALE = 1e-3


class LatentMaps(NamedTuple):
    """latent = y @ to_latent and y = latent @ from_latent, for rows y of the projection's output before its bias.
    Both float32 [kv_width, kv_width]; each is the inverse of the other."""

    to_latent: Floats
    from_latent: Floats


def latent_maps(weight: NDArray[Any]) -> LatentMaps:
    """Of the weight [kv_width, hidden_size] that the graph really uses: after quantization, dequantized.

    Singular values below SMALLEST_SCALE of the largest are raised to it in S, which both maps share, so that they stay
    inverse: there x W^T is mostly rounding, and dividing it by next to nothing would drown the rest of a group.
    Raises JobError E-NAN when the weight is not finite.
    """
    w = np.asarray(weight, np.float64)
    if not np.isfinite(w).all():
        raise JobError("E-NAN", "a key or value projection holds NaN or infinity", "download the checkpoint again")
    squares, basis = np.linalg.eigh(w @ w.T)  # W W^T = B S^2 B^T; smallest first
    squares, basis = squares[::-1], basis[:, ::-1]
    scales = np.sqrt(np.maximum(squares, 0))
    scales = np.maximum(scales, SMALLEST_SCALE * scales[0])
    if scales[0] == 0:  # a projection of zeros
        scales = np.ones_like(scales)
    # The sign of a singular vector is arbitrary; fixed, so that equal weights give equal bundles.
    basis *= np.sign(basis[np.abs(basis).argmax(0), np.arange(len(basis))])
    return LatentMaps((basis / scales).astype(np.float32), (scales[:, None] * basis.T).astype(np.float32))
