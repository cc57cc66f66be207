"""Whole checkpoints of other quantizers: opened, loaded, described, and refused when something is wrong with them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dlm_edge.checkpoint import open_checkpoint
from dlm_edge.checkpoint.formats import WRITERS
from dlm_edge.errors import InputFileError
from dlm_edge.inspection import inspect_artefact
from dlm_edge.models.loading import load_model
from dlm_edge.quantized import CodebookTensor, QuantizedTensor
from tests import bitsandbytes_files as bnb
from tests.foreign import (
    Tensors,
    edit_config,
    edit_tensors,
    linear_roles,
    make_foreign,
    random_codebook,
    random_weight,
    to_write,
    writer_of,
)
from tests.tiny import make_checkpoint

FORMATS = ("gptq", "gptq_v2", "gptq-order", "awq", "compressed-tensors", "nf4", "fp4-nested")


def make(folder: Path, family: str, format: str) -> dict[str, np.ndarray]:
    """A tiny checkpoint in `format`; what its linear layers are worth by role."""
    if format in ("nf4", "fp4-nested"):
        codes = format[:3]
        config = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": codes}
        config |= {"bnb_4bit_use_double_quant": format != codes, "llm_int8_threshold": 6.0}
        return make_foreign(
            folder,
            family,
            nested if format != codes else bnb.plain_tensors,
            config,
            lambda shape, i: with_nested(random_codebook(shape, codes, i)) if format != codes else
            random_codebook(shape, codes, i),
        )  # fmt: skip
    name, reordered = format.removesuffix("-order"), format.endswith("-order")
    sample = random_weight((64, 64), 4, 32, reordered=reordered)
    config = WRITERS[name].config([to_write("x.weight", sample)], ["lm_head"])
    return make_foreign(
        folder,
        family,
        writer_of(name),
        config,
        lambda shape, i: random_weight(shape, 4, 32, reordered=reordered, seed=i),
    )


def nested(name: str, weight: CodebookTensor) -> Tensors:
    return bnb.nested_tensors(name, weight)[0]


def with_nested(weight: CodebookTensor) -> CodebookTensor:
    return CodebookTensor(weight.packed, bnb.nested_tensors("", weight)[1], weight.shape, weight.format)


@pytest.mark.parametrize("family", ["llada", "sdar"])
@pytest.mark.parametrize("format", FORMATS)
def test_logits_are_those_of_the_dequantized_weights(tmp_path: Path, family: str, format: str) -> None:
    worth = make(tmp_path / "foreign", family, format)
    make_checkpoint(tmp_path / "plain", family, dtype="float32", n_layers=2)
    from safetensors.numpy import load_file

    stored = load_file(tmp_path / "foreign" / "model.safetensors")
    names = open_checkpoint(tmp_path / "plain").tensor_name
    edit_tensors(
        tmp_path / "plain",
        lambda t: t.update(
            {n: stored[n].astype(np.float32) for n in t if n in stored and stored[n].dtype == np.float16}
            | {names(role): weight for role, weight in worth.items()}
        ),
    )
    ids = torch.arange(12)[None] * 7
    with torch.no_grad():
        expected = load_model(tmp_path / "plain")(ids)
        found = load_model(tmp_path / "foreign")(ids)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("format", FORMATS)
def test_everything_about_the_weights_is_known(tmp_path: Path, format: str) -> None:
    worth = make(tmp_path, "sdar", format)
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.record is not None and checkpoint.record.bits == 4
    assert checkpoint.record.method.endswith("(foreign)") and checkpoint.record.skipped == []
    for role, weight in worth.items():
        record, packed = checkpoint.layer_record(role), checkpoint.load_packed(role)
        assert record is not None and packed is not None and record.name == checkpoint.tensor_name(role)
        assert checkpoint.dtype(role) == (format[:3] if format[1:3] == "f4" or format[1:3] == "p4" else "int4")
        assert packed.shape == weight.shape and checkpoint.stored_bytes(role) > weight.size / 2
        if isinstance(packed, QuantizedTensor):
            assert (record.bits, record.group_size, record.zero) == (packed.bits, packed.group_size, packed.zero_kind)
            assert record.reordered == (packed.order is not None)
        np.testing.assert_array_equal(checkpoint.load_rows(role, 3, 11), weight[3:11])
        np.testing.assert_array_equal(checkpoint.load(role), weight)
    stored = sum(checkpoint.stored_bytes(role) for role in checkpoint.roles())
    assert stored <= (tmp_path / "model.safetensors").stat().st_size
    described = inspect_artefact(tmp_path)
    assert described.kind == "quantized" and described.quantization is not None


@pytest.mark.parametrize("format", ["gptq", "awq", "compressed-tensors", "nf4"])
def test_layers_may_stay_in_floating_point(tmp_path: Path, format: str) -> None:
    make(tmp_path, "sdar", format)
    make_checkpoint(tmp_path / "plain", "sdar", dtype="float16", n_layers=2)
    from safetensors.numpy import load_file

    plain, checkpoint = load_file(tmp_path / "plain" / "model.safetensors"), open_checkpoint(tmp_path)
    name = checkpoint.tensor_name("layers.1.down.weight")
    stem = name.removesuffix("weight")

    def put_back(tensors: Tensors) -> None:
        for key in [key for key in tensors if key.startswith(stem)]:
            del tensors[key]
        tensors[name] = plain[name]

    edit_tensors(tmp_path, put_back)
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.layer_record("layers.1.down.weight") is None
    assert checkpoint.record is not None and checkpoint.record.skipped == [name]
    np.testing.assert_array_equal(checkpoint.load("layers.1.down.weight"), plain[name].astype(np.float32))


def test_several_settings_in_one_checkpoint(tmp_path: Path) -> None:
    """Shapes tell them apart: groups of compressed-tensors, `dynamic` of GPTQ."""

    def weights(shape: tuple[int, int], i: int) -> QuantizedTensor:
        return (
            random_weight(shape, 8, 16, symmetric=True, seed=i) if i % 7 == 6 else random_weight(shape, 4, 32, seed=i)
        )

    layers = [to_write(f"layer.{i}.weight", weights((64, 64), i)) for i in range(14)]
    writer = WRITERS["compressed-tensors"]
    config = writer.config(layers, [])
    assert len(config["config_groups"]) == 2
    worth = make_foreign(tmp_path / "ct", "sdar", writer_of("compressed-tensors"), config, weights)
    checkpoint = open_checkpoint(tmp_path / "ct")
    for role, weight in worth.items():
        np.testing.assert_array_equal(checkpoint.load(role), weight)
    assert {checkpoint.dtype(role) for role in worth} == {"int8", "int4"}

    def asymmetric(shape: tuple[int, int], i: int) -> QuantizedTensor:
        return random_weight(shape, 8, 16, seed=i) if i % 7 == 6 else random_weight(shape, 4, 32, seed=i)

    config = {"quant_method": "gptq", "bits": 4, "group_size": 32, "sym": False, "checkpoint_format": "gptq_v2"}
    config["dynamic"] = {"+:.*down_proj": {"bits": 8, "group_size": 16}, "-:.*lm_head": {}}
    worth = make_foreign(tmp_path / "gptq", "sdar", writer_of("gptq_v2"), config, asymmetric)
    checkpoint = open_checkpoint(tmp_path / "gptq")
    for role, weight in worth.items():
        np.testing.assert_array_equal(checkpoint.load(role), weight)


Change = Callable[[Tensors], object]


def first(tensors: Tensors, suffix: str) -> str:
    return next(name for name in sorted(tensors) if name.endswith(suffix))


def cut(suffix: str) -> Change:
    return lambda t: t.update({first(t, suffix): t[first(t, suffix)][:-1]})


def cast(suffix: str, dtype: Any) -> Change:
    return lambda t: t.update({first(t, suffix): t[first(t, suffix)].astype(dtype)})


def put(suffix: str, value: Any) -> Change:
    def change(tensors: Tensors) -> None:
        name = first(tensors, suffix)
        tensors[name] = np.array(tensors[name])
        tensors[name].reshape(-1)[-1] = value

    return change


def drop(suffix: str) -> Change:
    return lambda t: t.pop(first(t, suffix))


def add(suffix: str, new: str) -> Change:
    return lambda t: t.update({first(t, suffix).removesuffix(suffix) + new: np.ones((4, 4), np.float16)})


def state(**keys: Any) -> Change:
    def change(tensors: Tensors) -> None:
        import json

        name = first(tensors, "bitsandbytes__nf4")
        content = json.loads(tensors[name].tobytes()) | keys
        tensors[name] = np.frombuffer(json.dumps(content).encode(), np.uint8)

    return change


BAD_TENSORS: list[tuple[str, str, Change, str]] = [
    *((f, p, cut(p), "E-TENSOR") for f in ("gptq", "awq") for p in (".qweight", ".qzeros", ".scales")),
    *((f, p, drop(p), "E-TENSOR") for f in ("gptq", "awq") for p in (".qweight", ".qzeros", ".scales")),
    ("gptq", "qweight of floats", cast(".qweight", np.float32), "E-ST-DTYPE"),
    ("gptq", "scales of integers", cast(".scales", np.int32), "E-ST-DTYPE"),
    ("gptq", "scale infinite", put(".scales", np.inf), "E-NAN"),
    ("gptq", "packed and plain", add(".qweight", ".weight"), "E-TENSOR"),
    ("gptq", "unknown tensor", add(".qweight", ".qextra"), "E-TENSOR"),
    ("gptq-order", "no index", drop(".g_idx"), "E-TENSOR"),
    ("gptq-order", "negative group", put(".g_idx", -1), "E-TENSOR"),
    ("gptq-order", "group beyond", put(".g_idx", 2**30), "E-TENSOR"),
    ("gptq", "order not announced", lambda t: t.update({n: v[::-1] for n, v in t.items() if n.endswith("g_idx")}),
     "E-TENSOR"),
    *(("compressed-tensors", p, cut(p), "E-TENSOR") for p in ("_packed", "_scale", "_zero_point", "_shape")),
    ("compressed-tensors", "no scale", drop("_scale"), "E-TENSOR"),
    ("compressed-tensors", "no zeros", drop("_zero_point"), "E-TENSOR"),
    ("compressed-tensors", "shape", put("_shape", 2**40), "E-TENSOR"),
    ("compressed-tensors", "scale NaN", put("_scale", np.nan), "E-NAN"),
    ("compressed-tensors", "bytes for words", cast("_packed", np.uint8), "E-ST-DTYPE"),
    *(("nf4", p, cut(p), "E-TENSOR") for p in (".absmax", ".quant_map", "_proj.weight")),
    ("nf4", "another table", put(".quant_map", 0.5), "E-TENSOR"),
    ("nf4", "magnitude NaN", put(".absmax", np.nan), "E-NAN"),
    ("nf4", "no JSON", put("bitsandbytes__nf4", 0), "E-TENSOR"),
    ("nf4", "other blocks", state(blocksize=128), "E-TENSOR"),
    ("nf4", "other shape", state(shape=[1, 2]), "E-TENSOR"),
    ("nf4", "other type", state(quant_type="fp4"), "E-TENSOR"),
    ("nf4", "unknown key", state(extra=1), "E-TENSOR"),
    ("nf4", "nested without", state(nested_blocksize=256), "E-TENSOR"),
    ("fp4-nested", "outer infinite", put(".nested_absmax", np.inf), "E-NAN"),
    ("fp4-nested", "too few outer", cut(".nested_quant_map"), "E-TENSOR"),
]  # fmt: skip


@pytest.mark.parametrize(("format", "what", "change", "code"), BAD_TENSORS, ids=[f"{b[0]} {b[1]}" for b in BAD_TENSORS])
def test_tensors_that_cannot_be_are_refused(tmp_path: Path, format: str, what: str, change: Change, code: str) -> None:
    make(tmp_path, "sdar", format)
    edit_tensors(tmp_path, change)
    with pytest.raises(InputFileError) as caught:
        checkpoint = open_checkpoint(tmp_path)
        for role in linear_roles(checkpoint):
            checkpoint.load(role)
    assert caught.value.code == code and caught.value.hint


def test_zeros_that_contradict_the_config(tmp_path: Path) -> None:
    for format, key in (("gptq", "sym"), ("awq", "zero_point")):
        make(tmp_path / format, "sdar", format)
        config = WRITERS[format].config([to_write("x.weight", random_weight((64, 64), 4, 32))], [])
        edit_config(tmp_path / format, quantization_config=config | {key: format == "gptq"})
        with pytest.raises(InputFileError, match="symmetric"):
            open_checkpoint(tmp_path / format).load("layers.0.q.weight")


GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 32, "sym": False}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm", "zero_point": True}
NF4 = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
WEIGHTS = {"num_bits": 4, "type": "int", "symmetric": False, "strategy": "group", "group_size": 32}


def ct(group: dict[str, Any] | None = None, weights: dict[str, Any] | None = None, **keys: Any) -> dict[str, Any]:
    scheme = {"targets": ["Linear"], "weights": WEIGHTS | (weights or {})} | (group or {})
    return {"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": {"g": scheme}} | keys


BAD_CONFIGS: list[Any] = [
    "gptq", [], {}, {"quant_method": None}, {"quant_method": "aqlm"}, {"quant_method": 4}, {"bits": 4},
    *(GPTQ | change for change in (
        {"bits": 5}, {"bits": "4"}, {"bits": True}, {"bits": None}, {"group_size": 0}, {"group_size": -2}, {"group_size": None},
        {"group_size": 2**40}, {"sym": 1}, {"desc_act": "no"}, {"checkpoint_format": "marlin"}, {"checkpoint_format": "gptq_p"},
        {"checkpoint_format": "gptq", "format": "gptq_v2"}, {"pack_dtype": "int16"}, {"is_marlin_format": True},
        {"adapter": {"rank": 8}}, {"unheard_of": 1}, {"dynamic": [1]}, {"dynamic": {"+:x": {"sym": True}}},
        {"dynamic": {"+:x": {"bits": 5}}}, {"dynamic": {"x": 4}},
    )),
    *(AWQ | change for change in (
        {"bits": 8}, {"version": "gemv"}, {"version": "marlin"}, {"zero_point": "yes"}, {"group_size": 0}, {"desc_act": True},
        {"unheard_of": None}, {"dynamic": {"+:x": {"bits": 8}}},
    )),
    *(NF4 | change for change in (
        {"load_in_8bit": True}, {"load_in_4bit": False}, {"bnb_4bit_quant_type": "int4"}, {"bnb_4bit_quant_storage": "int4"},
        {"unheard_of": 1}, {"bnb_4bit_use_double_quant": 1},
    )),
    ct(format="nvfp4-pack-quantized"), ct(config_groups={}), ct(config_groups={"W4A16": ["Linear"]}), ct(kv_cache_scheme={}),
    ct(transform_config={"config_groups": {}}), ct(sparsity_config={"format": "sparse-24-bitmask"}), ct(unheard_of=1),
    ct(quantization_status="frozen"), ct({"input_activations": {"num_bits": 8}}), ct({"weights": None}), ct({"extra": 1}),
    *(ct(weights=change) for change in (
        {"num_bits": 5}, {"type": "float"}, {"strategy": "tensor"}, {"strategy": "block"}, {"group_size": None}, {"group_size": 0},
        {"symmetric": None, "dynamic": True}, {"actorder": "sideways"}, {"extra": 1}, {"block_structure": [128, 128]},
    )),
]  # fmt: skip


@pytest.mark.parametrize("config", BAD_CONFIGS, ids=str)
def test_configs_that_are_not_understood_are_refused(tmp_path: Path, config: Any) -> None:
    make_checkpoint(tmp_path, "sdar", n_layers=1)
    edit_config(tmp_path, quantization_config=config)
    with pytest.raises(InputFileError) as caught:
        open_checkpoint(tmp_path)
    assert caught.value.code == "E-CONFIG" and "config.json" in caught.value.message and caught.value.hint


@pytest.mark.parametrize("config", [GPTQ, AWQ, NF4, ct()], ids=lambda c: c["quant_method"])
def test_the_same_configs_are_understood_otherwise(tmp_path: Path, config: Any) -> None:
    make_checkpoint(tmp_path, "sdar", n_layers=1)
    edit_config(tmp_path, quantization_config=config)
    record = open_checkpoint(tmp_path).record  # no layer is packed, which the config allows
    assert record is not None and record.layers == [] and len(record.skipped) == 7


def test_two_descriptions_of_the_weights_are_refused(tmp_path: Path) -> None:
    make(tmp_path, "sdar", "gptq")
    (tmp_path / "dlm_edge.json").write_text(
        '{"schema": 2, "method": "rtn", "bits": 4, "group_size": 32, "seed": 0, "calibration": {}, "source": {},'
        ' "tool_version": "0", "layers": []}'
    )
    with pytest.raises(InputFileError, match="both"):
        open_checkpoint(tmp_path)


def test_a_pattern_of_the_config_is_never_run(tmp_path: Path) -> None:
    """`(a+)+$` would keep a regular expression busy for ages; here the tensors themselves say what is packed."""
    make(tmp_path, "sdar", "gptq")
    evil = {f"-:{'(m+)+' * 20}$": {}, "+:(m|m)*x": {"bits": 8}}
    config = WRITERS["gptq"].config([to_write("x.weight", random_weight((64, 64), 4, 32))], [])
    edit_config(tmp_path, quantization_config=config | {"dynamic": evil})
    assert open_checkpoint(tmp_path).dtype("layers.0.q.weight") == "int4"
