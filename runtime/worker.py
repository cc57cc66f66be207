"""The one thread that runs jobs, in the order they came, and how it ends."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

from dlm_edge.errors import DlmEdgeError, InternalError, UsageProblem
from dlm_edge.runtime.job import Job
from dlm_edge.runtime.step_model import StepModel

T = TypeVar("T")
CLOSE_TIMEOUT_S = 2.0  # a run ends within a node of the graph; a callback that blocks is not waited for


class Worker:
    """Holds no reference to the engine, so that an engine nobody holds any more can end it."""

    def __init__(self, model: StepModel, execute: Callable[[Job], None]) -> None:
        self._model, self._execute = model, execute
        self._wake = threading.Condition()
        self._queue: deque[Job | Callable[[], None]] = deque()
        self._current: Job | Callable[[], None] | None = None
        self._closed = False
        self._pid = os.getpid()
        self._thread = threading.Thread(target=self._run, name="dlm-edge-engine", daemon=True)
        self._thread.start()

    def is_own_thread(self) -> bool:
        return threading.current_thread() is self._thread

    @property
    def is_closed(self) -> bool:
        return self._closed

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
        """Run `function` on the worker thread, after the jobs that wait already, and give what it returns or raises."""
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
        """End the step that `job` is in, if it is the one that runs."""
        with self._wake:
            if self._current is job:
                self._model.terminate()

    def close(self) -> None:
        """Cancel what runs and what waits, and wait for the thread; again is harmless."""
        if os.getpid() != self._pid:
            return
        with self._wake:
            self._closed = True
            work = [*self._queue, *([self._current] if self._current else [])]
            self._wake.notify_all()
        for job in work:
            if isinstance(job, Job):
                job.cancel()
        if not self.is_own_thread():
            self._thread.join(CLOSE_TIMEOUT_S)

    def _run(self) -> None:
        while (work := self._next()) is not None:
            if isinstance(work, Job):
                self._run_job(work)
            else:
                work()
            with self._wake:
                self._current = None

    def _run_job(self, job: Job) -> None:
        try:
            if job.begin():
                self._execute(job)
        except DlmEdgeError as error:
            self._fail(job, error)
        except BaseException as error:  # noqa: BLE001 - whatever it is, the caller waits for an answer
            self._fail(job, as_internal(error))

    def _next(self) -> Job | Callable[[], None] | None:
        with self._wake:
            self._wake.wait_for(lambda: self._queue or self._closed)
            if not self._queue:
                return None
            self._current = self._queue.popleft()
            return self._current

    def _fail(self, job: Job, error: DlmEdgeError) -> None:
        self._model.discard()  # it may hold NaN, which must not reach the next job
        job.fail(error)


def closed() -> UsageProblem:
    return UsageProblem("E-CLOSED", "the engine is closed", "open it again")


def as_internal(error: BaseException) -> InternalError:
    wrapped = InternalError("E-INTERNAL", f"{type(error).__name__}: {error}", "please report this with the traceback")
    wrapped.__cause__ = error
    return wrapped
