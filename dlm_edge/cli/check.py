"""`dlm-edge check`: is an output folder what it says it is."""

from __future__ import annotations

import click

from dlm_edge.cli.output import print_json, progress_line
from dlm_edge.errors import InputFileError


@click.command("check")
@click.argument("path")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_context
def command(context: click.Context, path: str, as_json: bool) -> None:
    """Verify a bundle (manifest, hashes, graph, a short generation) or a checkpoint (every tensor against its record).

    Exit code 3 when something is wrong with the folder; nothing is changed.
    """
    import msgspec

    from dlm_edge.checking import check

    found = check(path, progress=progress_line)
    if as_json:
        print_json({"ok": found.ok} | msgspec.to_builtins(found))
    else:
        print(f"{found.kind or 'folder'}   {path}: " + ("ok" if found.ok else "not ok"))
        for line in found.checked:
            print(f"checked   {line}")
        for note in found.notes:
            print(f"note      {note}")
        for finding in found.findings:
            print(f"{finding.code}   {finding.message}; {finding.hint}")
    if not found.ok:
        context.exit(InputFileError.exit_code)
