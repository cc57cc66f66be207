"""Run every `$ dlm-edge ...` line of the README's console blocks, in order, in an empty folder."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def commands(text: str) -> list[str]:
    blocks = re.findall(r"^```console\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    return [line[2:] for block in blocks for line in block.splitlines() if line.startswith("$ dlm-edge")]


def python_blocks(text: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)


def main() -> int:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    found = commands(text)
    if not found:
        print("README.md shows no command", file=sys.stderr)
        return 1
    folder = Path(tempfile.mkdtemp())
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    env = {**os.environ, "PATH": path, "XDG_CACHE_HOME": str(folder / "cache")}
    try:
        for command in found:
            print("$", command, flush=True)
            subprocess.run(command, shell=True, cwd=folder, env=env, check=True)
        for block in python_blocks(text):
            print(">>> README example", flush=True)
            subprocess.run([sys.executable, "-c", block], cwd=folder, env=env, check=True)
    finally:
        shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
