"""`dlm-edge doctor`: what works here, and what repairs the rest."""

from __future__ import annotations

import click

from dlm_edge.cli.output import print_json


@click.command("doctor")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_context
def command(context: click.Context, as_json: bool) -> None:
    """Check the installation; exit code 5 when something necessary is broken."""
    import msgspec

    from dlm_edge.diagnosis import diagnose

    found = diagnose()
    if as_json:
        print_json(msgspec.to_builtins(found))
    else:
        runtime, native = found.onnxruntime, found.native_operators
        print(f"dlm-edge          {found.version}, Python {found.python}, {found.platform}")
        print(f"onnxruntime       {runtime['distribution']} {runtime['version']}: {', '.join(runtime['providers'])}")
        print(f"native operators  {native['simd'] or 'none'}")
        print(f"gpu               {found.gpu or 'none'}")
        for name, version in found.packages.items():
            print(f"{name:16}  {version or 'not installed'}")
        for finding in found.findings:
            print(f"{finding['level']:16}  {finding['message']}; {finding['hint']}")
        print("ok" if found.ok else "broken")
    if not found.ok:
        context.exit(5)
