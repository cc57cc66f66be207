"""The application as one folder that runs on a machine without Python: python examples/desktop_app/package.py

Builds in an environment of its own, with what pyproject.toml names for the runtime and the application and nothing
else, and looks that nothing else came in. With `--start BUNDLE` it then has the result answer a prompt, in an
environment without PATH or any other variable of this one; that takes a display (xvfb-run -a in front of it will do).
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
FORBIDDEN = ("torch", "onnx", "transformers", "optimum", "triton", "huggingface_hub", "yaml", "click", "rich", "scipy")
PROGRAM = "dlm-edge-desktop"
PROMPT, ANSWER = "copy: Ada Bob Cleo =>", "Ada Bob Cleo"  # of the model `reference`


def main() -> int:
    args = parser().parse_args()
    out: Path = args.out.resolve()
    python = out / "venv" / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    if not python.exists():
        venv.create(out / "venv", with_pip=True)
    pip: list[str | Path] = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    run(*pip, "-c", ROOT / "constraints.txt", f"{args.source}[cpu,app]", "pyinstaller>=6.10")
    build: list[str | Path] = [
        "--noconfirm",
        "--log-level",
        "WARN",
        "--distpath",
        out / "dist",
        "--workpath",
        out / "work",
    ]
    run(python, "-m", "PyInstaller", *build, HERE / "package.spec", cwd=out)
    folder = out / "dist" / PROGRAM
    program = folder / (f"{PROGRAM}.exe" if sys.platform == "win32" else PROGRAM)
    foreign = sorted(set(FORBIDDEN) & set(contents(python, program)))
    if foreign:
        print(f"{folder} holds {', '.join(foreign)}", file=sys.stderr)
        return 1
    if not list(folder.rglob("libdlm_edge_ops.*")):
        print("without the native operators: models will run on standard ones, slower", file=sys.stderr)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    print(f"written   {folder}   {size / 2**20:.0f} MiB")
    return start(program, args.start.resolve()) if args.start is not None else 0


def contents(python: Path, program: Path) -> Iterator[str]:
    """Top-level names of what lies in the folder, and of the modules packed into the program."""
    for path in program.parent.glob("*/*"):
        yield path.name.split(".")[0].split("-")[0]
    script = "import sys; from PyInstaller.archive.readers import CArchiveReader as R; "
    script += "print(*R(sys.argv[1]).open_embedded_archive('PYZ.pyz').toc)"
    listed = subprocess.run([python, "-c", script, program], check=True, capture_output=True, text=True).stdout
    yield from {name.split(".")[0] for name in listed.split()}


def start(program: Path, bundle: Path) -> int:
    """Run it from a folder elsewhere, with nothing of this environment but the display."""
    keep = {name: os.environ[name] for name in ("DISPLAY", "XAUTHORITY", "QT_QPA_PLATFORM") if name in os.environ}
    elsewhere = Path(tempfile.mkdtemp())
    began = time.perf_counter()
    command: list[str | Path] = [program, bundle, "--prompt", PROMPT, "--once"]
    done = subprocess.run(
        command, cwd=elsewhere, env=keep | {"HOME": str(elsewhere)}, capture_output=True, text=True, timeout=120
    )
    shutil.rmtree(elsewhere)
    print(done.stderr, end="", file=sys.stderr)
    print(f"started   said {done.stdout.strip()!r} after {time.perf_counter() - began:.1f} s, exit {done.returncode}")
    return 0 if done.returncode == 0 and done.stdout.strip() == ANSWER else 1


def run(*command: str | Path, cwd: Path | None = None) -> None:
    subprocess.run(command, cwd=cwd, check=True)


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description="Package the desktop application with PyInstaller.")
    made.add_argument("--out", type=Path, default=ROOT / "build" / "desktop_app")
    made.add_argument("--source", default=str(ROOT), help="what pip installs: this checkout, or a wheel of it")
    made.add_argument("--start", type=Path, metavar="BUNDLE", help="an export of `reference`; run the result on it")
    return made


if __name__ == "__main__":
    sys.exit(main())
