"""The CUDA operators' control flow, with a stub driver: placement, argument checks, and which launches are made.

No kernel runs here and no number is computed: what the kernels compute is tested in Triton's interpreter, and on a
device by benchmarks/gpu_attention.py --check-only. What is tested is that the library makes exactly the launches of
kernels/triton/launch.py: the same variants, grids and arguments, in the same order.
"""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from dlm_edge import kernels
from tests.kernels import cuda_session, stub_cuda_libraries
from tests.kernels.interpreted import launch, launch_pattern, launch_rows, torch

pytestmark = [
    pytest.mark.skipif(bool(stub_cuda_libraries.missing_tools()), reason=stub_cuda_libraries.missing_tools()),
    pytest.mark.skipif(kernels.library_path() is None, reason="the native library is not built"),
]

ROOT = Path(__file__).resolve().parents[2]
PROCESSORS = 84  # of the stub device, compute capability 8.6
BASE = {"heads": 8, "kv": 2, "q_len": 16, "dim": 128, "slots": 80, "page": 16, "rows": 16, "bits": 16}
BASE |= {
    "start": 1200,
    "cache_len": 1200,
    "attn_block": 16,
    "overload": "sparse",
    "policy": [1, 4, 5, 1, 1, 0, 0, 0, 16],
}
CASES = {
    "losa": {},
    "dense": {"overload": "dense"},
    "dense-keep": {"policy": [4, 4, 5, 1, 1, 0, 0, 0, 16]},
    "reuse-pages": {"policy": [3, 4, 5, 1, 1, 0, 0, 0, 16]},
    "select-rows": {"policy": [5, 4, 5, 1, 1, 0, 0, 0, 16]},
    "reuse-rows": {"policy": [2, 4, 5, 1, 1, 0, 0, 0, 16], "rows": 20},
    "int8": {"bits": 8, "overload": "int8", "attn_block": 2**40},
    "int4": {"bits": 4, "overload": "int4", "dim": 80, "policy": [4, 4, 5, 1, 1, 0, 0, 0, 16]},
    "wide": {"dim": 256, "heads": 2, "q_len": 5, "rows": 3, "policy": [1, 2**40, 99, 1, 1, 1, 1, 1, 16]},
    "no-prefix": {"start": 0, "cache_len": 0},
    "prefill": {"q_len": 200, "heads": 4, "start": 40, "cache_len": 40, "policy": [0, 4, 5, 1, 1, 0, 0, 0, 16]},
}
PATTERNS = {  # policy: mode, blocks kept of the prompt and of the others, blocks of the prompt, ..., block size
    "dense": {"policy": [0, 2, 3, 2, 1, 0, 0, 0, 16]},
    "keep": {"policy": [4, 2, 3, 2, 1, 0, 0, 0, 16]},
    "reuse": {"policy": [3, 2, 3, 2, 1, 0, 0, 0, 16]},
    "keep-everything": {"policy": [4, 2**40, 2**40, 2, 1, 0, 0, 0, 128], "dim": 80, "slots": 2},
    "usual-blocks": {"policy": [3, 2, 3, 2, 1, 0, 0, 0, 32]},
    "usual-blocks-kept": {"policy": [4, 2, 3, 2, 1, 0, 0, 0, 32]},
    "large-blocks": {"policy": [3, 2, 3, 2, 1, 0, 0, 0, 100], "dim": 256, "heads": 2, "kv": 1},
    "one-block": {"policy": [4, 2, 3, 2, 1, 0, 0, 0, 4096], "slots": 1, "dim": 64},
    "one-block-reused": {"policy": [3, 2, 3, 2, 1, 0, 0, 0, 2**40], "slots": 1200, "heads": 2},
}


@pytest.fixture(scope="module")
def stubs(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("stub_cuda")
    stub_cuda_libraries.build(folder)
    return folder


@pytest.fixture(scope="module")
def library(tmp_path_factory) -> Path:
    """The operator library beside a table of all variants, with empty kernels for the device 8.0."""
    from dlm_edge.kernels.triton.variants import variants

    folder = tmp_path_factory.mktemp("library")
    path = kernels.library_path()
    assert path is not None
    (folder / path.name).symlink_to(path)
    cubins = folder / "cubins" / "sm_80"
    cubins.mkdir(parents=True)
    rows = []
    for each in variants():
        count = sum(kind != "constexpr" for kind in each.signature().values())
        rows.append(f"{each.name} {each.name} {each.num_warps} {50000 if each.num_warps == 8 else 0} {count}\n")
        (cubins / f"{each.name}.cubin").write_bytes(b"\x7fELF")
    (cubins / "kernels.txt").write_text("".join(rows))
    return folder


def run_case(case: dict, stubs: Path, library: Path, log: Path) -> str:
    rows = [line.split() for line in (library / "cubins" / "sm_80" / "kernels.txt").read_text().splitlines()]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "LD_LIBRARY_PATH": str(stubs), "STUB_CUDA_LOG": str(log)}
    environment["STUB_CUDA_ARGUMENTS"] = ",".join(f"{row[0]}:{row[-1]}" for row in rows)
    command = [sys.executable, str(Path(cuda_session.__file__)), str(library), json.dumps({**BASE, **case})]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.strip()


@dataclass(frozen=True)
class Pointer:
    """An address in the library's launches, a tensor in Python's; None is null."""

    to: Any


class Recorder:
    """In place of a Triton kernel: writes down what would be launched."""

    def __init__(self, kernel: Any, launches: list) -> None:
        self.kernel, self.launches = kernel, launches

    def __getitem__(self, grid: tuple[int, ...]):
        def record(*arguments: Any, num_warps: int, num_stages: int = 2, **constants: int) -> None:
            from dlm_edge.kernels.triton.variants import Variant

            variant = Variant(self.kernel, {name: int(value) for name, value in constants.items()}, num_warps)
            kinds = [kind for kind in variant.signature().values() if kind != "constexpr"]
            values = [encoded(kind, value) for kind, value in zip(kinds, arguments, strict=True)]
            self.launches.append((variant.name, (*grid, 1, 1)[:3], 32 * num_warps, values))

        return record


def encoded(kind: str, value: Any) -> Any:
    if kind.startswith("*"):
        return Pointer(value)
    return round(float(value), 5) if kind == "fp32" else min(int(value), 2**31 - 1)


def expected_launches(case: dict, monkeypatch: pytest.MonkeyPatch) -> list:
    """What kernels/triton/launch.py does for the same inputs."""
    launches: list = []
    for module in (launch, launch_pattern, launch_rows):
        for name, kernel in list(vars(module).items()):
            if hasattr(kernel, "arg_names"):
                monkeypatch.setattr(module, name, Recorder(kernel, launches))
    monkeypatch.setattr(launch, "processor_count", lambda tensor: PROCESSORS)
    case = {**BASE, **case}
    x = {name: torch.from_numpy(array) for name, array in cuda_session.given(case).items()}
    if case["overload"] in ("rows", "rematerialise"):
        run = launch_rows.rematerialise_rows if "weight" in x else launch_rows.dequantize_rows
        more = [x["weight"]] if "weight" in x else []
        tensors = [x[name] for name in cuda_session.ROWS[:5]]
        run(*tensors, case["cache_len"], *more, bits=case["bits"], axis=case["axis"])
        return launches
    if case["overload"] == "pattern":
        launch_pattern.pattern_attention(x["q"], x["k"], x["v"], launch.Policy(*case["policy"]), x["pattern"])
        return launches
    numbers = (case["start"], case["cache_len"])
    window = (x["q"], x["k"], x["v"])
    if case["overload"] == "dense":
        launch.dense_attention(*window, launch.Cache(x["k_cache"], x["v_cache"]), *numbers, case["attn_block"])
        return launches
    policy = launch.Policy(*case["policy"])
    tensors = [x[name] for name in cuda_session.SELECT[:7]]
    selected = launch.select_pages(*tensors, *numbers, policy)
    scales = [x[name] for name in cuda_session.SCALES] if case["bits"] != 16 else []
    cache = launch.Cache(x["k_cache"], x["v_cache"], case["bits"], *scales)
    state = launch.PrefixState(x["prefix_out"], x["prefix_lse"], x["masses"])
    measure = policy.mode == 4
    launch.sparse_attention(*window, cache, *numbers, case["attn_block"], *selected[:2], measure, state)
    return launches


def made_launches(log: Path) -> list:
    from dlm_edge.kernels.triton.variants import variants

    kinds = {each.name: [k for k in each.signature().values() if k != "constexpr"] for each in variants()}
    found = []
    for line in log.read_text().splitlines():
        name, x, y, z, block, _, stream, *words = line.split()
        assert stream != "(nil)"
        assert [int(word, 16) for word in words[-2:]] == [0, 0], "the scratch pointers are null"
        values = [decoded(kind, int(word, 16)) for kind, word in zip(kinds[name], words[:-2], strict=True)]
        found.append((name, (int(x), int(y), int(z)), int(block), values))
    return found


def decoded(kind: str, word: int) -> Any:
    if kind.startswith("*"):
        return Pointer(word or None)
    packed = struct.pack("<Q", word)[:4]
    return round(struct.unpack("<f", packed)[0], 5) if kind == "fp32" else struct.unpack("<i", packed)[0]


def numbers(launches: list) -> list:
    return [
        (name, grid, block, [v for v in values if not isinstance(v, Pointer)]) for name, grid, block, values in launches
    ]


def assert_pointers_agree(made: list, expected: list) -> None:
    """Within an operator one address always stands for the same tensor, and none is null where Python passes one.

    The other way round a state may have two addresses, as input and as output; and the library may pass memory where
    Python passes None because the variant does not read it.
    """
    tensor_of: dict[int, Any] = {}
    for (name, _, _, addresses), (_, _, _, tensors) in zip(made, expected, strict=True):
        if name.startswith("compact"):  # the second operator has the working memory of the first
            tensor_of.clear()
        for at, tensor in zip(addresses, tensors, strict=True):
            if isinstance(at, Pointer) and tensor.to is not None and tensor.to.numel():
                assert at.to is not None, f"{name} lacks an argument"
                assert tensor_of.setdefault(at.to, tensor.to) is tensor.to, f"{name} takes two tensors for one"


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_the_library_launches_what_python_launches(case, stubs, library, tmp_path, monkeypatch):
    q_len, width = {**BASE, **case}["q_len"], {**BASE, **case}["heads"] * {**BASE, **case}["dim"]
    assert_same_launches(case, [1, q_len, width], stubs, library, tmp_path / "launches", monkeypatch)


def assert_same_launches(case: dict, shape: list[int], stubs: Path, library: Path, log: Path, monkeypatch) -> None:
    assert run_case(case, stubs, library, log) == f"ran CUDAExecutionProvider {shape}"
    made = made_launches(log) if log.exists() else []
    expected = expected_launches(case, monkeypatch)
    assert numbers(made) == numbers(expected)
    assert_pointers_agree(made, expected)


@pytest.mark.parametrize("axis", ["token", "channel"])
@pytest.mark.parametrize("bits", [8, 4, 3, 2])
def test_rows_are_dequantized_by_the_kernel_of_their_layout(bits, axis, stubs, library, tmp_path, monkeypatch):
    case = {"overload": "rows", "bits": bits, "axis": axis, "dim": 1024}
    assert_same_launches(case, [16, 1024], stubs, library, tmp_path / "launches", monkeypatch)


@pytest.mark.parametrize("n", [0, 16, 70])
@pytest.mark.parametrize(("bits", "axis"), [(8, "token"), (4, "channel"), (3, "token"), (2, "channel")])
def test_rows_are_rematerialised_by_the_kernel_of_their_layout(bits, axis, n, stubs, library, tmp_path, monkeypatch):
    case = {"overload": "rematerialise", "bits": bits, "axis": axis, "dim": 320, "n_out": 240, "q_len": n}
    assert_same_launches(case, [n, 240], stubs, library, tmp_path / "launches", monkeypatch)


@pytest.mark.parametrize("case", PATTERNS.values(), ids=PATTERNS)
def test_patterns_are_launched_as_python_does(case, stubs, library, tmp_path, monkeypatch):
    case = {"overload": "pattern", "q_len": 190, "slots": 12, **case}
    width = {**BASE, **case}["heads"] * {**BASE, **case}["dim"]
    assert_same_launches(case, [1, 190, width], stubs, library, tmp_path / "launches", monkeypatch)


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ({"cache_len": 1281}, "cache_len is 1281"),
        ({"start": -1}, "start is -1"),
        ({"attn_block": 0, "overload": "dense"}, "attn_block is 0"),
        ({"copies": 2, "overload": "dense"}, "one copy of the window"),
        ({"selecting": 2}, "SelectPages: q has shape [2, "),
        ({"dim": 72}, "multiple of 16"),
        ({"policy": [9, 4, 5, 1, 1, 0, 0, 0, 16]}, "policy has mode 9"),
        ({"rows": 1025, "q_len": 1025}, "at most 1024 rows"),
        ({"overload": "rematerialise", "axis": "token", "bits": 4, "dim": 72, "n_out": 64}, "multiples of 16"),
        ({"overload": "rematerialise", "axis": "token", "bits": 4, "n_out": 0}, "multiples of 16"),
        ({"overload": "rematerialise", "axis": "rows", "bits": 4, "n_out": 64}, "axis is 'rows'"),
        ({"overload": "rows", "axis": "token", "bits": 5}, "bits is 5"),
        ({"overload": "pattern", "policy": [1, 2, 3, 2, 1, 0, 0, 0, 16]}, "policy has mode 1"),
        (
            {"overload": "pattern", "q_len": 200, "slots": 12, "policy": [0, 2, 3, 2, 1, 0, 0, 0, 16]},
            "pattern has 12 slots",
        ),
        (
            {"overload": "pattern", "slots": 4097, "heads": 2, "policy": [4, 2, 3, 2, 1, 0, 0, 0, 16]},
            "at most 4096 slots",
        ),
        ({"slots": 20000, "page": 1, "policy": [1, 4, 5, 1, 1, 0, 0, 0, 1], "cache_len": 17000}, "use larger pages"),
    ],
)
def test_wrong_arguments_are_named(case, message, stubs, library, tmp_path):
    said = run_case(case, stubs, library, tmp_path / "launches")
    assert said.startswith("error") and message in said


def test_a_device_without_kernels_is_an_error_that_says_what_to_do(stubs, library, tmp_path):
    folder = tmp_path / "library"
    (folder / "cubins" / "sm_90").mkdir(parents=True)
    for path in (library / "cubins" / "sm_80").iterdir():
        (folder / "cubins" / "sm_90" / path.name).symlink_to(path)
    native = kernels.library_path()
    assert native is not None
    (folder / native.name).write_bytes(native.read_bytes())  # its own place, not a link's target
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "LD_LIBRARY_PATH": str(stubs)}
    command = [sys.executable, str(Path(cuda_session.__file__)), str(folder), json.dumps(BASE)]
    said = subprocess.run(command, env=environment, capture_output=True, text=True).stdout
    assert said.startswith("error") and "no compiled kernels for this device" in said and "compile_kernels.py" in said
