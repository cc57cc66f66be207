"""The ONNX functions of PrefixBlockAttention's overloads "sparse", "sparse_fp16", "int8", "int4" and "int4x2" against the
NumPy definition, in ONNX Runtime without the native library."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from dlm_edge import kernels
from dlm_edge.kernels.prefix_block_attention import reference, sparse_function
from dlm_edge.kernels.quantized_pages.planes import BOTH, UPPER, Planes, dequantize_planes, split_codes
from dlm_edge.kernels.quantized_pages.reference import Quantized, dequantize_cache, quantize_keys, quantize_values
from dlm_edge.kernels.select_pages.reference import DENSE_KEEP, SELECT
from tests.kernels.writing_in_place import late_readers

# Inputs are standard normal; results are at most about 4, log-sum-exps about 8. Scores and sums are float32. Largest
# error measured over this table, all overloads and 20 seeds: 2.4e-6, most of it at head size 256.
TOLERANCE = 4e-6
# Results below 4 in float16 lie 2e-3 apart; two roundings of nearly the same number differ by one step at most.
HALF_TOLERANCE = 2e-3
FULL = 2**40
BY_TOKEN = ("k_cache", "v_cache", "k_lower", "v_lower", "v_scale", "v_low")  # of the cache's inputs
BOUND = {"prefix_out": "new_prefix_out", "prefix_lse": "new_prefix_lse", "masses": "new_masses"}
BITS = {"int8": 8, "int4": 4}
PLANES = {"int4x2": BOTH, "int4x2-upper": UPPER}
# Overloads, and "int4x2" once for each number of planes
FORMS = [*(name for name in sparse_function.OVERLOADS if name not in PLANES), *PLANES]
OVERLOADS = list(sparse_function.OVERLOADS)


@dataclass(frozen=True)
class Case:
    n_heads: int
    n_kv_heads: int
    q_len: int
    head_dim: int
    n_rows: int  # of the state
    n_slots: int
    page_size: int
    start: int
    cache_len: int
    attn_block: int
    active: float = 0.5  # share of the rows
    pages: float = 0.5  # share of the slots
    measure: bool = False
    scale: float = 0.0
    group: int = 16  # tokens that share a key's scale

    def __str__(self) -> str:
        block = "full" if self.attn_block == FULL else self.attn_block
        return (
            f"h{self.n_heads}x{self.n_kv_heads}-q{self.q_len}of{self.n_rows}-d{self.head_dim}"
            f"-p{self.n_slots}x{self.page_size}-s{self.start}-c{self.cache_len}-L{block}"
            f"-a{self.active}-p{self.pages}{'-measure' if self.measure else ''}"
        )


CASES = [
    # all that the host's policies ask for: dense, measured, sparse, rows reused, all rows on few pages
    Case(8, 2, 16, 64, 16, 20, 16, 304, 304, 16, active=1.0, pages=1.0),
    Case(8, 2, 16, 64, 16, 20, 16, 304, 304, 16, active=1.0, pages=1.0, measure=True),
    Case(8, 2, 16, 64, 16, 20, 16, 304, 304, 16),
    Case(8, 2, 16, 64, 16, 20, 16, 304, 304, 16, measure=True),
    Case(8, 2, 16, 64, 16, 20, 16, 304, 304, 16, active=0.0, pages=0.0),
    Case(8, 2, 16, 64, 16, 20, 16, 304, 304, 16, active=0.0, pages=0.0, measure=True),
    Case(8, 2, 16, 64, 16, 20, 16, 304, 304, 16, active=1.0, pages=0.2),
    Case(8, 2, 16, 64, 16, 20, 16, 304, 304, 16, active=0.5, pages=0.0),
    # ratios of heads 1, 2, 7, 8, head sizes, another scale
    Case(2, 2, 16, 64, 16, 8, 16, 96, 96, 16, measure=True),
    Case(4, 2, 5, 80, 5, 8, 16, 96, 96, 32),
    Case(14, 2, 16, 128, 16, 8, 16, 100, 100, 16, measure=True),
    Case(8, 1, 16, 256, 16, 8, 16, 96, 96, 16),
    Case(3, 1, 1, 16, 1, 3, 16, 40, 40, 1, active=1.0),
    Case(4, 2, 16, 64, 16, 8, 16, 96, 96, 16, scale=0.05),
    # empty prefix, no cache at all, no state at all
    Case(4, 2, 16, 64, 16, 8, 16, 0, 0, 16, measure=True),
    Case(4, 2, 16, 64, 16, 1, 0, 0, 0, 16, active=1.0, measure=True),
    Case(4, 2, 16, 64, 16, 1, 0, 0, 0, 16, active=0.5, measure=True),
    Case(4, 2, 16, 64, 0, 8, 16, 96, 96, 16, active=1.0),
    # one page for all, as for keys gathered by the host; pages of a size that divides nothing; their edges
    Case(4, 2, 16, 64, 16, 1, 96, 96, 96, 16, active=1.0, pages=1.0),
    Case(4, 2, 16, 64, 16, 1, 112, 96, 90, 16, active=1.0, pages=1.0, measure=True),
    Case(4, 2, 16, 80, 16, 9, 7, 61, 61, 16, measure=True, group=9),
    Case(4, 2, 16, 64, 16, 8, 16, 97, 97, 16, measure=True),
    Case(4, 2, 16, 64, 16, 8, 16, 112, 111, 16, measure=True),
    Case(4, 2, 16, 64, 16, 8, 16, 128, 128, 16, measure=True),
    # full attention: the cache goes on behind the window, or the window covers its end or all of it
    Case(4, 2, 16, 64, 16, 8, 16, 37, 128, FULL, measure=True),
    Case(4, 2, 16, 64, 16, 8, 16, 0, 121, FULL, measure=True),
    Case(4, 2, 16, 64, 16, 8, 16, 110, 120, FULL, measure=True),
    Case(4, 2, 40, 64, 40, 2, 16, 0, 32, FULL, measure=True),
    Case(4, 2, 3, 64, 3, 8, 16, 1, 63, 128, measure=True),
    # prefill windows of many blocks; windows longer and shorter than the state; positions that the cache does not reach
    Case(4, 2, 100, 64, 16, 20, 16, 128, 128, 16, measure=True),
    Case(4, 2, 100, 64, 100, 20, 16, 0, 0, 16, active=1.0),
    Case(4, 2, 40, 64, 16, 20, 16, 130, 130, 1, active=1.0, pages=1.0, measure=True),
    Case(4, 2, 9, 64, 32, 8, 16, 96, 96, 16, measure=True),
    Case(4, 2, 9, 64, 32, 8, 16, 2**41, 96, 16),
]
LOSA = Case(8, 2, 16, 64, 16, 20, 16, 304, 304, 16, measure=True)
BEHIND = Case(4, 2, 16, 64, 16, 8, 16, 37, 121, FULL, measure=True)

all_cases = pytest.mark.parametrize("case", CASES, ids=str)
all_overloads = pytest.mark.parametrize("overload", OVERLOADS)
all_forms = pytest.mark.parametrize("form", FORMS)


def overload_of(form: str) -> str:
    return form.split("-")[0]


def make_inputs(case: Case, form: str = "sparse", seed: int = 0) -> dict[str, np.ndarray]:
    """Random inputs. What must not be read (the window's own cache slots, the unused capacity, the state of rows that
    are not in the window) is NaN, and 255 in codes."""
    rng = np.random.default_rng(seed)
    heads, groups, length, width = case.n_heads, case.n_kv_heads, case.q_len, case.head_dim

    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal((1, *shape)).astype(np.float32)

    def bits(share: float, *shape: int) -> np.ndarray:
        return (rng.random(shape) < share).astype(np.uint8)

    active = bits(case.active, groups, length)
    active[:, case.n_rows :] = 1
    inputs = {
        "q": normal(heads, length, width),
        "k": normal(groups, length, width),
        "v": normal(groups, length, width),
        "active": active,
        "pages": bits(case.pages, groups, case.n_slots),
        "policy": np.array([DENSE_KEEP if case.measure else SELECT, *[0] * 8], np.int64),
        "prefix_out": normal(heads, case.n_rows, width),
        "prefix_lse": 3 * normal(heads, case.n_rows),
        "masses": np.abs(normal(groups, case.n_slots)),
        **{name: np.array([getattr(case, name)], np.int64) for name in ("start", "cache_len", "attn_block")},
    }
    inputs["prefix_lse"][:, :, ::5] = -np.inf  # stored results over nothing
    inputs["prefix_out"][:, :, ::5] = 0
    for name in ("prefix_out", "prefix_lse"):
        inputs[name][:, :, length:] = np.nan
    cache = normal(2 * groups, case.n_slots * case.page_size, width)
    inputs |= dict(zip(("k_cache", "v_cache"), np.split(cache, 2, axis=1), strict=True))
    if form in BITS or form in PLANES:
        inputs |= quantized(case, inputs["k_cache"], inputs["v_cache"], BITS.get(form, 8))
    elif form == "sparse_fp16":
        inputs |= {name: inputs[name].astype(np.float16) for name in ("k_cache", "v_cache")}
    if form in PLANES:
        for kind in "kv":
            inputs[f"{kind}_cache"], inputs[f"{kind}_lower"] = split_codes(inputs[f"{kind}_cache"])
        inputs["planes"] = np.array([PLANES[form]])
    poison(case, inputs)
    return {name: inputs[name] for name in sparse_function.inputs_of(overload_of(form))}


def quantized(case: Case, keys: np.ndarray, values: np.ndarray, bits: int) -> dict[str, np.ndarray]:
    length = keys.shape[2]
    if not length:  # nothing to quantize: codes and scales of a group, of which none are kept
        keys, values = (np.zeros((*x.shape[:2], case.group, case.head_dim), np.float32) for x in (keys, values))
    k = Quantized(*(part[:, :, :length] for part in quantize_keys(keys, bits, case.group)))
    v = Quantized(*(part[:, :, :length] for part in quantize_values(values, bits, case.head_dim // 2)))
    n_coded = case.cache_len // case.group * case.group
    tail = np.full((1, case.n_kv_heads, case.group, case.head_dim), np.nan, np.float32)
    tail[:, :, : case.cache_len - n_coded] = keys[:, :, n_coded : case.cache_len]
    return {
        "k_cache": k.codes, "v_cache": v.codes, "k_scale": k.scale, "k_low": k.low, "k_tail": tail,
        "v_scale": v.scale, "v_low": v.low,
    }  # fmt: skip


def poison(case: Case, inputs: dict[str, np.ndarray], value: float = np.nan, code: int = 255) -> None:
    window = slice(case.start, case.start + case.q_len)
    for name in BY_TOKEN:
        if name in inputs:
            wrong = code if inputs[name].dtype == np.uint8 else value
            inputs[name][:, :, window], inputs[name][:, :, case.cache_len :] = wrong, wrong
    for name in ("k_scale", "k_low"):
        if name in inputs:
            inputs[name][:, :, case.cache_len // case.group :] = value
    if "k_tail" in inputs:
        inputs["k_tail"][:, :, case.cache_len % case.group :] = value


def expected_of(case: Case, inputs: dict[str, np.ndarray], form: str) -> reference.SparseResult:
    keys, values = inputs["k_cache"], inputs["v_cache"]
    if form in BITS or form in PLANES:
        coded = [np.zeros((*keys.shape[:3], case.head_dim), np.float32) for _ in range(2)]
        for whole, part in zip(coded, dequantized(case, inputs, form), strict=True):
            whole[:, :, : case.cache_len] = part
        keys, values = coded
    return reference.sparse_prefix_block_attention(
        inputs["q"], inputs["k"], inputs["v"], keys, values, case.start, case.cache_len, case.attn_block,
        inputs["active"], inputs["pages"], case.measure,
        inputs["prefix_out"], inputs["prefix_lse"], inputs["masses"], scale=case.scale,
    )  # fmt: skip


def dequantized(case: Case, inputs: dict[str, np.ndarray], form: str) -> tuple[np.ndarray, np.ndarray]:
    if form in PLANES:
        parts = ("cache", "lower", "scale", "low")
        k_planes, v_planes = (Planes(*(inputs[f"{kind}_{part}"] for part in parts)) for kind in "kv")
        return dequantize_planes(k_planes, inputs["k_tail"], v_planes, case.cache_len, PLANES[form])
    k = Quantized(inputs["k_cache"], inputs["k_scale"], inputs["k_low"])
    v = Quantized(inputs["v_cache"], inputs["v_scale"], inputs["v_low"])
    return dequantize_cache(k, inputs["k_tail"], v, case.cache_len, BITS[form])


def build_model(overload: str, scale: float = 0.0, body: int = TensorProto.FLOAT) -> onnx.ModelProto:
    """One node, every dimension dynamic: the same model serves all cases. `body` is the type of q, k, v and out."""
    ranks = {"active": 2, "pages": 2, "start": 1, "cache_len": 1, "attn_block": 1, "policy": 1, "planes": 1, "out": 3}
    ranks |= dict.fromkeys(["prefix_lse", "new_prefix_lse", "masses", "new_masses"], 3)
    types = dict.fromkeys(["start", "cache_len", "attn_block", "policy", "planes"], TensorProto.INT64)
    types |= dict.fromkeys(["active", "pages"], TensorProto.UINT8) | dict.fromkeys(["q", "k", "v", "out"], body)
    if overload != "sparse":
        cached = TensorProto.FLOAT16 if overload == "sparse_fp16" else TensorProto.UINT8
        types |= dict.fromkeys(["k_cache", "v_cache", "k_lower", "v_lower"], cached)
        types |= dict.fromkeys(["k_scale", "k_low", "v_scale", "v_low"], TensorProto.FLOAT16)

    def info(name: str) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, types.get(name, TensorProto.FLOAT), [None] * ranks.get(name, 4))

    names = sparse_function.inputs_of(overload)
    nodes = [sparse_function.node(overload, names, sparse_function.OUTPUTS, scale=scale)]
    inputs, outputs = ([info(name) for name in group] for group in (names, sparse_function.OUTPUTS))
    opsets = [helper.make_opsetid("", 24), helper.make_opsetid(kernels.DOMAIN, kernels.OPERATOR_VERSION)]
    graph = helper.make_graph(nodes, "attention", inputs, outputs)
    functions = [sparse_function.function_proto(overload)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=11, functions=functions)


def open_session(model: onnx.ModelProto) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


@pytest.fixture(scope="module")
def sessions() -> dict[tuple[str, float], ort.InferenceSession]:
    """By overload and scale."""
    keys = [(overload, scale) for overload in OVERLOADS for scale in {case.scale for case in CASES}]
    return {key: open_session(build_model(*key)) for key in keys}


def assert_close(actual: list[np.ndarray], expected: reference.SparseResult) -> None:
    for name, got, wanted in zip(sparse_function.OUTPUTS, actual, expected, strict=True):
        assert got.dtype == np.float32 and got.shape == wanted.shape, name
        np.testing.assert_allclose(got, wanted, rtol=0, atol=TOLERANCE, err_msg=name)


@all_forms
@all_cases
def test_matches_reference(case, form, sessions):
    inputs = make_inputs(case, form)
    actual = sessions[overload_of(form), case.scale].run(None, inputs)
    assert_close(actual, expected_of(case, inputs, form))


@all_cases
def test_both_planes_are_codes_of_eight_bits(case, sessions):
    actual = sessions["int4x2", case.scale].run(None, make_inputs(case, "int4x2"))
    expected = sessions["int8", case.scale].run(None, make_inputs(case, "int8"))
    for name, got, wanted in zip(sparse_function.OUTPUTS, actual, expected, strict=True):
        np.testing.assert_array_equal(got, wanted, err_msg=name)


@all_cases
def test_the_upper_plane_alone_does_not_depend_on_the_lower_one(case, sessions):
    inputs = make_inputs(case, "int4x2-upper")
    expected = sessions["int4x2", case.scale].run(None, inputs)
    inputs |= {name: np.full_like(inputs[name], 0x93) for name in ("k_lower", "v_lower")}
    for got, wanted in zip(sessions["int4x2", case.scale].run(None, inputs), expected, strict=True):
        np.testing.assert_array_equal(got, wanted)


@all_cases
def test_state_may_be_written_in_place(case, sessions):
    """Each state output is bound to the memory of its input; rows that are not active keep the same bits."""
    inputs = make_inputs(case)
    session = sessions["sparse", case.scale]
    expected = session.run(None, inputs)
    binding = session.io_binding()
    values = {name: ort.OrtValue.ortvalue_from_numpy(array.copy()) for name, array in inputs.items()}
    for name, value in values.items():
        binding.bind_ortvalue_input(name, value)
    binding.bind_output("out")
    for name, output in BOUND.items():
        binding.bind_ortvalue_output(output, values[name])
    session.run_with_iobinding(binding)
    for name, got, wanted in zip(sparse_function.OUTPUTS, binding.copy_outputs_to_cpu(), expected, strict=True):
        np.testing.assert_array_equal(got, wanted, err_msg=name)
    for (name, output), wanted in zip(BOUND.items(), expected[1:], strict=True):
        np.testing.assert_array_equal(values[name].numpy(), wanted, err_msg=output)
    idle = np.repeat(inputs["active"], case.n_heads // case.n_kv_heads, 0)[:, : case.n_rows] == 0
    kept = values["prefix_out"].numpy()[0, :, : case.q_len][idle]
    np.testing.assert_array_equal(kept, inputs["prefix_out"][0, :, : case.q_len][idle])


@all_overloads
@pytest.mark.parametrize("name", BOUND)
def test_state_is_read_before_it_is_written(name, overload):
    assert late_readers(sparse_function.function_proto(overload), name, BOUND[name]) == []


@all_forms
@pytest.mark.parametrize("case", [LOSA, BEHIND], ids=str)
def test_unread_memory_has_no_influence(case, form, sessions):
    """Beyond what `poison` covers: the pages that no kv head chose."""
    results = []
    inputs = make_inputs(case, form)
    unchosen = np.repeat(inputs["pages"], case.page_size, 1) == 0
    for value, code in ((np.nan, 255), (np.inf, 7), (0.0, 0)):
        poison(case, inputs, value, code)
        for name in BY_TOKEN:
            if name in inputs:
                inputs[name][0][unchosen] = code if inputs[name].dtype == np.uint8 else value
        results.append(sessions[overload_of(form), 0.0].run(None, inputs))
    for result in results[1:]:
        for name, got, wanted in zip(sparse_function.OUTPUTS, result, results[0], strict=True):
            np.testing.assert_array_equal(got, wanted, err_msg=name)


@pytest.mark.parametrize("case", [LOSA, BEHIND, CASES[-4]], ids=str)
def test_all_pages_and_all_rows_are_dense_attention(case, sessions):
    inputs = make_inputs(replace(case, active=1.0, pages=1.0))
    actual = sessions["sparse", 0.0].run(["out"], inputs)[0]
    tensors = (inputs[name] for name in ("q", "k", "v", "k_cache", "v_cache"))
    dense = reference.prefix_block_attention(*tensors, case.start, case.cache_len, case.attn_block)
    np.testing.assert_allclose(actual, dense, rtol=0, atol=TOLERANCE)


def test_the_same_queries_again_give_dense_attention_without_the_cache(sessions):
    """What was stored in a dense step is what idle rows add to their window, though nothing of the cache is left."""
    case = replace(LOSA, active=1.0, pages=1.0)
    inputs = make_inputs(case)
    out, prefix_out, prefix_lse, _ = sessions["sparse", 0.0].run(None, inputs)
    inputs |= {"prefix_out": prefix_out, "prefix_lse": prefix_lse}
    inputs |= {name: np.zeros_like(inputs[name]) for name in ("active", "pages")}
    inputs |= {name: np.full_like(inputs[name], np.nan) for name in ("k_cache", "v_cache")}
    again = sessions["sparse", 0.0].run(None, inputs)
    for got, wanted in zip(again[:3], (out, prefix_out, prefix_lse), strict=True):
        np.testing.assert_array_equal(got, wanted)


def test_masses_are_shares(sessions):
    case = replace(LOSA, active=1.0, pages=1.0, n_heads=2, q_len=1, n_rows=1)
    masses = sessions["sparse", 0.0].run(["new_masses"], make_inputs(case))[0]
    np.testing.assert_allclose(masses.sum(-1), 1.0, rtol=0, atol=1e-6)
    assert not masses[:, :, 19:].any()


def test_runs_in_a_half_precision_model():
    """The state stays float32; out is rounded to float16 once."""
    inputs = make_inputs(LOSA, "sparse_fp16")
    inputs |= {name: inputs[name].astype(np.float16) for name in ("q", "k", "v")}
    actual = open_session(build_model("sparse_fp16", body=TensorProto.FLOAT16)).run(None, inputs)
    expected = expected_of(LOSA, inputs, "sparse_fp16")
    assert actual[0].dtype == np.float16
    np.testing.assert_allclose(actual[0], expected.out, rtol=0, atol=HALF_TOLERANCE)
    for got, wanted in zip(actual[1:], expected[1:], strict=True):
        np.testing.assert_allclose(got, wanted, rtol=0, atol=TOLERANCE)


@all_overloads
def test_passes_the_checker(overload):
    model = build_model(overload)
    onnx.checker.check_model(model, full_check=True)
    assert [f.overload for f in model.functions] == [overload]
    assert {node.domain for node in model.functions[0].node} == {""}
