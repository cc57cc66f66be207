"""Several fillings of one window over the same prefix: the bits of runs of their own, and nothing else changes."""

from __future__ import annotations

import numpy as np
import pytest

from dlm_edge.bundle import open_bundle
from dlm_edge.runtime.attention import EXACT, AttentionSettings
from dlm_edge.runtime.step_model import FULL_ATTENTION, Terminated
from tests.runtime.test_ort_step_model import BLOCK, LOSA, decoded, on_device, prompt_of
from tests.tiny import FAMILY_NAMES

QUEST = AttentionSettings(policy="quest", page_size=8)
COPY_LAYOUTS = ["kv-fp32", "kv-fp16", "kv-int8", "kv-int4", "kv-int4x2", "x-int4", "x-cl3"]
BATCHED = [layout for layout in COPY_LAYOUTS if layout.startswith("kv-")]
LENGTH, COPY_ROWS = 16, np.array([0, 3, 15, 16, 17, 40, 47])  # of three copies


def block_of(model):
    return FULL_ATTENTION if model.spec.conventions.attention == "full" else BLOCK


def stored_prompt(model, length, attention=EXACT):
    """The model with the first `length` positions of a sequence stored, and two more windows run behind them."""
    model.discard()
    model.reset(length + LENGTH, attention, LENGTH)
    ids = np.array(prompt_of(length + LENGTH))
    model.run(ids[:length], 0, 0, block_of(model), COPY_ROWS[:0], stored_rows=length)
    model.store(0, length)
    for _ in range(2):
        model.run(ids[length:], length, length, block_of(model), COPY_ROWS[:2])
    return model


def copies_of_a_window(n=3, seed=0):
    return np.random.default_rng(seed).integers(0, 250, (n, LENGTH))


def runs_of_their_own(model, copies, start, cache_len, rows=COPY_ROWS):
    length = copies.shape[1]
    given = [
        model.run(ids, start, cache_len, block_of(model), rows[rows // length == i] % length).copy()
        for i, ids in enumerate(copies)
    ]
    return np.concatenate(given)


def arrays_of(model):
    return {name: array.copy() for name, array in model.memory.arrays().items()}


@pytest.mark.parametrize("layout", COPY_LAYOUTS)
@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_copies_have_the_bits_of_runs_of_their_own(open_with, family, layout):
    model, copies = stored_prompt(open_with(family, layout).parts.model, 24), copies_of_a_window()
    assert model.batches_copies == (layout in BATCHED)
    together = model.run_copies(copies, 24, 24, block_of(model), COPY_ROWS).copy()
    np.testing.assert_array_equal(together, runs_of_their_own(model, copies, 24, 24))
    np.testing.assert_array_equal(model.run_copies(copies, 24, 24, block_of(model), COPY_ROWS), together)


@pytest.mark.parametrize("layout", [*COPY_LAYOUTS, "none"])
def test_copies_inside_a_sequence(open_with, layout):
    """Full attention reads what lies behind the window too; without a cache the window is the sequence."""
    model, copies = open_with("llada", layout).parts.model, copies_of_a_window()
    if layout == "none":
        model.reset(LENGTH)
        start = cache_len = 0
    else:
        stored_prompt(model, 40)
        start, cache_len = 16, 40
    together = model.run_copies(copies, start, cache_len, FULL_ATTENTION, COPY_ROWS).copy()
    np.testing.assert_array_equal(together, runs_of_their_own(model, copies, start, cache_len))


def test_copies_without_the_native_operators(open_with):
    model, copies = stored_prompt(open_with("sdar", "kv-fp32", native=False).parts.model, 24), copies_of_a_window()
    assert not model.batches_copies
    together = model.run_copies(copies, 24, 24, BLOCK, COPY_ROWS).copy()
    np.testing.assert_array_equal(together, runs_of_their_own(model, copies, 24, 24))


def test_copies_on_another_device(bundles):
    model, copies = on_device(open_bundle(bundles["sdar"][1])), copies_of_a_window()
    model.reset(LENGTH)
    assert not model.batches_copies
    together = model.run_copies(copies, 0, 0, BLOCK, COPY_ROWS).copy()
    np.testing.assert_array_equal(together, runs_of_their_own(model, copies, 0, 0))


@pytest.mark.parametrize("attention", [EXACT, LOSA, QUEST], ids=str)
@pytest.mark.parametrize("layout", COPY_LAYOUTS)
def test_copies_leave_prefix_and_attention_state_alone(open_with, layout, attention):
    model = stored_prompt(open_with("sdar", layout).parts.model, 24, attention)
    before, kept = arrays_of(model), model.memory.layout.cursor
    model.run_copies(copies_of_a_window(), 24, 24, BLOCK, COPY_ROWS)
    after = arrays_of(model)
    for name in before:
        if model.memory.form == "float" and name.startswith(("k_cache", "v_cache")):
            for array in (before[name], after[name]):
                array[:, :, 24 : 24 + LENGTH] = 0  # the window's own positions
        np.testing.assert_array_equal(after[name], before[name], err_msg=name)
    assert model.memory.layout.cursor == kept == 24
    assert model.stored_prefix(prompt_of(24)) == 24
    with pytest.raises(AssertionError, match="only the last window"):
        model.store(24, 24 + LENGTH)


@pytest.mark.parametrize("attention", [EXACT, LOSA], ids=str)
@pytest.mark.parametrize("layout", ["kv-fp32", "kv-fp16", "kv-int4x2", "x-int4"])
@pytest.mark.parametrize("family", ["sdar", "llada"])
def test_a_sequence_decodes_alike_between_copies(open_with, family, layout, attention, monkeypatch):
    model = open_with(family, layout).parts.model
    model.discard()
    expected = decoded(model, prompt_of(30), attention)
    model.discard()
    run, seeds = model.run, iter(range(1000))

    def after_copies(ids, start, cache_len, attn_block, rows, *args, **options):
        copies = np.random.default_rng(next(seeds)).integers(0, 250, (2, len(ids)))
        model.run_copies(copies, start, cache_len, attn_block, rows)
        return run(ids, start, cache_len, attn_block, rows, *args, **options)

    monkeypatch.setattr(model, "run", after_copies)
    assert decoded(model, prompt_of(30), attention) == expected
    assert next(seeds) > 5


@pytest.mark.parametrize("layout", ["kv-fp32", "x-int4"])
def test_rows_of_copies_in_any_order_and_number(open_with, layout):
    model, copies = stored_prompt(open_with("dream", layout).parts.model, 24), copies_of_a_window(5)
    everything = model.run_copies(copies, 24, 24, FULL_ATTENTION, np.arange(5 * LENGTH)).copy()
    for rows in ([79, 3, 3, 40, 17], [], [33]):
        found = model.run_copies(copies, 24, 24, FULL_ATTENTION, np.array(rows, np.int64))
        # No difference measured, but a product of one row may be another kernel.
        np.testing.assert_allclose(found, everything[rows], rtol=0, atol=2e-6)


def test_terminate_reaches_copies(open_with):
    model = stored_prompt(open_with("sdar", "kv-fp32").parts.model, 24)
    model.terminate()
    with pytest.raises(Terminated):
        model.run_copies(copies_of_a_window(), 24, 24, BLOCK, COPY_ROWS)
    model.reset(40)
    assert len(model.run_copies(copies_of_a_window(), 24, 24, BLOCK, COPY_ROWS)) == len(COPY_ROWS)
