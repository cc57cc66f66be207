"""PatternAttention: the ONNX function and the native kernel against the NumPy definition, and its limits."""

from __future__ import annotations

from dataclasses import astuple, dataclass, replace

import numpy as np
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper
from onnxruntime.capi.onnxruntime_pybind11_state import InvalidArgument

from dlm_edge import kernels
from dlm_edge.kernels.pattern_attention import function
from dlm_edge.kernels.pattern_attention.reference import chosen_blocks, pattern_attention
from dlm_edge.kernels.prefix_block_attention.reference import prefix_block_attention
from dlm_edge.kernels.select_pages.reference import DENSE, DENSE_KEEP, REUSE_PAGES, REUSE_ROWS, Policy
from tests.kernels import native_operators as native
from tests.kernels.writing_in_place import late_readers

needs_library = pytest.mark.skipif(kernels.library_path() is None, reason="the native library is not built")
FLOAT, INT64, UINT8 = TensorProto.FLOAT, TensorProto.INT64, TensorProto.UINT8
TYPES = {"policy": INT64, "pattern": UINT8, "new_pattern": UINT8}
# Measured over these cases and three seeds: 6e-6 for the function body, 1e-5 for the kernels. Outputs are of size 1, scores reach 40.
ERROR = 2.4e-5


@dataclass(frozen=True)
class Case:
    n_heads: int
    n_kv_heads: int
    q_len: int
    head_dim: int
    n_slots: int
    policy: Policy

    def __str__(self) -> str:
        p = self.policy
        return f"h{self.n_heads}x{self.n_kv_heads}-q{self.q_len}-d{self.head_dim}-s{self.n_slots}-{astuple(p)}"


def policy(mode: int = DENSE_KEEP, prompt: int = 5, keep: tuple[int, int] = (2, 3), size: int = 16) -> Policy:
    return Policy(mode=mode, sink=prompt, n_pages=keep[0], n_active=keep[1], page_size=size)


MODES = [policy(mode) for mode in (DENSE, DENSE_KEEP, REUSE_PAGES)]
CASES = [
    *[Case(4, 4, 192, 64, 12, each) for each in MODES],
    *[Case(4, 2, 187, 64, 16, each) for each in MODES],  # a ragged last block, and slots without blocks
    *[Case(14, 2, 70, 128, 9, replace(each, page_size=8)) for each in MODES],
    *[Case(8, 1, 131, 80, 5, replace(each, page_size=32, sink=2)) for each in MODES],
    *[Case(2, 2, 300, 256, 3, replace(each, page_size=128, sink=1, n_pages=1, n_active=1)) for each in MODES],
    *[Case(3, 1, 20, 40, 1, replace(each, page_size=64, sink=0)) for each in MODES],  # one block
    *[Case(2, 1, 1, 16, 1, replace(each, page_size=8)) for each in MODES],  # one position
    Case(2, 1, 90, 16, 6, policy(keep=(0, 2))),  # regions that keep nothing, or are empty, or are everything
    Case(2, 1, 90, 16, 6, policy(keep=(2, 0))),
    Case(2, 1, 90, 16, 6, policy(prompt=0)),
    Case(2, 1, 90, 16, 6, policy(prompt=99, keep=(3, 1))),
    Case(2, 1, 90, 16, 6, policy(keep=(2**40, 2**40))),
]


def arrays(case: Case, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    shapes = {"q": case.n_heads, "k": case.n_kv_heads, "v": case.n_kv_heads}
    found = {n: rng.normal(size=(1, h, case.q_len, case.head_dim)).astype(np.float32) for n, h in shapes.items()}
    found["q"] *= 3  # weights far from equal
    pattern = (rng.random((case.n_heads, case.n_slots, case.n_slots)) < 0.4).astype(np.uint8)
    return found | {"policy": np.array(astuple(case.policy), np.int64), "pattern": pattern}


def expected(case: Case, given: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    inputs = [given[name].copy() for name in ("q", "k", "v")]
    return dict(zip(function.OUTPUTS, pattern_attention(*inputs, case.policy, given["pattern"]), strict=True))


def body_session(dtype: int = FLOAT) -> ort.InferenceSession:
    def value(name: str) -> object:
        shape = None if name in function.OUTPUTS else [None] * {"policy": 1, "pattern": 3}.get(name, 4)
        return helper.make_tensor_value_info(name, TYPES.get(name, FLOAT if name == "stats" else dtype), shape)

    node = helper.make_node(function.OPERATOR, function.INPUTS, function.OUTPUTS, domain=kernels.DOMAIN)
    graph = helper.make_graph(
        [node], "one_node", [value(n) for n in function.INPUTS], [value(n) for n in function.OUTPUTS]
    )
    opsets = [helper.make_opsetid("", 24), helper.make_opsetid(kernels.DOMAIN, kernels.OPERATOR_VERSION)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=11, functions=[function.function_proto()])
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


@pytest.fixture(scope="module")
def body() -> ort.InferenceSession:
    return body_session()


def check(found: dict[str, np.ndarray], wanted: dict[str, np.ndarray], error: float = ERROR) -> None:
    np.testing.assert_allclose(found["out"], wanted["out"], rtol=0, atol=error)
    np.testing.assert_array_equal(found["new_pattern"], wanted["new_pattern"])
    np.testing.assert_array_equal(found["stats"], wanted["stats"])


def run(session: ort.InferenceSession, given: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return dict(zip(function.OUTPUTS, session.run(list(function.OUTPUTS), given), strict=True))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_function_is_the_definition(body, case):
    given = arrays(case)
    check(run(body, given), expected(case, given))


def test_the_function_takes_half_precision():
    case = Case(4, 2, 90, 32, 6, policy())
    given = {n: a.astype(np.float16) if n in "qkv" else a for n, a in arrays(case).items()}
    found = run(body_session(TensorProto.FLOAT16), given)
    assert found["out"].dtype == np.float16
    check(found, expected(case, given), 2e-3)


def test_the_function_may_write_in_place():
    assert late_readers(function.function_proto(), "pattern", "new_pattern") == []


@pytest.mark.parametrize("case", CASES[:9], ids=str)
def test_everything_kept_is_dense_attention(case):
    """The two definitions agree, whatever the pattern says in a dense mode."""
    given = arrays(case)
    cache = np.zeros((1, case.n_kv_heads, 0, case.head_dim), np.float32)
    dense = prefix_block_attention(given["q"], given["k"], given["v"], cache, cache, 0, 0, 2**40)
    everything = np.ones_like(given["pattern"])
    for mode in (DENSE, DENSE_KEEP, REUSE_PAGES):
        found = pattern_attention(given["q"], given["k"], given["v"], replace(case.policy, mode=mode), everything)
        np.testing.assert_allclose(found.out, dense, atol=1e-6)
        assert found.stats[1] == found.stats[2]


def test_blocks_are_chosen_separately_among_prompt_and_generation():
    weights = np.zeros((1, 12, 12))
    weights[:, :, 0:2], weights[:, :, 4:6], weights[:, :, 8:10] = 0.2, 0.1, 0.05  # blocks of two: 0, 2 and 4
    kept = chosen_blocks(weights, Policy(sink=3, n_pages=1, n_active=1, page_size=2))
    assert kept[0].tolist() == [[True, False, False, False, True, False]] * 6
    kept = chosen_blocks(weights, Policy(sink=3, n_pages=2, n_active=3, page_size=2))
    assert kept[0].tolist() == [[True, False, True, True, True, True]] * 6


def test_a_short_last_block_counts_by_its_mean():
    weights = np.full((1, 5, 5), 0.1)
    weights[:, :, 4] = 0.15  # less than the two keys of another block together
    kept = chosen_blocks(weights, Policy(sink=0, n_active=1, page_size=2))
    assert kept[0].tolist() == [[False, False, True]] * 3


def test_rows_that_keep_nothing_are_zero():
    case = Case(2, 1, 40, 16, 5, policy(REUSE_PAGES, size=8))
    given = arrays(case) | {"pattern": np.zeros((2, 5, 5), np.uint8)}
    assert not expected(case, given)["out"].any()
    for session in (body_session(), *([native_session(given)] if kernels.library_path() else [])):
        check(run(session, given), expected(case, given))


def native_session(given: dict[str, np.ndarray], threads: int = 2) -> ort.InferenceSession:
    return native.session(function.OPERATOR, given, function.OUTPUTS, threads=threads)


@pytest.fixture(params=native.SIMD)
def simd(request):
    if not kernels.set_simd(request.param):
        pytest.skip(f"{request.param} is not available here")
    yield request.param
    kernels.set_simd(None)


@needs_library
@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_kernel_is_the_definition(simd, case):
    given = arrays(case)
    check(run(native_session(given), given), expected(case, given))


@needs_library
@pytest.mark.parametrize("mode", [DENSE, DENSE_KEEP, REUSE_PAGES])
def test_the_kernel_may_write_in_place(mode):
    case = Case(4, 2, 187, 64, 16, policy(mode))
    given = arrays(case)
    wanted = expected(case, given)
    fresh = {"out": np.full_like(wanted["out"], np.nan), "stats": np.full(4, np.nan, np.float32)}
    check(native.run_bound(native_session(given), given, {"new_pattern": "pattern"}, fresh), wanted)


@needs_library
def test_threads_do_not_change_a_bit():
    case = Case(4, 2, 187, 64, 16, policy(DENSE_KEEP))
    given = arrays(case)
    one, four = (run(native_session(given, threads), given) for threads in (1, 4))
    assert all((one[name] == four[name]).all() for name in function.OUTPUTS)


REFUSED = {
    "mode 2": (
        {"policy": np.array(astuple(policy(REUSE_ROWS)), np.int64)},
        "expected 0 .dense., 3 .reuse. or 4 .keep.",
    ),
    "a short pattern": ({"pattern": np.zeros((4, 3, 3), np.uint8)}, "3 slots, expected at least 4"),
    "a flat pattern": ({"pattern": np.zeros((4, 8, 4), np.uint8)}, "pattern has shape"),
    "heads": ({"pattern": np.zeros((2, 4, 4), np.uint8)}, "pattern has shape"),
    "other keys": ({"k": np.zeros((1, 2, 60, 16), np.float32)}, "k has shape"),
    "odd heads": ({"k": np.zeros((1, 3, 64, 16), np.float32)}, "4 heads"),
    "half a policy": ({"policy": np.zeros(4, np.int64)}, "policy has shape"),
}


@needs_library
@pytest.mark.parametrize("what", REFUSED)
def test_the_kernel_refuses(what):
    changes, message = REFUSED[what]
    given = arrays(Case(4, 2, 64, 16, 4, policy())) | changes
    with pytest.raises(InvalidArgument, match=message):
        run(native_session(given), given)
