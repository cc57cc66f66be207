"""`dlm-edge completion`: the script with which a shell completes verbs and flags."""

from __future__ import annotations

import click

from dlm_edge.cli.output import print_json

SHELLS = ("bash", "zsh", "fish", "powershell")
PROGRAM = "dlm-edge"
INSTALL = {
    "bash": 'add to ~/.bashrc: eval "$(dlm-edge completion bash)"',
    "zsh": 'add to ~/.zshrc: eval "$(dlm-edge completion zsh)"',
    "fish": "dlm-edge completion fish > ~/.config/fish/completions/dlm-edge.fish",
    "powershell": "add to $PROFILE: dlm-edge completion powershell | Out-String | Invoke-Expression",
}


@click.command("completion", epilog="\b\n" + "\n".join(f"{shell}: {how}" for shell, how in INSTALL.items()))
@click.argument("shell", type=click.Choice(SHELLS))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(shell: str, as_json: bool) -> None:
    """Print the completion script for SHELL."""
    script = script_for(shell)
    if as_json:
        print_json({"shell": shell, "script": script, "install": INSTALL[shell]})
    else:
        print(script, end="" if script.endswith("\n") else "\n")


def script_for(shell: str) -> str:
    """No shell is started for it, so any of the scripts can be made on any system."""
    from click.shell_completion import get_completion_class

    from dlm_edge.cli import powershell
    from dlm_edge.cli.program import COMPLETION_VARIABLE, program

    assert powershell.SOURCE
    found = get_completion_class(shell)
    assert found is not None, shell
    maker = found(program, {}, PROGRAM, COMPLETION_VARIABLE)
    script: str = maker.source_template % maker.source_vars()
    return script
