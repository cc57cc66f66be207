"""One submitted generation: its state, its result, and the events a caller may watch."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from dlm_edge.errors import JobError, UsageProblem
from dlm_edge.runtime.decode_settings import DecodeSettings
from dlm_edge.runtime.events import Event, Finished, Frame, Result, Started, Text
from dlm_edge.runtime.samplers import Sampler

State = Literal["queued", "running", "done", "cancelled", "failed"]
numbers = itertools.count(1)


class Owner(Protocol):
    """The worker, as a job sees it."""

    def interrupt(self, job: Job) -> None: ...

    def is_own_thread(self) -> bool: ...


@dataclass(frozen=True, slots=True)
class Request:
    """What the denoising loop takes."""

    ids: list[int]
    settings: DecodeSettings
    sampler: Sampler[Any]
    working_bytes: int  # of caches, attention state and scores


class Job:
    """Every method may be called from any thread. A job that nobody watches keeps no frames.

    `request` None: the work is done elsewhere, and has begun.
    """

    def __init__(
        self,
        owner: Owner,
        request: Request | None = None,
        *,
        on_event: Callable[[Event], None] | None = None,
        is_watched: bool = True,
    ) -> None:
        self._request = request
        self.number = next(numbers)
        self.is_watched = is_watched
        self._owner, self._on_event = owner, on_event
        self._on_change: Callable[[], None] = lambda: None
        self._changed = threading.Condition()
        self._state: State = "running" if request is None else "queued"
        self._cancel_asked = False
        self._result: Result | None = None
        self._error: BaseException | None = None
        # What a reader has not taken yet. It stays small however slow the reader is: text is joined, and of
        # the frames only the latest is kept.
        self._started: Started | None = None
        self._text = ""
        self._frame: Frame | None = None

    @property
    def state(self) -> State:
        return self._state

    @property
    def request(self) -> Request:
        assert self._request is not None, "the work is done elsewhere"
        return self._request

    def cancel(self) -> None:
        """Returns at once. The text committed so far stays the result; cancelling an ended job does nothing."""
        with self._changed:
            if self._state in ("done", "cancelled", "failed"):
                return
            self._cancel_asked = True
            if self._state == "queued":
                self._end(empty_result(self), None)
        self._owner.interrupt(self)

    def is_cancel_asked(self) -> bool:
        return self._cancel_asked

    def result(self, timeout: float | None = None) -> Result:
        """Wait for the end. Raises the job's error, or TimeoutError after `timeout` seconds."""
        with self._changed:
            if self._result is None and self._error is None and self._owner.is_own_thread():
                raise UsageProblem("E-REENTRANT", "result() of an unfinished job, asked in a callback", "ask later")
            if not self._changed.wait_for(self._has_ended, timeout):
                raise TimeoutError(f"job {self.number} has not ended after {timeout} s")
            if self._error is not None:
                raise self._error
            assert self._result is not None
            return self._result

    def __iter__(self) -> Iterator[Event]:
        """Events until the end; a slow reader gets joined texts and skips frames, and misses no text."""
        while True:
            with self._changed:
                if self._owner.is_own_thread() and not self._has_ended():
                    raise UsageProblem("E-REENTRANT", "events of an unfinished job, read in a callback", "read later")
                self._changed.wait_for(lambda: self._has_ended() or self._pending() is not None)
                events, ended = self._take(), self._has_ended()
            yield from events
            if ended:
                if self._error is not None:
                    raise self._error
                assert self._result is not None
                yield Finished(result=self._result)
                return

    def watch(self, on_change: Callable[[], None]) -> None:
        """Call `on_change` whenever `poll` has something new, from whatever thread: it must return at once, and not call
        the job."""
        with self._changed:
            self._on_change = on_change
        on_change()

    def poll(self) -> list[Event]:
        """Events since the last time, without waiting; the last one is Finished. Raises the job's error at its end."""
        with self._changed:
            events, ended = self._take(), self._has_ended()
        if ended and not events:
            if self._error is not None:
                raise self._error
            assert self._result is not None
            return [Finished(result=self._result)]
        return events

    def begin(self) -> bool:
        """Called by the worker: False when the job was cancelled in the queue."""
        with self._changed:
            if self._state == "queued":
                self._state = "running"
            return self._state == "running"

    def emit(self, event: Started | Text | Frame) -> None:
        """Called by the worker. An exception of the callback becomes E-CANCELLED, with it as the cause."""
        with self._changed:
            if isinstance(event, Started):
                self._started = event
            elif isinstance(event, Text):
                self._text += event.text
            else:
                self._frame = event
            self._notify()
        self._call(event)

    def finish(self, result: Result) -> None:
        error: BaseException | None = None
        try:
            self._call(Finished(result=result))
        except JobError as raised:
            error = raised
        with self._changed:
            self._end(result, error)

    def fail(self, error: BaseException) -> None:
        with self._changed:
            self._end(None, error)

    def _call(self, event: Event) -> None:
        if self._on_event is None:
            return
        try:
            self._on_event(event)
        except Exception as error:
            message = f"on_event raised {type(error).__name__}: {error}"
            raise JobError("E-CANCELLED", message, "the job was cancelled; correct the callback") from error

    def _end(self, result: Result | None, error: BaseException | None) -> None:
        if self._has_ended():
            return
        self._result, self._error = result, error
        self._state = "failed" if result is None or error else "done"
        if error is None and result is not None and result.stop_reason == "cancelled":
            self._state = "cancelled"
        self._notify()

    def _notify(self) -> None:
        self._changed.notify_all()
        self._on_change()

    def _has_ended(self) -> bool:
        return self._result is not None or self._error is not None

    def _pending(self) -> Event | None:
        return self._started or (Text(text=self._text) if self._text else None) or self._frame

    def _take(self) -> list[Event]:
        taken: list[Event | None] = [self._started, Text(text=self._text) if self._text else None, self._frame]
        self._started, self._text, self._frame = None, "", None
        return [event for event in taken if event is not None]


def empty_result(job: Job) -> Result:
    """Of a job that was cancelled before it began."""
    return Result(
        text="",
        token_ids=[],
        prompt_tokens=len(job.request.ids),
        new_tokens=0,
        stop_reason="cancelled",
        steps=0,
        forward_passes=0,
        steps_per_token=None,
        prefill_seconds=0.0,
        prefill_passes=0,
        reused_tokens=0,
        seconds=0.0,
        effective_tokens_per_s=0.0,
        blocks=0,
        density=1.0,
        active_rows=1.0,
        pages_read=0.0,
        seed=job.request.settings.sampling.seed,
    )
