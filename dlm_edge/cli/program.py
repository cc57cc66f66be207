"""The command group, and the one place where errors become messages and exit codes."""

from __future__ import annotations

import difflib
import errno
import importlib
import json
import os
import sys
import traceback
from collections.abc import Sequence

try:
    import click
except ImportError:  # the library works without it, the command line does not
    print("error E-DEPENDENCY: the command line needs click, pip install 'dlm-edge[cli]'", file=sys.stderr)
    raise SystemExit(5) from None

from dlm_edge import __version__
from dlm_edge.cli.common_options import with_common_options
from dlm_edge.errors import DlmEdgeError, InputFileError, InternalError, ResourceError, Stopped, UsageProblem
from dlm_edge.verbs import VERBS

COMPLETION_VARIABLE = "_DLM_EDGE_COMPLETE"  # set by the scripts of `dlm-edge completion`


class LazyVerbs(click.Group):
    """Imports a verb only when it is asked for: `--help` needs neither numpy nor torch."""

    def list_commands(self, context: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        if name not in VERBS:
            return None
        return with_common_options(importlib.import_module(VERBS[name]).command)

    def resolve_command(
        self, context: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in VERBS and not args[0].startswith("-"):
            near = difflib.get_close_matches(args[0], VERBS, n=1)
            advice = f"; did you mean {near[0]}?" if near else f"; known: {', '.join(VERBS)}"
            context.fail(f"No such command {args[0]!r}{advice}")
        return super().resolve_command(context, args)


@click.group(cls=LazyVerbs, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="dlm-edge")
def program() -> None:
    """Quantize, export and run diffusion language models."""


def main(argv: Sequence[str] | None = None, *, program_name: str = "dlm-edge") -> int:
    """Run one command line; returns the exit code that `cli.md` promises for each kind of error.

    `program_name` is what usage texts call us: another program may offer our verbs as its own.
    """
    if sys.stdout is None:  # it was closed by whoever started us: results would be lost
        return report(ResourceError("E-IO", "standard output is closed", "open it, or redirect it to a file"), False)
    arguments = list(sys.argv[1:] if argv is None else argv)
    as_json = "--json" in arguments
    output, errors = sys.stdout, sys.stderr
    flags: set[str] = set()  # of common_options.py
    if os.environ.get(COMPLETION_VARIABLE, "").startswith("powershell_"):
        importlib.import_module("dlm_edge.cli.powershell")  # click knows the other shells
    try:
        code = program.main(args=arguments, prog_name=program_name, standalone_mode=False, obj=flags)
        sys.stdout.flush()
        return code if isinstance(code, int) else 0  # click returns the code of context.exit here
    except DlmEdgeError as error:
        if "verbose" in flags:
            traceback.print_exc()
        return report(error, as_json)
    except click.ClickException as error:
        if as_json:
            return report(UsageProblem("E-USAGE", error.format_message(), "see --help"), as_json)
        error.show()
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        return report(Stopped("E-STOPPED", "stopped"), as_json)
    except (BrokenPipeError, SystemExit) as error:  # the reader of our output has gone, as in `dlm-edge ... | head`
        if isinstance(error, SystemExit) and sys.stdout is output:
            raise
        sys.stdout, sys.stderr = output, errors  # click, which makes an exit of it, replaces both
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 0
    except ModuleNotFoundError as error:
        if error.name and not error.name.startswith("dlm_edge"):
            return report(missing(error.name), as_json)
        return report(bug(error), as_json)
    except OSError as error:
        if error.filename is None and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left over cannot be written either
            message = f"the output could not be written: {error.strerror}"
            return report(ResourceError("E-IO", message, "make room, or write elsewhere"), False)
        if error.filename is None:
            return report(bug(error), as_json)
        message = f"{error.filename}: {error.strerror or error}"
        return report(InputFileError("E-FILE", message, "check the path and its permissions"), as_json)
    except Exception as error:
        return report(bug(error), as_json)


EXTRAS = {
    "torch": "quant", "onnx": "export", "rich": "cli", "onnxruntime": "cpu", "starlette": "server", "uvicorn": "server",
}  # fmt: skip


def missing(module: str) -> DlmEdgeError:
    from dlm_edge.errors import EnvironmentProblem

    name = module.split(".")[0]
    line = f"pip install 'dlm-edge[{EXTRAS[name]}]'" if name in EXTRAS else f"pip install {name}"
    return EnvironmentProblem("E-DEPENDENCY", f"this command needs {name}", f"{line}; `dlm-edge doctor` says what else")


def bug(error: Exception) -> InternalError:
    traceback.print_exc()
    return InternalError("E-INTERNAL", f"{type(error).__name__}: {error}", "please report this with the lines above")


def report(error: DlmEdgeError, as_json: bool) -> int:
    if as_json:
        print(json.dumps({"error": error.to_dict()}))
    else:
        message = f"error {error.code}: {error.message}" + (f", {error.hint}" if error.hint else "")
        print(message, file=sys.stderr)
    return error.exit_code
