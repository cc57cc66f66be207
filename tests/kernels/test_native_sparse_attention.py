"""The native kernel of PrefixBlockAttention, active rows over selected pages, against the NumPy definition."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import pytest
from onnxruntime.capi.onnxruntime_pybind11_state import InvalidArgument

from dlm_edge import kernels
from dlm_edge.kernels.prefix_block_attention.reference import SparseResult, sparse_prefix_block_attention
from dlm_edge.kernels.quantized_pages.planes import BOTH, UPPER, Planes, dequantize_planes, split_codes
from dlm_edge.kernels.quantized_pages.reference import Quantized, dequantize_cache, quantize_keys, quantize_values
from dlm_edge.kernels.select_pages.reference import DENSE, DENSE_KEEP
from tests.kernels import native_operators as native

pytestmark = pytest.mark.skipif(kernels.library_path() is None, reason="the native library is not built")

FULL = 2**40
PLANES = {"int4x2": BOTH, "int4x2-upper": UPPER}  # forms of one overload
OVERLOADS = ["sparse", "sparse_fp16", "int8", "int4", *PLANES]
STATE = {"new_prefix_out": "prefix_out", "new_prefix_lse": "prefix_lse", "new_masses": "masses"}

# Inputs are standard normal, scores and sums float32. Largest errors measured over this table, all overloads and vector
# widths, and 8 seeds: 2.2e-6, 2.1e-6, 1.7e-6 and 1.1e-6; the bounds leave a factor of more than two. The definition reads
# the same dequantized numbers, so that the cache's own error is not in it.
TOLERANCE = {"out": 5e-6, "new_prefix_out": 5e-6, "new_prefix_lse": 4e-6, "new_masses": 3e-6}
# Codes in integers: a score is off by 2e-4 (standard deviation, csrc/fixed_attention.h), the largest of 1e5 by 9e-4; a
# row that one key dominates takes that over, times twice a value. Measured over 2 seeds: 4.5e-4.
INTEGER_TOLERANCE = dict.fromkeys(TOLERANCE, 1e-3)


@dataclass(frozen=True)
class Case:
    n_heads: int
    n_kv_heads: int
    q_len: int
    head_dim: int
    start: int
    cache_len: int
    n_slots: int
    page_size: int
    n_rows: int
    attn_block: int = FULL
    active: float = 0.4  # share of the rows
    pages: float = 0.4
    k_group: int = 32
    scale: float = 0.0

    @property
    def capacity(self) -> int:
        return self.n_slots * self.page_size

    def __str__(self) -> str:
        return (
            f"h{self.n_heads}x{self.n_kv_heads}-q{self.q_len}of{self.n_rows}-d{self.head_dim}-s{self.start}"
            f"-c{self.cache_len}-{self.n_slots}x{self.page_size}-a{self.active}-p{self.pages}-L{self.attn_block}"
        )


CASES = [
    # a block behind its prefix, the usual step; pages of 8 to 128
    Case(32, 8, 16, 128, 1000, 1000, 64, 16, 16, 16),
    Case(8, 1, 16, 64, 700, 700, 128, 8, 16, 16),
    Case(7, 1, 32, 80, 500, 500, 16, 32, 32, 32),
    Case(12, 2, 64, 96, 1024, 1024, 9, 128, 64, 64),
    Case(4, 4, 4, 256, 60, 60, 8, 16, 4, 4),
    # split key ranges with merges; one active row; every page
    Case(2, 1, 16, 64, 2048, 2048, 130, 16, 16, 16, active=0.1, pages=0.9),
    Case(6, 3, 16, 40, 3000, 3000, 192, 16, 16, active=1.0, pages=1.0),
    # no active row, no page, neither, no prefix, no cache
    Case(4, 2, 16, 64, 200, 200, 16, 16, 16, active=0.0),
    Case(4, 2, 16, 64, 200, 200, 16, 16, 16, pages=0.0),
    Case(4, 2, 16, 64, 200, 200, 16, 16, 16, active=0.0, pages=0.0),
    Case(4, 2, 16, 64, 0, 0, 16, 16, 16, 16),
    Case(4, 2, 16, 64, 0, 0, 1, 0, 16, 16),
    # single query, more state than rows, less state than rows (prefill), no state
    Case(5, 5, 1, 16, 33, 33, 4, 16, 16),
    Case(3, 1, 7, 72, 100, 97, 8, 16, 20, 4),
    Case(4, 2, 100, 64, 64, 64, 12, 16, 16, 4),
    Case(4, 2, 20, 64, 64, 64, 12, 16, 0, 4),
    # the window within the cache and across its end; keys behind it
    Case(6, 2, 16, 64, 40, 256, 16, 16, 16),
    Case(4, 2, 33, 80, 250, 270, 20, 16, 33),
    Case(2, 2, 16, 64, 0, 256, 16, 16, 16, pages=1.0, active=1.0),
    # rematerialised keys: one page of any length
    Case(4, 2, 16, 64, 137, 137, 1, 137, 16, pages=1.0, k_group=137),
    Case(4, 2, 16, 64, 500, 500, 32, 16, 16, scale=0.5, k_group=128),
]


def make_inputs(case: Case, overload: str = "sparse", mode: int = DENSE, seed: int = 0) -> native.Arrays:
    """What must not be read (the window's own slots, slots not selected, the unused capacity, inactive rows' queries'
    prefix) is NaN where the type has one."""
    rng = np.random.default_rng(seed)

    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal((1, *shape)).astype(np.float32)

    heads = case.n_kv_heads
    active = (rng.random((heads, case.q_len)) < case.active).astype(np.uint8) * 3
    active[:, case.n_rows :] = 255
    pages = (rng.random((heads, case.n_slots)) < case.pages).astype(np.uint8) * 2
    inputs = {
        "q": normal(case.n_heads, case.q_len, case.head_dim),
        "k": normal(heads, case.q_len, case.head_dim),
        "v": normal(heads, case.q_len, case.head_dim),
        "k_cache": normal(heads, case.capacity, case.head_dim),
        "v_cache": normal(heads, case.capacity, case.head_dim),
        "start": np.array([case.start]),
        "cache_len": np.array([case.cache_len]),
        "attn_block": np.array([case.attn_block]),
        "active": active,
        "pages": pages,
        "policy": np.array([mode, 1, 1, 1, 1, 0, 0, 0, 16]),
        "prefix_out": normal(case.n_heads, case.n_rows, case.head_dim),
        "prefix_lse": normal(case.n_heads, case.n_rows) + 6,
        "masses": normal(heads, case.n_slots),
    }
    if overload in PLANES:
        found = quantized(case, inputs, 8)
        for kind in "kv":
            found[f"{kind}_cache"], found[f"{kind}_lower"] = split_codes(found[f"{kind}_cache"])
        return found | {"planes": np.array([PLANES[overload]])}
    if overload in ("int8", "int4"):
        return quantized(case, inputs, 8 if overload == "int8" else 4)
    unread = np.repeat(pages == 0, case.page_size, axis=1)
    unread[:, case.start : case.start + case.q_len] = True
    unread[:, case.cache_len :] = True
    for name in ("k_cache", "v_cache"):
        inputs[name][0][unread] = np.nan
        inputs[name] = inputs[name].astype(np.float16 if overload == "sparse_fp16" else np.float32)
    return inputs


def quantized(case: Case, inputs: native.Arrays, bits: int) -> native.Arrays:
    group = case.k_group
    v_group = next(g for g in (32, 20, 16, 8) if case.head_dim % g == 0)
    length = case.cache_len // group * group
    # An array without elements cannot be packed: one group is, and then cut off.
    shape = (1, case.n_kv_heads, max(case.capacity, group), case.head_dim)
    k, v = (np.resize(inputs[name], shape) for name in ("k_cache", "v_cache"))
    k = Quantized(*(part[:, :, : part.shape[2] if case.capacity else 0] for part in quantize_keys(k, bits, group)))
    v = Quantized(*(part[:, :, : case.capacity] for part in quantize_values(v, bits, v_group)))
    tail = np.full((1, case.n_kv_heads, group, case.head_dim), np.nan, np.float32)
    tail[:, :, : case.cache_len - length] = inputs["k_cache"][:, :, length : case.cache_len]
    k.scale[:, :, length // group :] = np.nan
    v.scale[:, :, case.cache_len :] = np.nan
    codes = {"k_cache": k.codes, "v_cache": v.codes}
    return inputs | codes | {"k_scale": k.scale, "k_low": k.low, "k_tail": tail, "v_scale": v.scale, "v_low": v.low}


def expected_of(case: Case, inputs: native.Arrays) -> SparseResult:
    k_cache, v_cache = inputs["k_cache"], inputs["v_cache"]
    if "k_scale" in inputs:
        keys, values = dequantized(case, inputs)
        k_cache, v_cache = np.zeros((2, 1, case.n_kv_heads, case.capacity, case.head_dim), np.float32)
        k_cache[:, :, : case.cache_len], v_cache[:, :, : case.cache_len] = keys, values
    window = (inputs[name] for name in ("q", "k", "v"))
    state = (inputs[name] for name in ("prefix_out", "prefix_lse", "masses"))
    with np.errstate(over="ignore"):
        return sparse_prefix_block_attention(
            *window, k_cache, v_cache, case.start, case.cache_len, case.attn_block, inputs["active"], inputs["pages"],
            inputs["policy"][0] == DENSE_KEEP, *state, scale=case.scale,
        )  # fmt: skip


def dequantized(case: Case, inputs: native.Arrays) -> tuple[np.ndarray, np.ndarray]:
    rest = (inputs["k_tail"], case.cache_len)
    if "planes" in inputs:
        k, v = (Planes(*(inputs[f"{kind}_{part}"] for part in ("cache", "lower", "scale", "low"))) for kind in "kv")
        return dequantize_planes(k, rest[0], v, rest[1], inputs["planes"][0])
    bits = 8 * inputs["k_cache"].shape[-1] // case.head_dim
    k, v = (Quantized(*(inputs[f"{kind}_{part}"] for part in ("cache", "scale", "low"))) for kind in "kv")
    return dequantize_cache(k, rest[0], v, rest[1], bits)


@cache
def inputs_and_expected(case: Case, overload: str, mode: int) -> tuple[native.Arrays, SparseResult]:
    inputs = make_inputs(case, overload, mode)
    return inputs, expected_of(case, inputs)


def fresh_outputs(case: Case) -> native.Arrays:
    shapes = {
        "out": (1, case.q_len, case.n_heads * case.head_dim),
        "new_prefix_out": (1, case.n_heads, case.n_rows, case.head_dim),
        "new_prefix_lse": (1, case.n_heads, case.n_rows),
        "new_masses": (1, case.n_kv_heads, case.n_slots),
    }
    return {name: np.full(shape, np.nan, np.float32) for name, shape in shapes.items()}


def is_in_integers(inputs: native.Arrays) -> bool:
    fits = inputs["q"].shape[3] % 32 == 0 and "v_scale" in inputs
    return (
        fits
        and inputs["q"].shape[3] // inputs["v_scale"].shape[3] % 16 == 0
        and kernels.simd() in ("avx512_vnni", "amx")
    )


def assert_matches(case: Case, inputs: native.Arrays, actual: native.Arrays, expected: SparseResult) -> None:
    tolerance = INTEGER_TOLERANCE if is_in_integers(inputs) else TOLERANCE
    for name, wanted in zip(native.SPARSE_OUTPUTS, expected, strict=True):
        limit = tolerance[name] * max(1.0, case.scale * case.head_dim**0.5)
        np.testing.assert_allclose(actual[name], wanted, rtol=1e-6, atol=limit, err_msg=name)


def run(tested, inputs: native.Arrays) -> native.Arrays:
    return dict(zip(native.SPARSE_OUTPUTS, tested.run(native.SPARSE_OUTPUTS, inputs), strict=True))


@pytest.fixture(scope="module")
def sessions():
    """By overload, scale and number of threads."""
    return {
        (overload, scale, threads): native.session(
            "PrefixBlockAttention", make_inputs(CASES[0], overload), native.SPARSE_OUTPUTS,
            overload=overload.split("-")[0], threads=threads, scale=scale,
        )
        for overload in OVERLOADS
        for scale in (0.0, 0.5)
        for threads in (1, 2)
    }  # fmt: skip


@pytest.fixture
def force_simd():
    yield lambda name: kernels.set_simd(name) or pytest.skip(f"this processor has no {name}")
    kernels.set_simd(None)


@pytest.mark.parametrize("overload", OVERLOADS)
@pytest.mark.parametrize("simd", native.SIMD)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_matches_reference_in_place_and_not(case, simd, overload, sessions, force_simd):
    force_simd(simd)
    tested = sessions[overload, case.scale, 2]
    for mode in (DENSE, DENSE_KEEP) if overload == "sparse" else (DENSE_KEEP,):
        inputs, expected = inputs_and_expected(case, overload, mode)
        apart = native.run_bound(tested, inputs, {}, fresh_outputs(case))
        assert_matches(case, inputs, apart, expected)
        out = {"out": fresh_outputs(case)["out"]}
        in_place = native.run_bound(tested, {n: a.copy() for n, a in inputs.items()}, STATE, out)
        for name in native.SPARSE_OUTPUTS:
            np.testing.assert_array_equal(in_place[name], apart[name], err_msg=name)


@pytest.mark.parametrize("overload", OVERLOADS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_number_of_threads_changes_no_bit(case, overload, sessions):
    inputs, _ = inputs_and_expected(case, overload, DENSE_KEEP)
    one, two = (run(sessions[overload, case.scale, threads], inputs) for threads in (1, 2))
    for name in native.SPARSE_OUTPUTS:
        np.testing.assert_array_equal(one[name], two[name], err_msg=name)


@pytest.mark.parametrize("simd", native.SIMD)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_both_planes_have_the_bits_of_bytes(case, simd, sessions, force_simd):
    force_simd(simd)
    both, bytes_ = (
        run(sessions[overload, case.scale, 2], inputs_and_expected(case, overload, DENSE_KEEP)[0])
        for overload in ("int4x2", "int8")
    )
    for name in native.SPARSE_OUTPUTS:
        np.testing.assert_array_equal(both[name], bytes_[name], err_msg=name)


@pytest.mark.parametrize("overload", OVERLOADS)
def test_reused_rows_have_the_bits_of_the_rows_they_reuse(overload, sessions):
    case = replace(CASES[0], active=1.0)
    inputs = make_inputs(case, overload)
    first = run(sessions[overload, 0.0, 2], inputs)
    state = {old: first[new] for new, old in STATE.items()}
    again = run(sessions[overload, 0.0, 2], inputs | state | {"active": np.zeros_like(inputs["active"])})
    for name in native.SPARSE_OUTPUTS:
        np.testing.assert_array_equal(again[name], first[name], err_msg=name)


def test_everything_active_and_selected_is_dense_attention(sessions):
    case = replace(CASES[0], active=1.0, pages=1.0)
    inputs = make_inputs(case)
    dense_inputs = {name: inputs[name] for name in native.WINDOW}
    dense = native.session("PrefixBlockAttention", dense_inputs, ("out",), overload="dense").run(None, dense_inputs)
    np.testing.assert_allclose(run(sessions["sparse", 0.0, 2], inputs)["out"], dense[0], rtol=0, atol=TOLERANCE["out"])


@pytest.mark.parametrize("overload", OVERLOADS)
def test_nan_stays_in_its_row_and_heads(overload, sessions):
    case = replace(CASES[0], active=1.0, pages=1.0)
    inputs = make_inputs(case, overload, DENSE_KEEP)
    inputs["q"][0, 1, 3] = np.nan
    result = run(sessions[overload, 0.0, 2], inputs)
    out = result["out"].reshape(16, 32, 128)
    assert np.isnan(out[3, 1]).all() and np.isnan(result["new_prefix_lse"][0, 1, 3])
    out[3, 1] = 0
    assert np.isfinite(out).all()


BAD_INPUTS = [  # what to change, what the message must say
    pytest.param("sparse", {"start": np.array([-1])}, "start is -1", id="start"),
    pytest.param("sparse", {"cache_len": np.array([1025])}, "cache_len is 1025, expected 0 to", id="cache-len"),
    pytest.param("sparse", {"attn_block": np.array([0])}, "attn_block is 0", id="attn-block"),
    pytest.param("sparse", {"active": (8, 15)}, r"active has shape \[8, 15\]", id="active"),
    pytest.param("sparse", {"pages": (7, 64)}, r"pages has shape \[7, 64\]", id="pages"),
    pytest.param("sparse", {"pages": (8, 63), "masses": (1, 8, 63)}, "1024 positions and pages has 63", id="slots"),
    pytest.param("sparse", {"pages": (8, 0), "masses": (1, 8, 0)}, "1024 positions and pages has 0", id="no-slots"),
    pytest.param("sparse", {"masses": (1, 8, 63)}, r"masses has shape \[1, 8, 63\]", id="masses"),
    pytest.param("sparse", {"policy": (8,)}, r"policy has shape \[8\]", id="policy"),
    pytest.param("sparse", {"policy": np.array([6, 1, 1, 1, 1, 0, 0, 0, 16])}, "mode 6, expected 0 to 5", id="mode"),
    pytest.param("sparse", {"prefix_out": (1, 32, 16, 64)}, "prefix_out has shape", id="prefix-out"),
    pytest.param("sparse", {"prefix_lse": (1, 32, 15)}, "prefix_lse has shape", id="prefix-lse"),
    pytest.param(
        "sparse",
        {"prefix_out": (1, 32, 9, 128), "prefix_lse": (1, 32, 9), "active": (8, 16)},
        "row 9 of key/value head 0 is not active and has no stored result: prefix_out has 9 rows",
        id="row-without-state",
    ),
    pytest.param("sparse_fp16", {"k_cache": (1, 8, 1024, 64)}, r"k_cache has shape \[1, 8, 1024, 64\]", id="half"),
    pytest.param("int8", {"k_cache": (1, 8, 1024, 64)}, r"v_cache has shape \[1, 8, 1024, 128\]", id="mixed-bits"),
    pytest.param("int8", {"k_tail": (1, 8, 33, 128)}, r"k_tail has shape \[1, 8, 33, 128\]", id="k-group"),
    pytest.param("int8", {"k_tail": (1, 8, 0, 128)}, r"k_tail has shape \[1, 8, 0, 128\]", id="no-k-group"),
    pytest.param("int8", {"k_scale": (1, 8, 31, 128)}, r"k_scale has shape \[1, 8, 31, 128\]", id="k-scale"),
    pytest.param("int4", {"k_low": (1, 8, 32, 127)}, r"k_low has shape \[1, 8, 32, 127\]", id="k-low"),
    pytest.param("int4", {"v_scale": (1, 8, 1024, 3)}, r"v_scale has shape \[1, 8, 1024, 3\]", id="v-groups"),
    pytest.param("int4", {"v_low": (1, 8, 1024, 3)}, r"v_low has shape \[1, 8, 1024, 3\]", id="v-low"),
    pytest.param("int4x2", {"planes": np.array([3])}, "planes is 3, expected 1 or 2", id="planes"),
    pytest.param("int4x2", {"k_lower": (1, 8, 1024, 63)}, r"k_lower has shape \[1, 8, 1024, 63\]", id="k-lower"),
    pytest.param("int4x2", {"v_lower": (1, 8, 1023, 64)}, r"v_lower has shape \[1, 8, 1023, 64\]", id="v-lower"),
    pytest.param(
        "int4x2",
        {"k_cache": (1, 8, 1024, 128), "v_cache": (1, 8, 1024, 128)},
        r"k_cache has shape \[1, 8, 1024, 128\], expected .* beside k_lower",
        id="bytes-beside-planes",
    ),
]


@pytest.mark.parametrize(("overload", "change", "message"), BAD_INPUTS)
def test_bad_inputs_are_refused_by_name(overload, change, message, sessions):
    inputs = make_inputs(CASES[0], overload)
    for name, value in change.items():
        inputs[name] = np.zeros(value, inputs[name].dtype) if isinstance(value, tuple) else value
    with pytest.raises(InvalidArgument, match=f"PrefixBlockAttention: .*{message}"):
        sessions[overload, 0.0, 2].run(None, inputs)


@pytest.mark.parametrize(
    ("without", "message"),
    [
        ("masses", "masses is missing beside active"),
        ("v_low", "v_low is missing beside a cache of codes"),
        ("planes", "k_lower is given without planes"),
    ],
)
def test_a_missing_input_is_named(without, message):
    inputs = make_inputs(CASES[0], {"v_low": "int8", "planes": "int4x2"}.get(without, "sparse"))
    del inputs[without]  # the last one
    tested = native.session("PrefixBlockAttention", inputs, native.SPARSE_OUTPUTS)
    with pytest.raises(InvalidArgument, match=message):
        tested.run(None, inputs)


def test_half_precision_needs_the_sparse_form():
    inputs = {name: a for name, a in make_inputs(CASES[0], "sparse_fp16").items() if name in native.WINDOW}
    tested = native.session("PrefixBlockAttention", inputs, ("out",))
    with pytest.raises(InvalidArgument, match="k_cache must be a float tensor"):
        tested.run(None, inputs)
