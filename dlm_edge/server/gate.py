"""What every request passes first, whatever its path: safe headers, Host, Origin, key. Pure ASGI, around the routes."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable

from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dlm_edge.server.keys import Keys
from dlm_edge.server.metrics import Metrics
from dlm_edge.server.options import ServerOptions
from dlm_edge.server.refusals import Refusal, internal

PUBLIC = frozenset({"/health", "/", "/page.js", "/page.css"})  # hold nothing of the model's or of anybody's
CLIENT = "dlm_edge.client"  # in the scope: whose request it is
CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
)
SAFE_HEADERS = (
    ("content-security-policy", CSP),
    ("x-content-type-options", "nosniff"),
    ("x-frame-options", "DENY"),
    ("referrer-policy", "no-referrer"),
    ("cross-origin-opener-policy", "same-origin"),
    ("cross-origin-resource-policy", "same-origin"),
    ("permissions-policy", "camera=(), geolocation=(), microphone=()"),
    ("cache-control", "no-store"),
)
MAX_HEADER_BYTES = 32 << 10
ALLOWED_HEADERS = ("authorization", "content-type")  # and those that OpenAI's own client adds
CLIENT_HEADER = r"x-stainless-[a-z-]+"
log = logging.getLogger("dlm_edge.server")


class Gate:
    """Outermost: nothing leaves without the headers, and no exception leaves at all."""

    def __init__(self, app: ASGIApp, options: ServerOptions, keys: Keys | None, metrics: Metrics) -> None:
        self.app, self.options, self.keys, self.metrics = app, options, keys, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            raise RuntimeError("only HTTP is served")  # uvicorn is told so, too
        started = False
        cors: list[tuple[bytes, bytes]] = []

        async def send_safely(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                self.metrics.responses[message["status"]] += 1
                message["headers"] = [*message.get("headers", ()), *encoded(SAFE_HEADERS), *cors]
            await send(message)

        try:
            self.check_host(scope)
            cors.extend(self.cors(scope))
            if self.is_preflight(scope):
                await preflight_answer(scope)(scope, receive, send_safely)
                return
            self.check_key(scope)
            await self.app(scope, receive, send_safely)
        except Refusal as refusal:
            await close_after(refusal.response())(scope, receive, send_safely)
        except Exception as error:  # a bug of ours; its message may hold anything, its place does not
            log.error("E-INTERNAL: %s at %s", type(error).__name__, place(error))
            if not started:
                await close_after(internal().response())(scope, receive, send_safely)

    def check_host(self, scope: Scope) -> None:
        if sum(len(name) + len(value) for name, value in scope["headers"]) > MAX_HEADER_BYTES:
            raise Refusal(431, f"the headers are larger than {MAX_HEADER_BYTES} bytes", code="headers_too_large")
        hosts = header(scope, b"host")
        if len(hosts) != 1 or not self.options.accepts_host(host_name(hosts[0])):
            message = "the Host header names no host of this server; --allow-host NAME adds one"
            raise Refusal(403, message, code="host_not_allowed")
        if any(value.lower() == b"websocket" for value in header(scope, b"upgrade")):
            raise Refusal(400, "there are no WebSockets here", code="upgrade_not_supported")

    def check_origin(self, scope: Scope) -> str | None:
        """The allowed foreign origin; None where the page is our own or no page asks."""
        origins = [value.decode("latin-1").lower() for value in header(scope, b"origin")]
        host = header(scope, b"host")[0].decode("latin-1").lower()
        if not origins or origins == [f"{scope['scheme']}://{host}"]:
            return None
        if len(origins) != 1 or origins[0] not in self.options.allowed_origins:
            message = "pages of this origin may not ask here; --allow-origin ORIGIN adds one"
            raise Refusal(403, message, code="origin_not_allowed")
        return origins[0]

    def cors(self, scope: Scope) -> list[tuple[bytes, bytes]]:
        """The headers that let an allowed page of another origin read the answer, refusals among them."""
        origin = self.check_origin(scope)
        if not self.options.allowed_origins:
            return []
        headers = [("vary", "origin")]
        if origin is not None:
            headers += [("access-control-allow-origin", origin), ("access-control-expose-headers", "retry-after")]
        return encoded(headers)

    def check_key(self, scope: Scope) -> None:
        authorization = header(scope, b"authorization")
        address = scope["client"][0] if scope.get("client") else ""
        if self.keys is None:
            scope[CLIENT] = (None, address)
            return
        if not authorization and scope["path"] in PUBLIC and scope["method"] in ("GET", "HEAD"):
            return
        key = self.keys.find(authorization)
        if key is None:
            message = "this server needs its key: Authorization: Bearer KEY"
            headers = {"www-authenticate": "Bearer"}
            raise Refusal(401, message, code="invalid_api_key", kind="authentication_error", headers=headers)
        scope[CLIENT] = (key, address)

    def is_preflight(self, scope: Scope) -> bool:
        """A browser's question whether another's page may ask. It carries no key, and gets nothing but the answer."""
        asks = header(scope, b"access-control-request-method")
        return bool(scope["method"] == "OPTIONS" and asks and self.check_origin(scope))


def preflight_answer(scope: Scope) -> Response:
    asked = b",".join(header(scope, b"access-control-request-headers")).decode("latin-1").lower()
    names = [name.strip() for name in asked.split(",")]
    allowed = [name for name in names if name in ALLOWED_HEADERS or re.fullmatch(CLIENT_HEADER, name)]
    headers = {
        "access-control-allow-methods": "GET, POST",
        "access-control-allow-headers": ", ".join(allowed),
        "access-control-max-age": "600",
    }
    if header(scope, b"access-control-request-private-network") == [b"true"]:
        headers["access-control-allow-private-network"] = "true"
    return Response(status_code=204, headers=headers)


def header(scope: Scope, name: bytes) -> list[bytes]:
    return [value for key, value in scope["headers"] if key == name]


def encoded(headers: Iterable[tuple[str, str]]) -> list[tuple[bytes, bytes]]:
    return [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers]


def host_name(value: bytes) -> str:
    """Without port and brackets, in small letters."""
    text = value.decode("latin-1").lower()
    if text.startswith("["):
        return text[1:].partition("]")[0]
    return text.rpartition(":")[0] if text.count(":") == 1 else text


def close_after(response: Response) -> Response:
    """The request's body may not have been read, and nobody will read it."""
    response.headers["connection"] = "close"
    return response


def place(error: BaseException) -> str:
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None:
        return "nowhere"
    code = trace.tb_frame.f_code
    return f"{code.co_filename.replace(chr(92), '/').rpartition('/')[2]}:{trace.tb_lineno}"
