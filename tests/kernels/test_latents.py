"""The maps between a projection's output and its latents."""

from __future__ import annotations

import numpy as np
import pytest

from dlm_edge.errors import JobError
from dlm_edge.kernels.dequantize_rows.latents import SMALLEST_SCALE, latent_maps


def decaying(width: int, hidden: int, lowest: float, seed: int = 0) -> np.ndarray:
    """A weight whose singular values fall from 1 to `lowest`."""
    rng = np.random.default_rng(seed)
    left, _, right = np.linalg.svd(rng.standard_normal((width, hidden)), full_matrices=False)
    return (left * np.geomspace(1, lowest, width)) @ right


@pytest.mark.parametrize(("width", "hidden"), [(64, 256), (48, 48), (96, 64)])
@pytest.mark.parametrize("lowest", [0.1, 1e-9])
def test_maps_undo_each_other(width, hidden, lowest):
    to_latent, from_latent = latent_maps(np.resize(decaying(min(width, hidden), hidden, lowest), (width, hidden)))
    assert to_latent.dtype == from_latent.dtype == np.float32
    product = to_latent.astype(np.float64) @ from_latent.astype(np.float64)
    # Rounding of both maps to float32, times the span of the scales.
    np.testing.assert_allclose(product, np.eye(width), atol=1e-7 * width / SMALLEST_SCALE)


def test_latents_are_x_in_the_basis_of_the_projection():
    weight = decaying(32, 128, 0.05)
    x = np.random.default_rng(1).standard_normal((10, 128))
    basis = np.linalg.svd(weight.T, full_matrices=False)[0]  # U of W^T = U S B^T
    latents = x @ weight.T @ latent_maps(weight).to_latent
    np.testing.assert_allclose(np.abs(latents), np.abs(x @ basis), rtol=1e-4, atol=1e-4)  # up to the vectors' signs


def test_noise_in_directions_that_a_projection_lacks_is_not_blown_up():
    weight = decaying(32, 128, 1e-12)
    x = np.random.default_rng(1).standard_normal((10, 128))
    noise = 1e-6 * np.random.default_rng(2).standard_normal((10, 32))
    maps = latent_maps(weight)
    change = noise @ maps.to_latent
    assert np.abs(change).max() <= 1e-5 / SMALLEST_SCALE
    back = (x @ weight.T + noise) @ maps.to_latent @ maps.from_latent
    np.testing.assert_allclose(back, x @ weight.T + noise, atol=1e-5)


def test_outliers_of_x_gather_in_the_first_channel():
    """A strong direction of the weight that the strong channel of X follows: the paper's observation, built by hand."""
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((32, 128)) / 11
    weight[:, 5] *= 10
    x = rng.standard_normal((200, 128)) * np.where(np.arange(128) == 5, 30, 1)
    latents = np.abs(x @ weight.T @ latent_maps(weight).to_latent).max(0)
    assert latents.argmax() == 0 and latents[0] > 5 * latents[1:].max()


def test_a_projection_of_zeros_has_latents():
    to_latent, from_latent = latent_maps(np.zeros((8, 16)))
    np.testing.assert_allclose(to_latent @ from_latent, np.eye(8), atol=1e-6)


def test_what_is_not_finite_is_refused():
    with pytest.raises(JobError, match="E-NAN"):
        latent_maps(np.full((4, 8), np.nan))
