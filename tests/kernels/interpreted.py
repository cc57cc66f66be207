"""The Triton kernels in Triton's interpreter: their arithmetic, on the CPU, without a compiler."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton", reason="needs Triton: pip install triton")  # interpreting: tests/conftest.py

from dlm_edge.kernels.triton import launch, launch_pattern, launch_rows  # noqa: E402


def tensor(array: np.ndarray) -> torch.Tensor:
    """A copy: what the kernels rewrite in place stays as it was for the definition."""
    return torch.from_numpy(np.ascontiguousarray(array).copy())


def normal(rng: np.random.Generator, dtype: type, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape).astype(dtype)


__all__ = ["launch", "launch_pattern", "launch_rows", "normal", "tensor", "torch"]
