"""The engine in an asyncio application: the same verbs, awaited; the event loop never waits for the model."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from dlm_edge.runtime.engine import Engine
from dlm_edge.runtime.events import Event, Finished, Result
from dlm_edge.runtime.job import Job
from dlm_edge.runtime.request import Prompt

T = TypeVar("T")


class AsyncEngine:
    """Around an Engine, which stays usable from other threads.

        async with await AsyncEngine.open(folder) as engine:
            async for event in engine.stream("Once upon a time"):
                ...

    A task that is cancelled, or leaves its loop over events, cancels its job.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    @classmethod
    async def open(cls, path: Path | str, device: str = "auto", **options: Any) -> Self:
        """`options` of Engine.open."""
        return cls(await asyncio.to_thread(Engine.open, path, device, **options))

    async def generate(self, prompt: Prompt, *, raw: bool = False, **settings: Any) -> Result:
        async for event in self._follow(prompt, raw, settings, is_watched=False):
            if isinstance(event, Finished):
                return event.result
        raise AssertionError("a job ends with its result or an error")

    async def stream(self, prompt: Prompt, *, raw: bool = False, **settings: Any) -> AsyncIterator[Event]:
        """A slow reader gets joined texts and skips frames, and misses no text."""
        async for event in self._follow(prompt, raw, settings, is_watched=True):
            yield event

    async def encode(self, prompt: Prompt, *, raw: bool = False) -> list[int]:
        return await asyncio.to_thread(self.engine.encode, prompt, raw=raw)

    async def close(self, *, wait: bool = False) -> None:
        await asyncio.to_thread(self.engine.close, wait=wait)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _follow(
        self, prompt: Prompt, raw: bool, settings: dict[str, Any], *, is_watched: bool
    ) -> AsyncIterator[Event]:
        job = await self._submit(lambda: self.engine.submit(prompt, raw=raw, is_watched=is_watched, **settings))
        loop, changed = asyncio.get_running_loop(), asyncio.Event()

        def on_change() -> None:
            with suppress(RuntimeError):  # the loop has ended, and so has whoever waited
                loop.call_soon_threadsafe(changed.set)

        job.watch(on_change)
        try:
            while True:
                await changed.wait()
                changed.clear()
                while events := job.poll():
                    for event in events:
                        yield event
                        if isinstance(event, Finished):
                            return
        finally:
            job.cancel()

    async def _submit(self, submit: Callable[[], Job]) -> Job:
        """In a thread, since a long prompt takes a while to encode. Cancelled meanwhile, the job is, too."""
        waiting = asyncio.ensure_future(asyncio.to_thread(submit))
        try:
            return await asyncio.shield(waiting)
        except asyncio.CancelledError:
            waiting.add_done_callback(drop)
            raise


def drop(submitted: asyncio.Future[Job]) -> None:
    if not submitted.cancelled() and submitted.exception() is None:
        submitted.result().cancel()
