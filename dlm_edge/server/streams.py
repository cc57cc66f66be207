"""The two ways to answer: one object at the end, or server-sent events with committed text as it comes."""

from __future__ import annotations

import logging
from typing import Any

import msgspec
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from dlm_edge.errors import DlmEdgeError
from dlm_edge.runtime import Event, Finished, Frame, Result, Started, Text
from dlm_edge.runtime.events import Cell
from dlm_edge.server.answers import Answer
from dlm_edge.server.body import ClientGone
from dlm_edge.server.refusals import Refusal, of_engine, stopping
from dlm_edge.server.running import Following, Generations
from dlm_edge.server.schema import Generation

HEADERS = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"x-accel-buffering", b"no")]
DONE, KEEP_ALIVE = b"data: [DONE]\n\n", b": keep-alive\n\n"
log = logging.getLogger("dlm_edge.server")


class Generating(Response):
    """Submits when it is called, so that no job begins for an answer that is never sent."""

    def __init__(self, generations: Generations, asked: Generation, model: str, keep_alive_s: float) -> None:
        self.generations, self.asked, self.keep_alive_s = generations, asked, keep_alive_s
        self.answer = Answer(model, asked.is_chat, asked.include_usage)
        self.background = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        respond = self.stream if self.asked.stream else self.whole
        try:
            async with self.generations.follow(self.asked, receive) as following:
                await respond(following, scope, receive, send)
        except ClientGone:
            return

    async def whole(self, following: Following, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            result = uncancelled(await following.result())
        except DlmEdgeError as error:
            raise self.refusal(error) from None
        await JSONResponse(self.answer.whole(result))(scope, receive, send)

    async def stream(self, following: Following, scope: Scope, receive: Receive, send: Send) -> None:
        async def write(data: bytes) -> None:
            await send({"type": "http.response.body", "body": data, "more_body": True})

        await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
        first = self.answer.first()
        await write(sse(first) if first else KEEP_ALIVE)
        try:
            ended = False
            while not ended:
                events = await following.events(self.keep_alive_s)
                ended = any(isinstance(event, Finished) for event in events)
                if data := b"".join(map(self.render, events)) if events else KEEP_ALIVE:
                    await write(data)
            await write(DONE)
        except DlmEdgeError as error:
            await write(sse(self.refusal(error).body()))
        except Refusal as refusal:
            await write(sse(refusal.body()))
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    def render(self, event: Event) -> bytes:
        match event:
            case Started():  # said by the first chunk
                return b""
            case Text():
                return sse(self.answer.piece(event.text))
            case Frame():
                return sse(rounded(event), "canvas")
            case Finished():
                return b"".join(map(sse, self.answer.last(uncancelled(event.result))))

    def refusal(self, error: DlmEdgeError) -> Refusal:
        log.error("%s: %s ended a generation", error.code, type(error).__name__)
        return of_engine(error, self.asked.param_names)


def uncancelled(result: Result) -> Result:
    """While a client waits, only a server that stops cancels its job: half an answer is no answer."""
    if result.stop_reason == "cancelled":
        raise stopping()
    return result


def rounded(frame: Frame) -> Frame:
    """Four digits of confidence are more than anybody draws, and halve what is sent."""
    cells = [Cell(cell.token_id, cell.text, round(cell.confidence, 4)) for cell in frame.cells]
    return msgspec.structs.replace(frame, cells=cells)


def sse(value: dict[str, Any] | msgspec.Struct, event: str = "") -> bytes:
    """One event; JSON holds no line break."""
    name = f"event: {event}\n".encode() if event else b""
    return name + b"data: " + msgspec.json.encode(value) + b"\n\n"
