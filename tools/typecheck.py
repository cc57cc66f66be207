"""Run mypy --strict on a copy of the sources laid out as they are installed (dlm_edge/quant, ...)."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VIEW = ROOT / "build" / "typecheck"
FOLDERS = {"dlm_edge": "dlm_edge", "quant": "dlm_edge/quant", "export": "dlm_edge/export"}
FOLDERS |= {"runtime": "dlm_edge/runtime", "kernels": "dlm_edge/kernels"}


def main() -> int:
    shutil.rmtree(VIEW, ignore_errors=True)
    ignore = shutil.ignore_patterns("csrc", "*.so", "__pycache__", "reference_models")
    for folder, target in FOLDERS.items():
        shutil.copytree(ROOT / folder, VIEW / target, ignore=ignore)
    command = [sys.executable, "-m", "mypy", "--config-file", str(ROOT / "pyproject.toml")]
    command += ["--cache-dir", str(ROOT / ".mypy_cache"), "dlm_edge"]
    done = subprocess.run(command, cwd=VIEW, env={**os.environ, "MYPYPATH": "."}, capture_output=True, text=True)
    # Name the files as they lie in the repository.
    print(re.sub(r"^dlm_edge/(quant|export|runtime|kernels)/", r"\1/", done.stdout, flags=re.MULTILINE), end="")
    print(done.stderr, end="", file=sys.stderr)
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
