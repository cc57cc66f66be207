"""The process that holds the model, seen from the application: its pipes, and who waits for which answer."""

from __future__ import annotations

import itertools
import subprocess
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from typing import Any

import msgspec

from dlm_edge.errors import DlmEdgeError, JobError, UsageProblem
from dlm_edge.runtime.events import Finished
from dlm_edge.runtime.job import Job
from dlm_edge.runtime.pipe_protocol import MAX_LINE, Cancel, Close, Failure, Happened, Request, decode_answer, line
from dlm_edge.runtime.worker import as_internal

CLOSE_TIMEOUT_S = 5.0
LOG_LINES = 20


class ChildProcess:
    """One life of the process: its pipes, and who waits for which answer. A thread reads, any thread writes."""

    def __init__(self, command: Sequence[str]) -> None:
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0
        )
        self.numbers = itertools.count(1)
        self.waiting: dict[int, Future[Any] | Job] = {}
        self.log: deque[str] = deque(maxlen=LOG_LINES)
        self.has_ended = False
        self._lock = threading.Lock()
        self.log_reader = threading.Thread(target=self._read_log, name="dlm-edge-child-log", daemon=True)
        self.reader = threading.Thread(target=self._read_answers, name="dlm-edge-child", daemon=True)
        self.log_reader.start()
        self.reader.start()

    def ask(self, make: Callable[[int], Request], waits: Future[Any] | Job) -> int:
        """Send a request whose answers belong to `waits`. Raises E-CRASH."""
        with self._lock:
            if self.has_ended:
                raise self.crash()
            number = next(self.numbers)
            self.waiting[number] = waits
        try:
            data = line(make(number))
        except (TypeError, ValueError, OverflowError, RecursionError) as error:
            self.waiting.pop(number, None)
            raise UsageProblem(
                "E-PARAM", f"a request cannot be sent: {error}", "give text, numbers, lists and maps"
            ) from error
        if len(data) > MAX_LINE:
            self.waiting.pop(number, None)
            raise UsageProblem(
                "E-PROMPT", f"a request has {len(data)} bytes, more than {MAX_LINE}", "shorten the prompt"
            )
        self._write(data)
        return number

    def send(self, request: Request) -> None:
        """A process that has just ended is noticed by the reader."""
        self._write(line(request))

    def _write(self, data: bytes) -> None:
        assert self.process.stdin is not None
        with self._lock, suppress(OSError, ValueError):
            while data:
                data = data[self.process.stdin.write(data) or 0 :]

    def crash(self) -> JobError:
        said = self.log[-1] if self.log else "it said nothing"
        message = f"the process that holds the model ended with {self.process.poll()}: {said}"
        return JobError("E-CRASH", message, "the next request starts it again")

    def _read_answers(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as pipe:
            lines = open(pipe.fileno(), "rb", closefd=False)  # noqa: SIM115 - buffered, over the same pipe
            for text in lines:
                try:
                    answer = decode_answer(text)
                except msgspec.DecodeError as error:  # whoever waits must hear of it
                    self.log.append(f"it wrote what is no answer: {error}")
                    self.process.kill()
                    break
                self._deliver(answer)
        self.process.wait()
        self.log_reader.join()
        with self._lock:
            self.has_ended, waiting = True, list(self.waiting.values())
            self.waiting.clear()
        for one in waiting:
            fail(one, self.crash())

    def _deliver(self, answer: Any) -> None:
        if isinstance(answer, Happened):
            job = self.waiting.get(answer.id)
            if isinstance(job, Job):
                self._happen(answer, job)
            return
        waiting = self.waiting.pop(answer.id, None)
        if isinstance(answer, Failure) and waiting is not None:
            fail(waiting, answer.to_error())
        elif isinstance(waiting, Future):
            waiting.set_result(answer.value)

    def _happen(self, answer: Happened, job: Job) -> None:
        if isinstance(answer.event, Finished):
            self.waiting.pop(answer.id, None)
            try:
                job.finish(answer.event.result)
            except BaseException as raised:  # noqa: BLE001 - as below
                job.fail(as_internal(raised))
            return
        try:
            job.emit(answer.event)
        except BaseException as raised:  # noqa: BLE001 - of the application's callback; this thread must go on
            error = raised if isinstance(raised, DlmEdgeError) else as_internal(raised)
            self.waiting.pop(answer.id, None)
            self.send(Cancel(answer.id))
            job.fail(error)

    def _read_log(self) -> None:
        assert self.process.stderr is not None
        with open(self.process.stderr.fileno(), encoding="utf-8", errors="replace", closefd=False) as lines:
            for text in lines:
                if text.strip():
                    self.log.append(text.strip()[:500])

    def end(self, *, wait: bool) -> None:
        self.send(Close(wait))
        try:
            self.process.wait(None if wait else CLOSE_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
        if threading.current_thread() is not self.reader:
            self.reader.join(CLOSE_TIMEOUT_S)
        for pipe in (self.process.stdin, self.process.stderr):
            if pipe is not None:
                with suppress(OSError):
                    pipe.close()


def fail(waiting: Future[Any] | Job, error: DlmEdgeError) -> None:
    if isinstance(waiting, Job):
        waiting.fail(error)
    else:
        waiting.set_exception(error)


class Owner:
    """Whom a job's cancel tells: the process that works on it."""

    def __init__(self, child: ChildProcess) -> None:
        self.child, self.number = child, 0

    def interrupt(self, job: Job) -> None:
        self.child.send(Cancel(self.number))

    def is_own_thread(self) -> bool:
        return threading.current_thread() is self.child.reader
