"""Real tiny bundles in ONNX Runtime: the plain torch loop token for token, caches in place, errors with codes."""

import dataclasses
import shutil
import threading

import msgspec
import numpy as np
import pytest

from dlm_edge.bundle import open_bundle
from dlm_edge.errors import DlmEdgeError
from dlm_edge.runtime import Engine
from dlm_edge.runtime.attention import AttentionSettings
from dlm_edge.runtime.decode_settings import DecodeSettings
from dlm_edge.runtime.denoise import denoise
from dlm_edge.runtime.ort_step_model import OrtStepModel
from dlm_edge.runtime.prompt_cache import load_prompt_cache, save_prompt_cache
from dlm_edge.runtime.samplers import SAMPLERS
from dlm_edge.runtime.sequence_memory import CAPACITY_STEP
from dlm_edge.runtime.session import open_session
from dlm_edge.runtime.step_model import FULL_ATTENTION, Terminated
from tests.tiny import FAMILY_NAMES

BLOCK = 8
# An empty prompt is left out here: a canvas of masks alone has the same confidence at every position, so the
# order is a matter of rounding. The toy model covers it.
LENGTHS = [1, BLOCK - 1, BLOCK, BLOCK + 1, 28]
CACHES = {"llada": ["none"], "dream": ["none"], "sdar": ["none", "block"], "fast_dllm_v2": ["none", "block"]}


def prompt_of(length):
    return [(11 * i) % 250 for i in range(length)]


@pytest.fixture(scope="module")
def engines(bundles):
    opened = {family: Engine.open(bundles[family][1], threads=1) for family in FAMILY_NAMES}
    yield opened
    for engine in opened.values():
        engine.close()


@pytest.fixture(scope="module")
def torch_models(bundles):
    torch = pytest.importorskip("torch")
    torch.set_num_threads(1)
    from dlm_edge.models import load_model

    return {family: load_model(bundles[family][0]) for family in FAMILY_NAMES}


@pytest.fixture
def step_model(bundles):
    bundle = open_bundle(bundles["sdar"][1])
    manifest, opened = bundle.manifest, open_session(bundle.graph_path, threads=1)
    return OrtStepModel(opened, manifest.model, manifest.cache_layout, manifest.cache_group)


@pytest.mark.parametrize("settings", [{"sampler": "static"}, {"steps": 9}, {"threshold": 0.5}], ids=str)
@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_token_for_token_as_the_plain_loop(engines, torch_models, family, length, settings):
    from dlm_edge.models.plain_loop import PlainSettings, decode

    plain = {k: v for k, v in settings.items() if k != "sampler"}
    expected = decode(torch_models[family], prompt_of(length), PlainSettings(gen_len=21, **plain))
    for cache in CACHES[family]:
        result = engines[family].generate(prompt_of(length), max_new_tokens=21, cache=cache, **settings)
        assert result.token_ids == expected.ids
        assert result.steps == len(expected.commits)


@pytest.mark.parametrize("cache", ["prefix", "dual"])
@pytest.mark.parametrize("family", ["llada", "dream"])
def test_refresh_at_every_step_is_no_cache(engines, family, cache):
    for length in LENGTHS:
        expected = engines[family].generate(prompt_of(length), max_new_tokens=21, cache="none")
        again = engines[family].generate(prompt_of(length), max_new_tokens=21, cache=cache, refresh_every=1)
        assert again.token_ids == expected.token_ids


def test_windows_attend_to_the_cache(step_model):
    """A window over stored K/V gives the logits of the whole: the sum of all pieces of the contract."""
    ids, rows = np.array(prompt_of(24)), np.arange(8)
    step_model.reset(24)
    whole = step_model.run(ids, 0, 0, BLOCK, 16 + rows).copy()
    step_model.reset(24)
    for start in (0, 8):
        assert step_model.run(ids[start : start + 8], start, start, BLOCK, rows[:0]).shape[0] == 0
    np.testing.assert_allclose(step_model.run(ids[16:], 16, 16, BLOCK, rows), whole, rtol=0, atol=1e-4)
    full = step_model.run(ids, 0, 0, FULL_ATTENTION, 16 + rows).copy()
    assert abs(full - whole).max() > 0.01
    np.testing.assert_allclose(
        step_model.run(ids[8:16], 8, 24, FULL_ATTENTION, rows),
        step_model.run(ids, 0, 0, FULL_ATTENTION, 8 + rows),
        rtol=0,
        atol=1e-4,
    )


def test_caches_grow_and_are_kept(step_model):
    step_model.reset(10)
    assert step_model.capacity == CAPACITY_STEP
    step_model.reset(CAPACITY_STEP + 1)
    assert step_model.capacity == 2 * CAPACITY_STEP
    step_model.reset(10)
    assert step_model.capacity == 2 * CAPACITY_STEP


def test_terminate_before_and_after_reset(step_model):
    step_model.reset(16)
    step_model.terminate()
    with pytest.raises(Terminated):
        step_model.run(np.arange(8), 0, 0, BLOCK, np.arange(2))
    step_model.reset(16)
    assert step_model.run(np.arange(8), 0, 0, BLOCK, np.arange(2)).shape == (2, step_model.spec.vocab_size)


def test_terminate_inside_a_run(step_model):
    """Runs of the longest window, ended at random moments: each one ends as Terminated or complete."""
    step_model.reset(512)
    ids, outcomes = np.zeros(512, np.int64), set()
    for delay in np.linspace(0.0, 0.02, 25):
        step_model.reset(512)
        timer = threading.Timer(delay, step_model.terminate)
        timer.start()
        try:
            for _ in range(100):
                step_model.run(ids, 0, 0, FULL_ATTENTION, np.arange(8))
        except Terminated:
            outcomes.add("terminated")
        timer.join()
    assert outcomes == {"terminated"}
    step_model.reset(512)
    assert np.isfinite(step_model.run(ids, 0, 0, FULL_ATTENTION, np.arange(8))).all()


def test_engine_is_healthy_after_nan(engines, monkeypatch):
    engine = engines["sdar"]
    before = engine.generate([1, 2, 3], max_new_tokens=16).token_ids
    model, run = engine.parts.model, engine.parts.model.run
    monkeypatch.setattr(model, "run", lambda *args, **options: run(*args, **options) * np.nan)
    with pytest.raises(DlmEdgeError) as error:
        engine.generate([1, 2, 3], max_new_tokens=16)
    assert error.value.code == "E-NUM"
    monkeypatch.undo()
    assert engine.generate([1, 2, 3], max_new_tokens=16).token_ids == before


def test_threads_on_one_session_equal_serial_runs(engines):
    engine, found = engines["fast_dllm_v2"], {}
    serial = [engine.generate(prompt_of(n + 1), max_new_tokens=12).token_ids for n in range(16)]

    def work(first):
        for n in range(first, 16, 8):
            found[n] = engine.generate(prompt_of(n + 1), max_new_tokens=12).token_ids

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[n] for n in range(16)] == serial


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_stop_id_cuts_the_text(engines, family):
    """A token that this prompt is known to produce becomes the stop id of a second engine on the same model."""
    parts = engines[family].parts
    whole = engines[family].generate([4, 5, 9], max_new_tokens=40, cache="none").token_ids
    stop = whole[25]
    conventions = msgspec.structs.replace(parts.spec.conventions, stop_ids=(stop,))
    spec = msgspec.structs.replace(parts.spec, conventions=conventions)
    with Engine(dataclasses.replace(parts, spec=spec)) as engine:
        result = engine.generate([4, 5, 9], max_new_tokens=40, cache="none")
    assert result.stop_reason == "eos" and result.token_ids == whole[: whole.index(stop)]


def damage(folder, name, change):
    path = folder / name
    path.write_bytes(change(path.read_bytes()))


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda data: data[: len(data) // 2] + bytes(len(data) - len(data) // 2), "E-ONNX"),
        (lambda data: bytes(len(data)), "E-ONNX"),
        (lambda data: data.replace(b"RotaryEmbedding", b"RotaryEmbeddinh"), "E-OP"),
        (lambda data: data[:-1], "E-MANIFEST"),
        (lambda data: data.replace(b"cache_len", b"cache_lem"), "E-MANIFEST"),
    ],
    ids=["half", "zeros", "operator", "short", "input"],
)
def test_damaged_graphs_give_coded_errors(bundles, tmp_path, change, code):
    folder = shutil.copytree(bundles["sdar"][1], tmp_path / "b")
    damage(folder, "model.onnx", change)
    with pytest.raises(DlmEdgeError) as error:
        Engine.open(folder)
    assert error.value.code == code


class OnDevice(OrtStepModel):
    """A session whose caches lie elsewhere than in the host's arrays: in copies of them."""

    def __init__(self, opened, *rest):
        super().__init__(dataclasses.replace(opened, device="cuda"), *rest)
        self.bound.value_of = lambda array: self.ort.OrtValue.ortvalue_from_numpy(array.copy(), "cpu", 0)


LOSA = AttentionSettings(policy="losa", selector="first")


def on_device(bundle):
    manifest = bundle.manifest
    opened = open_session(bundle.graph_path, threads=1)
    return OnDevice(opened, manifest.model, manifest.cache_layout, manifest.cache_group)


def stored_on_a_device(bundles):
    """16 positions that only the device has, and what they hold."""
    model = on_device(open_bundle(bundles["sdar"][1]))
    model.reset(16)
    rng, written = np.random.default_rng(0), {}
    for name, (array, value) in model.bound.values.items():
        if name.startswith(("k_cache", "v_cache")):
            written[name] = rng.standard_normal(array.shape).astype(array.dtype)
            value.update_inplace(written[name])
    model.memory.layout.extend(16)
    model.memory.ids = np.arange(16)
    return model, {name: values[:, :, :16] for name, values in written.items()}


def held(model, names):
    return {name: model.bound.values[name][1].numpy()[:, :, :16] for name in names}


@pytest.mark.parametrize("change", [{"capacity": CAPACITY_STEP + 1}, {"attention": LOSA, "max_rows": 8}])
def test_another_device_keeps_what_it_stored(bundles, change):
    model, written = stored_on_a_device(bundles)
    model.reset(**{"capacity": 16} | change)
    assert model.keep(np.arange(16), 8) == 16
    np.testing.assert_equal(held(model, written), written)


def test_a_prompt_cache_passes_through_the_host(bundles, tmp_path):
    model, written = stored_on_a_device(bundles)
    save_prompt_cache(tmp_path / "prompt", model, "bundle")
    other = on_device(open_bundle(bundles["sdar"][1]))
    assert load_prompt_cache(tmp_path / "prompt", other, "bundle") == 16
    np.testing.assert_equal(held(other, written), written)


def test_another_device_refuses_bounds_of_keys_that_never_pass_the_host(bundles):
    model = on_device(open_bundle(bundles["sdar"][1]))
    with pytest.raises(DlmEdgeError) as caught:
        model.reset(16, AttentionSettings(policy="quest"))
    assert caught.value.code == "E-PARAM"


def decoded(model, prompt, attention):
    conventions = model.spec.conventions
    settings = DecodeSettings(
        gen_len=40,
        block_length=conventions.block_length,
        sub_block_length=conventions.sub_block_length,
        cache="prefix" if conventions.attention == "full" else "block",
        attention=attention,
    )
    tokens, stats = denoise(model, conventions, prompt, settings, SAMPLERS["static"])
    return tokens, stats.reused_tokens


@pytest.mark.parametrize("layout", ["kv-int8", "kv-int4", "x-int4", "x-cl3"])
@pytest.mark.parametrize("family", ["sdar", "llada"])
@pytest.mark.parametrize("policy", ["dense", "quest"])
def test_what_the_host_stores_reaches_another_device(open_with, family, layout, policy):
    """The second request reuses a part of the first one's prompt, and the third one needs larger caches."""
    open_with(family, layout)
    bundle = open_bundle(open_with.folder / f"{family}-{layout}")
    opened, manifest = open_session(bundle.graph_path, threads=1), bundle.manifest
    here = OrtStepModel(opened, manifest.model, manifest.cache_layout, manifest.cache_group)
    there = on_device(bundle)
    attention = AttentionSettings(policy=policy, budget=16, page_size=8)
    prompt = [5 + i * 7 % 180 for i in range(150)]
    for ids in (prompt, prompt[:100] + [9] * 30, prompt * 2):
        found = decoded(there, ids, attention)
        assert found == decoded(here, ids, attention)
    if (family, policy) == ("sdar", "dense") and layout.startswith("kv"):  # x layouts go back by whole groups
        assert found[1] > 0, "nothing was reused"


def test_another_device_refuses_planes(open_with):
    open_with("sdar", "kv-int4x2")
    with pytest.raises(DlmEdgeError) as caught:
        on_device(open_bundle(open_with.folder / "sdar-kv-int4x2"))
    assert caught.value.code == "E-DEVICE"
