"""`convert`: a quantized checkpoint in the layout of another tool, so that vLLM, SGLang or LMDeploy can serve it."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import msgspec

import dlm_edge
from dlm_edge import files
from dlm_edge.checkpoint import Checkpoint, open_checkpoint
from dlm_edge.checkpoint.formats import WRITERS
from dlm_edge.checkpoint.formats.imatrix import gguf_name, read_imatrix
from dlm_edge.converted_folder import IMATRIX_NAME, Conversion
from dlm_edge.errors import InputFileError, JobError, ResourceError, UsageProblem
from dlm_edge.nearest import nearest
from dlm_edge.work_folder import WorkFolder

IMATRIX = "imatrix"
FORMATS = (*WRITERS, IMATRIX)


class ConversionReport(msgspec.Struct, frozen=True, kw_only=True):
    """Keys of `dlm-edge convert --json`."""

    output: str
    format: str
    size_bytes: int
    layers: int
    notes: list[str]
    seconds: float


def convert(
    checkpoint: str | Path,
    out: str | Path,
    *,
    format: str,
    restart: bool = False,
    progress: Callable[[str], None] | None = None,
) -> ConversionReport:
    """Write the folder `out` in `format`: gptq, gptq_v2, awq or compressed-tensors; or the file `out`: imatrix.

    Codes, scales and zeros stay what they are; what the format cannot hold is refused with E-QUANT before anything is
    written. Raises E-EXISTS, E-IO and whatever opening the checkpoint raises. `restart` replaces an earlier output.
    """
    started, out = time.perf_counter(), Path(out)
    if format not in FORMATS:
        raise UsageProblem("E-USAGE", f"format {format!r} is not known", nearest(format, FORMATS))
    source, say = open_checkpoint(checkpoint), progress or (lambda _: None)
    if out.resolve() == source.path.resolve():
        raise UsageProblem("E-USAGE", f"{out} is the checkpoint itself", "choose another folder with -o")
    if format == IMATRIX:
        n_layers, notes = copy_imatrix(source, out, restart), []
    else:
        job = Conversion(source, format, say)
        check_space(job, out)
        fingerprint = {"job": "convert", "source": str(source.path.resolve()), "version": dlm_edge.__version__}
        with WorkFolder.open(out, fingerprint, resume=False, restart=restart, discard_unfinished=True) as work:
            job.write(work.path)
            source.check_unchanged()
            work.finish()
        n_layers, notes = len(job.layers), job.notes
    size = out.stat().st_size if out.is_file() else sum(f.stat().st_size for f in out.iterdir())
    return ConversionReport(
        output=str(out),
        format=format,
        size_bytes=size,
        layers=n_layers,
        notes=notes,
        seconds=time.perf_counter() - started,
    )


def check_space(job: Conversion, out: Path) -> None:
    needed = sum(t.size_bytes for role in job.source.roles() for t in job.stored(role)) + (16 << 20)
    free = files.free_bytes(out.absolute().parent)
    if free < needed:
        message = f"{out} needs {needed >> 20} MiB, {free >> 20} MiB are free"
        raise ResourceError("E-IO", message, "free some space or choose another folder")


def copy_imatrix(source: Checkpoint, out: Path, restart: bool) -> int:
    """Check the imatrix that quantizing left in the checkpoint, and write it to the file `out`; returns its entries."""
    path = source.path / IMATRIX_NAME
    if not path.is_file():
        message = f"{source.name} holds no {IMATRIX_NAME}"
        raise JobError("E-QUANT", message, "quantize with a calibrated method and --imatrix")
    found = read_imatrix(path)
    layers = [role for role in source.roles() if role.startswith("layers.") and len(source.shape(role)) == 2]
    widths = {gguf_name(role): source.shape(role)[1] for role in layers}
    strangers = [name for name, squares in found.mean_squares.items() if widths.get(name) != len(squares)]
    if strangers:
        raise InputFileError(
            "E-TENSOR", f"{path}: {strangers[0]} is no linear layer of this model", "quantize it again"
        )
    if out.exists():
        if not restart:
            hint = "choose another file with -o, or replace it with --restart"
            raise UsageProblem("E-EXISTS", f"{out} exists already", hint)
        read_imatrix(out)  # only an imatrix is ever replaced
    files.make_folder(out.parent)
    files.write_file(out, path.read_bytes())
    return len(found.mean_squares)
