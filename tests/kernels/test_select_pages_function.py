"""The ONNX function of SelectPages against the NumPy definition, in ONNX Runtime without the native library."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from dlm_edge import kernels
from dlm_edge.kernels.select_pages import function, reference
from dlm_edge.kernels.select_pages.reference import DENSE, DENSE_KEEP, REUSE_PAGES, REUSE_ROWS, SELECT, Policy
from tests.kernels.writing_in_place import late_readers

FLOAT, INT8, INT64, UINT8 = TensorProto.FLOAT, TensorProto.INT8, TensorProto.INT64, TensorProto.UINT8
SHAPES = {
    "q": (FLOAT, 4), "low": (INT8, 4), "high": (INT8, 4), "page_scale": (FLOAT, 3), "q_last": (FLOAT, 4),
    "q_stored": (FLOAT, 4), "masses": (FLOAT, 3), "start": (INT64, 1), "cache_len": (INT64, 1), "policy": (INT64, 1),
    "drift": (FLOAT, 1), "active": (UINT8, 2), "pages": (UINT8, 2), "new_q_last": (FLOAT, 4),
    "new_q_stored": (FLOAT, 4), "stats": (FLOAT, 1),
}  # fmt: skip
BOUND = {"q_last": "new_q_last", "q_stored": "new_q_stored"}


@dataclass(frozen=True)
class Case:
    n_heads: int
    n_kv_heads: int
    q_len: int
    head_dim: int
    n_rows: int  # of the state
    n_slots: int
    start: int
    cache_len: int
    policy: Policy
    drift: float = np.inf

    def __str__(self) -> str:
        return (
            f"h{self.n_heads}x{self.n_kv_heads}-q{self.q_len}of{self.n_rows}-d{self.head_dim}-p{self.n_slots}"
            f"-s{self.start}-c{self.cache_len}-{'-'.join(str(v) for v in policy_values(self.policy))}-{self.drift}"
        )


def policy_values(policy: Policy) -> list[int]:
    return [getattr(policy, field) for field in function.POLICY]


QUEST = Policy(mode=SELECT, n_pages=4, n_active=2**40)
LOSA = Policy(mode=SELECT, n_pages=4, n_active=5)
MODES = [Policy(mode=mode, n_pages=3, n_active=4) for mode in (DENSE, SELECT, REUSE_ROWS, REUSE_PAGES, DENSE_KEEP)]

CASES = [
    *[Case(8, 2, 16, 64, 16, 20, 304, 300, policy) for policy in MODES],
    # ratios of heads 1, 2, 7, 8 and head sizes
    Case(2, 2, 16, 64, 16, 20, 304, 304, LOSA),
    Case(4, 2, 8, 80, 8, 20, 300, 300, LOSA),
    Case(14, 2, 16, 128, 16, 33, 520, 520, LOSA),
    Case(8, 1, 16, 256, 16, 20, 304, 304, QUEST),
    Case(3, 1, 5, 40, 5, 7, 33, 33, replace(LOSA, n_active=1, n_pages=1)),
    # the switches
    *[
        Case(8, 2, 16, 64, 16, 20, 304, 304, replace(LOSA, **{switch: 1}), drift)
        for switch in ("per_head", "since_stored", "one_list")
        for drift in (np.inf, 4.0, 0.0)  # most rows moved by about 4 times their own square
    ],
    Case(8, 2, 16, 64, 16, 20, 304, 304, replace(LOSA, n_active=0)),
    Case(8, 2, 16, 64, 16, 20, 304, 304, replace(LOSA, n_active=0), 4.0),
    Case(8, 2, 16, 64, 16, 20, 304, 304, replace(LOSA, n_pages=0)),
    Case(8, 2, 16, 64, 16, 20, 304, 304, replace(LOSA, n_pages=0, sink=0, recent=0)),
    Case(8, 2, 16, 64, 16, 20, 304, 304, replace(LOSA, sink=3, recent=5)),  # more forced pages than n_pages
    Case(8, 2, 16, 64, 16, 20, 304, 304, replace(LOSA, sink=99, recent=99)),
    Case(8, 2, 16, 64, 16, 20, 304, 304, replace(LOSA, n_pages=1000)),
    # empty prefix, one slot, edges of pages
    *[Case(8, 2, 16, 64, 16, 1, 0, 0, policy) for policy in MODES],
    Case(8, 2, 16, 64, 16, 20, 0, 0, LOSA),
    Case(8, 2, 16, 64, 16, 20, 16, 16, LOSA),
    Case(8, 2, 16, 64, 16, 20, 17, 17, LOSA),
    Case(8, 2, 16, 64, 16, 20, 320, 320, LOSA),
    Case(8, 2, 16, 64, 16, 20, 300, 299, replace(LOSA, page_size=15)),
    # full attention: the cache goes on behind the window
    Case(8, 2, 16, 64, 16, 20, 100, 320, LOSA),
    Case(8, 2, 16, 64, 16, 20, 0, 320, replace(LOSA, recent=2)),
    # windows longer and shorter than the state
    *[Case(4, 2, 40, 64, 16, 20, 304, 304, policy) for policy in MODES],
    *[Case(4, 2, 9, 64, 32, 20, 304, 304, policy) for policy in MODES],
    Case(4, 2, 1, 64, 1, 20, 304, 304, LOSA),
    Case(4, 2, 16, 64, 0, 20, 304, 304, LOSA),
]


def make_inputs(case: Case, seed: int = 0) -> dict[str, np.ndarray]:
    """Whole numbers, whose sums float32 holds exactly, so that no order of summation decides, and many are equal.

    What no key or row has written is NaN.
    """
    rng = np.random.default_rng(seed)
    queries = (1, case.n_heads, case.q_len, case.head_dim)
    state = (1, case.n_heads, case.n_rows, case.head_dim)
    slots = (1, case.n_kv_heads, case.n_slots)
    ends = rng.integers(-3, 4, (2, *slots, case.head_dim)).astype(np.int8)
    inputs = {
        "q": rng.integers(-2, 3, queries).astype(np.float32),
        "low": ends.min(0),
        "high": ends.max(0),
        "page_scale": rng.choice([0.25, 0.5, 1.0], slots).astype(np.float32),
        "q_last": rng.integers(-1, 2, state).astype(np.float32),
        "q_stored": rng.integers(-1, 2, state).astype(np.float32),
        "masses": rng.choice([0.0, 0.25, 0.5], slots).astype(np.float32),
        "start": np.array([case.start], np.int64),
        "cache_len": np.array([case.cache_len], np.int64),
        "policy": np.array(policy_values(case.policy), np.int64),
        "drift": np.array([case.drift], np.float32),
    }
    n_valid = -(-case.cache_len // case.policy.page_size)
    for name in ("page_scale", "masses"):
        inputs[name][:, :, n_valid:] = np.nan
    for name in ("q_last", "q_stored"):
        inputs[name][:, :, case.q_len :] = np.nan
    return inputs


def expected_of(case: Case, inputs: dict[str, np.ndarray]) -> reference.Selection:
    tensors = (inputs[name] for name in function.INPUTS[:7])
    return reference.select_pages(*tensors, case.start, case.cache_len, case.policy, case.drift)


def build_model(**types: int) -> onnx.ModelProto:
    """One node, every dimension dynamic: the same model serves all cases. `types` replace those of SHAPES."""

    def info(name: str) -> onnx.ValueInfoProto:
        element_type, rank = types.get(name, SHAPES[name][0]), SHAPES[name][1]
        return helper.make_tensor_value_info(name, element_type, [None] * rank)

    nodes = [function.node(function.INPUTS, function.OUTPUTS)]
    inputs, outputs = ([info(name) for name in names] for names in (function.INPUTS, function.OUTPUTS))
    opsets = [helper.make_opsetid("", 24), helper.make_opsetid(kernels.DOMAIN, kernels.OPERATOR_VERSION)]
    graph = helper.make_graph(nodes, "selection", inputs, outputs)
    return helper.make_model(graph, opset_imports=opsets, ir_version=11, functions=[function.function_proto()])


@pytest.fixture(scope="module")
def session() -> ort.InferenceSession:
    return open_session(build_model())


def open_session(model: onnx.ModelProto) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def assert_equal(actual: list[np.ndarray], expected: reference.Selection) -> None:
    for name, got, wanted in zip(function.OUTPUTS, actual, expected, strict=True):
        assert got.dtype == wanted.dtype, name
        np.testing.assert_array_equal(got, wanted, err_msg=name)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_matches_reference_bit_by_bit(case, session):
    for seed in range(4):
        inputs = make_inputs(case, seed)
        assert_equal(session.run(None, inputs), expected_of(case, inputs))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_state_may_be_written_in_place(case, session):
    """Each state output is bound to the memory of its input."""
    inputs = make_inputs(case)
    expected = expected_of(case, inputs)
    binding = session.io_binding()
    values = {name: ort.OrtValue.ortvalue_from_numpy(array.copy()) for name, array in inputs.items()}
    for name, value in values.items():
        binding.bind_ortvalue_input(name, value)
    for name in function.OUTPUTS:
        binding.bind_output(name)
    for name, output in BOUND.items():
        binding.bind_ortvalue_output(output, values[name])
    session.run_with_iobinding(binding)
    assert_equal(binding.copy_outputs_to_cpu(), expected)
    for name, output in BOUND.items():
        np.testing.assert_array_equal(values[name].numpy(), getattr(expected, name), err_msg=output)


@pytest.mark.parametrize("name", BOUND)
def test_state_is_read_before_it_is_written(name):
    assert late_readers(function.function_proto(), name, BOUND[name]) == []


def test_all_pages_and_all_rows_are_the_dense_mode(session):
    case = Case(8, 2, 16, 64, 16, 20, 304, 304, replace(QUEST, n_pages=20))
    chosen = session.run(None, make_inputs(case))
    dense = session.run(None, make_inputs(replace(case, policy=Policy(mode=DENSE))))
    for name, got, wanted in zip(function.OUTPUTS[:4], chosen, dense, strict=False):
        np.testing.assert_array_equal(got, wanted, err_msg=name)
    assert chosen[4].tolist() == [32, 38, 38, 1] and dense[4].tolist() == [32, 38, 38, 0]


def test_no_movement_activates_the_first_rows(session):
    case = Case(4, 2, 16, 64, 16, 20, 304, 304, LOSA)
    inputs = make_inputs(case)
    inputs["q_last"], inputs["q_stored"] = inputs["q"].copy(), inputs["q"].copy()
    active = session.run(["active"], inputs)[0]
    np.testing.assert_array_equal(active, np.tile(np.arange(16) < 5, (2, 1)))


def test_runs_in_a_half_precision_model():
    """With the state in float32; whole numbers are exact in float16 too."""
    inputs = make_inputs(CASES[1])
    tested = open_session(build_model(q=TensorProto.FLOAT16))
    assert_equal(tested.run(None, inputs | {"q": inputs["q"].astype(np.float16)}), expected_of(CASES[1], inputs))


def test_real_numbers_choose_as_the_reference(session):
    """Sums differ in their last bits here; for these seeds no two scores are that close."""
    for seed in range(20):
        rng = np.random.default_rng(seed)
        inputs = make_inputs(CASES[1], seed)
        for name in ("q", "q_last", "q_stored"):
            inputs[name] = rng.standard_normal(inputs[name].shape).astype(np.float32)
        assert_equal(session.run(None, inputs), expected_of(CASES[1], inputs))


def test_passes_the_checker():
    model = build_model()
    onnx.checker.check_model(model, full_check=True)
    assert {node.domain for node in model.functions[0].node} == {""}
    assert {node.op_type for node in model.functions[0].node} >= {"TopK", "TensorScatter"}
