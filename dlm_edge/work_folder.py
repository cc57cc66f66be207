"""Long jobs that survive being killed: a work folder beside the output, and a journal of what is finished.

    with WorkFolder.open(out, fingerprint, resume=True, restart=False) as work:
        if not work.is_done("layer-3"):
            ... write files under work.path ...
            work.record("layer-3", names=["layer-3.safetensors"], error=0.01)
        work.finish()

A record is one JSON line, written and synced after the files it names; a torn last line is dropped, a file
that no longer has its recorded size and hash makes its record void. `finish` renames the whole folder, so
the output is either the old one or the complete new one.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dlm_edge import files
from dlm_edge.bundle import MANIFEST_NAME
from dlm_edge.errors import UsageProblem
from dlm_edge.journal import (
    JOURNAL,
    append,
    check_fingerprint,
    check_same_job,
    drop_damage,
    files_intact,
    read_journal,
)
from dlm_edge.output_lock import only_writer
from dlm_edge.quantized import RECORD_NAME

WAIT = "wait for it, or choose another folder"
CONVERSION_NAME = "dlm_edge_conversion.json"  # what `convert` leaves in a folder of another tool's format


class WorkFolder:
    def __init__(self, out: Path, path: Path, records: dict[str, dict[str, Any]]) -> None:
        self.out, self.path, self.records = out, path, records

    @classmethod
    @contextmanager
    def open(
        cls,
        out: Path,
        fingerprint: dict[str, Any],
        *,
        resume: bool,
        restart: bool,
        discard_unfinished: bool = False,
    ) -> Iterator[WorkFolder]:
        """Lock `out`, and start or resume its work folder.

        Raises E-EXISTS when `out` is there and `restart` was not asked for (nor a replacement of it that was cut
        short is resumed) or when a folder that is not ours has the work folder's name, E-BUSY when another process
        works on `out`, E-RESUME when the started job had other settings (or none was asked to be resumed).
        `discard_unfinished`: for jobs that are cheaper to do again than to resume; only an unfinished run with the
        same "job" in its fingerprint is discarded.
        """
        if out.name in ("", ".."):
            raise UsageProblem("E-USAGE", f"{out} cannot be an output folder", "give a folder of its own with -o")
        if out.is_symlink():  # the folder it leads to is replaced, not the link
            out = out.resolve()
        path = out.with_name(out.name + ".partial")
        files.make_folder(out.parent)
        with only_writer(out, WAIT):
            recover(out)
            check_startable(out, resume=resume, restart=restart or discard_unfinished, replaces=restart)
            if (restart or discard_unfinished) and path.exists():
                check_ours(path, journal_is_proof=True)
                if not restart:
                    check_same_job(path, fingerprint)
                discard(path, out)
            yield cls(out, path, cls._start(out, path, fingerprint, resume))

    @classmethod
    def _start(cls, out: Path, path: Path, fingerprint: dict[str, Any], resume: bool) -> dict[str, dict[str, Any]]:
        lines = read_journal(path / JOURNAL)
        if lines:
            check_fingerprint(lines[0]["fingerprint"], json.loads(json.dumps(fingerprint)), path)
            files.remove_leftovers(path)
            drop_damage(path / JOURNAL, len(lines))
            return {line["key"]: line for line in lines[1:] if files_intact(path, line)}
        if path.exists():  # created, but killed before the first journal line: nothing in it counts
            check_ours(path, journal_is_proof=False)
            discard(path, out)
        files.make_folder(path)
        append(path / JOURNAL, {"fingerprint": fingerprint, "pid": os.getpid()})
        with files.io_errors(path, "cannot write"):
            files.sync_folder(path)
            files.sync_folder(path.parent)
        return {}

    def is_done(self, key: str) -> bool:
        return key in self.records

    def record(self, key: str, *, names: list[str], **info: Any) -> None:
        """Note that `key` is finished and that its files, already written, have these sizes and hashes."""
        entries = [
            {"name": n, "size": (self.path / n).stat().st_size, "sha256": files.sha256_of(self.path / n)} for n in names
        ]
        line = {"key": key, "files": entries, **info}
        append(self.path / JOURNAL, line)
        self.records[key] = line

    def finish(self) -> None:
        """Put the work folder in the place of the output; the journal goes last, so that until then a kill costs
        nothing that was finished."""
        with files.io_errors(self.out, "cannot finish"):
            old = replaced_path(self.out)
            if self.out.exists():
                files.calls.replace(self.out, old)
            files.calls.replace(self.path, self.out)
            files.sync_folder(self.out.parent)
            files.calls.unlink(self.out / JOURNAL)
            if old.exists():
                files.calls.rmtree(old)


def replaced_path(out: Path) -> Path:
    return out.with_name(f"{files.TEMPORARY}replaced-{out.name}")


def discarded_path(out: Path) -> Path:
    return out.with_name(f"{files.TEMPORARY}discarded-{out.name}")


def discard(path: Path, out: Path) -> None:
    """Remove a work folder: by a rename first, so that a kill never leaves half of one under its name."""
    with files.io_errors(path, "cannot remove"):
        files.calls.replace(path, discarded_path(out))
        files.calls.rmtree(discarded_path(out))


def check_at_once(out: Path, *, restart: bool) -> None:
    """Raise what `WorkFolder.open` would without `resume`: before work that takes its time, not after it."""
    with only_writer(out.resolve(), WAIT):
        check_startable(out.resolve(), resume=False, restart=restart)


def check_startable(out: Path, *, resume: bool, restart: bool, replaces: bool | None = None) -> None:
    """Raise E-EXISTS or E-RESUME where a run could not begin.

    `restart` discards an unfinished run, `replaces` an existing output; the same unless given."""
    path = out.with_name(out.name + ".partial")
    has_begun = bool(read_journal(path / JOURNAL))
    if out.exists() and not (restart if replaces is None else replaces) and not (resume and has_begun):
        hint = "choose another folder with -o, or replace it with --restart"
        raise UsageProblem("E-EXISTS", f"{out} exists already", hint)
    check_replaceable(out)
    if has_begun and not resume and not restart:
        hint = "continue it with --resume, or start anew with --restart"
        raise UsageProblem("E-RESUME", f"{path} holds an unfinished run", hint)


def check_ours(path: Path, *, journal_is_proof: bool) -> None:
    """Raise E-EXISTS unless `path` is a work folder: nobody else's files are ever removed.

    Without a journal that can be read only an empty folder passes: any other file is written after its first line.
    """
    names = {p.name for p in path.iterdir()} if path.is_dir() else {""}
    strangers = {n for n in names if n != JOURNAL and not n.startswith(files.TEMPORARY)}
    if strangers and not (journal_is_proof and JOURNAL in names):
        hint = "start anew with --restart" if JOURNAL in names else "move it away, or choose another folder with -o"
        raise UsageProblem("E-EXISTS", f"{path} is in the way and holds no journal that can be read", hint)


def check_replaceable(out: Path) -> None:
    """Raise E-EXISTS when `out` is there and is neither empty nor an output of ours."""
    if out.is_dir():
        ours = (out / RECORD_NAME).is_file() or (out / CONVERSION_NAME).is_file() or holds_our_manifest(out)
        if ours or not any(out.iterdir()):
            return
    elif not out.exists():
        return
    message = f"{out} is not a folder that dlm-edge wrote"
    raise UsageProblem("E-EXISTS", message, "it is never replaced; choose another folder with -o")


def holds_our_manifest(folder: Path) -> bool:
    """Many programs call a file manifest.json; ours names the version of the operators."""
    try:
        manifest = json.loads((folder / MANIFEST_NAME).read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(manifest, dict) and {"schema", "operator_version", "files"} <= set(manifest)


def recover(out: Path) -> None:
    """Mend a kill inside `finish` or `discard`: the old output goes back, or away."""
    old = replaced_path(out)
    with files.io_errors(out, "cannot recover"):
        if discarded_path(out).exists():
            files.calls.rmtree(discarded_path(out))
        if out.exists():
            if read_journal(out / JOURNAL):
                files.calls.unlink(out / JOURNAL)
            if old.exists():
                files.calls.rmtree(old)
        elif old.exists():
            files.calls.replace(old, out)
