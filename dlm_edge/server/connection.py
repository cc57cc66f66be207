"""A connection that cannot be held open for nothing: times for headers, silence, and readers that do not read.

uvicorn's own protocol over h11, which has a time for silence between requests only.
"""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from dlm_edge.server.options import ServerOptions

# Small buffers, so that a reader that stops is noticed soon.
WRITE_BUFFER_BYTES = 16 << 10
SOCKET_BUFFER_BYTES = 64 << 10


def protocol_class(options: ServerOptions) -> type[asyncio.Protocol]:
    """uvicorn takes a class, and makes its objects itself."""

    class Connection(GuardedConnection):
        header_s, send_s = options.header_s, options.send_s

    return Connection


class GuardedConnection(H11Protocol):
    header_s: float
    send_s: float

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._header_timer: asyncio.TimerHandle | None = None
        self._send_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        transport.set_write_buffer_limits(high=WRITE_BUFFER_BYTES)
        if (sock := transport.get_extra_info("socket")) is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BUFFER_BYTES)
        self._header_timer = self.loop.call_later(self.header_s, self._drop)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._header_timer = stopped(self._header_timer)
        self._send_timer = stopped(self._send_timer)
        self._unset_keepalive_if_required()

    def data_received(self, data: bytes) -> None:
        try:
            super().data_received(data)
        except h11.LocalProtocolError:  # garbage behind a request whose answer is under way
            self._drop()
        if self.conn.their_state is not h11.IDLE:
            self._header_timer = stopped(self._header_timer)
        elif self._header_timer is None and not self.transport.is_closing():  # the next request has begun
            self._header_timer = self.loop.call_later(self.header_s, self._drop)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._send_timer = self._send_timer or self.loop.call_later(self.send_s, self._drop)

    def resume_writing(self) -> None:
        super().resume_writing()
        if not self.transport.is_closing():
            self._send_timer = stopped(self._send_timer)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._close_in_time()

    def timeout_keep_alive_handler(self) -> None:
        super().timeout_keep_alive_handler()
        self._close_in_time()

    def shutdown(self) -> None:
        super().shutdown()
        self._close_in_time()

    def _close_in_time(self) -> None:
        """A closed transport waits for its reader without end."""
        if self.transport.is_closing() and self._send_timer is None and self.transport.get_write_buffer_size():
            self._send_timer = self.loop.call_later(self.send_s, self._drop)

    def _drop(self) -> None:
        """At once, with what was not read: the task behind it learns of it as of a client that has left."""
        self.transport.abort()


def stopped(timer: asyncio.TimerHandle | None) -> asyncio.TimerHandle | None:
    """What to keep of it: nothing."""
    if timer is not None:
        timer.cancel()
    return None
