"""The exported folder: what its manifest says, and how it is opened without executing anything from it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from dlm_edge import files
from dlm_edge.errors import InputFileError, UsageProblem
from dlm_edge.families.spec import ModelSpec
from dlm_edge.nearest import unknown_field

MANIFEST_NAME = "manifest.json"
MANIFEST_SCHEMA = 3
FILTER_NAME = "filter.safetensors"  # of the sampler learn2pd, see runtime/learned_filter.py
MAX_MANIFEST_BYTES = 4 << 20


class FileEntry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    name: str
    size: int
    sha256: str


class Manifest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    schema: int
    tool_version: str
    target: str  # cpu or cuda
    model: ModelSpec
    operator_version: int
    opset: int
    cache_layout: str  # a name of runtime/layouts
    cache_group: int  # values that share a scale, where the layout has any
    profile: str  # a name of export/profiles.py: how the packed weights run; empty for cuda
    quantization: dict[str, Any] | None
    nodes: tuple[
        dict[str, Any], ...
    ]  # per packed weight: name, form, bits, group_size, zero, activations, accuracy_level
    sampler_defaults: dict[str, Any]
    parity: dict[str, Any]
    measured: dict[str, Any]
    files: tuple[FileEntry, ...]


@dataclass(frozen=True, slots=True)
class Bundle:
    path: Path
    manifest: Manifest

    @property
    def graph_path(self) -> Path:
        return self.path / "model.onnx"

    @property
    def tokenizer_path(self) -> Path:
        return self.path / "tokenizer.json"

    @property
    def chat_template_path(self) -> Path | None:
        name = "chat_template.jinja"
        return self.path / name if any(entry.name == name for entry in self.manifest.files) else None

    @property
    def filter_path(self) -> Path | None:
        return self.path / FILTER_NAME if any(entry.name == FILTER_NAME for entry in self.manifest.files) else None

    @property
    def graph_hash(self) -> str:
        """Names what the caches of this bundle mean: graph, weights and layout, by the hashes in the manifest."""
        manifest = self.manifest
        graph = [f"{entry.name} {entry.sha256}" for entry in manifest.files if entry.name.startswith("model.onnx")]
        lines = [*sorted(graph), f"{manifest.cache_layout} {manifest.cache_group}"]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()

    @property
    def size_bytes(self) -> int:
        return sum(entry.size for entry in self.manifest.files)


def is_bundle(path: Path) -> bool:
    return (path / MANIFEST_NAME).is_file()


def open_bundle(path: Path, *, verify_hashes: bool = False) -> Bundle:
    """Read and check the manifest and the sizes of all files it lists; hashes too when asked.

    Raises E-MANIFEST (missing, malformed, another schema, a file that differs) and never reads a file
    that the manifest does not name.
    """
    manifest = _read_manifest(path / MANIFEST_NAME)
    for entry in manifest.files:
        if Path(entry.name).name != entry.name or entry.name in ("", ".", ".."):
            raise InputFileError("E-MANIFEST", f"{path}: {entry.name!r} is not a plain file name", "export it again")
        file = path / entry.name
        if not file.is_file():
            raise InputFileError("E-MANIFEST", f"{file} is missing", "copy the whole folder, or export it again")
        if file.stat().st_size != entry.size:
            found = file.stat().st_size
            raise InputFileError(
                "E-MANIFEST", f"{file} has {found} bytes, the manifest says {entry.size}", "copy or export it again"
            )
        if verify_hashes and files.sha256_of(file) != entry.sha256:
            raise InputFileError("E-MANIFEST", f"{file} does not have the hash in the manifest", "export it again")
    absent = {"model.onnx", "tokenizer.json"} - {entry.name for entry in manifest.files}
    if absent:
        message = f"{path / MANIFEST_NAME} does not list {' and '.join(sorted(absent))}"
        raise InputFileError("E-MANIFEST", message, "export it again")
    return Bundle(path, manifest)


def _read_manifest(path: Path) -> Manifest:
    if not path.is_file():
        hint = "give the folder that `dlm-edge export` wrote"
        raise InputFileError("E-MANIFEST", f"{path.parent} holds no {MANIFEST_NAME}", hint)
    if path.stat().st_size > MAX_MANIFEST_BYTES:
        raise InputFileError("E-MANIFEST", f"{path} is larger than {MAX_MANIFEST_BYTES} bytes", "export it again")
    try:
        manifest = msgspec.json.decode(path.read_bytes(), type=Manifest)
    except msgspec.DecodeError as error:
        known = {*Manifest.__struct_fields__, *FileEntry.__struct_fields__, *ModelSpec.__struct_fields__}
        message = f"{path}: {error}{unknown_field(str(error), known)}"
        raise InputFileError("E-MANIFEST", message, "export it again with this version") from error
    if manifest.schema != MANIFEST_SCHEMA:
        message = f"{path} has schema {manifest.schema}, this version reads {MANIFEST_SCHEMA}"
        raise InputFileError("E-MANIFEST", message, "export it again with this version")
    _check_cache(path, manifest)
    return manifest


def _check_cache(path: Path, manifest: Manifest) -> None:
    from dlm_edge.runtime.layouts import CacheShape, open_layout  # the runtime itself imports this file

    try:
        open_layout(manifest.cache_layout, CacheShape.of(manifest.model), 0, group=manifest.cache_group)
    except UsageProblem as error:
        raise InputFileError("E-MANIFEST", f"{path}: {error.message}", "export it again with this version") from error
