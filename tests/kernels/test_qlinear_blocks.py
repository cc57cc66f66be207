"""QLinear with `row_blocks`: a scale for each group of the weight in every row."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from dlm_edge.kernels.qlinear.inputs import linear_inputs
from dlm_edge.kernels.qlinear.reference import round_rows
from tests.kernels.linear_cases import BLOCK_CASES, Case, defined, dense_weight, make_rows, make_weight


@pytest.mark.parametrize("loud", [0, 70, 255])
def test_a_large_value_takes_the_grid_from_its_own_group_alone(loud):
    """The weight of its group is 0, so that what is seen is the precision of the others."""
    case, rng = Case(256, 48, 8, 64, row_blocks=True), np.random.default_rng(0)
    own = np.arange(256) // 64 == loud // 64
    codes = np.where(own, 128, rng.integers(0, 256, (48, 256))).astype(np.uint8)
    weight = linear_inputs(codes, rng.random((48, 4), dtype=np.float32), bits=8)
    quiet = make_rows(case, 2)
    x = quiet.copy()
    x[:, loud] = 1e4
    y = defined(case, weight, x)
    np.testing.assert_array_equal(y, defined(case, weight, quiet))

    dense = dense_weight(case, weight)
    _, scale = round_rows(quiet, weight.outlier_columns, 64)
    error = np.abs(y - x @ dense.T)
    assert (error <= scale.repeat(64, axis=-1) / 2 @ np.abs(dense).T * (1 + 1e-5)).all()
    one_scale = defined(replace(case, row_blocks=False), weight, x)
    assert not one_scale.any()  # with steps of 1e4 / 127 nothing is left of the others


@pytest.mark.parametrize("case", [case for case in BLOCK_CASES if case.group_size >= case.in_features], ids=str)
def test_a_single_block_is_the_row(case):
    weight, x = make_weight(case), make_rows(case, 17)
    found, expected = (defined(replace(case, row_blocks=blocks), weight, x) for blocks in (False, True))
    np.testing.assert_array_equal(found.view(np.int32), expected.view(np.int32))
