"""Dense attention of others on the same numbers: PyTorch's SDPA, flash-attn where installed, ONNX Runtime's operator."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from .workload import Shape, Workload

OPSET = 24


def joined(work: Workload) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values of prefix and window in one tensor: what the others want. The copy is not charged to them."""
    cached = (work.cache.k[:, :, : work.shape.prefix], work.cache.v[:, :, : work.shape.prefix])
    keys, values = (torch.cat(pair, 2) for pair in zip(cached, (work.k, work.v), strict=True))
    return keys, values


def torch_baselines(work: Workload) -> dict[str, Callable[[], object]]:
    """Every SDPA backend that takes the problem, and flash-attn."""
    k, v = joined(work)
    grouped = work.shape.n_heads != work.shape.n_kv_heads
    found: dict[str, Callable[[], object]] = {}
    for name in ("FLASH_ATTENTION", "EFFICIENT_ATTENTION", "CUDNN_ATTENTION"):
        backend = getattr(SDPBackend, name)

        def run(backend: SDPBackend = backend) -> torch.Tensor:
            with sdpa_kernel(backend):
                return torch.nn.functional.scaled_dot_product_attention(work.q, k, v, enable_gqa=grouped)

        try:
            run()
        except RuntimeError:  # this backend does not take the shape on this device
            continue
        found[f"sdpa {name.split('_')[0].lower()}"] = run
    if importlib.util.find_spec("flash_attn"):
        from flash_attn import flash_attn_func  # type: ignore[import-not-found,import-untyped,unused-ignore]

        tokens_first = [x.transpose(1, 2).contiguous() for x in (work.q, k, v)]
        found["flash-attn"] = lambda: flash_attn_func(*tokens_first, causal=False)
    return found


def onnxruntime_baseline(work: Workload) -> Callable[[], object] | str:
    """ONNX Runtime's Attention on its CUDA provider, or why it cannot be had."""
    try:
        import onnxruntime as ort
        from onnx import TensorProto, helper
    except ImportError as error:
        return f"{error.name} is not installed"
    if "CUDAExecutionProvider" not in ort.get_available_providers():
        return "this onnxruntime has no CUDA provider"
    k, v = joined(work)
    inputs = {"q": work.q.contiguous(), "k": k.contiguous(), "v": v.contiguous()}
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT16, list(x.shape)) for n, x in inputs.items()]
    out = helper.make_tensor_value_info("out", TensorProto.FLOAT16, list(work.q.shape))
    graph = helper.make_graph([helper.make_node("Attention", list(inputs), ["out"])], "attention", values, [out])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=11)
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    try:
        session = ort.InferenceSession(model.SerializeToString(), options, providers=["CUDAExecutionProvider"])
    except Exception as error:  # whatever the runtime raises, the table says it
        return str(error).splitlines()[0][:200]
    return _bound(session, inputs, torch.empty_like(work.q))


def _bound(session: Any, inputs: dict[str, torch.Tensor], out: torch.Tensor) -> Callable[[], object]:
    binding = session.io_binding()
    for name, x in inputs.items():
        binding.bind_input(name, "cuda", 0, np.float16, tuple(x.shape), x.data_ptr())
    binding.bind_output("out", "cuda", 0, np.float16, tuple(out.shape), out.data_ptr())

    def run(kept: dict[str, torch.Tensor] = inputs) -> torch.Tensor:  # the binding itself has only addresses
        session.run_with_iobinding(binding)
        return out

    return run


def largest_difference(work: Workload, run: Callable[[], object], shape: Shape) -> float:
    """Of a baseline's output from ours; they must compute the same thing before they are compared in time."""
    ours = work.prepare("plain dense")()
    theirs = run()
    assert isinstance(ours, torch.Tensor) and isinstance(theirs, torch.Tensor)
    torch.cuda.synchronize()
    if theirs.shape[1] == shape.n_heads and theirs.shape[2] == shape.q_len:
        theirs = theirs.transpose(1, 2)
    return float((theirs.reshape(ours.shape) - ours).abs().max())
