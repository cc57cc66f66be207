"""What holds for every cache layout: steps of any length, going back, sizes, and what a file would hold."""

from __future__ import annotations

import numpy as np
import pytest

from dlm_edge.errors import JobError, UsageProblem
from dlm_edge.kernels.quantize_rows.reference import quantize_rows
from dlm_edge.runtime.layouts import CacheShape, bytes_per_token, copy_state, fitting_layout, layout_kind, open_layout
from tests.runtime.layouts.layout_cases import CAPACITY, EVERY_LAYOUT, GROUP, MAPS, SHAPE, append, opened, window_rows

every_layout = pytest.mark.parametrize("name", EVERY_LAYOUT)
WINDOWS = [(0, 16, 32, 48, 80, 100), (0, 100), (0, 1, 2, 33, 64, 100), (0, 31, 32, 95, 96, 97, 100)]
FINE_GRAINED = ("float", "x", "deltas")  # forms in which every position is exact


def filled(name: str, end: int, windows: tuple[int, ...] = (0,)):
    layout, rows = opened(name), window_rows(name, CAPACITY)
    for start, stop in zip(windows, (*windows[1:], end), strict=True):
        append(layout, rows, start, stop)
    return layout


def assert_same_state(layout, expected) -> None:
    assert layout.description() == expected.description()
    for i in range(SHAPE.n_layers):
        for name, array in expected.state(i).items():
            np.testing.assert_array_equal(layout.state(i)[name], array, err_msg=name)


@every_layout
@pytest.mark.parametrize("windows", WINDOWS, ids=str)
def test_state_does_not_depend_on_the_windows(windows, name):
    assert_same_state(filled(name, windows[-1], windows[:-1]), filled(name, windows[-1]))


@every_layout
@pytest.mark.parametrize("position", [0, 1, 31, 32, 40, 64, 95, 96, 97, 100])
def test_going_back_is_as_if_the_rest_had_never_come(position, name):
    layout = filled(name, 100)
    reached = layout.truncate(position)
    assert reached <= position and layout.cursor == reached
    if layout_kind(name).form in FINE_GRAINED or position >= 96 or position % GROUP == 0:
        assert reached == position
    else:
        assert reached == position // GROUP * GROUP
    assert_same_state(layout, filled(name, reached))
    append(layout, window_rows(name, CAPACITY), reached, 130)
    assert_same_state(layout, filled(name, 130))


@every_layout
def test_buffers_stay_the_same_objects(name):
    layout = opened(name)
    before = [layout.buffers(i) for i in range(SHAPE.n_layers)]
    append(layout, window_rows(name, 100), 0, 100)
    layout.truncate(50)
    layout.reset()
    for i, arrays in enumerate(before):
        assert all(layout.buffers(i)[key] is array for key, array in arrays.items())
        assert all(array.flags.c_contiguous for array in arrays.values())


@every_layout
def test_state_can_be_carried_to_another_layout(name):
    source, target = filled(name, 100), opened(name, 2 * CAPACITY)
    copy_state(source, target, SHAPE.n_layers)
    described = {(b.layer, b.name): (b.dtype, b.shape) for b in source.description().buffers}
    for i in range(SHAPE.n_layers):
        for key, array in source.state(i).items():
            assert described[i, key] == (array.dtype.name, array.shape)
    for layout in (source, target):
        append(layout, window_rows(name, CAPACITY), 100, 150)
    assert_same_state(target, source)


@every_layout
def test_bytes_per_token_are_those_of_the_arrays(name):
    layout = opened(name)
    total = sum(array.nbytes for i in range(SHAPE.n_layers) for array in layout.buffers(i).values())
    assert layout.bytes_per_token * CAPACITY + layout.fixed_bytes == total
    assert bytes_per_token(name, SHAPE, group=GROUP) == layout.bytes_per_token


@every_layout
def test_the_capacity_can_be_filled_to_the_last_position(name):
    layout = filled(name, CAPACITY)
    assert layout.cursor == CAPACITY


@pytest.mark.parametrize("name", [n for n in EVERY_LAYOUT if layout_kind(n).form != "float"])
def test_a_nan_is_refused_when_it_is_quantized(name):
    layout, rows = opened(name), window_rows(name, GROUP)
    rows[1][0][..., 3, 5] = np.nan
    with pytest.raises(JobError) as caught:
        append(layout, rows, 0, GROUP)
    assert caught.value.code == "E-NAN"
    layout.reset()
    append(layout, window_rows(name, GROUP), 0, GROUP)
    expected = opened(name)
    append(expected, window_rows(name, GROUP), 0, GROUP)
    assert_same_state(layout, expected)


def test_the_graph_may_write_plain_floats_itself():
    layout, rows = opened("kv-fp32"), window_rows("kv-fp32", CAPACITY)
    for i, (k, v) in enumerate(rows):
        layout.buffers(i)["k_cache"][0], layout.buffers(i)["v_cache"][0] = k, v
    layout.extend(100)
    assert_same_state(layout, filled("kv-fp32", 100))


def test_state_of_another_kind_is_not_taken():
    with pytest.raises(AssertionError, match="different kinds"):
        copy_state(filled("x-int4", 100), opened("x-int8"), SHAPE.n_layers)


@pytest.mark.parametrize(("name", "least"), [("x-int4", 7.5), ("x-int8", 3.85), ("x-cl2", 13), ("kv-int4", 3.5)])
def test_reduction_against_float16_keys_and_values(name, least):
    llada = CacheShape(n_layers=32, n_kv_heads=32, head_dim=128, hidden_size=4096)
    assert bytes_per_token("kv-fp16", llada) == 524_288
    assert bytes_per_token("kv-fp16", llada) / bytes_per_token(name, llada) > least


def test_narrow_models_store_latents():
    sdar = CacheShape(n_layers=36, n_kv_heads=8, head_dim=128, hidden_size=4096)
    llada = CacheShape(n_layers=32, n_kv_heads=32, head_dim=128, hidden_size=4096)
    assert fitting_layout("x-int4", sdar) == "x-latent-int4"
    assert fitting_layout("x-int4", llada) == "x-int4"
    assert fitting_layout("kv-int4", sdar) == "kv-int4"


@pytest.mark.parametrize(
    ("name", "shape", "group", "message"),
    [
        ("kv-int5", SHAPE, 32, "no cache layout"),
        ("kv-int4", SHAPE, 48, "a cache group of 48"),
        ("kv-int4", CacheShape(2, 2, 36, 72), 32, "rows of 36 values"),
        ("x-int3", CacheShape(2, 2, 50, 100), 32, "rows of 100 values"),
    ],
)
def test_what_does_not_fit_is_refused(name, shape, group, message):
    with pytest.raises(UsageProblem, match=message) as caught:
        open_layout(name, shape, 96, group=group)
    assert caught.value.code == "E-PARAM"


def test_rows_are_appended_without_holes():
    layout = open_layout("x-int4", SHAPE, CAPACITY, group=GROUP, to_latent=MAPS)
    with pytest.raises(AssertionError, match="where the layer ends"):
        layout.append(0, 16, window_rows("x-int4", 16)[0][0])
    with pytest.raises(AssertionError, match="capacity"):
        layout.append(0, 0, window_rows("x-int4", CAPACITY + 1)[0][0])


@pytest.mark.parametrize("windows", [(0, 1), (0, 31), (0, 100), (0, 64, 100), (0, 32, 96)], ids=str)
@pytest.mark.parametrize("name", ["kv-int8", "kv-int4", "x-int8", "x-int3"])
def test_codes_of_rows_are_stored_as_the_rows_are(name, windows):
    layout, rows = opened(name), window_rows(name, CAPACITY)
    bits = layout_kind(name).bits
    for start, end in zip(windows, windows[1:], strict=False):
        for layer, values in enumerate(rows):
            arrays = layout.empty_codes(layer, end - start)
            for prefix, value in zip("kv" if len(values) == 2 else "x", values, strict=True):
                axis = "channel" if prefix == "k" else "token"
                width = value.shape[-1]
                group = GROUP if axis == "channel" else width // layout.buffers(layer)[f"{prefix}_scale"].shape[-1]
                given = value[..., start:end, :].reshape(-1, end - start, width)
                made = quantize_rows(given, end - start, group, bits=bits, axis=axis)
                for part, array in zip(("cache", "scale", "low", "tail"), made, strict=True):
                    if f"{prefix}_{part}" in arrays:
                        arrays[f"{prefix}_{part}"][...] = array
            layout.append_codes(layer, start, arrays)
    assert_same_state(layout, filled(name, windows[-1]))


def test_codes_go_where_a_group_begins():
    layout = filled("kv-int4", 40)
    with pytest.raises(AssertionError, match="where a group does"):
        layout.append_codes(0, 40, layout.empty_codes(0, 32))
