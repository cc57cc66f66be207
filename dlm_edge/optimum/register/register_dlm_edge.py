"""`optimum-cli dlm-edge VERB ...`: every word after the verb goes to `dlm-edge VERB` as it is.

Installed as optimum/commands/register/register_dlm_edge.py, where optimum-cli looks for commands at every start:
nothing of dlm-edge is imported before a verb runs. That folder is a namespace shared by several distributions
(PEP 420), so it must never get an __init__.py.
"""

from __future__ import annotations

import sys
from argparse import REMAINDER, ArgumentParser

from optimum.commands.base import BaseOptimumCLICommand, CommandInfo

PROGRAM = "optimum-cli dlm-edge"
NO_PREFIX = "\0"  # a character that no command line can contain


class VerbCommand(BaseOptimumCLICommand):
    """A verb of dlm-edge; optimum hands in its name as COMMAND."""

    @staticmethod
    def parse_args(parser: ArgumentParser) -> None:
        # Without a prefix character --help and -o are words like any other: dlm-edge alone defines the options.
        parser.prefix_chars = NO_PREFIX
        parser.add_argument("words", nargs=REMAINDER)

    def run(self) -> None:
        from dlm_edge.cli import main

        sys.exit(main([self.COMMAND.name, *self.args.words], program_name=PROGRAM))


class DlmEdgeCommand(BaseOptimumCLICommand):
    COMMAND = CommandInfo(name="dlm-edge", help="Quantize and export diffusion language models.")
    SUBCOMMANDS = (
        CommandInfo("quantize", "Quantize a checkpoint, as `dlm-edge quantize` does.", VerbCommand),
        CommandInfo("export", "Export a checkpoint to ONNX, as `dlm-edge export` does.", VerbCommand),
    )


REGISTER_COMMANDS = [DlmEdgeCommand]
