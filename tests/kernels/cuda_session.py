"""Run as a script: SelectPages and PrefixBlockAttention, or one of the other operators, in one session of the CUDA provider,
with stub libraries.

    python cuda_session.py LIBRARY_FOLDER CASE_JSON

Prints what the session says about placement, or the error's first line. Needs LD_LIBRARY_PATH at the stubs.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from unittest.mock import patch

import numpy as np
import onnxruntime as ort
from onnx import TensorProto, helper

from dlm_edge import kernels
from dlm_edge.kernels import cuda_library

TYPES = {np.dtype(t): helper.np_dtype_to_tensor_dtype(np.dtype(t)) for t in ("f2", "f4", "i8", "u1", "i1")}
SELECT = [
    "q_float",
    "low",
    "high",
    "page_scale",
    "q_last",
    "q_stored",
    "masses",
    "start",
    "cache_len",
    "policy",
    "drift",
]
WINDOW = ["q", "k", "v", "k_cache", "v_cache", "start", "cache_len", "attn_block"]
STATE = ["active", "pages", "policy", "prefix_out", "prefix_lse", "masses"]
ROWS = ["codes", "scale", "low", "tail", "rows", "cache_len"]
PATTERN = ["q", "k", "v", "policy", "pattern"]
SCALES = ["k_scale", "k_low", "k_tail", "v_scale", "v_low"]
STATS, OUT = "stats", "out"


def inputs_of(case: dict) -> dict[str, np.ndarray]:
    heads, kv, q_len, dim, slots, page, rows = (
        case[k] for k in ("heads", "kv", "q_len", "dim", "slots", "page", "rows")
    )
    capacity, width = slots * page, dim // 2 if case["bits"] == 4 else dim
    copies = case.get("copies", 1)
    half, single, cache = np.float16, np.float32, np.float16 if case["bits"] == 16 else np.uint8
    shapes = {
        "q": (half, copies, heads, q_len, dim), "k": (half, copies, kv, q_len, dim), "v": (half, copies, kv, q_len, dim),
        "k_cache": (cache, 1, kv, capacity, width), "v_cache": (cache, 1, kv, capacity, width),
        "low": (np.int8, 1, kv, slots, dim), "high": (np.int8, 1, kv, slots, dim), "page_scale": (single, 1, kv, slots),
        "q_float": (single, case.get("selecting", 1), heads, q_len, dim), "q_last": (single, 1, heads, rows, dim),
        "q_stored": (single, 1, heads, rows, dim), "masses": (single, 1, kv, slots),
        "prefix_out": (single, 1, heads, rows, dim), "prefix_lse": (single, 1, heads, rows),
        "k_scale": (half, 1, kv, slots, dim), "k_low": (half, 1, kv, slots, dim), "k_tail": (single, 1, kv, page, dim),
        "v_scale": (half, 1, kv, capacity, dim // 16), "v_low": (half, 1, kv, capacity, dim // 16),
    }  # fmt: skip
    found = {name: np.zeros(shape, dtype) for name, (dtype, *shape) in shapes.items()}
    for name in ("start", "cache_len", "attn_block"):
        found[name] = np.array([case[name]], np.int64)
    found["policy"], found["drift"] = np.array(case["policy"], np.int64), np.array([np.inf], np.float32)
    if case["overload"] == "dense":
        return {name: found[name] for name in WINDOW}
    return {n: x for n, x in found.items() if case["bits"] != 16 or n not in SCALES}


def rows_inputs_of(case: dict) -> dict[str, np.ndarray]:
    """DequantizeRows: `page` rows share a scale, or 16 values of one row."""
    by_channel, width, capacity = case["axis"] == "channel", case["dim"], case["slots"] * case["page"]
    scales = (case["slots"], width) if by_channel else (capacity, width // 16)
    found = {
        "codes": np.zeros((capacity, width * case["bits"] // 8), np.uint8),
        "scale": np.zeros(scales, np.float16),
        "low": np.zeros(scales, np.float16),
        "tail": np.zeros((case["page"] if by_channel else 0, width), np.float32),
        "rows": np.arange(case["q_len"]),
        "cache_len": np.array([case["cache_len"]]),
    }
    if case["overload"] == "rematerialise":
        found["weight"] = np.zeros((width, case["n_out"]), np.float16)
    return found


def pattern_inputs_of(case: dict) -> dict[str, np.ndarray]:
    found = {name: array for name, array in inputs_of({**case, "slots": 0}).items() if name in PATTERN}
    return found | {"pattern": np.zeros((case["heads"], case["slots"], case["slots"]), np.uint8)}


def given(case: dict) -> dict[str, np.ndarray]:
    makers = {"rows": rows_inputs_of, "rematerialise": rows_inputs_of, "pattern": pattern_inputs_of}
    return makers.get(case["overload"], inputs_of)(case)


def model_of(case: dict, inputs: dict[str, np.ndarray]) -> bytes:
    values = [helper.make_tensor_value_info(n, TYPES[x.dtype], x.shape) for n, x in inputs.items()]
    domain = {"domain": kernels.DOMAIN}
    out_type = TensorProto.FLOAT16
    if case["overload"] in ("rows", "rematerialise"):
        out_type = TensorProto.FLOAT if case["overload"] == "rows" else TensorProto.FLOAT16
        name, names = (
            ("DequantizeRows", ROWS) if case["overload"] == "rows" else ("RematerialiseRows", [*ROWS, "weight"])
        )
        nodes = [helper.make_node(name, names, [OUT], **domain, bits=case["bits"], axis=case["axis"])]
    elif case["overload"] == "pattern":
        nodes = [helper.make_node("PatternAttention", PATTERN, [OUT, "pattern_out", STATS], **domain)]
    elif case["overload"] == "dense":
        nodes = [helper.make_node("PrefixBlockAttention", WINDOW, [OUT], **domain, overload="dense")]
    else:
        selected = ["active", "pages", "q_last_out", "q_stored_out", STATS]
        names = WINDOW + STATE + (SCALES if case["bits"] != 16 else [])
        states = [OUT, "prefix_out_out", "prefix_lse_out", "masses_out"]
        nodes = [
            helper.make_node("SelectPages", SELECT, selected, **domain),
            helper.make_node("PrefixBlockAttention", names, states, **domain, overload=case["overload"]),
        ]
    outputs = [helper.make_tensor_value_info(OUT, out_type, None)]
    graph = helper.make_graph(nodes, "attention", values, outputs)
    opsets = [helper.make_opsetid("", 24), helper.make_opsetid(kernels.DOMAIN, kernels.OPERATOR_VERSION)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=11).SerializeToString()


def main(folder: str, case_text: str) -> None:
    case = json.loads(case_text)
    inputs = given(case)
    model = model_of(case, inputs)
    inputs |= {name: np.array(value, inputs[name].dtype) for name, value in case.get("wrong", {}).items()}
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    with patch.object(cuda_library, "library_path", lambda: Path(folder) / kernels.library.FILE_NAME):
        assert cuda_library.register_cuda(options), "no library or no kernels"
    try:
        session = ort.InferenceSession(model, options, providers=["CUDAExecutionProvider"])
        (out,) = session.run([OUT], inputs)
    except Exception as error:  # any class of the runtime's
        print("error", str(error).splitlines()[0])
        return
    print("ran", session.get_providers()[0], list(out.shape))


if __name__ == "__main__":
    main(*sys.argv[1:])
