"""`dlm-edge generate`: one prompt, and the masks turning into words."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dlm_edge.cli.attention_options import attention_options
from dlm_edge.cli.output import print_json
from dlm_edge.errors import InputFileError, Stopped, UsageProblem

if TYPE_CHECKING:
    from dlm_edge.runtime import Engine, Job, Result

CACHES = {"prefix_cache": "prefix", "dual_cache": "dual", "no_cache": "none"}


@click.command("generate")
@click.argument("bundle", metavar="BUNDLE")
@click.option("-p", "--prompt", metavar="TEXT", help="The prompt.")
@click.option("--prompt-file", metavar="FILE", help="Read the prompt from FILE (- is standard input).")
@click.option("--ids", is_flag=True, help="The prompt is a list of token ids.")
@click.option("--raw", is_flag=True, help="Do not apply the chat template.")
@click.option("--max-new-tokens", type=int, metavar="N", help="At most N tokens. Default: 128, or what fits.")
@click.option("--sampler", metavar="NAME", help="static or threshold. Default: what the bundle says.")
@click.option("--threshold", type=float, metavar="P", help="threshold: commit every token at least this likely.")
@click.option("--steps", type=int, metavar="N", help="static: denoising steps in total. Default: one per token.")
@click.option("--block-length", type=int, metavar="N", help="Tokens per block (models with full attention).")
@click.option("--temperature", type=float, default=0.0, show_default=True, help="0 always takes the likeliest token.")
@click.option("--top-k", type=int, metavar="K", help="Draw among the K likeliest tokens.")
@click.option("--top-p", type=float, metavar="P", help="Draw among the likeliest tokens that make up P.")
@click.option("--seed", type=int, metavar="N", help="Same seed, same text.")
@click.option("--prefix-cache", is_flag=True, help="Full attention: store K/V before the block. Approximate.")
@click.option("--dual-cache", is_flag=True, help="Full attention: store K/V around the block. Approximate.")
@click.option("--no-cache", is_flag=True, help="Compute the whole sequence at every step.")
@attention_options
@click.option("--prompt-cache", metavar="FILE", help="Begin with what FILE keeps of a prompt; write FILE at the end.")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
@click.option("--threads", type=int, metavar="N", help="Default: one per core.")
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
    device, threads, kept = options.pop("device"), options.pop("threads"), options.pop("prompt_cache")
    if kept is not None and options["no_cache"]:
        raise UsageProblem("E-USAGE", "--prompt-cache and --no-cache exclude each other", "give one of them")
    settings = {name: value for name, value in with_cache(options).items() if value is not None}

    from dlm_edge.artifacts import resolve_bundle
    from dlm_edge.runtime import Engine

    with Engine.open(resolve_bundle(bundle), device, threads=threads) as engine:
        if kept is not None:
            load_kept(engine, Path(kept))
        job = engine.submit(prompt, **settings)
        with stop_on_interrupt(job):
            result = show(job, as_json=as_json, json_lines=json_lines)
        if kept is not None:
            save_kept(engine, Path(kept), result)
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
    elif sys.stdout.isatty():
        from dlm_edge.cli.live import show_live

        show_live(job)
    else:
        print_text(job)
    return job.result()


def print_text(job: Job) -> None:
    """Committed text as it comes, for a pipe; control characters stay as the model wrote them."""
    from dlm_edge.runtime import Text

    for event in job:
        if isinstance(event, Text):
            print(event.text, end="", flush=True)
    print()


def read_prompt(text: str | None, file: str | None, is_ids: bool, raw: bool) -> str | list[int]:
    if (text is None) == (file is None):
        raise UsageProblem("E-USAGE", "one prompt is needed", "give -p TEXT or --prompt-file FILE")
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


def with_cache(options: dict[str, Any]) -> dict[str, Any]:
    """The three cache flags become the one setting `cache`."""
    chosen = [kind for flag, kind in CACHES.items() if options.pop(flag)]
    if len(chosen) > 1:
        raise UsageProblem("E-USAGE", "--prefix-cache, --dual-cache and --no-cache exclude each other", "give one")
    return options | ({"cache": chosen[0]} if chosen else {})


@contextmanager
def stop_on_interrupt(job: Job) -> Iterator[None]:
    """The first Ctrl-C cancels the job and keeps its text; the second one is a KeyboardInterrupt."""

    def stop(number: int, frame: object) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        job.cancel()

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
