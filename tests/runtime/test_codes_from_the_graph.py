"""Families with full attention: what a refresh stores leaves the graph as codes, and is what the host made of floats."""

import numpy as np
import pytest

from dlm_edge.errors import DlmEdgeError
from dlm_edge.runtime import Engine
from dlm_edge.runtime.step_model import FULL_ATTENTION

export = pytest.importorskip("dlm_edge.export", reason="needs onnx").export
# One kv head for each query head stores X, grouped heads store latents.
CASES = [("llada", name) for name in ("kv-int8", "kv-int4", "kv-int4x2", "x-int4", "x-int3", "x-cl4", "x-cl2")]
CASES += [("dream", name) for name in ("kv-int4", "x-int8", "x-int2")]
PROMPT = np.random.default_rng(0).integers(0, 250, 150).tolist()  # ends inside a group
STATIC = {"sampler": "static", "max_new_tokens": 24, "stop_at_eos": False}


@pytest.fixture(scope="module")
def with_floats(open_with):
    """As open_with, for a graph that floats leave, as in block-causal families."""
    engines = {}

    def find(family, layout, native=True):
        open_with(family, layout)
        bundle = open_with.folder / f"{family}-{layout}-floats"
        with pytest.MonkeyPatch.context() as patch:
            if not bundle.exists():
                patch.setattr("dlm_edge.export.cache_nodes.leaves_codes", lambda spec: False)
                export(str(open_with.folder / family), str(bundle), cache=layout)
            if not native:
                patch.setattr("dlm_edge.kernels.register", lambda options: False)
            if (bundle, native) not in engines:
                engines[bundle, native] = Engine.open(bundle, threads=1)
        engines[bundle, native].forget_prompt()
        return engines[bundle, native]

    yield find
    for engine in engines.values():
        engine.close()


def outputs(engine):
    return {meta.name.split(".")[0] for meta in engine.parts.model.session.get_outputs()}


def assert_same_cache(found, expected, n_layers=4):
    assert found.description() == expected.description() and found.cursor > 0
    for layer in range(n_layers):
        for name, array in expected.state(layer).items():
            np.testing.assert_array_equal(found.state(layer)[name], array, err_msg=f"{name}.{layer}")


# In x-cl the graph subtracts what it will itself read: with the native kernel, whose products and sums are fused, that
# differs in the last bit from what NumPy makes of the same codes.
@pytest.mark.parametrize("cache", ["prefix", "dual"])
@pytest.mark.parametrize(("family", "layout"), CASES)
def test_tokens_and_cache_are_those_of_floats(open_with, with_floats, family, layout, cache):
    native = not layout.startswith("x-cl")
    engine, other = open_with(family, layout, native), with_floats(family, layout, native)
    assert outputs(other) & {"k_new", "x_new"} and not outputs(engine) & {"k_new", "x_new"}
    for settings in ({}, {"refresh_every": 3}):
        found = engine.generate(PROMPT, cache=cache, **STATIC, **settings)
        expected = other.generate(PROMPT, cache=cache, **STATIC, **settings)
        assert found.token_ids == expected.token_ids
        assert_same_cache(engine.parts.model.memory.layout, other.parts.model.memory.layout)


@pytest.mark.parametrize("layout", ["x-cl4", "x-cl2"])
def test_deltas_are_of_what_the_graph_will_read(open_with, layout):
    """Codes computed natively: X comes back as well as from the codes that the function bodies compute."""
    caches = []
    for native in (True, False):
        engine = open_with("llada", layout, native)
        engine.generate(PROMPT, cache="dual", **STATIC)
        caches.append(engine.parts.model.memory.layout)
    native, defined = ([cache.reconstruct(i, 0, len(PROMPT)) for i in range(4)] for cache in caches)
    for layer in range(4):
        scale = caches[0].buffers(layer)["x_scale"].max()
        assert np.abs(native[layer] - defined[layer]).max() <= 1.01 * scale * (layer + 1)


@pytest.mark.parametrize(("family", "layout"), [("llada", "kv-int4"), ("llada", "x-int4"), ("dream", "x-int4")])
def test_bounds_of_pages_follow_the_same_keys(open_with, with_floats, family, layout):
    engine, other = open_with(family, layout), with_floats(family, layout)
    quest = {"attention": "quest", "budget": 32, "page_size": 16, "cache": "dual"}
    found, expected = engine.generate(PROMPT, **STATIC, **quest), other.generate(PROMPT, **STATIC, **quest)
    assert found.token_ids == expected.token_ids
    assert_same_cache(engine.parts.model.memory.bounds, other.parts.model.memory.bounds)


@pytest.mark.parametrize("layout", ["kv-int4", "x-int4", "x-cl3"])
def test_what_is_not_to_be_stored_does_not_leave(open_with, layout):
    """Passes that store nothing give outputs without rows, and those of a refresh are let go once they are stored."""
    model = open_with("llada", layout).parts.model
    ids = np.array(PROMPT)
    model.reset(len(ids))
    model.run(ids, 0, 0, FULL_ATTENTION, np.arange(8), stored_rows=100)
    sizes = {name: sum(array.size for array in arrays) for name, arrays in model.new.items()}
    assert sizes.pop("keys_new") == 0 and all(sizes.values())
    model.store(0, 100)
    assert model.new == {} and model.memory.layout.cursor == 100
    model.run(ids, 0, 0, FULL_ATTENTION, np.arange(8))
    assert model.new == {}


@pytest.mark.parametrize(("value", "code"), [(np.nan, "E-NAN"), (np.inf, "E-QUANT")])
def test_what_cannot_be_stored_is_refused(open_with, value, code):
    model = open_with("llada", "kv-int4").parts.model
    ids = np.array(PROMPT)
    model.reset(len(ids))
    model.run(ids, 0, 0, FULL_ATTENTION, np.arange(8), stored_rows=150)
    broken = {name: [array.copy() for array in arrays] for name, arrays in model.new.items()}
    broken["k_scale_new"][2][1, 1, 3] = value
    with pytest.raises(DlmEdgeError) as error:
        model.memory.store(0, ids, broken)
    assert error.value.code == code
    model.discard()
