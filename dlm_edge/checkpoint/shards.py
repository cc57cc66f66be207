"""Which files hold the weights: one file, or what the index names. The index decides, never a glob."""

from __future__ import annotations

import logging
import re
from pathlib import Path

from dlm_edge.checkpoint.safetensors_header import TensorEntry, read_header
from dlm_edge.checkpoint.strict_json import read_json_object, shorten
from dlm_edge.errors import InputFileError

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
MAX_INDEX_BYTES = 64 << 20
SHARD = re.compile(r"model-\d+-of-\d+\.safetensors")
PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".npy", ".npz")

log = logging.getLogger("dlm_edge")


def read_tensors(folder: Path) -> dict[str, TensorEntry]:
    """Every tensor of the checkpoint by name. Raises E-SHARD, E-PICKLE, or what `read_header` raises."""
    try:
        names = sorted(path.name for path in folder.iterdir())
    except OSError as error:
        raise InputFileError(
            "E-FILE", f"{folder} cannot be listed: {error.strerror}", "check its permissions"
        ) from error
    if INDEX in names:
        return _read_sharded(folder, names)
    loose = [name for name in names if SHARD.fullmatch(name)]
    if SINGLE in names:
        if loose:
            raise _shard(folder, f"{SINGLE} lies beside {_some(loose)}", "remove one of the two checkpoints")
        _say_ignored(folder, names, {SINGLE})
        return read_header(folder / SINGLE)
    if loose:
        raise _shard(folder, f"{_some(loose)} without {INDEX}", "incomplete download? fetch the index too")
    pickled = [name for name in names if name.endswith(PICKLED)]
    if pickled:
        raise InputFileError(
            "E-PICKLE",
            f"{folder} holds its weights in {_some(pickled)}, which dlm-edge never opens",
            "convert them to safetensors on a machine where you trust them",
        )
    raise _shard(folder, f"neither {SINGLE} nor {INDEX} is there", "incomplete download? fetch the weights")


def _read_sharded(folder: Path, names: list[str]) -> dict[str, TensorEntry]:
    where = _read_index(folder)
    shards = sorted(set(where.values()))
    missing = [name for name in shards if name not in names]
    if missing:
        raise _shard(
            folder,
            f"{len(missing)} of {len(shards)} weight files are missing: {_some(missing)}",
            "incomplete download?",
        )
    extra = [n for n in names if n not in shards and (n == SINGLE or SHARD.fullmatch(n))]
    if extra:
        raise _shard(folder, f"{_some(extra)} is not named by {INDEX}", "remove the files of the other checkpoint")
    _say_ignored(folder, names, set(shards))
    tensors: dict[str, TensorEntry] = {}
    for shard in shards:
        for name, entry in read_header(folder / shard).items():
            if where.get(name) != shard:
                listed = f"in {where[name]}" if name in where else "nowhere"
                raise _shard(
                    folder, f"{name} lies in {shard}, the index lists it {listed}", "download the checkpoint again"
                )
            tensors[name] = entry
    absent = [name for name in where if name not in tensors]
    if absent:
        raise _shard(folder, f"{where[absent[0]]} does not hold {_some(absent)}", "download the checkpoint again")
    return tensors


def _read_index(folder: Path) -> dict[str, str]:
    path = folder / INDEX
    where = read_json_object(path, MAX_INDEX_BYTES).get("weight_map")
    if not isinstance(where, dict) or not where:
        raise _shard(folder, f"{INDEX} has no weight_map", "download the index again")
    for name, file in where.items():
        plain = isinstance(file, str) and re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}\.safetensors", file)
        if not plain:
            raise _shard(
                folder,
                f"{INDEX} puts {shorten(name)} into {shorten(str(file))}, not a plain file name",
                "check its source",
            )
    return where


def _say_ignored(folder: Path, names: list[str], used: set[str]) -> None:
    others = [name for name in names if name.endswith(".safetensors") and name not in used]
    if others:
        log.warning("%s: %s is not part of this checkpoint and is not read", folder, _some(others))


def _some(names: list[str]) -> str:
    shown = ", ".join(shorten(name)[1:-1] for name in names[:4])
    return shown + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def _shard(folder: Path, what: str, hint: str) -> InputFileError:
    return InputFileError("E-SHARD", f"{folder}: {what}", hint)
