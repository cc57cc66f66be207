"""Text that every Python installation carries: the sources of its standard library, one file in twenty held out."""

from __future__ import annotations

import hashlib
import sysconfig
from pathlib import Path

SKIPPED = {
    *("test", "tests", "site-packages", "dist-packages", "idlelib", "lib2to3", "ensurepip"),
    *("turtledemo", "__pycache__", "encodings", "pydoc_data"),
}


def python_sources(*, held_out: bool) -> list[str]:
    """Texts of the training or of the held-out part, split by a hash of the file name, in name order."""
    root = Path(sysconfig.get_paths()["stdlib"])
    texts = []
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root)
        in_held_out = hashlib.sha256(name.as_posix().encode()).digest()[0] % 20 == 0
        if SKIPPED & set(name.parts) or in_held_out != held_out:
            continue
        text = path.read_text("utf-8", "ignore")
        if len(text) > 400:
            texts.append(text)
    return texts
