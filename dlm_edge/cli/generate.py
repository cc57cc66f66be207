"""`dlm-edge generate`: one prompt, and the masks turning into words."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dlm_edge.cli.decoding_options import decoding_options, open_engine, settings_of, take_engine
from dlm_edge.cli.output import print_json
from dlm_edge.cli.running_job import show_text, stop_on_interrupt
from dlm_edge.errors import DlmEdgeError, InputFileError, Stopped, UsageProblem

if TYPE_CHECKING:
    from dlm_edge.runtime import Engine, Job, Result


@click.command("generate")
@click.argument("bundle", metavar="BUNDLE")
@click.option("-p", "--prompt", metavar="TEXT", help="The prompt.")
@click.option("--prompt-file", metavar="FILE", help="Read the prompt from FILE (- is standard input).")
@click.option("--ids", is_flag=True, help="The prompt is a list of token ids.")
@decoding_options
@click.option("--suffix", metavar="TEXT", help="What follows the --max-new-tokens that are to be filled.")
@click.option("--prompt-cache", metavar="FILE", help="Begin with what FILE keeps of a prompt; write FILE at the end.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option("--json-lines", is_flag=True, help="Print every event as one JSON line.")
def command(bundle: str, as_json: bool, json_lines: bool, **options: Any) -> None:
    """Generate text with BUNDLE, an exported folder.

    BUNDLE may also be a checkpoint folder or `reference`; it is exported into the user's cache folder first.
    Ctrl-C stops and keeps the text, a second Ctrl-C quits.
    """
    if as_json and json_lines:
        raise UsageProblem("E-USAGE", "--json and --json-lines exclude each other", "give one of them")
    prompt = read_prompt(options.pop("prompt"), options.pop("prompt_file"), options.pop("ids"), options["raw"])
    kept, opening = options.pop("prompt_cache"), take_engine(options)
    if kept is not None and options["no_cache"]:
        raise UsageProblem("E-USAGE", "--prompt-cache and --no-cache exclude each other", "give one of them")
    raw, settings = options["raw"], settings_of(options)

    with open_engine(bundle, opening) as engine:
        if kept is not None:
            load_kept(engine, Path(kept))
        job = engine.submit(prompt, raw=raw, **settings)
        with stop_on_interrupt(job):
            result = show(job, as_json=as_json, json_lines=json_lines)
        if kept is not None:
            try:
                save_kept(engine, Path(kept), result)
            except DlmEdgeError as error:
                if not as_json:
                    raise
                print(f"error {error}", file=sys.stderr)  # the result is printed: a second object would spoil it
                click.get_current_context().exit(error.exit_code)
    if result.stop_reason == "cancelled":
        if as_json:  # its one object is printed, an error would be a second one
            click.get_current_context().exit(Stopped.exit_code)
        raise Stopped("E-STOPPED", "stopped", "the text above is what was finished")


def load_kept(engine: Engine, path: Path) -> None:
    if not engine.keeps_prompts:
        message = "--prompt-cache needs block-causal attention; here every key depends on the whole text"
        raise UsageProblem("E-USAGE", message, "drop it")
    if not path.parent.is_dir():  # before minutes of work, not after them
        raise UsageProblem(
            "E-USAGE", f"the folder {path.parent} for the prompt cache does not exist", "create it first"
        )
    if path.exists():
        print(f"prompt cache: {engine.load_prompt_cache(path)} tokens from {path}", file=sys.stderr)


def save_kept(engine: Engine, path: Path, result: Result) -> None:
    try:
        n_kept = engine.save_prompt_cache(path)
    except UsageProblem as error:
        if error.code != "E-STATE":
            raise
        print(f"prompt cache: nothing written, no whole block was stored ({error.code})", file=sys.stderr)
        return
    print(f"prompt cache: {result.reused_tokens} tokens reused, {n_kept} written to {path}", file=sys.stderr)


def show(job: Job, *, as_json: bool, json_lines: bool) -> Result:
    """Print the job as it goes, in the form asked for, and return its result."""
    import msgspec

    if json_lines:
        for event in job:
            print(msgspec.json.encode(event).decode(), flush=True)
    elif as_json:
        print_json(msgspec.to_builtins(job.result()))
    else:
        show_text(job)
    return job.result()


def read_prompt(text: str | None, file: str | None, is_ids: bool, raw: bool) -> str | list[int]:
    if text is not None and file is not None:
        raise UsageProblem("E-USAGE", "--prompt and --prompt-file exclude each other", "give one of them")
    if text is None and file is None:
        raise UsageProblem("E-USAGE", "a prompt is needed", "give -p TEXT or --prompt-file FILE")
    if is_ids and raw:
        raise UsageProblem("E-USAGE", "--ids and --raw exclude each other", "ids are never wrapped in a template")
    if file is not None:
        text = read_file(file)
    assert text is not None
    if not is_ids:
        return text
    try:
        return [int(part) for part in text.replace(",", " ").replace("[", " ").replace("]", " ").split()]
    except ValueError as error:
        raise UsageProblem("E-PROMPT", f"--ids: {error}", "give numbers, such as '1 2 3'") from error


def read_file(file: str) -> str:
    try:
        data = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
        return data.decode("utf-8")
    except OSError as error:
        raise InputFileError("E-FILE", f"{file}: {error.strerror}", "give a text file") from error
    except UnicodeDecodeError as error:
        raise InputFileError("E-UTF8", f"{file} is not UTF-8 at byte {error.start}", "convert it") from error
