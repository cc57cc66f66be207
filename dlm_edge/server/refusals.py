"""Every answer that is no success, in OpenAI's shape, and what of the engine's errors a client may read."""

from __future__ import annotations

from typing import Any

from starlette.responses import JSONResponse

from dlm_edge.errors import CODES, DlmEdgeError, ResourceError, UsageProblem

RETRY_S = 1
OPENAI_CODES = {"E-CONTEXT": "context_length_exceeded"}  # that clients act upon


class Refusal(Exception):
    """A status and {"error": {message, type, code, param}}."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str,
        kind: str = "invalid_request_error",
        param: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code = status, message, code
        self.kind, self.param, self.headers = kind, param, headers

    def body(self) -> dict[str, Any]:
        return {"error": {"message": self.message, "type": self.kind, "code": self.code, "param": self.param}}

    def response(self) -> JSONResponse:
        return JSONResponse(self.body(), self.status, self.headers)


def bad_request(message: str, param: str | None = None, code: str = "invalid_value") -> Refusal:
    return Refusal(400, message, code=code, param=param)


def busy(status: int, message: str, code: str, retry_s: int = RETRY_S) -> Refusal:
    """503 for a full queue, 429 for a client that has its share."""
    kind = "server_error" if status == 503 else "rate_limit_error"
    return Refusal(status, message, code=code, kind=kind, headers={"retry-after": str(retry_s)})


def stopping() -> Refusal:
    return busy(503, "the server is stopping", "stopping")


def internal(code: str = "E-INTERNAL") -> Refusal:
    """The code's general meaning and nothing of the case: messages of failures may hold paths or parts of a prompt."""
    return Refusal(500, f"{code}: {CODES[code]}", code=code, kind="server_error")


def of_engine(error: DlmEdgeError, param_names: dict[str, str]) -> Refusal:
    """What the engine says of a request. `param_names`: request fields by the names of our settings, of which a message
    of E-PARAM begins with one."""
    if error.code == "E-CLOSED":
        return stopping()
    if error.code == "E-TOK":  # its message names the tokenizer's file
        return bad_request("the tokenizer cannot encode this text", code=error.code)
    if not isinstance(error, UsageProblem | ResourceError) and error.code != "E-TEMPLATE":
        return internal(error.code)
    message = error.message + (f"; {error.hint}" if error.hint else "")
    param = param_names.get(error.message.split(" ", 1)[0])
    return bad_request(message, param, OPENAI_CODES.get(error.code, error.code))
