"""The configs in optimum's registry against the checkpoints they describe and the graphs that are exported from them."""

from __future__ import annotations

import json

import numpy as np
import pytest

REASON = "needs the extra dlm-edge[optimum]"
pytest.importorskip("optimum.exporters.tasks", reason=REASON)
ort = pytest.importorskip("onnxruntime")

import torch  # noqa: E402
from optimum.exporters.tasks import TasksManager  # noqa: E402

from dlm_edge.checkpoint import open_checkpoint  # noqa: E402
from dlm_edge.errors import UsageProblem  # noqa: E402
from dlm_edge.export import export  # noqa: E402
from dlm_edge.families import FAMILIES  # noqa: E402
from dlm_edge.models import load_model  # noqa: E402
from dlm_edge.optimum import BACKEND, CONFIGS, exporter_config, register  # noqa: E402
from dlm_edge.runtime.step_model import FULL_ATTENTION  # noqa: E402
from tests.tiny import FAMILY_NAMES, make_checkpoint  # noqa: E402

# Keys that released configs may leave out; both readers have to fill them in alike.
OPTIONAL = {
    "llada": {"n_kv_heads": None},
    "dream": {"head_dim": None},
    "sdar": {"block_size": None},
    "fast_dllm_v2": {"bd_size": None},
}
ORT_TYPES = {"tensor(int64)": np.int64, "tensor(float)": np.float32, "tensor(float16)": np.float16}
ORT_TYPES["tensor(int8)"] = np.int8


def exported(tmp_path, family, **options):
    source = make_checkpoint(tmp_path / "source", family)
    export(source, tmp_path / "bundle", **options)
    path = str(tmp_path / "bundle" / "model.onnx")
    return source, ort.InferenceSession(path, providers=["CPUExecutionProvider"])


def axes(values):
    return {v.name: {i: d for i, d in enumerate(v.shape) if isinstance(d, str)} for v in values}


@pytest.mark.parametrize("task", ["text-generation", "fill-mask"])
def test_every_family_is_registered(task):
    register()
    register()
    assert set(CONFIGS) == set(FAMILIES)
    for name, family in FAMILIES.items():
        for model_type in family.model_types:
            constructor = TasksManager.get_exporter_config_constructor(
                BACKEND, model_type=model_type, task=task, library_name="transformers"
            )
            assert constructor.func is CONFIGS[name]


@pytest.mark.parametrize("keys", [{}, OPTIONAL], ids=["all-keys", "defaults"])
@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_dimensions_are_those_of_the_checkpoint(family, keys, tmp_path):
    source = make_checkpoint(tmp_path, family, n_layers=5, config=keys.get(family))
    spec, found = open_checkpoint(source).spec, exporter_config(source).dimensions
    assert found.num_layers == spec.n_layers
    assert found.hidden_size == spec.hidden_size
    assert found.num_attention_heads == spec.n_heads
    assert found.num_key_value_heads == spec.n_kv_heads
    assert found.head_dim == spec.head_dim
    assert found.vocab_size == spec.embedding_rows
    full = spec.conventions.attention == "full"
    assert found.attn_block == (FULL_ATTENTION if full else spec.conventions.block_length)


def test_head_dim_may_differ_from_hidden_over_heads(tmp_path):
    source = make_checkpoint(tmp_path, "sdar", head_dim=32)
    assert exporter_config(source).dimensions.head_dim == 32


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_names_and_axes_are_those_of_the_graph(family, tmp_path):
    source, session = exported(tmp_path, family)
    config = exporter_config(source)
    assert list(config.inputs) == [i.name for i in session.get_inputs()]
    assert list(config.outputs) == [o.name for o in session.get_outputs()]
    assert config.inputs == axes(session.get_inputs())
    assert config.outputs == axes(session.get_outputs())


@pytest.mark.parametrize(("target", "float_dtype"), [("cpu", "fp32"), ("cuda", "fp16")])
@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_dummy_inputs_run_through_the_graph(family, target, float_dtype, tmp_path):
    source, session = exported(tmp_path, family, target=target)
    config = exporter_config(source, float_dtype=float_dtype)
    feeds = config.generate_dummy_inputs(framework="np", sequence_length=5, cache_len=8, capacity=20)
    assert {n: a.dtype for n, a in feeds.items()} == {i.name: ORT_TYPES[i.type] for i in session.get_inputs()}
    assert {n: a.ndim for n, a in feeds.items()} == {i.name: len(i.shape) for i in session.get_inputs()}
    outputs = dict(zip(config.outputs, session.run(None, feeds), strict=True))
    assert outputs["logits"].shape == (5, open_checkpoint(source).spec.vocab_size)
    assert np.isfinite(outputs["logits"]).all()
    for name, before in feeds.items():
        if "cache." in name:
            changed = (outputs[name.replace("_cache", "_cache_out")] != before).any(axis=(0, 1, 3))
            assert np.flatnonzero(changed).tolist() == [8, 9, 10, 11, 12]


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_logits_of_dummy_inputs_equal_the_torch_module(family, tmp_path):
    source, session = exported(tmp_path, family)
    config = exporter_config(source)
    np.random.seed(3)  # optimum draws from the global generator
    feeds = config.generate_dummy_inputs(framework="np", sequence_length=29)
    logits, *_ = session.run(None, feeds)
    with torch.no_grad():
        expected = load_model(source)(torch.from_numpy(feeds["input_ids"]))[0, :, : logits.shape[1]].numpy()
    error = np.abs(logits - expected).max()
    assert error <= config.ATOL_FOR_VALIDATION


def test_torch_and_numpy_inputs_are_alike(tmp_path):
    config = exporter_config(make_checkpoint(tmp_path, "dream"))
    in_numpy, in_torch = (config.generate_dummy_inputs(framework=f, cache_len=4) for f in ("np", "pt"))
    assert {n: (a.shape, a.dtype) for n, a in in_numpy.items()} == {
        n: (tuple(t.shape), t.numpy().dtype) for n, t in in_torch.items()
    }


@pytest.mark.parametrize(
    "sizes",
    [{"batch_size": 2}, {"sequence_length": 0}, {"cache_len": -1}, {"cache_len": 4, "capacity": 19}],
    ids=lambda s: "-".join(s),
)
def test_sizes_that_do_not_fit_are_refused(sizes, tmp_path):
    config = exporter_config(make_checkpoint(tmp_path, "sdar"))
    with pytest.raises(UsageProblem):
        config.generate_dummy_inputs(framework="np", **sizes)


@pytest.mark.parametrize("types", [{"float_dtype": "bf16"}, {"int_dtype": "int32"}], ids=lambda t: "".join(t))
def test_other_number_types_are_refused(types, tmp_path):
    with pytest.raises(UsageProblem, match="does not fit"):
        exporter_config(make_checkpoint(tmp_path, "sdar"), **types)


def test_nothing_of_the_checkpoint_is_executed(tmp_path):
    source = make_checkpoint(tmp_path, "sdar", config={"auto_map": {"AutoConfig": "evil.EvilConfig"}})
    (source / "evil.py").write_text("raise SystemExit('executed')")
    assert json.loads((source / "config.json").read_text())["auto_map"]
    assert exporter_config(source).dimensions.num_layers == 3
