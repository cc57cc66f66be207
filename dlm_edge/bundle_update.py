"""Changing an exported bundle so that a process killed at any moment leaves one that opens and verifies.

Files come before the manifest that lists them. A file that takes the place of a listed one is first taken off the list:
between the two manifests the bundle is one without that file, never one whose file has another hash.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

import msgspec

from dlm_edge import files
from dlm_edge.bundle import MANIFEST_NAME, MAX_MANIFEST_BYTES, FileEntry, Manifest, open_bundle
from dlm_edge.errors import JobError
from dlm_edge.output_lock import only_writer

REQUIRED = ("model.onnx", "tokenizer.json", MANIFEST_NAME)  # a bundle cannot do without them for a moment


def update_manifest(
    bundle: Path,
    change: Callable[[Manifest], Manifest],
    new_files: Mapping[str, bytes] = MappingProxyType({}),
) -> Manifest:
    """Write `new_files`, by plain names, and then the manifest that `change` makes of the present one.

    `change` leaves the list of files alone: name, size and sha256 of the new ones are entered afterwards. It sees what
    earlier updates wrote, and nobody else changes the bundle meanwhile, so it has to be quick. Returns the manifest
    written. Raises E-MANIFEST (no whole bundle), E-BUSY (another process changes it) and E-IO.
    """
    for name in new_files:
        assert Path(name).name == name and name not in REQUIRED, name
    with only_writer(bundle, "wait for it"):
        files.remove_leftovers(bundle)
        before = open_bundle(bundle).manifest
        listed = {entry.name: entry for entry in before.files}
        fresh = {name: entry_of(name, data) for name, data in new_files.items()}
        differ = {name for name, entry in fresh.items() if not is_there(bundle, listed.get(name), entry)}
        changed = change(before)
        assert changed.files == before.files, "files are listed here"
        after = msgspec.structs.replace(changed, files=merged(before, fresh))
        text = encode(bundle, after)
        if differ & set(listed):
            kept = tuple(entry for entry in before.files if entry.name not in differ)
            files.write_file(bundle / MANIFEST_NAME, encode(bundle, msgspec.structs.replace(before, files=kept)))
        for name in sorted(differ):
            files.write_file(bundle / name, new_files[name])
        files.write_file(bundle / MANIFEST_NAME, text)
    return after


def entry_of(name: str, data: bytes) -> FileEntry:
    return FileEntry(name=name, size=len(data), sha256=hashlib.sha256(data).hexdigest())


def is_there(bundle: Path, listed: FileEntry | None, entry: FileEntry) -> bool:
    return listed == entry and files.sha256_of(bundle / entry.name) == entry.sha256


def merged(manifest: Manifest, fresh: Mapping[str, FileEntry]) -> tuple[FileEntry, ...]:
    """The manifest's entries with the fresh ones, by name."""
    every = {entry.name: entry for entry in manifest.files} | dict(fresh)
    return tuple(every[name] for name in sorted(every))


def encode(bundle: Path, manifest: Manifest) -> bytes:
    text = msgspec.json.format(msgspec.json.encode(manifest), indent=2)
    if len(text) > MAX_MANIFEST_BYTES:  # nobody could open it
        message = f"the manifest of {bundle} would have {len(text)} bytes, more than {MAX_MANIFEST_BYTES}"
        raise JobError("E-MANIFEST", message, "measure fewer settings")
    return text
