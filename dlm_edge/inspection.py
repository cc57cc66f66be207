"""`inspect_artefact`: what a folder holds, from its headers alone; no weight is read. `inspect_outliers` runs its layers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from dlm_edge import files
from dlm_edge.bundle import is_bundle, open_bundle
from dlm_edge.errors import UsageProblem
from dlm_edge.families.spec import ModelSpec
from dlm_edge.runtime.layouts import CacheShape, bytes_per_token, default_group
from dlm_edge.tuning.record import read_record


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
    cache_layout: str
    cache_bytes_per_token: float
    quantization: dict[str, Any] | None
    profile: dict[str, Any] | None = None  # of a bundle: name, and what `--profile auto` measured when it chose it
    sampler_defaults: dict[str, Any] | None = None  # of a bundle: what generate does unless told otherwise
    tuned: dict[str, Any] | None = None  # of a bundle: what `dlm-edge tune` measured when it chose them
    outliers: list[dict[str, Any]] | None = None  # profiles of the linear inputs, and what w8a8 does about them


def inspect_outliers(
    path: str | Path,
    *,
    calib_data: Path | None = None,
    seed: int = 0,
    plot: Path | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> list[dict[str, Any]]:
    """The outliers of every linear input of a checkpoint on calibration states: fields of `quant.outliers.InputProfile`.

    `plot`: an SVG file to write, the map of them. Raises E-USAGE for a bundle or a plot that has no place, E-TOK,
    E-CALIB, E-NAN, E-IO, and what opening the checkpoint raises.
    """
    if is_bundle(Path(path)):
        message = f"{path} is a bundle; outliers are found in the checkpoint it was made from"
        raise UsageProblem("E-USAGE", message, "give the checkpoint's folder")
    from dlm_edge.checkpoint import open_checkpoint
    from dlm_edge.quant.outlier_map import outlier_map
    from dlm_edge.quant.outliers import profile_outliers

    if plot is not None:
        check_place(plot)
    profiles = profile_outliers(open_checkpoint(path), calib_data=calib_data, seed=seed, progress=progress)
    if plot is not None:
        files.write_file(plot, outlier_map(profiles))
    return [msgspec.to_builtins(profile) for profile in profiles]


def check_place(plot: Path) -> None:
    """Before minutes of work, not after them."""
    if not plot.parent.is_dir():
        raise UsageProblem("E-USAGE", f"the folder {plot.parent} for the plot does not exist", "create it first")
    if plot.is_dir():
        raise UsageProblem("E-USAGE", f"{plot} is a folder", "name a file, as in outliers.svg")


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
        cache=("kv-fp32", default_group("kv-fp32")),
        quantization=None if record is None else _summary(msgspec.to_builtins(record)),
    )


def _bundle(path: Path) -> Inspection:
    bundle = open_bundle(path)
    manifest = bundle.manifest
    described = _describe(
        manifest.model,
        kind="bundle",
        size_bytes=bundle.size_bytes,
        dtypes=dict(Counter(str(node.get("form", "packed")) for node in manifest.nodes)),
        cache=(manifest.cache_layout, manifest.cache_group),
        quantization=None if manifest.quantization is None else _summary(manifest.quantization),
    )
    record = read_record(manifest)
    return msgspec.structs.replace(
        described,
        profile={"name": manifest.profile, "measured": manifest.measured.get("profile")},
        sampler_defaults=manifest.sampler_defaults,
        tuned=None if record is None else msgspec.to_builtins(record),
    )


def _describe(
    spec: ModelSpec,
    *,
    kind: str,
    size_bytes: int,
    dtypes: dict[str, int],
    cache: tuple[str, int],
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
        cache_layout=cache[0],
        cache_bytes_per_token=bytes_per_token(cache[0], CacheShape.of(spec), group=cache[1]),
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
