"""`inspect_artefact`: what a folder holds, from its headers alone; no weight is read. `inspect_outliers` runs its layers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from dlm_edge.bundle import is_bundle, open_bundle
from dlm_edge.errors import UsageProblem
from dlm_edge.families.spec import ModelSpec


class Inspection(msgspec.Struct, frozen=True, kw_only=True):
    """Keys of `dlm-edge inspect --json`."""

    kind: str  # checkpoint, quantized or bundle
    family: str
    architecture: str
    parameters: int
    size_bytes: int
    dtypes: dict[str, int]  # number of tensors per storage type
    conventions: dict[str, Any]
    dimensions: dict[str, Any]
    cache_bytes_per_token: int
    quantization: dict[str, Any] | None
    outliers: list[dict[str, Any]] | None = None  # profiles of the linear inputs, with what W8A8 would do about them


def inspect_outliers(
    path: str | Path, *, calib_data: Path | None = None, seed: int = 0, progress: Callable[[str], None] = lambda _: None
) -> list[dict[str, Any]]:
    """The outliers of every linear input of a checkpoint on calibration states: fields of `quant.outliers.InputProfile`,
    and `treatments`, what would be done about them for int8 activations.

    Raises E-USAGE for a bundle, E-TOK, E-CALIB, E-NAN, and what opening the checkpoint raises.
    """
    if is_bundle(Path(path)):
        message = f"{path} is a bundle; outliers are found in the checkpoint it was made from"
        raise UsageProblem("E-USAGE", message, "give the checkpoint's folder")
    from dlm_edge.checkpoint import open_checkpoint
    from dlm_edge.quant.outliers import profile_outliers
    from dlm_edge.quant.treatments import choose_treatments

    checkpoint = open_checkpoint(path)
    profiles = profile_outliers(checkpoint, calib_data=calib_data, seed=seed, progress=progress)
    return [
        {**msgspec.to_builtins(p), "treatments": choose_treatments(p, checkpoint.spec, bits=8, activations="int8")}
        for p in profiles
    ]


def inspect_artefact(path: str | Path) -> Inspection:
    """Describe a checkpoint, a quantized checkpoint or a bundle; raises what opening it raises."""
    if is_bundle(Path(path)):
        return _bundle(Path(path))
    from dlm_edge.checkpoint import open_checkpoint

    checkpoint = open_checkpoint(path)
    record = checkpoint.record
    return _describe(
        checkpoint.spec,
        kind="checkpoint" if record is None else "quantized",
        size_bytes=sum(f.stat().st_size for f in checkpoint.path.iterdir() if f.is_file()),
        dtypes=dict(Counter(checkpoint.dtype(role) for role in checkpoint.roles())),
        cache_item_bytes=4,
        quantization=None if record is None else _summary(msgspec.to_builtins(record)),
    )


def _bundle(path: Path) -> Inspection:
    bundle = open_bundle(path)
    manifest = bundle.manifest
    return _describe(
        manifest.model,
        kind="bundle",
        size_bytes=bundle.size_bytes,
        dtypes=dict(Counter(str(node.get("form", "packed")) for node in manifest.nodes)) | {manifest.cache_dtype: 1},
        cache_item_bytes=2 if manifest.cache_dtype == "float16" else 4,
        quantization=None if manifest.quantization is None else _summary(manifest.quantization),
    )


def _describe(
    spec: ModelSpec,
    *,
    kind: str,
    size_bytes: int,
    dtypes: dict[str, int],
    cache_item_bytes: int,
    quantization: dict[str, Any] | None,
) -> Inspection:
    dimensions = msgspec.to_builtins(spec)
    conventions = dimensions.pop("conventions")
    return Inspection(
        kind=kind,
        family=spec.family,
        architecture=spec.architecture,
        parameters=parameter_count(spec),
        size_bytes=size_bytes,
        dtypes=dtypes,
        conventions=conventions,
        dimensions=dimensions,
        cache_bytes_per_token=2 * spec.n_layers * spec.kv_width * cache_item_bytes,
        quantization=quantization,
    )


def parameter_count(spec: ModelSpec) -> int:
    attention = spec.hidden_size * (2 * spec.q_width + 2 * spec.kv_width)
    biases = (spec.q_width + 2 * spec.kv_width) * spec.qkv_bias
    norms = 2 * spec.hidden_size + 2 * spec.head_dim * spec.qk_norm
    layer = attention + biases + norms + 3 * spec.hidden_size * spec.intermediate_size
    embeddings = spec.embedding_rows * spec.hidden_size * (1 if spec.tied_head else 2)
    return spec.n_layers * layer + embeddings + spec.hidden_size


def _summary(record: dict[str, Any]) -> dict[str, Any]:
    kept = ("method", "bits", "group_size", "seed", "calibration", "skipped", "fallbacks")
    return {key: record.get(key) for key in kept} | {"layers": len(record.get("layers") or [])}
