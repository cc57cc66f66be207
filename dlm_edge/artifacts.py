"""From what a user names (a bundle, a checkpoint, `reference`) to a bundle that can be opened."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable
from pathlib import Path

from platformdirs import user_cache_path

from dlm_edge import __version__
from dlm_edge.bundle import is_bundle, open_bundle
from dlm_edge.errors import EnvironmentProblem

GRAPH = 3  # one more when exported graphs differ from those of before, which stay valid and lack what is new


def resolve_bundle(name: str | Path, *, say: Callable[[str], None] | None = None) -> Path:
    """The bundle itself, or one exported from the checkpoint `name` into the user's cache folder.

    The cached bundle is found by the size and time of the source's files, so a changed source is exported again;
    one line says what is done, on stderr unless `say` is given.
    """
    path = Path(name)
    if is_bundle(path):
        return path
    try:
        from dlm_edge.checkpoint import open_checkpoint
        from dlm_edge.export import export
    except ImportError as error:
        hint = "pip install 'dlm-edge[export]', or give the folder of an exported bundle"
        raise EnvironmentProblem(
            "E-DEPENDENCY", f"{name} is no bundle, and exporting it needs {error.name}", hint
        ) from error
    checkpoint = open_checkpoint(name)
    cached = cache_folder() / f"{checkpoint.name}-{identity(checkpoint.path)}"
    if is_bundle(cached):
        open_bundle(cached)
        return cached
    line = f"exporting {checkpoint.name} to {cached}"
    if say is None:
        print(line, file=sys.stderr)
    else:
        say(line)
    export(name, cached, restart=cached.exists())
    return cached


def cache_folder() -> Path:
    return user_cache_path("dlm-edge", appauthor=False) / "bundles"


def identity(folder: Path) -> str:
    """Changes with any file of the folder, with our version, and with the graph that is exported."""
    listing = [(p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in sorted(folder.iterdir()) if p.is_file()]
    return hashlib.sha256(json.dumps([__version__, GRAPH, str(folder.resolve()), listing]).encode()).hexdigest()[:16]
