"""`dlm-edge serve`: a bundle behind OpenAI's HTTP interface, and a page to talk to it."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dlm_edge.cli.output import print_json, progress_line
from dlm_edge.errors import EnvironmentProblem, UsageProblem

if TYPE_CHECKING:
    from dlm_edge.server import Keys

SWITCH_S = 0.001  # the event loop takes its turn from the model's thread five times as soon as Python's default


@click.command("serve")
@click.argument("bundle", metavar="BUNDLE")
@click.option("--host", default="127.0.0.1", show_default=True, metavar="ADDRESS", help="Address to listen on.")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0: any free one.")
@click.option("--key-file", metavar="FILE", help="Keys, one per line. Default: a random one in your config folder.")
@click.option("--no-key", is_flag=True, help="Let everybody on this machine in; loopback addresses only.")
@click.option("--allow-host", multiple=True, metavar="NAME", help="Accept this name in the Host header, too.")
@click.option("--allow-origin", multiple=True, metavar="ORIGIN", help="Let pages of https://NAME ask.")
@click.option("--name", metavar="NAME", help="What the model is called. Default: the name of its folder.")
@click.option("--parallel", type=int, default=4, show_default=True, metavar="N", help="Generations at a time.")
@click.option("--queue", type=int, default=32, show_default=True, metavar="N", help="Requests that may wait.")
@click.option(
    "--per-client", type=int, default=4, show_default=True, metavar="N", help="Requests of one key at a time."
)
@click.option("--memory-budget", metavar="SIZE", help="Of weights and caches together, such as 6GiB.")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
@click.option("--threads", type=int, metavar="N", help="Default: one per core.")
@click.option("--guide", metavar="BUNDLE", help="A smaller model that supervises, for requests with sampler guided.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object once requests are answered.")
def command(bundle: str, as_json: bool, **options: Any) -> None:
    """Serve BUNDLE, an exported folder, to OpenAI's clients and to a browser.

    BUNDLE may also be a checkpoint folder or `reference`; it is exported into the user's cache folder first.
    Ctrl-C lets what runs end for 5 seconds, a second Ctrl-C quits at once.
    """
    try:
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        hint = "pip install 'dlm-edge[server]'"
        raise EnvironmentProblem("E-DEPENDENCY", f"the server needs {error.name}", hint) from error
    from dlm_edge.artifacts import resolve_bundle
    from dlm_edge.runtime import Engine
    from dlm_edge.server import Api, HttpServer, ServerOptions, listen

    served = ServerOptions(
        model_name=options["name"] or Path(bundle).resolve().name,
        host=options["host"],
        allowed_hosts=frozenset(name.lower() for name in options["allow_host"]),
        allowed_origins=frozenset(origin.lower() for origin in options["allow_origin"]),
        queue=options["queue"],
        per_client=options["per_client"],
    )
    keys, key_path = find_keys(options["key_file"], options["no_key"], served.is_loopback)
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(levelname)s %(message)s")
    folder = resolve_bundle(bundle)
    guide = None if options["guide"] is None else resolve_bundle(options["guide"])
    with (
        listen(served.host, options["port"]) as sock,
        Engine.open(
            folder,
            options["device"],
            threads=options["threads"],
            memory_budget=options["memory_budget"],
            parallel=options["parallel"],
            guide=guide,
        ) as engine,
    ):
        host, port = sock.getsockname()[:2]
        url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        said = {"url": url, "model": served.model_name, "key_file": key_path and str(key_path), "process": os.getpid()}
        api = Api(engine, served, created=int(folder.stat().st_mtime))

        def started() -> None:
            print_json(said) if as_json else greet(url, served.model_name, key_path)
            sys.stdout.flush()

        sys.setswitchinterval(SWITCH_S)
        HttpServer(api, keys, started).run(sockets=[sock])


def find_keys(file: str | None, no_key: bool, is_loopback: bool) -> tuple[Keys | None, Path | None]:
    from dlm_edge.server import keys

    if no_key:
        if file is not None:
            raise UsageProblem("E-USAGE", "--no-key and --key-file exclude each other", "give one of them")
        if not is_loopback:
            message = "--no-key would let everybody in who reaches this address"
            raise UsageProblem("E-USAGE", message, "drop it, or listen on 127.0.0.1")
        return None, None
    path = Path(file) if file is not None else keys.default_key_path()
    if file is None and keys.make_key_file(path):
        progress_line(f"a random key was written to {path}")
    found = keys.Keys.read(path)
    if not keys.is_private(path):
        if file is None:
            raise UsageProblem("E-USAGE", f"others can read the key in {path}", f"chmod 600 {path}, or delete it")
        progress_line(f"others can read the keys in {path}; chmod 600 keeps them out")
    return found, path


def greet(url: str, model: str, key_path: Path | None) -> None:
    from dlm_edge.server import keys

    print(f"{model} at {url}/v1, its page at {url}/")
    if key_path is None:
        print("no key: every program of this machine may use it")
    else:
        print(f"key in {key_path}")
        if sys.stdout.isatty():  # never into a file or a service's log; browsers do not send what follows the #
            print(f"open {url}/#key={keys.read_keys(key_path)[0]}")
    print("Ctrl-C stops")
