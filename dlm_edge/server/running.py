"""One generation on behalf of a client: submitted off the event loop, followed on it, and ended with the client."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from starlette.types import Receive

from dlm_edge.errors import DlmEdgeError
from dlm_edge.runtime import Engine, Event, Finished, Result
from dlm_edge.runtime.async_engine import drop
from dlm_edge.runtime.job import Job
from dlm_edge.server.body import ClientGone
from dlm_edge.server.metrics import Metrics
from dlm_edge.server.refusals import of_engine
from dlm_edge.server.schema import Generation


class Generations:
    """The engine as the routes see it, and all jobs that clients wait for."""

    def __init__(self, engine: Engine, metrics: Metrics) -> None:
        self.engine, self.metrics = engine, metrics
        self.following: set[Following] = set()

    @asynccontextmanager
    async def follow(self, asked: Generation, receive: Receive) -> AsyncIterator[Following]:
        """The job ends with this block, however it ends. Raises Refusal where the engine does not accept the request."""
        job = await self.submit(asked)
        following = Following(job, self.metrics)
        watching = asyncio.ensure_future(following.watch_client(receive))
        self.following.add(following)
        try:
            yield following
        finally:
            job.cancel()
            watching.cancel()
            self.following.discard(following)

    async def submit(self, asked: Generation) -> Job:
        """In a thread, since a long prompt takes a while to encode."""
        waiting = asyncio.ensure_future(
            asyncio.to_thread(
                self.engine.submit, asked.prompt, raw=asked.raw, is_watched=asked.canvas, **asked.settings
            )
        )
        try:
            return await asyncio.shield(waiting)
        except DlmEdgeError as error:
            raise of_engine(error, asked.param_names) from None
        except asyncio.CancelledError:
            waiting.add_done_callback(drop)
            raise

    def cancel_all(self) -> None:
        """Their clients are told that the server stops."""
        for following in list(self.following):
            following.job.cancel()


class Following:
    """A job's events as they come, for as long as its client stays."""

    def __init__(self, job: Job, metrics: Metrics) -> None:
        self.job, self.metrics = job, metrics
        self._client_gone = False
        self._changed = asyncio.Event()
        loop = asyncio.get_running_loop()

        def on_change() -> None:
            with suppress(RuntimeError):  # the loop has ended, and so has whoever waited
                loop.call_soon_threadsafe(self._changed.set)

        job.watch(on_change)

    async def watch_client(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self._client_gone = True
        self.job.cancel()
        self._changed.set()

    async def events(self, wait_s: float | None = None) -> list[Event]:
        """What is new, nothing after `wait_s` without news. Raises the job's error, and ClientGone."""
        try:
            async with asyncio.timeout(wait_s):
                while True:
                    await self._changed.wait()
                    self._changed.clear()
                    if events := self._poll():
                        self._changed.set()  # there may be more
                        return events
        except TimeoutError:
            return []

    async def result(self) -> Result:
        while True:
            for event in await self.events():
                if isinstance(event, Finished):
                    return event.result

    def _poll(self) -> list[Event]:
        try:
            events = self.job.poll()
        except DlmEdgeError:
            self.metrics.ended["failed"] += 1
            raise
        for event in events:
            if isinstance(event, Finished):
                self.metrics.count(event.result)
                if self._client_gone:
                    raise ClientGone
        return events
