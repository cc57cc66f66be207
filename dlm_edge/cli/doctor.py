"""`dlm-edge doctor`: what works here, and what repairs the rest."""

from __future__ import annotations

import click

from dlm_edge.cli.output import print_json
from dlm_edge.errors import EnvironmentProblem


@click.command("doctor")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_context
def command(context: click.Context, as_json: bool) -> None:
    """Check the installation and say what repairs it; exit code 5 when something necessary is broken."""
    import msgspec

    from dlm_edge.diagnosis import diagnose

    found = diagnose()
    if as_json:
        print_json(msgspec.to_builtins(found))
    else:
        runtime, native = found.onnxruntime, found.native_operators
        print(f"dlm-edge          {found.version}, Python {found.python}, {found.platform}")
        providers = ", ".join(name.removesuffix("ExecutionProvider") for name in runtime["providers"])
        print(
            f"onnxruntime       {runtime['distribution'] or 'none'} {runtime['version'] or ''}: {providers or 'broken'}"
        )
        errors = native["largest_error"]
        tested = (
            f"{len(errors)} operators within {max(errors.values()):.0e} of their definitions"
            if errors
            else "not tested"
        )
        print(f"native operators  {native['simd'] or 'none'}, {tested}")
        print(f"gpu               {found.gpu or 'none'}")
        print("packages          " + ", ".join(f"{name} {version or '-'}" for name, version in found.packages.items()))
        print("verbs             " + ", ".join(verb for verb, missing in found.verbs.items() if not missing))
        for finding in found.findings:
            print(f"{finding.level:16}  {finding.code} {finding.message}")
            print(f"{'':16}  {finding.hint}")
        print("ok" if found.ok else "broken")
    if not found.ok:
        context.exit(EnvironmentProblem.exit_code)
