"""The native kernel and the ONNX function of PrefixBlockAttention against the NumPy definition."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator
from onnxruntime.capi.onnxruntime_pybind11_state import InvalidArgument

from dlm_edge import kernels
from dlm_edge.kernels.prefix_block_attention import function, reference

needs_library = pytest.mark.skipif(kernels.library_path() is None, reason="the native library is not built")

FULL = 2**40
SIMD = ["avx512", "avx2", "portable"]

# Inputs are standard normal; results are at most about 4. Scores and sums are float32. Largest errors measured over
# this table (without the last case) and 20 seeds: native 1.5e-6 in all three vector widths, function 1.7e-6; the
# bound leaves a factor of two and more. With a larger scale the scores, and their rounding, grow in proportion.
TOLERANCE = 4e-6
# A float16 model computes in float32 inside, so what remains is one rounding of the result: 9.8e-4 measured.
HALF_TOLERANCE = 2e-3
# Scores of up to 4e4: float32 rounds them by about 4e-3 and the softmax passes that on. 5.9e-3 measured.
LARGE_SCORE_TOLERANCE = 2e-2


@dataclass(frozen=True)
class Case:
    n_heads: int
    n_kv_heads: int
    q_len: int
    head_dim: int
    start: int
    cache_len: int
    capacity: int
    attn_block: int
    scale: float = 0.0

    @property
    def tolerance(self) -> float:
        return TOLERANCE * max(1.0, self.scale * self.head_dim**0.5)

    def __str__(self) -> str:
        block = "full" if self.attn_block == FULL else self.attn_block
        return (
            f"h{self.n_heads}x{self.n_kv_heads}-q{self.q_len}-d{self.head_dim}"
            f"-s{self.start}-c{self.cache_len}of{self.capacity}-L{block}"
        )


CASES = [
    # a block behind its prefix, the usual step
    Case(12, 2, 16, 128, 0, 0, 64, 16),
    Case(12, 2, 16, 128, 16, 16, 64, 16),
    Case(16, 8, 32, 128, 63, 63, 128, 32),
    Case(32, 8, 32, 128, 512, 500, 1024, 32),
    Case(4, 2, 64, 64, 500, 500, 600, 4),
    Case(16, 16, 64, 64, 64, 64, 128, 16),
    # awkward lengths, head sizes and groups
    Case(1, 1, 1, 16, 0, 0, 1, 1),
    Case(1, 1, 1, 128, 500, 500, 500, FULL),
    Case(3, 1, 3, 40, 15, 15, 18, 1),
    Case(5, 1, 17, 80, 1, 1, 20, 4),
    Case(14, 2, 33, 96, 63, 63, 100, 16),
    Case(8, 1, 100, 32, 15, 15, 128, 32),
    Case(6, 3, 100, 64, 37, 37, 137, 4),
    Case(2, 2, 16, 40, 5, 5, 21, 4),
    Case(8, 4, 33, 16, 500, 500, 533, 16),
    # prefill of a prompt over itself
    Case(4, 2, 100, 32, 0, 0, 100, 1),
    Case(12, 2, 256, 64, 0, 0, 256, 16),
    Case(2, 1, 300, 128, 0, 0, 300, FULL),
    # the window replaces a middle part of a full cache
    Case(4, 2, 16, 64, 32, 128, 128, FULL),
    Case(4, 2, 33, 80, 0, 500, 500, FULL),
    Case(16, 16, 64, 64, 436, 500, 500, FULL),
    Case(12, 2, 17, 128, 100, 110, 200, FULL),
    Case(6, 1, 16, 96, 30, 63, 80, 32),
    # positions that the cache does not reach; keys behind the window that a block still shows
    Case(4, 2, 3, 32, 63, 15, 64, 16),
    Case(4, 2, 3, 32, 1, 63, 64, 4),
    Case(2, 2, 1, 16, 2**41, 16, 16, 32),
    # long enough for split key ranges with merges
    Case(2, 2, 16, 64, 2048, 2048, 2064, 16),
    Case(12, 2, 3, 40, 700, 1500, 1500, FULL),
    Case(2, 1, 64, 32, 0, 1500, 1500, 32),
    Case(4, 2, 16, 64, 48, 48, 64, 16, scale=0.5),
]
SMALL = [case for case in CASES if case.n_heads * case.q_len * (case.cache_len + case.q_len) < 20_000]

all_cases = pytest.mark.parametrize("case", CASES, ids=str)


def make_inputs(case: Case, seed: int = 0, dtype: type = np.float32) -> dict[str, np.ndarray]:
    """Random inputs; what must not be read (the window's own cache slots, the unused capacity) is NaN."""
    rng = np.random.default_rng(seed)

    def normal(heads: int, length: int) -> np.ndarray:
        return rng.standard_normal((1, heads, length, case.head_dim)).astype(dtype)

    q = normal(case.n_heads, case.q_len)
    k, v = (normal(case.n_kv_heads, case.q_len) for _ in range(2))
    k_cache, v_cache = (normal(case.n_kv_heads, case.capacity) for _ in range(2))
    for cache in (k_cache, v_cache):
        cache[:, :, case.start : case.start + case.q_len] = np.nan
        cache[:, :, case.cache_len :] = np.nan
    integers = {name: np.array([getattr(case, name)], np.int64) for name in ("start", "cache_len", "attn_block")}
    return dict(q=q, k=k, v=v, k_cache=k_cache, v_cache=v_cache, **integers)


def expected_of(case: Case, inputs: dict[str, np.ndarray]) -> np.ndarray:
    tensors = (inputs[name] for name in ("q", "k", "v", "k_cache", "v_cache"))
    return reference.prefix_block_attention(*tensors, case.start, case.cache_len, case.attn_block, scale=case.scale)


def build_model(element_type: int = TensorProto.FLOAT, scale: float = 0.0) -> onnx.ModelProto:
    """One node, every dimension dynamic: the same model serves all cases."""
    shapes = {
        "q": ["n_heads", "q_len", "head_dim"],
        "k": ["n_kv_heads", "q_len", "head_dim"],
        "v": ["n_kv_heads", "q_len", "head_dim"],
        "k_cache": ["n_kv_heads", "capacity", "head_dim"],
        "v_cache": ["n_kv_heads", "capacity", "head_dim"],
    }
    inputs = [helper.make_tensor_value_info(n, element_type, [1, *shape]) for n, shape in shapes.items()]
    inputs += [helper.make_tensor_value_info(n, TensorProto.INT64, [1]) for n in function.INPUTS[5:]]
    output = helper.make_tensor_value_info("out", element_type, [1, "q_len", "width"])
    graph = helper.make_graph([function.node(function.INPUTS, "out", scale=scale)], "attention", inputs, [output])
    opsets = [helper.make_opsetid("", 24), helper.make_opsetid(kernels.DOMAIN, kernels.OPERATOR_VERSION)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=11, functions=[function.function_proto()])


def session(*, native: bool, threads: int = 2, profile: str = "", model: onnx.ModelProto | None = None):
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = threads
    if profile:
        options.enable_profiling, options.profile_file_prefix = True, profile
    if native:
        assert kernels.register(options)
    model = model or build_model()
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


@pytest.fixture(scope="module")
def native_sessions():
    """By scale and number of threads."""
    return {
        (scale, threads): session(native=True, threads=threads, model=build_model(scale=scale))
        for scale in (0.0, 0.5)
        for threads in (1, 2)
    }


@pytest.fixture(scope="module")
def function_sessions():
    return {scale: session(native=False, model=build_model(scale=scale)) for scale in (0.0, 0.5)}


@pytest.fixture
def force_simd():
    yield lambda name: kernels.set_simd(name) or pytest.skip(f"this processor has no {name}")
    kernels.set_simd(None)


@needs_library
@pytest.mark.parametrize("simd", SIMD)
@all_cases
def test_native_matches_reference(case, simd, native_sessions, force_simd):
    force_simd(simd)
    inputs = make_inputs(case)
    (actual,) = native_sessions[case.scale, 2].run(None, inputs)
    np.testing.assert_allclose(actual, expected_of(case, inputs), rtol=0, atol=case.tolerance)


@all_cases
def test_function_matches_reference(case, function_sessions):
    inputs = make_inputs(case)
    (actual,) = function_sessions[case.scale].run(None, inputs)
    np.testing.assert_allclose(actual, expected_of(case, inputs), rtol=0, atol=case.tolerance)


@pytest.mark.parametrize("case", SMALL, ids=str)
def test_function_matches_reference_in_the_onnx_evaluator(case):
    inputs = make_inputs(case)
    (actual,) = ReferenceEvaluator(build_model(scale=case.scale)).run(None, inputs)
    np.testing.assert_allclose(actual, expected_of(case, inputs), rtol=0, atol=case.tolerance)


@pytest.mark.parametrize("case", [case for case in SMALL if case.head_dim == 128], ids=str)
def test_function_runs_in_a_half_precision_model(case):
    inputs = make_inputs(case, dtype=np.float16)
    model = build_model(TensorProto.FLOAT16, scale=case.scale)
    (actual,) = session(native=False, model=model).run(None, inputs)
    assert actual.dtype == np.float16
    np.testing.assert_allclose(actual, expected_of(case, inputs), rtol=0, atol=HALF_TOLERANCE)


@needs_library
@pytest.mark.parametrize("simd", SIMD)
@all_cases
def test_number_of_threads_changes_no_bit(case, simd, native_sessions, force_simd):
    force_simd(simd)
    inputs = make_inputs(case)
    one, two = (native_sessions[case.scale, threads].run(None, inputs)[0] for threads in (1, 2))
    np.testing.assert_array_equal(one, two)


@needs_library
@all_cases
def test_native_writes_every_element(case, native_sessions):
    inputs = make_inputs(case)
    out = np.full((1, case.q_len, case.n_heads * case.head_dim), np.nan, np.float32)
    tested = native_sessions[case.scale, 2]
    binding = tested.io_binding()
    for name, array in inputs.items():
        binding.bind_cpu_input(name, array)
    value = ort.OrtValue.ortvalue_from_numpy(out)
    binding.bind_ortvalue_output("out", value)
    tested.run_with_iobinding(binding)
    np.testing.assert_allclose(value.numpy(), expected_of(case, inputs), rtol=0, atol=case.tolerance)


def test_unread_memory_has_no_influence(native_sessions, function_sessions):
    """make_inputs poisons with NaN already; here the result must be the same bits whatever lies there."""
    case = Case(12, 2, 17, 128, 100, 110, 200, FULL)
    inputs = make_inputs(case)
    sessions = [function_sessions[0.0]]
    if kernels.library_path() is not None:
        sessions.append(native_sessions[0.0, 2])
    for tested in sessions:
        results = []
        for poison in (np.nan, np.inf, 1e30, 0.0):
            for name in ("k_cache", "v_cache"):
                inputs[name][:, :, case.start : case.start + case.q_len] = poison
                inputs[name][:, :, case.cache_len :] = poison
            results.append(tested.run(None, inputs)[0])
        for result in results[1:]:
            np.testing.assert_array_equal(result, results[0])


@needs_library
@pytest.mark.parametrize("simd", SIMD)
def test_a_nan_that_is_read_is_not_hidden(simd, native_sessions, force_simd):
    force_simd(simd)
    case = Case(2, 2, 16, 64, 64, 64, 80, 16)
    for name in ("q", "k", "v", "k_cache"):
        inputs = make_inputs(case)
        inputs[name][0, 1, 3] = np.nan
        out = native_sessions[0.0, 2].run(None, inputs)[0].reshape(16, 2, 64)
        assert np.isnan(out[3, 1]).all(), name
        assert np.isfinite(out[:, 0]).all(), name


@needs_library
@pytest.mark.parametrize("simd", SIMD)
def test_large_scores_do_not_overflow(simd, native_sessions, force_simd):
    force_simd(simd)
    case = Case(4, 2, 16, 64, 500, 500, 516, 16)
    inputs = make_inputs(case)
    inputs["q"] *= 1e4
    (actual,) = native_sessions[0.0, 2].run(None, inputs)
    np.testing.assert_allclose(actual, expected_of(case, inputs), rtol=0, atol=LARGE_SCORE_TOLERANCE)


@needs_library
def test_profile_shows_the_native_node_and_standard_operators_without_it(tmp_path):
    inputs = make_inputs(CASES[1])
    executed = {}
    for native in (True, False):
        tested = session(native=native, profile=str(tmp_path / f"native_{native}"))
        tested.run(None, inputs)
        with open(tested.end_profiling(), encoding="utf-8") as file:
            events = json.load(file)
        executed[native] = [event["args"]["op_name"] for event in events if "op_name" in event.get("args", {})]
    assert executed[True] == [function.OPERATOR]
    assert function.OPERATOR not in executed[False]
    assert "Softmax" in executed[False]


@needs_library
def test_one_session_may_run_from_many_python_threads(native_sessions):
    cases = [case for case in CASES if case.scale == 0.0 and case.q_len <= 33]
    all_inputs = [make_inputs(case) for case in cases]
    tested = native_sessions[0.0, 2]
    alone = [tested.run(None, inputs)[0] for inputs in all_inputs]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda inputs: tested.run(None, inputs)[0], all_inputs * 3))
    for i, result in enumerate(together):
        np.testing.assert_array_equal(result, alone[i % len(alone)])


BAD_INPUTS = [  # what to change, what the message must say
    pytest.param({"start": -1}, "start is -1", id="negative-start"),
    pytest.param({"start": 2**63 - 1}, "start is 9223372036854775807", id="overflowing-start"),
    pytest.param({"cache_len": -1}, "cache_len is -1", id="negative-cache-len"),
    pytest.param({"cache_len": 65}, "cache_len is 65, expected 0 to the capacity of the cache, 64", id="cache-len"),
    pytest.param({"attn_block": 0}, "attn_block is 0", id="block-of-0"),
    pytest.param({"attn_block": np.ones(2, np.int64)}, r"attn_block has shape \[2\], expected \[1\]", id="two-blocks"),
    pytest.param({"k": (1, 5, 16, 32)}, "q has 4 heads and k has 5", id="head-ratio"),
    pytest.param({"k": (1, 2, 15, 32)}, r"k has shape \[1, 2, 15, 32\], expected", id="k-length"),
    pytest.param({"v": (1, 2, 16, 31)}, r"v has shape \[1, 2, 16, 31\], expected", id="v-head-dim"),
    pytest.param({"v": (1, 1, 16, 32)}, r"v has shape \[1, 1, 16, 32\], expected", id="v-heads"),
    pytest.param({"k_cache": (1, 2, 64, 16)}, r"k_cache has shape \[1, 2, 64, 16\]", id="cache-head-dim"),
    pytest.param({"v_cache": (1, 2, 63, 32)}, r"v_cache has shape \[1, 2, 63, 32\]", id="v-capacity"),
    pytest.param({"q": (2, 4, 16, 32)}, r"k has shape \[1, 2, 16, 32\], expected \[copies", id="queries-of-2"),
    pytest.param({"q": (0, 4, 16, 32)}, r"q has shape \[0, 4, 16, 32\]", id="no-copies"),
    pytest.param({"q": (1, 4, 0, 32)}, r"q has shape \[1, 4, 0, 32\]", id="no-queries"),
    pytest.param({"k": (1, 0, 16, 32)}, "k has 0", id="no-kv-heads"),
    pytest.param({"q": (4, 16, 32)}, r"q must be a float tensor of rank 4.*\[4, 16, 32\]", id="rank-3"),
    pytest.param({"start": np.zeros((), np.int64)}, "start must be a int64 tensor of rank 1", id="scalar-start"),
]


@needs_library
@pytest.mark.parametrize(("change", "message"), BAD_INPUTS)
def test_bad_inputs_are_refused_by_name(change, message):
    inputs = make_inputs(Case(4, 2, 16, 32, 16, 16, 64, 16))
    for name, value in change.items():
        if isinstance(value, tuple):
            value = np.zeros(value, np.float32)
        inputs[name] = np.array([value], np.int64) if isinstance(value, int) else value
    model = build_model()
    for value_info in [*model.graph.input, *model.graph.output]:
        value_info.type.tensor_type.ClearField("shape")  # so that the kernel sees it, not the session
    tested = session(native=True, threads=1, model=model)
    with pytest.raises(InvalidArgument, match=f"PrefixBlockAttention: .*{message}"):
        tested.run(None, inputs)


def test_function_passes_the_checker():
    model = build_model()
    onnx.checker.check_model(model, full_check=True)
    assert [f.overload for f in model.functions] == [function.OVERLOAD]
    assert {node.domain for node in model.functions[0].node} == {""}
