"""The one thread that runs jobs: in the order they came, in turns of a block where several are in flight, and its end."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TypeVar

from dlm_edge.errors import DlmEdgeError, InternalError, UsageProblem
from dlm_edge.runtime.job import Job
from dlm_edge.runtime.priority import lower_this_thread
from dlm_edge.runtime.seats import Seat, Seats

T = TypeVar("T")
CLOSE_TIMEOUT_S = 2.0  # a run ends within a node of the graph; a callback that blocks is not waited for


@dataclass(eq=False, slots=True)
class Running:
    job: Job
    seat: Seat
    turns: Iterator[None]


class Worker:
    """Holds no reference to the engine, so that an engine nobody holds any more can end it.

    `start(job, seat)` gives an iterator that works on the job until the next good moment to work on another one.
    """

    def __init__(self, seats: Seats, start: Callable[[Job, Seat], Iterator[None]], *, background: bool = False) -> None:
        self.seats, self._start, self._background = seats, start, background
        self._wake = threading.Condition()
        self._queue: deque[Job | Callable[[], None]] = deque()
        self._in_flight: list[Running] = []
        self._current: Running | None = None
        self._closed = False
        self._pid = os.getpid()
        self._thread = threading.Thread(target=self._run, name="dlm-edge-engine", daemon=True)
        self._thread.start()

    def is_own_thread(self) -> bool:
        return threading.current_thread() is self._thread

    @property
    def is_closed(self) -> bool:
        return self._closed

    def counts(self) -> tuple[int, int]:
        """Jobs that wait, and jobs in flight."""
        with self._wake:
            return sum(isinstance(work, Job) for work in self._queue), len(self._in_flight)

    def check_usable(self) -> None:
        """E-STATE after a fork, E-REENTRANT in a callback, E-CLOSED after close."""
        if os.getpid() != self._pid:
            message = "this process was forked after the engine was opened, and has no worker thread"
            raise UsageProblem("E-STATE", message, "open the engine in the process that uses it")
        if self.is_own_thread():
            raise UsageProblem("E-REENTRANT", "the engine was called from its own callback", "call it elsewhere")
        if self._closed:
            raise closed()

    def put(self, work: Job | Callable[[], None]) -> None:
        self.check_usable()
        with self._wake:
            if self._closed:  # it may have been closed between the check and here
                raise closed()
            self._queue.append(work)
            self._wake.notify_all()

    def call(self, function: Callable[[], T]) -> T:
        """Run `function` on the worker thread, after the jobs that came before, and give what it returns or raises."""
        future: Future[T] = Future()

        def settle() -> None:
            try:
                if self._closed:
                    raise closed()
                future.set_result(function())
            except BaseException as error:  # noqa: BLE001 - it belongs to the caller, who waits for it
                future.set_exception(error)

        self.put(settle)
        return future.result()

    def interrupt(self, job: Job) -> None:
        """End the step that `job` is in, if it is the one whose turn it is."""
        with self._wake:
            if self._current is not None and self._current.job is job:
                self._current.seat.terminate()

    def close(self, *, wait: bool = False) -> None:
        """Cancel what runs and what waits, or `wait` for it, and end the thread; again is harmless."""
        if os.getpid() != self._pid:
            return
        with self._wake:
            self._closed = True
            jobs = [work for work in self._queue if isinstance(work, Job)] + [each.job for each in self._in_flight]
            self._wake.notify_all()
        if not wait:
            for job in jobs:
                job.cancel()
        if not self.is_own_thread():
            self._thread.join(None if wait else CLOSE_TIMEOUT_S)

    def _run(self) -> None:
        if self._background:
            lower_this_thread()
        while self._wait_for_work():
            self._admit()
            self._take_turns()

    def _take_turns(self) -> None:
        """Apart from `_run`, so that an idle thread does not hold the last job, whose callback may hold the engine."""
        for running in list(self._in_flight):
            self._turn(running)

    def _wait_for_work(self) -> bool:
        with self._wake:
            self._wake.wait_for(lambda: self._queue or self._in_flight or self._closed)
            return bool(self._queue or self._in_flight)

    def _admit(self) -> None:
        """Take from the queue, in its order, what can begin; a function waits until all jobs before it have ended."""
        while self._queue:
            work = self._queue[0]
            if not isinstance(work, Job):
                if self._in_flight:
                    return
                self._drop_first()
                work()
            elif work.state != "queued":  # cancelled
                self._drop_first()
            elif (seat := self.seats.take(work)) is None:
                return
            else:
                running = Running(work, seat, self._start(work, seat))
                with self._wake:
                    self._queue.popleft()
                    self._in_flight.append(running)

    def _drop_first(self) -> None:
        with self._wake:  # others walk through the queue
            self._queue.popleft()

    def _turn(self, running: Running) -> None:
        has_ended = True
        with self._wake:
            self._current = running
        try:
            next(running.turns)
            has_ended = False
        except StopIteration:
            pass
        except DlmEdgeError as error:
            self._fail(running, error)
        except BaseException as error:  # noqa: BLE001 - whatever it is, the caller waits for an answer
            self._fail(running, as_internal(error))
        with self._wake:
            self._current = None
            if has_ended:
                self._in_flight.remove(running)
                self.seats.release(running.seat)

    def _fail(self, running: Running, error: DlmEdgeError) -> None:
        running.seat.discard()  # it may hold NaN, which must not reach the next job
        running.job.fail(error)


def closed() -> UsageProblem:
    return UsageProblem("E-CLOSED", "the engine is closed", "open it again")


def as_internal(error: BaseException) -> InternalError:
    wrapped = InternalError("E-INTERNAL", f"{type(error).__name__}: {error}", "please report this with the traceback")
    wrapped.__cause__ = error
    return wrapped
