"""Page bounds: strict, independent of the windows that the keys came in, and refused for what is not finite."""

from __future__ import annotations

import numpy as np
import pytest

from dlm_edge.errors import JobError
from dlm_edge.kernels.select_pages import reference as selection
from dlm_edge.runtime.layouts import PageBounds, copy_state, open_layout, truncate_together
from dlm_edge.runtime.layouts.page_bounds import bounds_of
from tests.runtime.layouts.layout_cases import CAPACITY, GROUP, SHAPE, normal, window_rows

INPUTS = {
    "normal": lambda k: k,
    "one-sided": lambda k: 50 + k,
    "outlier": lambda k: np.where(np.arange(k.shape[-1]) == 3, 1000 * k, k),
    "tiny": lambda k: (k * 1e-40).astype(np.float32),
    "zero": lambda k: 0 * k,
    "whole-steps": lambda k: np.rint(k * 40).clip(-127, 127) / 127,
}
# Where float32 arithmetic ends, the bounds hold still; the scores computed from them overflow.
EXTREMES = {
    "smallest": lambda k: np.sign(k) * np.float32(1e-45),
    "huge": lambda k: np.sign(k) * np.float32(3e38),
}
make_keys = pytest.mark.parametrize("make", INPUTS.values(), ids=INPUTS)


def keys_of(layer: int, length: int = CAPACITY) -> np.ndarray:
    return normal(SHAPE.n_kv_heads, length, SHAPE.head_dim, seed=layer)


def filled(page_size: int, *ends: int) -> PageBounds:
    bounds = PageBounds(SHAPE, CAPACITY, page_size)
    for start, end in zip((0, *ends), ends, strict=False):
        for layer in range(SHAPE.n_layers):
            bounds.append(layer, start, keys_of(layer)[:, start:end])
    return bounds


def assert_same_state(bounds: PageBounds, expected: PageBounds) -> None:
    assert bounds.description() == expected.description()
    for i in range(SHAPE.n_layers):
        for name, array in expected.state(i).items():
            np.testing.assert_array_equal(bounds.state(i)[name], array, err_msg=name)


@pytest.mark.parametrize("make", (INPUTS | EXTREMES).values(), ids=INPUTS | EXTREMES)
@pytest.mark.parametrize("length", [1, 15, 16, 17, 64])
def test_bounds_are_strict_and_within_a_step(make, length):
    keys = make(normal(2, length, 40)).astype(np.float32)
    found = bounds_of(keys, 16)
    step = found["page_scale"].astype(np.float64)[..., None]
    low, high = found["page_low"] * step, found["page_high"] * step
    for page in range(-(-length // 16)):
        inside = keys[:, page * 16 : page * 16 + 16].astype(np.float64)
        assert (low[:, page] <= inside.min(1)).all() and (inside.max(1) <= high[:, page]).all()
        assert (inside.min(1) - low[:, page] <= step[:, page]).all()
        assert (high[:, page] - inside.max(1) <= step[:, page]).all()


@make_keys
def test_scores_bound_every_product(make):
    keys = make(normal(2, 48, 40)).astype(np.float32)
    q = normal(4, 5, 40, seed=1)
    found = bounds_of(keys, 16)
    scores = selection.page_bounds(q, found["page_low"], found["page_high"], found["page_scale"])
    products = q.astype(np.float64) @ keys.repeat(2, 0).astype(np.float64).swapaxes(1, 2)
    largest = products.reshape(4, 5, 3, 16).max(-1)
    # The bounds are strict, the float32 sum of 80 products in the score is not: its rounding is of the terms' size.
    rounding = 80 * np.finfo(np.float32).eps * (np.abs(q).sum(-1).max() * np.abs(keys).max()) + 1e-44
    assert (largest <= scores.astype(np.float64) + rounding).all()


@pytest.mark.parametrize("page_size", [16, 32, 64])
@pytest.mark.parametrize("ends", [(100,), (16, 32, 48, 100), (1, 2, 17, 64, 65, 100), (50, 100)], ids=str)
def test_windows_change_nothing(ends, page_size):
    assert_same_state(filled(page_size, *ends), filled(page_size, 100))


@pytest.mark.parametrize("page_size", [16, 64])
@pytest.mark.parametrize("position", [0, 1, 16, 50, 64, 95, 96, 97, 100])
def test_going_back_is_as_if_the_rest_had_never_come(position, page_size):
    bounds = filled(page_size, 100)
    reached = bounds.truncate(position)
    in_last_page = position >= 100 // page_size * page_size
    assert reached == (position if in_last_page else position // page_size * page_size)
    assert_same_state(bounds, filled(page_size, reached))
    for layer in range(SHAPE.n_layers):
        bounds.append(layer, reached, keys_of(layer)[:, reached:130])
    assert_same_state(bounds, filled(page_size, 130))


def test_state_can_be_carried_to_another_object():
    source, target = filled(16, 100), PageBounds(SHAPE, 2 * CAPACITY, 16)
    copy_state(source, target, SHAPE.n_layers)
    for layer in range(SHAPE.n_layers):
        target.append(layer, 100, keys_of(layer)[:, 100:130])
    assert_same_state(target, filled(16, 130))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_key_that_is_not_finite_is_refused_and_changes_nothing(bad):
    bounds = filled(16, 20)
    keys = keys_of(0)[:, 20:30].copy()
    keys[1, 3, 5] = bad
    with pytest.raises(JobError) as caught:
        bounds.append(0, 20, keys)
    assert caught.value.code == "E-NAN"
    assert_same_state(bounds, filled(16, 20))


@pytest.mark.parametrize("page_size", [16, 64])
@pytest.mark.parametrize("position", [0, 31, 40, 64, 97, 99])
def test_a_layout_and_its_bounds_go_back_together(position, page_size):
    layout, bounds = open_layout("kv-int8", SHAPE, CAPACITY, group=GROUP), filled(page_size, 100)
    for i, (k, v) in enumerate(window_rows("kv-int8", 100)):
        layout.append(i, 0, k, v)
    reached = truncate_together((layout, bounds), position)
    assert layout.cursor == bounds.cursor == reached <= position
    in_both_tails = position >= 100 // GROUP * GROUP and position >= 100 // page_size * page_size
    assert reached == (position if in_both_tails else position // max(GROUP, page_size) * max(GROUP, page_size))
