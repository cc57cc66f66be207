"""The process that holds the model for a SubprocessEngine: `python -m dlm_edge.runtime.child`, spoken to over its pipes.

It ends when its input ends, so that it never outlives the application. What a library prints lands on standard error:
standard output belongs to the protocol.
"""

from __future__ import annotations

import os
import queue
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any, BinaryIO

import msgspec

from dlm_edge.errors import DlmEdgeError, UsageProblem
from dlm_edge.runtime.engine import Engine
from dlm_edge.runtime.events import Finished
from dlm_edge.runtime.job import Job
from dlm_edge.runtime.pipe_protocol import (
    MAX_LINE,
    VERSION,
    Answer,
    Call,
    Cancel,
    Close,
    Failure,
    Happened,
    Open,
    Reply,
    Submit,
    decode_request,
    line,
)


class Child:
    """Reads requests on the main thread; one more thread writes what jobs have to say."""

    def __init__(self, requests: BinaryIO, answers: BinaryIO) -> None:
        self.requests, self.answers = requests, answers
        self.engine: Engine | None = None
        self.jobs: dict[int, Job] = {}
        self._changed: queue.SimpleQueue[int | Answer | None] = queue.SimpleQueue()
        self._writer = threading.Thread(target=self._write_events, name="dlm-edge-events", daemon=True)

    def run(self) -> None:
        self._writer.start()
        wait = False
        while text := self.requests.readline(MAX_LINE):
            try:
                request = decode_request(text)
            except msgspec.DecodeError as error:
                self.say(Failure.of(0, UsageProblem("E-JSON", f"a request is malformed: {error}", "see the protocol")))
                continue
            if isinstance(request, Close):
                wait = request.wait
                break
            if isinstance(request, Cancel):
                if job := self.jobs.get(request.job):
                    job.cancel()
                continue
            try:
                self.answer(request)
            except Exception as error:
                self.say(Failure.of(request.id, error))
        if self.engine is not None:
            self.engine.close(wait=wait)
        self._changed.put(None)
        self._writer.join()

    def answer(self, request: Open | Submit | Call) -> None:
        if isinstance(request, Open):
            if self.engine is not None:
                raise UsageProblem("E-STATE", "a model is open already", "start another process")
            self.engine = Engine.open(request.path, **request.options)
            self.say(Reply(request.id, self.about(self.engine)))
        elif self.engine is None:
            raise UsageProblem("E-STATE", "no model is open", "send open first")
        elif isinstance(request, Submit):
            fixed = request.settings.get("fixed")
            settings = request.settings | ({"fixed": integer_keys(fixed)} if isinstance(fixed, dict) else {})
            job = self.engine.submit(request.prompt, raw=request.raw, is_watched=request.frames, **settings)
            self.jobs[request.id] = job
            job.watch(lambda: self._changed.put(request.id))
        else:
            # A verb may wait for the jobs before it, which a later request may cancel.
            verb: Callable[..., Any] = getattr(self.engine, request.verb)
            threading.Thread(target=self._call, args=(request, verb), name="dlm-edge-call", daemon=True).start()

    def _call(self, request: Call, verb: Callable[..., Any]) -> None:
        try:
            self.say(Reply(request.id, msgspec.to_builtins(verb(**request.arguments))))
        except Exception as error:
            self.say(Failure.of(request.id, error))

    @staticmethod
    def about(engine: Engine) -> dict[str, Any]:
        return {
            "protocol": VERSION,
            "pid": os.getpid(),
            "spec": msgspec.to_builtins(engine.spec),
            "device": engine.device,
            "has_chat_template": engine.has_chat_template,
            "keeps_prompts": engine.keeps_prompts,
        }

    def say(self, answer: Answer) -> None:
        """Without waiting for the reader: who reads requests must go on reading them."""
        self._changed.put(answer)

    def _write(self, answer: Answer) -> None:
        self.answers.write(line(answer))
        self.answers.flush()

    def _write_events(self) -> None:
        """A slow reader gets joined texts and fewer frames, as from a Job."""
        try:
            while (item := self._changed.get()) is not None:
                if not isinstance(item, int):
                    self._write(item)
                elif item in self.jobs:
                    self._write_of(item)
            for number in list(self.jobs):
                self._write_of(number)
        except OSError:
            os._exit(1)  # nobody reads any more

    def _write_of(self, number: int) -> None:
        try:
            while events := self.jobs[number].poll():
                for event in events:
                    self._write(Happened(number, event))
                    if isinstance(event, Finished):
                        del self.jobs[number]
                        return
        except DlmEdgeError as error:
            self._write(Failure.of(number, error))
            del self.jobs[number]


def integer_keys(given: dict[str, Any]) -> dict[Any, Any]:
    """JSON has only strings as keys."""
    return {int(key) if key.isascii() and key.isdecimal() and len(key) <= 9 else key: given[key] for key in given}


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the application, which then closes this process
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    Child(sys.stdin.buffer, answers).run()


if __name__ == "__main__":
    main()
