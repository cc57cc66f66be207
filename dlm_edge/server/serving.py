"""From an address to answered requests, and back to silence: listen, serve, stop with grace or at once."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import uvicorn

from dlm_edge.errors import UsageProblem
from dlm_edge.server.app import Api, build_app
from dlm_edge.server.connection import protocol_class
from dlm_edge.server.gate import MAX_HEADER_BYTES
from dlm_edge.server.keys import Keys

MAX_CONNECTIONS = 800  # below the 1,024 open files that a process may usually have
STOP_SIGNALS = [signal.SIGINT, signal.SIGTERM]
CANCEL_S = 2.0  # for cancelled generations to tell their clients


def listen(host: str, port: int) -> socket.socket:
    """A socket bound to one address; port 0 is any free one. Raises E-USAGE where that is not possible."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        sock = socket.socket(family, kind, protocol)
        if os.name == "nt":
            sock.setsockopt(socket.SOL_SOCKET, getattr(socket, "SO_EXCLUSIVEADDRUSE"), 1)  # noqa: B009 - Windows only
        else:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        return sock
    except (OSError, OverflowError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        message = f"cannot listen on {host}, port {port}: {reason}"
        raise UsageProblem("E-USAGE", message, "choose another --port, or an address of this machine") from error


class HttpServer(uvicorn.Server):
    """Stops accepting at the first signal, cancels what still runs after the grace time, drops everything at the second."""

    def __init__(self, api: Api, keys: Keys | None, on_started: Callable[[], None] = lambda: None) -> None:
        self.api, self.on_started = api, on_started
        options = api.options
        config: dict[str, Any] = {
            "http": protocol_class(options),
            "ws": "none",
            "lifespan": "off",
            "log_config": None,
            "access_log": False,  # paths may hold what should not lie in a log
            "proxy_headers": False,
            "server_header": False,
            "timeout_keep_alive": options.idle_s,
            "timeout_graceful_shutdown": options.grace_s + CANCEL_S,
            "limit_concurrency": MAX_CONNECTIONS,
            "h11_max_incomplete_event_size": MAX_HEADER_BYTES,
        }
        super().__init__(uvicorn.Config(build_app(api, keys), **config))

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.on_started()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        grace = asyncio.get_running_loop().call_later(self.api.options.grace_s, self.api.generations.cancel_all)
        try:
            await super().shutdown(sockets)
        finally:
            grace.cancel()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.should_exit:
            self.force_exit = True
            self.drop_all()
        self.should_exit = True

    def drop_all(self) -> None:
        self.api.generations.cancel_all()
        for connection in list(self.server_state.connections):
            connection.transport.abort()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:  # type: ignore[override]
        """As uvicorn does, but without raising the signal again at the end: to be told to stop is no failure."""
        try:
            before = {number: signal.signal(number, self.handle_exit) for number in STOP_SIGNALS}
        except ValueError:  # not in the main thread: whoever runs it there sets should_exit
            yield
            return
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
