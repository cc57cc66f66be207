"""Run the examples of the README and of every page under docs/, each page in an empty folder of its own, in order.

python tools/run_readme.py [PAGE ...]

How an example is written and marked: tools/doc_examples.py.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from doc_examples import Example, examples, needed

ROOT = Path(__file__).resolve().parent.parent
LIMIT_S = 300  # of one command
PREPARED = {  # what a page may ask for, in the order in which it is made
    "packed": "dlm-edge quantize reference -o packed --method rtn --bits 4 --group-size 32",
    "bundle": "dlm-edge export packed -o bundle",
}


class Runner:
    """Commands in a folder, in process groups of their own, so that whatever they leave running can be ended."""

    def __init__(self, folder: Path, env: dict[str, str]) -> None:
        self.folder, self.env = folder, env

    def run(self, command: list[str], *, quiet: bool = False) -> None:
        """Raises CalledProcessError or TimeoutExpired."""
        sink = subprocess.DEVNULL if quiet else None
        process = subprocess.Popen(
            command, cwd=self.folder, env=self.env, stdin=subprocess.DEVNULL, stdout=sink, stderr=sink,
            start_new_session=True,
        )  # fmt: skip
        try:
            code = process.wait(LIMIT_S)
        finally:
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            process.wait()
        if code:
            raise subprocess.CalledProcessError(code, command)

    def run_example(self, example: Example) -> None:
        for command in example.commands:
            shown = (
                command.splitlines()[0] if example.language == "console" else f"{example.language} at {example.line}"
            )
            print("$", shown, flush=True)
            python = [sys.executable, "-c", command]
            self.run(python if example.language == "python" else ["bash", "-euc", command])


def run_page(page: Path, store: Path, env: dict[str, str]) -> float:
    """Seconds that the page took; what it needs is made once, and copied."""
    todo = [example for example in examples(page) if example.reason is None]
    for name in (name for name in PREPARED if name in needed(page) or (name == "packed" and "bundle" in needed(page))):
        if not (store / name).exists():
            print("$", PREPARED[name], flush=True)
            Runner(store, env).run(["bash", "-euc", PREPARED[name]], quiet=True)
    began = time.monotonic()
    folder = Path(tempfile.mkdtemp(dir=store))
    for name in needed(page):
        shutil.copytree(store / name, folder / name)
    for example in todo:
        try:
            Runner(folder, env).run_example(example)
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
            raise SystemExit(f"{page.relative_to(ROOT)}:{example.line}: {error}") from None
    shutil.rmtree(folder)
    return time.monotonic() - began


def main(arguments: list[str]) -> int:
    pages = [Path(name).resolve() for name in arguments] or [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    store = Path(tempfile.mkdtemp())
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    folders = {f"XDG_{kind}_HOME": str(store / kind.lower()) for kind in ("CACHE", "CONFIG", "STATE", "DATA")}
    env = {**os.environ, **folders, "PATH": path}
    try:
        for page in pages:
            print(f"== {page.relative_to(ROOT)}", flush=True)
            seconds = run_page(page, store, env)
            shown = [example for example in examples(page) if example.reason is not None]
            for example in shown:
                print(f"not run: line {example.line}, {example.reason}")
            print(f"{seconds:.0f} s", flush=True)
    finally:
        shutil.rmtree(store)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
