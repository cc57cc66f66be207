"""Bodies: small, plain, complete in time, and strict JSON, before any route sees them."""

from __future__ import annotations

import asyncio
from typing import Any

from starlette.types import ASGIApp, Receive, Scope, Send

from dlm_edge.checkpoint.strict_json import parse_json
from dlm_edge.server.gate import header
from dlm_edge.server.options import ServerOptions
from dlm_edge.server.refusals import Refusal, bad_request

BODY = "dlm_edge.body"  # in the scope: what was parsed, absent without a body
JSON_TYPES = (b"application/json", b"application/json; charset=utf-8", b"application/json;charset=utf-8")


class ClientGone(Exception):
    """Nobody waits for the answer any more."""


class Bodies:
    """Reads and parses what a request declares, and answers itself where that cannot be accepted."""

    def __init__(self, app: ASGIApp, options: ServerOptions) -> None:
        self.app, self.options = app, options

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            if self.check_headers(scope):
                scope[BODY] = await self.parsed(await self.read(receive))
        except ClientGone:
            return
        await self.app(scope, receive, send)

    def check_headers(self, scope: Scope) -> bool:
        """Whether there is a body. Raises Refusal before a byte of it is read."""
        lengths, codings = header(scope, b"content-length"), header(scope, b"transfer-encoding")
        if lengths and codings:
            raise bad_request("both Content-Length and Transfer-Encoding", code="bad_framing")
        if not codings and (not lengths or lengths == [b"0"]):
            return False
        if any(value.lower() != b"identity" for value in header(scope, b"content-encoding")):
            raise Refusal(415, "compressed bodies are not accepted", code="content_encoding_not_supported")
        if [value.lower() for value in header(scope, b"content-type")] not in [[each] for each in JSON_TYPES]:
            raise Refusal(415, "the Content-Type must be application/json", code="content_type_not_supported")
        if lengths and int(lengths[0]) > self.options.max_body_bytes:
            raise self.too_large()
        return True

    async def read(self, receive: Receive) -> bytes:
        data = bytearray()
        try:
            async with asyncio.timeout(self.options.body_s):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise ClientGone
                    data += message.get("body", b"")
                    if len(data) > self.options.max_body_bytes:
                        raise self.too_large()
                    if not message.get("more_body", False):
                        return bytes(data)
        except TimeoutError:
            message_text = f"the body was not complete after {self.options.body_s:g} s"
            raise Refusal(408, message_text, code="body_timeout") from None

    async def parsed(self, data: bytes) -> Any:
        try:
            return await asyncio.to_thread(parse_json, data)
        except ValueError as error:
            raise bad_request(f"the body is no JSON that is accepted: {error}", code="invalid_json") from None

    def too_large(self) -> Refusal:
        limit = self.options.max_body_bytes
        return Refusal(413, f"the body is larger than {limit} bytes", code="body_too_large")
