"""Prompts kept in a file: a new engine goes on with them, and whatever else the file holds is refused."""

import dataclasses
import json
import threading

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from dlm_edge.bundle import open_bundle
from dlm_edge.cli import main
from dlm_edge.errors import DlmEdgeError, InputFileError, ResourceError
from dlm_edge.runtime import Engine
from dlm_edge.runtime.engine import Engine as EngineClass
from tests.runtime.conftest import toy_parts
from tests.runtime.test_engine import GatedModel

STATIC = {"sampler": "static", "max_new_tokens": 16}
LAYOUTS = ["kv-fp32", "kv-fp16", "kv-int8", "kv-int4", "kv-int4x2", "x-int4", "x-int3", "x-cl3"]


def prompt_of(length, seed=0):
    return np.random.default_rng(seed).integers(0, 250, length).tolist()


def forget_all(engine):
    engine._worker.call(engine.parts.model.discard)


@pytest.fixture
def saved(open_with, tmp_path):
    """saved(family, layout): an engine, its answer, and the file of what it kept of a prompt of 100 tokens."""

    def make(family="sdar", layout="kv-fp32"):
        engine, path = open_with(family, layout), tmp_path / "prompt.safetensors"
        forget_all(engine)
        result = engine.generate(prompt_of(100), **STATIC)
        assert engine.save_prompt_cache(path) == 112  # 12 blocks of the prompt, two finished ones after it
        return engine, result.token_ids, path

    return make


@pytest.mark.parametrize("layout", LAYOUTS)
def test_another_engine_goes_on(saved, layout):
    engine, expected, path = saved(layout=layout)
    with Engine(engine.parts) as other:  # the same session and model, and nothing stored
        forget_all(other)
        assert other.load_prompt_cache(path) == 112
        found = other.generate(prompt_of(100), **STATIC)
    assert found.reused_tokens == 96 and found.prefill_passes == 0 and found.token_ids == expected


def test_a_shifted_model_goes_on(saved):
    engine, expected, path = saved("fast_dllm_v2")
    forget_all(engine)
    engine.load_prompt_cache(path)
    found = engine.generate(prompt_of(100), **STATIC)
    assert found.reused_tokens == 88 and found.token_ids == expected


def test_another_prompt_after_loading_is_not_contaminated(saved):
    engine, _, path = saved(layout="kv-int4")
    forget_all(engine)
    expected = engine.generate(prompt_of(70, seed=3), **STATIC).token_ids
    engine.load_prompt_cache(path)
    found = engine.generate(prompt_of(70, seed=3), **STATIC)
    assert found.reused_tokens == 0 and found.token_ids == expected


@pytest.mark.parametrize(("layout", "reused"), [("kv-fp32", 96), ("kv-fp16", 96), ("kv-int4", 0), ("x-int4", 0)])
def test_page_bounds_come_from_stored_floats_or_the_prompt_is_computed_again(saved, layout, reused):
    engine, _, path = saved(layout=layout)
    quest = STATIC | {"attention": "quest", "budget": 16, "page_size": 8}
    forget_all(engine)
    expected = engine.generate(prompt_of(100), **quest)
    engine.load_prompt_cache(path)
    found = engine.generate(prompt_of(100), **quest)
    assert found.reused_tokens == reused and found.token_ids == expected.token_ids
    assert found.density == expected.density


def test_a_saved_file_is_the_same_again(saved, tmp_path):
    engine, _, path = saved(layout="kv-int4")
    forget_all(engine)
    engine.load_prompt_cache(path)
    engine.save_prompt_cache(tmp_path / "again")
    again, before = load_file(tmp_path / "again"), load_file(path)
    assert again.keys() == before.keys()
    assert all((again[name] == before[name]).all() for name in before)


def change_tensors(**changes):
    """A damage that replaces tensors: name -> function of the old one, None to leave it out."""

    def damage(path):
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata()
        tensors = load_file(path)
        for name, change in changes.items():
            name = name.replace("__", ".")
            if change is None:
                del tensors[name]
            else:
                tensors[name] = np.ascontiguousarray(change(tensors.get(name)))
        save_file(tensors, path, metadata)

    return damage


def with_nan(array):
    array[0, 0, 3, 5] = np.nan
    return array


def rename_bundle(path):
    with safe_open(path, framework="numpy") as file:
        metadata = file.metadata()
    save_file(load_file(path), path, metadata | {"bundle": "0" * 64})


def drop_metadata(path):
    save_file(load_file(path), path)


DAMAGES = {
    "other bundle": rename_bundle,
    "no metadata": drop_metadata,
    "empty": lambda path: path.write_bytes(b""),
    "truncated header": lambda path: path.write_bytes(path.read_bytes()[:40]),
    "truncated data": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "text": lambda path: path.write_text("not a cache"),
    "huge header": lambda path: path.write_bytes(b"\xff" * 8 + path.read_bytes()[8:]),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
    "missing": lambda path: path.unlink(),
    "shape": change_tensors(k_cache__0=lambda a: a[:, :, :-1]),
    "dtype": change_tensors(v_cache__1=lambda a: a.astype(np.float16)),
    "integers": change_tensors(v_cache__1=lambda a: a.view(np.int32)),
    "nan": change_tensors(k_cache__2=with_nan),
    "infinity": change_tensors(v_cache__0=lambda a: a * np.inf),
    "missing layer": change_tensors(k_cache__3=None),
    "extra tensor": change_tensors(k_cache__4=lambda _: np.zeros(3, np.float32)),
    "no ids": change_tensors(ids=None),
    "fewer ids": change_tensors(ids=lambda a: a[:-8]),
    "no id": change_tensors(ids=lambda a: a[:0]),
    "negative id": change_tensors(ids=lambda a: a - 300),
    "large id": change_tensors(ids=lambda a: a + 10**6),
    "id of 32 bits": change_tensors(ids=lambda a: a.astype(np.int32)),
    "ids of two axes": change_tensors(ids=lambda a: a[None]),
    "too many ids": change_tensors(ids=lambda a: np.tile(a, 50)),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_other_files_are_refused_and_the_engine_works(saved, damage):
    engine, expected, path = saved()
    DAMAGES[damage](path)
    with pytest.raises(InputFileError) as error:
        engine.load_prompt_cache(path)
    assert error.value.code == "E-CACHE" and str(path) in error.value.message
    found = engine.generate(prompt_of(100), **STATIC)
    assert found.token_ids == expected and found.reused_tokens in (0, 96)


def test_scales_that_are_no_numbers_are_refused(saved):
    engine, expected, path = saved(layout="kv-int4")
    change_tensors(k_scale__1=lambda a: a * np.float16(np.inf))(path)
    with pytest.raises(InputFileError, match="k_scale.1"):
        engine.load_prompt_cache(path)
    assert engine.generate(prompt_of(100), **STATIC).token_ids == expected


def test_a_file_of_another_layout_is_refused(saved, open_with):
    _, _, path = saved()
    with pytest.raises(InputFileError) as error:
        open_with("sdar", "kv-fp16").load_prompt_cache(path)
    assert error.value.code == "E-CACHE"


def test_nothing_stored_cannot_be_saved(open_with, tmp_path):
    engine = open_with("sdar")
    for prepare in (lambda: forget_all(engine), lambda: engine.generate(prompt_of(20), cache="none", **STATIC)):
        prepare()
        with pytest.raises(DlmEdgeError) as error:
            engine.save_prompt_cache(tmp_path / "file")
        assert error.value.code == "E-STATE" and not (tmp_path / "file").exists()


def test_full_attention_keeps_no_prompts(open_with, tmp_path):
    engine = open_with("llada")
    engine.generate(prompt_of(20), **STATIC)
    assert not engine.keeps_prompts
    for call in (engine.save_prompt_cache, engine.load_prompt_cache):
        with pytest.raises(DlmEdgeError) as error:
            call(tmp_path / "file")
        assert error.value.code == "E-STATE"


def test_a_disk_that_refuses_leaves_the_prompt(saved, tmp_path):
    engine, expected, _ = saved()
    with pytest.raises(DlmEdgeError) as error:
        engine.save_prompt_cache(tmp_path)  # a folder
    assert error.value.code == "E-IO"
    found = engine.generate(prompt_of(100), **STATIC)
    assert found.reused_tokens == 96 and found.token_ids == expected


def test_hash_names_graph_and_layout(open_with, tmp_path):
    parts = [
        open_with(f, layout).parts for f, layout in (("sdar", "kv-fp32"), ("sdar", "kv-int4"), ("llada", "kv-fp32"))
    ]
    assert len({p.bundle_hash for p in parts}) == 3 and all(len(p.bundle_hash) == 64 for p in parts)


def test_calls_wait_for_the_jobs_before_them():
    """On the worker thread, between two jobs: never while one runs."""
    model, order = GatedModel(), []
    engine = EngineClass(toy_parts(model=model))
    job = engine.submit("a", max_new_tokens=8, on_event=lambda event: order.append("job"))
    assert model.waiting.wait(5)
    caller = threading.Thread(target=lambda: engine._worker.call(lambda: order.append(threading.current_thread().name)))
    caller.start()
    caller.join(0.05)
    assert caller.is_alive()
    model.gate.set()
    caller.join(5)
    assert job.state == "done" and order[-1] == "dlm-edge-engine" and order.count("dlm-edge-engine") == 1
    engine.close()
    with pytest.raises(DlmEdgeError) as error:
        engine.forget_prompt()
    assert error.value.code == "E-CLOSED"


def test_a_call_that_waits_is_told_of_the_close():
    model, codes = GatedModel(), []
    engine = EngineClass(toy_parts(model=model))
    engine.submit("a", max_new_tokens=8)
    assert model.waiting.wait(5)

    def forget():
        try:
            engine.forget_prompt()
        except DlmEdgeError as error:
            codes.append(error.code)

    caller = threading.Thread(target=forget)
    caller.start()
    while not engine._worker._queue:
        pass
    engine.close()
    caller.join(5)
    assert codes == ["E-CLOSED"]


def test_a_callback_may_not_wait_for_the_worker(open_with):
    codes, engine = [], open_with("sdar")

    def on_event(event):
        try:
            engine.forget_prompt()
        except DlmEdgeError as error:
            codes.append(error.code)

    engine.submit("some words", max_new_tokens=4, on_event=on_event).result(20)
    assert set(codes) == {"E-REENTRANT"}


@pytest.fixture
def generate(bundles, capsys):
    def run(*arguments, family="sdar", code=0):
        prompt = " ".join(map(str, prompt_of(60)))
        command = ["generate", str(bundles[family][1]), "-p", prompt, "--ids", "--max-new-tokens", "16", "--json"]
        assert main([*command, *arguments]) == code
        return capsys.readouterr()

    return run


def test_command_loads_and_saves(generate, tmp_path, bundles):
    file = tmp_path / "kept"
    first, second = generate("--prompt-cache", str(file)), generate("--prompt-cache", str(file))
    results = [json.loads(output.out) for output in (first, second)]
    assert [result["reused_tokens"] for result in results] == [0, 56]
    assert results[0]["token_ids"] == results[1]["token_ids"]
    assert first.err == f"prompt cache: 0 tokens reused, 72 written to {file}\n"
    assert second.err.splitlines() == [
        f"prompt cache: 72 tokens from {file}",
        f"prompt cache: 56 tokens reused, 72 written to {file}",
    ]
    with safe_open(file, framework="numpy") as opened:
        assert opened.metadata()["bundle"] == open_bundle(bundles["sdar"][1]).graph_hash


def test_command_refuses_before_it_generates(generate, tmp_path):
    file = tmp_path / "kept"
    file.write_text("something else")
    assert "E-CACHE" in generate("--prompt-cache", str(file), code=3).out
    assert file.read_text() == "something else"
    assert "E-USAGE" in generate("--prompt-cache", str(tmp_path / "no" / "kept"), code=2).out
    assert "E-USAGE" in generate("--prompt-cache", str(tmp_path / "new"), "--no-cache", code=2).out
    assert "E-USAGE" in generate("--prompt-cache", str(tmp_path / "new"), family="llada", code=2).out


def test_command_says_when_there_is_nothing_to_write(bundles, capsys, tmp_path):
    arguments = ["generate", str(bundles["sdar"][1]), "-p", "1 2", "--ids", "--max-new-tokens", "4", "--json"]
    assert main([*arguments, "--prompt-cache", str(tmp_path / "kept")]) == 0
    assert capsys.readouterr().err == "prompt cache: nothing written, no whole block was stored (E-STATE)\n"
    assert not (tmp_path / "kept").exists()


def test_a_file_beyond_the_memory_budget_is_refused(saved):
    engine, _, path = saved()
    parts = dataclasses.replace(engine.parts, memory_budget=engine.parts.weight_bytes + 1000)
    with EngineClass(parts) as small:
        with pytest.raises(ResourceError) as error:
            small.load_prompt_cache(path)
        assert error.value.code == "E-MEM"
