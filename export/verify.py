"""The exported graph against the source model: same prompts, same states, logits compared before anything is valid."""

from __future__ import annotations

from dataclasses import astuple, dataclass, fields, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from tokenizers import Tokenizer

from dlm_edge import kernels
from dlm_edge.checkpoint import Checkpoint
from dlm_edge.errors import InputFileError, JobError
from dlm_edge.evaluation.tasks import SHORT_TASKS, make_samples
from dlm_edge.export.exact_twin import exact_twin
from dlm_edge.families.spec import ModelSpec
from dlm_edge.kernels.quantized_pages.planes import BOTH
from dlm_edge.kernels.select_pages.reference import EXACT_POLICY, Policy
from dlm_edge.machine import has_dots_of_bytes
from dlm_edge.models.streamed import streamed_logits
from dlm_edge.quantized import LayerRecord

DTYPES = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(int8)": np.int8,
    "tensor(uint8)": np.uint8,
}
FULL = 2**40  # attn_block of a family without blocks

# Largest difference over largest logit. In float32 the graph and torch differ by rounding (measured 8e-7 to 4e-6 on
# the reference model and on tiny models of all families), in float16 by 4e-4. Int8 activations (6e-3 to 4e-2 inside
# MatMulNBits; 4e-3 to 1.4e-2 for W8A8 reference models, whose torch layers round too) are compared on top of an exact
# check of the same graph, so their bound is only for models that cannot bear them.
TOLERANCE = {"float32": 1e-4, "float16": 2e-2}
INT8_TOLERANCE = 2e-1


def verify(
    graph_path: Path,
    checkpoint: Checkpoint,
    prompts: list[NDArray[np.int64]],
    *,
    body: str,
    int8_activations: bool,
    native: bool,
    cached: bool = True,
) -> dict[str, Any]:
    """Run `prompts` (of `make_prompts`) through the graph and the torch layers, also over stored keys if `cached`.

    Caches that are quantized are not exact, and are left to whoever chose them.

    With `int8_activations` the graph is first checked with all of them in float, on the shortest and the longest prompt, then as it is, against torch layers
    that round where the checkpoint's record says so. Both round the same way, but a last-bit difference before a
    rounding can become a whole step behind it. Raises E-PARITY when the largest relative logit error passes the bound.
    Returns {max_abs_error, max_rel_error, argmax_agreement, prompts} and, with int8, exact_max_rel_error.
    """
    expected = streamed_logits(in_float(checkpoint), prompts)
    if not int8_activations:
        found = compare(open_session(graph_path, native), checkpoint.spec, prompts, expected, cached)
        check(checkpoint, found, TOLERANCE[body], "please report this")
        return found
    few = sorted({0, len(prompts) - 1})  # the twin unpacks every weight anew in each run
    with exact_twin(graph_path) as twin:
        session = open_session(twin, native)
        exact = compare(session, checkpoint.spec, [prompts[i] for i in few], [expected[i] for i in few], cached)
    check(checkpoint, exact, TOLERANCE[body], "please report this")
    hint = "this model does not bear int8 activations: --profile w4 or w8"
    if rounds_activations(checkpoint):
        expected = streamed_logits(checkpoint, prompts)
        hint = "this model does not bear int8 activations: quantize weights only, --method gptq"
    found = compare(open_session(graph_path, native), checkpoint.spec, prompts, expected, cached)
    check(checkpoint, found, INT8_TOLERANCE, hint)
    return found | {"exact_max_rel_error": exact["max_rel_error"]}


@dataclass(frozen=True)
class FloatActivations(Checkpoint):
    """The same weights, without the rounding of activations that the record asks for."""

    def layer_record(self, role: str) -> LayerRecord | None:
        record = Checkpoint.layer_record(self, role)
        return None if record is None else msgspec.structs.replace(record, activations="float")


def in_float(checkpoint: Checkpoint) -> Checkpoint:
    return FloatActivations(*(getattr(checkpoint, field.name) for field in fields(checkpoint)))


def rounds_activations(checkpoint: Checkpoint) -> bool:
    records = [checkpoint.layer_record(role) for role in checkpoint.roles()]
    return any(record is not None and record.activations == "int8" for record in records)


def compare(
    session: ort.InferenceSession,
    spec: ModelSpec,
    prompts: list[NDArray[np.int64]],
    expected: list[NDArray[np.float32]],
    cached: bool,
) -> dict[str, Any]:
    max_abs = max_rel = 0.0
    agree = total = 0
    for ids, wanted in zip(prompts, expected, strict=True):
        for run_on in (whole, last_block) if cached else (whole,):
            rows, actual = run_on(session, spec, ids)
            difference = float(np.abs(actual - wanted[rows]).max())
            max_abs = max(max_abs, difference)
            max_rel = float(np.maximum(max_rel, difference / float(np.abs(wanted).max())))  # keeps a NaN
            agree += int((actual.argmax(-1) == wanted[rows].argmax(-1)).sum())
            total += len(actual)
    return {
        "max_abs_error": max_abs,
        "max_rel_error": max_rel,
        "argmax_agreement": agree / total,
        "prompts": len(prompts),
    }


def check(checkpoint: Checkpoint, found: dict[str, Any], bound: float, hint: str) -> None:
    if not found["max_rel_error"] <= bound:  # also true for NaN
        message = (
            f"the exported graph differs from {checkpoint.name} by {found['max_rel_error']:.2e} of the largest logit"
        )
        raise JobError("E-PARITY", f"{message}; at most {bound:.0e} is accepted", hint)


def make_prompts(checkpoint: Checkpoint) -> list[NDArray[np.int64]]:
    """Task prompts in the model's own tokens, each followed by part of a block of masks, of several lengths."""
    spec, tokenizer = checkpoint.spec, read_tokenizer(checkpoint.path / "tokenizer.json")
    prompts = []
    for n, name in enumerate(SHORT_TASKS):
        text = make_samples(name, 1, seed=7)[0].prompt
        ids = [i for i in tokenizer.encode(text, add_special_tokens=False).ids if i < spec.vocab_size]
        ids = ids[:200] + [spec.conventions.mask_id] * (3 + 5 * n)
        prompts.append(np.array(ids, np.int64))
    return prompts


def read_tokenizer(path: Path) -> Tokenizer:
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises the bare class
        raise InputFileError("E-TOK", f"{path}: {error}", "download the tokenizer again") from error


def open_session(graph_path: Path, native: bool) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 3  # TensorScatter warns at every copy; here the copies are wanted
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if not has_dots_of_bytes():
        options.add_session_config_entry("session.x64quantprecision", "1")  # products that do not saturate
    if native:
        kernels.register(options)
    # Folding would keep a float copy of every int8 weight that the exact twin casts.
    return ort.InferenceSession(
        str(graph_path), options, providers=["CPUExecutionProvider"], disabled_optimizers=["ConstantFolding"]
    )


def whole(session: ort.InferenceSession, spec: ModelSpec, ids: NDArray[np.int64]) -> tuple[slice, NDArray[np.float32]]:
    """Every row in one window, nothing cached."""
    logits, _ = run(session, spec, ids, 0, 0, np.arange(len(ids)), empty_caches(session, len(ids)))
    return slice(None), logits


def last_block(
    session: ort.InferenceSession, spec: ModelSpec, ids: NDArray[np.int64]
) -> tuple[slice, NDArray[np.float32]]:
    """The rows from the last block border on, over caches that an earlier run filled."""
    length = spec.conventions.block_length
    start = (len(ids) - 1) // length * length
    rows = slice(start, len(ids))
    caches = empty_caches(session, len(ids) + 3)
    full = spec.conventions.attention == "full"
    filled = ids if full else ids[:start]  # full attention: the exact caches are those of the whole sequence
    if len(filled):
        _, caches = run(session, spec, filled, 0, 0, np.arange(0), caches)
    logits, _ = run(session, spec, ids[rows], start, len(filled), np.arange(len(ids) - start), caches)
    return rows, logits


def run(
    session: ort.InferenceSession,
    spec: ModelSpec,
    ids: NDArray[np.int64],
    start: int,
    cache_len: int,
    logit_rows: NDArray[np.int64],
    caches: dict[str, NDArray[Any]],
    policy: Policy = EXACT_POLICY,
) -> tuple[NDArray[np.float32], dict[str, NDArray[Any]]]:
    """Logits of the rows asked for, and the caches and state afterwards."""
    pattern = spec.conventions.attention
    block = {"full": FULL, "causal": 1, "block_causal": spec.conventions.block_length}[pattern]
    # Nothing is stored in the host's layouts: caches of codes stay empty.
    scalars = {"start": start, "cache_len": cache_len, "attn_block": block, "stored_rows": 0, "stored_keys": 0}
    scalars["planes"] = BOTH
    feeds: dict[str, Any] = {name: np.array([value], np.int64) for name, value in scalars.items()}
    feeds["policy"] = np.array(
        [astuple(replace(policy, page_size=start + len(ids) + cache_len))] * spec.n_layers
    )  # one page
    feeds |= {
        "drift": np.array([np.inf], np.float32),
        "input_ids": ids[None],
        "logit_rows": logit_rows.astype(np.int64),
    }
    names = [output.name for output in session.get_outputs()]
    known = {given.name for given in session.get_inputs()}  # not every layout has all
    feeds = {name: value for name, value in feeds.items() if name in known}
    written = dict(zip(names, session.run(names, feeds | caches), strict=True))
    return written["logits"], {name: written.get(name.replace(".", "_out."), old) for name, old in caches.items()}


def empty_caches(session: ort.InferenceSession, capacity: int) -> dict[str, NDArray[Any]]:
    """Caches full of NaN, so that a key that should not be seen shows at once; one page, state of one row."""
    sizes = {"capacity": capacity, "groups": capacity}
    arrays = {}
    for given in session.get_inputs():
        if "." in given.name:
            shape = [size if isinstance(size, int) else sizes.get(size, 1) for size in given.shape]
            empty = np.nan if given.name.startswith(("k_cache", "v_cache")) and "float" in given.type else 0
            arrays[given.name] = np.full(shape, empty, DTYPES[given.type])
    return arrays
