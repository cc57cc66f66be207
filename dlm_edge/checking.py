"""`check`: an output folder against what its own manifest or record says, from the first byte to the last."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from dlm_edge.bundle import Bundle, is_bundle, open_bundle
from dlm_edge.errors import InputFileError, JobError

if TYPE_CHECKING:
    from dlm_edge.checkpoint import Checkpoint

PROBE, PROBE_TOKENS = "check", 8
ROWS = 4096  # of a weight in floating point, read at a time


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    code: str  # of dlm_edge.errors.CODES
    message: str
    hint: str


class Check(msgspec.Struct, kw_only=True):
    """Keys of `dlm-edge check --json`, beside `ok`."""

    path: str
    kind: str | None = None  # checkpoint, quantized or bundle; None: it could not be opened
    checked: list[str] = []  # what was looked at and found right
    findings: list[Finding] = []
    notes: list[str] = []

    @property
    def ok(self) -> bool:
        return not self.findings

    @contextmanager
    def step(self, what: str) -> Iterator[None]:
        """A problem of the folder becomes a finding. What this machine lacks (E-ORT, E-MEM) is none, and is raised."""
        try:
            yield
        except (InputFileError, JobError) as error:
            self.findings.append(Finding(code=error.code, message=error.message, hint=error.hint))
        else:
            self.checked.append(what)


def check(path: str | Path, *, progress: Callable[[str], None] = lambda _: None) -> Check:
    """Read the whole folder; nothing is written. Raises what this machine cannot do, as E-ORT and E-MEM."""
    from dlm_edge.checkpoint import open_checkpoint

    found = Check(path=str(path), checked=[], findings=[], notes=[])
    if is_bundle(Path(path)):
        found.kind = "bundle"
        check_bundle(Path(path), found, progress)
        return found
    checkpoint: Checkpoint | None = None
    with found.step("config, tokenizer and headers fit each other"):
        checkpoint = open_checkpoint(path, need_tokenizer=True)
    if checkpoint is not None:
        found.kind = "checkpoint" if checkpoint.record is None else "quantized"
        check_weights(checkpoint, found, progress)
    return found


def check_weights(checkpoint: Checkpoint, found: Check, progress: Callable[[str], None]) -> None:
    """Every weight is read as a job would read it: finite numbers, and for packed ones codes and columns that can be."""
    roles, before = checkpoint.roles(), len(found.findings)
    for number, role in enumerate(roles):
        if number % 64 == 0:
            progress(f"reading   weight {number + 1} of {len(roles)}")
        try:
            if checkpoint.load_packed(role) is None:
                n_rows = checkpoint.shape(role)[0]
                for first in range(0, n_rows, ROWS):
                    checkpoint.load_rows(role, first, min(first + ROWS, n_rows))
        except (InputFileError, JobError) as error:
            found.findings.append(Finding(code=error.code, message=error.message, hint=error.hint))
    if len(found.findings) == before:
        found.checked.append(f"{len(roles)} weights can be read and hold finite numbers")
    with found.step("the weight files did not change meanwhile"):
        checkpoint.check_unchanged()
    if found.kind == "quantized":
        found.notes.append("no hashes are recorded for weights: a code that changed into another valid one is not seen")


def check_bundle(path: Path, found: Check, progress: Callable[[str], None]) -> None:
    bundle: Bundle | None = None
    with found.step("manifest, sizes and hashes"):
        progress("reading   files and their hashes")
        bundle = open_bundle(path, verify_hashes=True)
    if bundle is None:
        return
    with found.step(f"graph and tokenizer open, {PROBE_TOKENS} tokens were generated"):
        progress("opening   graph")
        generate_some(bundle, found)


def generate_some(bundle: Bundle, found: Check) -> None:
    """With the bundle's template, if it has one. A bundle for a GPU that is not here runs on the processor, and that is said."""
    from dlm_edge.runtime import Engine
    from dlm_edge.runtime.onnxruntime_guard import load_onnxruntime
    from dlm_edge.runtime.session import PROVIDERS

    target = bundle.manifest.target
    device = target if PROVIDERS[target] in load_onnxruntime().get_available_providers() else "cpu"
    if device != target:
        found.notes.append(f"exported for {target}, which is not to be had here: checked on the {device}")
    with Engine.open(bundle.path, device) as engine:
        result = engine.generate(PROBE, max_new_tokens=PROBE_TOKENS, stop_at_eos=False)
    if result.new_tokens != PROBE_TOKENS:
        message = f"{PROBE_TOKENS} tokens were asked for, {result.new_tokens} came"
        raise JobError("E-NUM", f"{bundle.path}: {message}", "export it again, or report this")
