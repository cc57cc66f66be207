"""`--profile auto`: the profiles that fit are timed on this machine, on the feed-forward part of the first layer.

Which kernel is fastest depends on the processor: one with integer dot products ranks them otherwise than one without. Each
profile's nodes are built by the code that builds the bundle's, from the checkpoint's own weights, and run in turn in the same
rounds on as many rows as a denoising step has. Times and machine are recorded in the manifest.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnxruntime as ort
from onnx import TensorProto, helper

from dlm_edge import kernels
from dlm_edge.checkpoint import Checkpoint
from dlm_edge.export.external_data import InlineData
from dlm_edge.export.feed_forward import feed_forward
from dlm_edge.export.linear import WeightNodes
from dlm_edge.export.nodes import IR_VERSION, GraphBuilder, opset_imports
from dlm_edge.export.profiles import AUTO, PROFILES, Kernel, Precision, Profile, candidates
from dlm_edge.machine import processor
from dlm_edge.runtime.session import session_options

LEAST_ROWS, MOST_ROWS = 16, 64  # a denoising step's
LEAST_ROUNDS, MOST_ROUNDS, SECONDS = 5, 200, 0.3  # of all profiles together, after the least
ALIKE = 1.05  # times the fastest: of these the one that stands first, and rounds least, is taken
BODY = np.dtype(np.float32)


@dataclass(frozen=True, slots=True)
class Choice:
    """`measured` goes into the manifest."""

    profile: str
    kernel: Kernel
    measured: dict[str, Any] = field(default_factory=dict)


NO_CHOICE = Choice("", "n_bits")  # of bundles for CUDA


def choose_profile(name: str, source: Checkpoint, say: Callable[[str], None]) -> Choice:
    """`name` itself, or for auto the fastest one that fits; `say` gets a line when something was measured."""
    if name != AUTO:
        return Choice(name, PROFILES[name].kernel)
    fitting = candidates(source, kernels.library_path() is not None)
    if len(fitting) == 1:
        return Choice(fitting[0].name, fitting[0].kernel)
    rows = min(max(source.spec.conventions.block_length, LEAST_ROWS), MOST_ROWS)
    seconds = times(source, fitting, rows)
    chosen = next(profile for profile in fitting if seconds[profile.name] <= ALIKE * min(seconds.values()))
    listed = ", ".join(f"{each} {value * 1e3:.3g} ms" for each, value in seconds.items())
    say(f"profile   {chosen.name}, of {listed} for the first feed-forward layer")
    found = {"chosen": chosen.name, "rows": rows, "seconds": seconds, "processor": processor()}
    return Choice(chosen.name, chosen.kernel, {"profile": found | {"simd": kernels.simd()}})


def times(source: Checkpoint, profiles: Sequence[Profile], rows: int) -> Mapping[str, float]:
    """Median seconds of one run, by profile."""
    sessions = {profile.name: open_layer(source, profile) for profile in profiles}
    x = np.random.default_rng(0).standard_normal((1, rows, source.spec.hidden_size)).astype(BODY)
    taken: dict[str, list[float]] = {name: [] for name in sessions}
    for session in sessions.values():
        session.run(None, {"x": x})  # memory and threads
    end, n_rounds = time.perf_counter() + SECONDS, 0
    while n_rounds < LEAST_ROUNDS or n_rounds < MOST_ROUNDS and time.perf_counter() < end:
        n_rounds += 1
        for name, session in sessions.items():
            started = time.perf_counter()
            session.run(None, {"x": x})
            taken[name].append(time.perf_counter() - started)
    return {name: statistics.median(values) for name, values in taken.items()}


def open_layer(source: Checkpoint, profile: Profile) -> ort.InferenceSession:
    """The feed-forward part of layer 0 under a profile, with its weights in memory."""
    graph = GraphBuilder(InlineData(), BODY)
    out = feed_forward(WeightNodes(source, graph, Precision(BODY, profile.kernel)), 0, "x")
    shape: list[int | str | None] = [1, "rows", source.spec.hidden_size]
    model = helper.make_model(
        helper.make_graph(
            graph.nodes,
            "feed_forward",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
            [helper.make_tensor_value_info(out, TensorProto.FLOAT, shape)],
            graph.initializers,
        ),
        opset_imports=opset_imports(),
        ir_version=IR_VERSION,
        functions=list(graph.functions.values()),
    )
    options = session_options(ort, None)
    kernels.register(options)
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
